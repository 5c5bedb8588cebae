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
from enum import Enum
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
"""Maximum servers that are asked at the same time."""

PER_S = 50.0
"""Maximum requests to servers per second."""

PATIENCE_S = 3.0
"""Maximum seconds for an answer."""

FINE_S, FINE_PER_S = 120.0, 10.0
"""Maximum seconds, plus or minus 20 %, until a server that answered is asked again, and how many such servers a second are
asked on average. With up to some 250 servers, each is asked at every look (every 30 s)."""

STRANGE = "what answers there doesn't know its prefix (404), and doesn't show whether it is another server"

YOUNG_S = 300.0
"""Seconds after its start in which a server is sent a request before it is known to be Jupyter's. Others may take any request
for use; so soon, that delays nothing."""

LOOK_S = 20.0
"""Maximum seconds of a look, which then reports what it knows. Servers with the oldest answers are asked first."""


def open_backends(place: Place) -> Backends:
    """What answers in place of the servers of that hub."""
    return HTTPBackends(place)


class _Who(Enum):
    """What has answered."""

    UNKNOWN = "unknown"
    JUPYTER = "a server that a hub made"
    STRANGER = "something that doesn't know the server's prefix"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is known of that server, and from when on it is to be asked again."""

    expected: Expected
    backend: Backend
    asked_s: float
    again_s: float
    who: _Who


class HTTPBackends(Backends):
    """Implements Backends by asking; it can end nothing, and proves nothing.

    One that answers is asked again after two minutes at most, all others at each look. ``jitter`` gives numbers from 0 to 1.

    Looking isn't use. Jupyter's servers don't count a request for their API's version as activity; others may count any. So
    a server is sent requests only once it has shown that it is Jupyter's. Of the rest HubGuard only tries whether they take
    connections, after one request at most, early in their life or when they seem gone.
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
            fine_s = min(FINE_S, len(wanted) / FINE_PER_S)
            await asyncio.gather(*[self._ask_all(queue, now_s + LOOK_S, fine_s) for _ in range(AT_ONCE)])
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

    async def _ask_all(self, queue: Iterator[Expected], until_s: float, fine_s: float) -> None:
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
            before = self._answers.get(ready.key)
            who = before.who if before is not None else _Who.UNKNOWN
            if who is _Who.JUPYTER or self._is_young(ready) or (before is None and self._every_time):
                alive, detail, answered = await self._ask(ready.target.rstrip("/") + self._prefix(ready))
                who = who if answered is _Who.UNKNOWN else answered
            else:
                alive, detail = await self._connect(ready.target)
                if alive and who is _Who.STRANGER:
                    alive, detail = None, STRANGE
            again_s = asked_s + (fine_s * (0.8 + 0.4 * self._jitter()) if alive else 0.0)
            self._answers[ready.key] = _Answer(ready, self._backend(ready, alive, detail), asked_s, again_s, who)

    def _is_young(self, ready: Expected) -> bool:
        return ready.started is None or (self._clock.now() - ready.started).total_seconds() < YOUNG_S

    def _last(self, ready: Expected, since_s: float) -> Backend:
        """Its last answer, unless it was asked before that."""
        if ready.target is None:
            return self._backend(ready, None, "its address is unknown")
        answer = self._answers.get(ready.key)
        if answer is None or answer.asked_s < since_s:
            return self._backend(ready, None, "too many servers to ask all in one look: this one is asked in the next")
        return answer.backend

    async def _connect(self, target: str) -> tuple[bool | None, str]:
        """Whether that address takes connections, and one clause on it."""
        url = URL(target, encoded=True)
        try:
            opening = asyncio.open_connection(url.host, url.port)
            _, writer = await asyncio.wait_for(opening, PATIENCE_S)
        except asyncio.TimeoutError:
            return None, f"no connection within {PATIENCE_S:.0f} s: it hangs, or the network does"
        except (OSError, ValueError) as error:
            return self._judge(error, target)
        writer.transport.abort()
        self._reached = True
        return True, "it takes connections"

    async def _ask(self, url: str) -> tuple[bool | None, str, _Who]:
        """Whether a server answers at that prefix, one clause on it, and what answered."""
        try:
            status, of_hub = await self._get(url + "api")
            if status == 404 and not of_hub:
                # One that isn't Jupyter's may have no API; its own prefix must be there.
                status, of_hub = await self._get(url)
        except asyncio.TimeoutError:
            return None, f"no answer within {PATIENCE_S:.0f} s: it hangs, or the network does", _Who.UNKNOWN
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return *self._judge(error, url), _Who.UNKNOWN
        if status == 404 and of_hub:
            return False, "what answers there is another server: it doesn't know this one's prefix (404)", _Who.JUPYTER
        self._reached = True
        if status == 404:
            # The hub takes any answer for a server that is up.
            return None, STRANGE, _Who.STRANGER
        who = _Who.JUPYTER if of_hub else _Who.UNKNOWN
        if status >= 500:
            return None, f"it answers {status}", who
        return True, f"it answers {status}", who

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
