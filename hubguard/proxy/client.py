"""The proxy's own API, as far as HubGuard reads it: the table of routes, and when each was last used."""

from __future__ import annotations

import asyncio
import json
import ssl
from types import TracebackType
from typing import Protocol
from urllib.parse import quote

import aiohttp
from typing_extensions import override
from yarl import URL

from hubguard.errors import (
    BudgetExhausted,
    ProxyError,
    ProxyFailed,
    ProxyGarbled,
    ProxyRefused,
    ProxyUnreachable,
)
from hubguard.hub.http import LONGEST_QUOTE, checked_token, checked_url, in_words, quotable
from hubguard.hub.routes import read_route, read_routes
from hubguard.model import Route
from hubguard.pacing.budget import Budget, Destination, Lane, Slot

LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes. A table of 10,000 routes takes about 2 MB of these 64 MiB."""


class ProxyAPI(Protocol):
    """The port to the proxy, for reading only: writing routes is the hub's business. Every call passes the budget.

    Every call may also raise BudgetExhausted, and nothing was sent then.
    """

    async def routes(self) -> dict[str, Route]:
        """The whole table by path, the routes of others among the hub's own.

        Raises ProxyError when the proxy didn't give it all.
        """
        ...

    async def route(self, path: str) -> Route | None:
        """That one route as it is now; None when the proxy says that there is none. ``path`` is as in the table.

        Raises ProxyError when the proxy didn't say.
        """
        ...


def tell(slot: Slot, error: ProxyError | None) -> None:
    """Tell the budget what came of a request: nothing worse than ``error``, or None where all went well."""
    if error is None:
        slot.succeeded()
        return
    slot.failed(
        overload=isinstance(error, ProxyUnreachable) or (isinstance(error, ProxyFailed) and error.status >= 500)
    )


class HTTPProxyAPI(ProxyAPI):
    """configurable-http-proxy behind ``api_url``, over kept-alive connections. Use it as ``async with``, or close it.

    ``request_timeout_s`` is for one request, from connecting to the end of the answer; waiting for the budget doesn't
    count. The token is in no error, repr or log line of this class.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        budget: Budget,
        *,
        request_timeout_s: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """``api_url`` is what the hub calls ``ConfigurableHTTPProxy.api_url``, ``token`` its ``auth_token``.

        ``ssl_context`` is for hubs with internal SSL. Raises ConfigError for a URL or token that can't be one.
        """
        self._api_url = checked_url("CONFIGPROXY_API_URL", api_url, "http://127.0.0.1:8001")
        self._token = checked_token("CONFIGPROXY_AUTH_TOKEN", token, "the token that the proxy and the hub have")
        self._budget = budget
        self._timeout_s = request_timeout_s
        self._ssl = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._gave_a_table = False

    def __repr__(self) -> str:
        return f"<HTTPProxyAPI {self._api_url}>"

    async def __aenter__(self) -> HTTPProxyAPI:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. It may be used again afterwards, and opens new ones then."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @override
    async def routes(self) -> dict[str, Route]:
        table = await self._read("")
        if not isinstance(table, dict):
            raise ProxyGarbled(
                f"The proxy was asked for its table, and {self._api_url} knows of none. Is it the URL of the proxy's API?"
            )
        self._gave_a_table = True
        return table

    @override
    async def route(self, path: str) -> Route | None:
        """Where the API can't be asked for that one route, or hasn't shown yet that it is one, it reads all."""
        if not self._gave_a_table or any(part in ("", ".", "..") for part in path.split("/")[1:]):
            return (await self.routes()).get(path)
        route = await self._read(path)
        assert not isinstance(route, dict)
        return route

    async def _read(self, path: str) -> dict[str, Route] | Route | None:
        """The table where ``path`` is empty, else the route; None where there is none."""
        broken: ProxyError | None = None
        for _ in range(2):
            try:
                return await self._once(path)
            except _Broken as error:
                # The proxy closes a connection that it hasn't seen used for 5 s, maybe just when it is used again.
                broken = error
            except BudgetExhausted:
                if broken is None:
                    raise
                break
        assert broken is not None
        raise broken

    async def _once(self, path: str) -> dict[str, Route] | Route | None:
        async with self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY) as slot:
            slot.begins()
            result = await self._exchange(path)
            tell(slot, result if isinstance(result, ProxyError) else None)
        if isinstance(result, ProxyError):
            raise result
        return result

    async def _exchange(self, path: str) -> dict[str, Route] | Route | ProxyError | None:
        """What it says, or the error, which is returned: raised in here, it would drag aiohttp's, with our headers, along."""
        url = URL(f"{self._api_url}/api/routes{quote(path, safe='/')}", encoded=True)
        body = bytearray()
        try:
            async with self._open_session().get(url, allow_redirects=False) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > LARGEST_ANSWER:
                        response.close()
                        return ProxyGarbled("The proxy's answer is larger than 64 MiB, so it isn't used.")
                return self._judged(path, response.status, bytes(body))
        except asyncio.TimeoutError:
            return ProxyUnreachable(
                f"The proxy didn't answer within {self._timeout_s:g} s: it hangs or is overloaded, or the network is."
                " When servers were last used is only known from the hub until it answers."
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            kind = _Broken if isinstance(error, _ConnectionLost) else ProxyUnreachable
            return kind(
                f"No answer from the proxy's API at {self._api_url} ({self._cut(in_words(error))})."
                " Is it running, and is this its API's URL?"
            )

    def _judged(self, path: str, status: int, body: bytes) -> dict[str, Route] | Route | ProxyError | None:
        if status in (401, 403):
            return ProxyRefused(
                f"The proxy refused to show its routes ({status}): the token isn't its own. Set CONFIGPROXY_AUTH_TOKEN to"
                " the one that the proxy and the hub have."
            )
        if status == 404:
            return None
        if status != 200:
            hint = f" Is {self._api_url} the URL of its API?" if status < 500 else ""
            return ProxyFailed(f"The proxy failed to show its routes ({status}).{hint}", status=status)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return ProxyGarbled(
                f"The proxy's answer isn't JSON: {self._cut(body[: 4 * LONGEST_QUOTE].decode('utf-8', 'replace'))}."
                f" Is {self._api_url} the URL of its API?"
            )
        try:
            return read_route(answer, path) if path else read_routes(answer)
        except ProxyGarbled as error:
            # On its way lie answers that may echo our own headers.
            return error.with_traceback(None)

    def _cut(self, text: str) -> str:
        return quotable(text, self._token)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # How many are in flight is the budget's business: a second queue here would count as the proxy's time.
                connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers={"Authorization": f"token {self._token}", "User-Agent": "hubguard"},
                middlewares=(_send_once,),
            )
        return self._session


class _Broken(ProxyUnreachable):
    """The connection was there, and broke before an answer."""


class _ConnectionLost(aiohttp.ClientError):
    """Like aiohttp's own, without the request in it."""


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Without this, aiohttp repeats a GET by itself when the connection breaks, past the budget."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError as error:
        lost: aiohttp.ClientError = aiohttp.ClientError(in_words(error))
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        lost = _ConnectionLost(in_words(error))
    raise lost
