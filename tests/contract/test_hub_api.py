"""One suite over both hubs: the one in memory that other tests trust, and a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone

import pytest
import pytest_asyncio
from conftest import HUB_PYTHON
from virtual_time import VirtualClock

from hubguard.clients.budget import Budget
from hubguard.clients.hub_api import HTTPHubAPI, HubAPI
from hubguard.clients.memory_hub import MemoryHub, Stops
from hubguard.errors import HubFailed, HubRefused, HubUnreachable
from hubguard.model import Server
from hubguard.testbed.hub import TestbedHub
from hubguard.testbed.population import AWKWARD_NAMES, Population, SeededServer, SeededUser

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMED = tuple(SeededServer("namer", name, idle_for_s=60.0) for name in (*AWKWARD_NAMES, "plain"))
SERVERS = (
    *(SeededServer(name, idle_for_s=7200.0 + number) for number, name in enumerate(AWKWARD_NAMES)),
    *NAMED,
    SeededServer("boss", idle_for_s=30.0),
    SeededServer("boss", "gpu", idle_for_s=3600.0),
    SeededServer("twice", idle_for_s=30.0),
    SeededServer("never-seen", idle_for_s=None, age_s=600.0),
    SeededServer("slow", idle_for_s=30.0, stop_s=3.0),
    SeededServer("forgotten", idle_for_s=30.0, on_stop="raises"),
    SeededServer("stubborn", idle_for_s=30.0, on_stop="poll-raises"),
    SeededServer("keeper", "kept", idle_for_s=30.0),
    SeededServer("keeper", "removed", idle_for_s=30.0),
    SeededServer("keeper", idle_for_s=30.0),
    SeededServer("away", idle_for_s=90000.0, running=False),
)
POPULATION = Population(
    (SeededUser("boss", admin=True), SeededUser("nobody"), SeededUser("away", idle_for_s=90000.0)), SERVERS
)

CONFIG = """
c.JupyterHub.tornado_settings = {"slow_stop_timeout": 1}
def add(name, token, scopes):
    c.JupyterHub.services.append({"name": name, "api_token": token})
    c.JupyterHub.load_roles.append({"name": name, "services": [name], "scopes": scopes})
add("guard", "token-of-the-guard", ["list:users", "read:servers", "delete:servers"])
add("blind", "token-of-the-blind", ["list:users", "delete:servers"])
add("looker", "token-of-the-looker", ["list:users", "read:servers"])
add("stopper", "token-of-the-stopper", ["delete:servers"])
"""


class World:
    """A hub with POPULATION on it, as the client that is tested sees it."""

    def __init__(self, hub: HubAPI, budget: Budget, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.hub = hub
        self.budget = budget
        self._sleep = sleep

    async def gone(self, user: str, name: str = "") -> None:
        """Return when the hub doesn't show that server any more."""
        for _ in range(100):
            if await self.hub.get_server(user, name) is None:
                return
            await self._sleep(0.1)
        raise AssertionError(f"{user}/{name} never goes")


def plenty(**more) -> Budget:
    return Budget(rate=1000.0, burst=1000, concurrency=10, **more)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def real() -> AsyncIterator[TestbedHub]:
    async with TestbedHub(python=HUB_PYTHON, population=POPULATION, config=CONFIG, hub_prefix="/a%20b/") as hub:
        yield hub


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["memory", "real"])
async def world(request, real) -> AsyncIterator[World]:
    if request.param == "real":
        # Small pages, so that even these few users take several.
        budget = plenty()
        async with HTTPHubAPI(real.api_url, "token-of-the-guard", budget, page_size=4) as client:
            yield World(client, budget, asyncio.sleep)
    else:
        budget = plenty()
        hub = MemoryHub(budget=budget)
        hub.slow_stop_timeout_s = 1.0
        hub.owner = "guard"
        now = datetime.now(timezone.utc)
        for seeded in SERVERS:
            if seeded.running:
                idle_since = None if seeded.idle_for_s is None else now - timedelta(seconds=seeded.idle_for_s)
                started = now - timedelta(seconds=seeded.started_s)
                server = Server(seeded.user, seeded.name, True, None, started, idle_since, admin=seeded.user == "boss")
                hub.add(server, stops=Stops(seeded.on_stop), stop_s=seeded.stop_s)
        yield World(hub, budget, asyncio.sleep)


# These look only; those below stop servers, each its own.


async def test_every_active_server_is_listed_once_in_order_whatever_its_name(world):
    listed = await world.hub.list_servers()
    expected = {(server.user, server.name) for server in SERVERS if server.running}
    assert [server.key for server in listed] == sorted(expected)


