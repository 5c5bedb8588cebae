"""One suite over both hubs: the one in memory that other tests trust, and a real one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
import pytest_asyncio
from conftest import HUB_PYTHON
from doubles.hub import MemoryHub, Stops
from real_hub import RealHub
from virtual_time import VirtualClock

from hubguard.errors import HubFailed, HubRefused, HubUnreachable
from hubguard.hub.api import HubAPI
from hubguard.hub.client import HTTPHubAPI, internal_ssl_context
from hubguard.hub.names import UnknownUser, who
from hubguard.model import Route, Server, User
from hubguard.pacing.budget import Budget
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, DAY_S, Population, SeededServer, SeededUser, with_owners

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.hub, pytest.mark.contract]

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
    SeededServer("unrouted", idle_for_s=30.0),
    SeededServer("stamped", idle_for_s=30.0),
    SeededServer("unstamped", idle_for_s=30.0, on_stop="raises"),
    SeededServer("restarted", idle_for_s=30.0),
    SeededServer("runs", idle_for_s=30.0),
    SeededServer("halts", idle_for_s=30.0, stop_s=3.0),
    SeededServer("dies", idle_for_s=30.0),
    SeededServer("leaves-running", idle_for_s=30.0),
    SeededServer("leaves-stubborn", idle_for_s=30.0, on_stop="poll-raises"),
    SeededServer("leaves-slowly", idle_for_s=30.0, stop_s=3.0),
    SeededServer("leaves-named", idle_for_s=30.0),
    SeededServer("leaves-named", "work", idle_for_s=30.0),
)
USERS = (
    SeededUser("boss", admin=True, groups=("staff", "gpu users")),
    SeededUser("nobody"),
    SeededUser("away", idle_for_s=90000.0),
    SeededUser("graduate", groups=("staff",), idle_for_s=400 * DAY_S, created_s=900 * DAY_S),
    SeededUser("guard", idle_for_s=60.0),
    *(SeededUser(f"gone {name}", idle_for_s=500 * DAY_S, created_s=900 * DAY_S) for name in AWKWARD_NAMES),
)
POPULATION = with_owners(Population(USERS, SERVERS))

CONFIG = """
c.JupyterHub.tornado_settings = {"slow_stop_timeout": 1, "slow_spawn_timeout": 0.2}
def add(name, token, scopes):
    c.JupyterHub.services.append({"name": name, "api_token": token})
    c.JupyterHub.load_roles.append({"name": name, "services": [name], "scopes": scopes})
add("guard", "token-of-the-guard", [
    "list:users", "read:users", "read:servers", "delete:servers", "delete:users", "proxy",
    "servers", "list:services", "read:services", "read:hub",
])
add("peer", "token-of-the-peer", ["list:users", "read:users:activity", "read:servers", "delete:servers"])
add("grouper", "token-of-the-grouper", ["list:users", "read:users:groups", "read:servers"])
add("roler", "token-of-the-roler", ["list:users", "read:roles:users", "read:servers"])
add("member", "token-of-the-member", [
    "list:users", "read:users", "read:servers", "read:roles:users", "list:groups", "read:roles:groups",
])
c.JupyterHub.load_roles.append({"name": "keeper", "groups": ["staff"], "scopes": ["read:hub"]})
add("blind", "token-of-the-blind", ["list:users", "delete:servers"])
add("looker", "token-of-the-looker", ["list:users", "read:servers"])
add("stopper", "token-of-the-stopper", ["delete:servers"])
add("lister", "token-of-the-lister", ["list:services"])
# A 5.2 hub ends at its start where an external service doesn't answer.
import http.server, threading
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
threading.Thread(target=pages.serve_forever, daemon=True).start()
c.JupyterHub.services.append({"name": "pages", "url": f"http://127.0.0.1:{pages.server_port}"})
"""


class World:
    """A hub with POPULATION on it, as the client that is tested sees it."""

    def __init__(self, hub: HubAPI, budget: Budget, real: TestbedHub | None) -> None:
        self.hub = hub
        self.budget = budget
        self._real = real

    async def begin_to_start(self, user: str, name: str = "") -> None:
        """Have a server that takes a minute to start, and return while it does."""
        if isinstance(self.hub, MemoryHub):
            self.hub.add(Server(user, name, False, "spawn", datetime.now(timezone.utc), None))
            return
        await self._real.api("POST", f"users/{user}")
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        assert (await self._real.api("POST", path, json={"start_s": 60.0})).status == 202

    async def die(self, user: str) -> None:
        """Kill the process of their server; it may take the hub half a minute to notice."""
        if isinstance(self.hub, MemoryHub):
            self.hub.backends.discard((user, ""))
        else:
            await self._real.kill_server(user)

    async def runs(self, user: str, name: str = "") -> Server:
        """Return that server when the hub calls it ready."""
        for _ in range(100):
            server = await self.hub.get_server(user, name)
            if server is not None and server.ready:
                return server
            await asyncio.sleep(0.1)
        raise AssertionError(f"{user}/{name} never runs")

    async def gone(self, user: str, name: str = "") -> None:
        """Return when the hub doesn't show that server any more."""
        for _ in range(100):
            if await self.hub.get_server(user, name) is None:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{user}/{name} never goes")


