"""What holds for alerts whatever is read, and for forecasts whatever the noise."""

from __future__ import annotations

import random
from datetime import timedelta
from itertools import pairwise

from builders import NOW
from hypothesis import given
from hypothesis import strategies as st

from hubguard.watch.decide.alert import Alerts, Level, Rule, step
from hubguard.watch.decide.history import History, merge
from hubguard.watch.decide.trend import time_left
from hubguard.watch.model import Alert, AlertState, Change, Sample, Severity

SLOW = Rule(
    "HubSlow",
    Severity.NOW,
    Level("hub_latency_seconds", raise_at=2.0, clear_at=1.0),
    "{value}",
    "",
    "",
    for_s=60.0,
    clear_for_s=60.0,
)
READINGS = st.lists(st.one_of(st.none(), st.sampled_from([0.2, 1.5, 3.0])), max_size=120)


def run(readings: list[float | None]) -> list[tuple[int, Change, Alert]]:
    history, changes = History(), []
    alerts: Alerts = {}
    for i, value in enumerate(readings):
        now = NOW + timedelta(seconds=10 * i)
        if value is not None:
            history.add(now.timestamp(), {"hub_latency_seconds": value})
        alerts, turned = step([SLOW], alerts, history, now)
        changes += [(i, transition.change, transition.alert) for transition in turned]
        for alert in alerts.values():
            assert alert.raised == (alert.state is not AlertState.PENDING)
    return changes


@given(READINGS)
def test_an_alert_is_raised_once_in_an_episode_and_resolved_once(readings: list[float | None]) -> None:
    ends = [change for _, change, _ in run(readings) if change in {Change.RAISED, Change.RESOLVED}]
    assert ends == [(Change.RAISED, Change.RESOLVED)[i % 2] for i in range(len(ends))]


@given(READINGS)
def test_it_is_raised_by_bad_readings_alone_and_resolved_by_good_ones_alone(readings: list[float | None]) -> None:
    for i, change, _ in run(readings):
        if change is Change.RAISED:
            # Missing readings count as the one before, as long as that is fresh.
            assert all(value in (3.0, None) for value in readings[i - 6 : i + 1])
            assert sum(value == 3.0 for value in readings[: i + 1]) >= SLOW.looks
        if change is Change.RESOLVED:
            assert all(value in (0.2, None) for value in readings[i - 6 : i + 1])


@given(st.lists(st.floats(1.01, 1.99), min_size=20, max_size=200), st.booleans())
def test_noise_between_the_thresholds_changes_nothing(noise: list[float], firing: bool) -> None:
    begin = [3.0] * 7 if firing else []
    assert len(run([*begin, *noise])) == firing


@given(st.lists(st.sampled_from([0.2, 3.0]), min_size=30, max_size=120))
def test_two_changes_are_a_minute_apart_at_least(readings: list[float]) -> None:
    times = [i for i, _, _ in run(list(readings))]
    assert all(later - earlier >= 6 for earlier, later in pairwise(times))


def test_nine_of_ten_forecasts_of_a_noisy_line_hold_the_truth() -> None:
    chance, held, made = random.Random(5), 0, 400
    for _ in range(made):
        slope = chance.uniform(0.5, 2.0)
        samples = [
            Sample(10.0 * i, *([100 + slope * 10 * i + chance.gauss(0, 20)] * 3))  # type: ignore[arg-type]
            for i in range(60)
        ]
        limit = 5000.0
        left = time_left(samples, limit, rising=True)
        assert left is not None
        truth = (limit - samples[-1].mean) / slope
        held += left.least_s <= truth <= (left.most_s or 1e12)
    assert 0.85 <= held / made <= 0.95


@given(st.floats(0.1, 100), st.floats(1, 1e9), st.booleans())
def test_a_line_without_noise_reaches_its_limit_when_it_does(slope: float, distance: float, rising: bool) -> None:
    sign = 1 if rising else -1
    samples = [Sample(10.0 * i, *([sign * slope * 10 * i] * 3)) for i in range(20)]  # type: ignore[arg-type]
    left = time_left(samples, samples[-1].mean + sign * distance, rising=rising)
    if distance / slope > 1e8:
        return  # further away than a forecast reaches
    assert left is not None
    assert abs(left.likely_s - distance / slope) <= 1e-3 * distance / slope + 1e-6
    assert time_left(samples, samples[-1].mean + sign * distance, rising=not rising) != left


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-1e6, 1e6)), min_size=1, max_size=200))
def test_merged_samples_keep_the_extremes_and_no_step_stands_twice(readings: list[tuple[int, float]]) -> None:
    samples = [Sample(float(at), value, value, value) for at, value in sorted(readings)]
    merged = merge(samples, 60)
    assert len({sample.at for sample in merged}) == len(merged)
    assert min(sample.low for sample in merged) == min(value for _, value in readings)
    assert max(sample.high for sample in merged) == max(value for _, value in readings)
    assert all(sample.low <= sample.mean + 1e-6 and sample.mean <= sample.high + 1e-6 for sample in merged)
