"""Looks for drift and repairs in the life of a guard, in virtual time: hub, proxy, database, backends, journal in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from assembled import assembled
from constants import with_constants
from doubles.backends import MemoryBackends
from doubles.hub import SERVED_AT, MemoryHub, Stops
from doubles.hub_db import MemoryHubDB
from doubles.proxy import MemoryCanary, MemoryProxy
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard import config
from hubguard.drift.act import Repairer
from hubguard.drift.looks import DRIFT
from hubguard.drift.model import Drift, DriftKind, DriftReport
from hubguard.drift.observe import WorldObserver
from hubguard.errors import BackendError, HubDBError, HubFailed, HubGuardError, HubUnreachable, JournalError
from hubguard.guard import Guard
from hubguard.journal.model import Entry, Event
from hubguard.model import Order, OutcomeKind, Route, Server, User
from hubguard.pacing.budget import Budget
from hubguard.proxy.model import WatchState
from hubguard.snapshot.cycle import PACE
from hubguard.snapshot.model import BrakeReason

ARMED: dict[str, dict[str, object]] = {"HubGuard": {"armed": True}, "HubGuardCull": {"idle_timeout_s": 86400.0}}
EVERYTHING = [kind.value for kind in (*DriftKind,) if kind not in (DriftKind.ORM_DANGLING, DriftKind.ACTIVITY_FROZEN)]
RAISED_S = 50.0
"""From a fault right after a look until it is raised: a look, then every five seconds; with one second before the first."""


class Hub(MemoryHub):
    """A hub whose starts and stops make and end backends."""

    engine: MemoryBackends

    async def start_server(self, user: str, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        started = await super().start_server(user, name, confirm=confirm)
        self.engine.add(user, name)
        return started

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        at_once = await super().stop_server(user, name, remove=remove, confirm=confirm)
        if (user, name) not in self.backends:
            self.engine.kill(user, name)
        return at_once


class Scene:
    """A hub, its proxy, its backends, a journal, and one guard after another."""

    def __init__(self, *, database: bool = False, whole: bool = True) -> None:
        self.clock = VirtualClock()
        self.budget = Budget(rate=20.0, burst=10, concurrency=10, clock=self.clock)
        self.hub = Hub(clock=self.clock, budget=self.budget)
        self.proxy = MemoryProxy(clock=self.clock)
        self.proxy.table = self.hub.routes
        self.engine = self.hub.engine = MemoryBackends(clock=self.clock, whole=whole)
        self.db = MemoryHubDB() if database else None
        self.writes: list[float] = []
        self.sizes: list[int] = []
        self.books: InlineJournal
        self.guard: Guard

    async def guards(
        self,
        settings: dict[str, dict[str, object]] | None = None,
        *,
        holder: str = "here",
        watched: bool = False,
        **constants: float,
    ) -> Scene:
        """The next guard, on the same journal."""
        if not hasattr(self, "books"):
            self.books = InlineJournal()
            self.books.close = lambda: None  # type: ignore[method-assign]  # it is read after the guard has ended
            self._count_writes()
        loaded = with_constants(config.load(ARMED, settings or {}, environ={}), **constants)
        assert loaded.errors == ()

        self.guard = assembled(
            loaded, self.hub, self.budget, self.books, self.clock,
            holder=holder, address="http://here/", generation=0.0, database=self.db, proxy=self.proxy,
            world=WorldObserver(self.hub, self.clock, database=self.db, proxy=self.proxy, backends=self.engine),
            backends=self.engine, canary=MemoryCanary(self.proxy, clock=self.clock) if watched else None,
        )  # fmt: skip
        return self

    def _count_writes(self) -> None:
        remember = self.books.journal.remember

        def counting(key: str, value: Any, now: Any) -> None:
            if key == DRIFT:
                self.writes.append(self.clock.monotonic_s())
                self.sizes.append(len(json.dumps(value)))
            remember(key, value, now)

        self.books.journal.remember = counting  # type: ignore[method-assign]

    def server(
        self, user: str, name: str = "", *, stops: Stops = Stops.WORKS, stop_s: float = 0.0, backend: bool = True
    ) -> Server:
        now = self.clock.now()
        server = Server(user, name, True, None, now - timedelta(hours=1), now)
        self.hub.add(server, stops=stops, stop_s=stop_s)
        if self.db is not None:
            self.db.users[user] = User(user, False, servers=(server,))
            self.db.targets[server.key] = SERVED_AT
        if backend:
            self.engine.add(user, name)
        else:
            self.hub.backends.discard(server.key)
        return server

    def one_server(self, user: str) -> str:
        """When it was started, as the journal keeps it."""
        started = self.hub._records[user, ""].server.started
        assert started is not None
        return started.isoformat()

    def dies(self, user: str) -> None:
        self.engine.kill(user)
        self.hub.backends.discard((user, ""))

    def loses(self, *users: str) -> None:
        for user in users:
            del self.hub.routes[f"/user/{user}"]

    async def live(self, story: Callable[[], Awaitable[None]] | float) -> None:
        """The guard lives while ``story`` does, or for so many seconds."""

        async def living() -> None:
            running = asyncio.ensure_future(self.guard.run())
            try:
                await (self.clock.sleep(story) if isinstance(story, float) else story())
                assert not running.done(), running.exception()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        await self.clock.run(living())

    def entries(self, event: str) -> list[Entry]:
        return list(reversed(self.books.journal.entries(event=Event(event), limit=5000)))

    def told(self, event: str) -> Counter[str]:
        return Counter(f"{entry.detail.split(':')[0]} {entry.user}" for entry in self.entries(event))

    def ends(self) -> list[tuple[str | None, OutcomeKind | None]]:
        return [(entry.action, entry.outcome) for entry in self.entries("outcome")]

    def asked(self, *calls: str) -> list[float]:
        """When the hub was asked to do that."""
        return [request.at_s for request in self.hub.requests if request.call in calls]

    @property
    def report(self) -> DriftReport:
        report = self.guard.parts.drifts.report
        assert report is not None
        return report

    def raised(self) -> set[tuple[DriftKind, str | None]]:
        return {(drift.kind, drift.user) for drift in self.report.drifts if drift.raised_at is not None}

    def one(self, kind: DriftKind, user: str | None) -> Drift:
        (drift,) = [drift for drift in self.report.drifts if (drift.kind, drift.user) == (kind, user)]
        return drift


async def test_a_pace_that_does_not_change_is_not_written_again():
    s = await Scene().guards()
    s.server("ann")
    remember, written = s.books.journal.remember, []

    def noting(key: str, value: Any, now: Any) -> None:
        written.append(key)
        remember(key, value, now)

    s.books.journal.remember = noting  # type: ignore[method-assign]
    await s.live(1800.0)
    assert 1 <= written.count(PACE) <= 3


def only_look(**drift: object) -> dict[str, dict[str, object]]:
    return {"HubGuardDrift": {"repair": [], **drift}}


# -- raising and clearing -------------------------------------------------------------------------------------------------


async def test_a_difference_is_raised_after_so_many_looks_and_seconds_and_told_once_at_raise_and_end():
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(2)
        suspected = s.one(DriftKind.SERVER_DEAD, "ann")
        assert (suspected.raised_at, suspected.sightings) == (None, 1)
        assert s.told("finding") == {}
        await s.clock.sleep(RAISED_S)
        drift = s.one(DriftKind.SERVER_DEAD, "ann")
        assert (drift.raised_at - drift.since).total_seconds() >= 15
        assert drift.sightings >= 3
        await s.clock.sleep(600)
        assert s.told("finding") == {"server-dead ann": 1}
        s.engine.add("ann")
        await s.clock.sleep(100)
        assert s.report.drifts == ()
        assert [drift.user for drift in s.report.cleared] == ["ann"]

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {"server-dead ann": 1}


@pytest.mark.parametrize("holder", ["here", "another"])
async def test_a_restart_tells_nothing_again_and_the_end_once(holder: str):
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)
    await s.live(100.0)
    s = await s.guards(only_look(), holder=holder)
    await s.live(100.0)
    since = s.one(DriftKind.SERVER_DEAD, "ann").since
    assert (s.clock.now() - since).total_seconds() > 190
    s.engine.add("ann")
    s = await s.guards(only_look(), holder=holder)
    await s.live(100.0)
    s = await s.guards(only_look(), holder=holder)
    await s.live(100.0)
    assert s.told("finding") == s.told("cleared") == {"server-dead ann": 1}


async def test_a_guard_that_is_restarted_all_the_time_raises_all_the_same():
    s = Scene()
    s.server("ann", backend=False)
    for _ in range(20):
        await s.guards(only_look())
        await s.live(5.0)
    assert s.told("finding") == {"server-dead ann": 1}


async def test_what_another_guard_wrote_meanwhile_doesnt_stay_though_all_is_as_it_was_before():
    s = await Scene().guards(only_look(), clear_after=1)
    s.server("zed")

    async def story() -> None:
        await s.clock.sleep(100)
        s.books.journal.take_lease("hub", "another", "", 9.0, s.clock.now(), 40)
        s.books.journal.remember(DRIFT, {"drifts": [PLAIN | {"started": s.one_server("zed")}]}, s.clock.now())
        await s.clock.sleep(200)
        assert s.guard.status().holds_lease
        assert s.report.drifts == ()

    await s.live(story)
    assert s.told("cleared") == {"server-dead zed": 1}
    assert s.books.journal.recall(DRIFT)[0]["drifts"] == []


async def test_what_the_journal_didnt_take_is_told_when_it_does_again(caplog: pytest.LogCaptureFixture):
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)
    note = s.books.journal.note

    def failing(*_: object, **__: object) -> int:
        raise JournalError("the disk is full")

    async def story() -> None:
        s.books.journal.note = failing  # type: ignore[method-assign]
        await s.clock.sleep(100)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "ann")}
        s.engine.add("ann")
        await s.clock.sleep(100)
        s.books.journal.note = note  # type: ignore[method-assign]
        await s.clock.sleep(100)

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {"server-dead ann": 1}


async def test_what_different_looks_found_while_the_journal_failed_is_told_with_the_time_of_each():
    s = await Scene().guards(only_look())
    s.server("ann")
    s.server("bob")
    note = s.books.journal.note

    def failing(*_: object, **__: object) -> int:
        raise JournalError("the disk is full")

    async def story() -> None:
        await s.clock.sleep(10)
        s.books.journal.note = failing  # type: ignore[method-assign]
        for user in ("ann", "bob"):
            s.dies(user)
            await s.clock.sleep(100)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "ann"), (DriftKind.SERVER_DEAD, "bob")}
        s.books.journal.note = note  # type: ignore[method-assign]
        await s.clock.sleep(100)

    await s.live(story)
    assert [(entry.user, entry.at) for entry in s.entries("finding")] == [
        (user, s.one(DriftKind.SERVER_DEAD, user).raised_at) for user in ("ann", "bob")
    ]


async def test_a_journal_that_cant_be_written_doesnt_keep_the_page_from_what_is_seen():
    s = await Scene().guards(only_look())
    s.server("ann")

    def failing(*_: object) -> None:
        raise JournalError("the disk is full")

    async def story() -> None:
        await s.clock.sleep(10)
        s.books.journal.remember = failing  # type: ignore[method-assign]
        s.dies("ann")
        await s.clock.sleep(100)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "ann")}
        assert s.clock.now() - s.report.world.at < timedelta(seconds=40)

    await s.live(story)


async def test_names_that_no_journal_can_hold_are_told_of_all_the_same():
    s = await Scene().guards(only_look())
    s.hub.routes["/user/x"] = Route("/user/x", "http://127.0.0.1:9", "x" * 300, "")
    s.server("ann", backend=False)
    await s.live(200.0)
    assert {entry.user for entry in s.entries(Event.FINDING)} == {None, "ann"}


PLAIN = {
    "kind": "server-dead", "user": "zed", "server": "", "subject": "", "expected": "", "observed": "",
    "since": "2024-03-05T07:00:00+00:00", "seen_at": "2024-03-05T07:00:00+00:00", "started": None, "sightings": 3,
    "looks": 3, "missed": 0, "raised_at": "2024-03-05T07:00:00+00:00",
}  # fmt: skip
GARBAGE: list[dict[str, Any]] = [
    {},
    {"drifts": None, "ghosts": 3, "outlived": "x"},
    {"drifts": {"kind": 1}},
    {"drifts": [None, 3, "x", [], {}]},
    *({"drifts": [PLAIN | {key: value}]} for key in PLAIN for value in (None, [1], "\0\ud800", -1)),
    {"drifts": [PLAIN | {"since": "0001-01-01T00:00:00+23:59", "raised_at": "9999-12-31T23:59:59-23:59"}]},
    {"drifts": [PLAIN | {"since": "2024-03-05T07:00:00"}]},
    {"drifts": [PLAIN | {"seen_at": "9999-01-01T00:00:00+00:00", "since": "9999-01-01T00:00:00+00:00"}]},
    {"drifts": [PLAIN] * 5000},
    {"ghosts": [[1, 2, 3, 4], ["a", [], None, "2024-03-05T07:00:00+00:00"], "abcd", None]},
    {"outlived": [["a", {}, "2024-03-05T07:00:00+00:00", ""], ["ann", "", "9999-01-01T00:00:00+00:00", "told"]]},
]


@pytest.mark.long
async def test_whatever_stands_where_it_remembers_doesnt_keep_it_from_looking():
    for number, value in enumerate(GARBAGE):
        s = Scene()
        await s.guards(only_look())
        s.server("ann", backend=False)
        s.server("zed")
        s.books.journal.remember(DRIFT, value, s.clock.now())
        await s.live(60.0)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "ann")}, f"{number}: {value}"
        s.books.journal.close()


# -- bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_ten_thousand_drifts_stay_bounded_and_arent_written_down_again_while_only_counts_move():
    s = await Scene().guards(only_look())
    for number in range(10_000):
        s.hub.routes[f"/user/u{number}"] = Route(f"/user/u{number}", "http://127.0.0.1:9", f"u{number}", "")

    async def story() -> None:
        await s.clock.sleep(300)
        assert len(s.raised()) == 5000
        writes = len(s.writes)
        assert writes <= 4
        await s.clock.sleep(300)
        assert len(s.writes) == writes
        for path in [path for path in s.hub.routes if path != "/"]:
            del s.hub.routes[path]
        await s.clock.sleep(300)
        assert s.raised() == set()
        assert len(s.report.cleared) == 1000

    await s.live(story)
    assert max(s.sizes) < 1_000_000
    for event in ("finding", "cleared"):
        told = s.entries(event)
        assert len(told) == 101
        assert told[-1].detail == "and more at once: 4,900 route-stale"


async def test_what_only_flickers_on_a_busy_hub_is_written_down_once_a_minute_at_most():
    s = await Scene().guards(only_look(every_s=5.0))
    s.server("ann")

    async def story() -> None:
        for number in range(360):
            s.hub.routes[f"/user/u{number}"] = Route(f"/user/u{number}", "http://127.0.0.1:9", f"u{number}", "")
            s.hub.routes.pop(f"/user/u{number - 1}", None)
            await s.clock.sleep(5)

    await s.live(story)
    assert s.told("finding") == {}
    assert 2 <= len(s.writes) <= 31
    assert min(after - before for before, after in itertools.pairwise(s.writes)) >= 60


async def test_a_server_that_is_starting_brings_no_looks_sooner_and_isnt_shown():
    s = await Scene().guards(only_look() | {"HubGuardCull": {"pending_limit_s": 600.0}})
    s.server("ann")
    s.hub.add(Server("bob", "", False, "spawn", s.clock.now(), s.clock.now()))
    s.hub.backends.discard(("bob", ""))

    async def story() -> None:
        await s.clock.sleep(240)
        assert s.report.drifts == ()
        assert len(s.engine.requests) <= 9
        await s.clock.sleep(400)
        assert s.raised() == {(DriftKind.PENDING_STUCK, "bob")}

    await s.live(story)


async def test_what_was_pending_before_the_hub_started_again_is_pending_since_then():
    s = await Scene().guards(only_look() | {"HubGuardCull": {"pending_limit_s": 600.0}})
    s.hub.add(Server("bob", "", False, "spawn", s.clock.now(), s.clock.now()))
    s.hub.backends.discard(("bob", ""))

    async def story() -> None:
        await s.clock.sleep(500)
        # Its restart took minutes, and bob is starting again.
        s.hub.fault = lambda _: HubUnreachable("The hub is away.")
        await s.clock.sleep(200)
        s.hub.fault = None
        await s.clock.sleep(500)
        assert s.raised() == set()
        await s.clock.sleep(200)
        assert s.raised() == {(DriftKind.PENDING_STUCK, "bob")}

    await s.live(story)


# -- by policy ------------------------------------------------------------------------------------------------------------


async def test_missing_routes_are_repaired_by_themselves_and_servers_only_reported():
    s = await Scene().guards()
    s.server("ann")
    s.server("bob", backend=False)
    s.loses("ann")
    s.engine.add("eve")
    await s.live(200.0)
    assert len(s.asked("check-routes")) == 1
    assert s.asked("stop", "start") == []
    assert s.engine.alive("eve")
    assert s.ends() == [("check-routes", OutcomeKind.DONE)]
    assert s.raised() == {(DriftKind.SERVER_DEAD, "bob"), (DriftKind.SERVER_ORPHAN, "eve")}
    (repaired,) = s.report.repaired
    assert (repaired.actor, repaired.outcome.kind) == ("hubguard", OutcomeKind.DONE)


async def test_servers_and_orphans_are_repaired_by_themselves_where_the_policy_says_so():
    s = await Scene().guards({"HubGuardDrift": {"repair": ["server-dead", "server-orphan"]}})
    s.server("ann")
    s.server("bob", backend=False)
    s.loses("ann")
    s.engine.add("eve")
    await s.live(300.0)
    assert s.asked("check-routes") == []
    assert not s.engine.alive("eve")
    assert s.engine.alive("ann")
    assert [request.user for request in s.hub.requests if request.call == "stop"] == ["bob"]
    assert s.raised() == {(DriftKind.ROUTE_MISSING, "ann")}


@pytest.mark.parametrize("why", ["unarmed", "held", "standby", "observe-only"])
async def test_nothing_is_repaired_by_a_guard_that_may_not_act(why: str):
    s = Scene()
    await s.guards({"HubGuardDrift": {"repair": EVERYTHING}, "HubGuard": {"armed": why != "unarmed"}})
    if why == "observe-only":
        s.guard.mandate.only_observe("another culler runs, too")
    s.server("ann")
    s.server("bob", backend=False)
    s.engine.add("eve")
    s.loses("ann")
    if why == "held":
        s.books.journal.hold("ada", "an exam", s.clock.now())

    async def story() -> None:
        for _ in range(30):
            if why == "standby":
                assert s.books.journal.take_lease("hub", "another", "", 9.0, s.clock.now(), 30.0) is not None
            await s.clock.sleep(10)

    await s.live(story)
    assert s.asked("check-routes", "stop", "start") == []
    assert s.engine.alive("eve")
    assert s.entries(Event.INTENT) == []
    if why == "standby":
        assert s.guard.parts.drifts.report is None
    else:
        assert len(s.raised()) == 3


async def test_a_hold_that_comes_while_drift_is_being_raised_keeps_it_from_being_repaired():
    s = await Scene().guards()
    s.server("ann")
    s.loses("ann")

    async def story() -> None:
        await s.clock.sleep(5)
        s.books.journal.hold("ada", "from a terminal", s.clock.now())
        await s.clock.sleep(200)
        assert s.raised() == {(DriftKind.ROUTE_MISSING, "ann")}
        assert s.asked("check-routes") == []
        s.books.journal.resume("ada", "it is over", s.clock.now())
        await s.clock.sleep(100)

    await s.live(story)
    assert len(s.asked("check-routes")) == 1


async def test_under_a_brake_routes_are_checked_and_nothing_is_stopped_or_ended():
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}})
    s.server("ann")
    s.server("bob", backend=False)
    s.engine.add("eve")
    s.loses("ann")
    s.hub.skew_s = -86400.0

    async def story() -> None:
        await s.clock.sleep(300)
        assert s.guard.status().brake is not None
        assert len(s.asked("check-routes")) == 1
        assert s.asked("stop", "start") == []
        assert s.engine.alive("eve")
        for kind in (DriftKind.SERVER_DEAD, DriftKind.SERVER_ORPHAN):
            plan = s.guard.parts.drifts.plan(kinds=(kind,))
            with pytest.raises(HubGuardError, match="Braked"):
                await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "why not", asked=True))

    await s.live(story)
    assert s.asked("stop", "start") == []


async def test_under_a_brake_a_person_may_have_routes_checked_and_nothing_else():
    s = await Scene().guards(only_look())
    s.server("ann")
    s.server("bob", backend=False)
    s.loses("ann")
    s.hub.skew_s = -86400.0

    async def story() -> None:
        await s.clock.sleep(100)
        both = s.guard.parts.drifts.plan(kinds=(DriftKind.ROUTE_MISSING, DriftKind.SERVER_DEAD))
        with pytest.raises(HubGuardError, match="Braked"):
            await s.guard.parts.drifts.repair(both.digest, 2, Order("ada", "now", asked=True))
        routes = s.guard.parts.drifts.plan(kinds=(DriftKind.ROUTE_MISSING,))
        await s.guard.parts.drifts.repair(routes.digest, 1, Order("ada", "now", asked=True))
        await s.clock.sleep(60)

    await s.live(story)
    assert s.ends() == [("check-routes", OutcomeKind.DONE)]
    assert s.raised() == {(DriftKind.SERVER_DEAD, "bob")}


@pytest.mark.long
async def test_a_repair_that_keeps_failing_is_tried_ever_more_seldom_however_many_routes_are_wrong():
    s = await Scene().guards({"HubGuardCull": {"every_s": 600.0}}, retry_base_s=60.0, retry_max_s=1800.0)
    s.hub.check_routes = _does_nothing(s)  # type: ignore[method-assign]

    async def story() -> None:
        for number in range(20):
            s.server(f"u{number:02}")
            s.loses(f"u{number:02}")
            await s.clock.sleep(60)
        s.hub.requests.clear()
        await s.clock.sleep(3600)
        assert len(s.raised()) == 20

    await s.live(story)
    assert 2 <= len(s.asked("check-routes")) <= 8, "of 20 routes that went wrong at different times"


def _does_nothing(s: Scene, takes_s: float = 0.0) -> Callable[..., Awaitable[None]]:
    async def check_routes(*, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        async with s.hub._asked("check-routes", confirm=confirm):
            await s.clock.sleep(takes_s)

    return check_routes


async def test_each_failed_stop_is_followed_by_a_longer_pause():
    s = await Scene().guards(
        {"HubGuardDrift": {"repair": ["server-dead"]}, "HubGuardCull": {"every_s": 600.0}},
        retry_base_s=100.0,
        retry_max_s=100000.0,
        verify_s=10.0,
    )
    s.server("ann", stops=Stops.POLL_RAISES, backend=False)
    await s.live(4000.0)
    tries = s.asked("stop")
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert len(gaps) >= 4
    assert all(after > 1.2 * before for before, after in itertools.pairwise(gaps))
    assert gaps[0] >= 50


@pytest.mark.parametrize(("servers", "at_most"), [(10, 3), (40, 8)])
@pytest.mark.parametrize("more", [0, 1])
async def test_where_too_many_seem_dead_at_once_none_is_stopped_by_itself(servers: int, at_most: int, more: int):
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}})
    for number in range(servers):
        s.server(f"u{number:02}", backend=number >= at_most + more)
    await s.live(300.0)
    assert len(s.asked("stop")) == (0 if more else at_most)
    assert len(s.raised()) == (at_most + more if more else 0)


async def test_servers_that_seem_dead_one_by_one_are_no_more_believed_than_all_at_once():
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}})
    for number in range(10):
        s.server(f"u{number:02}")

    async def story() -> None:
        for number in range(6):
            s.dies(f"u{number:02}")
            await s.clock.sleep(90)
        assert len(s.asked("stop")) == 3
        assert {user for _, user in s.raised()} == {"u03", "u04", "u05"}

    await s.live(story)


async def test_a_repair_that_was_seen_to_work_ends_its_difference_with_the_next_look():
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)

    async def story() -> None:
        await s.clock.sleep(60)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "for a test", asked=True))
        while s.report.repaired[0].outcome is None:
            await s.clock.sleep(0.5)
        await s.clock.sleep(1.0)
        assert s.report.drifts == ()
        assert [drift.user for drift in s.report.cleared] == ["ann"]
        with pytest.raises(HubGuardError, match="ada, at .* UTC, has begun this plan already"):
            await s.guard.parts.drifts.repair(plan.digest, 1, Order("bob", "the same", asked=True))

    await s.live(story)


@pytest.mark.parametrize("database", [False, True])
async def test_the_brake_of_a_hub_that_checks_its_servers_ends_soon_after_they_are_checked(database: bool):
    s = await Scene(database=database).guards(only_look())
    s.server("ann")
    s.hub.change("ann", pending="check")

    async def story() -> None:
        await s.clock.sleep(5)
        brake = s.guard.status().brake
        assert brake is not None
        assert brake.reason is BrakeReason.CHECKING
        s.hub.change("ann", ready=True)
        await s.clock.sleep(90)
        assert s.guard.status().brake is None

    await s.live(story)


@pytest.mark.parametrize("more", [0, 1])
async def test_orphans_beyond_the_limit_are_ended_only_when_asked(more: int):
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}})
    s.server("ann")
    for number in range(3 + more):
        s.engine.add(f"u{number}")

    async def story() -> None:
        await s.clock.sleep(300)
        assert [s.engine.alive(f"u{number}") for number in range(3 + more)] == [bool(more)] * (3 + more)
        assert s.report.doubted == ((DriftKind.SERVER_ORPHAN,) if more else ())
        if more:
            plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_ORPHAN,))
            await s.guard.parts.drifts.repair(plan.digest, 4, Order("ada", "they are ours", asked=True))
            await s.clock.sleep(60)
            assert not any(s.engine.alive(f"u{number}") for number in range(4))

    await s.live(story)
    assert s.engine.alive("ann")


async def test_what_the_last_look_no_longer_shows_is_not_repaired_by_itself():
    s = await Scene().guards({"HubGuard": {"armed": None}, "HubGuardDrift": {"repair": EVERYTHING}})
    s.server("ann")
    s.server("bob", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "bob")}
        s.engine.add("bob")
        await s.guard.mandate.arm("ada", "go")
        while (bob := s.one(DriftKind.SERVER_DEAD, "bob")).missed == 0:
            await s.clock.sleep(1)
        assert bob.raised_at is not None, "it isn't over yet"
        await s.clock.sleep(100)
        assert s.report.drifts == s.report.repaired == ()
        s.dies("ann")
        await s.clock.sleep(100)
        assert [(one.repair.action.user, one.outcome.kind) for one in s.report.repaired] == [("ann", OutcomeKind.DONE)]

    await s.live(story)
    assert [request.user for request in s.hub.requests if request.call == "stop"] == ["ann"]


async def test_a_lie_that_is_still_being_told_counts_by_those_that_are_suspected_too():
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}})
    for number in range(40):
        s.server(f"u{number:02}", backend=number > 0)

    async def story() -> None:
        await s.clock.sleep(13)
        for number in range(1, 20):
            s.engine.kill(f"u{number:02}")
        await s.clock.sleep(300)

    await s.live(story)
    assert s.asked("stop") == []


async def test_what_is_repaired_meanwhile_is_not_acted_on():
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}, "HubGuard": {"armed": False}})
    s.server("ann", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        s.engine.add("ann")
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "it is dead", asked=True))
        await s.clock.sleep(100)
        (repaired,) = s.report.repaired
        assert repaired.outcome.kind is OutcomeKind.SKIPPED

    await s.live(story)
    assert s.asked("stop") == []
    assert s.entries(Event.INTENT) == []


@pytest.mark.parametrize("state", [WatchState.GONE, WatchState.HANGS, WatchState.WIPED])
async def test_nothing_is_repaired_by_itself_while_the_watch_says_that_the_proxy_isnt_well(state: WatchState):
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}}, watched=True)
    s.server("ann")
    s.server("bob", backend=False)
    s.loses("ann")
    assert s.guard.parts.proxy is not None
    drifts = s.guard.parts.drifts
    assert drifts is not None
    repairs = drifts._repairs
    status = repairs._watch
    repairs._watch = lambda: _as(status(), state)

    async def story() -> None:
        await s.clock.sleep(200)
        assert len(s.raised()) == 2
        assert s.asked("check-routes", "stop") == []
        repairs._watch = status
        await s.clock.sleep(100)

    await s.live(story)
    assert len(s.asked("check-routes")) == len(s.asked("stop")) == 1


def _as(status: Any, state: WatchState) -> Any:
    return replace(status, state=state)


async def test_looks_go_on_while_a_repair_takes_its_time_and_there_is_never_a_second_one():
    s = await Scene().guards({"HubGuardDrift": {"repair": EVERYTHING}}, verify_s=300.0)
    s.server("ann", backend=False, stop_s=200.0)
    s.server("bob")
    running = 0
    run = Repairer.run

    async def counted(self: Repairer, *args: Any, **kwargs: Any) -> Any:
        nonlocal running
        running += 1
        assert running == 1
        try:
            return await run(self, *args, **kwargs)
        finally:
            running -= 1

    async def story() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Repairer, "run", counted)
            await s.clock.sleep(60)
            assert running == 1
            s.dies("bob")
            (under_way,) = s.report.repaired
            assert under_way.outcome is None
            looked_at = s.report.world.at
            await s.clock.sleep(60)
            assert s.report.world.at > looked_at
            assert s.raised() >= {(DriftKind.SERVER_DEAD, "bob")}
            plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
            with pytest.raises(HubGuardError, match="under way"):
                await s.guard.parts.drifts.repair(plan.digest, len(plan.repairs), Order("ada", "now", asked=True))
            await s.clock.sleep(400)

    await s.live(story)
    assert [request.user for request in s.hub.requests if request.call == "stop"] == ["ann", "bob"]
    assert {kind for _, kind in s.ends()} == {OutcomeKind.DONE}


# -- by hand --------------------------------------------------------------------------------------------------------------


async def test_a_plan_is_carried_out_by_digest_and_count_and_once_only():
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)
    s.server("bob", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(ids=(s.one(DriftKind.SERVER_DEAD, "ann").id,))
        for digest, count, why in (
            (plan.digest, 2, "has 1 repair, not 2"),
            (plan.digest, 0, "has 1 repair, not 0"),
            ("f" * 64, 1, "no such plan"),
            (plan.digest[:-1], 1, "no such plan"),
        ):
            with pytest.raises(HubGuardError, match=why):
                await s.guard.parts.drifts.repair(digest, count, Order("ada", "she said so", asked=True))
        assert s.asked("stop") == []
        assert await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "she said so", asked=True)) == plan
        (under_way,) = s.report.repaired
        assert (under_way.actor, under_way.outcome) == ("ada", None)
        with pytest.raises(HubGuardError, match="ada, at 08:01 UTC, has begun this plan already"):
            await s.guard.parts.drifts.repair(plan.digest, 1, Order("bob", "again", asked=True))
        await s.clock.sleep(100)
        (repaired,) = s.report.repaired
        assert repaired.outcome.kind is OutcomeKind.DONE
        assert s.raised() == {(DriftKind.SERVER_DEAD, "bob")}

    await s.live(story)
    assert [request.user for request in s.hub.requests if request.call == "stop"] == ["ann"]
    assert [(entry.actor, entry.detail) for entry in s.entries(Event.NOTE)] == [
        ("ada", "asked for 1 repair: she said so")
    ]
    assert s.entries(Event.INTENT)[0].actor == "ada"


async def test_an_expired_plan_a_hold_and_a_standby_are_refused_in_words():
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await s.clock.sleep(600)
        with pytest.raises(HubGuardError, match="expired"):
            await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "late", asked=True))
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        s.books.journal.hold("bob", "an exam", s.clock.now())
        with pytest.raises(HubGuardError, match=r"On hold \(bob: an exam\)\. Nothing was repaired"):
            await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        s.books.journal.resume("bob", "over", s.clock.now())
        s.books.journal.take_lease("hub", "another", "", 9.0, s.clock.now(), 3600)
        await s.clock.sleep(30)
        for refused in (
            s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True)),
            s.guard.parts.drifts.look(),
        ):
            with pytest.raises(HubGuardError, match="Another guard .another. is in charge"):
                await refused
        with pytest.raises(HubGuardError, match="Another guard"):
            s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))

    await s.live(story)
    assert s.asked("stop") == []
    assert s.entries(Event.INTENT) == []


async def test_what_cant_be_planned_is_refused_with_its_reason():
    s = await Scene().guards(only_look() | {"HubGuardCull": {"pending_limit_s": 600.0}})
    s.server("ann", backend=False)
    s.engine.add("eve", proved=False)
    s.hub.add(Server("bob", "", False, "stop", s.clock.now(), s.clock.now()))

    async def story() -> None:
        await s.clock.sleep(2)
        with pytest.raises(HubGuardError, match="only suspected"):
            s.guard.parts.drifts.plan(ids=(s.one(DriftKind.SERVER_DEAD, "ann").id,))
        with pytest.raises(HubGuardError, match="No difference 0000"):
            s.guard.parts.drifts.plan(ids=("0000",))
        with pytest.raises(HubGuardError, match="only reported"):
            s.guard.parts.drifts.plan(kinds=(DriftKind.ORM_DANGLING,))
        for kinds in ((), (DriftKind.SERVER_DEAD,)):
            with pytest.raises(HubGuardError, match="Nothing to repair"):
                s.guard.parts.drifts.plan(kinds=kinds)
        await s.clock.sleep(1000)
        with pytest.raises(HubGuardError, match="can't confirm that"):
            s.guard.parts.drifts.plan(ids=(s.one(DriftKind.SERVER_ORPHAN, "eve").id,))
        with pytest.raises(HubGuardError, match="Nothing to repair"):
            s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_ORPHAN,))
        with pytest.raises(HubGuardError, match="Only a pending start"):
            s.guard.parts.drifts.plan(ids=(s.one(DriftKind.PENDING_STUCK, "bob").id,))

    await s.live(story)


async def test_before_the_first_look_there_is_nothing_to_plan_and_nothing_to_report():
    s = await Scene().guards()
    s.server("ann", backend=False)

    async def story() -> None:
        await s.clock.sleep(0.5)
        assert s.guard.parts.drifts.report is None
        with pytest.raises(HubGuardError, match="Nothing to repair"):
            s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))

    await s.live(story)


# -- ends that come too soon ----------------------------------------------------------------------------------------------


async def test_a_guard_that_ends_in_the_midst_leaves_nothing_under_way_and_the_next_one_settles_it():
    s = await Scene().guards(only_look())
    s.server("ann")
    s.loses("ann")

    async def story() -> None:
        await s.clock.sleep(100)
        s.hub.check_routes = _does_nothing(s, takes_s=1e6)  # type: ignore[method-assign]
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.ROUTE_MISSING,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        while not s.entries(Event.INTENT):
            await s.clock.sleep(1)

    await s.live(story)
    assert s.ends() == []
    (left,) = s.report.repaired
    assert left.ended_at is not None
    assert left.outcome.kind is OutcomeKind.UNVERIFIED
    assert [task for task in asyncio.all_tasks() if "_carry_out" in repr(task)] == []
    await s.guards(only_look(), holder="another")
    await s.live(5.0)
    assert s.ends() == [("check-routes", OutcomeKind.UNVERIFIED)]
    s.server("ann")
    await s.guards(only_look())
    await s.live(5.0)
    assert len(s.ends()) == 1, "settled once"


async def test_an_end_of_a_backend_that_a_crash_left_open_is_settled_by_the_first_look_of_the_next_guard():
    s = await Scene().guards(only_look())
    s.engine.add("eve")

    async def story() -> None:
        await s.clock.sleep(100)
        s.engine.takes_s = 5.0
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_ORPHAN,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        while not s.entries(Event.INTENT):
            await s.clock.sleep(1)
        await s.clock.sleep(5)

    await s.live(story)
    assert not s.engine.alive("eve")
    assert s.ends() == []
    s.engine.takes_s = 0.0
    await s.guards(only_look(), holder="another")
    await s.live(3.0)
    assert s.ends() == [("end-backend", OutcomeKind.DONE)]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), HubGuardError("no"), asyncio.CancelledError()])
async def test_a_repairer_that_raises_leaves_nothing_under_way_and_the_next_plan_is_taken(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)

    async def raises(*_: object, **__: object) -> None:
        raise error

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        with monkeypatch.context() as patch:
            patch.setattr(Repairer, "run", raises)
            await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
            await s.clock.sleep(10)
        (failed,) = s.report.repaired
        assert failed.ended_at is not None
        assert failed.outcome.kind is OutcomeKind.UNVERIFIED
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        await s.clock.sleep(60)
        assert s.report.repaired[0].outcome.kind is OutcomeKind.DONE

    await s.live(story)


async def test_a_backend_that_never_answers_an_end_doesnt_keep_repairs_under_way_for_ever():
    s = await Scene().guards(only_look())
    s.engine.add("eve")
    s.server("ann", backend=False)
    end = s.engine.end

    async def hangs(_: object) -> None:
        await asyncio.Event().wait()

    async def story() -> None:
        await s.clock.sleep(100)
        s.engine.end = hangs  # type: ignore[method-assign]
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_ORPHAN,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        await s.clock.sleep(1300)
        (hung,) = s.report.repaired
        assert hung.outcome.kind is OutcomeKind.UNVERIFIED
        assert "given up" in hung.outcome.detail
        assert s.ends() == [("end-backend", OutcomeKind.UNVERIFIED)], "its intent was settled by a look"
        s.engine.end = end  # type: ignore[method-assign]
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_ORPHAN, DriftKind.SERVER_DEAD))
        await s.guard.parts.drifts.repair(plan.digest, 2, Order("ada", "now", asked=True))
        await s.clock.sleep(60)
        assert {one.outcome.kind for one in s.report.repaired[:2]} == {OutcomeKind.DONE}

    await s.live(story)


async def test_the_cull_cycle_leaves_alone_what_a_repair_of_the_same_guard_has_under_way():
    s = await Scene().guards(
        {"HubGuardDrift": {"repair": []}, "HubGuardCull": {"every_s": 10.0, "idle_timeout_s": 1e6}},
        verify_s=300.0,
    )
    s.server("ann", backend=False, stops=Stops.GHOST)

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await s.guard.parts.drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        await s.clock.sleep(200)
        assert len(s.entries(Event.INTENT)) == 1
        assert s.ends() == [], "cycles ran, and the repair alone knows"
        await s.clock.sleep(200)

    await s.live(story)
    assert s.ends() == [("stop-server", OutcomeKind.FAILED)]
    assert s.told("finding")["server-ghost ann"] == 1, "what a stop didn't change is a ghost"


async def test_only_so_many_repairs_are_told_of(monkeypatch: pytest.MonkeyPatch):
    s = await Scene().guards(only_look())
    for number in range(220):
        s.server(f"u{number:03}", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        plan = s.guard.parts.drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        assert len(plan.repairs) == 220
        await s.guard.parts.drifts.repair(plan.digest, len(plan.repairs), Order("ada", "all of them", asked=True))
        await s.clock.sleep(500)
        assert len(s.report.repaired) == 200
        assert {one.outcome.kind for one in s.report.repaired} == {OutcomeKind.DONE}
        assert s.report.drifts == ()

    await s.live(story)


# -- what outlived its server ---------------------------------------------------------------------------------------------


def of_ann(s: Scene) -> list[tuple[DriftKind, bool]]:
    """What is told of ann, and whether it is raised."""
    return [(drift.kind, drift.raised_at is not None) for drift in s.report.drifts if drift.user == "ann"]


async def test_what_the_hub_says_outlived_its_server_is_suspected_and_ends_when_a_whole_list_lacks_it():
    s = await Scene().guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        s.engine.fault = lambda _: BackendError("the engine is away")
        s.guard.parts.drifts.tell_outlived("ann", "", "pid 4711 lives on")
        await s.clock.sleep(31)
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, False)]
        await s.clock.sleep(300)
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, False)]
        s.engine.fault = None
        await s.clock.sleep(100)
        assert of_ann(s) == []
        s.engine.fault = lambda _: BackendError("the engine is away once more")
        await s.clock.sleep(100)
        assert of_ann(s) == [], "it was seen to be gone"

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {}


async def test_a_job_that_a_batch_queue_completes_for_a_minute_after_a_good_stop_is_no_orphan():
    s = await Scene().guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        s.engine.add("ann")
        s.guard.parts.drifts.tell_outlived("ann", "", "SlurmSpawner.poll() still found it after the stop")
        for _ in range(6):
            await s.clock.sleep(11)
            assert (DriftKind.SERVER_ORPHAN, True) not in of_ann(s), "it may still be ending"
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, False)]
        s.engine.kill("ann")
        await s.clock.sleep(60)
        assert of_ann(s) == []

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {}


async def test_what_the_hub_says_outlived_its_server_is_raised_by_the_first_look_that_shows_it_and_ends_with_it():
    s = await Scene().guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        s.engine.add("ann")
        s.guard.parts.drifts.tell_outlived("ann", "", "pid 4711 lives on")
        await s.clock.sleep(130)
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, True)]
        s.engine.kill("ann")
        await s.clock.sleep(100)
        assert of_ann(s) == []

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {"server-orphan ann": 1}


async def test_what_outlived_its_server_is_over_when_that_runs_again_and_doesnt_come_back_with_its_next_stop():
    s = await Scene(whole=False).guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        s.guard.parts.drifts.tell_outlived("ann", "", "pid 4711 lives on")
        await s.clock.sleep(100)
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, False)]
        s.server("ann")
        await s.clock.sleep(100)
        assert of_ann(s) == []
        await s.hub.stop_server("ann", "")
        await s.clock.sleep(200)
        assert of_ann(s) == []

    await s.live(story)
    assert s.told("finding") == s.told("cleared") == {}


async def test_what_outlived_its_server_outlives_the_guard_and_is_over_after_ten_minutes():
    s = await Scene(whole=False).guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        s.guard.parts.drifts.tell_outlived("ann", "", "pid 4711 lives on")
        await s.clock.sleep(200)

    await s.live(story)
    await s.guards(only_look(), holder="another")

    async def rest() -> None:
        await s.clock.sleep(100)
        assert of_ann(s) == [(DriftKind.SERVER_ORPHAN, False)]
        await s.clock.sleep(600)
        assert of_ann(s) == []

    await s.live(rest)


async def test_however_many_are_told_to_have_outlived_theirs_it_stays_bounded():
    s = await Scene(whole=False).guards(only_look())
    s.server("bob")

    async def story() -> None:
        await s.clock.sleep(5)
        for number in range(3 * 1000):
            s.guard.parts.drifts.tell_outlived(f"u{number}", "", "x" * 100_000)
        await s.clock.sleep(100)
        assert len(s.report.drifts) == 1000

    await s.live(story)
    assert max(s.sizes) < 2_000_000


# -- a proxy that loses its table -----------------------------------------------------------------------------------------


async def test_a_wiped_table_is_filled_by_one_request_is_journaled_and_changes_no_idle_clock():
    s = await Scene().guards({"HubGuardCull": {"idle_timeout_s": 1800.0, "every_s": 60.0}}, watched=True)
    for user in ("idle", "busy", "late"):
        s.server(user)

    async def story() -> None:
        await s.clock.sleep(600)
        s.hub.change("late", last_activity=s.clock.now())
        await s.clock.sleep(300)
        s.proxy.kill()
        await s.clock.sleep(3)
        s.proxy.start()
        await s.clock.sleep(5)
        assert set(s.proxy.table) >= {"/user/idle", "/user/busy", "/user/late"}
        assert s.report.watch.state is WatchState.FINE
        # The hub takes over the times at which its routes were added, as if there had been use.
        for user in ("idle", "busy", "late"):
            s.hub.change(user, last_activity=s.proxy.table[f"/user/{user}"].last_activity)
        for _ in range(20):
            await s.clock.sleep(60)
            s.hub.change("busy", last_activity=s.clock.now())
            s.proxy.seen("/user/busy")

    await s.live(story)
    assert len(s.asked("check-routes")) == 1
    assert s.ends()[0] == ("check-routes", OutcomeKind.DONE)
    stops = {request.user: request.at_s for request in s.hub.requests if request.call == "stop"}
    assert set(stops) == {"idle"}, "the others are in use, or not idle for long enough"
    assert 1800 <= stops["idle"] <= 1800 + 70


async def test_routes_of_servers_that_have_stopped_arent_waited_for_and_a_lost_table_isnt_taken_for_whole():
    s = await Scene().guards(watched=True)
    for user in ("ann", "bob"):
        s.server(user)

    async def story() -> None:
        await s.clock.sleep(100)
        drifts = s.guard.parts.drifts
        assert drifts is not None
        table = drifts._looks._table
        assert table.expected() == {"/": None, "/user/ann": ("ann", ""), "/user/bob": ("bob", "")}
        await s.hub.stop_server("bob", "")
        await s.clock.sleep(40)
        assert table.expected() == {"/": None, "/user/ann": ("ann", "")}
        # As a look sees it that comes between the loss and the watch's next word.
        s.hub.routes.clear()
        table.watch, watch = lambda: _as(watch(), WatchState.FINE), table.watch
        await s.guard.parts.drifts.look()
        table.watch = watch
        assert table.expected() == {"/": None, "/user/ann": ("ann", "")}
        await s.clock.sleep(10)
        assert s.proxy.table.keys() >= {"/", "/user/ann"}

    await s.live(story)
    assert len(s.asked("check-routes")) == 1
    assert s.ends() == [("check-routes", OutcomeKind.DONE)]


async def test_a_look_in_the_midst_of_filling_a_lost_table_leaves_that_to_the_watch():
    s = await Scene().guards(watched=True)
    s.server("ann")
    check_routes = s.hub.check_routes

    async def slowly(*, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        async def confirmed_slowly() -> None:
            assert confirm is not None
            await confirm()
            await s.clock.sleep(20)

        await check_routes(timeout_s=timeout_s, confirm=confirmed_slowly)

    async def story() -> None:
        await s.clock.sleep(100)
        s.hub.check_routes = slowly  # type: ignore[method-assign]
        s.proxy.wipe()
        await s.clock.sleep(10)
        assert len(s.entries("intent")) == 1
        await s.guard.parts.drifts.look()
        assert s.ends() == [], "it is under way, not left over"
        await s.clock.sleep(60)

    await s.live(story)
    assert s.ends() == [("check-routes", OutcomeKind.DONE)]


@pytest.mark.parametrize("why", ["held", "not-wanted", "unarmed"])
async def test_a_wiped_table_isnt_filled_where_that_isnt_allowed(why: str):
    s = Scene()
    repair: list[str] = [] if why == "not-wanted" else ["route-missing"]
    await s.guards({"HubGuardDrift": {"repair": repair}, "HubGuard": {"armed": why != "unarmed"}}, watched=True)
    s.server("ann")
    if why == "held":
        s.books.journal.hold("ada", "an exam", s.clock.now())

    async def story() -> None:
        await s.clock.sleep(100)
        s.proxy.wipe()
        await s.clock.sleep(60)
        assert s.report.watch.state is WatchState.WIPED
        assert "/user/ann" not in s.proxy.table

    await s.live(story)
    assert s.asked("check-routes") == []


# -- trouble --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["hub", "db", "proxy", "engine"])
async def test_a_source_that_is_away_for_an_hour_neither_raises_nor_clears_nor_hurries_looks(source: str):
    s = await Scene(database=True).guards(only_look())
    s.server("ann", backend=False)
    s.server("bob")
    s.loses("bob")
    errors: dict[str, Any] = {
        "hub": lambda _: HubUnreachable("away"),
        "db": HubDBError("away"),
        "proxy": lambda _: HubFailed("away", status=500),
        "engine": lambda _: BackendError("away"),
    }

    async def story() -> None:
        await s.clock.sleep(100)
        before = s.raised()
        assert len(before) == 2
        getattr(s, source).fault = errors[source]
        s.engine.requests.clear()
        await s.clock.sleep(3600)
        assert s.raised() == before
        assert len(s.engine.requests) <= 3600 / 30 * 1.2

    await s.live(story)
    assert sum(s.told("finding").values()) == 2
    assert s.told("cleared") == {}


async def test_a_defect_in_a_look_is_followed_by_the_next_look(caplog: pytest.LogCaptureFixture):
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)
    look, fails = WorldObserver.look, True

    async def failing(self: WorldObserver, *args: Any, **kwargs: Any) -> Any:
        if fails:
            raise RuntimeError("a defect")
        return await look(self, *args, **kwargs)

    async def story() -> None:
        nonlocal fails
        await s.clock.sleep(100)
        fails = False
        await s.clock.sleep(100)
        assert s.raised() == {(DriftKind.SERVER_DEAD, "ann")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldObserver, "look", failing)
        await s.live(story)
    assert "a defect" in caplog.text


# -- what looking costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", [True, False])
async def test_what_an_hour_of_quiet_looks_asks_of_the_hub(database: bool):
    s = await Scene(database=database).guards()
    for number in range(50):
        s.server(f"u{number:02}")
    await s.live(600.0)
    s.hub.requests.clear()
    s.engine.requests.clear()
    await s.guards()
    await s.live(3600.0)
    asked = Counter(request.call for request in s.hub.requests)
    assert asked["get"] == asked["routes"] == asked["check-routes"] == 0
    # 120 looks ask whether it is there; 60 cycles list its servers, or with the database ask that, too.
    assert asked["list"] <= (8 if database else 62)
    assert asked["version"] <= 120 + 8 + (61 if database else 0)
    assert asked["prefixes"] <= 7
    assert len(s.engine.requests) <= 121


async def test_where_cycles_are_rare_a_list_of_its_own_serves_three_looks():
    s = await Scene().guards({"HubGuardCull": {"every_s": 3600.0}})
    s.server("ann")
    await s.live(3500.0)
    assert len(s.asked("list")) <= 3500 / 120 + 3


async def test_a_repair_that_is_given_up_before_its_first_step_is_unverified_and_keeps_no_later_one_back():
    s = await Scene().guards(only_look())
    s.server("ann", backend=False)

    async def story() -> None:
        await s.clock.sleep(100)
        drifts = s.guard.parts.drifts
        assert drifts is not None
        plan = drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await drifts.repair(plan.digest, 1, Order("ada", "now", asked=True))
        await drifts.close()
        (given_up,) = s.report.repaired
        assert given_up.ended_at is not None
        assert given_up.outcome.kind is OutcomeKind.UNVERIFIED
        assert s.asked("stop") == []
        plan = drifts.plan(kinds=(DriftKind.SERVER_DEAD,))
        await drifts.repair(plan.digest, 1, Order("ada", "again", asked=True))
        await s.clock.sleep(60)
        assert s.report.repaired[0].outcome.kind is OutcomeKind.DONE

    await s.live(story)