def _as_the_hub_shows(person: SeededUser, now: datetime) -> User:
    return User(
        person.name,
        person.admin,
        groups=tuple(sorted(person.groups)),
        roles=("admin", "user") if person.admin else ("user",),
        created=now - timedelta(seconds=person.created_s),
        last_activity=None if person.idle_for_s is None else now - timedelta(seconds=person.idle_for_s),
    )


def plenty(**more) -> Budget:
    return Budget(rate=1000.0, burst=1000, concurrency=10, **more)


@contextlib.asynccontextmanager
async def _a_hub() -> AsyncIterator[TestbedHub]:
    async with RealHub(python=HUB_PYTHON, population=POPULATION, config=CONFIG, hub_prefix="/a%20b/") as hub:
        yield hub


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def real() -> AsyncIterator[TestbedHub]:
    async with _a_hub() as hub:
        yield hub


@contextlib.asynccontextmanager
async def _a_world(kind: str, real: TestbedHub | None) -> AsyncIterator[World]:
    if kind == "real":
        # Small pages, so that even these few users take several.
        budget = plenty()
        async with HTTPHubAPI(real.api_url, "token-of-the-guard", budget, page_size=4) as client:
            yield World(client, budget, real)
    else:
        budget = plenty()
        hub = MemoryHub(budget=budget)
        hub.slow_stop_timeout_s = 1.0
        hub.spawner = "hubguard.staging.spawner.LittleSpawner"
        hub.prefixes = {"pages": "/a b/services/pages"}
        hub.routes["/a b/services/pages"] = Route("/a b/services/pages", "http://127.0.0.1:9")
        hub.owner = "guard"
        now = datetime.now(timezone.utc)
        hub.add_user(User("admin", True, (), ("admin", "user"), now, None))
        for person in POPULATION.users:
            hub.add_user(_as_the_hub_shows(person, now))
        for seeded in SERVERS:
            if seeded.running:
                idle_since = None if seeded.idle_for_s is None else now - timedelta(seconds=seeded.idle_for_s)
                started = now - timedelta(seconds=seeded.started_s)
                server = Server(seeded.user, seeded.name, True, None, started, idle_since, options=seeded.options)
                hub.add(server, stops=Stops(seeded.on_stop), stop_s=seeded.stop_s)
        yield World(hub, budget, real)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["memory", "real"])
async def world(request, real) -> AsyncIterator[World]:
    async with _a_world(request.param, real) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["memory", "real"])
async def untouched(request) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        real = await stack.enter_async_context(_a_hub()) if request.param == "real" else None
        yield await stack.enter_async_context(_a_world(request.param, real))


# These look only, at a hub of their own, in whatever order they run; those below start and stop servers, each its own.


async def test_every_active_server_is_listed_once_in_order_whatever_its_name(untouched):
    listed = await untouched.hub.list_servers()
    expected = {(server.user, server.name) for server in SERVERS if server.running}
    assert [server.key for server in listed] == sorted(expected)


async def test_a_listed_server_tells_when_it_was_started_and_last_active(untouched):
    now = datetime.now(timezone.utc)
    listed = {server.key: server for server in await untouched.hub.list_servers()}
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


