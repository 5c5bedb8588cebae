"""Containers as backends: the suite over a real Docker engine and over a fake, and what only a fake can be made to do."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from aiohttp import web
from backend_checks import BackendChecks, World, living, of
from conftest import HUB_PYTHON
from doubles.docker_engines import FakeEngine, NoEngine, RealEngine, Relay, python_image, real_engine

from hubguard.backends import docker
from hubguard.backends.docker import DockerBackends, open_backends
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.errors import BackendError
from hubguard.staging.hub import TestbedHub

AT_ONCE = 8

pytestmark = [pytest.mark.contract, pytest.mark.any_hub]

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


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., DockerBackends]]:
    """Makes backends that are closed afterwards; it takes what ``place`` takes, or a Place."""
    made: list[DockerBackends] = []

    def make(socket: str | Place, *given: str, timeout_s: float = 10.0, **settings: object) -> DockerBackends:
        here = socket if isinstance(socket, Place) else place(socket, *given, **settings)
        made.append(DockerBackends(here, request_timeout_s=timeout_s))
        return made[-1]

    yield make
    for backends in made:
        await backends.close()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(tmp_path)
    await engine.prepare()
    yield engine
    await engine.close()


Opened = Callable[..., DockerBackends]
Engine = RealEngine | FakeEngine


async def run(
    engine: Engine, name: str, environment: dict[str, str], network: str = "none", *, remove: bool = False
) -> str:
    container = await engine.create(f"{name}-{next(NUMBERS)}", environment, network, remove=remove)
    await engine.start(container)
    return container


async def runs(engine: Engine, container: str) -> bool:
    told = await engine.inspect(container)
    return told is not None and bool(told["State"]["Running"])


class TestWhose:
    async def test_two_hubs_with_one_url_are_told_apart_by_their_networks(self, engine: Engine, opened: Opened) -> None:
        number = next(NUMBERS)
        a, b = f"hg{number}_a_default", f"hg{number}_b_default"
        await engine.network(a)
        await engine.network(b)
        shared = f"http://hub{number}:8081/hub/api"
        in_a = await run(engine, "a-ann", environ("ann", "", shared), a)
        in_b = await run(engine, "b-ann", environ("ann", "", shared), b)
        await run(engine, "b-bob", environ("bob", "", shared), b)
        at_a, at_b = (opened(engine.socket, shared, network_name=name) for name in (a, b))
        (of_a,) = await at_a.look([Expected("ann", "")])
        found_b = await at_b.look([])
        assert [backend.key for backend in found_b] == [("ann", ""), ("bob", "")]
        of_b = found_b[0]
        assert of_a.id.startswith(in_a)
        assert of_b.id.startswith(in_b)
        assert a in of_a.proof
        assert b in of_b.proof
        for backends, theirs in ((at_a, of_b), (at_b, of_a)):
            with pytest.raises(BackendError, match="isn't proved"):
                await backends.end(theirs)
        assert await runs(engine, in_a)
        assert await runs(engine, in_b)
        await at_b.end(of_b)
        assert await runs(engine, in_a)
        assert not await runs(engine, in_b)

    async def test_two_hubs_with_urls_of_their_own_are_told_apart_in_one_network(
        self, engine: Engine, opened: Opened
    ) -> None:
        number = next(NUMBERS)
        urls = [f"http://hub{number}{which}:8081/hub/api" for which in "ab"]
        ours, theirs = [await run(engine, "ann", environ("ann", "", url)) for url in urls]
        (found,) = await opened(engine.socket, urls[0], network_name="none").look([])
        assert found.id.startswith(ours)
        with pytest.raises(BackendError, match="isn't proved"):
            await opened(engine.socket, urls[1], network_name="none").end(found)
        assert await runs(engine, ours)
        assert await runs(engine, theirs)

    @pytest.mark.parametrize(
        ("api_url", "network"), [(THEIRS, "ours"), ("http://0a1b2c3d4e5f:8081/hub/api", "ours"), (SHARED, "theirs")]
    )
    async def test_one_from_before_the_hubs_url_or_network_changed_can_not_be_told_and_is_no_orphan(
        self, api_url: str, network: str, fake: FakeEngine, opened: Opened
    ) -> None:
        before = await run(fake, "ann", environ("ann", "", api_url), network)
        backends = opened(fake.socket, SHARED, network_name="ours")
        for state in (None, {}):
            (found,) = await backends.look([Expected("ann", "", state=state), Expected("bob", "")])
            assert (found.key, found.alive, found.proof) == (("ann", ""), None, "")
            assert "unknown whose it is" in found.detail
        with pytest.raises(BackendError, match="isn't proved"):
            await backends.end(found)
        assert await runs(fake, before)
        # What nobody expects, and what isn't the one that the state names, is another hub's.
        assert await backends.look([Expected("ann", "", state={"object_id": "f" * 64}), Expected("bob", "")]) == ()
        now = await run(fake, "now-ann", environ("ann", "", SHARED), "ours")
        (known,) = await backends.look([Expected("ann", "")])
        assert known.id.startswith(now)
        await fake.kill(now)
        assert {one.alive for one in await backends.look([Expected("ann", "")])} == {False, None}
        await fake.kill(before)
        assert {one.alive for one in await backends.look([Expected("ann", "")])} == {False}

    async def test_containers_in_the_hosts_network_are_shown_as_unknown_and_not_hidden(
        self, fake: FakeEngine, opened: Opened
    ) -> None:
        """``extra_host_config = {"network_mode": "host"}`` leaves the hub's network_name as it is, often "bridge"."""
        ours = "http://127.0.0.1:8081/hub/api"
        left = await run(fake, "left", environ("left", "", ours), "host")
        await run(fake, "theirs", environ("bob", "", ours), "theirs")
        await run(fake, "other", environ("dan", "", THEIRS), "host")
        backends = opened(fake.socket, ours, network_name="bridge")
        (found,) = await backends.look([])
        assert (found.key, found.alive, found.proof) == (("left", ""), None, "")
        assert "the host's network" in found.detail
        with pytest.raises(BackendError, match="isn't proved"):
            await backends.end(found)
        await fake.kill(left)
        assert await backends.look([]) == ()

    async def test_where_the_network_is_not_known_a_shared_url_proves_nothing(
        self, fake: FakeEngine, opened: Opened
    ) -> None:
        container = await run(fake, "ann", environ("ann", "", SHARED), "a_default")
        backends = opened(fake.socket, SHARED)
        found = living(await backends.look([]), "ann")
        assert found.proof == ""
        with pytest.raises(BackendError, match=f"docker stop {container[:12]}"):
            await backends.end(found)
        assert await runs(fake, container)

    @pytest.mark.parametrize(
        ("api_url", "shared"),
        [
            ("http://hub:8081/hub/api", True),
            ("http://hub.internal:8081/hub/api", True),
            ("http://172.18.0.2:8081/hub/api", True),
            ("http://127.0.0.1:8081/hub/api", True),
            ("http://localhost:8081/hub/api", True),
            ("http://[fd00::2]:8081/hub/api", True),
            ("http://hub.:8081/hub/api", True),
            ("https://hub.example.org/hub/api", False),
            ("http://9.9.9.9:8081/hub/api", False),
        ],
    )
    async def test_what_two_hubs_could_both_be_called_needs_the_network(
        self, api_url: str, shared: bool, fake: FakeEngine, opened: Opened
    ) -> None:
        await run(fake, "ann", environ("ann", "", api_url), "ours")
        (unknown,) = await opened(fake.socket, api_url).look([])
        assert bool(unknown.proof) is not shared
        (known,) = await opened(fake.socket, api_url, network_name="ours").look([])
        assert known.proof
        assert bool(await opened(fake.socket, api_url, network_name="theirs").look([])) is not shared

    async def test_a_container_that_is_no_server_is_nobodys(self, fake: FakeEngine, opened: Opened) -> None:
        await run(fake, "postgres", {"POSTGRES_PASSWORD": "x"})
        await run(fake, "bare", {})
        await run(fake, "service", {"JUPYTERHUB_API_URL": OURS})
        await run(fake, "odd", {"JUPYTERHUB_USER": "", "JUPYTERHUB_API_URL": OURS})
        assert await opened(fake.socket).look([]) == ()

    async def test_a_slash_at_the_end_of_a_url_makes_no_other_hub(self, fake: FakeEngine, opened: Opened) -> None:
        await run(fake, "ann", environ("ann", "", f"{OURS}/"))
        assert living(await opened(fake.socket, OURS).look([]), "ann").proof

    async def test_a_renamed_users_container_is_found_by_the_spawners_state(
        self, fake: FakeEngine, opened: Opened
    ) -> None:
        by_id, by_name = await run(fake, "old", environ("old")), await run(fake, "older", environ("older"))
        name = (await fake.inspect(by_name))["Name"].lstrip("/")
        expected = [
            Expected("new", "", state={"object_id": by_id, "object_name": "whatever"}),
            Expected("newer", "", state={"object_name": name}),
        ]
        found = await opened(fake.socket).look(expected)
        assert [(backend.user, backend.id[:64]) for backend in found] == [("new", by_id), ("newer", by_name)]

    async def test_state_that_names_a_container_of_another_url_shows_it_without_proof(
        self, fake: FakeEngine, opened: Opened
    ) -> None:
        container = await run(fake, "ann", environ("ann", "", THEIRS))
        backends = opened(fake.socket)
        found = living(await backends.look([Expected("ann", "", state={"object_id": container})]), "ann")
        assert found.proof == ""
        with pytest.raises(BackendError, match="isn't proved"):
            await backends.end(found)
        assert await backends.look([Expected("ann", "", state={"object_id": "f" * 64})]) == ()


