"""Commands ask the guard that runs: what it answers is told as it is, and never what can't be known."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from aiohttp import web

from hubguard.act.lease import HUB
from hubguard.errors import HubGuardError
from hubguard.journal.model import Lease
from hubguard.journal.store import open_journal
from hubguard.web.client import Refused, RunningGuard, running_guard, running_lease

NOW = datetime.now(timezone.utc)
TOKEN = "0123456789abcdef"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def at(address: str) -> RunningGuard:
    return RunningGuard(Lease("hub-1:4711", address, 3, 0.0, NOW, NOW + timedelta(seconds=20)), TOKEN)


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[RunningGuard]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listening).start()
        yield at(f"http://127.0.0.1:{listening.getsockname()[1]}/services/hubguard/")
    finally:
        await runner.cleanup()


def says(status: int, body: object) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"token {TOKEN}"
        return web.json_response(body, status=status)

    return answer


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_whatever_success_it_is_the_answer_is_taken(status: int) -> None:
    async with answering(says(status, {"count": 2})) as guard:
        assert await guard.ask("POST", "api/v1/repairs", {}) == {"count": 2}


@pytest.mark.parametrize("status", [400, 403, 404, 409])
async def test_a_no_is_told_in_the_guards_own_words(status: int) -> None:
    async with answering(says(status, {"message": "The plan has 2 repairs, not 3."})) as guard:
        with pytest.raises(Refused) as refused:
            await guard.ask("POST", "api/v1/repairs", {})
    assert (str(refused.value), refused.value.status) == ("The plan has 2 repairs, not 3.", status)


@pytest.mark.parametrize(("method", "doubtful"), [("GET", False), ("POST", True)])
async def test_where_the_guard_fails_nobody_says_that_nothing_was_done(method: str, doubtful: bool) -> None:
    async with answering(says(500, {"message": "a defect"})) as guard:
        with pytest.raises(HubGuardError, match="answered 500 at .*: a defect") as failed:
            await guard.ask(method, "api/v1/cycles")
    assert ("may have done it" in str(failed.value)) is doubtful
    assert "othing was done" not in str(failed.value)


async def test_a_guard_that_hangs_may_have_done_it_and_one_that_is_gone_has_not() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(hang) as guard:
        with pytest.raises(HubGuardError, match="may have done it; see the journal") as failed:
            await guard.ask("POST", "api/v1/cycles", within_s=0.2)
    with pytest.raises(HubGuardError, match="nothing was done") as gone:
        await guard.ask("POST", "api/v1/cycles", within_s=5)
    assert TOKEN not in str(failed.value) + str(gone.value) + repr(gone.value.__context__)


@pytest.mark.parametrize("body", [b"<html>", b""])
async def test_what_isnt_a_guard_is_named_and_no_traceback(body: bytes) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=502, body=body, content_type="text/html")

    async with answering(page) as guard:
        with pytest.raises(HubGuardError, match=r"^The guard in charge \(hub-1:4711\)"):
            await guard.ask("GET", "api/v1/status")


async def test_a_token_is_not_sent_on_to_where_a_redirect_leads() -> None:
    seen = []

    async def away(request: web.Request) -> web.Response:
        seen.append(request.path)
        raise web.HTTPFound("/elsewhere")

    async with answering(away) as guard:
        with pytest.raises(HubGuardError):
            await guard.ask("GET", "api/v1/status")
    assert seen == ["/services/hubguard/api/v1/status"]


async def test_another_command_at_work_has_no_address_to_ask() -> None:
    with pytest.raises(HubGuardError, match="Another command is running"):
        await at("").ask("GET", "api/v1/status")


@pytest.mark.parametrize("ends_in_s", [-1.0, 60.0])
def test_a_lease_that_has_run_out_is_no_guard(tmp_path: Path, ends_in_s: float) -> None:
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    assert running_lease(url) is None
    journal = open_journal(url)
    begin = datetime.now(timezone.utc) + timedelta(seconds=ends_in_s - 120)
    journal.take_lease(HUB, "hub-1:4711", "http://127.0.0.1:9/", 0.0, begin, 120.0)
    journal.close()
    if ends_in_s < 0:
        with pytest.raises(HubGuardError, match=r"^No guard is running for this hub\. Ask later$"):
            running_guard(url, TOKEN, instead="Ask later")
    else:
        lease = running_lease(url)
        assert lease is not None
        assert lease.holder == "hub-1:4711"
