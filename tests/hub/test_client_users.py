"""One suite over what bringing users back takes of a hub: the one in memory, and a real one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, unquote

import pytest
import pytest_asyncio
import sqlalchemy as sa
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import HUB_PYTHON
from doubles.hub import MemoryHub, Request
from real_hub import RealHub

from hubguard.errors import ConfigError, HubFailed, HubGarbled, HubRefused
from hubguard.hub.api import HubAPI
from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.models import read_startup, read_tokens
from hubguard.hub.nouns import UndoServer
from hubguard.model import OutcomeKind, Server, User
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import SystemClock
from hubguard.prune.observe import AccountReader
from hubguard.prune.restore import Restorer
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import AWKWARD_NAMES, DAY_S, Population, SeededServer, SeededUser

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.hub, pytest.mark.contract]

USED_S = 5 * DAY_S
POPULATION = Population(
    (
        SeededUser("boss", admin=True, groups=("staff",)),
        SeededUser("ann", groups=("staff", *AWKWARD_NAMES)),
        SeededUser("bob"),
        SeededUser("had", tokens=3, token_used_s=USED_S),
        SeededUser("unused", tokens=2),
        SeededUser("expired", tokens=2),
        SeededUser("served", groups=("staff",)),
        *(SeededUser(name) for name in AWKWARD_NAMES),
    ),
    (
        SeededServer("ann", "there", running=False),
        SeededServer("boss"),
        SeededServer("served", "gpu", running=False, start_s=2.0),
        SeededServer("served", "work", running=False),
    ),
)
SERVED = POPULATION.servers[2:]
ALL = (
    "admin:users",
    "groups",
    "servers",
    "read:tokens",
    "read:metrics",
    "list:users",
    "read:users",
    "read:servers",
    "delete:users",
)
CONFIG = f"""
def add(name, scopes):
    c.JupyterHub.services.append({{"name": name, "api_token": "token-of-the-" + name}})
    c.JupyterHub.load_roles.append({{"name": name, "services": [name], "scopes": scopes}})
add("keeper", {list(ALL)})
add("looker", ["list:users", "read:users", "read:servers"])
"""


class World:
    """A hub with POPULATION on it, as the client that is tested sees it."""

    def __init__(self, hub: HubAPI, budget: Budget, real: TestbedHub | None) -> None:
        self.hub = hub
        self.budget = budget
        self.real = real

    async def stopped(self, user: str) -> dict[str, Any]:
        """The options of each of their servers that doesn't run, by name."""
        if isinstance(self.hub, MemoryHub):
            return {name: options for (of, name), options in self.hub.stopped_servers().items() if of == user}
        assert self.real is not None
        answer = await self.real.api("GET", f"users/{quote(user, safe='')}", params={"include_stopped_servers": "1"})
        return {
            name: server["user_options"]
            for name, server in answer.data["servers"].items()
            if not server["ready"] and server["pending"] is None
        }


def plenty() -> Budget:
    return Budget(rate=1000.0, burst=1000, concurrency=10)


