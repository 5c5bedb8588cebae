"""A route of HubGuard's own at the proxy, on one kept-alive connection: whether it is there shows the proxy's state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import psutil
from typing_extensions import override

from hubguard.errors import BudgetExhausted
from hubguard.hub.http import checked_token, checked_url, in_words
from hubguard.pacing.budget import Budget, Destination, Lane
from hubguard.proxy.decide import Sighting, Verdict
from hubguard.proxy.model import PREFIX

T = TypeVar("T")

NOWHERE = "http://127.0.0.1:9"
"""Where a canary leads by default: the discard port, at which nobody answers."""

PROVED_FOR_S = 600.0
"""Seconds between requests for the canary at the public port, which show whose port it is. Each costs the hub one page: the
proxy asks it for what to show of a route that leads nowhere."""

LARGEST_ANSWER = 64 * 1024
"""Maximum bytes of an answer. One route takes about 200 of these 64 KiB."""


class Canary(Protocol):
    """The port to our own route at the proxy. What :meth:`plant`, :meth:`check` and :meth:`public` send passes the budget.

    These three may raise BudgetExhausted, and nothing was sent then. Nothing else of the proxy's is ever touched.
    """

    path: str

    async def plant(self) -> Sighting:
        """Have the route, in place of any by that path. THERE: the proxy has it now. Never MISSING."""
        ...

    async def check(self) -> Sighting:
        """Whether the route that was planted last is there. A route by that path that is another's counts as MISSING."""
        ...

    async def public(self) -> bool | None:
        """Whether users reach this proxy at its public port: it, and not something else that has the port. None: unknown.

        Unknown is also an address that never answered from here and isn't this machine's: it may be for others to reach.
        """
        ...

    async def broken(self) -> None:
        """Return when the idle connection has ended, within milliseconds of it; at once if there is none."""
        ...

    async def listens(self) -> bool:
        """Whether the API's port takes a connection. No request is sent, so that this may be asked ten times a second."""
        ...

    async def started_at(self) -> datetime | None:
        """When the proxy's process was started, if it runs on this machine and HubGuard may see that; else None."""
        ...

    async def remove(self) -> None:
        """Have the route no more, if that is quick, and close the connection. Never raises."""
        ...


