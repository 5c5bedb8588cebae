"""A proxy in memory, with the semantics of configurable-http-proxy, for tests and simulations."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from hubguard.clients.budget import Budget, Destination, Lane
from hubguard.clients.clock import Clock, SystemClock
from hubguard.clients.proxy_api import tell
from hubguard.clients.proxy_models import route_path
from hubguard.errors import ProxyError
from hubguard.model import Route


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """What the proxy was asked, and when: for one route, or for the whole table where ``path`` is None."""

    at: datetime
    at_s: float
    path: str | None = None


class MemoryProxy:
    """Implements ProxyAPI. What was asked stands in ``requests``, in order.

    ``fault`` may be set to a function that is given each request and returns the ProxyError to raise, or None.
    ``takes_s`` is how long each answer takes. Its clock is in milliseconds, as the real one's.
    """

    def __init__(self, *, clock: Clock | None = None, budget: Budget | None = None, takes_s: float = 0.0) -> None:
        self._clock = clock or SystemClock()
        self._budget = budget
        self._routes: dict[str, Route] = {}
        self.takes_s = takes_s
        self.requests: list[ProxyRequest] = []
        self.fault: Callable[[ProxyRequest], ProxyError | None] | None = None

    def add(self, path: str, target: str, user: str | None = None, server: str | None = None) -> None:
        """Have that route, in place of any by that path. As at the real one, adding counts as traffic."""
        path = "/" + path.strip("/")
        self._routes[path] = Route(path, target, user, server, self._now())

    def add_server(self, user: str, name: str = "", target: str = "http://127.0.0.1:1") -> str:
        """Have the route that a hub at ``/`` adds for that server; its path."""
        path = route_path("/", user, name)
        self.add(path, target, user, name)
        return path

    def seen(self, path: str) -> None:
        """There was traffic on that route just now. Nothing happens where there is no such route."""
        route = self._routes.get(path)
        if route is not None:
            self._routes[path] = replace(route, last_activity=self._now())

    def remove(self, path: str) -> None:
        """Have that route no more."""
        self._routes.pop(path, None)

    def wipe(self) -> None:
        """Have no routes at all, as after a restart."""
        self._routes.clear()

    async def routes(self) -> dict[str, Route]:
        """See ProxyAPI."""
        async with self._asked(None):
            return dict(self._routes)

    async def route(self, path: str) -> Route | None:
        """See ProxyAPI."""
        async with self._asked(path):
            return self._routes.get(path)

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
            if slot is not None:
                tell(slot, error)
            if error is not None:
                raise error
            yield
