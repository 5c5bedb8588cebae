"""What hubs have suffered of too many users, and of too few, on real hubs with HubGuard's pruning at hand."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from guarded import ARMED, OBSERVING, ask, mode, status

from hubguard.errors import OfflineRefused
from hubguard.prune import undo_file
from hubguard.prune.decide.plan import OFFLINE_STORAGE
from hubguard.prune.model import Protection, StaleCriteria
from hubguard.prune.offline import apply_offline, plan_offline, restore_offline
from hubguard.prune.offline.in_use import PROCESSES_NOT_SEEN
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

MakeHub = Callable[..., Awaitable[TestbedHub]]


async def names(hub: TestbedHub) -> set[str]:
    """All that the hub has."""
    found: set[str] = set()
    following: dict[str, Any] | None = {"offset": 0}
    while following is not None:
        page = await hub.api(
            "GET",
            "users",
            params={"offset": following["offset"], "limit": 200},
            headers={"Accept": "application/jupyterhub-pagination+json"},
        )
        found |= {user["name"] for user in page.data["items"]}
        following = page.data["_pagination"]["next"]
    return found


@pytest.mark.long
@pytest.mark.parametrize(("users", "stale"), [(300, 294), (5000, 4902)])
async def test_incident_the_hub_took_so_long_to_start_that_users_were_deleted_by_hand_at_noon(
    testbed_hub: MakeHub, tmp_path: Path, users: int, stale: int
):
    """datahub, 2018-01-26: with 5,000 users in its ORM the hub took so long to start that its restarts failed, and 4,902 of
    them were deleted with hand-written SQL in the middle of the day, without a copy and without a way back.

    Here the hub is stopped, a plan made beforehand is applied to its database, and it starts with those who are left. Then
    all is taken back.
    """
    gone = {f"gone-{number:04}" for number in range(stale)}
    kept = {f"here-{number:04}" for number in range(users - stale)}
    population = Population(
        (
            *(
                SeededUser(name, groups=("data8",), idle_for_s=300 * DAY_S, created_s=400 * DAY_S, tokens=1)
                for name in gone
            ),
            *(SeededUser(name, groups=("data8",), idle_for_s=DAY_S, tokens=1) for name in kept),
        ),
        tuple(SeededServer(name, idle_for_s=300 * DAY_S, running=False) for name in gone),
    )
    database = tmp_path / "jupyterhub.sqlite"
    hub = await testbed_hub(population=population, db_url=f"sqlite:///{database}", start_timeout_s=300.0)
    everybody = await names(hub)
    protection = Protection(in_config=frozenset({hub.admin}))

    def in_an_hour() -> datetime:
        """By then it is clear that nobody writes to the database any more."""
        return datetime.now(timezone.utc) + timedelta(hours=1)

    # It's a command's work, with a loop of its own.
    plan = await asyncio.to_thread(
        plan_offline,
        hub.db_url,
        tmp_path,
        StaleCriteria(inactive_for_s=180 * DAY_S),
        protection,
        now=datetime.now(timezone.utc),
        made_by="a tired admin",
        life_s=DAY_S,
        cap=None,
        storage=OFFLINE_STORAGE,
        housekeeping=True,
    )
    assert {deletion.user for deletion in plan.deletions} == gone

    def carried_out() -> Any:
        return apply_offline(
            hub.db_url,
            tmp_path,
            plan,
            count=stale,
            acknowledged=[*(caution.name for caution in plan.cautions), PROCESSES_NOT_SEEN],
            protection=protection,
            undo_folder=tmp_path / "undo",
            now=in_an_hour,
            actor="a tired admin",
            hub_api_url=hub.api_url,
        )

    with pytest.raises(OfflineRefused):
        carried_out()
    assert await names(hub) == everybody, "not under a hub that runs"

    await hub.stop()
    applied = carried_out()
    assert set(applied.deleted) == gone
    assert not applied.skipped
    _, undo = undo_file.read(applied.undo_file, sha256=applied.undo_sha256)
    assert {user.name for user in undo if user.name} == gone
    with sqlite3.connect(applied.backup) as copy:
        assert copy.execute("SELECT count(*) FROM users").fetchone() == (users + 1,)

    await hub.start()
    assert await names(hub) == kept | {hub.admin}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        await hub.login(session, min(kept))
    await hub.stop()
    restored = restore_offline(
        hub.db_url,
        tmp_path,
        applied.undo_file,
        with_tokens=True,
        now=in_an_hour,
        hub_api_url=hub.api_url,
        acknowledged=[PROCESSES_NOT_SEEN],
    )
    assert set(restored.restored) == gone
    await hub.start()
    assert await names(hub) == everybody
    group = await hub.api("GET", "groups/data8")
    assert set(group.data["users"]) == gone | kept


STALE = tuple(SeededUser(f"old-{number:02}", idle_for_s=400 * DAY_S, created_s=500 * DAY_S) for number in range(50))
NEW = tuple(SeededUser(f"new-{number:03}", idle_for_s=DAY_S) for number in range(950))
# The share of the stale isn't what holds it back here: fifty of fifty are fewer than that, too.
SCHEDULED = (
    "c.HubGuardPrune.delete_users = True\n%s"
    'c.HubGuard.hub_db_url = "hub"\nc.HubGuardPrune.every_s = 3600.0\n'
    "c.HubGuardPrune.share_cap = 1.0\nc.HubGuardPrune.rate = 100.0\nc.HubGuardPrune.run_cap = 40\n"
)


def asked_to_delete(hub: TestbedHub) -> int:
    return len(re.findall(r"\d+ DELETE /hub/api/users/", hub.log_text()))


async def held_findings(hub: TestbedHub) -> list[str]:
    return [one["detail"] for one in (await status(hub))["findings"] if one["kind"] == "prune-held"]


@pytest.mark.long
async def test_incident_the_hubs_database_was_overwritten_and_scheduled_pruning_finds_its_users_stale(
    testbed_hub: MakeHub,
):
    """datahub, 2017-02-09: a deploy overwrote the hub's database, about 1,000 users became 50, for 10.8 hours.

    The 50 are of an old copy, by which all of them are long inactive. Pruning by schedule deletes none of them: the number
    of users has fallen, so it holds, and raises an alert.
    """
    hub = await testbed_hub(config=SCHEDULED % OBSERVING, population=Population(STALE + NEW))
    seen = await mode(hub, "observing")
    assert await held_findings(hub) == []
    assert seen["brake"] is None

    async def counted() -> bool:
        return bool((await status(hub))["last_cycle"])

    await hub.wait_for(counted, "HubGuard to have seen all thousand")
    await hub.stop()
    with sqlite3.connect(hub.folder / "jupyterhub.sqlite") as database:
        database.execute("DELETE FROM user_role_map WHERE user_id IN (SELECT id FROM users WHERE name LIKE 'new-%')")
        database.execute("DELETE FROM users WHERE name LIKE 'new-%'")
    database.close()
    await hub.start()
    before = await names(hub)
    assert len(before) == 51
    await status(hub)
    code, answer = await ask(hub, "api/v1/arm", method="POST", json={"why": "the day after the deploy"})
    assert code == 200, answer
    told = await mode(hub, "braked")
    assert told["brake"]["reason"] == "population", told["brake"]

    async def held() -> bool:
        return bool(await held_findings(hub))

    await hub.wait_for(held, "the alert that scheduled pruning is held", 60)
    (detail,) = await held_findings(hub)
    assert detail.startswith("Scheduled pruning skipped. Braked: ")
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "100"})
    assert code == 200
    assert any(entry["detail"] == detail for entry in entries)
    assert await names(hub) == before
    assert asked_to_delete(hub) == 0
    code, runs = await ask(hub, "api/v1/plans")
    assert code == 200
    assert [run for run in runs if run["state"] != "planned"] == []


@pytest.mark.long
async def test_scheduled_pruning_on_a_hub_that_is_as_it_was_removes_no_more_than_its_cap(testbed_hub: MakeHub):
    hub = await testbed_hub(config=SCHEDULED % ARMED, population=Population(STALE + NEW))
    await mode(hub, "acting")

    async def over() -> bool:
        code, runs = await ask(hub, "api/v1/plans")
        return code == 200 and bool(runs) and runs[0]["state"] == "done"

    await hub.wait_for(over, "scheduled pruning to be done", 120)
    code, (run,) = await ask(hub, "api/v1/plans")
    assert (code, run["scheduled"], run["count"], run["done"]) == (200, True, 40, 40)
    left = await names(hub)
    assert {user.name for user in NEW} <= left
    assert len(left) == 961
    assert await held_findings(hub) == []
    assert (await mode(hub, "acting"))["brake"] is None, "its own deletions are no fall of the users"
