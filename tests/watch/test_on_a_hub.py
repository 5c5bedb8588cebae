"""Signals and alerts on a real hub, with a real proxy and real processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from guarded import ask, mode
from hubs_of import MakeHub, hub_of

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer, SeededUser

PEOPLE = Population(users=(SeededUser("bad"),), servers=(SeededServer("ann", idle_for_s=60),))
FAILING = """
from hubguard.staging.spawner import LittleSpawner

class Failing(LittleSpawner):
    async def start(self):
        if self.user.name == "bad":
            raise RuntimeError("no image of that name")
        return await super().start()

c.JupyterHub.spawner_class = Failing
c.Spawner.consecutive_failure_limit = 7
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(shared_hub: MakeHub) -> TestbedHub:
    hub = await hub_of(
        shared_hub,
        FAILING,
        "c.HubGuard.hub_db_url = 'hub'",
        "c.HubGuardCull.idle_timeout_s = 0",
        "c.HubGuard.read_proxy = True",
        "c.HubGuard.authenticate_prometheus = False",
        external_proxy=True,
        population=PEOPLE,
    )
    await mode(hub, "acting")
    return hub


async def sources(hub: TestbedHub) -> dict[str, dict[str, Any]]:
    code, rows = await ask(hub, "api/v1/signals/sources")
    assert code == 200, rows
    return {row["source"]: row for row in rows}


async def newest(hub: TestbedHub, name: str) -> float | None:
    code, rows = await ask(hub, "api/v1/signals")
    assert code == 200, rows
    of = [one["value"] for row in rows if row["name"] == name for one in row["newest"] if not one["subject"]]
    return of[0] if of else None


@pytest.mark.asyncio(loop_scope="module")
async def test_every_source_of_a_hub_on_one_machine_can_be_read(watched: TestbedHub):
    async def all_read() -> bool:
        rows = await sources(watched)
        away = {name for name, row in rows.items() if not row["readable"]}
        return len(rows) == 12 and away <= {
            "proxy-metrics",
            "backends",
        }  # all little servers are one process, which hides what runs beside

    await watched.wait_for(all_read, "every source", 40)
    rows = await sources(watched)
    assert "--metrics-port" in rows["proxy-metrics"]["why"]
    assert await newest(watched, "hub_up") == 1.0
    assert await newest(watched, "proxy_up") == 1.0
    assert await newest(watched, "database_up") == 1.0
    assert await newest(watched, "servers_running") == 1.0
    assert await newest(watched, "users_total") == 3.0
    for name in ("hub_memory_bytes", "proxy_memory_bytes"):
        assert 1e7 < (await newest(watched, name) or 0) < 2e9


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.long
async def test_starts_that_fail_are_counted_and_raise_an_alert_before_the_hub_exits(watched: TestbedHub):
    async def counted() -> bool:
        return await newest(watched, "failed_starts_recent") == 0.0

    await watched.wait_for(counted, "two scrapes", 150)
    for _ in range(5):
        assert (await watched.api("POST", "/users/bad/server")).status == 500

    async def raised() -> bool:
        _, rows = await ask(watched, "api/v1/alerts")
        return {"StartsFail", "HubNearExit"} <= {row["rule"] for row in rows if row["raised_at"]}

    await watched.wait_for(raised, "both alerts", 240)
    assert await newest(watched, "failed_starts_in_a_row") == 5.0
    assert await newest(watched, "failed_starts_limit") == 7.0
    _, rows = await ask(watched, "api/v1/alerts")
    (near,) = [row for row in rows if row["rule"] == "HubNearExit"]
    assert near["sentence"].startswith("5 starts have failed in a row. The hub exits at 7.")
    assert watched.pid is not None


@pytest.mark.asyncio(loop_scope="module")
async def test_the_hubs_own_process_tells_who_is_hit_by_a_failed_start_and_why(watched: TestbedHub):
    assert (await watched.api("POST", "/users/bad/server")).status == 500

    async def told() -> bool:
        _, found = await ask(watched, "api/v1/starts")
        return any(one["user"] == "bad" and one["message"] == "no image of that name" for one in found["failures"])

    await watched.wait_for(told, "the report", 20)


async def firing(hub: TestbedHub) -> str:
    """The alerts as anybody may read them, without the hub's word on who asks."""
    async with aiohttp.ClientSession() as session, session.get(f"{hub.url}services/hubguard/metrics") as answer:
        return "\n".join(line for line in (await answer.text()).splitlines() if line.startswith("hubguard_alert{"))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.long
async def test_a_hub_that_hangs_raises_an_alert_and_its_return_ends_it(watched: TestbedHub):
    """SIGSTOP: its port takes connections, and nothing is ever answered."""
    assert watched.pid is not None
    os.kill(watched.pid, signal.SIGSTOP)
    try:

        async def raised() -> bool:
            return 'alertname="HubDown"' in await firing(watched)

        await watched.wait_for(raised, "the alert", 200)
    finally:
        os.kill(watched.pid, signal.SIGCONT)

    async def over() -> bool:
        return 'alertname="HubDown"' not in await firing(watched)

    await watched.wait_for(over, "its end", 200)
