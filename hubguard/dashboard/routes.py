"""The whole route table, and the application that serves it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tornado.web import Application, HTTPError, StaticFileHandler

from hubguard import words
from hubguard.cull import words as cull_words
from hubguard.cull.room import CULL
from hubguard.dashboard import words as dashboard_words
from hubguard.dashboard.room import DASHBOARD
from hubguard.dashboard.shapes import badge
from hubguard.drift.room import DRIFT
from hubguard.guard import Guard
from hubguard.journal import words as journal_words
from hubguard.model import NEEDS_NO_ARMING
from hubguard.prune.room import PRUNE
from hubguard.watch.room import WATCH
from hubguard.web.auth import AuthPort
from hubguard.web.base import NotFound, Site, ToPages, log_request
from hubguard.web.harden import Hardened
from hubguard.web.openapi import document
from hubguard.web.room import Room

HERE = Path(__file__).resolve().parent.parent


ROOMS: tuple[tuple[Room, Callable[[Guard], object]], ...] = (
    (DASHBOARD, lambda guard: guard),
    (CULL, lambda guard: guard.parts.culling),
    (DRIFT, lambda guard: guard.parts.drifts),
    (PRUNE, lambda guard: guard.parts.pruning),
    (WATCH, lambda guard: guard.parts.watch),
)
"""Every room, and the part of a guard that its handlers get; the room is left out if the guard hasn't that part."""

PAGES = {path: handler for room, _ in ROOMS for path, handler in room.every_page().items()}
FRAGMENTS = {path: handler for room, _ in ROOMS for path, handler in room.fragments().items()}
API = {path: handler for room, _ in ROOMS for path, handler in room.api.items()}


class Static(Hardened, StaticFileHandler):
    """The scripts and the style sheet. They hold nothing secret, and are open."""

    def set_default_headers(self) -> None:
        """As any answer of ours; the cache header is set by what the address says of the version."""
        super().set_default_headers()
        self.clear_header("Cache-Control")

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """404 for what can't be the name of a file, too."""
        try:
            return super().validate_absolute_path(root, absolute_path)
        except (OSError, ValueError):
            raise HTTPError(404) from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One plain line."""
        self.say_what_would_do(status_code)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {HTTPStatus(status_code).phrase}\n")


def make_application(
    guard: Guard,
    auth: AuthPort,
    *,
    prefix: str,
    hub_prefix: str,
    cookie_secret: bytes | None = None,
    service_token: str = "",
) -> Application:
    """The pages and the API over ``guard``, below ``prefix`` (with a slash at both ends).

    ``hub_prefix`` is where the hub is, for links: its path, or a URL if it is at another host. ``cookie_secret`` None: a new
    one, so that everyone logs in again after a restart. ``service_token`` is that of our service at the hub, with which
    the hub reports what its spawner saw; "": nobody may.
    """
    secret = cookie_secret or secrets.token_bytes(32)
    env, description = _templates(prefix), partial(_description, prefix)
    site = Site(guard.status, auth, prefix, hub_prefix, env, description, secret, partial(badge, guard), service_token)
    journal = guard.mandate.journal
    handlers: list[Any] = [
        handler
        for room, part_of in ROOMS
        if (part := part_of(guard)) is not None
        for handler in room.handlers(prefix, site=site, journal=journal, **{room.part: part})
    ]
    if (callback := auth.callback()) is not None:
        handlers.append((f"{prefix}oauth_callback", *callback))
    if prefix != "/":
        handlers.append((prefix.rstrip("/"), ToPages, {"site": site}))
    settings: dict[str, Any] = {
        **_static(prefix),
        "static_handler_class": Static,
        "cookie_secret": secret,
        "default_handler_class": NotFound,
        "default_handler_args": {"site": site},
        "log_function": log_request,
    }
    return Application(handlers, **settings)


def _static(prefix: str) -> dict[str, str]:
    return {"static_path": str(HERE / "static"), "static_url_prefix": f"{prefix}static/"}


@cache
def _templates(prefix: str) -> Environment:
    """The templates of the pages below ``prefix``, each compiled when it is first used."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["p"] = _words()
    env.globals["needs_no_arming"] = NEEDS_NO_ARMING
    env.globals["static"] = partial(Static.make_static_url, _static(prefix))
    return env


@cache
def _description(prefix: str) -> dict[str, Any]:
    """The API below ``prefix``, described. Made once: no other request is answered meanwhile."""
    return document({path: handler.operations for path, handler in API.items()}, prefix)


def _words() -> SimpleNamespace:
    """What templates call by ``p.``: the words of all rooms in one place."""
    rooms = (words, journal_words, cull_words, dashboard_words)
    return SimpleNamespace(**{name: value for room in rooms for name, value in vars(room).items() if name[0] != "_"})