async def test_a_listed_server_tells_when_it_was_started_and_last_active(world):
    now = datetime.now(timezone.utc)
    listed = {server.key: server for server in await world.hub.list_servers()}
    for seeded in SERVERS:
        if not seeded.running:
            continue
        server = listed[(seeded.user, seeded.name)]
        assert server.ready
        assert server.pending is None
        assert server.started.utcoffset() == timedelta(0)
        assert abs((now - server.started).total_seconds() - seeded.started_s) < 120
        if seeded.idle_for_s is not None:
            assert abs((now - server.last_activity).total_seconds() - seeded.idle_for_s) < 120


async def test_servers_of_admins_are_known_by_it(world):
    listed = await world.hub.list_servers()
    assert {server.key for server in listed if server.admin} == {("boss", ""), ("boss", "gpu")}
    assert (await world.hub.get_server("boss", "gpu")).admin
    assert not (await world.hub.get_server("twice", "")).admin


async def test_one_server_reads_as_it_is_listed(world):
    for listed in await world.hub.list_servers():
        assert await world.hub.get_server(*listed.key) == listed


@pytest.mark.parametrize("key", [("nobody", ""), ("boss", "unknown"), ("nobody/at all", ""), ("away", ""), ("..", "")])
async def test_what_is_not_active_reads_as_none(world, key):
    assert await world.hub.get_server(*key) is None


async def test_it_says_its_version_and_who_we_are(world):
    version = await world.hub.version()
    assert int(version.split(".")[0]) >= 5
    name, scopes = await world.hub.whoami()
    assert name == "guard"
    assert {"list:users", "read:servers", "delete:servers"} <= scopes


async def test_every_request_passes_the_budget(world):
    before = world.budget.use().requests
    await world.hub.version()
    await world.hub.get_server("boss", "")
    use = world.budget.use()
    assert use.requests == before + 2
    assert use.in_flight == 0


@pytest.mark.parametrize("key", [("nobody", ""), ("boss", "unknown"), ("nobody/at all", ""), ("away", "")])
async def test_stopping_what_does_not_run_is_done_already(world, key):
    if "/" in key[0] and (await world.hub.version()).startswith("5.2."):
        # That hub fails on an unknown user with a slash; the re-read that follows every failed stop settles it.
        with pytest.raises(HubFailed):
            await world.hub.stop_server(*key)
        assert await world.hub.get_server(*key) is None
        return
    assert await world.hub.stop_server(*key) is True


@pytest.mark.parametrize("name", AWKWARD_NAMES)
async def test_a_stop_hits_the_one_server_whatever_its_owners_name(world, name):
    before = {server.key for server in await world.hub.list_servers()}
    assert await world.hub.stop_server(name, "") is True
    await world.gone(name)
    assert {server.key for server in await world.hub.list_servers()} == before - {(name, "")}


@pytest.mark.parametrize("name", AWKWARD_NAMES)
async def test_a_stop_hits_the_one_server_whatever_its_own_name(world, name):
    before = {server.key for server in await world.hub.list_servers()}
    assert await world.hub.stop_server("namer", name) is True
    await world.gone("namer", name)
    assert {server.key for server in await world.hub.list_servers()} == before - {("namer", name)}


async def test_stopping_twice_is_stopping_once(world):
    assert await world.hub.stop_server("twice", "") is True
    await world.gone("twice")
    assert await world.hub.stop_server("twice", "") is True


async def test_a_slow_stop_is_answered_before_it_is_over_and_is_pending_until_then(world):
    assert await world.hub.stop_server("slow", "") is False
    pending = await world.hub.get_server("slow", "")
    assert (pending.pending, pending.ready) == ("stop", False)
    assert await world.hub.stop_server("slow", "") is False
    await world.gone("slow")


async def test_a_server_whose_stop_raises_looks_stopped_all_the_same(world):
    assert await world.hub.stop_server("forgotten", "") is True
    await world.gone("forgotten")
    if isinstance(world.hub, MemoryHub):
        assert ("forgotten", "") in world.hub.backends
        assert ("twice", "") not in world.hub.backends


async def test_a_server_whose_poll_raises_fails_to_stop_and_stays_ready(world):
    with pytest.raises(HubFailed, match="stop the server of stubborn|stop stubborn") as raised:
        await world.hub.stop_server("stubborn", "")
    assert raised.value.status == 500
    assert (await world.hub.get_server("stubborn", "")).ready


async def test_a_named_server_is_removed_only_when_asked_and_a_default_one_never(world):
    assert await world.hub.stop_server("keeper", "kept") is True
    assert await world.hub.stop_server("keeper", "removed", remove=True) is True
    assert await world.hub.stop_server("keeper", "", remove=True) is True
    for name in ("kept", "removed", ""):
        await world.gone("keeper", name)
    # Asking once more shows which of them the hub still knows: to remove an unknown one is fine, too.
    assert await world.hub.stop_server("keeper", "removed", remove=True) is True
    assert await world.hub.stop_server("keeper", "kept", remove=True) is True


