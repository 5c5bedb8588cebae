"""What an answer at a server's target says, and what asking costs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from virtual_time import VirtualClock

from hubguard.backends import http
from hubguard.backends.http import HTTPBackends
from hubguard.backends.model import Backend
from hubguard.backends.port import Expected, Place
from hubguard.errors import BackendError
from hubguard.staging.hub import TestbedHub

AT_ONCE = 10
FINE_S = 120.0
LOOK_S = 20.0
PATIENCE_S = 3.0
PER_S = 50.0

pytestmark = [pytest.mark.contract, pytest.mark.any_hub]

PLACE = Place("http://127.0.0.1:8081/hub/api")
Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """``await serve(handler)`` has that answer everything, at the URL that comes back."""
    async with AsyncExitStack() as stack:

        async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            server = await stack.enter_async_context(TestServer(app))
            return str(server.make_url("")).rstrip("/")

        yield start


@pytest.fixture
async def backends() -> AsyncIterator[HTTPBackends]:
    backends = HTTPBackends(PLACE)
    yield backends
    await backends.close()


def answering(status: int, headers: dict[str, str] | None = None):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    return answer


async def told(backends: HTTPBackends, target: str | None, user: str = "ann", server: str = "") -> Backend:
    (backend,) = await backends.look([Expected(user, server, target=target)])
    return backend


async def reach(backends: HTTPBackends, serve: Serve) -> None:
    """Have one server answer, so that another's refusing means something."""
    assert (await told(backends, await serve(answering(200)), "somebody")).alive


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# what answers say


@pytest.mark.parametrize("status", [200, 204, 302, 401, 403, 405, 429])
async def test_whatever_answers_below_its_prefix_is_alive(backends, serve, status) -> None:
    assert (await told(backends, await serve(answering(status)))).alive is True


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_server_in_trouble_is_not_told_to_be_dead(backends, serve, status) -> None:
    backend = await told(backends, await serve(answering(status)))
    assert backend.alive is None
    assert str(status) in backend.detail


async def test_another_users_server_there_is_not_this_one(backends, serve) -> None:
    async def bobs(request: web.Request) -> web.Response:
        """As Jupyter's: what isn't below its own prefix isn't found; the user's default server redirects a bare name."""
        headers = {"X-JupyterHub-Version": "6.1.1"}
        if request.path.startswith("/user/bob/api"):
            return web.Response(headers=headers)
        return web.Response(status=302 if request.path == "/user/bob/named/" else 404, headers=headers)

    target = await serve(bobs)
    assert (await told(backends, target, "bob")).alive is True
    for user, server in (("ann", ""), ("bob", "named"), ("bo", "b")):
        backend = await told(backends, target, user, server)
        assert backend.alive is False, backend
        assert "another server" in backend.detail


async def test_one_that_has_no_api_but_a_page_is_alive(backends, serve) -> None:
    async def no_jupyter(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.path == "/user/ann/" else 404)

    assert (await told(backends, await serve(no_jupyter))).alive is True


async def test_nobody_listening_is_dead_once_any_server_has_answered_and_unknown_before(backends, serve) -> None:
    target = f"http://127.0.0.1:{closed_port()}"
    before = await told(backends, target)
    assert before.alive is None
    assert "may not reach" in before.detail
    await reach(backends, serve)
    after = await told(backends, target)
    assert after.alive is False
    assert "nobody listens" in after.detail


async def test_a_connection_that_is_closed_without_an_answer_is_dead(backends, serve) -> None:
    await reach(backends, serve)

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert (await told(backends, f"http://127.0.0.1:{port}")).alive is False
        # Servers of a hub with internal_ssl close on anybody without the hub's certificate.
        assert (await told(backends, f"https://127.0.0.1:{port}")).alive is None


