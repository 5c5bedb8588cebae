"""The proxy watch of a guard that the hub runs, with a real proxy: killed, wiped, frozen, and with the hub away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from guarded import ARMED, ask, guards, mode, runs, table

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

Hubs = Callable[..., Awaitable[TestbedHub]]

# What the hub would mend itself, it mends in an hour; and but for the first, HubGuard looks for drift as seldom.
WATCHING = (
    ARMED
    + """
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.cleanup_servers = False
c.HubGuard.read_proxy = True
c.HubGuardCull.idle_timeout_s = 86400.0
c.HubGuardCull.every_s = 60.0
c.HubGuardDrift.every_s = 3600.0
"""
)


def people(count: int) -> list[str]:
    return [f"user{number:03}" for number in range(count)]


def all_of(names: Sequence[str]) -> Population:
    """A running server for each; the first has a process of its own, the others share one."""
    return Population(servers=tuple(SeededServer(name, idle_for_s=60.0, shared=name != names[0]) for name in names))


async def watch(hub: TestbedHub) -> dict[str, Any]:
    """What the guard tells of its watch, asked past the proxy; empty while it tells nothing."""
    told = await hub.api("GET", "services/hubguard")
    headers = {"Authorization": f"token {hub.token}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"{told.data['url']}/services/hubguard/api/v1/drift/report") as answer,
        ):
            report = await answer.json() if answer.status == 200 else {}
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return {}
    return report["watch"] if report.get("looked_at") else {}


async def until(hub: TestbedHub, state: str, *, restored: int | None = None, timeout_s: float = 30.0) -> dict[str, Any]:
    """What the guard tells of its watch, once it has that state and a restore after ``restored`` of them."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        found.clear()
        found.update(await watch(hub))
        return found.get("state") == state and (restored is None or len(restores(hub)) > restored)

    try:
        await hub.wait_for(there, f"the proxy to be {state}", timeout_s)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return found


def restores(hub: TestbedHub) -> list[str]:
    """Each time that HubGuard said the routes were back."""
    return [line for line in hub.log_text().splitlines() if "The proxy has its routes again" in line]


def checks(hub: TestbedHub) -> int:
    """How often the hub was asked to check its routes, by whomever."""
    return hub.log_text().count("POST /hub/api/proxy")


async def watched(testbed_hub: Hubs, names: Sequence[str], config: str = "", **more: Any) -> TestbedHub:
    """A hub whose proxy is watched, by a guard that has looked at everything once."""
    hub = await testbed_hub(config=WATCHING + config, population=all_of(names), **{"external_proxy": True, **more})
    await mode(hub, "acting")
    await until(hub, "fine")
    return hub


async def reach(hub: TestbedHub, names: Sequence[str]) -> None:
    """Everybody reaches their own server through the proxy."""
    async with aiohttp.ClientSession() as session:
        for user in names:
            async with session.get(f"{hub.url}user/{user}/api/status") as answer:
                assert (answer.status, (await answer.json())["path"]) == (200, f"/user/{user}/api/status")


async def asked(hub: TestbedHub) -> list[str | None]:
    """What came of each time that the hub was asked to check its routes, by the journal; None: not known."""
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000"})
    assert code == 200
    told = {entry["refers_to"]: entry["outcome"] for entry in entries if entry["event"] == "outcome"}
    intents = [entry for entry in reversed(entries) if entry["event"] == "intent"]
    assert {entry["action"] for entry in intents} <= {"check-routes"}, "nothing else is done"
    return [told.get(entry["id"]) for entry in intents]


@pytest.mark.long
async def test_a_proxy_that_was_killed_or_wiped_has_all_routes_back_by_one_question_each(testbed_hub: Hubs) -> None:
    names = people(12)
    hub = await watched(testbed_hub, names)
    first, before, (guard,) = await watch(hub), await table(hub), guards(hub)
    await hub.kill_proxy()
    await until(hub, "gone")
    await hub.start_proxy()
    second = await until(hub, "fine", restored=0)
    assert await table(hub) == before
    assert checks(hub) == 1
    assert await asked(hub) == ["done"]
    assert first["restored_at"] is None
    assert second["missing"] == []

    headers = {"Authorization": f"token {hub.proxy_token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{hub.proxy_api_url}/api/routes") as answer:
            canaries = {path: route for path, route in (await answer.json()).items() if "canary" in path}
        for path in [*canaries, *before]:
            if path != "/":
                async with session.delete(f"{hub.proxy_api_url}/api/routes{path}") as answer:
                    assert answer.status == 204
        third = await until(hub, "fine", restored=1)
        assert await table(hub) == before
        assert third["restored_at"] > second["restored_at"]
        await reach(hub, names)

        # The hub leaves the canary alone, and the watch sees nothing in the hub's own check.
        (canary,) = canaries
        seen = hub.log_text().count(f"GET /api/routes{canary}")
        assert (await hub.api("POST", "proxy")).status == 200

        async def three_more_looks() -> bool:
            return hub.log_text().count(f"GET /api/routes{canary}") >= seen + 3

        await hub.wait_for(three_more_looks, "the watch to look thrice")
        assert checks(hub) == 3
        assert len(restores(hub)) == 2
        assert guards(hub) == [guard]
        await hub.stop()
        async with session.get(f"{hub.proxy_api_url}/api/routes{canary}") as answer:
            assert answer.status == 404, "a guard that ends leaves no canary behind"


