"""The journal keeps plans to remove users on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from builders import EXACT_NOW as NOW

from hubguard.cull.model import Reason
from hubguard.journal.model import Event
from hubguard.journal.store import open_journal
from hubguard.model import Action, ActionKind, Outcome, OutcomeKind
from hubguard.prune.decide.plan import to_dict
from hubguard.prune.model import (
    Deletion,
    Gain,
    PrunePlan,
    PruneReason,
    PruneState,
    StaleCriteria,
    Storage,
    StorageFate,
    Use,
)
from hubguard.prune.store import PruneStore
from hubguard.snapshot.model import Evidence, Seen
from hubguard.snapshot.store import ActivityStore

pytestmark = pytest.mark.contract

HUB = "http://127.0.0.1:8081/hub/api"
DONE = Outcome(OutcomeKind.DONE, "gone")
UNSURE = Outcome(OutcomeKind.UNVERIFIED, "no answer")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def plan_of(*users: str, digest: str = "a" * 64) -> PrunePlan:
    deletions = tuple(Deletion(user, NOW, None, PruneReason.NEVER_ACTIVE, NOW) for user in users)
    storage = Storage(StorageFate.KEPT, "Local", "kept")
    return PrunePlan(
        digest, NOW, after(3600), "ada", StaleCriteria(never_active_for_s=1.0), deletions, {}, Gain(9, 8, 1, 1), storage
    )


@pytest.fixture
def store(journal_url: str) -> Iterator[PruneStore]:
    journal = open_journal(journal_url)
    yield PruneStore(journal)
    journal.close()


def begun(store: PruneStore, plan: PrunePlan) -> None:
    store.keep_plan(plan, "{}")
    assert store.begin_prune(plan.digest, "ada", "term", "/undo", "b" * 64, after(5)) is not None


def test_a_plan_in_a_list_says_its_criteria_unless_they_are_a_book(store: PruneStore) -> None:
    for listed in (None, tuple("x" * 99 for _ in range(999))):
        plan = plan_of("ann", digest=("a" if listed else "b") * 64)
        plan = replace(plan, made_by='"criteria": {', criteria=replace(plan.criteria, listed=listed))
        assert store.keep_plan(plan, json.dumps(to_dict(plan))).criteria == (None if listed else plan.criteria)


def test_a_plan_is_kept_as_it_was_written_and_stands_as_planned(store: PruneStore) -> None:
    run = store.keep_plan(plan_of("ann", "bob"), '{"é": 1}')
    assert (run.state, run.count, run.actor, run.made_at, run.began_at) == (PruneState.PLANNED, 2, "ada", NOW, None)
    assert store.plan_text("a" * 64) == '{"é": 1}'
    assert store.keep_plan(replace(plan_of("ann"), made_by="bob"), "[]").actor == "ada"
    assert (store.plan_text("c" * 64), store.prune_run("c" * 64), store.prune_state("c" * 64)) == (None,) * 3


def test_a_plan_is_begun_once_and_never_beside_another(store: PruneStore) -> None:
    first, second = plan_of("ann"), plan_of("bob", digest="d" * 64)
    store.keep_plan(second, "{}")
    begun(store, first)
    assert store.begin_prune(first.digest, "eve", "", "/other", "c" * 64, after(6)) is None
    assert store.begin_prune(second.digest, "eve", "", "/other", "c" * 64, after(6)) is None
    run = store.prune_run(first.digest)
    assert run is not None
    assert (run.state, run.asked_why, run.undo_file, run.began_at) == (PruneState.RUNNING, "term", "/undo", after(5))
    assert store.turn_prune(first.digest, [PruneState.RUNNING], PruneState.PAUSED, "bob", "lunch", after(7))
    assert store.begin_prune(second.digest, "eve", "", "/other", "c" * 64, after(8)) is not None
    assert store.turn_prune(first.digest, [PruneState.PAUSED], PruneState.RUNNING, "bob", "", after(9)) is None
    assert {run.digest for run in store.prunes_under_way()} == {first.digest, second.digest}


def test_a_plan_turns_only_from_where_it_stands(store: PruneStore) -> None:
    plan = plan_of("ann")
    begun(store, plan)
    assert store.turn_prune(plan.digest, [PruneState.PAUSED], PruneState.RUNNING, "bob", "", after(6)) is None
    ended = store.turn_prune(plan.digest, [PruneState.RUNNING], PruneState.CANCELLED, "bob", "enough", after(7))
    assert ended is not None
    assert (ended.state, ended.ended_at, ended.why) == (PruneState.CANCELLED, after(7), "enough")
    assert store.prune_turned_at(plan.digest) == after(7)
    assert "enough" in store.journal.entries(event=Event.NOTE)[0].detail


def test_what_was_acknowledged_stands_for_as_long_as_the_plan_does(store: PruneStore) -> None:
    plan = plan_of("ann")
    assert store.keep_plan(plan, "{}").acknowledged == ()
    run = store.begin_prune(plan.digest, "ada", "", "/undo", "b" * 64, after(5), acknowledged=["é", "Kube", "é"])
    assert run is not None
    assert run.acknowledged == ("Kube", "é")
    store.turn_prune(plan.digest, [PruneState.RUNNING], PruneState.PAUSED, "bob", "", after(6))
    turned = store.turn_prune(
        plan.digest, [PruneState.PAUSED], PruneState.RUNNING, "bob", "", after(7), acknowledged=["tokens", "Kube"]
    )
    assert turned is not None
    assert turned.acknowledged == ("Kube", "tokens", "é")
    assert store.prune_run(plan.digest) == turned
    told = [entry.detail.rpartition("; ")[2] for entry in store.journal.entries(event=Event.NOTE, limit=3)]
    assert (told[0], "acknowledged" in told[1], told[2]) == ("acknowledged: tokens", False, "acknowledged: Kube, é")
    # Nobody acknowledges for a plan that doesn't stand so that it could turn.
    assert (
        store.turn_prune(plan.digest, [PruneState.PAUSED], PruneState.RUNNING, "b", "", NOW, acknowledged=["x"]) is None
    )
    assert store.prune_run(plan.digest) == turned


def test_who_is_found_gone_after_all_is_done_and_nothing_else_unsettles_a_failure(store: PruneStore) -> None:
    plan = plan_of("ann", "bob")
    begun(store, plan)
    failed = Outcome(OutcomeKind.FAILED, "still there")
    assert store.settle_pruned(plan.digest, 0, failed, after(10))
    for outcome in (UNSURE, failed, Outcome(OutcomeKind.SKIPPED, "is back")):
        assert not store.settle_pruned(plan.digest, 0, outcome, after(11))
    assert store.settle_pruned(plan.digest, 0, DONE, after(12))
    assert not store.settle_pruned(plan.digest, 0, failed, after(13))
    assert [(one.position, one.outcome, one.at) for one in store.pruned(plan.digest)] == [(0, DONE, after(12))]


def test_what_came_of_a_user_stands_unless_it_was_unverified(store: PruneStore) -> None:
    plan = plan_of("ann", "bob", "carl")
    begun(store, plan)
    assert store.settle_pruned(plan.digest, 0, DONE, after(10))
    assert not store.settle_pruned(plan.digest, 0, UNSURE, after(11))
    assert not store.wait_again(plan.digest, 0)
    assert store.settle_pruned(plan.digest, 2, UNSURE, after(12))
    assert store.settle_pruned(plan.digest, 1, UNSURE, after(12))
    assert store.settle_pruned(plan.digest, 2, DONE, after(13))
    assert store.wait_again(plan.digest, 1)
    assert [(one.position, one.outcome, one.at) for one in store.pruned(plan.digest)] == [
        (0, DONE, after(10)),
        (2, DONE, after(13)),
    ]
    assert [one.position for one in store.pruned(plan.digest, 1, 2)] == []
    run = store.prune_run(plan.digest)
    assert run is not None
    assert (run.done, run.settled) == (2, 2)


def test_what_is_over_or_was_never_used_is_forgotten_and_what_is_under_way_never(store: PruneStore) -> None:
    for number, state in enumerate((None, PruneState.RUNNING, PruneState.PAUSED, PruneState.DONE)):
        plan = plan_of("ann", digest=str(number) * 64)
        store.keep_plan(plan, "{}")
        if state is not None:
            for other in store.prunes_under_way():
                store.turn_prune(other.digest, [PruneState.RUNNING], PruneState.PAUSED, "x", "", after(5))
            assert store.begin_prune(plan.digest, "ada", "", "/undo", "b" * 64, after(5))
            store.settle_pruned(plan.digest, 0, DONE, after(6))
            if state is not PruneState.RUNNING:
                store.turn_prune(plan.digest, [PruneState.RUNNING], state, "ada", "", after(7))
    store.forget(after(7))
    assert len(store.prune_runs()) == 4
    store.forget(after(10_000))
    assert sorted(run.digest[0] for run in store.prune_runs()) == ["1", "2"]
    assert (store.pruned("3" * 64), len(store.pruned("1" * 64))) == ((), 1)


def test_use_is_the_last_of_all_servers_and_stops_are_those_that_were_seen_done(store: PruneStore) -> None:
    lease = store.journal.take_lease(HUB, "one", "", 1, NOW, 1e6)
    assert lease is not None
    for name, at in (("", after(1)), ("lab", after(9))):
        ActivityStore(store.journal).see([Seen("ann", name, NOW, at, Evidence.HUB)], after(20))
    for user, outcome in (("ann", DONE), ("bob", UNSURE)):
        action = Action(user, "", NOW, NOW, Reason.IDLE.value)
        intent = store.journal.intend(HUB, lease, action, "hubguard", after(30), asked=True, armed=True)
        store.journal.settle(intent, outcome, after(31))
    assert store.uses() == {"ann": Use(after(9), ((after(30), after(31)),))}
    assert store.uses("ann") == store.uses()
    assert (store.uses("bob"), store.uses("\0")) == ({}, {})


def test_an_intent_to_delete_is_known_by_plan_user_creation_and_time(store: PruneStore) -> None:
    lease = store.journal.take_lease(HUB, "one", "", 1, NOW, 1e6)
    assert lease is not None
    digest = "d" * 64
    action = Action("ann", "", NOW, None, PruneReason.INACTIVE, kind=ActionKind.DELETE_USER, plan=digest)
    store.journal.intend(HUB, lease, action, "ada", after(10), asked=True, armed=False)
    assert store.intended_by("ann", NOW, after(10)) == {digest}
    assert store.intended_by("ann", NOW, after(11)) == frozenset()
    assert store.intended_by("ann", after(1), after(0)) == frozenset()
    assert store.intended_by("bob", NOW, after(0)) == frozenset()
    other = replace(action, user="bob", started=None)
    store.journal.intend(HUB, lease, other, "ada", after(20), asked=True, armed=False)
    store.journal.intend(HUB, lease, replace(action, user="carl", plan=None), "ada", after(20), asked=True, armed=False)
    assert store.intended_by("carl", NOW, after(0)) == {None}
    store.journal.intend(
        HUB, lease, Action("ann", "", NOW, NOW, Reason.IDLE.value), "ada", after(21), asked=True, armed=False
    )
    assert store.deletions_intended(digest) == (("ann", NOW), ("bob", None))
    assert store.deletions_intended("f" * 64) == ()


def test_who_was_brought_back_is_counted_and_told(store: PruneStore) -> None:
    plan = plan_of("ann", "bob")
    begun(store, plan)
    run = store.note_restored(plan.digest, [("ann", DONE), ("x" * 300, DONE)], 2, "ada", after(50))
    assert (run.restored, run.restored_at) == (2, after(50))
    assert [entry.user for entry in store.journal.entries(event=Event.NOTE, limit=2)] == [None, "ann"]


def test_plans_are_found_by_a_user_in_them_whatever_the_case(store: PruneStore) -> None:
    for number, names in enumerate((("ann", "bob"), ("bobby",), ("Żół_%", 'q"u\\x'))):
        plan = replace(plan_of(*names), digest=str(number) * 64, made_at=after(number))
        store.keep_plan(plan, json.dumps(to_dict(plan), separators=(",", ":")))

    def found(user: str) -> list[str]:
        return [run.digest[0] for run in store.prune_runs(user=user)]

    assert [found(user) for user in ("bob", "BOB", "bobby", "bo", "żół_%", "Żół_%", 'q"u\\x', "Żółx%")] == [
        ["0"], ["0"], ["1"], [], [], ["2"], ["2"], [],
    ]  # fmt: skip
    assert found("") == ["2", "1", "0"]