async def test_servers_of_admins_are_known_by_it(untouched):
    listed = await untouched.hub.list_servers()
    assert {server.key for server in listed if server.admin} == {("boss", ""), ("boss", "gpu")}
    assert (await untouched.hub.get_server("boss", "gpu")).admin
    assert not (await untouched.hub.get_server("twice", "")).admin


async def test_a_server_tells_its_users_groups_and_roles_in_order_and_what_it_was_started_with(untouched):
    listed = {server.key: server for server in await untouched.hub.list_servers()}
    assert listed["boss", "gpu"].groups == ("gpu users", "staff")
    assert listed["boss", "gpu"].roles == ("admin", "user")
    assert (listed["slow", ""].groups, listed["slow", ""].roles) == ((), ("user",))
    assert listed["slow", ""].options == {"shared": True, "start_s": 0.0, "stop_s": 3.0, "on_stop": "works"}


async def test_one_server_reads_as_it_is_listed(untouched):
    for listed in await untouched.hub.list_servers():
        assert await untouched.hub.get_server(*listed.key) == listed


@pytest.mark.parametrize("key", [("nobody", ""), ("boss", "unknown"), ("nobody/at all", ""), ("away", "")])
async def test_what_is_not_active_reads_as_none(untouched, key):
    assert await untouched.hub.get_server(*key) is None


async def test_the_first_user_reads_as_listed(untouched):
    first = await untouched.hub.first_user()
    assert first is not None
    assert first.created is not None
    assert first in await untouched.hub.list_users(inactive_since=None)


async def test_it_says_its_version_and_who_we_are(untouched):
    version = await untouched.hub.version()
    assert int(version.split(".")[0]) >= 5
    kind, name, scopes = await untouched.hub.whoami()
    assert (kind, name) == ("service", "guard")
    assert {"list:users", "read:servers", "delete:servers"} <= scopes


async def test_every_request_passes_the_budget(untouched):
    before = untouched.budget.use().requests
    await untouched.hub.version()
    await untouched.hub.get_server("boss", "")
    use = untouched.budget.use()
    assert use.requests == before + 2
    assert use.in_flight == 0


async def test_all_users_are_listed_once_in_order_and_counted_whether_or_not_anything_of_theirs_runs(untouched):
    listed = await untouched.hub.list_users(inactive_since=None)
    assert [user.name for user in listed] == sorted({"admin", *(user.name for user in POPULATION.users)})
    assert await untouched.hub.count_users() == len(listed)


async def test_users_are_found_by_a_part_of_their_name_whatever_the_case(untouched):
    assert await untouched.hub.find_users("GRADU") == ("graduate",)
    assert {"guard", "graduate"} <= set(await untouched.hub.find_users("g"))
    assert await untouched.hub.find_users("no such user") == ()
    assert await who(untouched.hub, "Graduate") == "graduate"
    with pytest.raises(UnknownUser, match="Did you mean graduate"):
        await who(untouched.hub, "gradate")


async def test_a_listed_user_tells_what_the_hub_knows_of_them(untouched):
    now = datetime.now(timezone.utc)
    listed = {user.name: user for user in await untouched.hub.list_users(inactive_since=None)}
    for seeded in POPULATION.users:
        user, expected = listed[seeded.name], _as_the_hub_shows(seeded, now)
        assert (user.admin, user.groups, user.roles) == (expected.admin, expected.groups, expected.roles)
        assert abs(user.created - expected.created) < timedelta(seconds=120)
        if expected.last_activity is None:
            assert user.last_activity is None
        else:
            assert abs(user.last_activity - expected.last_activity) < timedelta(seconds=120)
    running = [server for user in listed.values() for server in user.servers]
    assert [server.key for server in running] == [server.key for server in await untouched.hub.list_servers()]