@pytest.mark.long
async def test_a_frozen_proxy_hangs_and_the_hub_is_not_sent_to_it(testbed_hub: Hubs) -> None:
    hub = await watched(testbed_hub, people(12))
    before = await table(hub)
    assert hub.proxy_pid is not None
    os.kill(hub.proxy_pid, signal.SIGSTOP)
    try:
        await until(hub, "hangs")
    finally:
        os.kill(hub.proxy_pid, signal.SIGCONT)
    await until(hub, "fine")
    assert checks(hub) == 0
    assert restores(hub) == []
    assert await table(hub) == before


@pytest.mark.long
async def test_a_proxy_that_the_hub_runs_itself_is_watched_alike(testbed_hub: Hubs) -> None:
    """Only the hub knows its token, and starts another by itself."""
    names = people(12)
    hub = await watched(testbed_hub, names, external_proxy=False)
    await hub.kill_proxy()
    await until(hub, "gone")
    await until(hub, "fine", restored=0, timeout_s=60.0)
    await reach(hub, names)
    assert checks(hub) <= 2


@pytest.mark.long
async def test_a_table_that_is_lost_while_the_hub_is_down_is_filled_when_it_is_back(testbed_hub: Hubs) -> None:
    names = people(12)
    hub = await watched(testbed_hub, names)
    before = await table(hub)
    # It hangs first: the guard of a hub that is dead ends within a second, and may not have seen it by then.
    os.kill(hub.pid or 0, signal.SIGSTOP)
    await hub.kill_proxy()
    await hub.start_proxy()

    async def seen() -> bool:
        return "The proxy has lost its table of routes" in hub.log_text()

    await hub.wait_for(seen, "the guard to see it")
    await hub.kill()
    await hub.start()
    await mode(hub, "acting")
    await until(hub, "fine", timeout_s=60.0)
    await reach(hub, names)
    assert {path for path in before if path.startswith("/user/")} <= set(await table(hub))
    assert checks(hub) <= 2
    assert len(guards(hub)) == 1


@pytest.mark.long
async def test_a_proxy_that_is_killed_again_and_again_is_no_flood_for_the_hub(testbed_hub: Hubs) -> None:
    names = people(12)
    hub = await watched(testbed_hub, names)
    before = await table(hub)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for _ in range(8):
        await hub.kill_proxy()
        await hub.start_proxy()
        await asyncio.sleep(0.8)
    assert 1 <= checks(hub) <= 1 + (loop.time() - began_s) / 2.0
    seen = len(restores(hub))

    async def whole() -> bool:
        return await table(hub) == before

    await hub.wait_for(whole, "all routes to be back", 120.0)
    await until(hub, "fine", timeout_s=60.0)
    assert len(restores(hub)) >= max(1, seen)
    assert None not in await asked(hub)
    await reach(hub, names)


# No proxy; the hub, to which an empty table leads, sends them on to itself; and what hub and proxy say where nobody answers.
NOT_SERVED = {"no answer", "302", "404", "503"}


@dataclass
class Class:
    """Users at work through the proxy: when each of their requests was begun, and how those that failed did."""

    answered: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    how: Counter[str] = field(default_factory=Counter)

    async def works(self, hub: TestbedHub, count: int) -> None:
        """Returns after so many more answers."""
        enough = len(self.answered) + count

        async def there() -> bool:
            return len(self.answered) >= enough

        await hub.wait_for(there, "everybody to be at work", 60.0)


