"""How alerts are raised, cleared and lost."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from builders import NOW

from hubguard.watch.decide.alert import Alerts, Level, Rule, step
from hubguard.watch.decide.history import History
from hubguard.watch.model import AlertState, Change, Severity

SLOW = Rule(
    "HubSlow",
    Severity.NOW,
    Level("hub_latency_seconds", raise_at=2.0, clear_at=1.0),
    "The hub takes {value}.",
    "Why.",
    "First.",
    for_s=60.0,
    clear_for_s=60.0,
)


def changes_of(readings: Iterable[float | None], rule: Rule = SLOW) -> list[tuple[int, Change]]:
    """(seconds since the first reading, what changed) for readings 10 s apart; None: the source can't be read."""
    history, changes = History(), []
    alerts: Alerts = {}
    for i, value in enumerate(readings):
        now = NOW + timedelta(seconds=10 * i)
        if value is not None:
            history.add(now.timestamp(), {rule.condition.signal: value})
        alerts, turned = step([rule], alerts, history, now)
        changes += [(10 * i, transition.change) for transition in turned]
    return changes


def test_an_alert_is_raised_when_its_condition_has_held_for_long_enough() -> None:
    assert changes_of([3.0] * 6) == []
    assert changes_of([3.0] * 7) == [(60, Change.RAISED)]


def test_one_good_reading_begins_the_time_again() -> None:
    assert changes_of([3.0] * 6 + [0.5] + [3.0] * 6) == []


def test_it_is_resolved_when_it_has_been_good_for_long_enough() -> None:
    assert changes_of([3.0] * 7 + [0.5] * 6) == [(60, Change.RAISED)]
    assert changes_of([3.0] * 7 + [0.5] * 7) == [(60, Change.RAISED), (130, Change.RESOLVED)]


def test_between_the_thresholds_nothing_changes() -> None:
    assert changes_of([1.5] * 50) == []
    assert changes_of([3.0] * 7 + [1.5] * 50) == [(60, Change.RAISED)]


def test_a_lost_source_is_neither_good_nor_bad() -> None:
    raised_then_lost = changes_of([3.0] * 7 + [None] * 30)
    assert [change for _, change in raised_then_lost] == [Change.RAISED, Change.LOST]
    found = changes_of([3.0] * 7 + [None] * 30 + [3.0])
    assert [change for _, change in found] == [Change.RAISED, Change.LOST, Change.FOUND]


def test_an_alert_of_a_rule_that_was_switched_off_is_resolved() -> None:
    history = History()
    alerts: Alerts = {}
    for i in range(7):
        now = NOW + timedelta(seconds=10 * i)
        history.add(now.timestamp(), {"hub_latency_seconds": 3.0})
        alerts, _ = step([SLOW], alerts, history, now)
    assert [alert.state for alert in alerts.values()] == [AlertState.FIRING]
    alerts, changes = step([], alerts, history, NOW)
    assert (dict(alerts), [transition.change for transition in changes]) == ({}, [Change.RESOLVED])


def step_through(told: Iterable[tuple[float, float]]) -> list[tuple[float, Change]]:
    """(second, what changed) for (second, reading), in the order in which a clock that is set back has them."""
    history, changes = History(), []
    alerts: Alerts = {}
    for at, value in told:
        now = NOW + timedelta(seconds=at)
        history.add(now.timestamp(), {"hub_latency_seconds": value})
        alerts, turned = step([SLOW], alerts, history, now)
        changes += [(at, transition.change) for transition in turned]
    return changes


def test_a_clock_set_back_an_hour_neither_delays_an_alert_nor_its_end() -> None:
    ahead = [(3600.0 + 10 * i, 3.0) for i in range(7)]
    assert step_through(ahead[:3] + [(10.0 * i, 3.0) for i in range(8)]) == [(60, Change.RAISED)]
    back_and_good = step_through(ahead + [(10.0 * i, 0.5) for i in range(8)])
    assert back_and_good == [(3660, Change.RAISED), (60, Change.RESOLVED)]
    cleared_ahead = step_through(ahead + [(3670.0, 0.5)] + [(10.0 * i, 0.5) for i in range(8)])
    assert cleared_ahead == [(3660, Change.RAISED), (60, Change.RESOLVED)]
