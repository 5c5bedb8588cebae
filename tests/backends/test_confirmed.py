"""That no server is called gone which answers at its target, whoever looks at what runs it; and that real deaths show."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from backend_checks import BackendChecks, World, living, of
from doubles.backends import MemoryBackends
from little_machine import ANOTHER_API, API, Machine, told

from hubguard.backends.confirmed import Confirmed
from hubguard.backends.http import HTTPBackends
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.backends.process import ProcessBackends
from hubguard.errors import BackendError
from hubguard.staging.processes import free_ports

pytestmark = pytest.mark.contract

ELSEWHERE = "http://192.0.2.1:8888"  # nobody's address (TEST-NET-1)

# A wrapper that starts a server and passes nothing on to it, as sudo and `docker run` do. Its first line is the child's pid.
WRAPPER = """
import os, subprocess, sys
from urllib.parse import urlsplit
port = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1], str(port)], env={})
print(child.pid, flush=True)
child.wait()
"""
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
    def log_message(self, *arguments):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


@pytest.fixture
async def http() -> AsyncIterator[HTTPBackends]:
    http = HTTPBackends(Place(API), every_time=True)
    yield http
    await http.close()


Serve = Callable[[int], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """``await serve(status)`` has that answered to everything, at the URL that comes back."""
    async with AsyncExitStack() as stack:

        async def start(status: int) -> str:
            async def answer(request: web.Request) -> web.Response:
                return web.Response(status=status, headers={"X-JupyterHub-Version": "6.1.1"})

            app = web.Application()
            app.router.add_route("*", "/{path:.*}", answer)
            return str((await stack.enter_async_context(TestServer(app))).make_url("")).rstrip("/")

        yield start


def closed() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class ConfirmedWorld(World):
    """The double's servers, which answer for as long as they run."""

    def __init__(self, *, whole: bool) -> None:
        self.inner = MemoryBackends(whole=whole)
        self.http = MemoryBackends(kind="http", whole=False)
        self.backends = Confirmed(self.inner, self.http)

    async def start(self, user: str, server: str = "") -> Expected:
        self.http.add(user, server, proved=False)
        return Expected(user, server, self.inner.add(user, server).started, closed())

    async def kill(self, user: str, server: str = "") -> None:
        self.inner.kill(user, server)
        self.http.kill(user, server)

    async def lives(self, user: str, server: str = "") -> bool:
        lives = self.inner.alive(user, server)
        if not lives:
            self.http.kill(user, server)  # one that was ended doesn't answer
        return lives

    async def start_elsewhere(self, user: str, server: str = "") -> Backend:
        return self.inner.add(user, server, elsewhere=True)

    async def lives_elsewhere(self, user: str, server: str = "") -> bool:
        return self.inner.alive(user, server, elsewhere=True)

    async def break_engine(self) -> None:
        self.inner.fault = lambda request: BackendError("The engine doesn't answer. Look whether it runs.")


class TestConfirmed(BackendChecks):
    @pytest.fixture(params=[True, False], ids=["whole", "expected-only"])
    def world(self, request: pytest.FixtureRequest) -> ConfirmedWorld:
        return ConfirmedWorld(whole=request.param)


# over the double


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("trace", ["", "exited with 137"])
async def test_what_seems_gone_and_answers_is_alive_and_can_not_be_ended(http, serve, whole: bool, trace: str) -> None:
    inner = MemoryBackends(whole=whole)
    inner.add("ann")
    inner.kill("ann", trace=trace)
    backends = Confirmed(inner, http)
    ann = Expected("ann", "", target=await serve(200), state={"pid": 4711})
    (found,) = await backends.look([ann])
    assert (found.key, found.kind, found.alive, found.proof) == (("ann", ""), "http", True, "")
    assert "it answers at its target, and no process of it is found" in found.detail
    assert trace in found.detail
    assert (backends.kind, backends.whole) == ("process", whole)
    with pytest.raises(BackendError, match="can't be ended"):
        await backends.end(replace(found, proof="believe me"))
    assert (await backends.look([ann]))[0].alive


@pytest.mark.parametrize("whole", [True, False])
async def test_what_seems_gone_is_asked_at_each_look_and_no_earlier_answer_counts(http, whole: bool) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    backends = Confirmed(MemoryBackends(whole=whole), http)
    async with TestServer(app) as server:
        ann = Expected("ann", "", target=str(server.make_url("")))
        assert living(await backends.look([ann]), "ann")
    assert all(one.alive is False for one in await backends.look([ann]))


@pytest.mark.parametrize("status", [500, 503])
async def test_what_answers_with_trouble_or_can_not_be_reached_is_neither_alive_nor_gone(http, serve, status) -> None:
    expected = [
        Expected("ann", "", target=await serve(status)),
        Expected("bob", "", target=None),
        Expected("cat", "", target="nonsense"),
        Expected("dan", "", target=None, state={}),
        # Its state names another kind's, which nobody has looked up.
        Expected("eve", "", target=None, state={"pod_name": "jupyter-eve"}),
    ]
    inner = MemoryBackends()
    inner.add("somebody")
    found = await Confirmed(inner, http).look(expected)
    assert [(one.user, one.alive) for one in found if one.user != "somebody"] == [
        (user, None) for user in ("ann", "bob", "cat", "dan", "eve")
    ]


