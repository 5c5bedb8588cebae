"""What all HTTP clients share: one session, a limit on the size of an answer, and no token in any text.

A client keeps its own table of calls, and judges the answers itself.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from typing_extensions import Self
from yarl import URL

from hubguard.errors import (
    BudgetExhausted,
    ConfigError,
    HubBusy,
    HubError,
    HubFailed,
    HubGuardError,
    HubUnreachable,
    ProxyError,
    ProxyFailed,
    ProxyUnreachable,
    UserNotDeleted,
)
from hubguard.pacing.budget import Slot

T = TypeVar("T")

LONGEST_QUOTE = 300
"""Maximum number of characters that an error repeats of somebody else's words."""


class Failure(Enum):
    """Why there is no answer."""

    TIMEOUT = "timeout"
    LOST = "lost"  # the connection was there, and broke before an answer
    UNREACHABLE = "unreachable"
    TOO_LARGE = "too large"


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A request without an answer. ``detail`` is the error in one line, without the token.

    ``denied``: the system doesn't let this account connect. ``timeout_s`` is how long the request was waited for.
    """

    why: Failure
    timeout_s: float
    detail: str = ""
    denied: bool = False


@dataclass(frozen=True)
class Answer:
    """What came back, and the headers that HubGuard heeds. ``sent_at`` is when the request went out."""

    status: int
    sent_at: datetime
    body: bytes | bytearray = field(repr=False)
    retry_after: str | None = None
    date: str | None = None

    @cached_property
    def json(self) -> Any:
        """The decoded body; None if it isn't JSON."""
        try:
            return json.loads(self.body) if self.body else None
        except (ValueError, RecursionError):
            return None

    def start(self) -> str:
        """The first characters of the body, for an error to quote."""
        return self.body[: 4 * LONGEST_QUOTE].decode("utf-8", "replace")


class HTTPClient:
    """Sends requests over kept-alive connections, each exactly once unless ``resend`` is set.

    It follows no redirect, keeps no cookie, and never raises for what the network does: an error raised in here would
    drag aiohttp's along, with our headers in it. ``token`` may be replaced at any time.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        largest: int,
        token: str = "",
        scheme: str = "token",
        headers: Mapping[str, str] | None = None,
        connector: Callable[[], aiohttp.BaseConnector] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resend: bool = False,
    ) -> None:
        """``timeout_s`` covers one request, from connecting to the end of the answer, of at most ``largest`` bytes.

        ``token`` is sent by that ``scheme``, and cut out of every text. ``resend`` lets aiohttp repeat a GET or DELETE when a
        kept-alive connection breaks; that goes past the budget, so it isn't for the hub and the proxy.
        """
        self._timeout_s = timeout_s
        self._largest = largest
        self.token = token
        self._scheme = scheme
        self._headers = {"User-Agent": "hubguard", **(headers or {})}
        # How many are in flight is the budget's business: a second queue here would count as the other side's time.
        self._connector = connector or (lambda: aiohttp.TCPConnector(limit=0, ssl=ssl_context or True))
        self._resend = resend
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections. The next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def exchange(
        self, method: str, url: str, *, json: object = None, timeout_s: float | None = None
    ) -> Answer | NoAnswer:
        """The answer to one request. ``url`` is quoted already; ``timeout_s`` replaces the client's own."""
        timeout_s, token = timeout_s or self._timeout_s, self.token
        body, sent_at = bytearray(), datetime.now(timezone.utc)
        try:
            async with self._open_session().request(
                method,
                URL(url, encoded=True),
                json=json,
                headers={"Authorization": f"{self._scheme} {token}"} if token else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > self._largest:
                        response.close()
                        return NoAnswer(
                            Failure.TOO_LARGE, timeout_s, f"the answer is larger than {_size(self._largest)}"
                        )
                headers = response.headers
                return Answer(response.status, sent_at, body, headers.get("Retry-After"), headers.get("Date"))
        except asyncio.TimeoutError:
            return NoAnswer(Failure.TIMEOUT, timeout_s)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = Failure.LOST if isinstance(error, _ConnectionLost) else Failure.UNREACHABLE
            denied = isinstance(error, PermissionError) or isinstance(getattr(error, "os_error", None), PermissionError)
            return NoAnswer(why, timeout_s, quotable(in_words(error), token), denied)

    def quotable(self, text: str) -> str:
        """``text`` on one line, without the token."""
        return quotable(text, self.token)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                middlewares=() if self._resend else (_send_once,),
            )
        return self._session


