"""One look at everything: what is asked, in which order, what a source that fails or hangs comes to, and what that costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from doubles.backends import MemoryBackends
from doubles.hub import SERVED_AT, MemoryHub, Request
from doubles.hub_db import MemoryHubDB
from doubles.proxy import MemoryProxy
from virtual_time import VirtualClock

from hubguard.backends.model import Backend
from hubguard.backends.port import Expected
from hubguard.drift.decide.follow import DriftPolicy, follow
from hubguard.drift.model import Drift, DriftKind, World
from hubguard.drift.observe import WorldObserver
from hubguard.errors import BackendError, HubDBError, HubFailed, HubRefused, HubUnreachable, ProxyUnreachable
from hubguard.model import Reading, Server, Source, User
from hubguard.snapshot.decide.activity import ALIVE
from hubguard.snapshot.model import Snapshot

ASKED_ONE_BY_ONE = 20
BACKENDS_S = 60.0
RECENT_S = 90.0
SELDOM_S = 600.0

POLICY = DriftPolicy(sightings=1, for_s=0.0, clear_after=1, pending_limit_s=600.0)


class Scene:
    """A hub with everything that can be read of it."""

    def __init__(self, *, database: bool = True, proxy: bool = True, backends: bool = True, whole: bool = True) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryHub(clock=self.clock)
        self.proxy = MemoryProxy(clock=self.clock)
        self.proxy.table = self.hub.routes
        self.db = MemoryHubDB()
        self.engine = MemoryBackends(clock=self.clock, whole=whole)
        self.observer = WorldObserver(
            self.hub,
            self.clock,
            database=self.db if database else None,
            proxy=self.proxy if proxy else None,
            backends=self.engine if backends else None,
        )

    def server(self, user: str, name: str = "", *, pending: str | None = None, backend: bool = True) -> Server:
        now = self.clock.now()
        server = Server(user, name, pending is None, pending, now - timedelta(hours=1), now)
        self.hub.add(server)
        self.db.users[user] = User(user, False, servers=(server,))
        self.db.targets[server.key] = SERVED_AT
        if backend:
            self.engine.add(user, name)
        return server

    def gone(self, user: str) -> None:
        """It was stopped, properly."""
        self.hub._records[user, ""].active = False
        self.hub.routes.pop(f"/user/{user}", None)
        self.engine.kill(user)
        self.db.users.pop(user)

    def snapshot(self, *servers: Server, detail: str = "", age_s: float = 0.0) -> Snapshot:
        at = self.clock.now() - timedelta(seconds=age_s)
        return Snapshot(at, servers, (Reading(Source.HUB_API, at, True, 0.1, detail),))

    def asked(self) -> Counter[str]:
        """What the hub was asked since this was last asked, by call."""
        counts = Counter(request.call for request in self.hub.requests)
        self.hub.requests.clear()
        return counts

    def look(self, recent: Snapshot | None = None, also: Sequence[tuple[str, str]] = (), **how: bool) -> World:
        async def looked() -> World:
            return await self.clock.run(self.observer.look(recent, also, **how))

        return asyncio.run(looked())

    def drifts(self, world: World) -> set[tuple[DriftKind, str | None]]:
        return {(drift.kind, drift.user) for drift in differences(world)}


def differences(world: World) -> tuple[Drift, ...]:
    return follow((), world, POLICY)[0]


def test_a_quiet_look_with_the_hubs_database_asks_its_api_whether_it_is_there_and_no_more():
    s = Scene()
    s.server("ann")
    s.look()
    assert s.asked() == {"version": 1, "prefixes": 1}
    s.db.calls = 0
    s.proxy.requests.clear()
    s.engine.requests.clear()
    s.look()
    assert s.asked() == {"version": 1}
    assert (s.db.calls, len(s.proxy.requests), len(s.engine.requests)) == (1, 1, 1)


def test_without_the_database_a_young_list_of_others_spares_the_hub_one():
    s = Scene(database=False)
    ann = s.server("ann")
    s.look(s.snapshot(ann, age_s=RECENT_S))
    assert s.asked() == {"version": 1, "prefixes": 1}
    world = s.look(s.snapshot(ann, age_s=RECENT_S + 1))
    assert s.asked() == {"list": 1}
    assert differences(world) == ()


def test_what_a_look_has_listed_itself_spares_the_next_looks_a_list():
    s = Scene(database=False)
    s.server("ann")
    s.look()
    assert s.asked()["list"] == 1
    s.look()
    assert s.asked() == {"version": 1}

    asyncio.run(s.clock.run(s.clock.sleep(RECENT_S + 1)))
    s.look()
    assert s.asked()["list"] == 1


@pytest.mark.parametrize("age_s", [-1.0, -1e6], ids=["by-a-second", "by-days"])
def test_a_list_from_the_future_doesnt_count_as_young(age_s: float):
    s = Scene(database=False)
    s.look(s.snapshot(s.server("ann"), age_s=age_s))
    assert s.asked()["list"] == 1


def test_a_snapshot_from_the_hubs_database_isnt_taken_for_the_word_of_its_api():
    s = Scene(database=False)
    s.look(s.snapshot(s.server("ann"), detail=ALIVE))
    assert s.asked()["list"] == 1


def test_a_reused_list_raises_nothing_by_itself():
    s = Scene(database=False)
    old = [s.server("stays"), s.server("stopped"), s.server("again")]
    recent = s.snapshot(*old)
    s.gone("stopped")
    s.hub.change("again", started=s.clock.now() + timedelta(seconds=1))
    s.server("new")
    world = s.look(recent)
    assert differences(world) == ()
    asked = {request.user for request in s.hub.requests if request.call == "get"}
    assert asked == {"stopped", "new"}


def test_the_hub_is_asked_one_by_one_only_for_those_over_which_sources_differ_and_those_named():
    s = Scene()
    for number in range(50):
        s.server(f"u{number:02}")
    s.server("dead", backend=False)
    s.hub.routes.pop("/user/u07")
    world = s.look(also=[("u30", "")])
    assert {request.user for request in s.hub.requests if request.call == "get"} == {"dead", "u07", "u30"}
    assert s.asked()["list"] == 0
    assert s.drifts(world) == {(DriftKind.SERVER_DEAD, "dead"), (DriftKind.ROUTE_MISSING, "u07")}


@pytest.mark.parametrize("count", [ASKED_ONE_BY_ONE, ASKED_ONE_BY_ONE + 1])
def test_where_they_are_many_one_list_is_asked_for(count: int):
    s = Scene()
    for number in range(count):
        s.server(f"u{number:02}", backend=False)
    world = s.look()
    many = count > ASKED_ONE_BY_ONE
    asked = s.asked()
    assert (asked["list"], asked["get"]) == ((1, 0) if many else (0, count))
    assert len(differences(world)) == count


@pytest.mark.parametrize("database", [True, False])
@pytest.mark.parametrize("source", ["proxy", "engine"])
def test_servers_that_stop_and_start_in_the_midst_of_each_look_are_never_drift(source: str, database: bool):
    s = Scene(database=database)
    s.server("stays")
    s.server("u0")
    looks = 0

    def meanwhile(_: object) -> None:
        nonlocal looks
        if f"u{looks}" in s.db.users:
            s.gone(f"u{looks}")
            looks += 1
            s.server(f"u{looks}")

    getattr(s, source).fault = meanwhile
    s.proxy.takes_s = s.engine.takes_s = s.hub.takes_s = 0.5
    followed: tuple[Drift, ...] = ()
    for _ in range(8):
        world = s.look(also=[(drift.user, drift.server) for drift in followed if drift.user])
        followed, ended = follow(followed, world, replace(POLICY, sightings=2))
        assert [drift for drift in (*followed, *ended) if drift.raised_at] == []
        assert [drift for drift in followed if drift.sightings > 1] == []
    assert looks == 8
    getattr(s, source).fault = None
    world = s.look(also=[(drift.user, drift.server) for drift in followed if drift.user])
    assert follow(followed, world, POLICY)[0] == ()


def test_a_start_that_hangs_without_a_trace_elsewhere_is_seen_by_the_young_list_of_others():
    s = Scene(database=False)
    recent = s.snapshot(s.server("ann", pending="spawn", backend=False))
    assert s.drifts(s.look(recent)) == {(DriftKind.PENDING_STUCK, "ann")}
    s = Scene(database=False)
    s.server("ann", pending="spawn", backend=False)
    assert s.drifts(s.look()) == {(DriftKind.PENDING_STUCK, "ann")}
    s.hub.change("ann", ready=True)
    s.engine.add("ann")
    assert differences(s.look()) == (), "nothing is concluded from the list of the look before"


FAULTS = {
    Source.HUB_API: lambda s: setattr(s.hub, "fault", lambda _: HubUnreachable("the hub is away")),
    Source.HUB_DB: lambda s: setattr(s.db, "fault", HubDBError("the database is away")),
    Source.PROXY: lambda s: setattr(s.proxy, "fault", lambda _: ProxyUnreachable("the proxy is away")),
    Source.BACKEND: lambda s: setattr(s.engine, "fault", lambda _: BackendError("the engine is away")),
}


@pytest.mark.parametrize("source", FAULTS, ids=lambda source: source.value)
def test_a_source_that_fails_is_told_of_and_nothing_is_concluded_from_it(source: Source):
    s = Scene()
    s.server("fine")
    s.server("dead", backend=False)
    s.hub.routes.pop("/user/fine")
    assert len(differences(s.look())) == 2
    before = differences(s.look())
    FAULTS[source](s)
    world = s.look()
    reading = world.reading(source)
    assert not reading.complete
    assert "away" in reading.detail
    now, ended = follow(before, world, POLICY)
    assert ended == ()
    assert {drift.key for drift in now} == {drift.key for drift in before}


def test_a_hub_that_is_down_isnt_asked_for_each_server_over_which_others_differ():
    s = Scene()
    for number in range(10):
        s.server(f"u{number}", backend=False)
    FAULTS[Source.HUB_API](s)
    s.look()
    assert sum(s.asked().values()) == 1


def test_one_of_several_answers_that_fails_leaves_nothing_to_be_concluded():
    s = Scene()
    s.server("ann", backend=False)
    s.server("bob", backend=False)
    s.hub.fault = lambda request: HubFailed("500", status=500) if request.user == "bob" else None
    world = s.look()
    assert not world.reading(Source.HUB_API).complete
    assert differences(world) == ()
    assert ("bob", "") in world.unsure
    assert ("bob", "") in world.servers, "no answer isn't that it is gone"
    assert ("ann", "") not in world.unsure


class Strange:
    """Backends by somebody else, who hasn't read what they promise."""

    kind = "strange"
    whole = True

    def __init__(self, does: object) -> None:
        self.does = does
        self.asked = 0

    def look(self, expected: Sequence[Expected]) -> object:
        self.asked += 1
        return self.does()