class HTTPCanary(Canary):
    """A canary at configurable-http-proxy, the one in Node or the one in Python.

    ``name`` distinguishes it from those of other guards. ``timeout_s`` is for one exchange, with connecting. The token is in
    no text and no repr of this class.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        budget: Budget,
        *,
        name: str,
        public_url: str | None = None,
        target: str = NOWHERE,
        timeout_s: float = 2.0,
        ssl_context: ssl.SSLContext | None = None,
        hosts: bool = False,
    ) -> None:
        """``public_url`` is where users reach the proxy, None: unknown. ``hosts``: routes begin with a host (subdomains).

        Raises ConfigError for a URL or token that can't be one.
        """
        self.path = PREFIX + name
        self._api_url = checked_url("CONFIGPROXY_API_URL", api_url, "http://127.0.0.1:8001")
        self._token = checked_token("CONFIGPROXY_AUTH_TOKEN", token, "the token that the proxy and the hub have")
        self._budget = budget
        self._public_url = None if public_url is None else _origin(public_url)
        self._target = target
        self._timeout_s = timeout_s
        self._nonce = ""
        parts = urlsplit(self._api_url)
        self._host, self._secure = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._at = f"{parts.path}/api/routes{quote(self.path, safe='/')}"
        self._ssl = (ssl_context or ssl.create_default_context()) if self._secure else None
        self._hosts = hosts
        self._here = self._public_url is not None and _same_machine(self._public_url, self._api_url)
        self._heard = False
        self._proved = False
        self._proved_s: float | None = None
        self._wire: _Wire | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<HTTPCanary {self.path} at {self._api_url}>"

    @override
    async def plant(self) -> Sighting:
        self._nonce = secrets.token_hex(8)
        body = json.dumps({"target": self._target, "hubguard": self._nonce}).encode()

        def judged(status: int, _: bytes) -> Sighting:
            return Sighting(Verdict.THERE) if status == 201 else self._unusable(status)

        return await self._ask("POST", body, judged)

    @override
    async def check(self) -> Sighting:

        def judged(status: int, answer: bytes) -> Sighting:
            if status == 404:
                return Sighting(Verdict.MISSING)
            if status != 200:
                return self._unusable(status)
            try:
                route = json.loads(answer)
            except (ValueError, RecursionError):
                route = None
            if not isinstance(route, dict):
                return self._unusable(status)
            ours = bool(self._nonce) and route.get("hubguard") == self._nonce
            return Sighting(Verdict.THERE if ours else Verdict.MISSING)

        return await self._ask("GET", b"", judged)

    @override
    async def public(self) -> bool | None:
        if self._public_url is None:
            return None
        status = await self._public_status(f"{self._public_url}/_chp_healthz")
        if status is None or status >= 500:
            self._proved_s = None
            return False if self._heard or self._here else None
        self._heard = True
        return await self._is_ours()

    async def _is_ours(self) -> bool:
        """Whether the public port is that of the proxy which has the canary, as far as that can be seen from here."""
        now_s = asyncio.get_running_loop().time()
        if self._nonce and (self._proved_s is None or now_s - self._proved_s >= PROVED_FOR_S):
            path = quote(self.path, safe="/")
            host, path = path.lstrip("/").split("/", 1) if self._hosts else (None, path.lstrip("/"))
            # The canary leads nowhere, which only a proxy that has it says.
            status = await self._public_status(f"{self._public_url}/{path}", host)
            if status == 503:
                self._proved, self._proved_s = True, now_s
            elif status is not None:  # else the hub, which the proxy asks for the page, may be slow
                # Something in front of the proxy may pass on the hub's own paths alone.
                return not (self._proved or self._here)
        return True

    async def _public_status(self, url: str, host: str | None = None) -> int | None:
        """The status of the answer, None if there is none."""
        async with self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY) as slot:
            slot.begins()
            status = await self._status(url, host)
            if status is None:
                # The API does answer; this mustn't keep anybody from it.
                slot.failed(overload=False)
            else:
                slot.succeeded()
        return status

    @override
    async def broken(self) -> None:
        if self._wire is not None:
            await self._wire.ended()

    @override
    async def listens(self) -> bool:
        wire = _Wire()
        try:
            await _in_time(asyncio.get_running_loop().create_connection(lambda: wire, self._host, self._port), 1.0)
        except (OSError, asyncio.TimeoutError):
            return False
        finally:
            wire.close()
        return True

    @override
    async def started_at(self) -> datetime | None:
        """It looks through the machine's connections, in a thread."""
        return await asyncio.to_thread(_started_at, self._host, self._port)

    @override
    async def remove(self) -> None:
        if self._nonce and self._wire is not None:
            with contextlib.suppress(BudgetExhausted, asyncio.TimeoutError):
                await _in_time(self._ask("DELETE", b"", lambda *_: Sighting(Verdict.MISSING)), 1.0)
        self._nonce = ""
        self._close()

    async def _ask(self, method: str, body: bytes, judged: Callable[[int, bytes], Sighting]) -> Sighting:
        """What it says, over the connection that is there, or over a new one if that has ended."""
        kept = self._wire is not None and not self._wire.over
        seen = await self._once(method, body, judged)
        if kept and seen.verdict is Verdict.NO_ANSWER:
            # It ended just when it was used again: whether that was its time, or the proxy's end, a new one shows.
            with contextlib.suppress(BudgetExhausted):
                return await self._once(method, body, judged)
        return seen

    async def _once(self, method: str, body: bytes, judged: Callable[[int, bytes], Sighting]) -> Sighting:
        async with self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY) as slot:
            slot.begins()
            seen = await self._exchange(self._request(method, body), judged)
            if seen.verdict in (Verdict.THERE, Verdict.MISSING):
                slot.succeeded()
            else:
                slot.failed(overload=seen.verdict is not Verdict.UNUSABLE)
        return seen

    async def _exchange(self, request: bytes, judged: Callable[[int, bytes], Sighting]) -> Sighting:
        try:
            wire = await self._connected()
            status, answer = await _in_time(wire.exchange(request), self._timeout_s)
        except asyncio.TimeoutError:
            self._close()
            return Sighting(Verdict.TIMEOUT, f"no answer within {self._timeout_s:g} s")
        except ssl.SSLError as error:
            self._close()
            return Sighting(Verdict.UNUSABLE, f"There is no secure connection to {self._api_url} ({error.reason}).")
        except OSError as error:
            self._close()
            self._ended = True
            return Sighting(Verdict.NO_ANSWER, _why(error))
        except (ValueError, IndexError):
            self._close()
            return Sighting(
                Verdict.UNUSABLE,
                f"What answers at {self._api_url} doesn't speak HTTP. Is it the URL of the proxy's API?",
            )
        except asyncio.CancelledError:
            # Its answer would be taken for that of the next request.
            self._close()
            raise
        fresh, self._ended = self._ended, False
        if fresh:
            self._proved_s = None
        return replace(judged(status, answer), fresh=fresh)

    async def _connected(self) -> _Wire:
        if self._wire is not None and not self._wire.over:
            return self._wire
        self._ended = self._ended or self._wire is not None
        self._wire = None
        wire = _Wire()
        connecting = asyncio.get_running_loop().create_connection(lambda: wire, self._host, self._port, ssl=self._ssl)
        try:
            await _in_time(connecting, self._timeout_s)
        except BaseException as error:
            wire.close()
            if isinstance(error, asyncio.TimeoutError):
                raise ConnectionError(f"no connection within {self._timeout_s:g} s") from None
            raise
        self._wire = wire
        return wire

    def _request(self, method: str, body: bytes) -> bytes:
        host = f"[{self._host}]" if ":" in self._host else self._host
        head = (
            f"{method} {self._at} HTTP/1.1\r\nHost: {host}:{self._port}\r\nAuthorization: token {self._token}\r\n"
            f"User-Agent: hubguard\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _unusable(self, status: int) -> Sighting:
        if status in (401, 403):
            return Sighting(
                Verdict.UNUSABLE,
                f"The proxy refuses HubGuard ({status}): the token isn't its own. Set CONFIGPROXY_AUTH_TOKEN to the one that"
                " the proxy and the hub have.",
            )
        return Sighting(
            Verdict.UNUSABLE,
            f"What answers at {self._api_url} says {status} to what a proxy understands. Is it the URL of the proxy's API?",
        )

    def _close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def _status(self, url: str, host: str | None) -> int | None:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        headers = {} if host is None else {"Host": host}
        # A new connection each time: that it is taken is what is asked. Whose certificate it is, others look after.
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            try:
                async with session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer:
                    return answer.status
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
                return None


class _Ended(ConnectionError):
    """The connection ended before an answer."""


class _Wire(asyncio.Protocol):
    """One connection, on which one request at a time is answered, and whose end is known at once."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._bytes = bytearray()
        self._transport: asyncio.Transport | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._gone.done()

    async def ended(self) -> None:
        """Return when it has ended."""
        await asyncio.shield(self._gone)

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer. Raises _Ended, or ValueError for what isn't HTTP."""
        if self.over or self._transport is None:
            raise _Ended("it ended the connection")
        self._bytes.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            # Nobody has asked. The next answer couldn't be distinguished from it.
            self.close()
            return
        self._bytes += data
        try:
            if len(self._bytes) > LARGEST_ANSWER:
                raise ValueError("too large")
            answer = _parsed(bytes(self._bytes))
        except (ValueError, IndexError) as error:
            if not self._answer.done():
                self._answer.set_exception(error)
            return
        if answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_Ended("it ended the connection"))


