"""Backends in memory, for tests and simulations: of this hub and of others, with an engine that can be slow and fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from hubguard.backends.model import Backend
from hubguard.backends.port import Expected
from hubguard.errors import BackendError
from hubguard.model import Key
from hubguard.pacing.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """What the backends were asked, and when: for all there are, or, where ``end`` is set, to end that one."""

    at: datetime
    at_s: float
    end: Backend | None = None


class MemoryBackends:
    """Implements Backends. What was asked stands in ``requests``, in order.

    ``whole`` False: it tells of the expected ones only, as kinds do that can't list. ``fault`` may be set to a function that
    is given each request and returns the BackendError to raise, or None. ``takes_s`` is how long each answer takes; a look
    tells how things stand at its end.
    """

    def __init__(
        self, *, kind: str = "process", whole: bool = True, clock: Clock | None = None, takes_s: float = 0.0
    ) -> None:
        self.kind = kind
        self.whole = whole
        self.takes_s = takes_s
        self.requests: list[BackendRequest] = []
        self.fault: Callable[[BackendRequest], BackendError | None] | None = None
        self._clock = clock or SystemClock()
        self._numbers = itertools.count(1)
        self._backends: dict[str, Backend] = {}
        self._elsewhere: set[str] = set()
        self._stubborn: set[str] = set()

    def add(
        self,
        user: str,
        server: str = "",
        *,
        alive: bool | None = True,
        proved: bool = True,
        elsewhere: bool = False,
        stubborn: bool = False,
        detail: str = "",
    ) -> Backend:
        """Have one more backend for that server, started now, beside those that it has; what a look will tell of it.

        One that isn't ``proved`` merely looks like this hub's; one from ``elsewhere`` is another hub's, and no look tells of
        it. A ``stubborn`` one lives on when it is asked to end.
        """
        number = next(self._numbers)
        backend = Backend(
            kind=self.kind,
            id=f"{self.kind}-{number}",
            user=user,
            server=server,
            alive=alive,
            name=f"{self.kind} {number}",
            started=self._clock.now(),
            proof="it was added as this hub's" if proved and not elsewhere else "",
            detail=detail,
            command=f"kill -9 {number}",
        )
        self._backends[backend.id] = backend
        if elsewhere:
            self._elsewhere.add(backend.id)
        if stubborn:
            self._stubborn.add(backend.id)
        return backend

    def kill(self, user: str, server: str = "", *, trace: str = "") -> None:
        """Have that server's backends dead, however stubborn: gone, or with a ``trace`` still listed, with that detail."""
        for backend in self._of((user, server)):
            del self._backends[backend.id]
            if trace:
                self._backends[backend.id] = replace(backend, alive=False, detail=trace)

    def hide(self, user: str, server: str = "") -> None:
        """Have it so that nothing can be told any more of that server's backends; each is still known by its id."""
        for backend in self._of((user, server)):
            self._backends[backend.id] = replace(backend, alive=None, proof="", detail="it can't be read")

    def alive(self, user: str, server: str = "", *, elsewhere: bool = False) -> bool:
        """Whether that server of this hub, or of the one ``elsewhere``, has a backend that runs. This is no request."""
        return any(
            backend.alive and (backend.id in self._elsewhere) is elsewhere
            for backend in self._backends.values()
            if backend.key == (user, server)
        )

    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """See Backends."""
        await self._asked(None)
        here = [backend for backend in self._backends.values() if backend.id not in self._elsewhere]
        if not self.whole:
            found: dict[Key, Backend] = {backend.key: backend for backend in here}
            keys = {(one.user, one.server) for one in expected}
            here = [found.get(key) or self._nobody(*key) for key in keys]
        return tuple(sorted(here, key=lambda backend: (*backend.key, backend.id)))

    async def end(self, backend: Backend) -> None:
        """See Backends."""
        await self._asked(backend)
        current = self._backends.get(backend.id)
        if current is None or current.alive is False:
            return
        if not current.proof:
            raise BackendError(f"{backend.name} isn't proved to be this hub's, so it wasn't ended. Look at it by hand.")
        if current.id not in self._stubborn:
            del self._backends[current.id]

    async def close(self) -> None:
        """See Backends."""

    def _of(self, key: Key) -> list[Backend]:
        return [one for one in self._backends.values() if one.key == key and one.id not in self._elsewhere]

    def _nobody(self, user: str, server: str) -> Backend:
        name = f"server {server!r} of {user}" if server else f"server of {user}"
        return Backend(
            self.kind, f"{self.kind}-of-{user}/{server}", user, server, False, name, detail="nothing is there"
        )

    async def _asked(self, end: Backend | None) -> None:
        request = BackendRequest(self._clock.now(), self._clock.monotonic_s(), end)
        self.requests.append(request)
        if self.takes_s > 0:
            await self._clock.sleep(self.takes_s)
        error = self.fault(request) if self.fault else None
        if error is not None:
            raise error
