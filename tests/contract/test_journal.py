"""The journal keeps its promises on SQLite, on SQLite in memory and on PostgreSQL."""

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
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubguard.errors import ActingRefused, JournalError, LeaseLost
from hubguard.journal import Journal, open_journal
from hubguard.model import Action, Lease, Outcome, OutcomeKind, Reason

pytest_plugins = ["databases"]

HUB = "http://127.0.0.1:8081/hub/api"
NOW = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
STARTED = NOW - timedelta(hours=5, microseconds=7)
DONE = Outcome(OutcomeKind.DONE, "gone")
FAILED = Outcome(OutcomeKind.FAILED, "the hub answered 500")
UNVERIFIED = Outcome(OutcomeKind.UNVERIFIED, "still stopping")
SKIPPED = Outcome(OutcomeKind.SKIPPED, "active again")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def action(user: str = "ann", name: str = "", started: datetime | None = STARTED) -> Action:
    return Action(user, name, started, NOW - timedelta(hours=2), Reason.IDLE)


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
def journal(database_url: str) -> Iterator[Journal]:
    with opened(database_url) as journal:
        yield journal


@pytest.fixture
def two(shared_database_url: str) -> Iterator[tuple[Journal, Journal]]:
    """One journal, opened twice, as two guards would."""
    with opened(shared_database_url) as one, opened(shared_database_url) as other:
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
    with pytest.raises(LeaseLost, match="nobody holds"):
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


def test_hubs_have_leases_of_their_own(journal: Journal) -> None:
    taken(journal)
    assert journal.take_lease("another hub", "other", "", 1, NOW, 30) is not None


def test_a_lease_without_a_holder_is_no_lease(journal: Journal) -> None:
    with pytest.raises(ValueError, match="holder"):
        take(journal, "")


@pytest.mark.parametrize("start", ["never held", "run out", "released", "older generation"])
def test_of_eight_guards_that_try_at_once_exactly_one_gets_the_lease(shared_database_url: str, start: str) -> None:
    with opened(shared_database_url) as first:
        if start != "never held":
            lease = taken(first, "gone", after(-60) if start == "run out" else NOW, generation=0)
            if start == "released":
                first.release_lease(HUB, lease, NOW)
        before = len(first.entries())
        gate = threading.Barrier(8)

        def contend(number: int) -> Lease | None:
            with opened(shared_database_url) as journal:
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
    with pytest.raises(ActingRefused, match="bo put it on hold at 2025-03-01 12:00:00 UTC.*exam today"):
        journal.intend(HUB, lease, action(), "bo", NOW, asked=True, armed=True)
    assert journal.entries(event="intent") == ()
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
    (outcome,) = journal.entries(event="outcome")
    assert (outcome.refers_to, outcome.outcome, outcome.detail) == (intent_id, OutcomeKind.FAILED, FAILED.detail)
    assert (outcome.user, outcome.server, outcome.started, outcome.fence) == ("ann", "", STARTED, 1)
    assert journal.open_intents() == ()


def test_an_outcome_is_recorded_without_a_lease_and_on_hold(journal: Journal) -> None:
    intent_id = intend(journal, taken(journal))
    taken(journal, "other", after(60))
    journal.hold("bo", "", after(61))
    assert journal.settle(intent_id, DONE, after(62)) is True


def test_an_outcome_of_nothing_is_not_written(journal: Journal) -> None:
    note = journal.note("note", "ann", 0, NOW, "hello")
    assert journal.settle(note, DONE, NOW) is False
    assert journal.settle(note + 1000, DONE, NOW) is False
    assert journal.entries(event="outcome") == ()


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
    assert len(two[1].entries(event="outcome")) == 10


def test_an_outcome_is_recorded_whatever_text_the_hub_has_sent(journal: Journal) -> None:
    intent_id = intend(journal, taken(journal))
    assert journal.settle(intent_id, Outcome(OutcomeKind.FAILED, "\0 \ud800 " + "ü" * 100_000), NOW) is True
    assert len(journal.entries(event="outcome")[0].detail) == 2000


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
    entry = journal.entries(event="intent")[0]
    assert entry.started == STARTED
    assert entry.started is not None
    assert entry.started.tzinfo is timezone.utc
    assert journal.failures(NOW).keys() == {(name, name, STARTED) for name in NAMES}


@pytest.mark.parametrize("name", ["x" * 256, "nul\0"])
def test_a_name_that_cannot_be_kept_whole_is_refused_not_cut(journal: Journal, name: str) -> None:
    lease = taken(journal)
    with pytest.raises(JournalError, match="not a name"):
        intend(journal, lease, action(name))
    assert journal.open_intents() == ()


