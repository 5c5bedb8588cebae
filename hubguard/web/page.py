"""A page of the admin UI: complete HTML, and its live part for htmx. It knows no feature."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from jinja2_fragments import render_block
from markupsafe import Markup

from hubguard.status import Status
from hubguard.times import moment
from hubguard.web import htmx
from hubguard.web.base import Base
from hubguard.web.endpoint import WHY
from hubguard.web.openapi import Param, Refused

ROWS = 100
"""Rows on a page of the Servers and Journal tables."""


class Page(Base):
    """A page, or its live part when asked for below ``fragments/``. ``values`` returns what ``template`` shows."""

    page = True
    needs: tuple[str, ...] = ("read",)
    template: ClassVar[str] = ""
    tab: ClassVar[str] = ""

    def here(self, path: str = "", **query: Any) -> str:
        """The address of ``path`` below the prefix, with what is set of ``query``."""
        given = {name: value for name, value in query.items() if value not in {None, ""}}
        return self.site.prefix + path + (f"?{urlencode(given)}" if given else "")

    def asked(self, name: str) -> str:
        """The text of a parameter in the query, "" if it isn't given; control characters are dropped."""
        return "".join(char for char in self.get_query_argument(name, "")[:255] if char.isprintable())

    def common(self, status: Status) -> dict[str, Any]:
        """What every template may use."""
        return {
            "site": self.site,
            "who": self.who,
            "may": self.may,
            "tab": self.tab,
            "status": status,
            "now": status.at,
            "form_token": self.form_token(),
            "url": self.here,
            "server_url": self.server_url,
            "beliefs_url": self.beliefs_url,
            "user_url": self.user_url,
            "row_id": row_id,
        }

    def server_url(self, user: str, name: str) -> str:
        """The address of a server's own page."""
        return self.here(f"servers/{quote(user, safe='')}/{quote(name, safe='')}")

    def user_url(self, name: str, /, **query: Any) -> str:
        """The address of a user's own page."""
        return self.here(f"users/{quote(name, safe='')}", **query)

    def beliefs_url(self, user: str, name: str) -> str:
        """The address of what each source says of a server."""
        return self.here(f"beliefs/{quote(user, safe='')}/{quote(name, safe='')}")

    def why(self) -> str:
        """The reason in the form that was sent. Raises Refused (400)."""
        return str(Param("why", str, WHY.help, high=WHY.high).checked(self.get_body_argument("why", "").strip()))

    async def show(self, path: str, live: Mapping[str, Any], *, poll: bool = True, **around: Any) -> None:
        """Answer with the page at ``path``, whose live part shows ``live`` and the rest ``around``, too.

        ``poll`` False: it doesn't change.
        """
        fragment = self.site.prefix + "fragments/"
        if self.request.path.startswith(fragment):
            badge = self.site.badge()
            self.set_header("HubGuard-Badge", f"{badge.count} {badge.icon}")
            htmx.finish_fragment(self, self.site.env, self.template, "live", **live)
            return
        html = render_block(self.site.env, self.template, "live", **live)
        query = f"?{self.request.query}" if self.request.query else ""
        self.finish(
            self.site.env.get_template(self.template).render(
                **{**live, **around},
                live_html=Markup(html),  # noqa: S704  # rendered a line above, with autoescaping
                live_tag=htmx.ptag(html),
                live_url=fragment + path + query if poll else None,
                htmx_config=htmx.CONFIG,
            )
        )


UNTIL = {"day": timedelta(days=1), "week": timedelta(days=7)}
"""What can be chosen in forms that ask until when, beside a date."""


def choose_until(handler: Base, now: datetime) -> datetime:
    """The time that was chosen in the form of the macro of that name. Raises Refused (400)."""
    choice = Param("until", str, "", choices=(*UNTIL, "date")).checked(handler.get_body_argument("until", ""))
    if choice in UNTIL:
        return now + UNTIL[choice]
    try:
        return moment(handler.get_body_argument("date", ""))
    except ValueError:
        raise Refused(400, "Nothing was changed: no date was given. Go back and enter one.") from None


def row_id(*parts: str) -> str:
    """An element id that is the same for the same thing from refresh to refresh, whatever is in its name."""
    return "r" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def whole(text: str) -> int:
    """The number that ``text`` from an address stands for, 1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1
