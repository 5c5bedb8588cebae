"""The journal keeps its promises on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from builders import EXACT_NOW as NOW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubguard.cull.model import Reason
from hubguard.errors import ActingRefused, JournalError, LeaseLost
from hubguard.journal.database import Database
from hubguard.journal.exemptions import NoSuchExemption
from hubguard.journal.model import Event, Exemption, Lease
from hubguard.journal.store import Journal, open_journal
from hubguard.model import Action, ActionKind, Outcome, OutcomeKind, Tally
from hubguard.snapshot.model import Evidence, Seen
from hubguard.snapshot.store import ActivityStore

pytestmark = pytest.mark.contract

HUB = "http://127.0.0.1:8081/hub/api"
STARTED = NOW - timedelta(hours=5, microseconds=7)
DONE = Outcome(OutcomeKind.DONE, "gone")
FAILED = Outcome(OutcomeKind.FAILED, "the hub answered 500")
UNVERIFIED = Outcome(OutcomeKind.UNVERIFIED, "still stopping")
SKIPPED = Outcome(OutcomeKind.SKIPPED, "active again")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def action(user: str = "ann", name: str = "", started: datetime | None = STARTED) -> Action:
    return Action(user, name, started, NOW - timedelta(hours=2), Reason.IDLE.value)


def take(
    journal: Journal, holder: str = "one", now: datetime = NOW, ttl_s: float = 30, generation: float = 1
) -> Lease | None:
    return journal.take_lease(HUB, holder, f"http://{holder}", generation, now, ttl_s)


def taken(
    journal: Journal, holder: str = "one", now: datetime = NOW, ttl_s: float = 30, generation: float = 1
) -> Lease:
    lease = take(journal, holder, now, ttl_s, generation)
    assert lease is not None
    return lease


def intend(journal: Journal, lease: Lease, what: Action | None = None, now: datetime = NOW) -> int:
    return journal.intend(HUB, lease, what or action(), "hubguard", now, asked=False, armed=True)


@contextmanager
def opened(url: str) -> Iterator[Journal]:
    journal = open_journal(url)
    try:
        yield journal
    finally:
        journal.close()


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    with opened(journal_url) as journal:
        yield journal


@pytest.fixture
def two(journal_url: str) -> Iterator[tuple[Journal, Journal]]:
    """One journal, opened twice, as two guards would."""
    with opened(journal_url) as one, opened(journal_url) as other:
        yield one, other


# The lease


def test_nobody_holds_a_lease_before_the_first_taking(journal: Journal) -> None:
    assert journal.lease(HUB) is None


def test_the_first_taking_has_fence_one_and_is_read_back_as_it_was_given(journal: Journal) -> None:
    lease = take(journal, generation=1741000000.123456)
    assert lease == Lease("one", "http://one", 1, 1741000000.123456, NOW, after(30))
    assert journal.lease(HUB) == lease
    assert [entry.event for entry in journal.entries()] == ["lease"]


def test_another_guard_gets_nothing_while_the_lease_runs(journal: Journal) -> None:
    lease = taken(journal)
    assert take(journal, "other", after(29.999999)) is None
    assert journal.lease(HUB) == lease
    assert len(journal.entries()) == 1


def test_taking_what_is_ours_renews_it_with_the_same_fence_and_no_new_entry(journal: Journal) -> None:
    taken(journal)
    again = taken(journal, now=after(10))
    assert (again.fence, again.taken_at, again.expires_at) == (1, NOW, after(40))
    assert len(journal.entries()) == 1


def test_a_lease_that_has_run_out_goes_to_another_with_a_higher_fence(journal: Journal) -> None:
    old = taken(journal)
    new = taken(journal, "other", after(30))
    assert new.fence == old.fence + 1
    assert journal.entries()[0].actor == "other"
    assert journal.entries()[0].fence == new.fence
    with pytest.raises(LeaseLost, match="other holds the lease"):
        journal.renew_lease(HUB, old, after(31), 30)


def test_a_guard_of_a_newer_hub_takes_over_at_once_and_the_older_one_cannot_take_it_back(journal: Journal) -> None:
    old = taken(journal, generation=1)
    new = taken(journal, "newer", after(1), generation=1.000001)
    assert new.fence == old.fence + 1
    assert take(journal, "one", after(2), generation=1) is None
    with pytest.raises(LeaseLost):
        intend(journal, old, now=after(2))
    assert intend(journal, new, now=after(2))


def test_a_guard_of_the_same_generation_does_not_take_over(journal: Journal) -> None:
    taken(journal, generation=2)
    assert take(journal, "other", after(1), generation=2) is None


def test_a_released_lease_can_be_had_at_once_and_not_renewed(journal: Journal) -> None:
    lease = taken(journal)
    journal.release_lease(HUB, lease, after(1))
    assert journal.lease(HUB) is None
    with pytest.raises(LeaseLost, match="no guard holds"):
        journal.renew_lease(HUB, lease, after(1), 30)
    with pytest.raises(LeaseLost):
        intend(journal, lease, now=after(1))
    assert taken(journal, "other", after(1)).fence == 2


def test_the_fence_rises_even_when_the_same_guard_takes_again_what_it_released(journal: Journal) -> None:
    lease = taken(journal)
    journal.release_lease(HUB, lease, after(1))
    assert taken(journal, now=after(2)).fence == 2


def test_releasing_a_lease_that_another_has_by_now_leaves_it_to_the_other(journal: Journal) -> None:
    old = taken(journal)
    new = taken(journal, "other", after(31))
    journal.release_lease(HUB, old, after(32))
    assert journal.lease(HUB) == new


def test_a_lease_that_ran_out_is_renewed_as_long_as_nobody_took_it(journal: Journal) -> None:
    lease = taken(journal)
    with pytest.raises(LeaseLost, match="ran out at 2025-03-01 12:00:30 UTC"):
        intend(journal, lease, now=after(60))
    renewed = journal.renew_lease(HUB, lease, after(60), 30)
    assert (renewed.fence, renewed.expires_at) == (lease.fence, after(90))
    assert intend(journal, renewed, now=after(60))


def test_a_lease_from_before_another_guard_had_it_is_no_good_though_its_holder_has_it_again(journal: Journal) -> None:
    stale = taken(journal)
    journal.release_lease(HUB, taken(journal, "other", after(31)), after(32))
    lease = taken(journal, now=after(33))
    assert (lease.holder, stale.fence, lease.fence) == (stale.holder, 1, 3)
    with pytest.raises(LeaseLost):
        journal.renew_lease(HUB, stale, after(34), 30)
    with pytest.raises(LeaseLost):
        intend(journal, stale, now=after(34))
    journal.release_lease(HUB, stale, after(34))
    assert journal.lease(HUB) == lease
    assert intend(journal, lease, now=after(34))


def test_a_lease_that_another_took_and_released_since_it_was_read_is_not_taken_with_the_fence_of_that_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where databases don't keep others from writing between the reading and the taking."""
    journal.release_lease(HUB, taken(journal), NOW)
    with journal.reading() as connection:
        seen = journal._lease_row(connection, HUB, NOW)
    journal.release_lease(HUB, taken(journal, "other", after(1)), after(2))
    monkeypatch.setattr(journal, "_lease_row", lambda *_: seen)
    assert take(journal, now=after(3)) is None
    monkeypatch.undo()
    assert taken(journal, now=after(3)).fence == 3


def test_hubs_have_leases_of_their_own(journal: Journal) -> None:
    taken(journal)
    assert journal.take_lease("another hub", "other", "", 1, NOW, 30) is not None


def test_a_lease_without_a_holder_is_no_lease(journal: Journal) -> None:
    with pytest.raises(ValueError, match="holder"):
        take(journal, "")


