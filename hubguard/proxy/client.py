"""The proxy's own API, as far as HubGuard reads it: the table of routes, and when each was last used."""

from __future__ import annotations

import ssl
from typing import Protocol
from urllib.parse import quote

from typing_extensions import override

from hubguard.errors import (
    ProxyError,
    ProxyFailed,
    ProxyGarbled,
    ProxyRefused,
    ProxyUnreachable,
)
from hubguard.hub.http import (
    Answer,
    Failure,
    HTTPClient,
    NoAnswer,
    OverHTTP,
    checked_token,
    checked_url,
    repeated,
    spend,
)
from hubguard.hub.routes import read_route, read_routes
from hubguard.model import Route
from hubguard.pacing.budget import Budget, Destination, Lane

LARGEST_ANSWER = 64 * 1024 * 1024
"""Maximum bytes of an answer. A table of 10,000 routes takes about 2 MB of these 64 MiB."""

RETRIES = 1
"""Retries of a read when the connection breaks: the proxy closes one that was idle for 5 s, even as it is used again."""


class ProxyAPI(Protocol):
    """The port to the proxy, for reading only: writing routes is the hub's business. Every call passes the budget.

    Every call may also raise BudgetExhausted, and nothing was sent then.
    """

    async def routes(self) -> dict[str, Route]:
        """The whole table by path, the routes of others among the hub's own.

        Raises ProxyError when the proxy didn't return all of it.
        """
        ...

    async def route(self, path: str) -> Route | None:
        """That one route as it is now; None when the proxy says that there is none. ``path`` is as in the table.

        Raises ProxyError when the proxy didn't say.
        """
        ...


class HTTPProxyAPI(OverHTTP, ProxyAPI):
    """configurable-http-proxy behind ``api_url``.

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
        token = checked_token("CONFIGPROXY_AUTH_TOKEN", token, "the token that the proxy and the hub have")
        self._budget = budget
        self._http = HTTPClient(
            timeout_s=request_timeout_s,
            largest=LARGEST_ANSWER,
            token=token,
            ssl_context=ssl_context,
        )
        self._gave_a_table = False

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
        """The table if ``path`` is empty, else the route; None if there is none."""
        return await repeated(lambda: self._once(path), RETRIES, _Broken)

    async def _once(self, path: str) -> dict[str, Route] | Route | None:
        slot = self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY)
        return await spend(slot, lambda: self._exchange(path))

    async def _exchange(self, path: str) -> dict[str, Route] | Route | ProxyError | None:
        answer = await self._http.exchange("GET", f"{self._api_url}/api/routes{quote(path, safe='/')}")
        return self._unanswered(answer) if isinstance(answer, NoAnswer) else self._judged(path, answer)

    def _unanswered(self, nothing: NoAnswer) -> ProxyError:
        if nothing.why is Failure.TOO_LARGE:
            return ProxyGarbled(f"The proxy was asked for its routes, and {nothing.detail}, so it isn't used.")
        if nothing.why is Failure.TIMEOUT:
            return ProxyUnreachable(
                f"The proxy didn't answer within {nothing.timeout_s:g} s: it hangs or is overloaded, or the network is."
                " When servers were last used is only known from the hub until it answers."
            )
        kind = _Broken if nothing.why is Failure.LOST else ProxyUnreachable
        return kind(
            f"No answer from the proxy's API at {self._api_url} ({nothing.detail})."
            " Is it running, and is this its API's URL?"
        )

    def _judged(self, path: str, answer: Answer) -> dict[str, Route] | Route | ProxyError | None:
        status = answer.status
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
        if answer.json is None:
            return ProxyGarbled(
                f"The proxy's answer isn't JSON: {self._http.quotable(answer.start())}."
                f" Is {self._api_url} the URL of its API?"
            )
        try:
            return read_route(answer.json, path) if path else read_routes(answer.json)
        except ProxyGarbled as error:
            # On its way lie answers that may echo our own headers.
            return error.with_traceback(None)


class _Broken(ProxyUnreachable):
    """The connection was there, and broke before an answer."""
