"""One suite over the canary in memory and the real one, at both real proxies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from doubles.proxy import MemoryCanary, MemoryProxy
from real_proxy import COMMANDS, TOKEN, RealProxy

from hubguard.errors import BudgetExhausted, ConfigError
from hubguard.pacing.budget import Budget, Destination
from hubguard.proxy.canary import Canary, HTTPCanary
from hubguard.proxy.client import HTTPProxyAPI
from hubguard.proxy.decide import Verdict
from hubguard.proxy.model import PREFIX

pytestmark = pytest.mark.contract


def plenty(**more) -> Budget:
    return Budget(**{"rate": 1000.0, "burst": 1000, "concurrency": 10, **more})


class World:
    def __init__(self, canary: Canary, budget: Budget, memory: MemoryProxy | None, real: RealProxy | None) -> None:
        self.canary = canary
        self.budget = budget
        self.memory = memory
        self.real = real

    async def kill(self) -> None:
        if self.memory is not None:
            self.memory.kill()
        else:
            await self.real.kill()

    async def start(self) -> None:
        if self.memory is not None:
            self.memory.start()
        else:
            await self.real.start()

    def freeze(self) -> None:
        if self.memory is not None:
            self.memory.hangs = True
        else:
            self.real.freeze()

    def thaw(self) -> None:
        if self.memory is not None:
            self.memory.hangs = False
        else:
            self.real.thaw()

    async def take_away(self, path: str) -> None:
        if self.memory is not None:
            self.memory.remove(path)
        else:
            await self.real.take_away(path)

    async def have_another(self, path: str) -> None:
        if self.memory is not None:
            self.memory.add(path, "http://127.0.0.1:1")
        else:
            await self.real.have_another(path)

    async def table(self):
        if self.memory is not None:
            return dict(self.memory.table)
        async with HTTPProxyAPI(self.real.api_url, TOKEN, plenty()) as proxy:
            return await proxy.routes()


@pytest.fixture(params=["memory", *COMMANDS])
async def world(request) -> AsyncIterator[World]:
    budget = plenty(breaker_failures=1000)
    if request.param == "memory":
        proxy = MemoryProxy()
        canary = MemoryCanary(proxy, name="one", budget=budget)
        canary.timeout_s = 0.3
        yield World(canary, budget, proxy, None)
        return
    real = RealProxy(COMMANDS[request.param]())
    try:
        await real.start()
        http = HTTPCanary(real.api_url, TOKEN, budget, name="one", public_url=real.url, timeout_s=3.0)
        yield World(http, budget, None, real)
        await http.remove()
    finally:
        real.thaw()
        await real.kill()


async def soon(awaitable) -> None:
    await asyncio.wait_for(awaitable, 20)


async def test_before_it_is_planted_it_is_missing_and_then_it_is_there(world):
    assert (await world.canary.check()).verdict is Verdict.MISSING
    assert (await world.canary.plant()).verdict is Verdict.THERE
    for _ in range(3):
        assert (await world.canary.check()).verdict is Verdict.THERE


async def test_its_route_is_no_servers_and_stands_where_it_says(world):
    await world.canary.plant()
    table = await world.table()
    assert world.canary.path == PREFIX + "one"
    assert table[world.canary.path].key is None
    assert len(table) == 1


async def test_one_that_was_taken_away_is_missing_until_it_is_planted_again(world):
    await world.canary.plant()
    await world.take_away(world.canary.path)
    assert (await world.canary.check()).verdict is Verdict.MISSING
    assert (await world.canary.plant()).verdict is Verdict.THERE
    assert (await world.canary.check()).verdict is Verdict.THERE


async def test_one_of_somebody_elses_in_its_place_is_not_taken_for_it(world):
    await world.canary.plant()
    await world.have_another(world.canary.path)
    assert (await world.canary.check()).verdict is Verdict.MISSING


async def test_the_end_of_the_proxy_is_told_while_nobody_asks(world):
    await world.canary.plant()
    ended = asyncio.ensure_future(world.canary.broken())
    await asyncio.sleep(0.05)
    assert not ended.done()
    await world.kill()
    await soon(ended)
    seen = await world.canary.check()
    assert (seen.verdict, seen.detail) == (Verdict.NO_ANSWER, "connection refused")
    assert not await world.canary.listens()


async def test_a_proxy_that_was_restarted_has_lost_it_and_the_new_connection_is_told(world):
    await world.canary.plant()
    assert not (await world.canary.check()).fresh
    await world.kill()
    await world.start()
    assert await world.canary.listens()
    seen = await world.canary.check()
    assert (seen.verdict, seen.fresh) == (Verdict.MISSING, True)
    assert not (await world.canary.check()).fresh
    assert (await world.canary.plant()).verdict is Verdict.THERE


async def test_waiting_for_its_end_may_be_given_up_and_begun_again(world):
    await world.canary.plant()
    for _ in range(3):
        waiting = asyncio.ensure_future(world.canary.broken())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await world.canary.check()).verdict is Verdict.THERE
    ended = asyncio.ensure_future(world.canary.broken())
    await world.kill()
    await soon(ended)


@pytest.mark.long
async def test_a_proxy_that_hangs_is_told_from_one_that_is_gone(world):
    await world.canary.plant()
    world.freeze()
    seen = await world.canary.check()
    assert seen.verdict is Verdict.TIMEOUT
    assert "no answer within" in seen.detail
    assert await world.canary.listens()
    assert await world.canary.public() is False
    world.thaw()
    assert (await world.canary.check()).verdict is Verdict.THERE


async def test_the_public_port_is_asked_and_a_missing_route_is_no_matter(world):
    assert await world.canary.public() is True
    await world.kill()
    assert await world.canary.public() is False


async def test_its_public_port_is_recognised_by_the_canary(world):
    assert (await world.canary.plant()).verdict is Verdict.THERE
    for _ in range(3):
        assert await world.canary.public() is True


@pytest.fixture
async def foreign() -> AsyncIterator[TestServer]:
    """Another program, which answers everything."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="It works!")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield server