@pytest.mark.parametrize("start", ["never held", "run out", "released", "older generation"])
def test_of_eight_guards_that_try_at_once_exactly_one_gets_the_lease(journal_url: str, start: str) -> None:
    with opened(journal_url) as first:
        if start != "never held":
            lease = taken(first, "gone", after(-60) if start == "run out" else NOW, generation=0)
            if start == "released":
                first.release_lease(HUB, lease, NOW)
        before = len(first.entries())
        gate = threading.Barrier(8)

        def contend(number: int) -> Lease | None:
            with opened(journal_url) as journal:
                gate.wait(30)
                generation = 1 if start == "older generation" else 0
                return take(journal, f"guard {number}", generation=generation)

        with ThreadPoolExecutor(8) as pool:
            leases = [lease for lease in pool.map(contend, range(8)) if lease is not None]
        assert len(leases) == 1
        assert first.lease(HUB) == leases[0]
        assert len(first.entries()) == before + 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["take", "renew", "release", "intend"]),
            st.sampled_from(["a", "b", "c"]),
            st.integers(min_value=-5, max_value=40),
            st.sampled_from([0.0, 0.0, 1.0]),
        ),
        max_size=25,
    )
)
def test_whatever_guards_do_the_fence_never_falls_and_intents_come_from_one_holder_a_fence(
    steps: list[tuple[str, str, int, float]],
) -> None:
    now = NOW
    held: dict[str, Lease] = {}
    with opened("sqlite://") as journal:
        for step, guard, seconds, generation in steps:
            now += timedelta(seconds=seconds)  # clocks of several machines may also go back
            if step == "take":
                lease = take(journal, guard, now, generation=generation)
                if lease is not None:
                    held[guard] = lease
            elif guard in held:
                try:
                    if step == "renew":
                        held[guard] = journal.renew_lease(HUB, held[guard], now, 30)
                    elif step == "release":
                        journal.release_lease(HUB, held[guard], now)
                    else:
                        journal.intend(HUB, held[guard], action(), guard, now, asked=False, armed=True)
                except LeaseLost:
                    pass
        entries = journal.entries(limit=1000)[::-1]
    fences = [entry.fence for entry in entries]
    assert fences == sorted(fences)
    for fence in set(fences):
        assert len({entry.actor for entry in entries if entry.fence == fence}) == 1


# What people have set


def test_a_fresh_journal_has_nobody_armed_or_holding(journal: Journal) -> None:
    stance = journal.stance()
    assert (stance.armed, stance.held, stance.armed_by, stance.held_by) == (None, False, None, None)


def test_what_people_set_is_kept_with_who_when_and_why_and_each_change_is_an_entry(journal: Journal) -> None:
    assert journal.arm("ann", "tried for a week", NOW).armed is True
    journal.hold("bo", "exam today", after(1))
    journal.resume("bo", "exam over", after(2))
    assert journal.observe("ann", "new term", after(3)) == journal.stance()
    stance = journal.stance()
    assert (stance.armed, stance.armed_by, stance.armed_at, stance.armed_why) == (False, "ann", after(3), "new term")
    assert (stance.held, stance.held_by, stance.held_at, stance.held_why) == (False, "bo", after(2), "exam over")
    told = [(entry.event, entry.actor, entry.at, entry.detail, entry.fence) for entry in journal.entries()[::-1]]
    assert told == [
        ("armed", "ann", NOW, "tried for a week", 0),
        ("held", "bo", after(1), "exam today", 0),
        ("resumed", "bo", after(2), "exam over", 0),
        ("observing", "ann", after(3), "new term", 0),
    ]


# Intents and outcomes


def test_an_intent_is_refused_while_acting_is_on_hold_even_when_asked_for_by_name(journal: Journal) -> None:
    lease = taken(journal)
    journal.hold("bo", "exam today", NOW)
    with pytest.raises(ActingRefused, match=r"On hold \(bo: exam today\)"):
        journal.intend(HUB, lease, action(), "bo", NOW, asked=True, armed=True)
    assert journal.entries(event=Event.INTENT) == ()
    journal.resume("bo", "", NOW)
    assert intend(journal, lease)


@pytest.mark.parametrize(
    ("stance", "setting", "asked", "allowed"),
    [
        (None, None, False, False),
        (True, None, False, True),
        (False, None, False, False),
        (True, False, False, False),
        (False, True, False, True),
        (None, None, True, True),
        (False, False, True, True),
    ],
)
def test_an_intent_needs_arming_or_a_person_and_the_settings_overrule_the_stance(
    journal: Journal, stance: bool | None, setting: bool | None, asked: bool, allowed: bool
) -> None:
    lease = taken(journal)
    if stance is not None:
        (journal.arm if stance else journal.observe)("ann", "", NOW)
    if allowed:
        assert journal.intend(HUB, lease, action(), "ann", NOW, asked=asked, armed=setting)
    else:
        with pytest.raises(ActingRefused, match="only observes"):
            journal.intend(HUB, lease, action(), "ann", NOW, asked=asked, armed=setting)
    assert len(journal.open_intents()) == allowed


def test_an_intent_is_refused_at_the_very_moment_the_lease_runs_out(journal: Journal) -> None:
    lease = taken(journal)
    assert intend(journal, lease, now=after(29.999999))
    with pytest.raises(LeaseLost):
        intend(journal, lease, now=after(30))


def test_an_intent_with_a_lease_that_was_never_given_is_refused(journal: Journal) -> None:
    with pytest.raises(LeaseLost):
        intend(journal, Lease("one", "", 1, 1, NOW, after(30)))


def test_an_intent_keeps_everything_about_the_run_it_is_for(journal: Journal) -> None:
    lease = taken(journal)
    intent_id = intend(journal, lease, Action("ann", "gpu", STARTED, NOW, Reason.TOO_OLD, remove=True))
    (entry,) = journal.open_intents()
    assert (entry.id, entry.at, entry.event, entry.actor, entry.fence) == (intent_id, NOW, "intent", "hubguard", 1)
    assert (entry.user, entry.server, entry.started, entry.action) == ("ann", "gpu", STARTED, "stop-server")
    assert (entry.reason, entry.outcome, entry.refers_to) == ("too-old", None, None)
    assert "remove" in entry.detail


def test_an_outcome_is_written_once_and_the_first_one_stays(journal: Journal) -> None:
    intent_id = intend(journal, taken(journal))
    assert journal.settle(intent_id, FAILED, after(2)) is True
    assert journal.settle(intent_id, DONE, after(3)) is False
    (outcome,) = journal.entries(event=Event.OUTCOME)
    assert (outcome.refers_to, outcome.outcome, outcome.detail) == (intent_id, OutcomeKind.FAILED, FAILED.detail)
    assert (outcome.user, outcome.server, outcome.started, outcome.fence) == ("ann", "", STARTED, 1)
    assert journal.open_intents() == ()


def test_an_outcome_is_recorded_without_a_lease_and_on_hold(journal: Journal) -> None:
    intent_id = intend(journal, taken(journal))
    taken(journal, "other", after(60))
    journal.hold("bo", "", after(61))
    assert journal.settle(intent_id, DONE, after(62)) is True


def test_an_outcome_of_nothing_is_not_written(journal: Journal) -> None:
    note = journal.note(Event.NOTE, "ann", 0, NOW, "hello")
    assert journal.settle(note, DONE, NOW) is False
    assert journal.settle(note + 1000, DONE, NOW) is False
    assert journal.entries(event=Event.OUTCOME) == ()


def test_two_guards_that_settle_the_same_intent_at_once_write_one_outcome(two: tuple[Journal, Journal]) -> None:
    lease = taken(two[0])
    for _ in range(10):
        intent_id = intend(two[0], lease)
        gate = threading.Barrier(2)

        def settle(journal: Journal, intent_id: int = intent_id, gate: threading.Barrier = gate) -> bool:
            gate.wait(30)
            return journal.settle(intent_id, DONE, NOW)

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(settle, two)) == [False, True]
    assert len(two[1].entries(event=Event.OUTCOME)) == 10