class OverHTTP:
    """A client with connections of its own, which are kept alive. Use it as ``async with``, or close it."""

    _api_url: str
    _http: HTTPClient

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._api_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. It may be used again afterwards, and opens new ones then."""
        await self._http.close()


class _ConnectionLost(aiohttp.ClientError):
    """Like aiohttp's own, without the request in it."""


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Without this, aiohttp repeats a GET or DELETE by itself when the connection breaks, past the budget."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError as error:
        lost: aiohttp.ClientError = aiohttp.ClientError(in_words(error))
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        lost = _ConnectionLost(in_words(error))
    raise lost


async def spend(
    slot: Slot,
    send: Callable[[], Awaitable[T | HubError | ProxyError]],
    confirm: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """What ``send`` returns, sent when the budget lets it go; an error that it returns is raised.

    ``confirm`` is awaited right before; what it raises keeps the request from being sent.
    """
    async with slot:
        if confirm is not None:
            await confirm()
        slot.begins()
        result = await send()
        tell(slot, result if isinstance(result, (HubError, ProxyError)) else None)
    if isinstance(result, (HubError, ProxyError)):
        raise result
    return result


async def repeated(
    send: Callable[[], Awaitable[T]], retries: int, after: type[HubGuardError] | tuple[type[HubGuardError], ...]
) -> T:
    """What ``send`` returns, sent again up to ``retries`` times ``after`` these errors, as far as the budget goes."""
    failed: HubGuardError | None = None
    for _ in range(retries + 1):
        try:
            return await send()
        except after as error:
            failed = error
        except BudgetExhausted:
            if failed is None:
                raise
            break
    assert failed is not None
    raise failed


def tell(slot: Slot, error: HubError | ProxyError | None) -> None:
    """Tell the budget what came of a request: nothing worse than ``error``; None if all went well."""
    if error is None:
        slot.succeeded()
        return
    if isinstance(error, HubBusy) and error.retry_after_s is not None:
        slot.retry_after(error.retry_after_s)
    overload = isinstance(error, (HubBusy, HubUnreachable, ProxyUnreachable)) or (
        isinstance(error, (HubFailed, ProxyFailed)) and error.status >= 500 and not isinstance(error, UserNotDeleted)
    )
    slot.failed(overload=overload)


def checked_url(setting: str, api_url: str, example: str) -> str:
    """``api_url`` without a trailing slash. Raises ConfigError with the name of the ``setting`` if it can't be a URL."""
    try:
        parts = urlsplit(api_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(setting, f"must be a URL such as {example}, with http or https and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(setting, "must not have a user, a password, a query or a fragment in it")
    return api_url.rstrip("/")


def checked_token(setting: str, token: str, whose: str) -> str:
    """``token``. Raises ConfigError, without it, if it can't be a token; ``whose`` says what to set it to."""
    if not token:
        raise ConfigError(setting, f"is empty. Set it to {whose}")
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(setting, "has a space, a line break or another character that no token has")
    return token


def in_words(error: Exception) -> str:
    """The error without the request that some of aiohttp's errors carry along."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}: {error.message}"
    return str(error) or type(error).__name__


def printable(text: str) -> str:
    """``text`` with a question mark for each character that could disturb a terminal or a log."""
    return "".join(character if character.isprintable() else "?" for character in text)


def quotable(text: str, token: str = "") -> str:
    """``text`` on one line, at most 300 characters of it, without the ``token``."""
    if token:
        text = text.replace(token, "[token]")
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count} bytes"