async def _raises() -> tuple[Backend, ...]:
    raise KeyError("nothing that anybody has promised\x1b[2J")


async def _gives_up() -> tuple[Backend, ...]:
    raise asyncio.CancelledError


async def _tells(what: object) -> object:
    return what


@pytest.mark.parametrize(
    "does",
    [
        _raises,
        _gives_up,
        lambda: {}["not even a coroutine"],
        lambda: (),
        lambda: _tells(None),
        lambda: _tells([None]),
        lambda: _tells([{"user": "ann"}]),
    ],
)
def test_backends_that_break_their_promises_make_an_incomplete_reading_and_no_drift(does: object):
    s = Scene()
    s.server("ann", backend=False)
    s.observer = WorldObserver(s.hub, s.clock, database=s.db, proxy=s.proxy, backends=Strange(does))
    world = s.look()
    reading = world.reading(Source.BACKEND)
    assert not reading.complete
    assert "The look at the backends" in reading.detail
    assert reading.detail.isprintable()
    assert differences(world) == ()


async def test_backends_that_hang_are_given_up_and_the_next_look_asks_them_again():
    s = Scene()
    s.server("ann", backend=False)
    s.engine.takes_s = 1e9
    began_s = s.clock.monotonic_s()
    world = await s.clock.run(s.observer.look(None))
    assert s.clock.monotonic_s() - began_s == BACKENDS_S
    assert not world.reading(Source.BACKEND).complete
    s.engine.takes_s = 0.0
    assert (await s.clock.run(s.observer.look(None))).reading(Source.BACKEND).complete