def test_an_outcome_is_recorded_whatever_text_the_hub_has_sent(journal: Journal) -> None:
    intent_id = intend(journal, taken(journal))
    assert journal.settle(intent_id, Outcome(OutcomeKind.FAILED, "\0 \ud800 " + "ü" * 100_000), NOW) is True
    assert len(journal.entries(event=Event.OUTCOME)[0].detail) == 2000


def test_open_intents_come_oldest_first_and_leave_out_the_settled(journal: Journal) -> None:
    lease = taken(journal)
    ids = [intend(journal, lease, action(f"user{number}")) for number in range(5)]
    journal.settle(ids[1], DONE, NOW)
    journal.settle(ids[3], SKIPPED, NOW)
    assert [entry.id for entry in journal.open_intents()] == [ids[0], ids[2], ids[4]]


NAMES = [
    "ann",
    "a/b?c#d%25e\"<f>'",
    "Ωμέγα 名前 👩‍🔬",
    "Ann",
    " ann",
    "ann ",
    "é",
    "e\u0301",
    "\U0001f600" * 255,
    "%s :x {y}",
]


def test_names_and_times_come_back_exactly_and_are_never_taken_for_each_other(journal: Journal) -> None:
    lease = taken(journal)
    east = timezone(timedelta(hours=5, minutes=30))
    for name in NAMES:
        intent_id = intend(journal, lease, action(name, name, STARTED.astimezone(east)))
        journal.settle(intent_id, FAILED, NOW)
    for name in NAMES:
        assert [entry.user for entry in journal.entries(user=name, server=name)] == [name, name]
    entry = journal.entries(event=Event.INTENT)[0]
    assert entry.started == STARTED
    assert entry.started is not None
    assert entry.started.tzinfo is timezone.utc
    assert journal.failures(NOW).keys() == {(name, name, STARTED) for name in NAMES}


@pytest.mark.parametrize("name", ["x" * 256, "nul\0", "half \ud83d"])
def test_a_name_that_cannot_be_kept_whole_is_refused_not_cut(journal: Journal, name: str) -> None:
    lease = taken(journal)
    with pytest.raises(JournalError, match="not a name"):
        intend(journal, lease, action(name))
    assert journal.open_intents() == ()


def test_a_time_without_zone_is_refused(journal: Journal) -> None:
    with pytest.raises(JournalError, match="time zone"):
        journal.note(Event.NOTE, "ann", 0, NOW.replace(tzinfo=None), "when?")


# Failures


def failing(journal: Journal, lease: Lease, outcomes: list[Outcome], what: Action, first_at: datetime = NOW) -> None:
    for number, outcome in enumerate(outcomes):
        journal.settle(intend(journal, lease, what), outcome, first_at + timedelta(seconds=number))


def test_failures_count_failed_and_unverified_since_the_last_done_of_that_run(journal: Journal) -> None:
    lease = taken(journal)
    failing(journal, lease, [FAILED, DONE, FAILED, SKIPPED, UNVERIFIED], action())
    failing(journal, lease, [FAILED, DONE], action("bo"))
    failing(journal, lease, [FAILED], action("cy", "gpu", None))
    failing(journal, lease, [FAILED, FAILED], action("cy", "gpu", STARTED))
    failing(journal, lease, [SKIPPED, DONE], action("di"))
    counted = {run: (seen.count, seen.last_at) for run, seen in journal.failures(NOW).items()}
    assert counted == {
        ("ann", "", STARTED): (2, after(4)),
        ("cy", "gpu", None): (1, NOW),
        ("cy", "gpu", STARTED): (2, after(1)),
    }


def test_a_done_without_a_known_start_clears_only_its_own_kind(journal: Journal) -> None:
    lease = taken(journal)
    failing(journal, lease, [FAILED], action(started=None))
    failing(journal, lease, [FAILED], action())
    failing(journal, lease, [DONE], action(started=None))
    assert set(journal.failures(NOW)) == {("ann", "", STARTED)}


def test_a_new_run_of_a_server_starts_without_failures(journal: Journal) -> None:
    failing(journal, taken(journal), [FAILED], action())
    assert ("ann", "", NOW) not in journal.failures(NOW)


def test_failures_before_the_given_time_do_not_count(journal: Journal) -> None:
    failing(journal, taken(journal), [FAILED, FAILED, FAILED], action())
    assert journal.failures(after(1))["ann", "", STARTED].count == 2
    assert journal.failures(after(3)) == {}