@pytest.mark.parametrize(("command", "hosts"), [("node", False), ("node", True), ("python", False)])
async def test_another_program_at_the_public_port_is_not_taken_for_the_proxy(foreign, command, hosts):
    """The proxy logs that its port is taken, and lives on half deaf (CHP 5.3)."""
    real = RealProxy([*COMMANDS[command](), *["--host-routing"] * hosts])
    try:
        await real.start()
        for url, ours in ((real.url, True), (str(foreign.make_url("")), False)):
            async with contextlib.AsyncExitStack() as stack:
                canary = HTTPCanary(real.api_url, TOKEN, plenty(), name="one", public_url=url, hosts=hosts)
                stack.push_async_callback(canary.remove)
                assert (await canary.plant()).verdict is Verdict.THERE
                assert [await canary.public() for _ in range(2)] == [ours, ours]
    finally:
        await real.kill()


async def test_a_public_name_that_is_not_for_us_to_reach_says_nothing(foreign):
    canary = HTTPCanary("http://proxy-api.invalid:8001", TOKEN, plenty(), name="one", public_url="http://hub.invalid")
    assert await canary.public() is None
    # Something answers there, and passes on what it likes: it may stand in front of the proxy.
    url = str(foreign.make_url(""))
    canary = HTTPCanary("http://proxy-api.invalid:8001", TOKEN, plenty(), name="one", public_url=url)
    assert await canary.public() is True
    await foreign.close()
    assert await canary.public() is False


async def test_it_tells_when_the_proxy_was_started_and_a_later_start_is_later(world):
    first = await world.canary.started_at()
    if first is None:
        pytest.skip("whose port it is can't be seen here")
    now = datetime.now(timezone.utc)
    assert now - timedelta(minutes=2) < first <= now + timedelta(seconds=2)
    assert await world.canary.started_at() == first
    await world.kill()
    assert await world.canary.started_at() is None
    await asyncio.sleep(0.05)
    await world.start()
    assert await world.canary.started_at() > first


async def test_removed_it_is_gone_and_nothing_else_is(world):
    await world.have_another("/user/ada")
    await world.canary.plant()
    await world.canary.remove()
    assert set(await world.table()) == {"/user/ada"}
    await world.canary.remove()
    assert (await world.canary.plant()).verdict is Verdict.THERE


async def test_removing_it_from_a_proxy_that_is_gone_or_hangs_never_raises(world):
    await world.canary.plant()
    world.freeze()
    await soon(world.canary.remove())
    world.thaw()
    await world.canary.plant()
    await world.kill()
    await soon(world.canary.remove())


async def test_each_look_is_one_request_of_the_budgets_and_connecting_alone_is_none(world):
    before = world.budget.use().requests
    await world.canary.plant()
    for _ in range(5):
        await world.canary.check()
    assert world.budget.use().requests - before == 6
    assert await world.canary.listens()
    assert world.budget.use().requests - before == 6
    assert world.budget.use().in_flight == 0


async def test_where_the_breaker_is_open_nothing_is_sent(world):
    await world.canary.plant()
    canary, budget = world.canary, plenty(breaker_failures=1)
    canary._budget = budget
    await world.kill()
    assert (await canary.check()).verdict is Verdict.NO_ANSWER
    for call in (canary.check, canary.plant):
        with pytest.raises(BudgetExhausted):
            await call()
    await world.start()
    budget.try_again(Destination.PROXY)
    assert (await canary.check()).verdict is Verdict.MISSING


# what only the real one can be wrong about


