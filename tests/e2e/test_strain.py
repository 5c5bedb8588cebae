"""The service as a process of its own, under what strangers and machines do to it: floods of connections, and signals."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from databases import PostgreSQL

from hubguard.staging.hub import free_ports

MAY_OPEN = 256
TOKEN = "the-services-own-token"


class Service:
    """A guard on a SQLite journal, whose hub is a single address that vouches for every token."""

    process: subprocess.Popen[bytes]

    def __init__(self, port: int, log_file: Path) -> None:
        self.port, self.log_file = port, log_file
        self.url = f"http://127.0.0.1:{port}/services/hubguard/"
        self.asked = 0
        self.text = ""

    async def user(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response(
            {"name": "ann", "kind": "user", "scopes": ["access:services!service=hubguard", "custom:hubguard:act"]}
        )

    async def ask(self, path: str, token: str = "", *, method: str = "GET") -> int:
        """The status of the answer; the whole answer is in ``text``."""
        headers = {"Authorization": f"token {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.request(method, self.url + path) as answer,
        ):
            self.text = await answer.text()
            return answer.status

    async def has_its_journal(self) -> None:
        """Returns when the service answers from its journal, after 20 s at the latest."""
        for _ in range(200):
            if await self.ask("api/v1/journal", "anns-token") == 200:
                break
            await asyncio.sleep(0.1)


@asynccontextmanager
async def running(tmp_path: Path, db_url: str) -> AsyncIterator[Service]:
    made = Service(*free_ports(1), tmp_path / "log")
    app = web.Application()
    runner = web.AppRunner(app)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTERHUB_", "HUBGUARD_"))}
    app.router.add_get("/hub/api/user", made.user)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with made.log_file.open("wb") as log:
        process = made.process = subprocess.Popen(  # our own command
            [sys.executable, "-m", "hubguard", "serve", "--url", f"http://127.0.0.1:{made.port}"],
            env={
                **environ,
                "JUPYTERHUB_API_URL": f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api",
                "JUPYTERHUB_API_TOKEN": TOKEN,
                "HUBGUARD_DB_URL": db_url,
            },
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (MAY_OPEN, MAY_OPEN)),  # noqa: PLW1509
        )
    try:
        for _ in range(200):
            try:
                await made.ask("health")
                break
            except aiohttp.ClientConnectionError:
                assert process.poll() is None, made.log_file.read_text()
                await asyncio.sleep(0.1)
        yield made
    finally:
        process.kill()
        process.wait(20)
        await runner.cleanup()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(tmp_path, f"sqlite:///{tmp_path / 'journal.sqlite'}") as made:
        yield made


async def test_slow_bodies_without_end_stop_neither_pages_nor_the_guards_own_requests(service: Service) -> None:
    sent = b"POST /services/hubguard/api/v1/hold HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\nx"
    writers = []
    try:
        for _ in range(MAY_OPEN + 100):
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writers.append(writer)
            writer.write(sent)
        assert await service.ask("health/live") == 200
        before = service.asked
        assert await service.ask("api/v1/status", "anns-token") == 200
        assert service.asked == before + 1
    finally:
        for writer in writers:
            writer.transport.abort()
    log = service.log_file.read_text()
    assert "Traceback" not in log
    assert len(log) < 100_000


async def test_a_signal_that_means_nothing_here_ends_nothing_and_one_that_ends_ends_cleanly(service: Service) -> None:
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        service.process.send_signal(getattr(signal, name))
    assert await service.ask("health/live") == 200
    assert service.process.poll() is None
    service.process.send_signal(signal.SIGQUIT)
    assert await asyncio.to_thread(service.process.wait, 20) == 0
    log = service.log_file.read_text()
    assert "SIGHUP changes nothing" in log
    assert "Told to end." in log


@pytest.mark.long
async def test_a_frozen_database_shows_at_once_and_what_it_was_asked_meanwhile_is_not_done(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    async with running(tmp_path, postgresql.url) as service:
        await service.has_its_journal()
        with postgresql.frozen():
            assert await service.ask("api/v1/hold", "anns-token", method="POST") == 503
            assert "may or may not have been recorded" not in service.text
            for path in ("", "journal", "exemptions", "api/v1/journal"):
                assert await service.ask(path, "anns-token") in {200, 503}
                assert "database" in service.text
            await service.ask("health")
            assert '"ok":false' in service.text.replace(" ", "")
        await service.has_its_journal()
        assert '"held"' not in service.text
        await service.ask("api/v1/status", "anns-token")
        assert '"held":false' in service.text.replace(" ", "")


@pytest.mark.long
async def test_the_service_ends_when_told_to_while_its_database_is_frozen(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    async with running(tmp_path, postgresql.url) as service:
        await service.has_its_journal()
        with postgresql.frozen():
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.process.wait, 30) == 0
