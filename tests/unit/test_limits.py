from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubguard.limits import Breaker, Concurrency, Rate, backoff_s

rates = st.floats(0.01, 1000, allow_nan=False)
bursts = st.integers(1, 1000)
pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), min_size=1, max_size=120)


@given(rates, bursts, pauses)
def test_no_window_of_any_length_holds_more_than_rate_and_burst_allow(rate, burst, steps):
    limit, now, taken = Rate(rate, burst), 1000.0, []
    for step in steps:
        now += step / rate
        while limit.wait_s(now) == 0 and len(taken) < 400:
            limit.take(now)
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (taken[last] - taken[first]) + burst + 2e-3


@given(rates, bursts, pauses)
def test_whoever_waits_as_long_as_told_may_always_go_then(rate, burst, steps):
    limit, now = Rate(rate, burst), 12345.678
    for step in steps:
        now += step / rate
        wait = limit.wait_s(now)
        assert wait <= 1 / rate + 1e-6
        now += wait
        limit.take(now)


def test_a_full_burst_goes_at_once_and_then_one_per_interval():
    limit = Rate(2.0, 3)
    for _ in range(3):
        limit.take(10.0)
    assert limit.wait_s(10.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="before its time"):
        limit.take(10.4)
    limit.take(10.5)
    assert limit.wait_s(10.5) == pytest.approx(0.5)


@given(rates, st.integers(1, 20), st.lists(st.floats(-1e6, 0), min_size=1, max_size=50))
def test_a_clock_that_only_jumps_back_gives_no_burst_and_stalls_nobody(rate, burst, jumps):
    limit, now = Rate(rate, burst), 1e7
    for _ in range(burst):
        limit.take(now)
    before = limit.wait_s(now)
    for jump in jumps:
        now += jump
        after = limit.wait_s(now)
        assert after > 0
        assert after == pytest.approx(before, abs=1e-6)


def test_a_new_limit_may_be_asked_at_any_time_even_before_zero():
    limit = Rate(1.0, 1)
    limit.take(-5.0)
    assert limit.wait_s(-5.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0)])
def test_a_rate_that_limits_nothing_or_lets_nothing_through_is_no_rate(rate, burst):
    with pytest.raises(ValueError, match="rate"):
        Rate(rate, burst)


@given(st.integers(1, 60), st.data())
def test_concurrency_never_leaves_its_bounds_and_moves_by_halves_and_ones(cap, data):
    concurrency = Concurrency(cap, data.draw(st.integers(1, cap)))
    now = 0.0
    for event in data.draw(st.lists(st.sampled_from(["ok", "full", "overload"]), max_size=300)):
        now += 1.0
        before = concurrency.limit
        if event == "overload":
            concurrency.overloaded(now, now)
            assert concurrency.limit == max(concurrency.floor, before // 2)
        else:
            concurrency.succeeded(now, now, full=event == "full")
            assert concurrency.limit in (before, before + 1)
        assert concurrency.floor <= concurrency.limit <= cap


def test_ten_requests_that_fail_in_one_overload_halve_it_once():
    concurrency = Concurrency(16)
    for done in range(10):
        concurrency.overloaded(began_s=0.0, now_s=5.0 + done)
    assert concurrency.limit == 8
    concurrency.overloaded(began_s=20.0, now_s=21.0)
    assert concurrency.limit == 4


def test_what_was_out_before_a_halving_does_not_earn_growth():
    concurrency = Concurrency(4)
    concurrency.overloaded(0.0, 1.0)
    for _ in range(50):
        concurrency.succeeded(0.5, 2.0, full=True)
    assert concurrency.limit == 2


def test_successes_that_never_met_the_limit_do_not_raise_it():
    concurrency = Concurrency(8)
    concurrency.overloaded(0.0, 1.0)
    for n in range(100):
        concurrency.succeeded(2.0 + n, 3.0 + n, full=False)
    assert concurrency.limit == 4
    for n in range(4):
        concurrency.succeeded(200.0 + n, 200.0 + n, full=n == 0)
    assert concurrency.limit == 5


def test_an_overload_ends_the_round_that_was_going_well():
    concurrency = Concurrency(8)
    concurrency.overloaded(0.0, 1.0)
    for _ in range(3):
        concurrency.succeeded(2.0, 2.0, full=True)
    concurrency.overloaded(3.0, 3.0)
    concurrency.succeeded(4.0, 4.0, full=True)
    assert concurrency.limit == 2


@given(
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.001, 1e5),
    st.floats(0.001, 1e6),
)
def test_a_back_off_stays_between_zero_and_its_bound(failures, draw, base, longest):
    wait = backoff_s(failures, draw, base_s=base, max_s=longest)
    assert 0 <= wait <= longest
    assert wait <= base * 2.0 ** max(0, min(failures, 200) - 1)