async def test_the_real_hub_has_kept_or_removed_named_servers_as_asked(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-guard", plenty()) as hub:
        await real.start_server("tidy", "kept")
        await real.start_server("tidy", "removed")
        await hub.stop_server("tidy", "kept")
        await hub.stop_server("tidy", "removed", remove=True)

        async def settled():
            user = (await real.api("GET", "users/tidy?include_stopped_servers=1")).data
            return "kept" in user["servers"] and "removed" not in user["servers"]

        await real.wait_for(settled, "the removed server to be gone")


# what only the real one can be wrong about


async def test_a_wrong_token_is_refused(real):
    async with HTTPHubAPI(real.api_url, "no-token-at-all", plenty()) as hub:
        for call in (hub.list_servers(), hub.get_server("boss", ""), hub.stop_server("boss", ""), hub.whoami()):
            with pytest.raises(HubRefused, match=r"\(403"):
                await call
        assert await hub.version()


@pytest.mark.parametrize(
    ("service", "call", "scope"),
    [
        ("blind", lambda hub: hub.list_servers(), "read:servers"),
        ("blind", lambda hub: hub.get_server("boss", ""), "read:servers"),
        ("looker", lambda hub: hub.stop_server("boss", ""), "delete:servers"),
        ("stopper", lambda hub: hub.list_servers(), "list:users"),
        ("stopper", lambda hub: hub.get_server("boss", ""), "read:servers"),
    ],
)
async def test_a_missing_scope_is_named(real, service, call, scope):
    async with HTTPHubAPI(real.api_url, f"token-of-the-{service}", plenty()) as hub:
        with pytest.raises(HubRefused, match=scope):
            await call(hub)
    assert (await real.server("boss"))["ready"]


async def test_the_proxys_url_and_the_hubs_pages_are_not_its_api(real):
    for url in (real.url, f"{real.url}hub", f"{real.api_url}/users"):
        async with HTTPHubAPI(url, "token-of-the-guard", plenty()) as hub:
            with pytest.raises(Exception, match="API's URL|404"):
                await hub.list_servers()
            with pytest.raises(Exception, match="API's URL|404"):
                await hub.version()


# what only the one in memory can do


async def test_memory_shows_a_ghost_and_a_server_that_comes_back():
    clock = VirtualClock()
    hub = MemoryHub(clock=clock)
    hub.add(_ready("ghost"), stops=Stops.GHOST)
    hub.add(_ready("back"), stops=Stops.COMES_BACK)

    async def scene():
        assert await hub.stop_server("ghost", "") is True
        assert (await hub.get_server("ghost", "")).ready
        assert await hub.stop_server("back", "") is False
        assert (await hub.get_server("back", "")).pending == "stop"
        await clock.sleep(31.0)
        assert (await hub.get_server("back", "")).ready

    await clock.run(scene())


async def test_memory_refuses_to_stop_what_the_hub_is_checking_or_renaming():
    hub = MemoryHub()
    hub.add(_ready("ada"))
    for pending, status in (("check", 500), ("rename", 400)):
        hub.change("ada", pending=pending)
        assert not (await hub.get_server("ada", "")).ready
        with pytest.raises(HubFailed) as raised:
            await hub.stop_server("ada", "")
        assert raised.value.status == status
    hub.change("ada", ready=True)
    assert await hub.stop_server("ada", "") is True
    assert hub.backends == set()


async def test_memory_keeps_what_it_was_asked_and_can_fail_any_of_it():
    clock = VirtualClock()
    budget = plenty(clock=clock)
    hub = MemoryHub(clock=clock, budget=budget, takes_s=2.0)
    hub.add(_ready("ada"), stops=Stops.ANSWER_LOST)
    hub.fault = lambda request: HubUnreachable("gone") if request.call == "list" else None

    async def scene():
        with pytest.raises(HubUnreachable):
            await hub.list_servers()
        with pytest.raises(HubUnreachable, match="before an answer"):
            await hub.stop_server("ada", "", remove=True)
        assert await hub.get_server("ada", "") is None

    await clock.run(scene())
    assert [(request.call, request.user, request.at_s) for request in hub.requests] == [
        ("list", "", 0.0),
        ("stop", "ada", 2.0),
        ("get", "ada", 4.0),
    ]
    assert (budget.use().requests, budget.use().failures, budget.use().concurrency) == (3, 2, 2)


def _ready(user: str) -> Server:
    now = datetime(2024, 3, 5, 7, 0, tzinfo=timezone.utc)
    return Server(user, "", True, None, now, now)