async def test_inactive_users_are_those_up_to_that_very_moment_and_those_who_never_came(untouched):
    everybody = await untouched.hub.list_users(inactive_since=None)
    ages = sorted(user.last_activity for user in everybody if user.last_activity is not None)
    for since in (ages[0] - timedelta(microseconds=1), ages[0], ages[len(ages) // 2], ages[-2], ages[-1]):
        listed = await untouched.hub.list_users(inactive_since=since)
        expected = [user for user in everybody if user.last_activity is None or user.last_activity <= since]
        assert listed == tuple(expected)
    names = {user.name for user in await untouched.hub.list_users(inactive_since=ages[0] - timedelta(seconds=1))}
    assert names >= {"nobody", "never-seen"}
    assert "graduate" not in names


async def test_one_user_reads_as_listed(untouched):
    for listed in await untouched.hub.list_users(inactive_since=None):
        assert await untouched.hub.get_user(listed.name) == listed


@pytest.mark.parametrize("name", ["nobody at all", "nobody/at all", "...", "%"])
async def test_an_unknown_user_reads_as_none(untouched, name):
    assert await untouched.hub.get_user(name) is None


async def test_every_ready_server_has_a_route_and_the_hub_has_one(untouched):
    routes = await untouched.hub.list_routes()
    assert {path: route.path for path, route in routes.items()} == {path: path for path in routes}
    to_servers = [route.key for route in routes.values() if route.key is not None]
    assert sorted(to_servers) == [server.key for server in await untouched.hub.list_servers() if server.ready]
    assert len(routes) == len(to_servers) + 2  # the hub and a service with pages


async def test_each_service_with_a_url_has_the_path_of_its_route_and_no_other_has_one(untouched):
    prefixes = await untouched.hub.service_prefixes()
    assert prefixes == {"pages": "/a b/services/pages"}
    assert prefixes["pages"] in await untouched.hub.list_routes()


async def test_it_says_which_spawner_it_has(untouched):
    assert await untouched.hub.spawner_class() == "hubguard.staging.spawner.LittleSpawner"


@pytest.mark.parametrize("key", [("away", ""), ("nobody", "new-one"), ("nobody", "")])
async def test_a_server_that_doesnt_run_is_started_and_has_its_route(world, key):
    before = datetime.now(timezone.utc)
    assert await world.hub.get_server(*key) is None
    assert await world.hub.start_server(*key) in {True, False}  # the real one may be slow
    server = await world.runs(*key)
    assert server.started > before - timedelta(seconds=1)
    assert key in {route.key for route in (await world.hub.list_routes()).values()}
    await world.hub.stop_server(*key)
    await world.gone(*key)


async def test_a_server_is_started_with_the_options_it_had(world):
    options = (await world.hub.get_server("restarted", "")).options
    assert options["shared"]
    await world.hub.stop_server("restarted", "")
    await world.gone("restarted")
    await world.hub.start_server("restarted", "")
    assert (await world.runs("restarted")).options == options


async def test_a_start_that_goes_on_already_is_joined_and_can_be_interrupted(world):
    await world.begin_to_start("starter", "again")
    assert await world.hub.start_server("starter", "again") is False
    await world.hub.stop_server("starter", "again")
    await world.gone("starter", "again")


async def test_a_server_that_runs_or_stops_isnt_started_and_goes_on_as_it_was(world):
    before = await world.hub.get_server("runs", "")
    with pytest.raises(HubFailed, match="already running") as raised:
        await world.hub.start_server("runs", "")
    assert raised.value.status == 400
    assert await world.hub.get_server("runs", "") == before
    assert await world.hub.stop_server("halts", "") is False
    with pytest.raises(HubFailed, match="pending stop") as raised:
        await world.hub.start_server("halts", "")
    assert raised.value.status == 400
    await world.gone("halts")


async def test_a_server_that_the_hub_only_believes_in_is_started_anew(world):
    before = await world.hub.get_server("dies", "")
    await world.die("dies")
    await world.hub.start_server("dies", "")
    server = await world.runs("dies")
    assert server.started > before.started
    assert await world.hub.stop_server("dies", "") is True
    await world.gone("dies")


async def test_nothing_is_started_for_somebody_the_hub_doesnt_know(world):
    with pytest.raises(HubFailed) as raised:
        await world.hub.start_server("nobody at all", "")
    assert raised.value.status == 404


async def test_nothing_is_started_where_it_isnt_confirmed(world):
    async def refuse() -> None:
        raise RuntimeError("on hold")

    with pytest.raises(RuntimeError, match="on hold"):
        await world.hub.start_server("nobody", "", confirm=refuse)
    assert await world.hub.get_server("nobody", "") is None


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
    if isinstance(world.hub, MemoryHub):
        assert ("twice", "") not in world.hub.backends


async def test_a_slow_stop_is_answered_before_it_is_over_and_is_pending_until_then(world):
    assert await world.hub.stop_server("slow", "") is False
    pending = await world.hub.get_server("slow", "")
    assert (pending.pending, pending.ready) == ("stop", False)
    assert await world.hub.stop_server("slow", "") is False
    await world.gone("slow")


@pytest.mark.parametrize("name", ["", "work"])
async def test_a_server_that_is_being_started_is_interrupted(world, name):
    await world.begin_to_start("starter", name)
    pending = await world.hub.get_server("starter", name)
    assert (pending.pending, pending.ready) == ("spawn", False)
    assert pending in await world.hub.list_servers()
    assert pending.key not in [route.key for route in (await world.hub.list_routes()).values()]
    assert await world.hub.stop_server("starter", name) is True
    await world.gone("starter", name)


async def test_the_route_of_a_stopped_server_goes_with_it(world):
    before = await world.hub.list_routes()
    await world.hub.stop_server("unrouted", "")
    await world.gone("unrouted")
    assert [route.key for path, route in before.items() if path not in await world.hub.list_routes()] == [
        ("unrouted", "")
    ]


async def test_a_server_whose_stop_raises_looks_stopped_all_the_same(world):
    assert await world.hub.stop_server("forgotten", "") is True
    await world.gone("forgotten")
    if isinstance(world.hub, MemoryHub):
        assert ("forgotten", "") in world.hub.backends


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


async def test_a_stop_that_works_counts_as_activity_of_the_user(world):
    before = await world.hub.get_user("stamped")
    await world.hub.stop_server("stamped", "")
    await world.gone("stamped")
    assert (await world.hub.get_user("stamped")).last_activity > before.last_activity


async def test_a_stop_that_raises_counts_as_no_activity(world):
    before = await world.hub.get_user("unstamped")
    await world.hub.stop_server("unstamped", "")
    await world.gone("unstamped")
    assert (await world.hub.get_user("unstamped")).last_activity == before.last_activity


# These delete users, each its own.


@pytest.mark.parametrize("name", AWKWARD_NAMES)
async def test_a_deletion_hits_the_one_user_whatever_the_name(world, name):
    before = {user.name for user in await world.hub.list_users(inactive_since=None)}
    await world.hub.delete_user(f"gone {name}")
    assert {user.name for user in await world.hub.list_users(inactive_since=None)} == before - {f"gone {name}"}
    assert await world.hub.get_user(f"gone {name}") is None


@pytest.mark.parametrize("name", ["nobody at all", "nobody/at all", "%"])
async def test_deleting_an_unknown_user_is_done_already(world, name):
    await world.hub.delete_user(name)


async def test_deleting_a_user_stops_the_default_server(world):
    await world.hub.delete_user("leaves-running")
    assert await world.hub.get_user("leaves-running") is None
    assert await world.hub.get_server("leaves-running", "") is None
    if isinstance(world.hub, MemoryHub):
        assert ("leaves-running", "") not in world.hub.backends


async def test_a_user_whose_server_cannot_be_polled_is_deleted_and_the_server_lives_on(world):
    await world.hub.delete_user("leaves-stubborn")
    assert await world.hub.get_user("leaves-stubborn") is None
    if isinstance(world.hub, MemoryHub):
        assert ("leaves-stubborn", "") in world.hub.backends


async def test_a_user_whose_server_stops_slowly_is_not_deleted_until_that_is_over(world):
    for _ in range(2):
        with pytest.raises(HubFailed, match="delete the user leaves-slowly") as raised:
            await world.hub.delete_user("leaves-slowly")
        assert raised.value.status == 400
    await world.gone("leaves-slowly")
    assert await world.hub.get_user("leaves-slowly") is not None
    await world.hub.delete_user("leaves-slowly")
    assert await world.hub.get_user("leaves-slowly") is None


async def test_a_user_with_a_named_server_loses_the_default_one_and_stays(world):
    with pytest.raises(HubFailed, match="delete the user leaves-named") as raised:
        await world.hub.delete_user("leaves-named")
    assert raised.value.status == 500
    assert [server.name for server in (await world.hub.get_user("leaves-named")).servers] == ["work"]
    await world.hub.stop_server("leaves-named", "work")
    await world.gone("leaves-named", "work")
    await world.hub.delete_user("leaves-named")
    assert await world.hub.get_user("leaves-named") is None


@pytest.mark.parametrize("name", ["", "work"])
async def test_a_user_whose_server_is_being_started_stays(world, name):
    await world.begin_to_start("early", name)
    with pytest.raises(HubFailed, match="delete the user early") as raised:
        await world.hub.delete_user("early")
    assert raised.value.status == 500
    assert (await world.hub.get_server("early", name)).pending == "spawn"
    await world.hub.stop_server("early", name, remove=True)
    await world.gone("early", name)


async def test_a_user_with_our_own_name_is_not_deleted(world):
    with pytest.raises(HubFailed, match="delete the user guard") as raised:
        await world.hub.delete_user("guard")
    assert raised.value.status == 400
    assert await world.hub.get_user("guard") is not None


async def test_a_deletion_waits_for_its_confirmation_and_without_it_nothing_is_sent(world):
    async def no():
        raise HubUnreachable("never mind")

    with pytest.raises(HubUnreachable, match="never mind"):
        await world.hub.delete_user("graduate", confirm=no)
    assert await world.hub.get_user("graduate") is not None


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
        ("stopper", lambda hub: hub.get_user("boss"), "read:servers"),
        ("stopper", lambda hub: hub.count_users(), "list:users"),
        ("blind", lambda hub: hub.list_users(inactive_since=None), "read:servers"),
        ("looker", lambda hub: hub.list_users(inactive_since=None), "read:users:activity"),
        ("looker", lambda hub: hub.list_users(inactive_since=datetime.now(timezone.utc)), "read:users:activity"),
        ("looker", lambda hub: hub.get_user("boss"), "read:users:activity"),
        ("peer", lambda hub: hub.delete_user("boss"), "delete:users"),
        ("peer", lambda hub: hub.list_routes(), "scope proxy"),
        ("peer", lambda hub: hub.start_server("boss", ""), "scope servers"),
        ("peer", lambda hub: hub.service_prefixes(), "list:services"),
        ("lister", lambda hub: hub.service_prefixes(), "read:services"),
    ],
)
async def test_a_missing_scope_is_named(real, service, call, scope):
    async with HTTPHubAPI(real.api_url, f"token-of-the-{service}", plenty()) as hub:
        with pytest.raises(HubRefused, match=scope):
            await call(hub)
    assert (await real.server("boss"))["ready"]


