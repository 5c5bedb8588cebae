"""The watch on a real hub with a real proxy: killed, wiped, frozen, and with the hub away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from hubguard.clients.budget import Budget
from hubguard.clients.canary import HTTPCanary
from hubguard.clients.clock import SystemClock
from hubguard.clients.hub_api import HTTPHubAPI
from hubguard.clients.proxy_api import HTTPProxyAPI
from hubguard.clients.proxy_models import route_path
from hubguard.drift import WatchState
from hubguard.model import Outcome, OutcomeKind, Route
from hubguard.proxy_watch import ProxyWatch
from hubguard.testbed.hub import TestbedHub
from hubguard.testbed.population import Population, SeededServer

Hubs = Callable[..., Awaitable[TestbedHub]]

PEOPLE = tuple(f"user{number:02}" for number in range(12))
POPULATION = Population(servers=tuple(SeededServer(name, idle_for_s=60.0) for name in PEOPLE))
# What the hub would mend itself, it mends in an hour.
LAZY = """
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.cleanup_servers = False
"""
TOKEN = "the-token-of-this-proxy"
OWN_PROXY = LAZY + f"c.ConfigurableHTTPProxy.auth_token = {TOKEN!r}\n"


class Watched:
    """A hub whose proxy is watched; ``recorded`` are the intents (None) and outcomes."""

    def __init__(self, hub: TestbedHub, table: HTTPProxyAPI, watch: ProxyWatch, canary: HTTPCanary) -> None:
        self.hub = hub
        self.watch = watch
        self.canary = canary
        self.recorded: list[Outcome | None] = []
        self._table = table
        self.expected = {route_path("/", name, ""): (name, "") for name in PEOPLE}

    async def table(self) -> dict[str, Route]:
        return await self._table.routes()

    async def until(self, state: WatchState, timeout_s: float = 20.0) -> None:
        async def there() -> bool:
            return self.watch.status.state is state

        try:
            await self.hub.wait_for(there, f"the proxy to be {state.value}", timeout_s)
        except Exception as error:
            raise AssertionError(f"{self.watch.status}\n{error}") from error

    async def restored(self, timeout_s: float = 30.0) -> None:
        async def there() -> bool:
            status = self.watch.status
            return status.restored_at is not None and status.state is WatchState.FINE

        try:
            await self.hub.wait_for(there, "the routes to be back", timeout_s)
        except Exception as error:
            raise AssertionError(f"{self.watch.status}\n{error}") from error

    @property
    def checks(self) -> int:
        """How often the hub was asked to check its routes."""
        return self.hub.log_text().count("POST /hub/api/proxy")


@asynccontextmanager
async def watched(hub: TestbedHub, *, token: str | None = None) -> AsyncIterator[Watched]:
    budget = Budget(rate=20.0, burst=10, concurrency=10)
    token = token or hub.proxy_token or ""
    found: Watched

    async def record(why: str, outcome: Outcome | None) -> None:
        found.recorded.append(outcome)

    async with (
        HTTPHubAPI(hub.api_url, hub.token, budget) as api,
        HTTPProxyAPI(hub.proxy_api_url, token, budget) as table,
        HTTPProxyAPI(hub.proxy_api_url, token, Budget(rate=1000.0, burst=1000, concurrency=10)) as looked_at,
    ):
        canary = HTTPCanary(hub.proxy_api_url, token, budget, name="test", public_url=hub.url)
        watch = ProxyWatch(
            canary,
            table,
            api,
            budget,
            SystemClock(),
            expected=lambda: found.expected,
            may_act=lambda: True,
            record=record,
        )
        found = Watched(hub, looked_at, watch, canary)
        running = asyncio.create_task(watch.run())
        try:
            await found.until(WatchState.FINE)
            yield found
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def reached(hub: TestbedHub, user: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{hub.url}user/{user}/api/status") as answer:
        return answer.status


async def test_a_proxy_that_was_killed_and_started_again_has_all_routes_back_by_one_question(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=LAZY, external_proxy=True)
    async with watched(hub) as world:
        first = world.watch.status.proxy_started_at
        await hub.kill_proxy()
        await world.until(WatchState.GONE)
        await hub.start_proxy()
        await world.restored()
        assert set(world.expected) <= set(await world.table())
        assert await reached(hub, PEOPLE[0]) == 200
        assert world.checks == 1
        assert [outcome and outcome.kind for outcome in world.recorded] == [None, OutcomeKind.DONE]

        async def restart_told() -> bool:
            started = world.watch.status.proxy_started_at
            return first is None or (started is not None and started > first)

        await hub.wait_for(restart_told, "the new start to be told")
        ((begins, ends),) = world.watch.restores
        for path in world.expected:
            stamped = (await world.table())[path].last_activity
            assert path == route_path("/", PEOPLE[0], "") or begins <= stamped <= ends


async def test_a_wiped_table_is_filled_again_and_the_canary_is_left_alone_by_the_hub(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=LAZY, external_proxy=True)
    async with watched(hub) as world:
        headers = {"Authorization": f"token {hub.proxy_token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for path in await world.table():
                if path != "/":
                    async with session.delete(f"{hub.proxy_api_url}/api/routes{path}") as answer:
                        assert answer.status == 204
        await world.restored()
        assert set(world.expected) <= set(await world.table())
        planted = (await world.table())[world.canary.path]
        assert (await hub.api("POST", "proxy")).status == 200
        assert (await world.table())[world.canary.path].target == planted.target
        await asyncio.sleep(3.0)
        assert world.watch.status.state is WatchState.FINE
        assert world.checks == 2
    assert world.canary.path not in await after(hub)


async def after(hub: TestbedHub) -> dict[str, Route]:
    async with HTTPProxyAPI(hub.proxy_api_url, hub.proxy_token or "", Budget(rate=9, burst=9, concurrency=9)) as proxy:
        return await proxy.routes()


async def test_a_frozen_proxy_hangs_and_the_hub_is_not_sent_to_it(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=LAZY, external_proxy=True)
    async with watched(hub) as world:
        assert hub.proxy_pid is not None
        os.kill(hub.proxy_pid, signal.SIGSTOP)
        try:
            await world.until(WatchState.HANGS)
        finally:
            os.kill(hub.proxy_pid, signal.SIGCONT)
        await world.until(WatchState.FINE)
        assert world.checks == 0
        assert world.watch.restores == ()
        assert set(world.expected) <= set(await world.table())


async def test_a_proxy_that_the_hub_runs_itself_is_watched_alike(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=OWN_PROXY)
    async with watched(hub, token=TOKEN) as world:
        await hub.kill_proxy()
        await world.until(WatchState.GONE)
        await world.restored(60.0)
        assert set(world.expected) <= set(await world.table())
        assert await reached(hub, PEOPLE[-1]) == 200
        assert world.checks <= 2


@pytest.mark.long
async def test_a_table_that_is_lost_while_the_hub_is_down_is_filled_when_it_is_back(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=LAZY, external_proxy=True)
    async with watched(hub) as world:
        await hub.kill()
        await hub.kill_proxy()
        await hub.start_proxy()
        await world.until(WatchState.WIPED)
        await asyncio.sleep(5.0)
        assert world.watch.status.missing == tuple(sorted(world.expected))
        await hub.start()
        await world.restored(90.0)
        assert set(world.expected) <= set(await world.table())


@pytest.mark.long
async def test_a_proxy_that_is_killed_again_and_again_is_no_flood_for_the_hub(testbed_hub: Hubs) -> None:
    hub = await testbed_hub(population=POPULATION, config=LAZY, external_proxy=True)
    async with watched(hub) as world:
        for _ in range(8):
            await hub.kill_proxy()
            await hub.start_proxy()
            await asyncio.sleep(0.8)
        assert world.checks <= 5
        await world.restored(120.0)
        assert set(world.expected) <= set(await world.table())
        intents, outcomes = world.recorded[::2], world.recorded[1::2]
        assert set(intents) == {None}
        assert None not in outcomes


@pytest.mark.long
async def test_incident_a_proxy_that_died_under_load_stranded_all_users(testbed_hub: Hubs) -> None:
    """2017-02-24 and 2024-03-05: the proxy was gone in the midst of a class, and came back without a route.

    Sequence: the proxy dies; the platform starts another; its table is empty; users whose servers run well get errors until
    the hub's next check of its routes, or until somebody restarts something. Cause: a proxy keeps its table in memory, and
    only the hub knows what belongs into it, which looks every few minutes.
    Here: 300 servers, thirty users at work, the hub looks once an hour. What fails is counted. When HubGuard says that the
    routes are back, no request fails any more, everybody reaches their own server, and the hub was asked once.
    """
    names = [f"user{number:03}" for number in range(300)]
    servers = tuple(SeededServer(name, idle_for_s=60.0) for name in names)
    hub = await testbed_hub(population=Population(servers=servers), config=LAZY, external_proxy=True)
    failed: list[float] = []
    answered: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(session: aiohttp.ClientSession, user: str) -> None:
        while True:
            began_s = loop.time()
            try:
                async with session.get(f"{hub.url}user/{user}/api/status") as answer:
                    ok = answer.status == 200 and (await answer.json())["path"] == f"/user/{user}/api/status"
            except (aiohttp.ClientError, asyncio.TimeoutError):
                ok = False
            (answered if ok else failed).append(began_s)
            await asyncio.sleep(0.2)

    async with watched(hub) as world, aiohttp.ClientSession() as session:
        world.expected = {route_path("/", name, ""): (name, "") for name in names}
        working = [asyncio.create_task(work(session, user)) for user in names[::10]]
        try:

            async def all_at_work() -> bool:
                return len(answered) > 60

            await hub.wait_for(all_at_work, "everybody to be at work")
            assert failed == []
            await hub.kill_proxy()
            await asyncio.sleep(2.0)
            await hub.start_proxy()
            await world.restored()
            restored_s, before = loop.time(), len(answered)

            async def at_work_again() -> bool:
                return len(answered) > before + 300

            await hub.wait_for(at_work_again, "everybody to be at work again")
        finally:
            for one in working:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        assert failed, "without a proxy nobody is served"
        assert [moment for moment in failed if moment > restored_s] == []
        for user in names:
            async with session.get(f"{hub.url}user/{user}/api/status") as answer:
                assert (answer.status, (await answer.json())["path"]) == (200, f"/user/{user}/api/status")
        assert world.checks == 1
        assert world.watch.status.missing == ()
