"""Containers as backends: the suite over a real Docker engine and over a fake, and what only a fake can be made to do."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from backend_checks import BackendChecks, World
from docker_engines import FakeEngine, NoEngine, RealEngine, Relay, real_engine

from hubguard.clients.backends.docker import open_backends
from hubguard.clients.backends.port import Expected, Place
from hubguard.drift import Backend

OURS = "http://hub.example.org:8081/hub/api"
THEIRS = "http://hub.example.org:9081/hub/api"
SHARED = "http://hub:8081/hub/api"
TOKEN = "b44e6a0c-never-to-be-seen"
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[str]:
    try:
        with real_engine() as socket:
            yield socket
    except NoEngine as error:
        pytest.skip(str(error))


def place(socket: str, api_url: str = OURS, **settings: object) -> Place:
    return Place(api_url, settings=settings, environ={"DOCKER_HOST": f"unix://{socket}"})


def environ(user: str, server: str = "", api_url: str = OURS) -> dict[str, str]:
    """What DockerSpawner 14 gives a container, as far as it matters; its own token among it."""
    return {
        "JUPYTERHUB_API_TOKEN": TOKEN,
        "JUPYTERHUB_USER": user,
        "JUPYTERHUB_SERVER_NAME": server,
        "JUPYTERHUB_API_URL": api_url,
        "JUPYTERHUB_BASE_URL": "/",
    }


def escaped(name: str) -> str:
    """As DockerSpawner 14 does it, which takes escapism's word for it."""
    safe = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(c if c in safe else "".join(f"-{byte:02x}" for byte in c.encode()) for c in name)


class DockerWorld(World):
    """Containers with the environment that DockerSpawner gives them: names are kept, and what has stopped starts again."""

    def __init__(self, engine: RealEngine | FakeEngine, relay: Relay) -> None:
        number = next(NUMBERS)
        self.engine = engine
        self.relay = relay
        self.prefix = f"world{number}"
        self.api_url = f"http://hub{number}.example.org:8081/hub/api"
        self.backends = open_backends(place(relay.socket, self.api_url, prefix=self.prefix))
        self._containers: dict[tuple[str, str, str], str] = {}

    async def _start(self, prefix: str, user: str, server: str, api_url: str) -> str:
        key = (prefix, user, server)
        if key not in self._containers:
            name = f"{prefix}-{escaped(user)}" + (f"--{escaped(server)}" if server else "")
            self._containers[key] = await self.engine.create(name, environ(user, server, api_url))
        await self.engine.start(self._containers[key])
        return self._containers[key]

    async def _lives(self, prefix: str, user: str, server: str) -> bool:
        told = await self.engine.inspect(self._containers[(prefix, user, server)])
        return told is not None and bool(told["State"]["Running"])

    async def start(self, user: str, server: str = "") -> Expected:
        container = await self._start(self.prefix, user, server, self.api_url)
        return Expected(user, server, state={"object_id": container})

    async def kill(self, user: str, server: str = "") -> None:
        await self.engine.kill(self._containers[(self.prefix, user, server)])

    async def lives(self, user: str, server: str = "") -> bool:
        return await self._lives(self.prefix, user, server)

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        container = await self._start(f"{self.prefix}-other", user, server, f"{self.api_url}2")
        run = (await self.engine.inspect(container))["State"]["StartedAt"]
        return Backend("docker", f"{container}@{run}", user, server, True, "container of another", proof="so they say")

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return await self._lives(f"{self.prefix}-other", user, server)

    async def break_engine(self) -> None:
        await self.relay.cut()


@pytest.fixture(params=["real", "fake"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealEngine | FakeEngine]:
    engine: RealEngine | FakeEngine
    engine = RealEngine(request.getfixturevalue("dockerd")) if request.param == "real" else FakeEngine(tmp_path)
    try:
        await engine.prepare()
        yield engine
    finally:
        await engine.close()


class TestDocker(BackendChecks):
    @pytest.fixture
    async def world(self, engine: RealEngine | FakeEngine, tmp_path: Path) -> AsyncIterator[World]:
        relay = Relay(tmp_path, engine.socket)
        await relay.open()
        world = DockerWorld(engine, relay)
        try:
            yield world
        finally:
            await world.backends.close()
            await relay.cut()