class Fake:
    """Answers each request on a connection with the next bytes of ``says``; None: it ends the connection."""

    def __init__(self) -> None:
        self.says: list[bytes | None] = []
        self.asked: list[bytes] = []
        self.connections = 0
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.asked.append(head)
                said = self.says.pop(0) if self.says else b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
                if said is None:
                    break
                size = max(7, len(said) // 100)
                for piece in (said[index : index + size] for index in range(0, len(said), size)):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()


@pytest.fixture
async def fake() -> AsyncIterator[tuple[Fake, HTTPCanary, Budget]]:
    fake = Fake()
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    budget = plenty(breaker_failures=1000)
    canary = HTTPCanary(
        f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", TOKEN, budget, name="x", timeout_s=20.0
    )
    yield fake, canary, budget
    await canary.remove()
    server.close()
    await asyncio.gather(*fake.tasks)


def ours(canary: HTTPCanary) -> bytes:
    return b'{"hubguard": "' + canary._nonce.encode() + b'"}'


def plain(status: int, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} Word\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(body: bytes) -> bytes:
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:]))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def test_answers_in_pieces_and_in_chunks_are_read_over_one_connection(fake):
    server, canary, _ = fake
    await canary.plant()
    server.says = [plain(200, ours(canary)), chunked(ours(canary)), plain(404, b"x" * 500), plain(200, ours(canary))]
    words = [(await canary.check()).verdict for _ in range(4)]
    assert words == [Verdict.THERE, Verdict.THERE, Verdict.MISSING, Verdict.THERE]
    assert server.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b" " * 70000,
        plain(200, b"not JSON"),
        plain(200, b"[]"),
        plain(401),
        plain(403),
        plain(500),
        plain(302),
    ],
)
async def test_what_is_no_proxy_of_ours_is_never_taken_for_one_that_lost_its_table(fake, said):
    server, canary, _ = fake
    await canary.plant()
    server.says = [said]
    seen = await canary.check()
    assert seen.verdict is Verdict.UNUSABLE
    assert seen.detail.endswith((".", "?"))
    assert TOKEN not in seen.detail
    assert (await canary.plant()).verdict is Verdict.THERE


async def test_what_refuses_the_route_is_not_taken_for_a_proxy(fake):
    server, canary, _ = fake
    server.says = [plain(404), plain(405), plain(403)]
    for _ in range(3):
        assert (await canary.plant()).verdict is Verdict.UNUSABLE


async def test_a_connection_that_ends_just_when_it_is_used_is_tried_once_more_within_the_budget(fake):
    server, canary, budget = fake
    await canary.plant()
    server.says = [None, plain(200, ours(canary))]
    assert (await canary.check()).verdict is Verdict.THERE
    assert budget.use().requests == len(server.asked) == 3
    server.says = [None, None, None, None]
    assert (await canary.check()).verdict is Verdict.NO_ANSWER
    assert budget.use().requests == len(server.asked) == 5


async def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_the_next(fake):
    server, canary, _ = fake
    await canary.plant()
    server.says = [b"", plain(200, ours(canary))]
    asking = asyncio.ensure_future(canary.check())
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (await canary.check()).verdict is Verdict.THERE
    assert server.connections == 2


@pytest.mark.parametrize("turns", range(4))
async def test_whoever_is_cancelled_just_as_the_answer_comes_is_cancelled(fake, turns):
    server, canary, _ = fake
    await canary.plant()
    server.says = [b""]
    asking = asyncio.ensure_future(canary.check())
    while canary._wire._answer is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    canary._wire._answer.set_result((404, b""))
    for _ in range(turns):
        await asyncio.sleep(0)
    if asking.cancel():
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_names_of_canaries_are_quoted(fake):
    server, _, budget = fake
    port = fake[1]._port
    canary = HTTPCanary(f"http://127.0.0.1:{port}/below/", TOKEN, budget, name="a b/é?#", timeout_s=20.0)
    await canary.plant()
    assert server.asked[-1].startswith(b"POST /below/api/routes/hubguard-canary/a%20b/%C3%A9%3F%23 HTTP/1.1\r\n")
    await canary.remove()


@pytest.mark.parametrize(("url", "host"), [("http://[::1]:8001", b"[::1]:8001"), ("http://proxy:8001", b"proxy:8001")])
def test_the_host_that_it_asks_is_written_as_http_has_it(url, host):
    head = HTTPCanary(url, TOKEN, plenty(), name="x")._request("GET", b"")
    assert b"\r\nHost: " + host + b"\r\n" in head


async def test_whose_the_public_port_is_is_asked_again_once_the_proxys_connection_has_ended(fake, monkeypatch):
    """Another program may have taken the port while the proxy was away."""
    server, canary, _ = fake
    asked = []

    async def status(url: str, host: str | None) -> int:
        asked.append("canary" if canary.path in url else "health")
        return 503 if canary.path in url else 200

    monkeypatch.setattr(canary, "_public_url", "http://127.0.0.1:1")
    monkeypatch.setattr(canary, "_status", status)
    await canary.plant()
    assert [await canary.public(), await canary.public()] == [True, True]
    assert asked == ["health", "canary", "health"]
    server.says = [None, plain(200, ours(canary))]
    assert (await canary.check()).fresh
    asked.clear()
    assert await canary.public() is True
    assert asked == ["health", "canary"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8001", "ftp://host", "http://u:p@host"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError, match="CONFIGPROXY_API_URL"):
        HTTPCanary(url, TOKEN, plenty(), name="x")


def test_its_token_is_in_no_text_of_it():
    assert TOKEN not in repr(HTTPCanary("http://127.0.0.1:1", TOKEN, plenty(), name="x"))