def test_reading_a_long_journal_uses_an_index_for_every_question(tmp_path: object) -> None:
    """A full scan a minute is how a journal of a year becomes a load."""
    url = f"sqlite:///{tmp_path}/long.sqlite"
    plans: list[str] = []

    def explain(conn: sa.Connection, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("SELECT hubguard_"):
            rows = conn.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[union-attr]
            plans.extend(f"{row[3]} FOR {statement}" for row in rows)

    with opened(url) as journal:
        sa.event.listen(sa.Engine, "before_cursor_execute", explain)
        try:
            journal.failures(NOW)
            journal.open_intents()
            journal.entries(user="ann", server="")
            journal.entries(event=Event.LEASE, before_id=7)
            journal.entries(before_id=7)
            journal.forget(NOW)
            journal.tally(NOW)
            journal.resumed_at()
            journal.exemptions(NOW)
            journal.exemptions(NOW, user="ann")
            ActivityStore(journal).see([seen()], NOW)
            journal.recall("pace")
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", explain)
    assert len(plans) >= 12
    assert [plan for plan in plans if plan.startswith("SCAN")] == []


# Entries


def test_entries_are_newest_first_and_pages_join_without_gap_or_overlap(journal: Journal) -> None:
    ids = [journal.note(Event.NOTE, "ann", 0, NOW, f"line {number}") for number in range(25)]
    pages = [journal.entries(limit=10)]
    while pages[-1]:
        journal.note(Event.NOTE, "ann", 0, NOW, "meanwhile")
        pages.append(journal.entries(before_id=pages[-1][-1].id, limit=10))
    assert [entry.id for page in pages for entry in page] == ids[::-1]


def test_entries_are_found_by_user_server_and_event(journal: Journal) -> None:
    lease = taken(journal)
    intend(journal, lease, action("ann", ""))
    intend(journal, lease, action("ann", "gpu"))
    journal.note(
        Event.NOTE, "hubguard", 1, NOW, "would be stopped", user="bo", server="", started=STARTED, reason="idle"
    )
    assert [entry.server for entry in journal.entries(user="ann")] == ["gpu", ""]
    assert [entry.user for entry in journal.entries(server="")] == ["bo", "ann"]
    assert [entry.event for entry in journal.entries(user="ann", server="gpu")] == ["intent"]
    assert [entry.reason for entry in journal.entries(event=Event.NOTE)] == ["idle"]


@pytest.mark.parametrize("event", [Event.INTENT, Event.OUTCOME, Event.ARMED, Event.HELD])
def test_a_note_cannot_pretend_to_be_what_it_is_not(journal: Journal, event: Event) -> None:
    with pytest.raises(ValueError, match="written by the method"):
        journal.note(event, "ann", 0, NOW)


@pytest.mark.parametrize("event", [Event.BRAKED, Event.BRAKE_OVER, Event.FINDING, Event.CLEARED])
def test_what_the_guard_found_is_told_in_an_entry_of_its_own_kind(journal: Journal, event: Event) -> None:
    told = journal.note(event, "hubguard", 3, NOW, "the list is incomplete", user="ann", server="gpu")
    (entry,) = journal.entries(event=event)
    assert (entry.id, entry.fence, entry.user, entry.server) == (told, 3, "ann", "gpu")


def test_the_last_resuming_is_found_whatever_came_after_it(journal: Journal) -> None:
    assert journal.resumed_at() is None
    journal.hold("ann", "", NOW)
    assert journal.resumed_at() is None
    journal.resume("ann", "", after(1))
    journal.resume("bo", "", after(2))
    journal.hold("ann", "", after(3))
    assert journal.resumed_at() == after(2)


def test_the_tally_counts_outcomes_by_kind_from_its_moment_on(journal: Journal) -> None:
    assert journal.tally(NOW) == Tally()
    lease = taken(journal)
    intend(journal, lease)
    for seconds, outcome in [
        (-1, DONE),
        (0, DONE),
        (1, DONE),
        (2, FAILED),
        (3, UNVERIFIED),
        (4, SKIPPED),
        (5, SKIPPED),
    ]:
        journal.settle(intend(journal, lease), outcome, after(seconds))
    assert journal.tally(NOW) == Tally(done=2, skipped=2, failed=1, unverified=1)
    assert journal.tally(after(4)) == Tally(skipped=2)
    assert journal.tally(after(6)) == Tally()


def test_the_deletion_of_a_user_is_told_from_the_stop_of_the_default_server(journal: Journal) -> None:
    lease = taken(journal)
    stop = intend(journal, lease, action("ann"))
    deletion = intend(journal, lease, replace(action("ann"), kind=ActionKind.DELETE_USER))
    assert [(one.id, one.action) for one in journal.open_intents()] == [
        (stop, "stop-server"),
        (deletion, "delete-user"),
    ]


def test_forgetting_takes_what_is_old_and_settled_and_never_an_open_intent(journal: Journal) -> None:
    lease = taken(journal, now=after(-10))
    left_open = intend(journal, lease, action("open"), after(-9))
    settled = intend(journal, lease, action("settled"), after(-8))
    journal.settle(settled, DONE, after(-7))
    settled_late = intend(journal, lease, action("late"), after(-6))
    journal.settle(settled_late, DONE, after(1))
    journal.note(Event.NOTE, "ann", 0, after(-5), "old")
    journal.note(Event.NOTE, "ann", 0, NOW, "as old as the limit, so not older")
    assert journal.forget(NOW) == 4  # the lease's taking, the old note, the settled intent with its outcome
    assert [entry.id for entry in journal.open_intents()] == [left_open]
    assert {entry.user for entry in journal.entries()} == {"open", "late", None}
    assert len(journal.entries(user="late")) == 2
    assert journal.forget(NOW) == 0


def test_an_id_that_was_forgotten_is_not_given_again(journal: Journal) -> None:
    last = [journal.note(Event.NOTE, "ann", 0, NOW) for _ in range(3)][-1]
    journal.forget(after(1))
    assert journal.entries() == ()
    assert journal.note(Event.NOTE, "ann", 0, NOW) > last


def test_forgetting_more_than_a_batch_takes_all(journal: Journal) -> None:
    for _ in range(510):
        journal.note(Event.NOTE, "ann", 0, NOW)
    assert journal.forget(after(1)) == 510


# Exemptions


def keep(journal: Journal, user: str = "ann", server: str | None = "gpu", seconds: float = 3600) -> Exemption:
    return journal.exempt(user, server, after(seconds), "bo", "thesis", NOW)


def told(journal: Journal) -> list[tuple[str, str, str | None, str | None]]:
    return [(entry.event, entry.actor, entry.user, entry.server) for entry in journal.entries()[::-1]]


def test_an_exemption_is_read_back_as_it_was_made_and_is_an_entry(journal: Journal) -> None:
    made = keep(journal)
    assert made == Exemption(made.id, "ann", "gpu", after(3600), "bo", "thesis", NOW)
    assert journal.exemptions(NOW) == (made,)
    (entry,) = journal.entries()
    assert told(journal) == [("kept", "bo", "ann", "gpu")]
    assert entry.at == NOW
    assert entry.detail == f"until 2025-03-01 13:00 UTC (exemption {made.id}): thesis"


def test_all_servers_of_a_user_are_not_taken_for_the_default_server(journal: Journal) -> None:
    default, every = keep(journal, server=""), keep(journal, server=None)
    assert journal.exemptions(NOW) == (every, default)
    assert [one.server for one in journal.exemptions(NOW)] == [None, ""]
    assert [entry.server for entry in journal.entries()] == [None, ""]


def test_a_second_exemption_for_the_same_leaves_the_first_in_force(journal: Journal) -> None:
    longer, shorter = keep(journal, seconds=3600), keep(journal, seconds=60)
    assert journal.exemptions(NOW) == (shorter, longer)
    assert journal.exemptions(after(60)) == (longer,)


def test_an_exemption_is_listed_exactly_as_long_as_it_covers(journal: Journal) -> None:
    made = [keep(journal, seconds=10), keep(journal, seconds=20)]
    made[1] = journal.end_exemption(made[1].id, "cy", "", after(5))
    for seconds in (0, 4.999999, 5, 9.999999, 10, 19.999999, 20):
        now = after(seconds)
        assert journal.exemptions(now) == tuple(one for one in made[::-1] if one.covers("ann", "gpu", now))
    assert journal.exemptions(after(20), ended=True) == (made[1], made[0])


def test_exemptions_of_one_user_leave_out_those_of_others(journal: Journal) -> None:
    mine, _, also_mine = keep(journal, "ann"), keep(journal, "Ann"), keep(journal, "ann", None, 10)
    assert journal.exemptions(NOW, user="ann") == (also_mine, mine)
    assert journal.exemptions(after(10), user="ann") == (mine,)
    assert journal.exemptions(after(10), user="ann", ended=True) == (also_mine, mine)
    assert journal.exemptions(NOW, user="nobody") == ()


def test_ending_an_exemption_keeps_who_did_so_and_is_an_entry(journal: Journal) -> None:
    made, other = keep(journal), keep(journal)
    over = journal.end_exemption(made.id, "cy", "thesis is in", after(60))
    assert over == replace(made, ended_at=after(60), ended_by="cy")
    assert journal.exemptions(after(60)) == (other,)
    assert journal.exemptions(after(60), ended=True) == (other, over)
    assert told(journal)[-1] == ("released", "cy", "ann", "gpu")
    assert journal.entries()[0].detail == f"exemption {made.id}, until 2025-03-01 13:00 UTC, ended: thesis is in"


def test_an_exemption_that_is_over_was_ended_or_never_was_cannot_be_ended_and_that_is_said(journal: Journal) -> None:
    ended, over = keep(journal), keep(journal, seconds=60)
    journal.end_exemption(ended.id, "cy", "", after(30))
    before = journal.exemptions(NOW, ended=True), told(journal)
    for exemption_id, said in [
        (ended.id, "cy ended it at 2025-03-01 12:00 UTC"),
        (over.id, "it ran until 2025-03-01 12:01 UTC"),
        (over.id + 1, f"There is no exemption {over.id + 1}"),
    ]:
        with pytest.raises(NoSuchExemption, match=said) as error:
            journal.end_exemption(exemption_id, "di", "again", after(60))
        assert not isinstance(error.value, JournalError), "the database is well"
    assert (journal.exemptions(NOW, ended=True), told(journal)) == before


def test_of_two_who_end_an_exemption_at_once_one_does_and_the_other_is_told(two: tuple[Journal, Journal]) -> None:
    made = keep(two[0])

    def end(journal: Journal, actor: str) -> object:
        try:
            return journal.end_exemption(made.id, actor, "", after(1))
        except NoSuchExemption as error:
            return str(error)

    first, second, overtook = in_order(
        "UPDATE hubguard_exemption", lambda: end(two[0], "cy"), lambda: end(two[1], "di")
    )
    assert not overtook
    assert isinstance(first, Exemption)
    assert "cy ended it" in str(second)
    assert [entry.actor for entry in two[0].entries(event=Event.RELEASED)] == ["cy"]


@pytest.mark.parametrize("seconds", [-1, 0])
def test_an_exemption_that_is_over_before_it_begins_is_no_exemption(journal: Journal, seconds: float) -> None:
    with pytest.raises(ValueError, match="after it begins"):
        keep(journal, seconds=seconds)
    assert (journal.exemptions(NOW, ended=True), told(journal)) == ((), [])


def test_an_exemption_and_its_entry_are_there_both_or_not_at_all(journal: Journal) -> None:
    made = keep(journal)
    with failing_at("INSERT INTO hubguard_entry"):
        with pytest.raises(JournalError, match="is full"):
            keep(journal)
        with pytest.raises(JournalError, match="is full"):
            journal.end_exemption(made.id, "cy", "", after(1))
    assert journal.exemptions(NOW, ended=True) == (made,)
    assert told(journal) == [("kept", "bo", "ann", "gpu")]


def test_exemptions_keep_names_exactly_and_whatever_reason_was_given(journal: Journal) -> None:
    for name in NAMES:
        journal.exempt(name, name, after(60), name, "\0 \ud800 " + "ü" * 100_000, NOW)
    for name in NAMES:
        (made,) = journal.exemptions(NOW, user=name)
        assert (made.user, made.server, made.actor, len(made.why)) == (name, name, name, 2000)
    with pytest.raises(JournalError, match="not a name"):
        keep(journal, "x" * 256)


def test_an_exemption_is_forgotten_only_when_it_was_long_over(journal: Journal) -> None:
    keep(journal, "over", seconds=10)
    just_over = keep(journal, "just over", seconds=20)
    running = keep(journal, "running", seconds=30)
    journal.forget(after(20))
    assert journal.exemptions(after(20), ended=True) == (running, just_over)
    with pytest.raises(NoSuchExemption, match="There is no exemption"):
        journal.end_exemption(just_over.id - 1, "cy", "", after(20))
    journal.forget(after(40))
    assert keep(journal).id > running.id


# What was seen of servers


def seen(user: str = "ann", server: str = "", at: float | None = 0, **more: object) -> Seen:
    active_at = None if at is None else after(at)
    values = {"active_at": active_at, "evidence": None if at is None else Evidence.HUB, **more}
    return Seen(user, server, STARTED, **values)  # type: ignore[arg-type]


def by_server(*rows: Seen) -> dict[tuple[str, str], Seen]:
    return {(row.user, row.server): row for row in rows}


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to the database, in order; a statement for many rows is one."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


@contextmanager
def failing_at(statement_starts: str) -> Iterator[None]:
    """Such a statement finds the disk full."""

    def fail(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(statement_starts):
            raise sa.exc.OperationalError(statement, {}, Exception("database or disk is full"))

    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)


def test_what_was_seen_is_read_back_exactly(journal: Journal) -> None:
    assert ActivityStore(journal).activity() == {}
    rows = [
        Seen("ann", "", None),
        Seen("ann", "gpu", STARTED, NOW, Evidence.PROXY, "stop", after(-5), after(-7), True),
        Seen("bo", "", STARTED, after(-1), Evidence.START),
        *(seen(name, name) for name in NAMES if name != "ann"),
    ]
    assert ActivityStore(journal).see(rows, NOW) == len(rows)
    assert ActivityStore(journal).activity() == by_server(*rows)


def test_only_what_has_changed_is_written(journal: Journal) -> None:
    rows = [seen(f"user{number}") for number in range(20)]
    ActivityStore(journal).see(rows, NOW)
    with statements() as sent:
        assert ActivityStore(journal).see(rows, after(60)) == 0
    assert [one for one in sent if not one.startswith(("BEGIN", "SELECT"))] == []
    rows[7] = replace(rows[7], active_at=after(60))
    assert ActivityStore(journal).see(rows, after(60)) == 1
    assert ActivityStore(journal).activity() == by_server(*rows)


def test_seeing_some_servers_leaves_the_others_as_they_were(journal: Journal) -> None:
    ActivityStore(journal).see([seen("ann"), seen("ann", "gpu"), seen("bo")], NOW)
    ActivityStore(journal).see([seen("ann", "gpu", 9), seen("cy", at=9)], after(9))
    assert ActivityStore(journal).activity() == by_server(
        seen("ann"), seen("ann", "gpu", 9), seen("bo"), seen("cy", at=9)
    )


def test_a_thousand_changed_servers_among_many_take_a_handful_of_statements(journal: Journal) -> None:
    """A statement a row is what makes a cycle of 1,000 servers take seconds, and locks the journal meanwhile."""
    rows = [seen(f"user{number}") for number in range(3000)]
    ActivityStore(journal).see(rows, NOW)
    later = [replace(row, active_at=after(60)) for row in rows[:1000]]
    with statements() as sent:
        assert ActivityStore(journal).see(later, after(60)) == 1000
    assert len(sent) <= 5
    assert ActivityStore(journal).activity() == by_server(*later, *rows[1000:])


def test_real_use_once_seen_is_not_unseen_while_all_else_is_as_seen_last(journal: Journal) -> None:
    ActivityStore(journal).see(
        [seen(at=60, evidence=Evidence.PROXY, pending="stop", pending_since=NOW, route_missing=True)], after(60)
    )
    restarted = Seen("ann", "", after(70), after(50), Evidence.HUB)
    assert ActivityStore(journal).see([restarted], after(70)) == 1
    assert ActivityStore(journal).activity() == by_server(
        replace(restarted, active_at=after(60), evidence=Evidence.PROXY)
    )
    assert ActivityStore(journal).see([restarted], after(71)) == 0
    ActivityStore(journal).see([seen(at=None)], after(72))
    assert ActivityStore(journal).activity() == by_server(seen(at=60, evidence=Evidence.PROXY))


def test_use_that_a_wrong_clock_put_into_the_future_gives_way_to_what_is_seen_now(journal: Journal) -> None:
    """Else that server would look used for as long as the clock was wrong by."""
    ActivityStore(journal).see([seen(at=86_400)], NOW)
    ActivityStore(journal).see([seen(at=60)], after(60))
    assert ActivityStore(journal).activity() == by_server(seen(at=60))


def test_of_several_rows_for_a_server_the_last_one_counts(journal: Journal) -> None:
    assert ActivityStore(journal).see([seen(at=1), seen("bo"), seen(at=3, pending="stop"), seen(at=2)], after(5)) == 2
    assert ActivityStore(journal).activity() == by_server(seen(at=2), seen("bo"))


def test_a_server_with_a_name_that_cannot_be_kept_does_not_keep_the_others_out(journal: Journal) -> None:
    assert (
        ActivityStore(journal).see([seen("x" * 256), seen("ann", "nul\0"), seen("half \ud83d"), seen("bo")], NOW) == 1
    )
    assert ActivityStore(journal).activity() == by_server(seen("bo"))
    assert ActivityStore(journal).see([seen("x" * 256)], NOW) == 0
    assert ActivityStore(journal).see([], NOW) == 0


def test_a_pending_word_of_any_kind_is_kept_as_far_as_it_can_be_and_not_written_again(journal: Journal) -> None:
    odd = seen(pending="\0\ud800" + "stop" * 100, pending_since=NOW)
    assert ActivityStore(journal).see([odd], NOW) == 1
    assert ActivityStore(journal).see([odd], after(60)) == 0
    assert len(ActivityStore(journal).activity()["ann", ""].pending or "") == 64


@pytest.mark.parametrize("statement", ["INSERT INTO hubguard_activity", "UPDATE hubguard_activity"])
def test_what_was_seen_is_recorded_for_all_servers_or_for_none(journal: Journal, statement: str) -> None:
    ActivityStore(journal).see([seen("ann"), seen("bo")], NOW)
    with failing_at(statement), pytest.raises(JournalError, match="is full"):
        ActivityStore(journal).see([seen("ann", at=9), seen("bo", at=9), seen("cy", at=9)], after(9))
    assert ActivityStore(journal).activity() == by_server(seen("ann"), seen("bo"))


def test_a_server_that_stays_unused_is_remembered_as_long_as_it_is_there_and_then_long_enough(journal: Journal) -> None:
    day = 86_400
    rows = [seen("idle"), seen("gone"), seen("silent", at=None)]
    ActivityStore(journal).see(rows, NOW)
    for number in range(1, 500):
        ActivityStore(journal).see([rows[0], rows[2]], after(number * day))
        if number > 400:
            ActivityStore(journal).forget(after((number - 400) * day))
    assert ActivityStore(journal).activity() == by_server(rows[0], rows[2])
    ActivityStore(journal).forget(after(499 * day))
    assert ActivityStore(journal).activity() == by_server(rows[0], rows[2])
    ActivityStore(journal).forget(after(499 * day + 1))
    assert ActivityStore(journal).activity() == {}


def test_a_clock_that_went_back_makes_nothing_be_forgotten_earlier(journal: Journal) -> None:
    ActivityStore(journal).see([seen(at=-100)], NOW)
    ActivityStore(journal).see([seen(at=-50)], after(-40))
    ActivityStore(journal).forget(after(-1))
    assert ActivityStore(journal).activity() == by_server(seen(at=-50))


def test_two_guards_that_see_the_same_servers_at_once_both_succeed_and_no_use_is_lost(
    two: tuple[Journal, Journal],
) -> None:
    one, other = two
    ActivityStore(one).see([seen("old")], NOW)
    first, second, overtook = in_order(
        "INSERT INTO hubguard_activity",
        lambda: ActivityStore(one).see([seen("old", at=9), seen("new", at=9), seen("newer", at=1)], after(9)),
        lambda: ActivityStore(other).see([seen("old", at=5), seen("new", at=5), seen("newer", at=5)], after(9)),
    )
    assert (first, second, overtook) == (3, 1, False)
    assert ActivityStore(other).activity() == by_server(seen("old", at=9), seen("new", at=9), seen("newer", at=5))


@settings(max_examples=60, deadline=None)
@given(
    looks=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["ann", "bo"]),
                st.sampled_from(["", "gpu"]),
                st.none() | st.integers(min_value=0, max_value=9),
                st.sampled_from([None, "stop", "spawn"]),
            ),
            max_size=6,
        ),
        max_size=8,
    )
)
def test_after_any_looks_each_server_is_as_seen_last_with_the_latest_use_of_all(
    looks: list[list[tuple[str, str, int | None, str | None]]],
) -> None:
    expected: dict[tuple[str, str], Seen] = {}
    with opened("sqlite://") as journal:
        for look in looks:
            last = by_server(*(seen(user, server, at, pending=pending) for user, server, at, pending in look))
            for key, row in last.items():
                known = expected[key].active_at if key in expected else None
                times = [at for at in (known, row.active_at) if at is not None]
                at = (max(times) - NOW).total_seconds() if times else None
                expected[key] = seen(row.user, row.server, at, pending=row.pending)
            changed = {key for key in last if ActivityStore(journal).activity().get(key) != expected[key]}
            rows = (seen(user, server, at, pending=pending) for user, server, at, pending in look)
            assert ActivityStore(journal).see(rows, after(10)) == len(changed)
            assert ActivityStore(journal).activity() == expected