def test_the_bound_of_the_back_off_doubles_until_the_longest():
    almost = 1 - 2**-53
    bounds = [round(backoff_s(n, almost, base_s=30, max_s=200)) for n in range(6)]
    assert bounds == [0, 30, 60, 120, 200, 200]


def test_the_back_off_draws_from_all_of_the_range():
    assert backoff_s(3, 0.0, base_s=10, max_s=100) == 0
    assert backoff_s(3, 0.5, base_s=10, max_s=100) == 20


def test_the_breaker_opens_after_failures_in_a_row_only():
    breaker = Breaker(3, 10.0)
    for _ in range(5):
        breaker.overloaded(0.0, probe=False)
        breaker.overloaded(0.0, probe=False)
        breaker.answered(probe=False)
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.overloaded(1.0, probe=False)
    assert breaker.state == "open"


def test_only_one_probe_is_out_at_a_time_and_not_before_its_time():
    breaker = _opened(at=0.0)
    with pytest.raises(ValueError, match="probe"):
        breaker.probe(9.0)
    breaker.probe(10.0)
    with pytest.raises(ValueError, match="probe"):
        breaker.probe(10.0)


def test_the_open_time_doubles_to_ten_times_and_starts_over_after_an_answer():
    breaker, now, waits = _opened(at=0.0), 0.0, []
    for _ in range(6):
        waits.append(breaker.probe_in_s(now))
        now += waits[-1]
        breaker.probe(now)
        breaker.overloaded(now, probe=True)
    assert waits == [10, 20, 40, 80, 100, 100]
    breaker.probe(now + 100)
    breaker.answered(probe=True)
    assert breaker.state == "closed"
    breaker.overloaded(now, probe=False)
    assert breaker.state == "open"
    assert breaker.probe_in_s(now) == 10


def test_late_answers_and_late_failures_say_nothing_once_it_is_open():
    breaker = _opened(at=0.0)
    breaker.answered(probe=False)
    assert breaker.state == "open"
    breaker.overloaded(9.0, probe=False)
    assert breaker.probe_in_s(10.0) == 0
    breaker.probe(10.0)
    breaker.answered(probe=False)
    breaker.overloaded(10.0, probe=False)
    assert breaker.state == "probing"


def test_a_probe_that_was_given_up_lets_the_next_one_go_at_once():
    breaker = _opened(at=0.0)
    breaker.probe(10.0)
    breaker.abandoned(probe=False)
    assert breaker.state == "probing"
    breaker.abandoned(probe=True)
    breaker.probe(10.0)


def test_a_clock_that_jumps_back_keeps_the_breaker_open_no_longer_than_its_time():
    assert _opened(at=1000.0).probe_in_s(0.0) == 10


@given(st.lists(st.tuples(st.sampled_from(["answer", "overload", "give up"]), st.floats(0, 200)), max_size=80))
def test_the_breaker_always_lets_a_probe_go_within_ten_times_its_open_time(events):
    breaker, now, probing = Breaker(2, 10.0), 0.0, False
    for event, pause in events:
        now += pause
        if breaker.state == "open":
            assert breaker.probe_in_s(now) <= 100
            if breaker.probe_in_s(now) == 0:
                breaker.probe(now)
                probing = True
        if event == "answer":
            breaker.answered(probe=probing)
        elif event == "overload":
            breaker.overloaded(now, probe=probing)
        else:
            breaker.abandoned(probe=probing)
        probing = False


def _opened(at: float) -> Breaker:
    breaker = Breaker(1, 10.0)
    breaker.overloaded(at, probe=False)
    return breaker
