"""Who asks, and what they may do. Rights are judged on the scopes of the caller's own token or login, never on ours."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler
from tornado.httputil import url_concat
from tornado.web import HTTPError, RequestHandler
from typing_extensions import override

from hubguard.errors import BudgetExhausted, HubUnreachable
from hubguard.hub.http import Answer, HTTPClient, NoAnswer
from hubguard.pacing.budget import Slot
from hubguard.web.harden import Hardened
from hubguard.web.lookups import Lookups, Standing

log = logging.getLogger("hubguard.web")

SERVICE = "hubguard"
"""The service's name at the hub."""

READ_SCOPE = "custom:hubguard:read"
ACT_SCOPE = "custom:hubguard:act"
PRUNE_SCOPE = "custom:hubguard:prune"

HUB_READ_SCOPES = frozenset({"list:users", "read:servers"})
"""With all of these, unfiltered, one sees by hand what the pages show."""

HUB_ACT_SCOPES = frozenset({"admin:servers", "delete:servers"})
"""With one of these, unfiltered, one may stop anyone's server by hand."""

HUB_PRUNE_SCOPES = frozenset({"delete:users", "admin:users"})
"""With one of these, unfiltered, one may delete anyone by hand."""

KNOWN_S = 300.0
"""Seconds for which the hub's last answer about a token allows reading, before HubGuard asks again."""

DENIED_S = 30.0
"""Seconds for which a refused token stays refused, before HubGuard asks again."""

HUB_DOWN_S = 3600.0
"""Seconds for which known logins may continue to read while the hub doesn't answer."""

LOOKUP_S = 10.0
"""Maximum seconds for the hub to say whose token it is."""

LARGEST_MODEL = 4 * 1024 * 1024
"""Maximum bytes of what the hub says about a token's owner, of which the scopes are the most."""

KNOWN_MOST = 10_000
"""Maximum tokens whose owner is remembered."""

LOGINS_MOST = 10_000
"""Maximum logins that may be under way."""

LONGEST_WAY_BACK = 2000
"""Maximum characters of the address that a login comes back to. A login from a longer one comes back to the Overview."""

_PLAUSIBLE = re.compile(r"[!-~]{1,2048}")
# Anything else can't be passed on in a header, and would look like a hub in trouble.

_UNTOLD = (
    "The hub doesn't answer, so HubGuard can't check who you are. Your login may be fine: try again when the hub answers."
    " `hubguard hold` on the machine works without it."
)

_CODE_REFUSED = "Failed to check authorization:"
# How JupyterHub's client begins what it says of a 4xx. Made-up codes must not look like a hub in trouble: enough of them
# would open the breaker, and anyone can send them.


def _not_the_librarys(record: logging.LogRecord) -> bool:
    """Leave out what JupyterHub's client says of every login: it quotes session ids and states. Its errors are kept."""
    return record.levelno >= logging.ERROR or record.module not in {"auth", "_xsrf_utils"}


# It logs as the application that it is used in.
logging.getLogger("tornado.application").addFilter(_not_the_librarys)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a user or a service, by its name at the hub, with its expanded scopes. ``admin``: of the hub, for a link."""

    name: str
    kind: str
    scopes: frozenset[str]
    admin: bool = False

    @property
    def actor(self) -> str:
        """How the journal names who did it."""
        return self.name if self.kind == "user" else f"service {self.name}"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a caller may do here. ``act``: stop servers, arm, hold. ``prune``: delete users."""

    read: bool
    act: bool
    prune: bool


def rights(scopes: frozenset[str]) -> Rights:
    """What ``scopes`` allow. A scope with a filter (``!user=…``) is another string than the scope itself, so it never counts.

    Reading never grants acting. ``custom:hubguard:act`` includes reading; hub scopes to act grant no more than they do at
    the hub.
    """
    return Rights(
        read=bool(scopes & {READ_SCOPE, ACT_SCOPE}) or scopes >= HUB_READ_SCOPES,
        act=ACT_SCOPE in scopes or bool(scopes & HUB_ACT_SCOPES),
        prune=PRUNE_SCOPE in scopes or bool(scopes & HUB_PRUNE_SCOPES),
    )


