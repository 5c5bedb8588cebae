"""The suite of tests/backend_checks.py over the double, over real processes and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from backend_checks import BackendChecks, World
from doubles.backends import MemoryBackends
from little_machine import ANOTHER_API, API, Machine
from virtual_time import VirtualClock

from hubguard.backends.http import HTTPBackends
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.backends.process import ProcessBackends
from hubguard.errors import BackendError
from hubguard.pacing.clock import SystemClock

FINE_S = 120.0

pytestmark = pytest.mark.contract


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


class MemoryWorld(World):
    def __init__(self, *, whole: bool) -> None:
        self.backends: MemoryBackends = MemoryBackends(whole=whole)

    async def start(self, user: str, server: str = "") -> Expected:
        backend = self.backends.add(user, server)
        return Expected(user, server, backend.started)

    async def kill(self, user: str, server: str = "") -> None:
        self.backends.kill(user, server)

    async def lives(self, user: str, server: str = "") -> bool:
        return self.backends.alive(user, server)

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        return self.backends.add(user, server, elsewhere=True)

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return self.backends.alive(user, server, elsewhere=True)

    async def break_engine(self) -> None:
        self.backends.fault = lambda request: BackendError("The engine doesn't answer. Look whether it runs.")


class TestMemoryBackends(BackendChecks):
    @pytest.fixture(params=[True, False], ids=["whole", "expected-only"])
    def world(self, request: pytest.FixtureRequest) -> MemoryWorld:
        return MemoryWorld(whole=request.param)


async def test_the_double_is_slow_fails_and_resists_as_told_and_remembers_what_it_was_asked() -> None:
    clock = VirtualClock()
    backends = MemoryBackends(clock=clock, takes_s=2.0)
    stubborn = backends.add("ann", stubborn=True)
    look_alike = backends.add("bob", proved=False)
    backends.add("cat")
    looking = asyncio.ensure_future(clock.run(backends.look([])))
    await asyncio.sleep(0)
    backends.kill("cat", trace="exited with 137")
    found = await looking
    assert [(backend.user, backend.alive, backend.detail) for backend in found] == [
        ("ann", True, ""),
        ("bob", True, ""),
        ("cat", False, "exited with 137"),
    ]
    await clock.run(backends.end(stubborn))
    assert backends.alive("ann")
    with pytest.raises(BackendError):
        await clock.run(backends.end(look_alike))
    backends.hide("ann")
    with pytest.raises(BackendError):
        await clock.run(backends.end(stubborn))
    assert [backend.alive for backend in await clock.run(backends.look([]))] == [None, True, False]
    backends.kill("ann")
    assert [backend.user for backend in await clock.run(backends.look([]))] == ["bob", "cat"]
    asked = [(request.at_s, request.end and request.end.user) for request in backends.requests]
    assert asked == [(0, None), (2, "ann"), (4, "bob"), (6, "ann"), (8, None), (10, None)]


class ProcessWorld(World):
    breaks = False

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.backends = ProcessBackends(Place(API))

    async def start(self, user: str, server: str = "") -> Expected:
        return await self.machine.start(user, server)

    async def kill(self, user: str, server: str = "") -> None:
        self.machine.kill(user, server)

    async def lives(self, user: str, server: str = "") -> bool:
        return self.machine.lives(user, server)

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        await self.machine.start(user, server, api_url=ANOTHER_API)
        others = ProcessBackends(Place(ANOTHER_API))
        return next(backend for backend in await others.look([]) if backend.key == (user, server))

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return self.machine.lives(user, server, api_url=ANOTHER_API)


class TestProcessBackends(BackendChecks):
    @pytest.fixture
    async def world(self, machine: Machine) -> ProcessWorld:
        world = ProcessWorld(machine)
        # It tells of absence once it has seen that it is on the hub's machine.
        await machine.start("somebody")
        await world.backends.look([])
        assert world.backends.whole
        return world


class AheadClock(SystemClock):
    """The system's clock, put forward at will."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class HTTPWorld(World):
    ends = False
    breaks = False
    hubs = 1

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock = AheadClock()
        self.backends = HTTPBackends(Place(API), clock=self.clock)

    async def start(self, user: str, server: str = "") -> Expected:
        return await self.machine.start(user, server)

    async def kill(self, user: str, server: str = "") -> None:
        self.machine.kill(user, server)
        self.clock.ahead_s += 1.2 * FINE_S

    async def lives(self, user: str, server: str = "") -> bool:
        return self.machine.lives(user, server)


class TestHTTPBackends(BackendChecks):
    @pytest.fixture
    async def world(self, machine: Machine) -> AsyncIterator[HTTPWorld]:
        world = HTTPWorld(machine)
        yield world
        await world.backends.close()
