"""What tells a hub that doesn't notice use any more from one that is quiet, on a real hub with a real proxy.

The rules that rest on it stand in docs/explanation/decisions.md. If a hub or a proxy changes its behavior, these fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import aiohttp
import pytest
import pytest_asyncio
from doubles.paths import route_path

from hubguard.hub.models import read_time
from hubguard.hub.routes import read_hub_routes
from hubguard.pacing.budget import Budget
from hubguard.proxy.client import HTTPProxyAPI
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

# What the brake rests on; it changes with the hub's versions, and not with HubGuard.
pytestmark = pytest.mark.long

Hubs = Callable[..., Awaitable[TestbedHub]]

INTERVAL_S = 1
CONFIG = f"""
c.JupyterHub.last_activity_interval = {INTERVAL_S}
c.JupyterHub.cleanup_servers = False
"""
PEOPLE = Population((), tuple(SeededServer(user, idle_for_s=600, shared=False) for user in ("ann", "bob", "killed")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(shared_hub: Hubs) -> TestbedHub:
    """Whoever breaks its feed, its proxy or the hub itself mends that."""
    return await shared_hub(population=PEOPLE, config=CONFIG, external_proxy=True)


class Look:
    """The last activity of every server, by user, as hub and proxy have it; None at the proxy: no route."""

    def __init__(self, hub: dict[str, datetime], proxy: dict[str, datetime | None]) -> None:
        self.hub = hub
        self.proxy = proxy


async def look(hub: TestbedHub) -> Look:
    budget = Budget(rate=1000.0, burst=1000, concurrency=10)
    async with HTTPProxyAPI(hub.proxy_api_url, hub.proxy_token or "", budget) as proxy:
        routes = await proxy.routes()
    # The hub second: what it hasn't got now, it hadn't taken over when the proxy told of it.
    servers = {user: read_time(server["last_activity"], "it") for (user, _), server in (await hub.servers()).items()}
    stamps = {user: routes.get(route_path("/", user, "")) for user in servers}
    return Look(
        {user: at for user, at in servers.items() if at is not None},
        {user: route and route.last_activity for user, route in stamps.items()},
    )


async def use(hub: TestbedHub, user: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{hub.url}user/{user}/api/status") as answer:
        assert answer.status == 200


async def taken_over(hub: TestbedHub, *users: str) -> Look:
    """Wait till the hub's activity of these users is the proxy's, to the microsecond."""
    found = await look(hub)

    async def same() -> bool:
        nonlocal found
        found = await look(hub)
        return all(found.hub[user] == found.proxy[user] for user in users)

    await hub.wait_for(same, "the hub to take over what the proxy has seen")
    return found


async def updates(hub: TestbedHub, count: int) -> None:
    """Wait till the hub has asked the proxy for its table ``count`` times more, with or without success."""
    asked = hub.log_text().count("GET /api/routes")

    async def done() -> bool:
        return hub.log_text().count("GET /api/routes") >= asked + count

    await hub.wait_for(done, "the hub to update activity")


async def test_a_hub_takes_over_exactly_what_the_proxy_has_seen_and_nothing_for_others(hub: TestbedHub) -> None:
    before = await taken_over(hub, "ann", "bob")
    await use(hub, "ann")
    seen = (await look(hub)).proxy["ann"]
    assert seen is not None
    assert before.hub["ann"] < seen
    after = await taken_over(hub, "ann")
    assert after.hub["ann"] == seen
    assert after.hub["bob"] == before.hub["bob"]


async def test_the_hubs_own_view_of_the_table_has_the_same_times(hub: TestbedHub) -> None:
    await use(hub, "ann")
    shown = read_hub_routes((await hub.api("GET", "proxy")).data)
    assert shown["/user/ann"].last_activity == (await look(hub)).proxy["ann"]


async def test_on_a_quiet_hub_nothing_moves_whether_its_feed_works_or_not(hub: TestbedHub) -> None:
    before = await taken_over(hub, "ann", "bob")
    await updates(hub, 3)
    assert (await look(hub)).__dict__ == before.__dict__
    assert (await hub.api("PATCH", "proxy", json={"auth_token": "wrong"})).status == 500
    await updates(hub, 3)
    assert (await look(hub)).__dict__ == before.__dict__
    assert (await hub.api("PATCH", "proxy", json={"auth_token": hub.proxy_token})).status == 200


async def test_use_that_the_hub_never_takes_over_shows_that_its_feed_is_frozen(hub: TestbedHub) -> None:
    before = await taken_over(hub, "ann", "bob")
    # As when the proxy was given another token: its table can be read with that, and the hub's update can't.
    assert (await hub.api("PATCH", "proxy", json={"auth_token": "wrong"})).status == 500
    await use(hub, "ann")
    seen = (await look(hub)).proxy["ann"]
    assert seen is not None
    await updates(hub, 3)
    frozen = await look(hub)
    assert frozen.hub == before.hub
    assert frozen.hub["ann"] < seen == frozen.proxy["ann"]
    assert frozen.proxy["bob"] == frozen.hub["bob"]
    assert (await hub.api("PATCH", "proxy", json={"auth_token": hub.proxy_token})).status == 200
    assert (await taken_over(hub, "ann")).hub["ann"] == seen


async def test_after_a_restart_of_the_proxy_everybody_looks_as_if_just_at_work(hub: TestbedHub) -> None:
    before = await taken_over(hub, "ann", "bob")
    await hub.kill_proxy()
    await hub.start_proxy()
    await hub.api("POST", "proxy")
    after = await taken_over(hub, "ann", "bob")
    assert after.hub["ann"] > before.hub["ann"]
    assert after.hub["bob"] > before.hub["bob"]
    assert abs((after.hub["ann"] - after.hub["bob"]).total_seconds()) < 5


async def test_use_while_the_hub_is_away_is_taken_over_when_it_is_back(hub: TestbedHub) -> None:
    before = await taken_over(hub, "ann", "bob")
    await hub.stop()
    await use(hub, "ann")
    await hub.start()
    after = await taken_over(hub, "ann", "bob")
    assert after.hub["ann"] > before.hub["ann"]
    assert after.hub["bob"] == before.hub["bob"]


async def test_only_what_a_server_answers_well_counts_as_use(hub: TestbedHub) -> None:
    before = await taken_over(hub, "killed")
    await hub.kill_server("killed")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{hub.url}user/killed/api/status") as answer:
            assert answer.status == 503
        async with session.get(f"{hub.url}_chp_healthz") as answer:
            assert answer.status == 200
    assert (await look(hub)).proxy["killed"] == before.proxy["killed"]
