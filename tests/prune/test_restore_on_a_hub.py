"""Users are brought back to a real hub whatever happens on the way, and by nobody who couldn't make them by hand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from guarded import ARMED, ask, guards, mode

from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.model import OutcomeKind
from hubguard.pacing.budget import Budget
from hubguard.prune import undo_file
from hubguard.prune.model import UndoHead
from hubguard.prune.restore import Restorer
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

MakeHub = Callable[..., Awaitable[TestbedHub]]

CROWD = tuple(
    UndoUser(f"user-{number:02}", groups=("staff",), roles=("user",), servers=(UndoServer("gpu", {"cpu": number}),))
    for number in range(40)
)
# The group's only member stays, so that it's there to be joined; "kept" was never deleted, and left the group since.
POPULATION = Population(
    (
        SeededUser("member", groups=("staff",), created_s=900 * DAY_S),
        SeededUser("kept", created_s=900 * DAY_S),
        *(SeededUser(user.name, created_s=900 * DAY_S) for user in CROWD),
    )
)
KEPT = UndoUser("kept", groups=("staff",), roles=("user",))

# Slow enough that it is in the middle of it when it's killed.
RESTORE = """
import asyncio, os, sys
from pathlib import Path
from hubguard.prune.restore import Restorer
from hubguard.prune import undo_file
from hubguard.pacing.budget import Budget
from hubguard.hub.client import HTTPHubAPI

async def main():
    head, users = undo_file.read(Path(sys.argv[1]))
    async with HTTPHubAPI(sys.argv[2], os.environ["TOKEN"], Budget(rate=15.0, burst=1, concurrency=4)) as hub:
        await Restorer(hub).restore(users, since=head.made_at)

asyncio.run(main())
"""


async def deleted(hub: TestbedHub, folder: Path) -> undo_file.Written:
    """The undo file of those who were deleted after it was written, and of one who wasn't."""
    head = UndoHead("d" * 64, datetime.now(timezone.utc), "boss")
    written = undo_file.write(folder, head, (KEPT, *CROWD))
    for user in CROWD:
        assert (await hub.api("DELETE", f"users/{user.name}")).status == 204
    assert await there(hub) == set()
    return written


async def there(hub: TestbedHub) -> set[str]:
    """Who of the crowd the hub has."""
    answer = await hub.api("GET", "users")
    return {user["name"] for user in answer.data} & {user.name for user in CROWD}


async def staff(hub: TestbedHub) -> set[str]:
    members: Iterable[str] = (await hub.api("GET", "groups/staff")).data["users"]
    return {*members}


async def finished(hub: TestbedHub, file: Path) -> None:
    """It is asked for again, to its end; then all is there, and nothing else has changed."""
    head, users = undo_file.read(file)
    async with HTTPHubAPI(hub.api_url, hub.token, Budget(rate=1000.0, burst=100, concurrency=10)) as api:
        outcomes = dict(await Restorer(api).restore(users, since=head.made_at))
        six = int((await api.version()).partition(".")[0]) >= 6
    assert {outcome.kind for outcome in outcomes.values()} <= {OutcomeKind.DONE, OutcomeKind.SKIPPED}
    assert outcomes["kept"].detail == "was there: they weren't deleted"
    assert await there(hub) == {user.name for user in CROWD}
    assert await staff(hub) == {"member", *(user.name for user in CROWD)}
    answer = await hub.api("GET", "users?include_stopped_servers=1")
    shown = {user["name"]: user for user in answer.data}
    assert not any(shown[user.name]["admin"] for user in CROWD)
    if six:
        assert {user.name: shown[user.name]["servers"]["gpu"]["user_options"] for user in CROWD} == {
            user.name: user.servers[0].options for user in CROWD
        }


@pytest.mark.long
async def test_killed_again_and_again_it_is_finished_by_asking_again(testbed_hub: MakeHub, tmp_path: Path) -> None:
    hub = await testbed_hub(population=POPULATION)
    file = (await deleted(hub, tmp_path)).path

    for at_least in (1, 9, 18):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RESTORE, str(file), hub.api_url, env={**os.environ, "TOKEN": hub.token}
        )
        try:

            async def far_enough(wanted: int = at_least) -> bool:
                return len(await there(hub)) >= wanted

            await hub.wait_for(far_enough, "users to be back")
            assert process.returncode is None, "it ended before it was killed, so this proves nothing"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    await finished(hub, file)


@pytest.mark.long
async def test_a_hub_that_goes_away_in_the_middle_gets_the_rest_when_it_is_back(
    testbed_hub: MakeHub, tmp_path: Path
) -> None:
    hub = await testbed_hub(population=POPULATION)
    file = (await deleted(hub, tmp_path)).path
    head, users = undo_file.read(file)
    budget = Budget(rate=15.0, burst=1, concurrency=4, breaker_failures=3)

    async with HTTPHubAPI(hub.api_url, hub.token, budget) as api:
        restoring = asyncio.create_task(Restorer(api).restore(users, since=head.made_at))

        async def begun() -> bool:
            return len(await there(hub)) >= 3

        await hub.wait_for(begun, "users to be back")
        await hub.kill()
        outcomes = dict(await restoring)
    kinds = {outcome.kind for outcome in outcomes.values()}
    assert OutcomeKind.DONE not in kinds, "nobody was read again, so nobody may be called back"
    assert {OutcomeKind.UNVERIFIED, OutcomeKind.SKIPPED} <= kinds

    await hub.start()
    await finished(hub, file)


