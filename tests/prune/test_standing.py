"""Whether a plan still stands: the first end counts, whoever found it, and whatever is found afterwards."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.errors import HubUnreachable, LeaseLost
from hubguard.prune.model import (
    Deletion,
    Gain,
    PrunePlan,
    PruneReason,
    StaleCriteria,
    Storage,
    StorageFate,
)
from hubguard.prune.standing import End, Ends, Standing
from hubguard.prune.store import PruneStore


class Review:
    """Of a hub without risks. ``meanwhile`` happens while it is read."""

    def __init__(self) -> None:
        self.meanwhile = lambda: None

    async def count_users(self) -> int:
        return 1

    async def cautions(self) -> tuple[()]:
        self.meanwhile()
        return ()

    def look_anew(self) -> None:
        pass


class Scene:
    """A plan that is running, and nothing that stands in its way."""

    def __init__(self) -> None:
        clock, journal = VirtualClock(), InlineJournal()
        now = clock.now()
        deletions = (Deletion("ann", now - timedelta(days=500), None, PruneReason.NEVER_ACTIVE, now),)
        plan = PrunePlan(
            "d" * 64, now, now + timedelta(days=1), "ada", StaleCriteria(never_active_for_s=1.0), deletions,
            {}, Gain(1, 0, 1, 0), Storage(StorageFate.KEPT, "Local", "kept"),
        )  # fmt: skip
        store = PruneStore(journal.journal)
        store.keep_plan(plan, "{}")
        store.begin_prune(plan.digest, "ada", "", "/undo", "0" * 64, now)
        self.review = Review()
        mandate: Any = SimpleNamespace(holds_lease=True, journal=journal)
        snapshots: Any = SimpleNamespace(counting=False, brake=None, why_fallen=lambda users: "")
        settings: Any = SimpleNamespace(delete_users=True)
        review: Any = self.review
        self.standing = Standing(plan, frozenset(), mandate, review, snapshots, settings, clock)


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_a_plan_that_nothing_stands_against_stands(scene: Scene):
    assert await scene.standing.check()
    assert scene.standing.end is None


async def test_the_first_end_counts_and_a_later_one_changes_nothing(scene: Scene):
    assert scene.standing.stop_for(LeaseLost("another guard has it"))
    assert scene.standing.stop_for(HubUnreachable("no answer"))
    scene.standing.stop(End(Ends.PAUSES, "on hold"))
    assert scene.standing.end == End(Ends.LEFT, "another guard has it")


async def test_an_end_that_another_task_finds_while_this_one_checks_is_heeded(scene: Scene):
    end = End(Ends.WAITS, "it is unknown what came of ann")
    scene.review.meanwhile = lambda: scene.standing.stop(end)
    assert not await scene.standing.check()
    assert not await scene.standing.check()
    assert scene.standing.end == end
