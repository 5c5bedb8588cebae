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
from guarded import ARMED, ask, guards, mode, servers
from yarl import URL

from hubguard.testbed.hub import TestbedHub

MakeHub = Callable[..., Awaitable[TestbedHub]]

LOOKING = (
    ARMED
    + """
c.HubGuard.read_proxy = True
c.HubGuard.hub_db_url = "hub"
c.HubGuardCull.idle_timeout_s = 86400.0
c.HubGuardCull.verify_s = 10.0
c.HubGuardDrift.every_s = 5.0
c.HubGuardDrift.for_s = 2.0
c.HubGuardDrift.sightings = 2
c.HubGuardDrift.clear_after = 1
"""
    # The hub neither checks its routes nor polls its servers by itself, so that what is mended is mended by HubGuard.
    + "c.JupyterHub.last_activity_interval = 3600\nc.Spawner.poll_interval = 3600\n"
)
REPORTING = LOOKING + "c.HubGuardDrift.repair = []\nc.HubGuardDrift.watch_proxy = False\n"


async def proxy(hub: TestbedHub, method: str, path: str, **request: Any) -> tuple[int, Any]:
    """The proxy's own answer, past hub and guard."""
    url = URL(f"{hub.proxy_api_url}/api/routes{quote(path)}", encoded=True)
    headers = {"Authorization": f"token {hub.proxy_token}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.request(method, url, **request) as answer,
    ):
        text = await answer.text()
        return answer.status, await answer.json() if text and answer.status == 200 else text


async def table(hub: TestbedHub) -> dict[str, str]:
    """Where each route of the proxy's leads, by path."""
    code, routes = await proxy(hub, "GET", "")
    assert code == 200
    return {path: route["target"] for path, route in routes.items()}


def ours(routes: dict[str, str]) -> dict[str, str]:
    """``routes`` without HubGuard's own canary."""
    return {path: target for path, target in routes.items() if "canary" not in path}


async def raised(hub: TestbedHub) -> list[dict[str, Any]]:
    """The drift that has been raised."""
    found: list[dict[str, Any]] = []

    async def looked() -> bool:
        code, answer = await ask(hub, "api/v1/drift", params={"state": "raised"})
        assert code in {200, 409, 503, 404}, answer
        found[:] = answer if code == 200 else []
        return code == 200

    await hub.wait_for(looked, "a look for drift", 30)
    return found