# What a guard remembers over a restart


def test_what_is_remembered_is_recalled_with_its_time_and_the_last_word_counts(journal: Journal) -> None:
    assert journal.recall("pace") is None
    value = {"rate": 2.5, "runs": [["ann", "", None], ["\0\ud800Ω", "%s", 7]], "nested": {"on": True}}
    journal.remember("pace", {"rate": 1}, NOW)
    journal.remember("brake", {"since": None}, NOW)
    journal.remember("pace", value, after(1))
    assert journal.recall("pace") == (value, after(1))
    assert journal.recall("brake") == ({"since": None}, NOW)
    assert journal.recall("Pace") is None


def test_much_can_be_remembered(journal: Journal) -> None:
    value = {f"user{number}": "ü" * 255 for number in range(1000)}
    journal.remember("watch", value, NOW)
    assert journal.recall("watch") == (value, NOW)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "[" * 100_000, '{"a": 1', "{}x"])
def test_what_was_garbled_is_no_memory_rather_than_an_error(journal_url: str, text: str) -> None:
    with opened(journal_url) as journal:
        journal.remember("pace", {"rate": 1}, NOW)
        engine = sa.create_engine(journal_url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE hubguard_memory SET value = :text"), {"text": text})
        assert journal.recall("pace") is None
        journal.remember("pace", {"rate": 2}, NOW)
        assert journal.recall("pace") == ({"rate": 2}, NOW)


@pytest.mark.parametrize("value", [{"at": NOW}, {"rate": float("nan")}, {"rate": float("inf")}])
def test_what_is_not_json_is_refused_and_the_old_word_stays(journal: Journal, value: dict[str, object]) -> None:
    journal.remember("pace", {"rate": 1}, NOW)
    with pytest.raises((TypeError, ValueError)):
        journal.remember("pace", value, NOW)
    assert journal.recall("pace") == ({"rate": 1}, NOW)


def test_two_guards_that_remember_for_the_first_time_at_once_both_succeed(two: tuple[Journal, Journal]) -> None:
    first, second, overtook = in_order(
        "INSERT INTO hubguard_memory",
        lambda: two[0].remember("pace", {"by": 1}, NOW),
        lambda: two[1].remember("pace", {"by": 2}, NOW),
    )
    assert (first, second, overtook) == (None, None, False)
    assert two[0].recall("pace") == ({"by": 2}, NOW)


# Two at once: nothing comes between a check and its commit


@contextmanager
def paused_after(statement_starts: str) -> Iterator[tuple[threading.Event, threading.Event, Callable[[], None]]]:
    """Transactions of the thread that calls the third value stop after such a statement, before their commit.

    The first event says that one has stopped there; setting the second one lets it go on.
    """
    reached, go_on = threading.Event(), threading.Event()
    chosen: list[int] = []

    def pause(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if threading.get_ident() in chosen and statement.startswith(statement_starts):
            reached.set()
            assert go_on.wait(30)

    sa.event.listen(sa.Engine, "after_cursor_execute", pause)
    try:
        yield reached, go_on, lambda: chosen.append(threading.get_ident())
    finally:
        go_on.set()
        sa.event.remove(sa.Engine, "after_cursor_execute", pause)


def in_order(pause_at: str, first: Callable[[], object], second: Callable[[], object]) -> tuple[object, object, bool]:
    """What ``first`` and ``second`` gave or raised, and whether ``second`` could finish while ``first`` was uncommitted."""

    def caught(work: Callable[[], object]) -> object:
        try:
            return work()
        except JournalError as error:
            return error

    with paused_after(pause_at) as (reached, go_on, choose), ThreadPoolExecutor(2) as pool:

        def held_up() -> object:
            choose()
            return caught(first)

        one = pool.submit(held_up)
        assert reached.wait(30)
        other = pool.submit(caught, second)
        try:
            other.result(timeout=0.4)
            overtook = True
        except TimeoutError:
            overtook = False
        except Exception:  # concurrent.futures has a TimeoutError of its own on Python 3.10
            overtook = False
        go_on.set()
        return one.result(timeout=30), other.result(timeout=30), overtook


def test_no_guard_takes_the_lease_between_the_check_of_an_intent_and_its_commit(two: tuple[Journal, Journal]) -> None:
    one, other = two
    lease = taken(one)
    intent_id, new, overtook = in_order(
        "INSERT INTO hubguard_entry",
        lambda: intend(one, lease, now=after(29)),
        lambda: take(other, "other", after(1), generation=2),
    )
    assert not overtook
    assert isinstance(intent_id, int)
    assert isinstance(new, Lease)
    newest, before = other.entries(limit=2)
    assert (newest.event, newest.fence) == ("lease", 2)
    assert (before.id, before.event, before.fence) == (intent_id, "intent", 1)


def test_an_intent_that_waited_for_another_guard_to_take_the_lease_is_refused(two: tuple[Journal, Journal]) -> None:
    one, other = two
    lease = taken(one)
    new, refusal, overtook = in_order(
        "UPDATE hubguard_lease",
        lambda: take(other, "other", after(1), generation=2),
        lambda: intend(one, lease, now=after(1)),
    )
    assert not overtook
    assert isinstance(new, Lease)
    assert isinstance(refusal, LeaseLost)
    assert one.entries(event=Event.INTENT) == ()


def test_once_a_hold_has_returned_no_intent_is_recorded_any_more(two: tuple[Journal, Journal]) -> None:
    one, other = two
    lease = taken(one)
    _, refusal, overtook = in_order(
        "UPDATE hubguard_stance", lambda: other.hold("bo", "exam", NOW), lambda: intend(one, lease)
    )
    assert not overtook
    assert isinstance(refusal, ActingRefused)


def test_a_hold_waits_for_the_intent_that_was_allowed_before_it(two: tuple[Journal, Journal]) -> None:
    one, other = two
    lease = taken(one)
    intent_id, _, overtook = in_order(
        "INSERT INTO hubguard_entry", lambda: intend(one, lease), lambda: other.hold("bo", "exam", NOW)
    )
    assert not overtook
    newest, before = other.entries(limit=2)
    assert newest.event == "held"
    assert before.id == intent_id


def test_a_renewal_that_comes_while_another_guard_takes_over_is_told_that_it_lost(two: tuple[Journal, Journal]) -> None:
    one, other = two
    lease = taken(one)
    _, refusal, _ = in_order(
        "UPDATE hubguard_lease",
        lambda: take(other, "other", after(31)),
        lambda: one.renew_lease(HUB, lease, after(31), 30),
    )
    assert isinstance(refusal, LeaseLost)


def test_a_guard_that_saw_the_lease_run_out_does_not_take_it_after_it_was_renewed(postgresql_url: str) -> None:
    with opened(postgresql_url) as one, opened(postgresql_url) as other:
        lease = taken(one)
        renewed, nothing, _ = in_order(
            "UPDATE hubguard_lease",
            lambda: one.renew_lease(HUB, lease, after(31), 30),
            lambda: take(other, "other", after(31)),
        )
        assert isinstance(renewed, Lease)
        assert nothing is None
        assert one.lease(HUB) == renewed


def test_two_newer_guards_that_take_over_at_the_same_moment_never_share_a_fence(two: tuple[Journal, Journal]) -> None:
    taken(two[0], "old", generation=1)
    newer, newest, _ = in_order(
        "UPDATE hubguard_lease",
        lambda: take(two[0], "newer", after(1), generation=2),
        lambda: take(two[1], "newest", after(1), generation=3),
    )
    assert isinstance(newer, Lease)
    assert newer.fence == 2
    assert newest is None or isinstance(newest, Lease)
    # Where it was told no, because somebody else was quicker, the next try gets it.
    assert (newest or taken(two[1], "newest", after(2), generation=3)).fence == 3


CRASH = """
import os, signal, sys
from datetime import datetime, timezone
import sqlalchemy as sa
from hubguard.journal.store import open_journal
from hubguard.model import Action
from hubguard.cull.model import Reason
url, where = sys.argv[1:]
journal = open_journal(url)
now = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
lease = journal.take_lease("hub", "crashing", "", 1, now, 30)
def die(conn, *rest):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "before the commit":
    sa.event.listen(sa.Engine, "commit", die)
journal.intend("hub", lease, Action("ann", "", None, None, Reason.IDLE), "hubguard", now, asked=False, armed=True)
die(None)
"""


@pytest.mark.parametrize(("where", "left"), [("before the commit", 0), ("after the commit", 1)])
def test_after_a_guard_was_killed_an_intent_is_there_whole_or_not_at_all(
    journal_url: str, where: str, left: int
) -> None:
    killed = subprocess.run([sys.executable, "-c", CRASH, journal_url, where], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with opened(journal_url) as journal:
        assert len(journal.open_intents()) == left
        assert taken(journal, "next", after(60)).fence >= 1
        lease = journal.take_lease("hub", "next", "", 1, NOW + timedelta(seconds=60), 30)
        assert lease is not None
        assert lease.fence == 2


BUSY = """
import os, signal, sys
from datetime import datetime, timedelta, timezone
import sqlalchemy as sa
from hubguard.journal.store import open_journal
from hubguard.snapshot.model import Evidence, Seen
from hubguard.snapshot.store import ActivityStore
url, statement, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = 0
def spill(connection, record):
    if url.startswith("sqlite"):
        connection.execute("PRAGMA cache_size = 1")  # what isn't committed yet is in the file already
def die(conn, cursor, text, *rest):
    if done == rounds and text.startswith(statement):
        os.kill(os.getpid(), signal.SIGKILL)
journal = open_journal(url)
sa.event.listen(sa.Pool, "connect", spill)
sa.event.listen(sa.Engine, "after_cursor_execute", die)
now = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
while True:
    now += timedelta(seconds=1)
    # Every other time a new name comes in between, so that rows are added and changed in one go.
    users = [f"user{number}" for number in range(300)] + [f"new{done}-{number}" for number in range(300)]
    ActivityStore(journal).see([Seen(user, "", now, now, Evidence.HUB) for user in users], now)
    exemption = journal.exempt("ann", None, now + timedelta(hours=1), "bo", "x" * 1500, now)
    journal.end_exemption(exemption.id, "bo", "", now)
    journal.remember("count", {"rounds": done, "fill": "x" * 20000}, now)
    done += 1
    print(done, flush=True)
"""


def assert_sound(url: str, finished: int) -> None:
    """What ``finished`` rounds have recorded is there, and of the one under way each step whole or not at all."""
    with opened(url) as journal:
        activity = ActivityStore(journal).activity()
        rounds = len(activity) // 300 - 1
        assert len(activity) == 300 * (rounds + 1)
        assert rounds in (finished, finished + 1)
        assert len({row.active_at for row in activity.values() if row.user.startswith("user")}) == 1
        exemptions = journal.exemptions(NOW, ended=True)
        ended = [one for one in exemptions if one.ended_at]
        assert len(journal.entries(event=Event.KEPT, limit=1000)) == len(exemptions)
        assert len(journal.entries(event=Event.RELEASED, limit=1000)) == len(ended)
        assert finished <= len(ended) <= len(exemptions) <= rounds
        memory = journal.recall("count")
        if finished:
            assert memory is not None
            assert memory[0]["rounds"] in (finished - 1, finished)
        ActivityStore(journal).see([seen()], NOW)
        journal.remember("count", {}, NOW)
    if url.startswith("sqlite"):
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO hubguard_activity",
        "UPDATE hubguard_activity",
        "INSERT INTO hubguard_exemption",
        "UPDATE hubguard_exemption",
        "INSERT INTO hubguard_entry",
        "UPDATE hubguard_memory",
    ],
)
def test_a_guard_killed_in_the_middle_of_a_change_leaves_every_change_whole_or_undone(
    journal_url: str, statement: str
) -> None:
    command = [sys.executable, "-c", BUSY, journal_url, statement, "2"]
    killed = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, "")
    if statement == "UPDATE hubguard_activity" and journal_url.startswith("sqlite"):
        file = sa.make_url(journal_url).database
        assert os.path.getsize(f"{file}-journal") > 0, "nothing was in the file yet, so nothing had to be undone"
    assert_sound(journal_url, len(killed.stdout.split()))


