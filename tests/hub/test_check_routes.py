"""Having the hub check the proxy's routes: one suite over the hub in memory and a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timezone

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import HUB_PYTHON
from doubles.hub import MemoryHub
from real_hub import RealHub

from hubguard.errors import HubFailed, HubRefused, HubUnreachable
from hubguard.hub.client import HTTPHubAPI
from hubguard.model import Server
from hubguard.pacing.budget import Budget, Destination, Lane
from hubguard.proxy.client import HTTPProxyAPI
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.hub, pytest.mark.contract]

PEOPLE = ("ann", "bob", "sl/ash")
CONFIG = """
def add(name, token, scopes):
    c.JupyterHub.services.append({"name": name, "api_token": token})
    c.JupyterHub.load_roles.append({"name": name, "services": [name], "scopes": scopes})
add("guard", "token-of-the-guard", ["list:users", "read:servers", "delete:servers", "proxy"])
add("looker", "token-of-the-looker", ["list:users", "read:servers"])
"""


def plenty(**more) -> Budget:
    return Budget(rate=1000.0, burst=1000, concurrency=10, **more)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def real() -> AsyncIterator[TestbedHub]:
    servers = tuple(SeededServer(name, idle_for_s=60.0) for name in PEOPLE)
    async with RealHub(
        python=HUB_PYTHON, population=Population((), servers), config=CONFIG, external_proxy=True
    ) as hub:
        yield hub


class World:
    def __init__(self, hub, budget: Budget, table: HTTPProxyAPI | None, session) -> None:
        self.hub = hub
        self.budget = budget
        self._table = table
        self._session = session

    async def routes(self):
        return await self._table.routes() if self._table else dict(self.hub.routes)

    async def lose(self, path: str) -> None:
        if self._table is None:
            del self.hub.routes[path]
            return
        url = f"{self._table._api_url}/api/routes{path}"
        async with self._session.delete(url) as answer:
            assert answer.status == 204


@pytest_asyncio.fixture(loop_scope="module", params=["memory", "real"])
async def world(request, real: TestbedHub) -> AsyncIterator[World]:
    budget = plenty()
    if request.param == "memory":
        hub = MemoryHub(budget=budget)
        now = datetime.now(timezone.utc)
        for name in PEOPLE:
            hub.add(Server(name, "", True, None, now, now))
        yield World(hub, budget, None, None)
        return
    headers = {"Authorization": f"token {real.proxy_token}"}
    async with (
        HTTPHubAPI(real.api_url, "token-of-the-guard", budget) as hub,
        HTTPProxyAPI(real.proxy_api_url, real.proxy_token, budget) as table,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield World(hub, budget, table, session)


async def test_lost_routes_are_back_and_the_others_keep_their_times(world):
    before = await world.routes()
    await world.lose("/user/ann")
    await world.lose("/user/sl/ash")
    await world.hub.check_routes(timeout_s=60.0)
    after = await world.routes()
    assert after.keys() == before.keys()
    assert after["/user/bob"] == before["/user/bob"]
    assert after["/user/ann"].last_activity > before["/user/ann"].last_activity


async def test_checking_is_one_request_of_those_that_act(world):
    before = world.budget.use().requests
    await world.hub.check_routes(timeout_s=60.0)
    assert world.budget.use().requests == before + 1
    assert world.budget.use().in_flight == 0


async def test_what_is_not_confirmed_is_not_sent(world):
    async def no() -> None:
        raise HubUnreachable("not now")

    before = world.budget.use().requests
    await world.lose("/user/ann")
    with pytest.raises(HubUnreachable, match="not now"):
        await world.hub.check_routes(timeout_s=60.0, confirm=no)
    assert "/user/ann" not in await world.routes()
    assert world.budget.use().requests - before in (0, 1)  # the real table was read, too
    await world.hub.check_routes(timeout_s=60.0)
    assert "/user/ann" in await world.routes()


async def test_without_the_scope_it_is_refused_and_told_which_is_missing(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-looker", plenty()) as hub:
        with pytest.raises(HubRefused, match="scope proxy"):
            await hub.check_routes(timeout_s=10.0)


async def test_an_answer_that_takes_longer_than_allowed_is_told_and_never_asked_for_again():
    asked = []

    async def slow(request: web.Request) -> web.Response:
        asked.append(request.method)
        await asyncio.sleep(3600)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/hub/api/proxy", slow)
    async with TestServer(app, access_log=None) as server:
        url = str(server.make_url("/hub/api"))
        async with HTTPHubAPI(url, "token", plenty(), request_timeout_s=3600.0) as hub:
            with pytest.raises(HubUnreachable, match=r"within 0\.2 s"):
                await hub.check_routes(timeout_s=0.2)
    assert asked == ["POST"]


async def test_a_hub_that_fails_is_asked_once_and_its_own_timeout_may_be_shorter():
    asked = []

    async def fails(request: web.Request) -> web.Response:
        asked.append(request.method)
        await asyncio.sleep(0.3)
        return web.json_response({"status": 500, "message": "no"}, status=500)

    app = web.Application()
    app.router.add_route("*", "/hub/api/proxy", fails)
    async with TestServer(app, access_log=None) as server:
        url = str(server.make_url("/hub/api"))
        async with HTTPHubAPI(url, "token", plenty(), request_timeout_s=0.1) as hub:
            with pytest.raises(HubFailed) as raised:
                await hub.check_routes(timeout_s=30.0)
    assert raised.value.status == 500
    assert asked == ["POST"]


async def test_a_hub_that_is_left_alone_is_not_asked(real):
    budget = plenty(breaker_failures=1)
    async with budget.slot(Lane.ACT, safe=False, to=Destination.HUB) as slot:
        slot.failed(overload=True)
    async with HTTPHubAPI(real.api_url, "token-of-the-guard", budget) as hub:
        with pytest.raises(Exception, match="left alone"):
            await hub.check_routes(timeout_s=10.0)
