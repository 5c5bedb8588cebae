"""Hubs as people run them: what would break, brake or be hidden there, on real ones."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from guarded import ask, mode, servers, status
from hubs_of import MakeHub, hub_of

from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

FORGETFUL = """
from jupyterhub.auth import DummyAuthenticator

class Forgetful(DummyAuthenticator):
    async def delete_user(self, user):
        raise RuntimeError("the directory is read-only")

c.JupyterHub.authenticator_class = Forgetful
"""
PEOPLE = Population(
    users=tuple(SeededUser(f"gone{number}", idle_for_s=90 * DAY_S, created_s=400 * DAY_S) for number in range(6)),
    servers=(SeededServer("ann", idle_for_s=7200), SeededServer("ann", "gpu", idle_for_s=7200)),
)


async def finding(hub: TestbedHub, kind: str) -> str:
    """What the finding of that kind says, once there is one."""
    found: list[str] = []

    async def there() -> bool:
        found[:] = [one["detail"] for one in (await status(hub))["findings"] if one["kind"] == kind]
        return bool(found)

    await hub.wait_for(there, f"a finding {kind}", 30)
    return found[0]


async def intents(hub: TestbedHub, **about: str) -> list[dict[str, Any]]:
    code, entries = await ask(hub, "api/v1/journal", params={"limit": "1000", "event": "intent"})
    assert code == 200, entries
    return [entry for entry in entries if all(entry[name] == value for name, value in about.items())]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def odd(shared_hub: MakeHub) -> TestbedHub:
    """Named servers switched off while one runs, custom scopes set after the include, a delete_user that raises."""
    hub = await hub_of(
        shared_hub,
        "c.JupyterHub.allow_named_servers = False",
        "c.JupyterHub.custom_scopes = {'custom:campus:read': {'description': 'Of the campus.'}}",
        FORGETFUL,
        before=("c.HubGuardCull.users = True",),
        population=PEOPLE,
    )
    await mode(hub, "acting")
    return hub


@pytest.mark.asyncio(loop_scope="module")
async def test_a_named_server_that_the_hub_lets_nobody_stop_is_told_and_its_neighbour_goes(odd: TestbedHub):
    told = await finding(odd, "named-servers-off")
    assert told.startswith("1 named server can't be stopped")
    assert "ann/gpu" in told
    await gone_default(odd)
    assert ("ann", "gpu") in await odd.servers()
    assert len(await intents(odd, user="ann", server="gpu")) == 1, "it isn't asked for again within the hour"
    assert (await status(odd))["error_ratio"] in (None, 0.0)


async def gone_default(hub: TestbedHub) -> None:
    async def check() -> bool:
        return ("ann", "") not in await hub.servers()

    await hub.wait_for(check, "the default server of ann to be gone", 30)


@pytest.mark.asyncio(loop_scope="module")
async def test_users_whom_the_authenticator_cant_delete_are_told_once_and_tried_seldom(odd: TestbedHub):
    told = await finding(odd, "not-deleted")
    assert told.startswith("The hub fails to delete 6 users: gone0, gone1, gone2 and 3 more.")
    await odd.start_server("late", shared=True)
    assert (await mode(odd, "acting"))["mode"] == "acting"
    tries = [entry["user"] for entry in await intents(odd, action="delete-user")]
    assert set(tries) == {f"gone{number}" for number in range(6)}
    assert len(tries) < 18, "of a cycle a second"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_login_works_where_a_later_line_has_set_the_custom_scopes(odd: TestbedHub):
    """It ended in a bare 400 of the hub's, which looks up each scope that a service may ask for."""
    async with aiohttp.ClientSession() as session:
        await odd.login(session)
        async with session.get(f"{odd.url}services/hubguard/") as page:
            assert page.status == 200
            assert page.url.path.endswith("/services/hubguard/")
            text = await page.text()
    assert "overwrites c.JupyterHub.custom_scopes" in text


@pytest.mark.long
async def test_a_hub_with_its_database_in_memory_is_culled_after_a_restart(testbed_hub: MakeHub):
    hub = await hub_of(testbed_hub, db_url="sqlite:///:memory:")
    names = [f"u{number:02}" for number in range(15)]
    assert (await hub.api("POST", "users", json={"usernames": names})).status == 201
    seen = set()

    async def looked() -> bool:
        seen.add(((await status(hub))["last_cycle"] or {}).get("began_at"))
        return len(seen) > 3

    await hub.wait_for(looked, "three cycles")
    await hub.restart()
    assert "users of the hub are new since" in await finding(hub, "new-database")
    assert (await mode(hub, "acting", "braked"))["mode"] == "acting"


@pytest.mark.long
async def test_a_hub_on_postgresql_below_a_prefix_with_its_route_elsewhere_shows_no_drift(
    testbed_hub: MakeHub, postgresql_url: str
):
    hub = await hub_of(
        testbed_hub,
        "c.JupyterHub.hub_routespec = '/jhub/hub/'",
        "c.HubGuard.read_proxy = True",
        "c.HubGuard.hub_db_url = 'hub'",
        hub_prefix="/jhub/",
        external_proxy=True,
        db_url=postgresql_url,
        population=servers(ann=7200, bob=10),
    )
    await mode(hub, "acting")
    for _ in range(3):
        code, answer = await ask(hub, "api/v1/drift/looks", method="POST", json={})
        assert code in (200, 202), answer
    assert await ask(hub, "api/v1/drift") == (200, [])
    code, report = await ask(hub, "api/v1/drift/report")
    assert code == 200
    assert {source["source"] for source in report["sources"] if source["complete"]} >= {"hub_api", "hub_db", "proxy"}