class TestStates:
    @pytest.mark.parametrize(
        ("state", "alive"),
        [
            ("running", True),
            ("created", False),
            ("exited", False),
            ("dead", False),
            ("removing", False),
            ("paused", None),
            ("restarting", None),
            ("something-new", None),
        ],
    )
    async def test_the_engines_word_tells_whether_it_lives(
        self, state: str, alive: bool | None, fake: FakeEngine, opened: Opened
    ) -> None:
        container = await run(fake, "ann", environ("ann"))
        fake.containers[container].state = state
        fake.containers[container].status = "What the engine says"
        (found,) = await opened(fake.socket).look([])
        assert found.alive is alive
        assert found.detail == "What the engine says"

    async def test_a_paused_one_is_not_told_of_as_alive_nor_ended(self, engine: Engine, opened: Opened) -> None:
        api_url = f"http://hub{next(NUMBERS)}.example.org/hub/api"
        container = await run(engine, "ann", environ("ann", "", api_url))
        await engine.pause(container)
        backends = opened(engine.socket, api_url)
        (found,) = await backends.look([Expected("ann", "")])
        assert found.alive is None
        with pytest.raises(BackendError, match="paused"):
            await backends.end(found)
        assert await runs(engine, container)

    async def test_when_it_started_is_told_to_the_microsecond(self, engine: Engine, opened: Opened) -> None:
        api_url = f"http://hub{next(NUMBERS)}.example.org/hub/api"
        before = datetime.now(timezone.utc)
        container = await run(engine, "ann", environ("ann", "", api_url))
        (found,) = await opened(engine.socket, api_url).look([])
        assert found.started is not None
        assert before <= found.started <= datetime.now(timezone.utc)
        told = (await engine.inspect(container))["State"]["StartedAt"]
        assert found.started.isoformat().startswith(told[:26])

    async def test_what_never_started_has_no_start(self, engine: Engine, opened: Opened) -> None:
        api_url = f"http://hub{next(NUMBERS)}.example.org/hub/api"
        await engine.create(f"never-{next(NUMBERS)}", environ("ann", "", api_url))
        (found,) = await opened(engine.socket, api_url).look([])
        assert (found.alive, found.started) == (False, None)

    @pytest.mark.parametrize(("removes", "stays"), [(True, False), (False, True), (None, True), ("yes", True)])
    async def test_what_was_ended_is_removed_only_where_the_spawner_would(
        self, removes: object, stays: bool, engine: Engine, opened: Opened
    ) -> None:
        api_url = f"http://hub{next(NUMBERS)}.example.org/hub/api"
        container = await run(engine, "ann", environ("ann", "", api_url))
        backends = opened(engine.socket, api_url, **({} if removes is None else {"remove": removes}))
        (found,) = await backends.look([])
        await backends.end(found)
        assert (await engine.inspect(container) is not None) is stays
        assert not await runs(engine, container)

    async def test_one_that_removes_itself_ends_without_an_error(self, engine: Engine, opened: Opened) -> None:
        api_url = f"http://hub{next(NUMBERS)}.example.org/hub/api"
        container = await run(engine, "ann", environ("ann", "", api_url), remove=True)
        backends = opened(engine.socket, api_url, remove=True)
        (found,) = await backends.look([])
        await backends.end(found)
        assert not await runs(engine, container)
        await backends.end(found)

    async def test_a_stop_gives_ten_seconds_of_grace(self, fake: FakeEngine, opened: Opened) -> None:
        container = await run(fake, "ann", environ("ann"))
        backends = opened(fake.socket)
        await backends.end((await backends.look([]))[0])
        assert fake.containers[container].asked == ["stop 10"]