@pytest.mark.long
@pytest.mark.parametrize("rounds", range(8))
def test_a_guard_killed_at_any_moment_leaves_a_sound_journal(tmp_path: object, rounds: int) -> None:
    url = f"sqlite:///{tmp_path}/journal.sqlite"
    command = [sys.executable, "-c", BUSY, url, "", "-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as busy:
        try:
            assert busy.stdout is not None
            finished = 0
            while finished <= rounds:
                finished = int(busy.stdout.readline())
            # However long reading took: the guard is somewhere in the next round.
            threading.Event().wait(rounds * 0.011)
        finally:
            busy.kill()
        finished = int((busy.stdout.read().split() or [str(finished)])[-1])
    assert_sound(url, finished)


# Trouble: one clear line, nothing lost, no password


def one_line(error: pytest.ExceptionInfo[JournalError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_new_file_is_for_its_owner_alone(tmp_path: object) -> None:
    path = f"{tmp_path}/journal.sqlite"
    old = os.umask(0)
    try:
        open_journal(f"sqlite:///{path}").close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_read_only_database_is_refused_with_what_to_do(tmp_path: object) -> None:
    path = f"{tmp_path}/journal.sqlite"
    open_journal(f"sqlite:///{path}").close()
    with pytest.raises(JournalError) as error:
        open_journal(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert "is read-only" in one_line(error)
    assert "Let the account" in one_line(error)


def test_a_postgresql_database_that_became_read_only_is_told_and_reading_goes_on(postgresql_url: str) -> None:
    open_journal(postgresql_url).close()
    name = sa.make_url(postgresql_url).database
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    with opened(postgresql_url) as journal:
        with engine.begin() as connection:
            connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
            others = "pid <> pg_backend_pid() AND datname = current_database()"
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        with pytest.raises(JournalError, match="is read-only") as error:
            taken(journal)
        assert one_line(error)
        assert journal.entries() == ()
    with pytest.raises(JournalError, match="is read-only"):
        open_journal(postgresql_url)


@pytest.mark.parametrize("path", ["missing-folder/journal.sqlite", "."])
def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: object, path: str) -> None:
    with pytest.raises(JournalError, match="can't be (created|opened)") as error:
        open_journal(f"sqlite:///{tmp_path}/{path}")
    assert "folder" in one_line(error)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: object) -> None:
    path = f"{tmp_path}/notes.txt"
    with open(path, "w") as file:
        file.write("not a database, but somebody's notes\n" * 50)
    with pytest.raises(JournalError, match="isn't a usable database"):
        open_journal(f"sqlite:///{path}")
    with open(path) as file:
        assert file.read().startswith("not a database")


def test_a_full_disk_refuses_the_intent_and_keeps_what_was_there(tmp_path: object) -> None:
    with opened(f"sqlite:///{tmp_path}/journal.sqlite") as journal:
        lease = taken(journal)
        full = False

        def no_more_pages(connection: object, _record: object) -> None:
            if full:
                connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]

        sa.event.listen(sa.Pool, "connect", no_more_pages)
        try:
            with opened(f"sqlite:///{tmp_path}/journal.sqlite") as crowded:
                full = True
                recorded: list[int] = []
                with pytest.raises(JournalError, match="is full") as error:
                    recorded.extend(intend(crowded, lease, action("x" * 255)) for _ in range(500))
        finally:
            sa.event.remove(sa.Pool, "connect", no_more_pages)
        assert "Make room" in one_line(error)
        assert [entry.id for entry in journal.open_intents()] == recorded
        assert intend(journal, lease)


def test_a_database_locked_by_somebody_else_is_told(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubguard.journal.database.LOCK_TIMEOUT_S", 0.1)
    url = f"sqlite:///{tmp_path}/journal.sqlite"
    with opened(url) as journal:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            with pytest.raises(JournalError, match="locked by somebody else"):
                taken(journal)
        assert taken(journal)


def test_a_journal_whose_file_was_removed_says_so_and_begins_no_new_one(tmp_path: object) -> None:
    path = f"{tmp_path}/journal.sqlite"
    with opened(f"sqlite:///{path}") as journal:
        lease = taken(journal)
        os.unlink(path)
        with pytest.raises(JournalError, match="is gone"):
            intend(journal, lease)
    assert not os.path.exists(path)


def test_a_journal_whose_file_was_replaced_by_an_empty_one_says_so(tmp_path: object) -> None:
    path = f"{tmp_path}/journal.sqlite"
    with opened(f"sqlite:///{path}") as journal:
        os.unlink(path)
        with open(path, "w"):
            pass
        with pytest.raises(JournalError, match="has lost HubGuard's tables"):
            taken(journal)


def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    url = "postgresql://guard:s3cr%40t@127.0.0.1:1/journal?application_name=x"
    with pytest.raises(JournalError, match="can't be reached") as error:
        open_journal(url)
    text = one_line(error) + error.value.detail + repr(error.value.__cause__)
    assert "127.0.0.1:1/journal" in text
    assert "s3cr" not in text


def test_a_lost_postgresql_server_session_is_told_and_the_next_call_works(postgresql_url: str) -> None:
    with opened(postgresql_url) as journal:
        taken(journal)
        engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            others = "pid <> pg_backend_pid() AND datname = current_database()"
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        assert journal.lease(HUB) is not None


def test_a_guard_frozen_inside_a_transaction_does_not_keep_the_lease_locked_for_ever(postgresql_url: str) -> None:
    """The server ends such a transaction; without that limit, nobody could take over from a guard that hangs."""
    with opened(postgresql_url):
        pass
    seen: list[str] = []

    def look(conn: sa.Connection) -> None:
        if not seen:
            seen.append("")
            for name in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"):
                seen.append(str(conn.exec_driver_sql(f"SHOW {name}").scalar()))

    sa.event.listen(sa.Engine, "begin", look)
    try:
        open_journal(postgresql_url).close()
    finally:
        sa.event.remove(sa.Engine, "begin", look)
    assert seen[1:] == ["15s", "3s", "4s"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "isn't a database URL"),
        ("/var/lib/hubguard.sqlite", "isn't a database URL"),
        ("postgresql://guard:s3cret@host:port/journal", "isn't a database URL"),
        ("guard:s3cret@host/journal", "isn't a database URL"),
        ("postgres://guard:s3cret@host/journal", "can't be used"),
        ("sqlite+s3crt://", "can't be used"),
        ("sqlite:///journal.sqlite?timeout=s3cret", "can't be used"),
        ("mysql://guard:s3cret@host/journal", "mysql.pymysql"),
        ("oracle+cx_oracle://guard:s3cret@host/journal", "isn't installed"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line_without_its_password(url: str, told: str) -> None:
    with pytest.raises(JournalError, match=told) as error:
        open_journal(url)
    assert "HubGuard.db_url" in one_line(error)
    assert "s3cret" not in one_line(error)
    assert error.value.__suppress_context__


def test_a_missing_driver_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(JournalError, match=r"pip install 'hubguard\[postgresql\]'") as error:
        open_journal("postgresql://guard:s3cret@host/journal")
    assert "s3cret" not in one_line(error)


def test_a_file_that_cannot_be_looked_for_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = Database(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    assert database.missing

    def refused(path: Path, **more: object) -> bool:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "exists", refused)
    assert not database.missing