@asynccontextmanager
async def at_work(hub: TestbedHub, names: Sequence[str]) -> AsyncIterator[Class]:
    """While the block lasts, each of these asks their own server for something several times a second."""
    found, loop = Class(), asyncio.get_running_loop()

    async def work(session: aiohttp.ClientSession, user: str) -> None:
        while True:
            began_s, how = loop.time(), ""
            try:
                async with session.get(f"{hub.url}user/{user}/api/status", allow_redirects=False) as answer:
                    if answer.status != 200:
                        how = str(answer.status)
                    elif (await answer.json())["path"] != f"/user/{user}/api/status":
                        how = "another's server"
            except (aiohttp.ClientError, asyncio.TimeoutError):
                how = "no answer"
            if how:
                found.how[how] += 1
            (found.failed if how else found.answered).append(began_s)
            await asyncio.sleep(0.2)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        working = [asyncio.create_task(work(session, user)) for user in names]
        try:
            await found.works(hub, 2 * len(names))
            assert found.failed == []
            yield found
            assert not any(one.done() for one in working)
        finally:
            for one in working:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)


@pytest.mark.long
async def test_incident_the_proxy_was_evicted_and_came_back_without_a_route(testbed_hub: Hubs) -> None:
    """datahub, 2017-02-24: told by users after 3 minutes, about 52 minutes long; some servers were stuck at its end.

    Sequence: the platform evicts the proxy and starts another; its table is empty; users whose servers run well get errors;
    adding the routes anew runs into limits of the hub's own client; some servers are left between running and not.
    Cause: a proxy keeps its table in memory, and only the hub knows what belongs into it, which looks every few minutes.
    Here: 300 servers, thirty users at work, one of 300 dies meanwhile, the hub looks once an hour. What fails is counted.
    Once HubGuard says that the routes are back, no request fails, all others reach their servers, which are the same runs;
    the hub was asked once, and the one that is broken is named.
    """
    names = people(300)
    # A look takes the processes' numbers from the database: at the shared endpoint, a process carries no user's name.
    looking = "c.HubGuardDrift.every_s = 5.0\nc.Spawner.poll_interval = 3600\nc.HubGuard.hub_db_url = 'hub'\n"
    hub = await watched(testbed_hub, names, looking)
    broken, *others = names
    loop = asyncio.get_running_loop()
    before, healthy = await table(hub), await runs(hub, *others)
    async with at_work(hub, others[::10]) as users:
        await hub.kill_proxy()
        await hub.kill_server(broken)
        await asyncio.sleep(2.0)
        await hub.start_proxy()
        told = await until(hub, "fine", restored=0)
        restored_s = loop.time()
        await users.works(hub, 300)
    assert users.how["no answer"], "without a proxy nobody is served"
    assert users.how.keys() <= NOT_SERVED, users.how
    assert [moment for moment in users.failed if moment > restored_s] == [], users.how
    assert told["missing"] == []
    assert await table(hub) == before
    await reach(hub, others)
    assert await runs(hub, *others) == healthy
    assert checks(hub) == 1
    assert await asked(hub) == ["done"]

    async def named() -> bool:
        code, found = await ask(hub, "api/v1/drift", params={"state": "raised"})
        return code == 200 and [(one["kind"], one["user"]) for one in found] == [("server-dead", broken)]

    await hub.wait_for(named, "the one that is broken to be named, and nobody else", 60.0)
    assert (await watch(hub))["why"] == "", "nobody is told that it has kept its table"


@pytest.mark.long
async def test_incident_the_proxy_ran_out_of_memory_twice_while_a_class_was_at_work(testbed_hub: Hubs) -> None:
    """datahub, 2024-03-05: 2,500 and 5,700 answers of 503, told by users, about three hours in spells.

    Sequence: with about 300 users at work, the proxy's memory grows until it is killed; it starts at once, with an empty
    table; filling that takes 10 to 15 minutes; then it is killed again. Cause of the length: the routes come back with the
    hub's next check of them, and nobody sees that they are missing.
    Here: 300 servers, thirty users at work, the proxy is killed and started at once, and once more as soon as the routes are
    back; the hub looks once an hour. What fails is counted. Each time it is over once HubGuard says so, with one question to
    the hub, and all servers are the same runs.
    """
    names = people(300)
    hub = await watched(testbed_hub, names)
    loop = asyncio.get_running_loop()
    before, healthy = await table(hub), await runs(hub)
    async with at_work(hub, names[::10]) as users:
        for time in range(2):
            counted = len(users.failed)
            await hub.kill_proxy()
            await hub.start_proxy()
            await until(hub, "fine", restored=time)
            restored_s = loop.time()
            await users.works(hub, 150)
            assert len(users.failed) > counted, "a proxy that was killed drops what it was answering"
            assert [moment for moment in users.failed if moment > restored_s] == [], users.how
            assert await table(hub) == before
    assert users.how.keys() <= NOT_SERVED, users.how
    await reach(hub, names)
    assert await runs(hub) == healthy
    assert checks(hub) == 2
    assert await asked(hub) == ["done", "done"]