class TestCost:
    async def settled(self, fake: FakeEngine, count: int) -> list[str]:
        containers = [await run(fake, "x", environ(f"user{number}")) for number in range(count)]
        for container in containers:
            fake.containers[container].status = "Up 5 minutes"
        return containers

    async def test_details_are_read_once_while_nothing_changes(self, fake: FakeEngine, opened: Opened) -> None:
        containers = await self.settled(fake, 20)
        await run(fake, "postgres", {})
        await run(fake, "theirs", environ("ann", "", THEIRS))
        await fake.kill(containers[0])
        backends = opened(fake.socket)
        first = await backends.look([])
        assert len(fake.requests) == 1 + 22
        fake.requests.clear()
        assert await backends.look([]) == first
        assert fake.requests == ["GET /containers/json?all=1"]

    async def test_a_start_between_two_looks_is_another_run(self, fake: FakeEngine, opened: Opened) -> None:
        containers = await self.settled(fake, 3)
        backends = opened(fake.socket)
        before = await backends.look([])
        await fake.kill(containers[1])
        await fake.start(containers[1])
        fake.requests.clear()
        after = await backends.look([])
        assert [one.id == two.id for one, two in zip(before, after, strict=True)] == [True, False, True]
        assert len(fake.requests) == 2

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("Up 5 hours", "Up 30 minutes"),
            ("Up 20 seconds", "Up 20 seconds"),
            ("Up 5 minutes", "Up 5 minutes (healthy)"),
        ],
    )
    async def test_a_start_some_time_between_two_looks_is_another_run(
        self, before: str, after: str, fake: FakeEngine, opened: Opened
    ) -> None:
        container = await run(fake, "ann", environ("ann"))
        fake.containers[container].status = before
        backends = opened(fake.socket)
        (first,) = await backends.look([])
        await fake.kill(container)
        await fake.start(container)
        fake.containers[container].status = after
        (second,) = await backends.look([])
        assert first.id != second.id
        assert first.started != second.started

    async def test_what_has_stopped_is_asked_for_nothing_more(self, fake: FakeEngine, opened: Opened) -> None:
        container = await run(fake, "ann", environ("ann"))
        backends = opened(fake.socket, remove=True)
        (found,) = await backends.look([])
        await fake.kill(container)
        fake.requests.clear()
        await backends.end(found)
        assert fake.requests == [f"GET /containers/{container}/json"]

    async def test_what_is_gone_is_forgotten(self, fake: FakeEngine, opened: Opened) -> None:
        containers = await self.settled(fake, 3)
        backends = opened(fake.socket)
        await backends.look([])
        for container in containers[1:]:
            del fake.containers[container]
        assert len(await backends.look([])) == 1
        assert len(backends._seen) == 1

    async def test_so_many_details_are_read_at_once_and_no_more(self, fake: FakeEngine, opened: Opened) -> None:
        await self.settled(fake, 200)
        now, most = 0, 0

        async def count(request: web.Request) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

        fake.fault = count
        assert len(await opened(fake.socket).look([])) == 200
        assert 1 < most <= AT_ONCE


