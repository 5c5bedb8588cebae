"""What the looks learn from what was done on them, and what is forgotten: pieces of the cycle that need no guard."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from builders import NOW
from doubles.hub import MemoryHub
from doubles.hub_db import MemoryHubDB
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.lease import LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.errors import HubUnreachable
from hubguard.journal.model import Event
from hubguard.model import Action, ActionKind, Cause, Order, Outcome, OutcomeKind, Server, User
from hubguard.pacing.budget import Budget
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.decide.brake import Caution, Judgement
from hubguard.snapshot.model import BrakeReason
from hubguard.snapshot.observe import Observer
from hubguard.snapshot.store import ActivityStore

STOP = Action("ann", "gpu", NOW, None, "idle")
RUN = ("ann", "gpu", NOW)


class Scene:
    """A hub, and the looks at it; ``database``: its servers are read from there where that will do."""

    def __init__(self, *, database: MemoryHubDB | None = None) -> None:
        self.clock, self.books = VirtualClock(NOW), InlineJournal()
        self.hub = MemoryHub(clock=self.clock)
        budget = Budget(rate=1.0, burst=1, concurrency=1, clock=self.clock)
        keeper = LeaseKeeper(self.books, self.clock, holder="me", address="", generation=0.0, lease_s=3600.0)
        self.mandate = Mandate(self.books, keeper, self.clock, armed=True)
        self.snapshots = Snapshots(
            self.hub,
            budget,
            Observer(self.hub, self.clock, database=database),
            self.clock,
            Caution(),
            mandate=self.mandate,
            journal_days=30,
        )

    async def passes(self, span: timedelta) -> None:
        await self.clock.run(self.clock.sleep(span.total_seconds()))

    async def look(self) -> Judgement:
        await self.clock.run(self.snapshots.look(self.books))
        return await self.snapshots.judge(self.books, due=0)

    async def left(self, *actions: Action) -> list[int]:
        """The intents of a guard that ended before it knew what came of ``actions``."""
        await self.mandate.keep_lease()
        intents = [await self.mandate.intend(action, Order("hubguard")) for action in actions]
        for intent in intents:
            self.mandate.release(intent)
        return intents

    def outcomes(self) -> dict[str | None, OutcomeKind | None]:
        return {entry.user: entry.outcome for entry in self.books.journal.entries(event=Event.OUTCOME)}


def server(user: str, **fields: object) -> Server:
    return replace(Server(user, "", True, None, NOW, NOW), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", [Cause.CAME_BACK, Cause.CHANGED_NOTHING])
async def test_a_server_that_a_stop_left_running_is_found_until_a_later_stop_ends_it(cause: Cause):
    scene = Scene()
    scene.snapshots.learn([(STOP, Outcome(OutcomeKind.FAILED, "still there", cause))])
    assert scene.snapshots.came_back == {RUN}
    await scene.snapshots.conclude(scene.books)
    assert [(one.user, one.server, "still there" in one.detail) for one in scene.snapshots.findings] == [
        ("ann", "gpu", True)
    ]
    scene.snapshots.learn([(STOP, Outcome(OutcomeKind.DONE, "gone"))])
    assert scene.snapshots.came_back == set()


@pytest.mark.parametrize("kind", [OutcomeKind.FAILED, OutcomeKind.UNVERIFIED, OutcomeKind.SKIPPED])
async def test_a_stop_of_which_nothing_was_seen_leaves_no_server_that_came_back(kind: OutcomeKind):
    scene = Scene()
    scene.snapshots.learn([(STOP, Outcome(kind, "the hub answered 500"))])
    assert scene.snapshots.came_back == set()


async def test_what_is_old_is_forgotten_once_a_day_and_at_every_look_while_there_is_more(
    monkeypatch: pytest.MonkeyPatch,
):
    scene = Scene()
    asked, left = [], [5000, 17, 0, 0]

    def forget(before: object) -> int:
        asked.append((scene.clock.now(), before))
        return left.pop(0)

    monkeypatch.setattr(scene.books.journal, "forget", forget)
    for _ in range(10):
        await scene.snapshots.conclude(scene.books)
        await scene.passes(timedelta(minutes=1))
    days_30 = timedelta(days=30)
    assert asked == [(at, at - days_30) for at in (NOW + timedelta(minutes=minute) for minute in range(3))]
    await scene.passes(timedelta(hours=24))
    await scene.snapshots.conclude(scene.books)
    assert len(asked) == 4


async def test_only_users_who_were_deleted_are_counted_as_gone_by_our_own_hand(monkeypatch: pytest.MonkeyPatch):
    scene = Scene()
    counted: list[str] = []
    monkeypatch.setattr(scene.snapshots, "count_deleted", lambda: counted.append("one"))
    user = Action("bob", "", NOW, None, "idle", kind=ActionKind.DELETE_USER)
    scene.snapshots.learn([(user, Outcome(OutcomeKind.FAILED, "no")), (STOP, Outcome(OutcomeKind.DONE, "gone"))])
    assert counted == []
    scene.snapshots.learn([(user, Outcome(OutcomeKind.DONE, "gone"))])
    assert counted == ["one"]


async def test_what_a_guard_left_open_is_settled_by_what_the_next_whole_list_shows():
    scene = Scene()
    actions = [Action(user, "", NOW, None, "idle") for user in ("gone", "anew", "busy", "runs", "ours")]
    drifts = Action("drifts", "", NOW, None, "dead", kind=ActionKind.START_AND_STOP)
    *_, ours, of_drift = await scene.left(*actions, drifts)
    scene.mandate._under_way.add(ours)
    scene.hub.add(server("anew", started=NOW + timedelta(minutes=1)))
    scene.hub.add(server("busy", ready=False, pending="stop"))
    scene.hub.add(server("runs"))
    scene.hub.fault = lambda request: HubUnreachable("no answer") if request.call == "list" else None
    await scene.look()
    assert scene.outcomes() == {}, "an incomplete list shows nothing"
    scene.hub.fault = None
    await scene.look()
    done, unsure = OutcomeKind.DONE, OutcomeKind.UNVERIFIED
    assert scene.outcomes() == {"gone": done, "anew": done, "runs": unsure}
    left_open = {entry.user: entry.id for entry in scene.books.journal.open_intents()}
    assert left_open.keys() == {"busy", "ours", "drifts"}
    assert (left_open["ours"], left_open["drifts"]) == (ours, of_drift)


async def test_a_deletion_that_a_guard_left_open_is_asked_of_the_hub_and_counted_where_the_user_is_gone(
    monkeypatch: pytest.MonkeyPatch,
):
    scene = Scene()
    counted: list[str] = []
    monkeypatch.setattr(scene.snapshots, "count_deleted", lambda: counted.append("one"))
    scene.hub.add_user(User("there", False, (), ("user",), NOW, None))
    scene.hub.add_user(User("anew", False, (), ("user",), NOW + timedelta(days=1), None))
    names = ("gone", "anew", "there", "silent")
    await scene.left(*(Action(name, "", NOW, None, "idle", kind=ActionKind.DELETE_USER) for name in names))
    scene.hub.fault = lambda request: HubUnreachable("no answer") if request.user == "silent" else None
    await scene.look()
    done, unsure = OutcomeKind.DONE, OutcomeKind.UNVERIFIED
    assert scene.outcomes() == {"gone": done, "anew": done, "there": unsure}
    assert [entry.user for entry in scene.books.journal.open_intents()] == ["silent"]
    assert counted == ["one", "one"]


@pytest.mark.parametrize(("hub_ahead_s", "brakes"), [(-100.0, True), (100.0, False), (None, False)])
async def test_our_clock_is_ahead_where_the_hubs_is_behind(hub_ahead_s: float | None, brakes: bool):
    scene = Scene()
    scene.hub.skew_s = hub_ahead_s
    brake = (await scene.look()).brake
    assert (brake is not None and brake.reason is BrakeReason.CLOCK) is brakes


async def test_a_run_that_was_stopped_comes_back_where_a_later_look_shows_it_ready_and_not_where_an_earlier_one_did():
    scene = Scene()
    scene.hub.add(server("ann"))
    await scene.clock.run(scene.snapshots.look(scene.books))
    await scene.passes(timedelta(seconds=5))
    stopped = Action("ann", "", NOW, None, "idle")
    scene.snapshots.learn([(stopped, Outcome(OutcomeKind.DONE, "gone"))])
    await scene.snapshots.judge(scene.books, due=0)
    assert scene.snapshots.came_back == set(), "what was seen before it was stopped shows nothing"
    await scene.passes(timedelta(seconds=5))
    await scene.look()
    assert scene.snapshots.came_back == {("ann", "", NOW)}
    scene.hub._records["ann", ""].active = False
    await scene.look()
    assert scene.snapshots.came_back == set()


async def test_while_a_server_is_pending_for_too_long_the_hub_is_asked_though_its_database_would_do():
    database = MemoryHubDB(User("ann", False))
    scene = Scene(database=database)
    scene.hub.add(server("ann", ready=False, pending="spawn"))
    database.users["ann"] = User("ann", False, servers=(server("ann", ready=False),))

    async def listed() -> bool:
        before = len(scene.hub.requests)
        await scene.look()
        return any(request.call == "list" for request in scene.hub.requests[before:])

    assert await listed(), "the first look"
    await scene.passes(timedelta(seconds=60))
    assert not await listed()
    await scene.passes(timedelta(seconds=Caution().pending_limit_s))
    assert await listed()
    await scene.passes(timedelta(seconds=60))
    assert await listed(), "as long as it is stuck"


async def test_use_of_servers_that_were_not_seen_for_as_long_as_the_journal_keeps_anything_is_forgotten():
    scene = Scene()
    scene.hub.add(server("ann"))
    await scene.look()
    scene.hub._records["ann", ""].active = False
    store = ActivityStore(scene.books.journal)
    await scene.passes(timedelta(days=29))
    await scene.snapshots.conclude(scene.books)
    assert store.activity().keys() == {("ann", "")}
    await scene.passes(timedelta(days=2))
    await scene.snapshots.conclude(scene.books)
    assert store.activity() == {}


async def test_an_intent_whose_outcome_is_given_up_during_a_look_is_left_to_the_next_look():
    """What the hub has answered by then may be older than the request."""
    scene = Scene()
    (ours,) = await scene.left(Action("ann", "", NOW, None, "idle"))
    scene.mandate._under_way.add(ours)
    scene.hub.fault = lambda request: scene.mandate.release(ours)
    await scene.look()
    assert scene.outcomes() == {}
    await scene.look()
    assert scene.outcomes() == {"ann": OutcomeKind.DONE}