class AuthPort(Protocol):
    """Identifies who sent a request."""

    async def caller(self, handler: RequestHandler, *, fresh: bool) -> Caller | None:
        """Who sent it, None for nobody that the hub knows. ``fresh``: the hub is asked now, whatever is known.

        Raises HubUnreachable if that is unknown: the hub doesn't answer, and nothing usable is known.
        """
        ...

    def session(self, handler: RequestHandler) -> str | None:
        """The secret of the login cookie that authenticates the request; None when a token in a header does, or nothing.

        What comes with a cookie may have been sent by a foreign page, and has to prove itself.
        """
        ...

    def login_url(self, handler: RequestHandler) -> str:
        """Where a browser goes to log in; it comes back to the page asked for. Sets cookies on ``handler``."""
        ...

    def callback(self) -> tuple[type[RequestHandler], dict[str, Any]] | None:
        """The handler, with its arguments, for ``oauth_callback`` below the prefix; None if there is no such login."""
        ...


class PacedOAuth(HubOAuth):
    """JupyterHub's OAuth client whose requests to the hub all go through ``paced``; always asynchronous, never cached."""

    def __init__(self, paced: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self._paced = paced
        self._begun: deque[str] = deque()

    def generate_state(self, next_url: str | None = None, **extra: Any) -> str:
        """The name of a login that begins. Anybody can begin one, so the oldest is forgotten when there are too many."""
        if next_url is not None and len(next_url) > LONGEST_WAY_BACK:
            next_url = self.base_url
        begin: Any = super().generate_state
        state_id = str(begin(next_url, **extra))
        self._begun.append(state_id)
        if len(self._begun) > LOGINS_MOST:
            states: Any = self._oauth_states
            states.pop(self._begun.popleft(), None)
        return state_id

    async def user_for_token(
        self, token: str, use_cache: bool = True, session_id: str = "", *, sync: bool = True
    ) -> dict[str, Any] | None:
        """The hub's model of whose token it is now; None only if the hub itself says that it is nobody's.

        Raises HubUnreachable for any other answer: a firewall's page, a redirect or ``null`` say nothing about the token.
        """
        answer: Answer = await self._paced(lambda: self._look_up(token))
        model = answer.json if isinstance(answer.json, dict) else {}
        if answer.status in {403, 404} and model.get("status") == answer.status and "message" in model:
            return None
        named = isinstance(model.get("name"), str) and isinstance(model.get("scopes"), list)
        if answer.status != 200 or not named:
            raise HubUnreachable(f"{_UNTOLD} Its answer names nobody.")
        return model

    async def _look_up(self, token: str) -> Answer:
        client = HTTPClient(timeout_s=LOOKUP_S, largest=LARGEST_MODEL, token=token)
        try:
            answer = await client.exchange("GET", f"{self.api_url.rstrip('/')}/user")
        finally:
            await client.close()
        if isinstance(answer, NoAnswer) or answer.status == 429 or answer.status >= 500:
            raise HubUnreachable(_UNTOLD)
        return answer

    async def token_for_code(self, code: str, *, sync: bool = True, **more: Any) -> Any:
        """The token of a login at the hub. Raises HubUnreachable, and HTTPError (400) for a code that the hub refuses."""
        ask: Any = super().token_for_code

        async def exchange() -> Any:
            try:
                return await ask(code, sync=False, **more)
            except HTTPError as error:
                if (error.log_message or "").startswith(_CODE_REFUSED):
                    return None
                raise

        token = await self._paced(exchange)
        if token is None:
            raise HTTPError(400, "The hub refuses this login: it has been used already, or has taken too long.")
        return token


class Callback(Hardened, HubOAuthCallbackHandler):
    """Where the hub sends a browser back to after a login."""

    def initialize(self, login: HubLogin) -> None:
        """Use the login's own client of the hub."""
        self.login = login
        self.hub_auth = login.hub_auth

    async def get(self) -> None:
        """Like any other lookup, a login waits for its turn."""
        standing = Standing.LOGIN if self.login.began(self) else Standing.STRANGER
        async with self.login.lookups.turn(_peer(self), standing):
            finished: Any = super().get
            await finished()

    async def prepare(self) -> None:
        """Settle who it is here, since JupyterHub's own way blocks the event loop. It matters only to a login out of turn."""
        self.current_user = None
        if not self.login.began(self) and self.login.session(self) is not None:
            self.current_user = await self.login.caller(self, fresh=False)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """503 if the hub doesn't answer."""
        unreachable = isinstance((kwargs.get("exc_info") or (None, None))[1], HubUnreachable)
        super().send_error(503 if unreachable else status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One clear line, as plain text: part of it may come from the address."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        message = "The login didn't work; HubGuard's log says more."
        if isinstance(error, HubUnreachable):
            message = str(error)
        elif isinstance(error, HTTPError) and status_code < 500 and error.log_message:
            message = error.log_message
        self.say_what_would_do(status_code)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{message} To log in once more, open {self.login.hub_auth.base_url}\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """One line, without the address: it holds the code that a login is made with."""
        log.warning("a login didn't work: %s", getattr(value, "log_message", None) or value)


class HubLogin(AuthPort):
    """The AuthPort over a hub: OAuth logins by cookie, tokens by ``Authorization: token …`` or ``bearer …``.

    ``lane`` returns the budget's slot that each request to the hub passes. ``hub_host`` is set if the hub is at another
    host than the service (``JUPYTERHUB_HOST``). ``redirect_uri`` is where the hub sends logins back to;
    "" for what it is without subdomains.
    """

    def __init__(
        self,
        *,
        api_url: str,
        token: str,
        prefix: str,
        hub_prefix: str,
        hub_host: str = "",
        redirect_uri: str = "",
        lane: Callable[[], Slot] | None = None,
    ) -> None:
        self.access_scope = f"access:services!service={SERVICE}"
        self.hub_auth: Any = PacedOAuth(
            self._paced,
            api_url=api_url,
            api_token=token,
            base_url=prefix,
            hub_prefix=hub_prefix,
            hub_host=hub_host,
            oauth_client_id=f"service-{SERVICE}",
            # Said outright: the environment of the process is that of another service entry than the page's.
            oauth_redirect_uri=redirect_uri or f"{prefix}oauth_callback",
            access_scopes={self.access_scope},
        )
        self._lane = lane
        self.lookups = Lookups()
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._vouched_s: dict[str, float] = {}

    @override
    async def caller(self, handler: RequestHandler, *, fresh: bool) -> Caller | None:
        token = self.hub_auth.get_token(handler)
        if not token or not _PLAUSIBLE.fullmatch(token):
            return None
        key = hashlib.sha256(f"{self.hub_auth.get_session_id(handler)}:{token}".encode()).hexdigest()
        passed_s, known = self._recalled(key, fresh=fresh)
        if passed_s is None:
            return known
        peer, standing = _peer(handler), self._standing(handler, token)
        try:
            async with self.lookups.turn(peer, standing):
                # While it waited, another request may have asked for the same.
                told_s, known = self._recalled(key, fresh=fresh)
                if told_s is None:
                    return known
                caller = await self._ask(token)
        except HubUnreachable:
            if not fresh and known is not None and passed_s < HUB_DOWN_S:
                return known
            raise
        if caller is None and standing is Standing.STRANGER:
            self.lookups.denied(peer)
        self._remember(key, token, caller)
        return caller

    def _recalled(self, key: str, *, fresh: bool) -> tuple[float | None, Caller | None]:
        """(None, who it is) while that needs no asking; else for how many seconds it has been known, and who it was."""
        told_s, known = self._known.get(key, (float("-inf"), None))
        passed_s = time.monotonic() - told_s
        if not fresh and passed_s < (KNOWN_S if _is_welcome(known) else DENIED_S):
            return None, known
        return passed_s, known

    def _standing(self, handler: RequestHandler, token: str) -> Standing:
        if time.monotonic() - self._vouched_s.get(_digest(token), float("-inf")) < HUB_DOWN_S:
            return Standing.KNOWN
        return Standing.STRANGER if self.session(handler) is None else Standing.SIGNED

    async def _ask(self, token: str) -> Caller | None:
        model = await self.hub_auth.user_for_token(token, sync=False)
        if model is None:
            return None
        scopes = frozenset(scope for scope in model["scopes"] if isinstance(scope, str))
        if not self.hub_auth.check_scopes({self.access_scope}, {"scopes": scopes}):
            scopes = frozenset()
        kind = "service" if model.get("kind") == "service" else "user"
        return Caller(model["name"], kind, scopes, bool(model.get("admin")) or "admin-ui" in scopes)

    async def _paced(self, request: Callable[[], Awaitable[Any]]) -> Any:
        """What ``request`` to the hub returns, sent when the budget allows. Raises HubUnreachable."""
        if self._lane is None:
            return await self._send(request)
        try:
            async with self._lane() as slot:
                slot.begins()
                try:
                    answer = await self._send(request)
                except HubUnreachable:
                    slot.failed(overload=True)
                    raise
                slot.succeeded()
                return answer
        except BudgetExhausted as error:
            raise HubUnreachable(f"HubGuard can't check who you are: {error}") from error

    async def _send(self, request: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await asyncio.wait_for(request(), LOOKUP_S)
        except (HTTPError, OSError, ValueError, asyncio.TimeoutError):
            # Without its cause: JupyterHub's own message and its traceback may show what was sent.
            raise HubUnreachable(_UNTOLD) from None

    def _remember(self, key: str, token: str, caller: Caller | None) -> None:
        now_s = time.monotonic()
        if _is_welcome(caller):
            if len(self._vouched_s) >= KNOWN_MOST:
                self._vouched_s.clear()
            self._vouched_s[_digest(token)] = now_s
        else:
            self._vouched_s.pop(_digest(token), None)
        if len(self._known) >= KNOWN_MOST:
            self._known = {
                key: answer for key, answer in self._known.items() if answer[1] and now_s - answer[0] < HUB_DOWN_S
            }
            if len(self._known) >= KNOWN_MOST:
                self._known.clear()
        self._known[key] = (now_s, caller)

    @override
    def session(self, handler: RequestHandler) -> str | None:
        if self.hub_auth.get_token(handler, in_cookie=False):
            return None
        return self.hub_auth.get_token(handler) or None

    def began(self, handler: RequestHandler) -> bool:
        """Whether the request comes back from a login that HubGuard began in that very browser: its cookie is signed here."""
        state = handler.get_argument("state", "")
        cookie = handler.get_secure_cookie(self.hub_auth.get_state_cookie_name(state))
        return cookie is not None and cookie == state.encode()

    def login_url(self, handler: RequestHandler) -> str:
        """With PKCE, if this JupyterHub knows it (6.0 and later)."""
        query: dict[str, str] = {}
        extra: dict[str, str] = {}
        if getattr(self.hub_auth, "pkce_enabled", False):
            verifier, challenge, method = self.hub_auth.generate_pkce_code_challenge()
            extra["code_verifier"] = verifier
            query.update(code_challenge=challenge, code_challenge_method=method)
        query["state"] = self.hub_auth.set_state_cookie(handler, next_url=handler.request.uri, **extra)
        return url_concat(self.hub_auth.login_url, query)

    @override
    def callback(self) -> tuple[type[RequestHandler], dict[str, Any]]:
        return Callback, {"login": self}


def _is_welcome(caller: Caller | None) -> bool:
    return caller is not None and any(astuple(rights(caller.scopes)))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _peer(handler: RequestHandler) -> str:
    """An address that a caller on another machine can't choose: the connection's, or from this machine the one in a header.

    A connection from this machine is the proxy's, and the last address of X-Forwarded-For is who has connected to it. Callers
    behind one ingress share that address, and all callers of a proxy on another machine share the proxy's.
    """
    # Not remote_ip, which tornado takes from headers that anyone may send.
    address = getattr(getattr(handler.request.connection, "context", None), "address", None)
    connected = str(address[0]) if address else ""
    nearest = handler.request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    return nearest[:64] if nearest and _is_here(connected) else connected


def _is_here(address: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_loopback