def answers(path: str, *given: web.Response | str) -> Callable[[web.Request], Awaitable[web.Response | None]]:
    """A fault: what matches ``path`` gets that answer, or with "hang" none."""

    async def fault(request: web.Request) -> web.Response | None:
        if not re.fullmatch(path, request.path):
            return None
        if given[0] == "hang":
            await asyncio.sleep(3600)
        assert isinstance(given[0], web.Response)
        return web.Response(status=given[0].status, body=given[0].body, content_type=given[0].content_type)

    return fault


LIST, PAGE, STOP = "/containers/json", "/containers/[^/]+/json", "/containers/[^/]+/stop"
FAILED = web.json_response({"message": "layer does not exist"}, status=500)
GARBAGE = [
    web.Response(text="<html>Welcome to nginx</html>", content_type="text/html"),
    web.Response(text=""),
    web.json_response(None),
    web.json_response(17),
    web.json_response({"message": "hello"}),
    web.json_response([[]]),
    web.json_response([{"Id": "../../info", "State": "running"}]),
    web.json_response([{"Id": "a" * 64, "State": 3}]),
    web.json_response([{"Id": "a" * 64}]),
    web.Response(text="[" * 100_000),
    web.json_response({"Config": {"Env": [f"JUPYTERHUB_API_TOKEN={TOKEN}"]}, "State": "x"}),
    web.json_response({"Config": {"Env": [f"JUPYTERHUB_API_TOKEN={TOKEN}", 3]}, "State": {}}),
    web.Response(text=f"JUPYTERHUB_API_TOKEN={TOKEN}"),
]