@pytest.mark.long
async def test_nobody_gains_rights_by_it(testbed_hub: MakeHub, tmp_path: Path) -> None:
    hub = await testbed_hub(population=POPULATION)
    file = (await deleted(hub, tmp_path)).path
    _, users = undo_file.read(file)
    token = (await hub.api("POST", "users/member/tokens", json={})).data["token"]

    async with HTTPHubAPI(hub.api_url, token, Budget(rate=100.0, burst=10, concurrency=4)) as api:
        outcomes = dict(await Restorer(api).restore(users))

    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.SKIPPED}
    assert all("the right admin:users" in outcome.detail for outcome in outcomes.values())
    assert not any(token in outcome.detail for outcome in outcomes.values())
    assert await there(hub) == set()


PRUNING = (
    "c.HubGuardPrune.delete_users = True\n"
    + ARMED
    + """
c.HubGuardCull.idle_timeout_s = 0.0
c.HubGuardPrune.rate = 50.0
"""
)


def stale(name: str, **more: Any) -> SeededUser:
    return SeededUser(name, idle_for_s=200 * DAY_S, created_s=201 * DAY_S, **more)


async def pruned(hub: TestbedHub) -> dict[str, Any]:
    """How the plan to delete all that are stale stands when it is done."""
    await mode(hub, "acting")
    code, plan = await ask(hub, "api/v1/plans", method="POST", json={"inactive_for_s": 180 * DAY_S})
    assert code == 201, plan
    path = f"api/v1/plans/{plan['digest']}"
    body = {"count": len(plan["deletions"]), "acknowledged": [caution["name"] for caution in plan["cautions"]]}
    code, run = await ask(hub, f"{path}/apply", method="POST", json=body)
    assert code == 202, run
    found: dict[str, Any] = {}

    async def done() -> bool:
        found.update((await ask(hub, path))[1]["run"])
        return found["state"] == "done"

    await hub.wait_for(done, "the plan to be done", 60)
    return found


async def brought_back(hub: TestbedHub, run: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, answer) of asking for that, with a token of the hub's admin."""
    token = (await hub.api("POST", f"users/{hub.admin}/tokens", json={})).data["token"]
    body = {"count": run["done"], "why": "they asked"}
    return await ask(hub, f"api/v1/plans/{run['digest']}/restore", method="POST", json=body, token=token)


async def users(hub: TestbedHub) -> set[str]:
    return {user["name"] for user in (await hub.api("GET", "users")).data}


@pytest.mark.long
async def test_without_the_hubs_database_named_servers_that_stood_still_come_back(testbed_hub: MakeHub) -> None:
    """The list of the hub's users doesn't tell of them, and they are deleted with their user."""
    members = (SeededUser("member", groups=("lab",), idle_for_s=DAY_S), stale("ann", groups=("lab",)))
    servers = (SeededServer("ann", idle_for_s=200 * DAY_S, running=False),)
    servers += (SeededServer("ann", "gpu", idle_for_s=200 * DAY_S, running=False, start_s=2.0),)
    hub = await testbed_hub(config=PRUNING, population=Population(members, servers))
    run = await pruned(hub)
    assert "ann" not in await users(hub)
    _, (user,) = undo_file.read(Path(run["undo_file"]))
    assert user.groups == ("lab",)
    assert UndoServer("gpu", servers[1].options) in user.servers

    code, run = await brought_back(hub, run)
    assert (code, run["restored"]) == (200, 1), run
    back = (await hub.api("GET", "users/ann", params={"include_stopped_servers": "1"})).data
    assert back["groups"] == ["lab"]
    async with HTTPHubAPI(hub.api_url, hub.token, Budget(rate=100.0, burst=10, concurrency=4)) as api:
        six = int((await api.version()).partition(".")[0]) >= 6
    if six:
        assert back["servers"]["gpu"]["user_options"] == servers[1].options


@pytest.mark.long
async def test_a_guard_killed_while_it_restores_has_written_down_what_it_began_and_ends_with_all_back(
    testbed_hub: MakeHub,
) -> None:
    crowd = tuple(stale(f"stale-{number:02}") for number in range(30))
    config = PRUNING + "c.HubGuardBudget.rate = 40.0\n"
    hub = await testbed_hub(config=config, population=Population(crowd))
    run = await pruned(hub)
    before = await users(hub)

    asked = asyncio.create_task(brought_back(hub, run))

    async def begun_to() -> bool:
        return len(await users(hub)) >= len(before) + 5

    await hub.wait_for(begun_to, "some users to be back")
    (pid,) = guards(hub)
    os.kill(pid, signal.SIGKILL)
    with suppress(aiohttp.ClientError):
        assert (await asked)[0] != 200
    some = await users(hub)
    assert len(some) < len(before) + 30, "it ended before it was killed, so this proves nothing"

    async def another() -> bool:
        return bool(guards(hub)) and pid not in guards(hub)

    await hub.wait_for(another, "the hub to start HubGuard again", 60)
    await mode(hub, "acting", "braked")
    _, entries = await ask(hub, "api/v1/journal", params={"limit": "100"})
    assert [entry for entry in entries if "about to bring back users 1 to 30 of 30" in entry["detail"]]
    for _ in range(2):
        code, run = await brought_back(hub, run)
        assert (code, run["restored"]) == (200, 30), run
    assert await users(hub) == before | {user.name for user in crowd}
