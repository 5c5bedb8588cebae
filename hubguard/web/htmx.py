"""htmx over tornado: is it an htmx request, and answering one with a single block of a page. Nothing more."""

from __future__ import annotations

import hashlib
from typing import Any

from jinja2 import Environment
from jinja2_fragments import render_block
from tornado.web import RequestHandler

CONFIG = {
    # Errors keep what is shown; the page says that it is stale.
    "noSwap": [204, 304, "4xx", "5xx"],
    "defaultTimeout": 15000,
    # It would add a <style>, which the content security policy forbids.
    "includeIndicatorCSS": False,
    "history": False,
    "extensions": "ptag",
    # Rows that someone has opened stay open.
    "morphIgnore": ["data-htmx-powered", "open"],
}
"""For the page's ``<meta name="htmx-config">``."""


def is_htmx(handler: RequestHandler) -> bool:
    """Whether htmx sent this request."""
    return handler.request.headers.get("HX-Request") == "true"


def reload_page(handler: RequestHandler) -> None:
    """Have htmx load the whole page again when it gets this answer."""
    handler.set_header("HX-Refresh", "true")


def ptag(html: str) -> str:
    """The tag of a fragment: equal for equal text."""
    return hashlib.sha256(html.encode()).hexdigest()[:16]


def finish_fragment(handler: RequestHandler, env: Environment, template: str, block: str, **values: Any) -> None:
    """Answer with ``block`` of ``template``, or with 204 if the page shows that already."""
    html = render_block(env, template, block, **values)
    tag = ptag(html)
    handler.set_header("HX-PTag", tag)
    if handler.request.headers.get("HX-PTag") == tag:
        handler.set_status(204)
        handler.finish()
    else:
        handler.set_header("Content-Type", "text/html; charset=utf-8")
        handler.finish(html)