class TestFaults:
    @pytest.mark.parametrize("path", [LIST, PAGE])
    @pytest.mark.parametrize("garbage", GARBAGE)
    async def test_garbage_is_an_error_and_never_an_answer(
        self, path: str, garbage: web.Response, fake: FakeEngine, opened: Opened
    ) -> None:
        await run(fake, "ann", environ("ann"))
        fake.fault = answers(path, garbage)
        with pytest.raises(BackendError) as caught:
            await opened(fake.socket).look([Expected("ann", "")])
        assert TOKEN not in f"{caught.value} {caught.value.detail} {caught.value!r}"
        assert "Docker engine" in str(caught.value)

    @pytest.mark.parametrize("path", [LIST, PAGE])
    async def test_an_error_of_the_engine_is_told_in_its_own_words(
        self, path: str, fake: FakeEngine, opened: Opened
    ) -> None:
        await run(fake, "ann", environ("ann"))
        fake.fault = answers(path, FAILED)
        with pytest.raises(BackendError, match=r"500: layer does not exist"):
            await opened(fake.socket).look([])

    async def test_one_that_has_stopped_and_cannot_be_read_hides_no_other(
        self, fake: FakeEngine, opened: Opened
    ) -> None:
        broken = await run(fake, "broken", environ("broken"))
        await run(fake, "ann", environ("ann"))
        fake.containers[broken].state = "dead"
        fake.fault = answers(f"/containers/{broken}/json", FAILED)
        backends = opened(fake.socket)
        assert [backend.user for backend in await backends.look([])] == ["ann"]
        # What can't be read is read again: it wasn't taken for nobody's.
        fake.fault = None
        assert [backend.user for backend in await backends.look([])] == ["ann", "broken"]

    async def test_one_that_goes_while_they_are_read_is_left_out(self, fake: FakeEngine, opened: Opened) -> None:
        going = await run(fake, "going", environ("going"))
        await run(fake, "ann", environ("ann"))

        async def vanish(request: web.Request) -> None:
            if request.path != LIST:
                fake.containers.pop(going, None)

        fake.fault = vanish
        found = await opened(fake.socket).look([Expected("going", "")])
        assert living(found, "ann")
        # Its details may have been asked for first, and then it was still there.
        assert len(of(found, "going")) <= 1
        fake.fault = None
        assert not of(await opened(fake.socket).look([Expected("going", "")]), "going")

    @pytest.mark.parametrize("path", [LIST, PAGE])
    async def test_an_engine_that_hangs_is_given_up(self, path: str, fake: FakeEngine, opened: Opened) -> None:
        for number in range(3 * AT_ONCE):
            await run(fake, "x", environ(f"user{number}"))
        fake.fault = answers(path, "hang")
        with pytest.raises(BackendError, match="didn't answer within"):
            await opened(fake.socket, timeout_s=0.2).look([])
        # Those that waited for their turn aren't asked for any more.
        assert len(fake.requests) <= 1 + 2 * AT_ONCE
        assert not [task for task in asyncio.all_tasks() if "DockerBackends" in repr(task)]

    async def test_an_answer_too_large_is_not_read_to_its_end(
        self, fake: FakeEngine, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(docker, "LARGEST_ANSWER", 1000)
        for number in range(20):
            await run(fake, "x", environ(f"user{number}"))
        with pytest.raises(BackendError, match="larger than"):
            await opened(fake.socket).look([])

    async def test_a_stop_that_fails_is_told_and_nothing_is_removed(self, fake: FakeEngine, opened: Opened) -> None:
        container = await run(fake, "ann", environ("ann"))
        backends = opened(fake.socket, remove=True)
        (found,) = await backends.look([])
        fake.fault = answers(STOP, web.json_response({"message": "permission denied"}, status=500))
        with pytest.raises(BackendError, match="permission denied"):
            await backends.end(found)
        assert await runs(fake, container)

    async def test_a_removal_that_fails_leaves_it_ended(self, fake: FakeEngine, opened: Opened) -> None:
        container = await run(fake, "ann", environ("ann"))
        backends = opened(fake.socket, remove=True)
        (found,) = await backends.look([])

        async def fault(request: web.Request) -> web.Response | None:
            return web.json_response({"message": "busy"}, status=500) if request.method == "DELETE" else None

        fake.fault = fault
        await backends.end(found)
        assert not await runs(fake, container)

    async def test_its_environment_is_read_anew_before_it_is_ended(self, fake: FakeEngine, opened: Opened) -> None:
        container = await run(fake, "ann", environ("ann"))
        backends = opened(fake.socket)
        (found,) = await backends.look([])
        fake.containers[container].environ["JUPYTERHUB_API_URL"] = THEIRS
        with pytest.raises(BackendError, match="isn't proved"):
            await backends.end(found)
        assert await runs(fake, container)

    @pytest.mark.parametrize("odd", ["", "@", "../../info@x", "a" * 64 + "/kill?x=@1", "AA" * 32, "all"])
    async def test_an_id_that_is_none_asks_the_engine_nothing(self, odd: str, fake: FakeEngine, opened: Opened) -> None:
        with pytest.raises(BackendError):
            await opened(fake.socket).end(Backend("docker", odd, "ann", "", True, "container x", proof="so they say"))
        assert fake.requests == []


class TestReaching:
    @pytest.mark.parametrize(
        "host",
        [
            "ssh://me@there",
            "npipe:////./pipe/docker",
            "tcp://",
            "tcp://here:port",
            "tcp://[::1",
            "nonsense",
            "tcp://h:0x1",
        ],
    )
    async def test_an_address_that_cannot_be_used_is_told(self, host: str, opened: Opened) -> None:
        with pytest.raises(BackendError, match="DOCKER_HOST"):
            await opened(Place(OURS, environ={"DOCKER_HOST": host})).look([])

    async def test_a_socket_that_is_not_there_is_told(self, tmp_path: Path, opened: Opened) -> None:
        with pytest.raises(BackendError, match=r"none\.sock can't be reached"):
            await opened(str(tmp_path / "none.sock")).look([])

    async def test_without_an_address_it_is_the_usual_socket(self) -> None:
        assert repr(open_backends(Place(OURS))) == "<DockerBackends unix:///var/run/docker.sock>"

    async def test_an_engine_that_comes_back_is_used_again(
        self, tmp_path: Path, fake: FakeEngine, opened: Opened
    ) -> None:
        await run(fake, "ann", environ("ann"))
        relay = Relay(tmp_path, fake.socket)
        await relay.open()
        backends = opened(relay.socket)
        first = await backends.look([])
        await relay.cut()
        with pytest.raises(BackendError):
            await backends.look([])
        await relay.open()
        assert await backends.look([]) == first
        await relay.cut()

    async def test_it_speaks_over_tcp_too(self, fake: FakeEngine, opened: Opened) -> None:
        await run(fake, "ann", environ("ann"))
        port = await fake.listen()
        found = await opened(Place(OURS, environ={"DOCKER_HOST": f"tcp://127.0.0.1:{port}"})).look([])
        assert living(found, "ann").proof

    async def test_tls_takes_the_clients_certificate_and_checks_the_engines(
        self, tmp_path: Path, fake: FakeEngine, opened: Opened
    ) -> None:
        certificates = make_certificates(tmp_path)
        await run(fake, "ann", environ("ann"))
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        port = await fake.listen(server)
        host = {"DOCKER_HOST": f"tcp://127.0.0.1:{port}", "DOCKER_TLS_VERIFY": "1"}
        found = await opened(Place(OURS, environ={**host, "DOCKER_CERT_PATH": str(certificates)})).look([])
        assert living(found, "ann").proof
        with pytest.raises(BackendError, match="DOCKER_CERT_PATH"):
            await opened(Place(OURS, environ={**host, "DOCKER_CERT_PATH": str(tmp_path / "none")})).look([])
        others = str(make_certificates(tmp_path / "other"))
        with pytest.raises(BackendError, match="can't be reached"):
            await opened(Place(OURS, environ={**host, "DOCKER_CERT_PATH": others})).look([])

    async def test_a_swarm_is_not_read_as_if_it_were_one_engine(self, fake: FakeEngine, opened: Opened) -> None:
        spawner = ("dockerspawner.swarmspawner.SwarmSpawner", "dockerspawner.dockerspawner.DockerSpawner")
        swarm = Place(OURS, spawner=spawner, environ={"DOCKER_HOST": f"unix://{fake.socket}"})
        with pytest.raises(BackendError, match="HubGuardDrift.backend"):
            await opened(swarm).look([])
        assert fake.requests == []


@pytest.mark.long
async def test_what_dockerspawner_makes_is_found_proved_and_ended(
    dockerd: str, opened: Opened, testbed_hub: Callable[..., Awaitable[TestbedHub]]
) -> None:
    """Two real hubs on one engine, with the same users, and DockerSpawner itself."""
    python = dockerspawner_python()
    engine = RealEngine(dockerd)
    try:
        image, program = python_image()
        await engine.load("hubguard-test-python", image)
        hubs = []
        for prefix in ("left", "right"):
            await engine.network(f"{prefix}-net")
            config = f"""
c.JupyterHub.spawner_class = "docker"
c.JupyterHub.allow_named_servers = True
c.DockerSpawner.prefix = "{prefix}"
c.DockerSpawner.image = "hubguard-test-python"
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.cmd = ["{program}", "-m", "http.server", "8888"]
c.DockerSpawner.network_name = "{prefix}-net"
"""
            hubs.append(
                await testbed_hub(config=config, python=python, environment={"DOCKER_HOST": f"unix://{dockerd}"})
            )
            await hubs[-1].start_server("ann")
        left, right = hubs
        await left.start_server("ann", "named")
        await left.start_server("bob.x-y")
        at = {
            prefix: opened(dockerd, hub.api_url, network_name=f"{prefix}-net", prefix=prefix)
            for prefix, hub in (("left", left), ("right", right))
        }

        found = await at["left"].look([Expected("ann", "")])
        assert [backend.key for backend in found] == [("ann", ""), ("ann", "named"), ("bob.x-y", "")]
        assert all(backend.alive and backend.proof and backend.name.startswith("container left-") for backend in found)
        ann, named, bob = found
        (theirs,) = await at["right"].look([Expected("ann", "")])
        assert theirs.alive
        assert theirs.name == "container right-ann"
        with pytest.raises(BackendError, match="isn't proved"):
            await at["right"].end(bob)

        # What the hub stops is kept, and is the same container when it starts again, but another run.
        assert (await left.api("DELETE", "/users/ann/server")).status in (202, 204)
        await left.wait_for(lambda: _stopped(at["left"], "ann"), "the hub's own stop")
        await left.start_server("ann")
        again = living(await at["left"].look([]), "ann")
        assert again.id != ann.id
        assert again.id[:64] == ann.id[:64]
        with pytest.raises(BackendError, match="started again"):
            await at["left"].end(ann)

        await engine.kill(bob.id[:64])
        (dead,) = of(await at["left"].look([Expected("bob.x-y", "")]), "bob.x-y")
        assert dead.alive is False

        await at["left"].end(named)
        assert not await runs(engine, named.id[:64])
        assert await runs(engine, again.id[:64])
        assert await runs(engine, theirs.id[:64])
    finally:
        for prefix in ("left-", "right-"):
            await engine.adopt(prefix)
        await engine.close()


async def _stopped(backends: DockerBackends, user: str) -> bool:
    return not [backend for backend in of(await backends.look([]), user) if backend.alive]


def dockerspawner_python() -> str:
    """One that has JupyterHub and DockerSpawner: HUBGUARD_TEST_DOCKERSPAWNER_PYTHON, or the one that runs the other hubs."""
    python = os.environ.get("HUBGUARD_TEST_DOCKERSPAWNER_PYTHON") or HUB_PYTHON
    if subprocess.run([python, "-c", "import jupyterhub, dockerspawner"], capture_output=True, check=False).returncode:
        pytest.skip("dockerspawner isn't here; name a Python that has it in HUBGUARD_TEST_DOCKERSPAWNER_PYTHON")
    return python


def make_certificates(folder: Path) -> Path:
    """A folder with an authority of its own and one certificate for 127.0.0.1, for either side."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("making certificates takes openssl")
    where = folder / "certificates"
    where.mkdir(parents=True)
    (where / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    sign = [openssl, "x509", "-req", "-days", "2", "-out", "cert.pem"]
    new = [openssl, "req", "-newkey", "rsa:2048", "-nodes"]
    for command in (
        [*new, "-x509", "-subj", "/CN=ca", "-days", "2", "-keyout", "ca-key.pem", "-out", "ca.pem"],
        [*new, "-subj", "/CN=engine", "-keyout", "key.pem", "-out", "csr"],
        [*sign, "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "ext"],
    ):
        subprocess.run(command, cwd=where, check=True, capture_output=True)
    return where