@contextlib.asynccontextmanager
async def _a_hub(kind: str) -> AsyncIterator[World]:
    budget = plenty()
    if kind == "real":
        async with (
            RealHub(python=HUB_PYTHON, population=POPULATION, config=CONFIG, hub_prefix="/a%20b/") as real,
            HTTPHubAPI(real.api_url, "token-of-the-keeper", budget) as client,
        ):
            yield World(client, budget, real)
        return
    hub = MemoryHub(budget=budget)
    now = datetime.now(timezone.utc)
    for person in POPULATION.users:
        hub.add_user(User(person.name, person.admin, tuple(sorted(person.groups)), ("user",), now, None))
        if person.tokens:
            used = None if person.token_used_s is None else now - timedelta(seconds=person.token_used_s)
            hub.tokens[person.name] = (person.tokens, used)
    hub.add(Server("boss", "", True, None, now, now))
    for server in POPULATION.servers:
        if not server.running:
            await hub.create_server(server.user, server.name, server.options)
    hub.started_in_s = 1.5

    def forbid(request: Request) -> HubRefused | None:
        open_to_all = {"list", "get", "users", "get-user", "version", "whoami", "count"}
        lookers = request.token == "token-of-the-looker" and request.call not in open_to_all
        wrong = request.token == "token-of-nobody"
        return HubRefused("The hub refused: the token lacks the scope it takes.") if lookers or wrong else None

    hub.fault = forbid
    yield World(hub, budget, None)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["memory", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with _a_hub(request.param) as world:
        yield world


async def _never() -> None:
    raise LookupError("not now")


async def can_make_servers(world: World) -> bool:
    return int((await world.hub.version()).split(".")[0]) >= 6


# tokens


async def test_how_many_tokens_a_user_has_is_told_with_the_last_use_of_any(world: World):
    count, used = await world.hub.tokens_of("had")
    assert count == 3
    assert used is not None
    assert abs((datetime.now(timezone.utc) - used).total_seconds() - USED_S) < 120


@pytest.mark.parametrize(("user", "count"), [("unused", 2), ("bob", 0), ("sl/ash", 0), ("李雷", 0)])
async def test_tokens_that_were_never_used_have_no_last_use(world: World, user: str, count: int):
    assert await world.hub.tokens_of(user) == (count, None)


async def test_of_somebody_unknown_it_isnt_said_that_they_have_no_token(world: World):
    with pytest.raises(HubFailed) as failure:
        await world.hub.tokens_of("nobody at all")
    assert failure.value.status == 404


async def test_tokens_that_have_expired_dont_count_and_asking_removes_them(world: World):
    """What a reading changes: only a token that opens nothing any more."""
    if world.real is None:
        return
    hub, left = (
        world.real,
        "SELECT count(*) FROM api_tokens t JOIN users u ON u.id = t.user_id WHERE u.name = 'expired'",
    )
    engine = sa.create_engine(hub.db_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE api_tokens SET expires_at = '2020-01-01 00:00:00' WHERE id ="
            " (SELECT max(t.id) FROM api_tokens t JOIN users u ON u.id = t.user_id WHERE u.name = 'expired')"
        )
        assert connection.exec_driver_sql(left).scalar_one() == 2
    assert await world.hub.tokens_of("expired") == (1, None)
    with engine.begin() as connection:
        assert connection.exec_driver_sql(left).scalar_one() == 1


# users


@pytest.mark.parametrize("name", [f"new {name}" for name in AWKWARD_NAMES if "/" not in name])
async def test_a_user_is_made_by_the_very_name_without_any_rights_and_only_once(world: World, name: str):
    assert await world.hub.create_user(name)
    made = await world.hub.get_user(name)
    assert made is not None
    assert (made.name, made.admin, made.groups, made.roles) == (name, False, (), ("user",))
    assert made.last_activity is None
    assert made.created is not None
    assert abs((datetime.now(timezone.utc) - made.created).total_seconds()) < 60
    assert not await world.hub.create_user(name)
    assert await world.hub.get_user(name) == made


@pytest.mark.parametrize("name", ["sl/ash again", "space ", " space", "...", "%2e%2e"])
async def test_a_name_that_the_hub_takes_for_no_name_is_refused(world: World, name: str):
    """Users have such names all the same, from other times or made by hand: these can't come back by way of the API."""
    if set(unquote(name)) == {"."} and tuple(map(int, (await world.hub.version()).split(".")[:2])) < (5, 5):
        pytest.skip("a 5.2 hub takes names of dots alone, 5.5 doesn't")
    with pytest.raises(HubFailed) as failure:
        await world.hub.create_user(name)
    assert failure.value.status == 400
    assert await world.hub.get_user(name) is None


async def test_a_user_who_is_there_stays_as_they_are(world: World):
    before = await world.hub.get_user("boss")
    assert not await world.hub.create_user("boss")
    assert await world.hub.get_user("boss") == before


async def test_a_name_keeps_its_capitals(world: World):
    """POST /users would have made small letters of them."""
    assert await world.hub.create_user("Ann")
    assert {user.name for user in await world.hub.list_users(inactive_since=None)} >= {"Ann", "ann"}


async def test_a_users_servers_that_dont_run_are_told_where_they_are_asked_for(world: World):
    shown, whole = await world.hub.get_user("ann"), await world.hub.get_user("ann", stopped=True)
    assert shown is not None
    assert whole is not None
    assert [server for server in shown.servers if server.name] == []
    (there,) = (server for server in whole.servers if server.name)
    assert (there.name, there.ready, there.pending, there.options) == (
        "there",
        False,
        None,
        POPULATION.servers[0].options,
    )
    assert replace(whole, servers=()) == replace(shown, servers=())
    boss = await world.hub.get_user("boss", stopped=True)
    assert boss is not None
    assert [(server.name, server.ready) for server in boss.servers] == [("", True)]
    assert await world.hub.get_user("nobody at all", stopped=True) is None


async def test_without_the_database_an_undo_file_has_the_servers_that_dont_run_and_they_come_back(world: World):
    """The list of users doesn't tell of them, and a deletion takes them with it."""
    reader = AccountReader(world.hub, None, SystemClock())
    names = ["served", "sl/ash", "nobody at all"]
    users = await reader.undo_users(names)
    assert [user.name for user in users] == ["served", "sl/ash"]
    assert users[0].groups == ("staff",)
    served = [server for server in users[0].servers if server.name]
    assert served == [UndoServer(server.name, server.options) for server in SERVED]
    await world.hub.delete_user("served")
    ((_, outcome),) = await Restorer(world.hub).restore(users[:1])
    assert outcome.kind is OutcomeKind.DONE
    if await can_make_servers(world):
        assert outcome.detail == "is back"
        assert {name: options for name, options in (await world.stopped("served")).items() if name} == {
            server.name: server.options for server in SERVED
        }
    else:
        assert "not back: the server gpu" in outcome.detail


# groups


@pytest.mark.parametrize("group", AWKWARD_NAMES)
async def test_users_are_put_into_the_group_of_that_very_name(world: World, group: str):
    await world.hub.create_user("to be put")
    before = await world.hub.get_user("to be put")
    await world.hub.add_to_group(group, ["to be put", group])
    for name in ("to be put", group):
        user = await world.hub.get_user(name)
        assert user is not None
        assert group in (user.groups or ())
    after = await world.hub.get_user("to be put")
    assert before is not None
    assert after is not None
    assert set(after.groups or ()) - set(before.groups or ()) == {group}


async def test_who_is_in_the_group_already_stays_in_it(world: World):
    for _ in range(2):
        await world.hub.add_to_group("staff", ["ann"])
    ann = await world.hub.get_user("ann")
    assert ann is not None
    assert [group for group in ann.groups or () if group == "staff"] == ["staff"]


async def test_a_group_that_isnt_there_is_not_made(world: World):
    with pytest.raises(HubFailed) as failure:
        await world.hub.add_to_group("no such group", ["bob"])
    assert failure.value.status == 404


async def test_where_one_of_them_is_unknown_nobody_is_put_into_the_group(world: World):
    with pytest.raises(HubFailed) as failure:
        await world.hub.add_to_group("staff", ["bob", "nobody at all"])
    assert failure.value.status == 400
    bob = await world.hub.get_user("bob")
    assert bob is not None
    assert bob.groups == ()


async def test_small_letters_are_made_of_the_names_that_are_put_into_a_group(world: World):
    await world.hub.create_user("Big")
    with pytest.raises(HubFailed) as failure:
        await world.hub.add_to_group("staff", ["Big"])
    assert failure.value.status == 400
    await world.hub.create_user("big")
    await world.hub.add_to_group("staff", ["Big"])
    groups = {user.name: user.groups for user in await world.hub.list_users(inactive_since=None)}
    assert (groups["Big"], groups["big"]) == ((), ("staff",))


# servers


@pytest.mark.parametrize("name", ["x", "work-2", "a" * 30])
async def test_a_named_server_is_made_with_its_options_and_doesnt_run(world: World, name: str):
    await world.hub.create_user("serves")
    if not await can_make_servers(world):
        with pytest.raises(HubFailed) as failure:
            await world.hub.create_server("serves", name, None)
        assert failure.value.status == 405
        return
    await world.hub.create_server("serves", name, {"shared": True, "deep": {"list": [1, None]}})
    assert (await world.stopped("serves"))[name] == {"shared": True, "deep": {"list": [1, None]}}
    assert await world.hub.get_server("serves", name) is None


@pytest.mark.parametrize("options", [None, {}])
async def test_a_server_may_have_no_options(world: World, options: dict[str, object] | None):
    if not await can_make_servers(world):
        return
    name = "plain" if options is None else "empty"
    await world.hub.create_server("bob", name, options)
    assert (await world.stopped("bob"))[name] == {}


async def test_options_that_look_like_a_request_are_options(world: World):
    if not await can_make_servers(world):
        return
    await world.hub.create_server("bob", "tricky", {"display_name": 7, "user_options": {"a": 1}})
    assert (await world.stopped("bob"))["tricky"] == {"display_name": 7, "user_options": {"a": 1}}


async def test_a_server_that_is_there_stays_as_it_is(world: World):
    if not await can_make_servers(world):
        return
    before = await world.stopped("ann")
    await world.hub.create_server("ann", "there", {"other": "options"})
    assert await world.stopped("ann") == before
    assert before["there"] == POPULATION.servers[0].options


@pytest.mark.parametrize("name", [*AWKWARD_NAMES, "Work", "2nd", "a--b", "end-", "under_score", "a" * 31])
async def test_a_server_has_a_plain_name_or_isnt_made(world: World, name: str):
    """One made before 6.0 may have any name but with a slash: such a one can't come back by way of the API."""
    if not await can_make_servers(world):
        return
    with pytest.raises(HubFailed) as failure:
        await world.hub.create_server("bob", name, None)
    assert failure.value.status == 400
    assert name not in await world.stopped("bob")


async def test_no_server_is_made_for_somebody_unknown(world: World):
    with pytest.raises(HubFailed) as failure:
        await world.hub.create_server("nobody at all", "x", None)
    assert failure.value.status == (404 if await can_make_servers(world) else 405)


# the start of the hub


async def test_how_long_its_start_took_is_told_and_is_some_seconds(world: World):
    took_s = await world.hub.startup_s()
    assert took_s is not None
    assert 0 < took_s < 300


async def test_where_our_token_may_not_ask_its_start_isnt_known(world: World):
    async with world.hub.with_token("token-of-the-looker") as looker:
        assert await looker.startup_s() is None


async def test_its_metrics_are_told_as_they_are(world: World):
    metrics = await world.hub.metrics()
    assert metrics is not None
    assert "jupyterhub_running_servers " in metrics


async def test_its_metrics_are_shown_only_to_a_token_that_may_see_them(world: World):
    async with world.hub.with_token("token-of-the-looker") as looker:
        assert await looker.metrics() is None


# rights and budget


ACTS: dict[str, Callable[[HubAPI, Callable[[], Awaitable[None]] | None], Awaitable[object]]] = {
    "create": lambda hub, confirm: hub.create_user("not this one", confirm=confirm),
    "group": lambda hub, confirm: hub.add_to_group("staff", ["bob"], confirm=confirm),
    "server": lambda hub, confirm: hub.create_server("bob", "not this one", None, confirm=confirm),
}


async def _nothing_happened(world: World) -> None:
    bob = await world.hub.get_user("bob")
    assert bob is not None
    assert bob.groups == ()
    assert await world.hub.get_user("not this one") is None
    assert "not this one" not in await world.stopped("bob")


@pytest.mark.parametrize("act", ACTS)
async def test_nobody_does_with_another_token_what_it_doesnt_allow(world: World, act: str):
    async with world.hub.with_token("token-of-the-looker") as looker:
        assert await looker.get_user("bob") == await world.hub.get_user("bob")
        if act == "server" and not await can_make_servers(world):
            return
        with pytest.raises(HubRefused, match="scope"):
            await ACTS[act](looker, None)
    await _nothing_happened(world)


async def test_tokens_are_told_to_nobody_who_may_not_see_them(world: World):
    async with world.hub.with_token("token-of-the-looker") as looker:
        with pytest.raises(HubRefused, match="scope"):
            await looker.tokens_of("had")


async def test_a_token_that_is_none_of_the_hubs_is_refused(world: World):
    async with world.hub.with_token("token-of-nobody") as nobody:
        with pytest.raises(HubRefused):
            await nobody.create_user("not this one either")
    assert await world.hub.get_user("not this one either") is None


async def test_every_request_passes_the_one_budget_whoever_asks(world: World):
    before = world.budget.use().requests
    await world.hub.tokens_of("bob")
    await world.hub.create_user("bob")
    await world.hub.add_to_group("staff", ["ann"])
    await world.hub.startup_s()
    async with world.hub.with_token("token-of-the-looker") as looker:
        await looker.get_user("bob")
    use = world.budget.use()
    assert (use.requests, use.in_flight) == (before + 5, 0)


@pytest.mark.parametrize("act", ACTS)
async def test_what_isnt_confirmed_isnt_sent(world: World, act: str):
    before = world.budget.use().requests
    with pytest.raises(LookupError):
        await ACTS[act](world.hub, _never)
    assert world.budget.use().requests == before
    await _nothing_happened(world)


# What only one of them can do.


async def test_with_another_token_the_pages_and_timeouts_are_the_same_and_no_token_is_shown():
    budget = plenty()
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        pages = {"offset": 0, "limit": 7, "total": 0, "next": None}
        return web.json_response({"items": [], "_pagination": pages})

    app = web.Application()
    app.router.add_get("/hub/api/users", answer)
    async with TestServer(app, access_log=None) as server:
        hub = HTTPHubAPI(str(server.make_url("/hub/api")), "ours", budget, page_size=7)
        async with hub.with_token("theirs") as other:
            assert await other.list_users(inactive_since=None) == ()
            assert "theirs" not in repr(other)
        with pytest.raises(ConfigError):
            hub.with_token("line\nbreak")
    assert [(request.query["limit"], request.headers["Authorization"]) for request in asked] == [("7", "token theirs")]


async def test_memory_keeps_whose_token_asked():
    hub = MemoryHub()
    await hub.create_user("ann")
    async with hub.with_token("theirs") as other:
        await other.create_user("bob")
    assert [(request.call, request.user, request.token) for request in hub.requests] == [
        ("create", "ann", ""),
        ("create", "bob", "theirs"),
    ]
    assert {user.name for user in await hub.list_users(inactive_since=None)} == {"ann", "bob"}


async def test_memory_is_a_hub_before_6_when_asked():
    hub = MemoryHub()
    hub.hub_version = "5.4.2"
    await hub.create_user("ann")
    with pytest.raises(HubFailed) as failure:
        await hub.create_server("ann", "work", None)
    assert failure.value.status == 405
    assert hub.stopped_servers() == {}


METRICS = """# HELP jupyterhub_hub_startup_duration_seconds Time taken for Hub to start
# TYPE jupyterhub_hub_startup_duration_seconds histogram
jupyterhub_hub_startup_duration_seconds_bucket{le="0.005"} 0.0
jupyterhub_hub_startup_duration_seconds_bucket{le="+Inf"} 1.0
jupyterhub_hub_startup_duration_seconds_count 1.0
jupyterhub_hub_startup_duration_seconds_sum 1.2345
"""


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (METRICS, 1.2345),
        (METRICS.replace("jupyterhub_hub", "my_own_hub"), 1.2345),
        (METRICS.replace("count 1.0", "count 0.0").replace("1.2345", "0.0"), None),
        (METRICS.replace("count 1.0", "count 2.0"), None),
        (METRICS.replace("1.2345", "NaN"), None),
        (METRICS.replace("1.2345", "+Inf"), None),
        (METRICS.replace("1.2345", "-1"), None),
        (METRICS.replace("1.2345", "soon"), None),
        (METRICS.replace("hub_startup", "other"), None),
        ("# jupyterhub_hub_startup_duration_seconds_sum 3\n", None),
        ("", None),
        ("<html>not metrics</html>", None),
    ],
)
async def test_metrics_that_dont_tell_of_one_start_tell_of_none(metrics: str, told: float | None):
    assert read_startup(metrics) == told


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"api_tokens": None},
        {"api_tokens": {"a": 1}},
        {"api_tokens": ["a"]},
        {"api_tokens": [{"id": "a1"}]},
        {"api_tokens": [{"id": "a1", "last_activity": "yesterday"}]},
        {"api_tokens": [{"id": "a1", "last_activity": 7}]},
    ],
)
async def test_tokens_that_make_no_sense_are_not_taken_for_none(answer: object):
    with pytest.raises(HubGarbled):
        read_tokens(answer, of="ann")