async def test_where_it_can_not_be_asked_the_hubs_own_word_for_it_is_evidence_once_others_were_seen(http) -> None:
    ann = Expected("ann", "", target=None, state={"pid": 4711})
    inner = MemoryBackends()
    backends = Confirmed(inner, http)
    assert [one.alive for one in await backends.look([ann])] == [None]
    inner.add("bob")
    assert of(await backends.look([ann]), "ann") == []
    inner.kill("bob")
    assert await backends.look([ann]) == ()


async def test_where_it_can_not_be_asked_one_of_this_hub_that_has_ended_is_evidence(http) -> None:
    inner = MemoryBackends()
    inner.add("ann", proved=False)
    inner.kill("ann", trace="exited with 137")
    backends = Confirmed(inner, http)
    ann = Expected("ann", "", target=None)
    assert [one.alive for one in await backends.look([ann])] == [None]
    inner.add("ann")
    inner.kill("ann", trace="exited with 137")
    assert {one.alive for one in await backends.look([ann])} == {False}


async def test_who_refuses_off_this_machine_is_gone_only_once_any_has_answered(monkeypatch, http) -> None:
    asked: list[str] = []

    async def get(url: str) -> tuple[int, bool]:
        asked.append(url)
        if url.startswith(ELSEWHERE):
            raise ConnectionRefusedError
        return 200, True

    monkeypatch.setattr(http, "_get", get)
    inner = MemoryBackends()
    backends = Confirmed(inner, http)
    ann = Expected("ann", "", target=ELSEWHERE)
    assert [one.alive for one in await backends.look([ann])] == [None]
    inner.add("bob")
    bob = Expected("bob", "", target="http://192.0.2.2:8888")
    await backends.look([ann, bob])
    assert of(await backends.look([ann, bob]), "ann") == []
    # Those that are seen to run cost one request at most, and none where nothing seems gone.
    inner.add("ann")
    count = len(asked)
    await backends.look([ann, bob])
    assert len(asked) == count


async def test_what_runs_or_can_not_be_told_stays_as_it_was_seen(http, serve) -> None:
    inner = MemoryBackends()
    inner.add("ann")
    inner.add("bob", alive=None)
    inner.add("orphan")
    target = await serve(200)
    expected = [Expected("ann", "", target=target), Expected("bob", "", target=target)]
    assert await Confirmed(inner, http).look(expected) == await inner.look(expected)


# over real processes


async def test_a_server_behind_a_wrapper_that_passes_nothing_on_is_alive_until_it_really_dies(machine, http) -> None:
    await machine.start("somebody")
    (port,) = free_ports(1)
    wrapper = subprocess.Popen(
        [sys.executable, "-S", "-c", WRAPPER, SERVER], env=told("ann", port=port), stdout=subprocess.PIPE
    )
    child = int(wrapper.stdout.readline())
    ann = Expected("ann", "", target=f"http://127.0.0.1:{port}")
    inner = ProcessBackends(Place(API))
    backends = Confirmed(inner, http)
    try:
        for _ in range(100):
            if any(one.alive for one in of(await backends.look([ann]), "ann")):
                break
            await asyncio.sleep(0.1)
        assert not any(one.alive for one in of(await inner.look([ann]), "ann")), "it is recognised, and shows nothing"
        backend = living(await backends.look([ann]), "ann")
        assert backend.kind == "http"
        with pytest.raises(BackendError):
            await backends.end(backend)
        assert backends.whole
    finally:
        subprocess.run(["kill", "-9", str(child)], check=True)
        wrapper.wait()
        wrapper.stdout.close()
    assert not any(one.alive is not False for one in of(await backends.look([ann]), "ann"))


async def test_servers_that_outlive_a_change_of_the_hubs_url_are_alive_until_they_really_die(machine, http) -> None:
    before = await machine.start("ann", api_url=ANOTHER_API)
    ann = replace(before, state=None)
    backends = Confirmed(ProcessBackends(Place(API)), http)
    # None of its own is seen yet, and so nothing is said to be gone.
    assert [one.alive for one in await backends.look([ann])] == [None]
    await machine.start("new")
    assert living(await backends.look([ann]), "ann").kind == "http"
    assert not of(await backends.look([]), "ann")
    for _, process in machine.of("ann", api_url=ANOTHER_API):
        process.kill()
        process.wait()
    assert [one.alive for one in of(await backends.look([ann]), "ann")] == [False]


async def test_hubguard_and_other_services_do_not_show_that_the_servers_are_here() -> None:
    service = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(600)"],
        env={**told("root"), "JUPYTERHUB_SERVICE_NAME": "hubguard"},
        stdout=subprocess.PIPE,
    )
    try:
        service.stdout.readline()
        backends = ProcessBackends(Place(API))
        (found,) = await backends.look([Expected("ann", "", target=closed())])
        assert found.alive is None
        assert not backends.whole
    finally:
        service.kill()
        service.wait()
        service.stdout.close()