async def drift(hub: TestbedHub, *wanted: tuple[str, str | None], timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """The raised drift, once that is of exactly these (kind, user)."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = await raised(hub)
        return {(one["kind"], one["user"]) for one in found} == set(wanted)

    try:
        await hub.wait_for(there, f"{wanted or 'no drift'}", timeout_s)
    except Exception as error:
        raise AssertionError(f"{found}\n{error}") from error
    return found


async def repaired(hub: TestbedHub, *ids: str) -> list[str]:
    """Repair these; how each repair ended, in the journal's words."""
    code, plan = await ask(hub, "api/v1/repairs", method="POST", json={"ids": list(ids)})
    assert code == 200, plan
    count = len(plan["repairs"])
    body = {"digest": plan["digest"], "count": count, "why": "a test wants it"}
    code, answer = await ask(hub, "api/v1/repairs", method="POST", json=body)
    assert code == 202, answer
    ends: list[str] = []

    async def through() -> bool:
        code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000"})
        assert code == 200
        told = {entry["refers_to"]: f"{entry['outcome']}: {entry['detail']}" for entry in entries if entry["outcome"]}
        intents = [entry for entry in reversed(entries) if entry["event"] == "intent"][-count:]
        ends[:] = [told.get(entry["id"], "") for entry in intents]
        return len(ends) == count and all(ends)

    await hub.wait_for(through, "the repairs to be through", 60)
    return ends


async def healthy(hub: TestbedHub, *users: str) -> dict[str, Any]:
    """Run and process of each of these, to be compared later."""
    listed = await hub.servers()
    return {user: (listed[user, ""]["started"], listed[user, ""]["state"]["pid"]) for user in users}


async def test_a_hub_where_all_is_well_shows_no_drift(testbed_hub: MakeHub):
    hub = await testbed_hub(config=LOOKING, population=servers(ann=60, bob=7200), external_proxy=True)
    await mode(hub, "acting")
    looked: set[str] = set()

    async def five_looks() -> bool:
        code, report = await ask(hub, "api/v1/drift/report")
        if code == 200 and report["looked_at"] is not None:
            looked.add(report["looked_at"])
        return len(looked) >= 3

    await hub.wait_for(five_looks, "three looks", 60)
    assert await raised(hub) == []
    code, suspected = await ask(hub, "api/v1/drift")
    assert (code, suspected) == (200, [])


async def test_routes_that_are_gone_lead_elsewhere_or_nowhere_are_mended_by_themselves(testbed_hub: MakeHub):
    hub = await testbed_hub(config=LOOKING, population=servers(ann=60, bob=60, carl=60), external_proxy=True)
    await mode(hub, "acting")
    before, as_it_was = await table(hub), await healthy(hub, "ann", "bob", "carl")

    async def mended() -> bool:
        return ours(await table(hub)) == ours(before)

    def route(user: str) -> dict[str, Any]:
        return {"jupyterhub": True, "user": user, "server_name": "", "target": "http://127.0.0.1:9"}

    # One after the other: a check mends all routes at once, and what was only suspected by then is never told of.
    assert (await proxy(hub, "DELETE", "/user/ann"))[0] == 204
    await hub.wait_for(mended, "the missing route to be back", 60)
    assert (await proxy(hub, "POST", "/user/bob", json=route("bob")))[0] == 201
    await hub.wait_for(mended, "the route to lead where it should", 60)
    assert (await proxy(hub, "POST", "/user/gone", json=route("gone")))[0] == 201
    await hub.wait_for(mended, "the stale route to be gone", 60)
    await drift(hub)
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000"})
    assert code == 200
    told = {entry["detail"].split(":")[0] for entry in entries if entry["event"] == "finding"}
    assert {"route-missing", "route-wrong-target", "route-stale"} <= told
    done = [entry for entry in entries if entry["action"] == "check-routes" and entry["outcome"]]
    assert done
    assert {entry["outcome"] for entry in done} == {"done"}
    assert await healthy(hub, "ann", "bob", "carl") == as_it_was


async def test_what_is_only_to_be_reported_is_repaired_when_asked_for(testbed_hub: MakeHub):
    hub = await testbed_hub(config=REPORTING, population=servers(ann=60, bob=60), external_proxy=True)
    await mode(hub, "acting")
    before = ours(await table(hub))
    assert (await proxy(hub, "DELETE", "/user/ann"))[0] == 204
    (found,) = await drift(hub, ("route-missing", "ann"))
    assert "/user/ann" not in await table(hub)
    assert await repaired(hub, found["id"]) == ["done: " + (await _last_detail(hub))]
    assert ours(await table(hub)) == before
    await drift(hub)


async def _last_detail(hub: TestbedHub) -> str:
    _, entries = await ask(hub, "api/v1/journal", params={"event": "outcome", "limit": "1"})
    return str(entries[0]["detail"])


async def test_a_server_whose_process_was_killed_is_dead_and_stopped_when_asked_for(testbed_hub: MakeHub):
    hub = await testbed_hub(config=LOOKING, population=servers(), external_proxy=True)
    await mode(hub, "acting")
    await hub.start_server("ann")
    await hub.start_server("bob")
    as_it_was = await healthy(hub, "bob")
    await hub.kill_server("ann")
    (found,) = await drift(hub, ("server-dead", "ann"))
    assert found["remedy"] == "stop-server"
    assert ("ann", "") in await hub.servers(), "by itself it is only reported"
    (end,) = await repaired(hub, found["id"])
    assert end.startswith("done")
    assert ("ann", "") not in await hub.servers()
    await drift(hub)
    assert await healthy(hub, "bob") == as_it_was


async def test_a_backend_that_its_stop_left_alive_is_an_orphan_and_ended_when_asked_for(testbed_hub: MakeHub):
    hub = await testbed_hub(config=LOOKING, population=servers(bob=60), external_proxy=True)
    await mode(hub, "acting")
    await hub.start_server("ann", on_stop="raises")
    server = await hub.server("ann")
    assert server is not None
    pid = server["state"]["pid"]
    as_it_was = await healthy(hub, "bob")
    assert (await hub.api("DELETE", "users/ann/server")).status == 204
    assert pid in hub.leftovers()

    async def proved() -> bool:
        return any(one["kind"] == "server-orphan" and one["backend"] for one in await raised(hub))

    await hub.wait_for(proved, "the orphan to be found", 60)
    (found,) = [one for one in await raised(hub) if one["backend"]]
    assert (found["user"], found["remedy"]) == ("ann", "end-backend")
    assert str(pid) in found["backend"]["name"]
    assert pid in hub.leftovers(), "by itself it is only reported"
    (end,) = await repaired(hub, found["id"])
    assert end.startswith("done")
    assert pid not in hub.leftovers()
    await drift(hub)
    assert await healthy(hub, "bob") == as_it_was


@pytest.mark.long
async def test_a_ghost_that_died_while_the_proxy_was_down_is_cured_by_a_start_and_a_stop(testbed_hub: MakeHub):
    """The hub sees it dead, can't take its route away, and has it as ready for ever; every stop is then a no-op."""
    hub = await testbed_hub(
        config=LOOKING.replace("poll_interval = 3600", "poll_interval = 1"),
        population=servers(),
        external_proxy=True,
    )
    await mode(hub, "acting")
    await hub.start_server("ann")
    await hub.start_server("bob")
    as_it_was = await healthy(hub, "bob")
    await hub.kill_proxy()
    await hub.kill_server("ann")
    await asyncio.sleep(40)  # the hub tries for half a minute to take the route away, and gives up
    await hub.start_proxy()
    assert (await hub.api("POST", "proxy")).status == 200
    server = await hub.server("ann")
    if server is None or not server["ready"]:
        pytest.skip("this hub has noticed that the server is gone")
    (found,) = await drift(hub, ("server-dead", "ann"), timeout_s=90)
    ends = await repaired(hub, found["id"])
    if not ends[0].startswith("done"):
        (found,) = await drift(hub, ("server-ghost", "ann"), timeout_s=90)
        assert found["remedy"] == "start-and-stop"
        ends = await repaired(hub, found["id"])
    assert ends[0].startswith("done"), ends
    assert ("ann", "") not in await hub.servers()
    await drift(hub)
    assert await healthy(hub, "bob") == as_it_was


@pytest.mark.long
async def test_a_start_that_is_frozen_is_stuck_and_interrupted_when_asked_for(testbed_hub: MakeHub):
    hub = await testbed_hub(
        config=LOOKING + "c.HubGuardCull.pending_limit_s = 60.0\nc.Spawner.start_timeout = 3600\n"
        "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 0}\n",
        population=servers(bob=60),
        external_proxy=True,
    )
    await mode(hub, "acting")
    await hub.api("POST", "users/ann")
    assert (await hub.api("POST", "users/ann/server", json={"start_s": 3000.0})).status == 202
    (found,) = await drift(hub, ("pending-stuck", "ann"), timeout_s=150)
    assert found["remedy"] == "interrupt-spawn"
    (end,) = await repaired(hub, found["id"])
    assert end.startswith("done"), end
    assert ("ann", "") not in await hub.servers()
    await drift(hub)


async def test_a_proxy_that_was_killed_gets_all_its_routes_back_at_once(testbed_hub: MakeHub):
    names = {f"u{number}": 60.0 for number in range(30)}
    hub = await testbed_hub(config=LOOKING, population=servers(**names), external_proxy=True)
    await mode(hub, "acting")
    before = ours(await table(hub))
    (guard,) = guards(hub)
    await asyncio.sleep(3)  # the watch has its canary there
    await hub.kill_proxy()
    await hub.start_proxy()

    async def back() -> bool:
        there = await table(hub)
        return all(there.get(path) == target for path, target in before.items())

    await hub.wait_for(back, "all routes to be back", 20)
    assert guards(hub) == [guard]
    code, report = await ask(hub, "api/v1/drift/report")
    assert code == 200
    assert report["watch"]["restored_at"] is not None
    assert report["watch"]["missing"] == []


async def test_with_two_hubs_on_one_machine_neither_touches_the_others_servers(testbed_hub: MakeHub):
    one = await testbed_hub(config=LOOKING, population=servers(), external_proxy=True)
    other = await testbed_hub(config=LOOKING, population=servers(), external_proxy=True)
    await mode(one, "acting")
    await mode(other, "acting")
    for hub, user in ((one, "ann"), (other, "ann"), (other, "zoe")):
        await hub.start_server(user)
    as_it_was = await healthy(other, "ann", "zoe")
    await asyncio.sleep(15)
    assert await raised(one) == []
    assert await raised(other) == []
    assert await healthy(other, "ann", "zoe") == as_it_was
