from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import LocalProcessSpawner
from traitlets.config import Config

from hubguard.inhub import stop_hook
from hubguard.inhub.stop_hook import watch_stops

pytestmark = pytest.mark.hub


class Page:
    """What HubGuard's page was told. Where it ``hangs``, it takes requests and never answers."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.asked: list[tuple[str, str, dict[str, Any]]] = []  # (request line, token, JSON)
        self.came = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = json.loads(await reader.readexactly(int(headers["Content-Length"])))
            self.asked.append((head.split("\r\n")[0], headers["Authorization"], body))
            self.came.set()
            if self.hangs:
                await reader.read()
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def page(**how: bool) -> AsyncIterator[Page]:
    made = Page(**how)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


def hub(url: str, kind: type) -> Any:
    service = SimpleNamespace(url=url, prefix="/a%20b/services/hubguard/", api_token="the-token")
    return SimpleNamespace(spawner_class=kind, _service_map={"hubguard": service})


def spawners(poll: Callable[[Any], Any]) -> type:
    """A class of spawners that poll so."""

    class OurSpawner(LocalProcessSpawner):
        polls = 0

        def poll(self) -> Any:
            type(self).polls += 1
            return poll(self)

    return OurSpawner


def running(kind: type, config: Config | None = None) -> Any:
    spawner = kind(config=config or Config())
    spawner.user = SimpleNamespace(name="käthe")
    spawner.orm_spawner = SimpleNamespace(name="gpu", server=None, server_id=None)
    return spawner


async def alive(spawner: Any) -> None:
    return None


async def gone(spawner: Any) -> int:
    return 0


async def stopped(spawner: Any) -> Any:
    """As the hub runs the hook."""
    return await spawner.run_post_stop_hook()


async def silence(told: Page) -> None:
    """Return when whatever was to be told has come."""
    await asyncio.sleep(0.1)
    assert told.asked == []


async def test_a_backend_that_outlives_its_stop_is_told_with_the_services_token():
    kind = spawners(alive)
    async with page() as told:
        watch_stops(hub(told.url, kind))
        await stopped(running(kind))
        await told.came.wait()
    ((line, authorization, body),) = told.asked
    assert line == "POST /a%20b/services/hubguard/api/v1/outlived HTTP/1.1"
    assert authorization == "token the-token"
    assert body == {"user": "käthe", "server": "gpu", "detail": "OurSpawner.poll() still found it after the stop"}


async def test_a_backend_that_is_gone_is_not_told_of():
    kind = spawners(gone)
    async with page() as told:
        watch_stops(hub(told.url, kind))
        await stopped(running(kind))
        await silence(told)
    assert kind.polls == 1


async def raises_later(spawner: Any) -> None:
    raise RuntimeError("docker is down")


def raises(spawner: Any) -> None:
    raise RuntimeError("docker is down")


def in_a_thread(spawner: Any) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: 0)


@pytest.mark.parametrize("poll", [raises_later, raises, lambda spawner: None, lambda spawner: 0, in_a_thread])
async def test_a_poll_that_raises_or_answers_at_once_does_no_harm(poll: Callable[[Any], Any]):
    kind = spawners(poll)
    watch_stops(hub("http://127.0.0.1:9", kind))
    await stopped(running(kind))
    assert kind.polls == 1


async def test_a_poll_that_hangs_and_minds_no_cancelling_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stop_hook, "POLL_S", 0.05)
    over, cancelled = asyncio.Event(), asyncio.Event()

    async def stubborn(spawner: Any) -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                cancelled.set()
        raise RuntimeError("nobody waits for this")

    kind = spawners(stubborn)
    async with page() as told:
        watch_stops(hub(told.url, kind))
        await stopped(running(kind))
        await cancelled.wait()
        over.set()
        await silence(told)
    gc.collect()  # an error that nobody has seen would be logged now


async def test_a_page_that_hangs_holds_up_no_stop():
    kind = spawners(alive)
    async with page(hangs=True) as told:
        watch_stops(hub(told.url, kind))
        for _ in range(50):
            await stopped(running(kind))
        assert len(told.asked) < 50
        await told.came.wait()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "", "nonsense", "ftp://127.0.0.1:9", None])
async def test_a_page_that_isnt_there_does_no_harm(url: Any):
    kind = spawners(alive)
    watch_stops(hub(url, kind))
    await stopped(running(kind))
    await asyncio.sleep(0.05)


async def test_a_hub_that_has_lost_our_service_does_no_harm():
    kind = spawners(alive)
    app = hub("http://127.0.0.1:9", kind)
    watch_stops(app)
    app._service_map.clear()
    await stopped(running(kind))
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("section", ["Spawner", "LocalProcessSpawner", "OurSpawner"])
async def test_a_hook_of_theirs_runs_first_and_once_and_what_it_removes_is_not_told_of(section: str):
    removed = []

    async def remove(spawner: Any) -> str:
        await asyncio.sleep(0)
        removed.append(spawner)
        return "removed"

    async def poll(spawner: Any) -> int | None:
        return 0 if removed else None

    kind = spawners(poll)
    spawner = running(kind, Config({section: {"post_stop_hook": remove}}))
    async with page() as told:
        watch_stops(hub(told.url, kind))
        assert await stopped(spawner) == "removed"
        await silence(told)
    assert removed == [spawner]
    assert kind.polls == 1


@pytest.mark.parametrize("make", [lambda: "done", lambda: asyncio.sleep(0, "done"), lambda: in_a_thread(None)])
async def test_a_hook_of_theirs_may_be_of_any_kind_that_the_hub_takes(make: Callable[[], Any]):
    kind = spawners(gone)
    watch_stops(hub("http://127.0.0.1:9", kind))
    assert await stopped(running(kind, Config({"Spawner": {"post_stop_hook": lambda spawner: make()}}))) in {"done", 0}
    assert kind.polls == 1


async def test_a_hook_of_one_server_that_was_there_before_runs_too():
    ran = []
    kind = spawners(alive)
    spawner = running(kind)
    spawner.post_stop_hook = ran.append
    async with page() as told:
        watch_stops(hub(told.url, kind))
        await stopped(spawner)
        await told.came.wait()
    assert ran == [spawner]


async def test_a_hook_of_theirs_that_fails_fails_as_ever_and_the_backend_is_told_of_all_the_same():
    async def fail(spawner: Any) -> None:
        raise RuntimeError("theirs")

    kind = spawners(alive)
    async with page() as told:
        watch_stops(hub(told.url, kind))
        with pytest.raises(RuntimeError, match="theirs"):
            await stopped(running(kind, Config({"Spawner": {"post_stop_hook": fail}})))
        await told.came.wait()


async def test_a_hub_that_starts_the_process_again_looks_once_all_the_same():
    kind = spawners(alive)
    async with page() as told:
        app = hub(told.url, kind)
        for _ in range(3):
            watch_stops(app)
        await stopped(running(kind))
        await told.came.wait()
        await asyncio.sleep(0.05)
    assert kind.polls == len(told.asked) == 1


async def test_another_hub_in_the_same_process_looks_in_place_of_the_first():
    kind = spawners(alive)
    async with page() as first, page() as second:
        watch_stops(hub(first.url, kind))
        watch_stops(hub(second.url, kind))
        await stopped(running(kind))
        await second.came.wait()
        await silence(first)
    assert kind.polls == 1


async def test_classes_that_are_not_the_hubs_are_left_alone():
    """The hub's managed services, among others, are run by such a class."""
    kind = spawners(alive)
    watch_stops(hub("http://127.0.0.1:9", kind))
    assert not hasattr(LocalProcessSpawner.run_post_stop_hook, "watch")


def test_the_process_and_the_commands_load_no_hub_by_it():
    loaded = "import sys, hubguard.inhub; sys.exit(any(name.startswith('jupyterhub.') and name != 'jupyterhub._version'"
    loaded += " for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
