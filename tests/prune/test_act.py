"""Deleting the users of a plan, one by one: who is left alone, whose intents are settled, and what a lost answer means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from doubles.hub import MemoryHub, Request
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.attempt import Attempt
from hubguard.act.lease import LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.errors import HubFailed, HubUnreachable
from hubguard.hub.nouns import UndoUser
from hubguard.model import Action, ActionKind, Order, Outcome, OutcomeKind, User
from hubguard.prune.act import Pace, Pruner
from hubguard.prune.decide.stale import undo_facts
from hubguard.prune.model import (
    Deletion,
    Gain,
    PrunePlan,
    PruneReason,
    SecondLook,
    StaleCriteria,
    Storage,
    StorageFate,
)
from hubguard.prune.observe import account_of
from hubguard.prune.progress import Progress
from hubguard.prune.record import Record
from hubguard.prune.standing import End, Ends
from hubguard.prune.store import PruneStore

NAMES = ("ann", "bob")


class AlwaysStands:
    """A plan that stands until something ends it, or somebody pauses it ``after_s``."""

    acknowledged = frozenset[str]()

    def __init__(self, plan: PrunePlan, clock: VirtualClock, after_s: float) -> None:
        self.plan = plan
        self.end: End | None = None
        self._clock, self._paused_at_s = clock, clock.monotonic_s() + after_s

    def stop(self, end: End) -> None:
        self.end = self.end or end

    def stop_for(self, error: Exception) -> bool:
        raise AssertionError(error)

    def note(self, error: Exception) -> None:
        pass

    def note_gone(self) -> None:
        pass

    async def check(self) -> bool:
        if self._clock.monotonic_s() >= self._paused_at_s:
            self.stop(End(Ends.LEFT))
        return self.end is None


class LooksAtTheHub:
    """A review for which everybody who is there may go, but for ``why_not``. ``at_once`` are most looks at one time."""

    def __init__(self, world: World) -> None:
        self._hub, self._why_not = world.hub, world.why_not
        self._clock, self._looks_take_s = world.clock, world.looks_take_s
        self._looking = self.at_once = 0

    async def second_look(self, plan: PrunePlan, deletion: Deletion, acknowledged: Any, undo: Any) -> SecondLook:
        self._looking += 1
        self.at_once = max(self.at_once, self._looking)
        await self._clock.sleep(self._looks_take_s)
        self._looking -= 1
        user = await self._hub.get_user(deletion.user)
        return SecondLook(None, "gone") if user is None else SecondLook(account_of(user), self._why_not)

    async def is_gone(self, deletion: Deletion) -> bool:
        return False


@dataclass
class World:
    clock: VirtualClock
    hub: MemoryHub
    books: InlineJournal
    keeper: LeaseKeeper
    plan: PrunePlan
    why_not: str | None = None
    looks_take_s: float = 0.0
    paused_after_s: float = float("inf")
    concurrency: int = 2
    at_once: int = 0
    gone_by_own_hand: int = 0

    def deletion(self, name: str, created: datetime | None = None) -> Action:
        at = created or self.plan.deletions[0].created
        reason = PruneReason.INACTIVE.value
        return Action(name, "", at, None, reason, kind=ActionKind.DELETE_USER, plan=self.plan.digest)

    async def tried(self, name: str) -> None:
        """This plan has tried to delete that user before, and it failed."""
        intent = await self.intend(self.deletion(name))
        self.books.journal.settle(intent, Outcome(OutcomeKind.FAILED, "no"), self.clock.now())

    async def intend(self, action: Action) -> int:
        return await self.keeper.intend(action, "ada", asked=True, armed=True)

    def begin(self) -> None:
        PruneStore(self.books.journal).begin_prune(self.plan.digest, "ada", "", "/undo", "0" * 64, self.clock.now())

    async def work(self, undo: tuple[str, ...] = NAMES) -> End:
        """Carry the plan out; the undo file has the users named ``undo``."""
        run = PruneStore(self.books.journal).prune_run(self.plan.digest)
        assert run is not None

        mandate = Mandate(self.books, self.keeper, self.clock, armed=True)

        def attempt_for(action: Action) -> Attempt:
            return mandate.attempt(action, Order("ada", asked=True))

        progress = Progress(self.clock, self.count_gone)
        record = Record(mandate, self.clock, self.plan, run, tries={}, progress=progress)
        standing: Any = AlwaysStands(self.plan, self.clock, self.paused_after_s)
        review: Any = LooksAtTheHub(self)
        facts = {name: undo_facts(UndoUser(name)) for name in undo}
        pace = Pace(rate=1000.0, concurrency=self.concurrency, verify_s=60.0)
        pruner = Pruner(self.hub, review, standing, record, attempt_for, facts, pace, self.clock, lambda: 0.5)
        try:
            return await self.clock.run(pruner.work())
        finally:
            self.at_once = review.at_once

    def count_gone(self) -> None:
        self.gone_by_own_hand += 1

    def outcomes(self) -> dict[str, Outcome]:
        return {
            self.plan.deletions[user.position].user: user.outcome
            for user in PruneStore(self.books.journal).pruned(self.plan.digest)
        }

    def deleted(self) -> list[str]:
        return [request.user for request in self.hub.requests if request.call == "delete"]


async def a_world(*names: str) -> World:
    clock, books = VirtualClock(), InlineJournal()
    hub = MemoryHub(clock=clock)
    hub.takes_s = 0.01
    keeper = LeaseKeeper(books, clock, holder="here", address="", generation=0.0, lease_s=3600.0)
    await keeper.keep()
    created = clock.now() - timedelta(days=500)
    for name in names:
        hub.add_user(User(name, False, (), ("user",), created, None))
    deletions = tuple(Deletion(name, created, None, PruneReason.NEVER_ACTIVE, created) for name in names)
    kept = Storage(StorageFate.KEPT, "Local", "kept")
    criteria, now = StaleCriteria(never_active_for_s=1.0), clock.now()
    plan = PrunePlan("d" * 64, now, now + timedelta(days=1), "ada", criteria, deletions, {}, Gain(2, 0, 1, 0), kept)
    PruneStore(books.journal).keep_plan(plan, "{}")
    return World(clock, hub, books, keeper, plan)


@pytest.fixture
async def world() -> World:
    return await a_world(*NAMES)


async def test_a_user_whom_the_undo_file_lacks_is_left_alone(world: World) -> None:
    world.begin()

    end = await world.work(undo=("ann",))

    assert end == End(Ends.DONE)
    assert world.deleted() == ["ann"]
    assert set(world.hub._users) == {"bob"}
    outcomes = world.outcomes()
    assert outcomes["ann"].kind is OutcomeKind.DONE
    assert outcomes["bob"].kind is OutcomeKind.SKIPPED
    assert "undo file" in outcomes["bob"].detail


async def test_only_the_open_intents_of_this_plan_are_settled(world: World) -> None:
    created = world.plan.deletions[0].created
    assert created is not None
    of_another_plan = await world.intend(replace(world.deletion("ann"), plan="f" * 64))
    world.begin()
    ours = await world.intend(world.deletion("ann"))
    others = [
        await world.intend(world.deletion("carl")),
        await world.intend(world.deletion("bob", created - timedelta(days=1))),
        await world.intend(replace(world.deletion("bob"), kind=ActionKind.STOP_SERVER)),
    ]
    world.hub._users.pop("ann")

    await world.work()

    open_intents = {intent.id for intent in world.books.journal.open_intents()}
    assert open_intents == {of_another_plan, *others}
    assert ours not in open_intents
    assert world.outcomes()["ann"].kind is OutcomeKind.DONE


async def test_after_a_lost_answer_only_a_reread_decides(world: World) -> None:
    """The hub may still be at it: while the user is there, nothing is known, and nothing is sent again."""
    world.begin()
    gone_at_s = world.clock.monotonic_s() + 10.0

    def lost(request: Request) -> HubUnreachable | None:
        if request.call == "get-user" and request.user == "ann" and world.clock.monotonic_s() >= gone_at_s:
            world.hub._users.pop("ann", None)
        return HubUnreachable("the connection broke") if request.call == "delete" and request.user == "ann" else None

    world.hub.fault = lost

    async def confirmed(name: str, *, confirm: Any = None) -> None:
        await confirm()
        await delete(name)

    delete = world.hub.delete_user
    world.hub.delete_user = confirmed  # type: ignore[method-assign]

    end = await world.work()

    assert end == End(Ends.DONE)
    assert world.outcomes()["ann"] == Outcome(OutcomeKind.DONE, "gone at a re-read (the connection broke)")
    assert world.deleted().count("ann") == 1


async def test_while_the_hub_is_silent_after_a_request_it_is_unknown_and_not_failed(world: World) -> None:
    world.begin()
    asked: list[str] = []

    def silent(request: Request) -> HubUnreachable | None:
        if request.call == "delete":
            asked.append(request.user)
        return HubUnreachable("no answer") if asked and request.call in {"delete", "get-user"} else None

    world.hub.fault = silent
    delete = world.hub.delete_user

    async def confirmed(name: str, *, confirm: Any = None) -> None:
        await confirm()
        await delete(name)

    world.hub.delete_user = confirmed  # type: ignore[method-assign]

    end = await world.work()

    assert end.how is Ends.WAITS
    assert {outcome.kind for outcome in world.outcomes().values()} <= {OutcomeKind.UNVERIFIED}
    assert world.outcomes()
    assert OutcomeKind.FAILED not in {entry.outcome for entry in world.books.journal.entries(limit=100)}


async def test_one_who_is_there_and_may_not_go_counts_as_left_alone_and_not_as_gone(world: World) -> None:
    """The plan had tried to delete them before: what it says then of one who is gone isn't true of them."""
    world.begin()
    await world.tried("ann")
    world.why_not = "they were here since"

    await world.work()

    assert world.deleted() == []
    assert {name: outcome.kind for name, outcome in world.outcomes().items()} == dict.fromkeys(
        NAMES, OutcomeKind.SKIPPED
    )