async def test_backends_that_cant_even_be_given_up_are_asked_no_more_until_they_end():
    end = asyncio.Event()

    async def deaf() -> tuple[Backend, ...]:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue
        raise ValueError("too late")

    s = Scene()
    strange = Strange(deaf)
    s.observer = WorldObserver(s.hub, s.clock, database=s.db, proxy=s.proxy, backends=strange)
    for _ in range(3):
        world = await s.clock.run(s.observer.look(None))
        assert not world.reading(Source.BACKEND).complete
    assert strange.asked == 1
    end.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    strange.does = lambda: _tells([])
    world = await s.clock.run(s.observer.look(None))
    assert world.reading(Source.BACKEND).complete


async def test_a_look_that_is_cancelled_leaves_no_question_behind():
    s = Scene()
    s.engine.takes_s = 1e9
    looking = asyncio.ensure_future(s.observer.look(None))
    await s.clock.run(s.clock.sleep(1.0))
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in others if not task.done()] == []


def test_without_the_proxys_api_the_hub_tells_the_table():
    s = Scene(proxy=False)
    s.server("ann")
    s.hub.routes.clear()
    world = s.look()
    assert world.reading(Source.HUB_ROUTES).complete
    assert s.drifts(world) == {(DriftKind.ROUTE_MISSING, "ann"), (DriftKind.HUB_ROUTE_MISSING, None)}


