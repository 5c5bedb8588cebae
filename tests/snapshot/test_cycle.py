"""What the looks learn from what was done on them, and what is forgotten: pieces of the cycle that need no guard."""

from __future__ import annotations

from datetime import timedelta

import pytest
from builders import NOW
from doubles.hub import MemoryHub
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.lease import LeaseKeeper
from hubguard.act.mandate import Mandate
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind
from hubguard.pacing.budget import Budget
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.decide.brake import Caution
from hubguard.snapshot.observe import Observer

STOP = Action("ann", "gpu", NOW, None, "idle")
RUN = ("ann", "gpu", NOW)


class Scene:
    def __init__(self) -> None:
        self.clock, self.books = VirtualClock(NOW), InlineJournal()
        hub, budget = MemoryHub(clock=self.clock), Budget(rate=1.0, burst=1, concurrency=1, clock=self.clock)
        keeper = LeaseKeeper(self.books, self.clock, holder="me", address="", generation=0.0, lease_s=30.0)
        mandate = Mandate(self.books, keeper, self.clock)
        observer = Observer(hub, self.clock)
        self.snapshots = Snapshots(hub, budget, observer, self.clock, Caution(), mandate=mandate, journal_days=30)

    async def passes(self, span: timedelta) -> None:
        await self.clock.run(self.clock.sleep(span.total_seconds()))


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
