"""Who may keep the server waiting, and for how long: slow bodies, slow heads, slow readers, and too many of them."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from hubguard.web import door
from hubguard.web.door import Door, most_connections

pytestmark = pytest.mark.contract

SLOW_BODY = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\nx"
WHOLE = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Slow(RequestHandler):
    """Answers POST when it is told to."""

    go: asyncio.Event

    def initialize(self, go: asyncio.Event) -> None:
        self.go = go

    def get(self) -> None:
        self.finish("here")

    async def post(self) -> None:
        await self.go.wait()
        self.finish("done")


class Visitor:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, sent: bytes) -> Visitor:
        self.writer.write(sent)
        await self.writer.drain()
        return self

    async def answer(self) -> bytes:
        """The first line of the answer, b"" where the connection was closed."""
        try:
            return await asyncio.wait_for(self.reader.readline(), 20)
        except ConnectionResetError:
            return b""


class Served:
    def __init__(self, port: int, go: asyncio.Event) -> None:
        self.port, self.go = port, go
        self.visitors: list[Visitor] = []

    async def visitor(self, sent: bytes = b"", *, address: str = "127.0.0.1") -> Visitor:
        made = Visitor(*await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0)))
        self.visitors.append(made)
        return await made.says(sent)

    async def open_visitors(self) -> int:
        """How many connections are still open, as far as their ends have been told."""
        await asyncio.sleep(0.1)
        return len([one for one in self.visitors if not one.reader._eof and one.reader.exception() is None])


@asynccontextmanager
async def serving(most: int) -> AsyncIterator[Served]:
    go = asyncio.Event()
    server = Door(Application([("/", Slow, {"go": go})], log_function=lambda handler: None), most=most)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    made = Served(sockets[0].getsockname()[1], go)
    try:
        yield made
    finally:
        go.set()
        for one in made.visitors:
            one.writer.transport.abort()
        server.stop()
        await server.close_all_connections()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("sent", [SLOW_BODY, WHOLE[:20], b"", WHOLE])
async def test_any_number_of_visitors_that_keep_it_waiting_leave_room_for_the_next(sent: bytes) -> None:
    async with serving(most=10) as served:
        for _ in range(50):
            await served.visitor(sent)
        assert await (await served.visitor(WHOLE)).answer() == b"HTTP/1.1 200 OK\r\n"
        assert await served.open_visitors() <= 10


async def test_a_request_that_is_being_answered_is_never_closed_for_another() -> None:
    async with serving(most=5) as served:
        first = await served.visitor(SLOW_BODY.replace(b"60000", b"1"))
        for _ in range(30):
            await served.visitor(SLOW_BODY)
        served.go.set()
        assert await first.answer() == b"HTTP/1.1 200 OK\r\n"


async def test_where_all_are_being_answered_the_newcomer_is_turned_away() -> None:
    async with serving(most=3) as served:
        asked = [await served.visitor(SLOW_BODY.replace(b"60000", b"1")) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert await (await served.visitor(WHOLE)).answer() == b""
        served.go.set()
        assert {await one.answer() for one in asked} == {b"HTTP/1.1 200 OK\r\n"}


async def test_the_address_with_the_most_connections_gives_way() -> None:
    async with serving(most=10) as served:
        kept = [await served.visitor(b"", address="127.0.0.2") for _ in range(3)]
        for _ in range(40):
            await served.visitor(SLOW_BODY)
        for one in kept:
            assert await (await one.says(WHOLE)).answer() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(("limit", "sent"), [("BODY_S", SLOW_BODY), ("IDLE_S", WHOLE[:20]), ("IDLE_S", b"")])
async def test_what_does_not_arrive_in_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes
) -> None:
    monkeypatch.setattr(door, limit, 0.2)
    async with serving(most=10) as served:
        assert await (await served.visitor(sent)).answer() == b""


async def test_too_many_connections_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(most=5) as served:
        for _ in range(60):
            await served.visitor(SLOW_BODY)
        await served.open_visitors()
    assert len([record for record in caplog.records if "connections at once" in record.getMessage()]) == 1
    assert len(caplog.records) < 10


@pytest.mark.parametrize(("soft", "most"), [(256, 128), (1024, 512), (65536, 512), (resource.RLIM_INFINITY, 512)])
def test_half_of_what_may_be_opened_is_kept_for_the_guard(
    monkeypatch: pytest.MonkeyPatch, soft: int, most: int
) -> None:
    limits: Callable[[int], tuple[int, int]] = lambda _: (soft, resource.RLIM_INFINITY)  # noqa: E731
    monkeypatch.setattr(resource, "getrlimit", limits)
    assert most_connections() == most
