"""Whether each server answers at its target, under its own prefix: all that is known of any spawner's servers.

Nothing is sent along: no token, no cookie, no name but the one in the path.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

import aiohttp
from typing_extensions import override
from yarl import URL

from hubguard.backends.model import Backend
from hubguard.backends.port import Backends, Expected, Place
from hubguard.errors import BackendError
from hubguard.hub.http import LONGEST_QUOTE, in_words, printable
from hubguard.model import Key
from hubguard.pacing.clock import Clock, SystemClock
from hubguard.pacing.limits import Rate

AT_ONCE = 10
PER_S = 50.0
PATIENCE_S = 3.0
"""Seconds for an answer."""

FINE_S = 120.0
"""Seconds, plus or minus 20 %, until a server that answered is asked again."""

LOOK_S = 20.0
"""Maximum seconds of a look, which then reports what it knows. Servers with the oldest answers are asked first."""


def open_backends(place: Place) -> Backends:
    """What answers in place of the servers of that hub."""
    return HTTPBackends(place)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is known of that server, and from when on it is to be asked again."""

    expected: Expected
    backend: Backend
    asked_s: float
    again_s: float


class HTTPBackends(Backends):
    """Implements Backends by asking; it can end nothing, and proves nothing.

    One that answers is asked again some two minutes later, all others at each look. ``jitter`` gives numbers from 0 to 1.
    ``every_time`` is for confirming what was seen of this machine or its engine: all are asked at each look, which uses no
    earlier answers; and if a loopback address refuses, nobody listens, whether or not any server has ever answered.
    """

    kind = "http"
    whole = False

    def __init__(
        self,
        place: Place,
        *,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
        every_time: bool = False,
    ) -> None:
        self._base_url = place.base_url
        self._clock = clock or SystemClock()
        self._jitter = jitter
        self._every_time = every_time
        self._rate = Rate(PER_S, AT_ONCE, self._clock.monotonic_s())
        self._answers: dict[Key, _Answer] = {}
        self._reached = False
        self._session: aiohttp.ClientSession | None = None
        self._one_look = asyncio.Lock()

    @override
    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """Takes some 23 s at most, however many there are and however slow they are."""
        async with self._one_look:
            wanted = {ready.key: ready for ready in expected}
            now_s = self._clock.monotonic_s()
            # Another run, or another target, is another server.
            self._answers = {
                key: answer
                for key, answer in self._answers.items()
                if key in wanted and _identity(wanted[key]) == _identity(answer.expected)
            }
            due = [
                (answer.asked_s if answer is not None else float("-inf"), key)
                for key in wanted
                if (answer := self._answers.get(key)) is None or self._every_time or answer.again_s <= now_s
            ]
            queue = iter([wanted[key] for _, key in sorted(due)])
            await asyncio.gather(*[self._ask_all(queue, now_s + LOOK_S) for _ in range(AT_ONCE)])
            since_s = now_s if self._every_time else self._clock.monotonic_s() - 2 * FINE_S
            backends = [self._last(ready, since_s) for ready in wanted.values()]
            return tuple(sorted(backends, key=lambda backend: (*backend.key, backend.id)))

    async def end(self, backend: Backend) -> None:
        """Raises BackendError: nothing can be ended this way."""
        raise BackendError(
            f"The server at {backend.name} can't be ended: HubGuard only sees whether it answers. End it by hand, or set "
            "HubGuardDrift.backend to what runs the servers."
        )

    @override
    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask_all(self, queue: Iterator[Expected], until_s: float) -> None:
        for ready in queue:
            if ready.target is None:
                continue
            while (wait_s := self._rate.wait_s(self._clock.monotonic_s())) > 0:
                await self._clock.sleep(min(wait_s, 1.0))
            asked_s = self._clock.monotonic_s()
            if asked_s >= until_s:
                return
            self._rate.reserve(asked_s)
            self._rate.spend(asked_s)
            alive, detail = await self._ask(ready.target.rstrip("/") + self._prefix(ready))
            again_s = asked_s + (FINE_S * (0.8 + 0.4 * self._jitter()) if alive else 0.0)
            self._answers[ready.key] = _Answer(ready, self._backend(ready, alive, detail), asked_s, again_s)

    def _last(self, ready: Expected, since_s: float) -> Backend:
        """Its last answer, unless it was asked before that."""
        if ready.target is None:
            return self._backend(ready, None, "its address is unknown")
        answer = self._answers.get(ready.key)
        if answer is None or answer.asked_s < since_s:
            return self._backend(ready, None, "too many servers to ask all in one look: this one is asked in the next")
        return answer.backend

    async def _ask(self, url: str) -> tuple[bool | None, str]:
        """Whether a server answers at that prefix, and one clause on it."""
        try:
            status, of_hub = await self._get(url + "api")
            if status == 404 and not of_hub:
                # One that isn't Jupyter's may have no API; its own prefix must be there.
                status, of_hub = await self._get(url)
        except asyncio.TimeoutError:
            return None, f"no answer within {PATIENCE_S:.0f} s: it hangs, or the network does"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._judge(error, url)
        if status == 404:
            return False, "what answers there is another server: it doesn't know this one's prefix (404)"
        self._reached = True
        if status >= 500:
            return None, f"it answers {status}"
        return True, f"it answers {status}"

    def _judge(self, error: Exception, url: str) -> tuple[bool | None, str]:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        refused = isinstance(cause, ConnectionRefusedError)
        closed = isinstance(cause, (ConnectionResetError, aiohttp.ServerDisconnectedError))
        said = "nobody listens there" if refused else f"no answer ({printable(in_words(error))[:LONGEST_QUOTE]})"
        if not refused and (not closed or url.startswith("https:")):
            # With internal_ssl a server wants the hub's certificate: that it refuses others says nothing.
            return None, said
        if not self._reached and not (self._every_time and refused and _is_loopback(url)):
            return None, f"{said}; but no server has ever answered from here: HubGuard may not reach them"
        return False, said

    async def _get(self, url: str) -> tuple[int, bool]:
        """(status, whether it is of a server that a hub made)."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=False, force_close=True, limit=AT_ONCE),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
            )
        async with self._session.get(URL(url, encoded=True), allow_redirects=False) as answer:
            return answer.status, "X-JupyterHub-Version" in answer.headers

    def _prefix(self, ready: Expected) -> str:
        named = f"{quote(ready.server, safe='@~')}/" if ready.server else ""
        return f"{self._base_url}user/{quote(ready.user, safe='@~')}/{named}"

    def _backend(self, ready: Expected, alive: bool | None, detail: str) -> Backend:
        place = f"{ready.target.rstrip('/') if ready.target else ''}{self._prefix(ready)}"
        run = ready.started.isoformat() if ready.started else ""
        return Backend(self.kind, f"{place} {run}".rstrip(), ready.user, ready.server, alive, place, detail=detail)


def _is_loopback(url: str) -> bool:
    host = URL(url, encoded=True).host or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _identity(ready: Expected) -> tuple[str | None, datetime | None]:
    return (ready.target, ready.started)
