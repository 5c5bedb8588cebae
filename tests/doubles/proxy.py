"""A proxy in memory, with the semantics of configurable-http-proxy, for tests and simulations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from doubles.paths import route_path

from hubguard.errors import ProxyError, ProxyUnreachable
from hubguard.hub.http import tell
from hubguard.model import Route
from hubguard.pacing.budget import Budget, Destination, Lane
from hubguard.pacing.clock import Clock, SystemClock
from hubguard.proxy.canary import NOWHERE
from hubguard.proxy.decide import Sighting, Verdict
from hubguard.proxy.model import PREFIX


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """What the proxy was asked, and when: for one route, or for the whole table where ``path`` is None."""

    at: datetime
    at_s: float
    path: str | None = None


HANGS_S = 5.0
"""Whoever asks a proxy that hangs gives up after so long."""


class MemoryProxy:
    """Implements ProxyAPI. What was asked stands in ``requests``, in order.

    ``fault`` may be set to a function that is given each request and returns the ProxyError to raise, or None.
    ``takes_s`` is how long each answer takes. Its clock is in milliseconds, as the real one's. ``table`` is what it has by
    path; a MemoryHub's ``routes`` may be the same. ``alive``, ``hangs`` and ``deaf`` (only its public port doesn't answer)
    are how it stands; requests that hang end after HANGS_S.
    """

    def __init__(self, *, clock: Clock | None = None, budget: Budget | None = None, takes_s: float = 0.0) -> None:
        self._clock = clock or SystemClock()
        self._budget = budget
        self.table: dict[str, Route] = {}
        self.alive = True
        self.hangs = False
        self.deaf = False
        self.started_at = self._clock.now()
        self._connections: list[asyncio.Future[None]] = []
        self.takes_s = takes_s
        self.requests: list[ProxyRequest] = []
        self.fault: Callable[[ProxyRequest], ProxyError | None] | None = None

    def add(self, path: str, target: str, user: str | None = None, server: str | None = None) -> None:
        """Have that route, in place of any by that path. As at the real one, adding counts as traffic."""
        path = "/" + path.strip("/")
        self.table[path] = Route(path, target, user, server, self._now())

    def add_server(self, user: str, name: str = "", target: str = "http://127.0.0.1:1") -> str:
        """Have the route that a hub at ``/`` adds for that server; its path."""
        path = route_path("/", user, name)
        self.add(path, target, user, name)
        return path

    def seen(self, path: str) -> None:
        """There was traffic on that route just now. Nothing happens where there is no such route."""
        route = self.table.get(path)
        if route is not None:
            self.table[path] = replace(route, last_activity=self._now())

    def remove(self, path: str) -> None:
        """Have that route no more."""
        self.table.pop(path, None)

    def wipe(self) -> None:
        """Have no routes at all, as after a restart."""
        self.table.clear()

    def kill(self) -> None:
        """It is gone, with its table and all connections."""
        self.alive, self.hangs = False, False
        self.wipe()
        for connection in self._connections:
            if not connection.done():
                connection.set_result(None)
        self._connections.clear()

    def start(self) -> None:
        """It runs again, with an empty table."""
        self.kill()
        self.alive, self.started_at = True, self._clock.now()

    def connected(self) -> asyncio.Future[None]:
        """A connection, done when the proxy ends it. Raises ConnectionRefusedError where the proxy is gone."""
        if not self.alive:
            raise ConnectionRefusedError
        connection: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connections.append(connection)
        return connection

    async def routes(self) -> dict[str, Route]:
        """See ProxyAPI."""
        async with self._asked(None):
            return dict(self.table)

    async def route(self, path: str) -> Route | None:
        """See ProxyAPI."""
        async with self._asked(path):
            return self.table.get(path)

    def _now(self) -> datetime:
        now = self._clock.now()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    @contextlib.asynccontextmanager
    async def _asked(self, path: str | None) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            slot = None
            if self._budget is not None:
                slot = await stack.enter_async_context(
                    self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY)
                )
                slot.begins()
            request = ProxyRequest(self._clock.now(), self._clock.monotonic_s(), path)
            self.requests.append(request)
            if self.takes_s > 0:
                await self._clock.sleep(self.takes_s)
            error = self.fault(request) if self.fault else None
            if not self.alive:
                error = ProxyUnreachable("No answer from the proxy's API: connection refused.")
            elif self.hangs:
                await self._clock.sleep(HANGS_S)
                error = ProxyUnreachable(f"The proxy didn't answer within {HANGS_S:g} s.")
            if slot is not None:
                tell(slot, error)
            if error is not None:
                raise error
            yield


class MemoryCanary:
    """Implements Canary at a MemoryProxy. ``times`` are when it was asked for, in monotonic seconds, by plant and check."""

    timeout_s = 2.0

    def __init__(
        self,
        proxy: MemoryProxy,
        *,
        name: str = "memory",
        clock: Clock | None = None,
        budget: Budget | None = None,
        has_public_url: bool = True,
    ) -> None:
        self.path = PREFIX + name
        self.times: list[float] = []
        self.connects: list[float] = []
        self._proxy = proxy
        self._clock = clock or SystemClock()
        self._budget = budget
        self._has_public_url = has_public_url
        self._planted: Route | None = None
        self._connection: asyncio.Future[None] | None = None
        self._ended = False

    async def plant(self) -> Sighting:
        """See Canary."""
        async with self._asked() as failed:
            if failed is not None:
                return failed
            self._proxy.add(self.path, NOWHERE)
            self._planted = self._proxy.table[self.path]
            return self._answered(Verdict.THERE)

    async def check(self) -> Sighting:
        """See Canary."""
        async with self._asked() as failed:
            if failed is not None:
                return failed
            ours = self._planted is not None and self._proxy.table.get(self.path) is self._planted
            return self._answered(Verdict.THERE if ours else Verdict.MISSING)

    async def public(self) -> bool | None:
        """See Canary."""
        if not self._has_public_url:
            return None
        return self._proxy.alive and not self._proxy.hangs and not self._proxy.deaf

    async def broken(self) -> None:
        """See Canary."""
        if self._connection is not None:
            await asyncio.shield(self._connection)

    async def listens(self) -> bool:
        """See Canary."""
        self.connects.append(self._clock.monotonic_s())
        return self._proxy.alive

    async def started_at(self) -> datetime | None:
        """See Canary."""
        return self._proxy.started_at if self._proxy.alive else None

    async def remove(self) -> None:
        """See Canary."""
        if self._planted is not None and self._proxy.alive and not self._proxy.hangs:
            self._proxy.remove(self.path)
        self._planted = self._connection = None

    def _answered(self, verdict: Verdict) -> Sighting:
        fresh, self._ended = self._ended, False
        return Sighting(verdict, fresh=fresh)

    @contextlib.asynccontextmanager
    async def _asked(self) -> AsyncIterator[Sighting | None]:
        """What kept it from being answered, or None."""
        async with contextlib.AsyncExitStack() as stack:
            slot = None
            if self._budget is not None:
                slot = await stack.enter_async_context(
                    self._budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY)
                )
                slot.begins()
            self.times.append(self._clock.monotonic_s())
            failed = await self._connect()
            if slot is not None and failed is not None:
                slot.failed(overload=True)
            elif slot is not None:
                slot.succeeded()
            yield failed

    async def _connect(self) -> Sighting | None:
        if self._connection is None or self._connection.done():
            self._ended = self._ended or self._connection is not None
            self._connection = None
            try:
                self._connection = self._proxy.connected()
            except ConnectionRefusedError:
                self._ended = True
                return Sighting(Verdict.NO_ANSWER, "connection refused")
        if self._proxy.hangs:
            await self._clock.sleep(self.timeout_s)
            self._connection = None
            return Sighting(Verdict.TIMEOUT, f"no answer within {self.timeout_s:g} s")
        return None