async def test_roles_that_come_through_a_group_are_those_of_its_members_where_they_matter(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-member", plenty()) as hub:
        assert "keeper" not in (await hub.get_user("boss")).roles
        hub.through_groups = True
        assert "keeper" in (await hub.get_user("boss")).roles
        assert "keeper" in (await hub.get_server("boss", "gpu")).roles
        assert all(("keeper" in server.roles) == ("staff" in server.groups) for server in await hub.list_servers())


@pytest.mark.parametrize(
    ("service", "groups", "roles"),
    [
        ("peer", None, None),
        ("looker", None, None),
        ("grouper", ("gpu users", "staff"), None),
        ("roler", None, ("admin", "user")),
        ("guard", ("gpu users", "staff"), ("admin", "user")),
    ],
)
async def test_what_the_scopes_hide_is_unknown_and_everything_else_still_works(real, service, groups, roles):
    async with HTTPHubAPI(real.api_url, f"token-of-the-{service}", plenty()) as hub:
        listed = {server.key: server for server in await hub.list_servers()}
        server = listed["boss", "gpu"]
        assert await hub.get_server("boss", "gpu") == server
        assert (server.groups, server.roles, server.admin) == (groups, roles, True)
        assert server.options["on_stop"] == "works"
        assert await hub.count_users() > len({user for user, _ in listed})


async def test_a_peers_scopes_tell_when_users_were_active_and_not_when_they_were_made(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-peer", plenty()) as hub:
        user = next(user for user in await hub.list_users(inactive_since=None) if user.name == "graduate")
        assert user == await hub.get_user("graduate")
        assert (user.created, user.groups, user.roles) == (None, None, None)
        assert user.last_activity is not None


async def test_the_class_of_the_spawner_is_told_to_none_but_who_may_see_the_hub(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-peer", plenty()) as hub:
        assert await hub.spawner_class() is None


async def test_the_hubs_clock_is_ours(real):
    async with HTTPHubAPI(real.api_url, "token-of-the-guard", plenty()) as hub:
        assert hub.skew_s is None
        await hub.version()
        assert -60 < hub.skew_s < 60


@pytest.mark.long
async def test_inactive_users_are_all_found_whatever_the_hubs_database(database_url):
    # More than a page of those who never came: PostgreSQL gives them in another order for every page.
    never = [SeededUser(f"never-{number:03}") for number in range(250)]
    long_ago = [SeededUser(f"old-{number:03}", idle_for_s=(100 + number % 7) * DAY_S) for number in range(60)]
    lately = [SeededUser(f"new-{number:03}", idle_for_s=DAY_S + number % 3) for number in range(300)]
    crowd = Population(tuple(random.Random(1).sample([*never, *long_ago, *lately], 610)))
    budget = plenty()
    async with (
        RealHub(python=HUB_PYTHON, population=crowd, config=CONFIG, db_url=database_url) as hub,
        HTTPHubAPI(hub.api_url, "token-of-the-guard", budget, page_size=50) as client,
    ):
        everybody = await client.list_users(inactive_since=None)
        before = budget.use().requests
        listed = await client.list_users(inactive_since=datetime.now(timezone.utc) - timedelta(days=50))
        needed = budget.use().requests - before
    assert len(everybody) == 611
    assert [user.name for user in listed] == ["admin", *sorted(user.name for user in (*never, *long_ago))]
    assert [user.last_activity is None for user in listed] == [True] * 251 + [False] * 60
    if database_url.startswith("sqlite"):
        assert needed == 7


class InternallySecuredHub(RealHub):
    """A hub with internal SSL, which talks to nobody without one of its own certificates."""

    @property
    def api_url(self) -> str:
        return super().api_url.replace("http:", "https:")

    async def api(self, method, path, **request):
        return await super().api(method, path, ssl=internal_ssl_context(str(self.folder / "internal-ssl")), **request)


@pytest.mark.long
async def test_a_hub_with_internal_ssl_is_talked_to_with_its_own_certificates_only():
    pytest.importorskip("certipy", reason="certipy isn't installed, without which no hub has internal SSL")
    config = (
        CONFIG
        + """
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
"""
    )
    population = Population((SeededUser("ada"),))
    async with InternallySecuredHub(python=HUB_PYTHON, population=population, config=config) as real:
        context = internal_ssl_context(str(real.folder / "internal-ssl"))
        async with HTTPHubAPI(real.api_url, "token-of-the-guard", plenty(), ssl_context=context) as hub:
            assert [user.name for user in await hub.list_users(inactive_since=None)] == ["ada", "admin"]
        strangers = ssl.create_default_context(cafile=real.folder / "internal-ssl" / "hub-ca" / "hub-ca.crt")
        for wrong in (None, strangers):
            async with HTTPHubAPI(real.api_url, "token-of-the-guard", plenty(), ssl_context=wrong) as hub:
                with pytest.raises(HubUnreachable):
                    await hub.version()


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


async def test_memory_shows_servers_with_what_their_user_is_and_users_with_their_servers():
    hub = MemoryHub()
    hub.add_user(User("ada", True, ("staff",), ("admin",)))
    hub.add(_ready("ada"))
    hub.add(replace(_ready("bob"), groups=("students",), roles=None))
    ada, bob = await hub.list_users(inactive_since=None)
    assert (ada.admin, ada.groups, ada.last_activity) == (True, ("staff",), _ready("ada").last_activity)
    assert (bob.admin, bob.groups, bob.roles) == (False, ("students",), None)
    assert await hub.list_servers() == (*ada.servers, *bob.servers)
    assert (ada.servers[0].admin, ada.servers[0].groups) == (True, ("staff",))


async def test_memory_routes_a_server_once_it_is_ready_and_leaves_a_wiped_table_wiped():
    hub = MemoryHub()
    hub.add(replace(_ready("ada"), ready=False, pending="spawn"))
    assert list(await hub.list_routes()) == ["/"]
    hub.change("ada", ready=True)
    assert list(await hub.list_routes()) == ["/", "/user/ada"]
    hub.routes.clear()
    hub.change("ada", last_activity=datetime.now(timezone.utc))
    assert await hub.list_routes() == {}


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
