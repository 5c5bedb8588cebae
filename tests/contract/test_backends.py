"""The suite of tests/backend_checks.py over the double, over real processes and over HTTP; and what is each one's own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import pytest
from backend_checks import BackendChecks, World

from hubguard.clients.backends.http import FINE_S, HTTPBackends
from hubguard.clients.backends.memory import MemoryBackends
from hubguard.clients.backends.port import Expected, Place
from hubguard.clients.backends.process import ProcessBackends
from hubguard.clients.clock import SystemClock
from hubguard.drift import Backend
from hubguard.errors import BackendError
from hubguard.testbed.spawner import Little, launch

API = "http://127.0.0.1:18081/hub/api"
ANOTHER_API = "http://127.0.0.1:18082/hub/api"


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


class Machine:
    """Little servers as real processes of this machine, as a spawner starts them, of any hub; all are ended afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[str, str, str, Little, subprocess.Popen[bytes]]] = []

    async def start(self, user: str, server: str = "", *, api_url: str = API, **more: str) -> Expected:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        prefix = f"/user/{quote(user)}/" + (f"{quote(server)}/" if server else "")
        environment = {
            "JUPYTERHUB_USER": user,
            "JUPYTERHUB_SERVER_NAME": server,
            "JUPYTERHUB_API_URL": api_url,
            "JUPYTERHUB_SERVICE_PREFIX": prefix,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}{prefix}",
            **more,
        }
        started = datetime.now(timezone.utc)
        little, process = await asyncio.to_thread(
            launch, user, str(self._folder), listener=listener, environment=environment
        )
        self._running.append((api_url, user, server, little, process))
        return Expected(user, server, started, f"http://127.0.0.1:{port}", {"pid": little.pid})

    def of(self, user: str, server: str = "", *, api_url: str = API) -> list[tuple[Little, subprocess.Popen[bytes]]]:
        return [(little, process) for *one, little, process in self._running if one == [api_url, user, server]]

    def kill(self, user: str, server: str = "") -> None:
        for _, process in self.of(user, server):
            process.kill()
            process.wait()

    def lives(self, user: str, server: str = "", *, api_url: str = API) -> bool:
        return any(little.alive for little, _ in self.of(user, server, api_url=api_url))

    def end(self) -> None:
        for *_, process in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def machine(tmp_path: Path):
    machine = Machine(tmp_path)
    yield machine
    machine.end()


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