def test_the_hubs_own_route_is_missed_where_the_table_had_it():
    s = Scene()
    s.hub.routes["/api-only/hub"] = replace(s.hub.routes.pop("/"), path="/api-only/hub", hub=True)
    assert s.drifts(s.look()) == set()
    del s.hub.routes["/api-only/hub"]
    assert s.drifts(s.look()) == {(DriftKind.HUB_ROUTE_MISSING, None)}


def test_with_subdomains_the_hubs_route_is_the_default_whatever_its_base_url_is():
    s = Scene()
    s.observer = WorldObserver(s.hub, s.clock, proxy=s.proxy, base_url="/lab/", subdomains=True)
    assert s.drifts(s.look()) == set()


def test_a_look_at_routes_alone_doesnt_ask_backends_and_one_at_a_few_servers_asks_for_these_alone():
    s = Scene(whole=False)
    s.server("ann")
    s.server("bob")
    s.hub.routes.pop("/user/bob")
    world = s.look(routes_only=True)
    assert s.engine.requests == []
    assert world.reading(Source.BACKEND) is None
    assert s.drifts(world) == {(DriftKind.ROUTE_MISSING, "bob")}
    s.asked()
    world = s.look(also=[("ann", "")], only=True)
    assert [backend.user for backend in world.backends] == ["ann"]
    assert [request.user for request in s.hub.requests if request.call == "get"] == ["ann"]