def test_a_time_without_zone_is_refused(journal: Journal) -> None:
    with pytest.raises(JournalError, match="time zone"):
        journal.note("note", "ann", 0, NOW.replace(tzinfo=None), "when?")


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
        if statement.startswith("SELECT hubguard_entry"):
            rows = conn.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[union-attr]
            plans.extend(f"{row[3]} FOR {statement}" for row in rows)

    with opened(url) as journal:
        sa.event.listen(sa.Engine, "before_cursor_execute", explain)
        try:
            journal.failures(NOW)
            journal.open_intents()
            journal.entries(user="ann", server="")
            journal.entries(event="lease", before_id=7)
            journal.entries(before_id=7)
            journal.forget(NOW)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", explain)
    assert plans
    assert [plan for plan in plans if plan.startswith("SCAN")] == []


# Entries


def test_entries_are_newest_first_and_pages_join_without_gap_or_overlap(journal: Journal) -> None:
    ids = [journal.note("note", "ann", 0, NOW, f"line {number}") for number in range(25)]
    pages = [journal.entries(limit=10)]
    while pages[-1]:
        journal.note("note", "ann", 0, NOW, "meanwhile")
        pages.append(journal.entries(before_id=pages[-1][-1].id, limit=10))
    assert [entry.id for page in pages for entry in page] == ids[::-1]


def test_entries_are_found_by_user_server_and_event(journal: Journal) -> None:
    lease = taken(journal)
    intend(journal, lease, action("ann", ""))
    intend(journal, lease, action("ann", "gpu"))
    journal.note("note", "hubguard", 1, NOW, "would be stopped", user="bo", server="", started=STARTED, reason="idle")
    assert [entry.server for entry in journal.entries(user="ann")] == ["gpu", ""]
    assert [entry.user for entry in journal.entries(server="")] == ["bo", "ann"]
    assert [entry.event for entry in journal.entries(user="ann", server="gpu")] == ["intent"]
    assert [entry.reason for entry in journal.entries(event="note")] == ["idle"]


@pytest.mark.parametrize("event", ["intent", "outcome", "armed", "held", "nonsense"])
def test_a_note_cannot_pretend_to_be_what_it_is_not(journal: Journal, event: str) -> None:
    with pytest.raises(ValueError, match="written by the method"):
        journal.note(event, "ann", 0, NOW)  # type: ignore[arg-type]


def test_forgetting_takes_what_is_old_and_settled_and_never_an_open_intent(journal: Journal) -> None:
    lease = taken(journal, now=after(-10))
    left_open = intend(journal, lease, action("open"), after(-9))
    settled = intend(journal, lease, action("settled"), after(-8))
    journal.settle(settled, DONE, after(-7))
    settled_late = intend(journal, lease, action("late"), after(-6))
    journal.settle(settled_late, DONE, after(1))
    journal.note("note", "ann", 0, after(-5), "old")
    journal.note("note", "ann", 0, NOW, "as old as the limit, so not older")
    assert journal.forget(NOW) == 4  # the lease's taking, the old note, the settled intent with its outcome
    assert [entry.id for entry in journal.open_intents()] == [left_open]
    assert {entry.user for entry in journal.entries()} == {"open", "late", None}
    assert len(journal.entries(user="late")) == 2
    assert journal.forget(NOW) == 0


def test_an_id_that_was_forgotten_is_not_given_again(journal: Journal) -> None:
    last = [journal.note("note", "ann", 0, NOW) for _ in range(3)][-1]
    journal.forget(after(1))
    assert journal.entries() == ()
    assert journal.note("note", "ann", 0, NOW) > last


def test_forgetting_more_than_a_batch_takes_all(journal: Journal) -> None:
    for _ in range(510):
        journal.note("note", "ann", 0, NOW)
    assert journal.forget(after(1)) == 510


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
    assert one.entries(event="intent") == ()


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
from hubguard.journal import open_journal
from hubguard.model import Action, Reason
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
    shared_database_url: str, where: str, left: int
) -> None:
    killed = subprocess.run([sys.executable, "-c", CRASH, shared_database_url, where], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with opened(shared_database_url) as journal:
        assert len(journal.open_intents()) == left
        assert taken(journal, "next", after(60)).fence >= 1
        lease = journal.take_lease("hub", "next", "", 1, NOW + timedelta(seconds=60), 30)
        assert lease is not None
        assert lease.fence == 2


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
    assert seen[1:] == ["15s", "5s", "15s"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "isn't a database URL"),
        ("/var/lib/hubguard.sqlite", "isn't a database URL"),
        ("postgresql://guard:s3cret@host:port/journal", "isn't a database URL"),
        ("guard:s3cret@host/journal", "isn't a database URL"),
        ("postgres://guard:s3cret@host/journal", "can't be used"),
        ("sqlite+s3crt://", "can't be used"),
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
