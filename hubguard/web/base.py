"""What every answer has in common: headers, who asks, whether they may, and errors in one clear line."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from jinja2 import Environment
from tornado.web import HTTPError, RequestHandler
from typing_extensions import override

from hubguard import words
from hubguard.errors import HubError, HubGuardError, HubUnreachable, JournalError, NotThere, Unrecordable
from hubguard.status import Status
from hubguard.web import auth as web_auth
from hubguard.web import htmx
from hubguard.web.auth import AuthPort, Caller, Rights
from hubguard.web.harden import Hardened
from hubguard.web.openapi import LONGEST_NAME, PATH_NAME, Refused

log = logging.getLogger("hubguard.web")

_PLAIN_WORDS = {
    400: "The request can't be read",
    404: "There is nothing at this address",
    405: "This address doesn't take that method",
    500: "HubGuard made a mistake, and did nothing; its log says more",
}


@dataclass(frozen=True, slots=True)
class Badge:
    """What the tab of a browser shows: ``count`` in its title if there is any, and ``icon``, a file among the static ones."""

    count: int = 0
    icon: str = "hubguard.svg"


@dataclass(frozen=True, slots=True)
class Site:
    """What every handler has. ``status`` returns what the guard knows of itself now, and ``badge`` how that looks in a tab.

    ``prefix`` and ``hub_prefix`` end with a slash; ``secret`` signs form tokens, ``description`` returns that of the
    API. ``service_token`` is that of HubGuard's own service at the hub, "" if nobody may use it.
    """

    status: Callable[[], Status]
    auth: AuthPort
    prefix: str
    hub_prefix: str
    env: Environment
    description: Callable[[], dict[str, Any]]
    secret: bytes = field(repr=False)
    badge: Callable[[], Badge]
    service_token: str = field(default="", repr=False)


class Base(Hardened):
    """A handler that knows who asks. ``needs`` names the rights, of auth.Rights, that every method takes."""

    needs: tuple[str, ...] = ()
    site: Site
    who: Caller | None = None
    may: Rights = Rights(False, False, False)

    def initialize(self, site: Site, **parts: Any) -> None:
        """Take what the route table has: ``site`` to every handler, and to each its ``parts``, by the names it declares."""
        self.site = site
        vars(self).update(parts)

    async def head(self, *parts: str) -> None:
        """As GET; the body is left out on its way. 405 if there is no GET."""
        answered = self.get(*parts)
        if inspect.isawaitable(answered):
            await answered

    def compute_etag(self) -> str | None:
        """None: nothing that is not stored can be asked for again by its tag."""
        return None

    async def prepare(self) -> None:
        """Afterwards the caller is known and has the rights, or the request has been answered."""
        for name in self.path_args:
            if len(name) > LONGEST_NAME:
                raise Refused(404, _PLAIN_WORDS[404] + ".")
            PATH_NAME.checked(name)
        if not self.needs:
            return
        session = self.site.auth.session(self)
        if session is not None and not self._navigates() and not self._proved(session):
            if htmx.is_htmx(self):
                htmx.reload_page(self)
            raise Refused(
                403,
                "This didn't come from a page of HubGuard, or the login has expired. Reload the page and try again.",
            )
        reading = self.request.method in {"GET", "HEAD"}
        self.who = await self.site.auth.caller(self, fresh=not reading)
        if self.who is None:
            self._unknown_caller()
            return
        self.may = web_auth.rights(self.who.scopes)
        lacking = [right for right in self.needs if not getattr(self.may, right)]
        if lacking:
            raise Refused(403, _lacks(self.who, lacking))

    def _navigates(self) -> bool:
        """Whether a person is opening a page, as far as the browser shows: not a script that fetches."""
        mode = self.request.headers.get("Sec-Fetch-Mode", "navigate")
        return self.request.method in {"GET", "HEAD"} and mode == "navigate" and not htmx.is_htmx(self)

    def form_token(self) -> str:
        """What forms and scripts of our pages send along, to prove that they are ours; bound to the login."""
        session = self.site.auth.session(self) or ""
        return hmac.new(self.site.secret, b"form:" + session.encode(), hashlib.sha256).hexdigest()

    def _proved(self, session: str) -> bool:
        given = self.request.headers.get("X-XSRFToken") or self.get_body_argument("_xsrf", "")
        wanted = hmac.new(self.site.secret, b"form:" + session.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(given.encode(), wanted.encode())

    def _unknown_caller(self) -> None:
        """To the login if a person opens a page; else 401, since each redirected fetch would start a login."""
        if self.page and self._navigates() and not self.request.headers.get("Authorization"):
            self.redirect(self.site.auth.login_url(self))
            return
        if htmx.is_htmx(self):
            htmx.reload_page(self)
        raise Refused(
            401, "The hub doesn't know this token or login: log in, or send a valid `Authorization: token …`."
        )

    # -- answering ------------------------------------------------------------------------------------------------

    page = False
    """Whether people read the answer in a browser; errors are pages, then."""

    def write_json(self, value: Any) -> None:
        """Answer with ``value`` as JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(words.json_text(value))

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer with an error; HubGuard's own ones have their status and their line."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(error, Unrecordable):
            status_code = 400
        elif isinstance(error, HubUnreachable | JournalError | HubError):
            status_code = 503
        elif isinstance(error, NotThere):
            status_code = 404
        elif isinstance(error, HubGuardError):
            status_code = 409
        keep = {name: self._headers[name] for name in ("HX-Refresh",) if name in self._headers}
        super().send_error(status_code, **kwargs, keep=keep)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One clear line, as JSON or as a page."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        self.say_what_would_do(status_code)
        for name, value in kwargs.get("keep", {}).items():
            self.set_header(name, value)
        message = _message(status_code, error)
        if not self.page:
            self.write_json({"status": status_code, "message": message})
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        html = self.site.env.get_template("error.html").render(
            site=self.site, who=self.who, status=status_code, title=HTTPStatus(status_code).phrase, message=message
        )
        self.finish(html)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Ours and the caller's mistakes are one line; only defects have a traceback. Queries are never logged."""
        where = f"{self.request.method} {self.request.path}"
        if isinstance(value, Refused | HubGuardError):
            log.info("%s: %s", where, getattr(value, "message", value))
        elif isinstance(value, HTTPError):
            log.info("%s: %d", where, value.status_code)
        else:
            log.error("%s ended in an unexpected error (a bug in HubGuard)", where, exc_info=(typ, value, tb))


