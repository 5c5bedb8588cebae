"""Every kind of drift, made on a real hub with real processes and a real proxy: found, named right, repaired, verified.

What is healthy is there afterwards as it was: the same runs, in the same processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from constants import constants_by_the_hub
from guarded import ARMED, ask, mode, patient, runs, servers, table

from hubguard.staging.hub import TestbedHub

MakeHub = Callable[..., Awaitable[TestbedHub]]

LOOKING = (
    ARMED
    + """
c.HubGuard.read_proxy = True
c.HubGuard.hub_db_url = "hub"
c.HubGuardCull.idle_timeout_s = 86400.0
c.HubGuardCull.every_s = 60.0
c.HubGuardDrift.every_s = 5.0
"""
    + constants_by_the_hub(verify_s=5.0, for_s=2.0, sightings=2, clear_after=1)
    # The hub neither checks its routes nor polls its servers by itself, so that what is mended is mended by HubGuard.
    + "c.JupyterHub.last_activity_interval = 3600\nc.Spawner.poll_interval = 3600\n"
)
# Only looks tell what happens here.
REPORTING = LOOKING + "c.HubGuardDrift.repair = []\n"


async def route(hub: TestbedHub, method: str, path: str, **data: str) -> None:
    """Change the proxy's table past hub and guard."""
    headers = {"Authorization": f"token {hub.proxy_token}"}
    url = f"{hub.proxy_api_url}/api/routes{quote(path)}"
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.request(method, url, json={"jupyterhub": True, **data} if data else None) as answer,
    ):
        assert answer.status in {201, 204}


async def looks(hub: TestbedHub, count: int) -> None:
    """Returns after so many more looks."""
    looked: set[str] = set()

    async def enough() -> bool:
        code, report = await ask(hub, "api/v1/drift/report")
        if code == 200 and report["looked_at"] is not None:
            looked.add(report["looked_at"])
        return len(looked) > count

    await hub.wait_for(enough, f"{count} looks", 60)


