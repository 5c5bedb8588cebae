"""A real guard with a real journal is killed (-9) in the midst of a cycle, by the hub that it asks, and started again."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from constants import constants
from doubles.scripted_hub import TOKEN, Person, ScriptedHub, Srv

from hubguard.staging.hub import free_ports

SETTINGS = (
    constants(lease_s=3.0, retry_base_s=1.0, retry_max_s=2.0)
    + """
c = get_config()
c.HubGuard.armed = True
c.HubGuardCull.idle_timeout_s = 600.0
c.HubGuardCull.every_s = 1.0
c.HubGuardBudget.concurrency = 2
"""
)
NAMES = [f"idle{number}" for number in range(6)]


class DeadlyHub(ScriptedHub):
    """It kills who asks at the request of that kind (get-list, get-user, delete) and number, before or after doing it."""

    def __init__(self, kind: str, number: int, *, done: bool) -> None:
        super().__init__([Person(name, {"": Srv()}) for name in NAMES])
        self._deadly = (kind, number)
        self._done = done
        self._counts: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []
        self.victim: asyncio.subprocess.Process | None = None
        self.killed = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.removeprefix("/hub/api/").split("/")
        kind = "delete" if request.method == "DELETE" else "get-list" if parts == ["users"] else "get-user"
        if parts[0] != "users":
            return await super()._answer(request)
        self.log.append((kind, parts[1] if len(parts) > 1 else ""))
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if (kind, self._counts[kind]) != self._deadly:
            return await super()._answer(request)
        answer = await super()._answer(request) if self._done else web.Response(status=500)
        assert self.victim is not None
        self.victim.kill()
        await self.victim.wait()
        self.killed.set()
        return answer


@asynccontextmanager
async def guard(hub: DeadlyHub, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    (port,) = free_ports(1)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTERHUB_", "HUBGUARD_"))}
    environ |= {
        "JUPYTERHUB_API_URL": hub.api_url,
        "JUPYTERHUB_API_TOKEN": TOKEN,
        "HUBGUARD_DB_URL": f"sqlite:///{folder / 'journal.sqlite'}",
        "HUBGUARD_CONFIG": str(folder / "config.py"),
    }
    (folder / "config.py").write_text(SETTINGS)
    command = [sys.executable, "-m", "hubguard", "serve", "--url", f"http://127.0.0.1:{port}"]
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)


def entries(folder: Path, event: str) -> list[tuple[int, str, int | None]]:
    """(id, user, what it refers to) of all entries of that kind, in order."""
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        asked = "select id, user_name, refers_to from hubguard_entry where event = ? order by id"
        return journal.execute(asked, (event,)).fetchall()


async def killed_and_started_again(folder: Path, kind: str, number: int, *, done: bool) -> None:
    async with DeadlyHub(kind, number, done=done) as hub:
        async with guard(hub, folder) as first:
            hub.victim = first
            await asyncio.wait_for(hub.killed.wait(), 30)
        killed_at = len(hub.log)
        sent = [user for what, user in hub.log if what == "delete"]
        async with guard(hub, folder) as second:

            async def all_is_over() -> None:
                while (
                    any(hub._people[name].servers for name in NAMES)
                    or {one for one, *_ in entries(folder, "intent")} != {one for *_, one in entries(folder, "outcome")}
                    or not {user for what, user in hub.log[killed_at:] if what == "get-list"}
                ):
                    assert second.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.1)

            await asyncio.wait_for(all_is_over(), 40)
        intents, outcomes = entries(folder, "intent"), entries(folder, "outcome")
        assert sorted(one for *_, one in outcomes if one is not None) == sorted(one for one, *_ in intents)
        deletes = [user for what, user in hub.log if what == "delete"]
        for name in NAMES:
            assert deletes.count(name) <= len([user for _, user, _ in intents if user == name])
            again = [index for index, asked in enumerate(hub.log) if asked == ("delete", name)]
            assert len(again) == 1 or name in sent
            for before, after in itertools.pairwise(again):
                assert ("get-user", name) in hub.log[before:after], "asked again without a fresh read"
        if done and kind == "delete":
            assert sorted(deletes) == sorted(NAMES), "what had been done was found done, and not asked for again"


@pytest.mark.parametrize("done", [pytest.param(False, marks=pytest.mark.long), True])
async def test_a_guard_killed_while_it_waits_for_the_answer_to_a_stop_is_followed_by_one_that_looks_first(
    tmp_path: Path, done: bool
):
    await killed_and_started_again(tmp_path, "delete", 3, done=done)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "number"),
    [("get-list", 1), ("get-user", 1), ("get-user", 4), ("get-user", 9), ("delete", 1), ("delete", 6)],
)
@pytest.mark.parametrize("done", [False, True])
async def test_a_kill_at_any_other_request_leaves_nothing_unaccounted_for(
    tmp_path: Path, kind: str, number: int, done: bool
):
    await killed_and_started_again(tmp_path, kind, number, done=done)