class ToPages(Base):
    """The prefix without its slash."""

    @override
    def get(self) -> None:
        self.redirect(self.site.prefix)


class NotFound(Base):
    """Every address that isn't in the table."""

    page = True

    async def prepare(self) -> None:
        """Answer 404, as a page for people and as JSON below ``api/``."""
        self.page = "/api/" not in self.request.path
        raise Refused(404, _PLAIN_WORDS[404] + ".")


def log_request(handler: RequestHandler) -> None:
    """One line an answer, without the query: it may hold what a login passes on."""
    status = handler.get_status()
    who = getattr(handler, "who", None)
    level = logging.WARNING if status >= 500 else logging.DEBUG if handler.request.method == "GET" else logging.INFO
    took_ms = 1000 * handler.request.request_time()
    request = handler.request
    if isinstance(who, Caller):
        log.log(level, "%d %s %s (%s) %.0f ms", status, request.method, request.path, who.actor, took_ms)
    else:  # a line of its own, so that strangers don't use up what may be logged of the others
        log.log(level, "%d %s %s (-) %.0f ms", status, request.method, request.path, took_ms)


def _message(status: int, error: BaseException | None) -> str:
    if isinstance(error, Refused):
        return error.message
    if isinstance(error, HubGuardError):
        return str(error)
    return _PLAIN_WORDS.get(status, HTTPStatus(status).phrase) + "."


def _lacks(who: Caller, lacking: list[str]) -> str:
    ways = {
        "read": f"{web_auth.READ_SCOPE}, or {' and '.join(sorted(web_auth.HUB_READ_SCOPES))}",
        "act": f"{web_auth.ACT_SCOPE}, or {' or '.join(sorted(web_auth.HUB_ACT_SCOPES))}",
        "prune": f"{web_auth.PRUNE_SCOPE}, or {' or '.join(sorted(web_auth.HUB_PRUNE_SCOPES))}",
    }
    needed = "; and ".join(ways[right] for right in lacking)
    return f"{who.actor} may not do this. It takes the hub's scope {needed}: for all users, and with access to this service."