async def test_one_that_takes_the_connection_and_says_nothing_is_unknown(backends, serve, monkeypatch) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 0.2)
    await reach(backends, serve)
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        backend = await told(backends, f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert backend.alive is None
    assert "hangs" in backend.detail


async def test_one_that_never_stops_talking_costs_no_more_than_its_head(backends, serve, monkeypatch) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    assert (await told(backends, await serve(endless))).alive is True


@pytest.mark.parametrize(
    "target",
    [None, "", "nonsense", "http://", "http+unix://%2Ftmp%2Fsock", "ftp://x", "http://a b", "http://127.0.0.1:99999"],
)
async def test_what_cannot_be_asked_is_unknown_and_no_error(backends, serve, target) -> None:
    await reach(backends, serve)
    assert (await told(backends, target)).alive is None


async def test_nothing_is_sent_along_and_no_redirect_is_followed(backends, serve) -> None:
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(status=302, headers={"Location": "/elsewhere", "Set-Cookie": "a=b; Path=/"})

    target = await serve(answer)
    for user, server in (("ann", ""), ("ann", "named"), ("x/y %41@ü", "a b")):
        assert (await told(backends, target, user, server)).alive is True
    assert [request.raw_path for request in asked] == [
        "/user/ann/api",
        "/user/ann/named/api",
        "/user/x%2Fy%20%2541@%C3%BC/a%20b/api",
    ]
    for request in asked:
        assert request.method == "GET"
        assert set(request.headers) <= {"Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"}


async def test_a_hub_below_a_prefix_has_its_servers_there(serve) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    backends = HTTPBackends(Place("http://127.0.0.1:8081/a/b/hub/api", base_url="/a/b/"))
    await told(backends, await serve(answer) + "/")
    await backends.close()
    assert asked == ["/a/b/user/ann/api"]


async def test_another_run_or_target_has_another_id_and_is_asked_anew(backends, serve) -> None:
    target = await serve(answering(200))
    now = datetime.now(timezone.utc)
    one = Expected("ann", "", now, target)
    (before,) = await backends.look([one])
    (same,) = await backends.look([one])
    assert same == before
    for changed in (replace(one, started=now + timedelta(seconds=1)), replace(one, target=await serve(answering(500)))):
        (after,) = await backends.look([changed])
        assert after.id != before.id
    assert after.alive is None


async def test_it_ends_nothing_and_says_what_to_do(backends, serve) -> None:
    backend = await told(backends, await serve(answering(200)))
    with pytest.raises(BackendError, match=r"HubGuardDrift\.backend"):
        await backends.end(replace(backend, proof="believe me"))


# what asking costs


class Asked:
    """Stands in for the network: what was asked, when, and how many at once. ``takes_s`` and ``status`` are by user."""

    def __init__(self, clock: VirtualClock, backends: HTTPBackends, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.asked: list[tuple[float, str]] = []
        self.at_once = self.most_at_once = 0
        self.takes_s: dict[str, float] = {}
        self.status: dict[str, int] = {}
        self.slow_s = 0.0
        monkeypatch.setattr(backends, "_get", self.get)

    async def get(self, url: str) -> tuple[int, bool]:
        user = url.split("/user/")[1].split("/", maxsplit=1)[0]
        self.asked.append((self.clock.monotonic_s(), user))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.clock.sleep(min(self.slow_s, PATIENCE_S))
        finally:
            self.at_once -= 1
        if self.slow_s >= PATIENCE_S:
            raise asyncio.TimeoutError
        return self.status.get(user, 200), True

    def since(self, count: int) -> list[str]:
        return [user for _, user in self.asked[count:]]


def users(count: int) -> list[Expected]:
    return [Expected(f"u{number:04d}", "", target="http://127.0.0.1:9") for number in range(count)]


async def test_many_are_asked_few_at_once_and_at_an_even_pace(monkeypatch) -> None:
    clock = VirtualClock()
    backends = HTTPBackends(PLACE, clock=clock, jitter=lambda: 0.5)
    asked = Asked(clock, backends, monkeypatch)
    asked.slow_s = 0.1
    found = await clock.run(backends.look(users(800)))
    assert all(backend.alive for backend in found)
    assert len(asked.asked) == 800
    assert asked.most_at_once <= AT_ONCE
    times = [at_s for at_s, _ in asked.asked]
    for first, at_s in enumerate(times):
        within = sum(1 for later in times[first:] if later < at_s + 1.0 - 1e-6)
        assert within <= PER_S + AT_ONCE, f"{within} within a second from {at_s}"


@pytest.mark.parametrize(
    ("count", "after_s"), [(20, 2.0), (300, 30.0), pytest.param(1300, FINE_S, marks=pytest.mark.long)]
)
async def test_the_more_servers_the_longer_those_that_were_fine_are_left_alone(monkeypatch, count, after_s) -> None:
    clock = VirtualClock()
    backends = HTTPBackends(PLACE, clock=clock, jitter=lambda: 0.5)
    asked = Asked(clock, backends, monkeypatch)
    asked.status = {"u0001": 503}
    expected = users(count)
    for _ in range(4):
        await clock.run(backends.look(expected))
    assert len({user for _, user in asked.asked}) == count
    first = {user: at_s for at_s, user in reversed(asked.asked)}
    while clock.monotonic_s() < 2.5 * FINE_S:
        await clock.run(clock.sleep(5.0))
        await clock.run(backends.look(expected))
    again = {}
    for at_s, user in asked.asked:
        if at_s > first[user]:
            again.setdefault(user, at_s - first[user])
    assert len(again) == count
    assert all(wait_s >= 0.99 * after_s for user, wait_s in again.items() if user != "u0001")
    assert sum(user == "u0001" for _, user in asked.asked) > 10


async def test_what_counts_any_request_as_use_is_sent_none_once_it_is_no_longer_young(serve) -> None:
    requests: list[str] = []

    async def any_use(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response()

    target = await serve(any_use)
    now = datetime.now(timezone.utc)
    for every_time, most in ((False, 0), (True, 1)):
        backends = HTTPBackends(PLACE, every_time=every_time)
        requests.clear()
        old = Expected("ann", "", started=now - timedelta(hours=3), target=target)
        for _ in range(5):
            (backend,) = await backends.look([old])
            assert backend.alive is True
        assert len(requests) == most
        await backends.close()


async def test_jupyters_servers_are_sent_requests_since_they_do_not_count_them(serve) -> None:
    requests: list[str] = []

    async def jupyter(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(headers={"X-JupyterHub-Version": "6.1.1"})

    target = await serve(jupyter)
    backends = HTTPBackends(PLACE, every_time=True)
    old = Expected("ann", "", started=datetime.now(timezone.utc) - timedelta(hours=3), target=target)
    for _ in range(3):
        await backends.look([old])
    assert requests == ["/user/ann/api"] * 3
    await backends.close()


async def test_an_old_server_is_dead_when_nobody_takes_its_connections(serve) -> None:
    backends = HTTPBackends(PLACE)
    old = datetime.now(timezone.utc) - timedelta(hours=3)
    alive = Expected("bob", "", started=old, target=await serve(answering(200)))
    dead = Expected("ann", "", started=old, target=f"http://127.0.0.1:{closed_port()}")
    await backends.look([alive])
    assert [backend.alive for backend in await backends.look([alive, dead])] == [False, True]
    await backends.close()


async def test_a_server_that_answered_well_and_now_does_not_know_its_prefix_is_unknown_not_dead(serve) -> None:
    status = 200

    async def server(request: web.Request) -> web.Response:
        return web.Response(status=status)

    backends = HTTPBackends(PLACE)
    target = await serve(server)
    assert (await told(backends, target)).alive is True
    status = 404
    await asyncio.sleep(0.2)
    assert (await told(backends, target)).alive is None
    await backends.close()


async def test_a_look_ends_in_time_however_many_hang_and_all_get_their_turn(monkeypatch) -> None:
    clock = VirtualClock()
    backends = HTTPBackends(PLACE, clock=clock, jitter=lambda: 0.5)
    asked = Asked(clock, backends, monkeypatch)
    asked.slow_s = PATIENCE_S
    expected = users(200)
    began_s = clock.monotonic_s()
    found = await clock.run(backends.look(expected))
    assert clock.monotonic_s() - began_s <= LOOK_S + PATIENCE_S + 0.1
    assert len(found) == 200
    assert {backend.alive for backend in found} == {None}
    assert any("asked in the next" in backend.detail for backend in found)
    for _ in range(3):
        await clock.run(backends.look(expected))
    assert {user for _, user in asked.asked} == {one.user for one in expected}


async def test_what_was_told_long_ago_is_not_told_again(monkeypatch) -> None:
    clock = VirtualClock()
    backends = HTTPBackends(PLACE, clock=clock, jitter=lambda: 0.5)
    asked = Asked(clock, backends, monkeypatch)
    fine = Expected("fine", "", target="http://127.0.0.1:9")
    (backend,) = await clock.run(backends.look([fine]))
    assert backend.alive
    asked.slow_s = PATIENCE_S
    await clock.run(clock.sleep(0.7 * FINE_S))
    # It is fine by what it said last, while others that hang take all the time there is.
    assert next(one for one in await clock.run(backends.look([fine, *users(400)])) if one.user == "fine").alive
    await clock.run(clock.sleep(2 * FINE_S))
    answer = next(one for one in await clock.run(backends.look([fine, *users(400)])) if one.user == "fine")
    assert answer.alive is None


async def test_what_is_expected_no_more_is_forgotten(monkeypatch) -> None:
    clock = VirtualClock()
    backends = HTTPBackends(PLACE, clock=clock, jitter=lambda: 0.5)
    asked = Asked(clock, backends, monkeypatch)
    for one in users(3):
        await clock.run(backends.look([one]))
    await clock.run(backends.look(users(1)))
    assert [user for _, user in asked.asked] == ["u0000", "u0001", "u0002", "u0000"]


# the real thing


@pytest.mark.long
async def test_a_real_single_user_server_knows_its_own_prefix_and_no_other(backends, testbed_hub, tmp_path) -> None:
    command = os.environ.get("HUBGUARD_TEST_SINGLEUSER")
    if command is None and importlib.util.find_spec("jupyter_server") is None:
        pytest.skip("jupyter_server isn't here; name a jupyterhub-singleuser that has it in HUBGUARD_TEST_SINGLEUSER")
    hub: TestbedHub = await testbed_hub(
        config=f"""
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {str(tmp_path / "{username}")!r}
c.Spawner.cmd = [{command or "jupyterhub-singleuser"!r}]
c.Spawner.args = ["--allow-root"]
c.Spawner.start_timeout = 60
c.Spawner.http_timeout = 60
"""
    )
    await hub.start_server("ann")
    server = await hub.server("ann")
    environment = Path(f"/proc/{server['state']['pid']}/environ").read_text().split("\0")
    url = next(line.partition("=")[2] for line in environment if line.startswith("JUPYTERHUB_SERVICE_URL="))
    target = url.removesuffix("/user/ann/")
    assert (await told(backends, target)).alive is True
    for user, name in (("bob", ""), ("ann", "named")):
        backend = await told(backends, target, user, name)
        assert backend.alive is False
        assert "another server" in backend.detail
    os.kill(server["state"]["pid"], signal.SIGKILL)

    async def dead() -> bool:
        backend = await told(backends, target, "ann", "")
        await backends.look([])  # forget it, so that it is asked again
        return backend.alive is False

    await hub.wait_for(dead, "it to be told to be dead")
