"""What tests of a guarded hub share: the include's line, and ways to ask the guard through the proxy."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
from constants import constants_by_the_hub

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

SNIPPET = Path(__file__).parents[1] / "jupyterhub_config.d" / "hubguard.py"
INCLUDE = f"load_subconfig({str(SNIPPET)!r})\n"
# Servers are idle by the hub's database only: the proxy sees their routes added when the hub starts, and takes that for use.
QUICK = (
    constants_by_the_hub(lease_s=3.0)
    + """
c.HubGuard.read_proxy = False
c.HubGuardCull.idle_timeout_s = 600.0
c.HubGuardCull.every_s = 1.0
c.HubGuardBudget.rate = 200.0
"""
)
ARMED = INCLUDE + QUICK + "c.HubGuard.armed = True\n"
OBSERVING = INCLUDE + QUICK


def servers(**idle_for_s: float) -> Population:
    """A running server for each name, idle for so many seconds."""
    return Population(servers=tuple(SeededServer(user, idle_for_s=idle) for user, idle in idle_for_s.items()))


async def ask(
    hub: TestbedHub, path: str, *, method: str = "GET", token: str | None = None, **request: Any
) -> tuple[int, Any]:
    """(status, JSON or text) of the guard's answer, reached through the proxy like by anyone."""
    url = f"{hub.url}services/hubguard/{path}"
    headers = {"Authorization": f"token {token or hub.token}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.request(method, url, allow_redirects=False, **request) as answer,
    ):
        text = await answer.text()
        return answer.status, await answer.json() if "json" in answer.content_type else text


async def status(hub: TestbedHub) -> dict[str, Any]:
    """The guard's status once it serves; waits for that."""
    found: dict[str, Any] = {}

    async def serves() -> bool:
        try:
            code, answer = await ask(hub, "api/v1/status")
        except asyncio.TimeoutError:
            return False
        if code == 200:
            found.update(answer)
        return code == 200

    await hub.wait_for(serves, "HubGuard to serve", 30)
    return found


async def mode(hub: TestbedHub, *wanted: str) -> dict[str, Any]:
    """The guard's status, once its mode is one of ``wanted``."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        found.clear()
        found.update(await status(hub))
        return found["mode"] in wanted

    try:
        await hub.wait_for(there, f"HubGuard to be {' or '.join(wanted)}", 30)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return found


@asynccontextmanager
async def in_use(hub: TestbedHub, *users: str) -> AsyncIterator[None]:
    """While the block lasts, these users ask their servers for something again and again, through the proxy."""

    async def work() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while True:
                for user in users:
                    async with session.get(f"{hub.url}user/{user}/api/status") as answer:
                        assert answer.status == 200, f"the server of {user} has gone while it was in use"
                    await asyncio.sleep(max(0.05, 0.5 / len(users)))

    working = asyncio.create_task(work())
    try:
        yield
        assert not working.done(), working.exception()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def gone(hub: TestbedHub, *users: str) -> None:
    """Returns when none of ``users`` has a server any more."""

    async def check() -> bool:
        return not {user for user, _ in await hub.servers()} & set(users)

    await hub.wait_for(check, f"the servers of {users} to be gone", 30)


async def table(hub: TestbedHub) -> dict[str, str]:
    """Where each route of the external proxy's leads, by path, without HubGuard's own canary."""
    headers = {"Authorization": f"token {hub.proxy_token}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.get(f"{hub.proxy_api_url}/api/routes") as answer,
    ):
        assert answer.status == 200
        return {path: route["target"] for path, route in (await answer.json()).items() if "canary" not in path}


async def runs(hub: TestbedHub, *users: str) -> dict[str, Any]:
    """Run and process of the default server of each of ``users``, none named: of everybody; to be compared later."""
    servers = {user: server for (user, name), server in (await hub.servers()).items() if name == ""}
    return {user: (servers[user]["started"], servers[user]["state"]["pid"]) for user in users or servers}


def commands(hub: TestbedHub) -> dict[int, list[bytes]]:
    """The command line of each process of this hub, by pid."""
    found = {}
    for pid in hub.leftovers():
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return found


def guards(hub: TestbedHub) -> list[int]:
    """The pids of the guards that this hub's folder has running."""
    return [pid for pid, words in commands(hub).items() if b"hubguard" in words and b"serve" in words]


def places_of(hub: TestbedHub, *secrets: str) -> list[str]:
    """Files of the hub's folder but its config, and command lines of its processes, that hold one of ``secrets``."""
    files = [path for path in hub.folder.rglob("*") if path.is_file() and path.name != "jupyterhub_config.py"]
    assert {hub.folder / "jupyterhub.sqlite", hub.log_file} <= set(files)
    commands = [Path(f"/proc/{pid}/cmdline") for pid in hub.leftovers()]
    read = {}
    for path in (*files, *commands):
        with suppress(FileNotFoundError):  # a database's own journal comes and goes
            read[str(path)] = path.read_bytes()
    with closing(sqlite3.connect(hub.folder / "jupyterhub.sqlite")) as database:
        read["what the hub stores"] = "\n".join(database.iterdump()).encode()
    assert b"(set when the process is started)" in read["what the hub stores"]
    return [place for place, data in read.items() if any(secret.encode() in data for secret in secrets)]


def external(hub: TestbedHub, port: int, db_url: str, **more: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a guard that the hub doesn't run, with the tester's token."""
    command = [sys.executable, "-m", "hubguard", "serve", "--url", f"http://127.0.0.1:{port}"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTERHUB_", "HUBGUARD_"))}
    return command, {
        **environ,
        "JUPYTERHUB_API_URL": hub.api_url,
        "JUPYTERHUB_API_TOKEN": hub.token,
        "HUBGUARD_DB_URL": db_url,
        **more,
    }


def patient(start_s: int) -> str:
    """Config lines by which the hub gives each start that many seconds, and HubGuard sees that it gives one minute in all."""
    return (
        "c.Spawner.start_timeout = 30\nc.Spawner.http_timeout = 30\n"
        f"c.Spawner.pre_spawn_hook = lambda spawner: setattr(spawner, 'start_timeout', {start_s})\n"
    )