async def _in_time(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What ``work`` returns. Raises asyncio.TimeoutError if that takes longer.

    A cancellation is never lost, as it is by asyncio.wait_for of Python 3.10 and 3.11 if it comes just as all is done.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        in_time = task.done()
        task.cancel()
    if not in_time:
        await asyncio.gather(task, return_exceptions=True)
        raise asyncio.TimeoutError
    return task.result()


def _parsed(answer: bytes) -> tuple[int, bytes] | None:
    """(status, body), or None if it isn't whole yet. Raises ValueError for what isn't HTTP, or has no length."""
    head, separator, rest = answer.partition(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1."[: len(answer)]):
        raise ValueError("not HTTP")
    if not separator:
        return None
    first, *lines = head.split(b"\r\n")
    status = int(first.split(b" ")[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if status == 204:
        return status, b""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = _unchunked(rest)
        return None if body is None else (status, body)
    length = int(headers.get(b"content-length", b""))
    return (status, rest[:length]) if len(rest) >= length else None


def _unchunked(rest: bytes) -> bytes | None:
    body = b""
    while True:
        size, separator, rest = rest.partition(b"\r\n")
        if not separator:
            return None
        length = int(size.split(b";")[0], 16)
        if length == 0:
            return body if rest.endswith(b"\r\n") else None
        if len(rest) < length + 2:
            return None
        body, rest = body + rest[:length], rest[length + 2 :]


def _origin(url: str) -> str:
    parts = urlsplit(checked_url("public_url", url, "https://hub.example.org"))
    return f"{parts.scheme}://{parts.netloc}"


def _same_machine(one: str, other: str) -> bool:
    hosts = {urlsplit(url).hostname for url in (one, other)}
    return len(hosts) == 1 or hosts <= {"localhost", "127.0.0.1", "::1"}


def _why(error: OSError) -> str:
    return "connection refused" if isinstance(error, ConnectionRefusedError) else in_words(error)


def _started_at(host: str, port: int) -> datetime | None:
    try:
        there = {separator[4][0] for separator in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
        if not there <= here:
            return None
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port or connection.pid is None:
                continue
            if connection.laddr.ip in there | {"0.0.0.0", "::"}:  # noqa: S104  # compared with, not bound to
                return datetime.fromtimestamp(psutil.Process(connection.pid).create_time(), timezone.utc)
    except (psutil.Error, OSError):
        pass
    return None