async def test_one_who_is_gone_after_this_plan_tried_counts_as_deleted_also_where_the_name_was_taken_anew(
    world: World,
) -> None:
    world.begin()
    for name in NAMES:
        await world.tried(name)
    world.hub._users.pop("ann")
    created = world.plan.deletions[1].created
    assert created is not None
    world.hub.add_user(User("bob", False, (), ("user",), created + timedelta(days=1), None))
    world.why_not = "the name was taken anew"

    await world.work()

    assert world.deleted() == []
    assert {name: outcome.kind for name, outcome in world.outcomes().items()} == dict.fromkeys(NAMES, OutcomeKind.DONE)


async def test_a_plan_that_is_paused_during_a_long_wait_ends_within_ten_seconds(world: World) -> None:
    world.begin()
    world.hub.fault = lambda request: HubFailed("no (500)", status=500) if request.call == "delete" else None
    world.paused_after_s = 3.0
    before_s = world.clock.monotonic_s()

    assert await world.work() == End(Ends.LEFT)

    assert world.clock.monotonic_s() - before_s <= 13.0


@pytest.mark.parametrize(("concurrency", "at_once"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 3)])
async def test_no_more_than_three_users_are_in_work_at_once(concurrency: int, at_once: int) -> None:
    world = await a_world("ann", "bob", "cas", "dan", "eve", "fay")
    world.begin()
    world.concurrency, world.looks_take_s = concurrency, 1.0

    await world.work(undo=("ann", "bob", "cas", "dan", "eve", "fay"))

    assert world.at_once == at_once


async def test_only_who_was_deleted_counts_as_gone_by_our_own_hand(world: World) -> None:
    """What is counted doesn't brake when the hub has fewer users."""
    world.begin()

    await world.work(undo=("ann",))

    assert {name: outcome.kind for name, outcome in world.outcomes().items()} == {
        "ann": OutcomeKind.DONE,
        "bob": OutcomeKind.SKIPPED,
    }
    assert world.gone_by_own_hand == 1


async def test_after_a_defect_nobody_else_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ann", "bob", "cas", "dan", "eve", "fay")
    world = await a_world(*names)
    world.begin()
    world.concurrency, world.looks_take_s = 3, 1.0

    settle = Record.settle

    async def broken(self: Record, position: int, outcome: Outcome, intent: int | None = None) -> None:
        if position == 0:
            raise RuntimeError("a defect")
        await settle(self, position, outcome, intent)

    monkeypatch.setattr(Record, "settle", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        await world.work(undo=names)

    assert len(world.deleted()) <= 3
    assert world.hub._users.keys() >= {"dan", "eve", "fay"}