def test_services_are_asked_for_seldom_and_not_each_time_where_the_hub_refuses():
    s = Scene()
    s.hub.fault = lambda request: HubRefused("no scope") if request.call == "prefixes" else None
    for _ in range(10):
        assert s.look().prefixes is None
    assert s.asked() == {"version": 10, "prefixes": 1}
    s.hub.fault = None
    asyncio.run(s.clock.run(s.clock.sleep(SELDOM_S)))
    for _ in range(10):
        assert s.look().prefixes == {}
    assert s.asked() == {"version": 10, "prefixes": 1}


def test_a_service_that_the_hub_has_no_more_isnt_missed_at_the_proxy():
    s = Scene()
    s.hub.prefixes = {"old": "/services/old/"}
    s.proxy.add("/services/old", "http://127.0.0.1:9000")
    assert differences(s.look()) == ()
    s.hub.prefixes = {}
    s.proxy.remove("/services/old")
    assert differences(s.look()) == ()
    s.hub.prefixes = {"lost": "/services/lost/"}
    asyncio.run(s.clock.run(s.clock.sleep(SELDOM_S)))
    (drift,) = differences(s.look())
    assert (drift.kind, drift.subject) == (DriftKind.SERVICE_ROUTE_MISSING, "lost")


def test_a_table_that_the_proxy_has_lost_is_no_reason_to_ask_for_services_at_each_look():
    s = Scene()
    s.hub.prefixes = {"old": "/services/old/"}
    s.proxy.add("/services/old", "http://127.0.0.1:9000")
    s.look()
    assert s.asked()["prefixes"] == 1
    s.proxy.table.clear()
    for _ in range(5):
        s.look()
    assert s.asked()["prefixes"] == 0


def test_rows_of_the_database_are_counted_seldom_and_forgotten_when_they_cant_be():
    s = Scene()
    s.db.counts = replace(s.db.counts, expired_codes=3)
    assert s.look().orm == s.db.counts
    s.db.calls = 0
    s.look()
    assert s.db.calls == 1
    FAULTS[Source.HUB_DB](s)
    assert differences(s.look()) == ()


@pytest.mark.parametrize("what", ["rows", "services"])
def test_what_is_read_seldom_is_read_again_soon_when_it_couldnt_be(what: str):
    s = Scene()
    asked: list[float] = []

    async def failing() -> None:
        asked.append(s.clock.monotonic_s())
        raise HubDBError("busy") if what == "rows" else HubUnreachable("no answer")

    if what == "rows":
        s.db.orm_counts = failing  # type: ignore[assignment, method-assign]
    else:
        s.hub.service_prefixes = failing  # type: ignore[assignment, method-assign]
    for _ in range(3):
        s.look()
        asyncio.run(s.clock.run(s.clock.sleep(RECENT_S / 2)))
    assert asked == [0.0, RECENT_S]


def test_a_route_that_the_hub_lacks_shows_while_its_list_is_old():
    s = Scene(database=False)
    recent = s.snapshot(s.server("ann"), age_s=60)
    s.proxy.remove("/")
    before: tuple[Drift, ...] = ()
    for _ in range(3):
        before, _ = follow(before, s.look(recent), replace(POLICY, sightings=3))
        asyncio.run(s.clock.run(s.clock.sleep(5.0)))
    (drift,) = before
    assert (drift.kind, drift.sightings) == (DriftKind.HUB_ROUTE_MISSING, 3)
    assert drift.raised_at is not None


def test_the_hubs_word_on_suspects_is_asked_for_last():
    s = Scene(database=False)
    s.server("ann", backend=False)
    asked: list[Request] = []
    s.hub.fault = asked.append
    s.look()
    assert [request.call for request in asked] == ["list", "prefixes", "get"]


def test_one_that_became_ready_after_the_list_isnt_dead_for_want_of_being_looked_for():
    s = Scene(database=False)
    ann = s.server("ann")
    before = s.snapshot(ann)
    new = s.server("new", backend=False)
    world = s.look(before)
    assert new.key in world.servers
    assert s.drifts(world) == set()
    assert s.drifts(s.look(s.snapshot(ann, new))) == {(DriftKind.SERVER_DEAD, "new")}