async def drift(hub: TestbedHub, *wanted: tuple[str, str], timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """The drift that has been raised, once that is of exactly these (kind, user), in that order."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        code, answer = await ask(hub, "api/v1/drift", params={"state": "raised"})
        found[:] = answer if code == 200 else []
        return code == 200 and sorted((one["kind"], one["user"]) for one in found) == sorted(wanted)

    try:
        await hub.wait_for(there, f"{wanted or 'no drift'}", timeout_s)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return sorted(found, key=lambda one: wanted.index((one["kind"], one["user"])))


async def journal(hub: TestbedHub) -> list[dict[str, Any]]:
    """All entries, oldest first."""
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000"})
    assert code == 200
    return list(reversed(entries))


async def repaired(hub: TestbedHub, *found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Have these repaired; (action, outcome, detail) of each thing that was done, in the order in which it was begun."""
    code, plan = await ask(hub, "api/v1/repairs", method="POST", json={"ids": [one["id"] for one in found]})
    assert code == 200, plan
    before = len(await journal(hub))
    body = {"digest": plan["digest"], "count": len(plan["repairs"]), "why": "a test wants it"}
    code, answer = await ask(hub, "api/v1/repairs", method="POST", json=body)
    assert code == 202, answer
    done: list[tuple[str, str, str]] = []

    async def through() -> bool:
        code, report = await ask(hub, "api/v1/drift/report")
        mine = {one["id"] for one in found}
        ended = {id for one in report["repaired"] if one["outcome"] for id in one["drifts"]} if code == 200 else set()
        entries = (await journal(hub))[before:]
        told = {entry["refers_to"]: entry for entry in entries if entry["event"] == "outcome"}
        begun = [entry for entry in entries if entry["event"] == "intent"]
        if not mine <= ended or not begun or any(entry["id"] not in told for entry in begun):
            return False
        outcomes = [told[entry["id"]] for entry in begun]
        done[:] = [(entry["action"], entry["outcome"], entry["detail"]) for entry in outcomes]
        return True

    await hub.wait_for(through, "the repairs to be through", 60)
    return done


@pytest.mark.long
async def test_what_is_only_reported_is_repaired_when_asked_for_and_the_hub_beside_it_stays_as_it_is(
    testbed_hub: MakeHub,
):
    """A process that was killed, one that its stop left alive, and a route that is gone; the other hub has the same users."""
    hub, other = [
        await testbed_hub(config=REPORTING, population=servers(cat=7200), external_proxy=True) for _ in range(2)
    ]
    for each in (hub, other):
        await mode(each, "acting")
        await each.start_server("ann")
        await each.start_server("bob")
        await each.start_server("dan", on_stop="raises")
    await looks(hub, 2)
    assert await ask(hub, "api/v1/drift") == (200, []), "all is well, and nothing is even suspected"
    dan = (await runs(hub, "dan"))["dan"]
    healthy, before, theirs = await runs(hub, "bob", "cat"), await table(hub), await runs(other)

    await hub.kill_server("ann")
    assert (await hub.api("DELETE", "users/dan/server")).status == 204
    await route(hub, "DELETE", "/user/cat")
    found = await drift(hub, ("server-dead", "ann"), ("server-orphan", "dan"), ("route-missing", "cat"), timeout_s=150)
    assert [one["remedy"] for one in found] == ["stop-server", "end-backend", "check-routes"]
    assert str(dan[1]) in found[1]["backend"]["name"]
    await looks(hub, 1)
    assert ("ann", "") in await hub.servers(), "by itself it is only reported"
    assert dan[1] in hub.leftovers()
    assert "/user/cat" not in await table(hub)

    done = await repaired(hub, *found)
    assert sorted(action for action, _, _ in done) == ["check-routes", "end-backend", "stop-server"]
    assert {outcome for _, outcome, _ in done} == {"done"}, done
    assert ("ann", "") not in await hub.servers()
    assert dan[1] not in hub.leftovers()
    assert await table(hub) == {path: to for path, to in before.items() if path not in {"/user/ann", "/user/dan"}}
    assert await runs(hub, "bob", "cat") == healthy
    await drift(hub)
    assert await ask(other, "api/v1/drift") == (200, [])
    assert await runs(other) == theirs
    assert all(pid in other.leftovers() for user, (_, pid) in theirs.items() if user != "cat")


async def test_routes_that_are_gone_lead_elsewhere_or_nowhere_are_mended_by_themselves(testbed_hub: MakeHub):
    hub = await testbed_hub(config=LOOKING, population=servers(ann=60, bob=60, carl=60), external_proxy=True)
    await mode(hub, "acting")
    before, healthy = await table(hub), await runs(hub)
    # Right after a look, so that the same looks see all three: what was only suspected when it was mended isn't told of.
    await looks(hub, 1)
    await route(hub, "DELETE", "/user/ann")
    await route(hub, "POST", "/user/bob", user="bob", server_name="", target="http://127.0.0.1:9")
    await route(hub, "POST", "/user/gone", user="gone", server_name="", target="http://127.0.0.1:9")

    async def mended() -> bool:
        return await table(hub) == before

    await hub.wait_for(mended, "the routes to be as they were", 60)
    kinds = {"route-missing", "route-wrong-target", "route-stale"}
    entries: list[dict[str, Any]] = []

    def told(event: str) -> set[str]:
        return {entry["detail"].split(":")[0] for entry in entries if entry["event"] == event}

    async def over() -> bool:
        entries[:] = await journal(hub)
        return told("cleared") == kinds

    await hub.wait_for(over, "the journal to tell that all three are over", 60)
    assert told("finding") == kinds
    done = [(entry["action"], entry["outcome"]) for entry in entries if entry["event"] == "outcome"]
    assert done == [("check-routes", "done")], "one check mends all of them"
    assert await runs(hub) == healthy
    await drift(hub)


@pytest.mark.long
async def test_a_ghost_is_cured_by_a_start_and_a_stop_and_a_frozen_start_is_interrupted(testbed_hub: MakeHub):
    """Ann's server dies while the proxy is down: the hub can't take its route away, and has it as ready for ever after."""
    hub = await testbed_hub(
        config=LOOKING.replace("poll_interval = 3600", "poll_interval = 1")
        + "c.HubGuardCull.pending_limit_s = 60.0\n"
        + patient(3600)
        + "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}\n",
        population=servers(),
        external_proxy=True,
    )
    await mode(hub, "acting")
    await hub.start_server("ann", stop_s=0.5)
    await hub.start_server("bob")
    healthy = await runs(hub, "bob")
    await hub.api("POST", "users/eve")
    assert (await hub.api("POST", "users/eve/server", json={"start_s": 3000.0})).status == 202
    await hub.kill_proxy()
    await hub.kill_server("ann")
    await asyncio.sleep(40)  # the hub tries for half a minute to take the route away, and gives up
    await hub.start_proxy()
    assert (await hub.api("POST", "proxy")).status == 200
    server = await hub.server("ann")
    assert server is not None
    assert server["ready"], "a ghost"

    dead, stuck = await drift(hub, ("server-dead", "ann"), ("pending-stuck", "eve"), timeout_s=90)
    assert (dead["remedy"], stuck["remedy"]) == ("stop-server", "interrupt-spawn")
    ((action, outcome, detail),) = await repaired(hub, dead)
    assert (action, outcome) == ("stop-server", "failed")
    assert "the stop changed nothing" in detail
    ghost, stuck = await drift(hub, ("server-ghost", "ann"), ("pending-stuck", "eve"))
    assert ghost["remedy"] == "start-and-stop"
    done = await repaired(hub, ghost, stuck)
    assert {outcome for _, outcome, _ in done} == {"done"}, done
    actions = [action for action, _, _ in done]
    assert sorted(actions) == ["interrupt-spawn", "start-and-stop", "stop-server"]
    assert actions.index("start-and-stop") < actions.index("stop-server")
    # The hub gives a start the options of the one before.
    user = await hub.api("GET", "users/ann", params={"include_stopped_servers": "1"})
    assert user.data["servers"][""]["user_options"] == {"stop_s": 0.5}
    assert set(await hub.servers()) == {("bob", "")}
    await drift(hub)
    assert await runs(hub) == healthy
