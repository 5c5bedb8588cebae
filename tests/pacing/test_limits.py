from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubguard.pacing.limits import Breaker, Concurrency, Latency, Rate, Spread, backoff_s, cycle_in_s

rates = st.floats(0.01, 1000, allow_nan=False)
bursts = st.integers(1, 1000)
pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), min_size=1, max_size=120)


def assert_paced(times, rate, burst):
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate * (times[last] - times[first]) + burst + 2e-3


@settings(max_examples=300)
@given(
    rates,
    st.integers(1, 6),
    st.lists(
        st.tuples(st.sampled_from([0.0] * 5 + [0.3, 1.0, 5.0]), st.sampled_from("rRsSg")), min_size=10, max_size=99
    ),
)
def test_no_window_holds_more_than_allowed_however_late_what_was_reserved_is_spent(rate, burst, events):
    now = 1000.0
    limit, reserved, spent = Rate(rate, burst, now), 0, []
    for pause, event in events:
        if event in "rR":
            # "R" takes all there is at that moment, "S" spends all of it in one.
            while limit.wait_s(now) == 0:
                limit.reserve(now)
                reserved += 1
                if event == "r":
                    break
        elif event in "sS":
            for _ in range(min(reserved, 1) if event == "s" else reserved):
                limit.spend(now)
                reserved -= 1
                spent.append(now)
        elif reserved:
            limit.give_back()
            reserved -= 1
        assert reserved <= burst
        now += pause / rate
    assert_paced(spent, rate, burst)


@given(rates, bursts, pauses)
def test_whoever_waits_as_long_as_told_may_always_go_then(rate, burst, steps):
    now = 12345.678
    limit = Rate(rate, burst, now)
    for step in steps:
        now += step / rate
        wait = limit.wait_s(now)
        assert wait <= 1 / rate + 1e-6
        now += wait
        limit.reserve(now)
        limit.spend(now)


@given(rates, st.integers(2, 30), st.data())
def test_what_others_have_reserved_makes_nobody_wait_longer_than_told(rate, burst, data):
    now = 50.0
    limit = Rate(rate, burst, now)
    now += data.draw(st.floats(0, 2 * burst)) / rate
    reserved = 0
    while reserved < burst - 1 and limit.wait_s(now) == 0:
        limit.reserve(now)
        reserved += 1
    told = now + limit.wait_s(now)
    while now < told:
        if reserved and data.draw(st.booleans()):
            limit.spend(now) if data.draw(st.booleans()) else limit.give_back()
            reserved -= 1
        assert limit.wait_s(now) <= told - now + 1e-6
        now = min(told, now + data.draw(st.floats(0.1, 2)) / rate)
    assert limit.wait_s(now) == 0


def test_a_new_limit_lets_one_go_at_once_and_has_its_burst_only_later():
    limit = Rate(2.0, 3, 10.0)
    _go(limit, 10.0)
    assert limit.wait_s(10.0) == pytest.approx(0.5)
    for _ in range(3):
        _go(limit, 12.0)
    assert limit.wait_s(12.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="before its time"):
        limit.reserve(12.4)
    _go(limit, 12.5)
    assert limit.wait_s(12.5) == pytest.approx(0.5)


@given(rates, st.integers(1, 30), st.lists(st.tuples(st.floats(1, 30), st.integers(0, 40)), max_size=40))
def test_starting_anew_again_and_again_gives_no_burst(rate, burst, lives):
    """Each life begins an interval at least after the one before, with all that it wants to send at once."""
    now, spent = 0.0, []
    for lasts, wanted in lives:
        limit, before = Rate(rate, burst, now), len(spent)
        for at in (now, now + lasts / rate):
            while len(spent) - before < wanted and limit.wait_s(at) == 0:
                _go(limit, at)
                spent.append(at)
        now += (lasts + 1) / rate
    assert_paced(spent, rate, burst)


def test_while_all_of_the_burst_is_reserved_nobody_knows_how_long_to_wait():
    limit = Rate(1.0, 2, 0.0)
    limit.reserve(100.0)
    limit.reserve(100.0)
    assert limit.wait_s(1000.0) == math.inf
    limit.give_back()
    assert limit.wait_s(1000.0) == 0
    limit.reserve(1000.0)
    limit.spend(1000.0)
    limit.spend(1000.0)
    assert limit.wait_s(1000.0) == pytest.approx(1.0)


def test_what_was_not_reserved_can_be_neither_spent_nor_given_back():
    limit = Rate(1.0, 2, 0.0)
    _go(limit, 0.0)
    for mistake in (lambda: limit.spend(5.0), limit.give_back):
        with pytest.raises(ValueError, match="none is reserved"):
            mistake()


@given(rates, st.integers(1, 20), st.lists(st.floats(-1e6, 0), min_size=1, max_size=50))
def test_a_clock_that_only_jumps_back_gives_no_burst_and_stalls_nobody(rate, burst, jumps):
    now = 1e7
    limit = Rate(rate, burst, now)
    _go(limit, now)
    before = limit.wait_s(now)
    for jump in jumps:
        now += jump
        after = limit.wait_s(now)
        assert after > 0
        assert after == pytest.approx(before, abs=1e-6)


def test_a_new_limit_may_be_asked_at_any_time_even_before_zero():
    limit = Rate(1.0, 1, -5.0)
    _go(limit, -5.0)
    assert limit.wait_s(-5.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0)])
def test_a_rate_that_limits_nothing_or_lets_nothing_through_is_no_rate(rate, burst):
    with pytest.raises(ValueError, match="rate"):
        Rate(rate, burst, 0.0)


@given(st.integers(1, 60), st.data())
def test_concurrency_never_leaves_its_bounds_and_moves_by_halves_and_ones(cap, data):
    concurrency = Concurrency(cap)
    now = 0.0
    for event in data.draw(st.lists(st.sampled_from(["ok", "full", "overload"]), max_size=300)):
        now += 1.0
        before = concurrency.limit
        if event == "overload":
            concurrency.overloaded(now, now)
            assert concurrency.limit == max(1, before // 2)
        else:
            concurrency.succeeded(now, now, full=event == "full")
            assert concurrency.limit in (before, before + 1)
        assert 1 <= concurrency.limit <= cap


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


def test_no_places_at_all_are_no_concurrency():
    with pytest.raises(ValueError, match="cap of 1"):
        Concurrency(0)


@given(st.integers(1, 60), st.integers(-5, 100), st.integers(0, 5))
def test_a_concurrency_from_before_a_restart_only_ever_lowers(cap, kept, halvings):
    concurrency = Concurrency(cap)
    for n in range(halvings):
        concurrency.overloaded(float(n), float(n))
    before = concurrency.limit
    concurrency.restore(kept, 10.0)
    assert concurrency.limit == max(1, min(before, kept))


def test_a_concurrency_as_it_was_before_a_restart_still_counts_what_was_sent_before():
    concurrency = Concurrency(8)
    concurrency.restore(8, 10.0)
    concurrency.overloaded(5.0, 11.0)
    assert concurrency.limit == 4


def test_a_hub_that_does_no_check_is_made_way_for_by_nobody():
    assert cycle_in_s(60.0, 0.5, 0.0, hub_checks_at_s=0.0) == 60.0


def test_a_hub_of_any_constant_speed_has_no_rising_latency():
    for took in (0.001, 0.4, 3.0, 59.0):
        latency = Latency()
        assert not any(latency.rising(took) for _ in range(500))


@given(st.lists(st.floats(0, 0.5), max_size=200))
def test_what_stays_within_half_a_second_is_no_rise(answers):
    latency = Latency()
    assert not any(latency.rising(took) for took in answers)


@given(st.floats(0, 5), st.lists(st.floats(1, 3), max_size=200))
def test_what_stays_within_three_times_is_no_rise(usual, factors):
    latency = Latency()
    assert not any(latency.rising(usual * factor) for factor in [1.0, *factors])


def test_answers_that_take_ever_longer_are_a_rise_within_a_few():
    latency = Latency()
    assert not any(latency.rising(0.02) for _ in range(300))
    assert sum(latency.rising(1.0) for _ in range(10)) >= 6


def test_one_slow_answer_is_no_rise_and_a_very_slow_one_counts_once():
    latency = Latency()
    answers = [*[0.02] * 50, 2.0, *[0.02] * 50, 50.0, *[0.02] * 50]
    assert [took for took in answers if latency.rising(took)] == [50.0]


def test_a_hub_that_is_slower_for_good_counts_as_usual_in_the_end():
    latency = Latency()
    told = [latency.rising(took) for took in [0.02] * 100 + [30.0] * 200]
    assert any(told[100:110])
    assert not any(told[200:])


def test_a_hub_that_is_six_times_slower_for_good_counts_as_usual_after_some_forty_answers():
    latency = Latency()
    told = [latency.rising(took) for took in [1.0] * 500 + [6.0] * 400]
    assert told.index(True) == 502
    assert sum(told) == 42


def test_after_a_slow_spell_the_next_rise_is_seen_as_well_as_the_first():
    latency = Latency()
    for took in [0.02] * 50 + [5.0] * 300 + [0.02] * 50:
        latency.rising(took)
    assert sum(latency.rising(1.0) for _ in range(10)) >= 6


intervals = st.floats(1, 86_400)
draws = st.floats(0, 1, exclude_max=True)


@given(intervals, draws, st.floats(0, 1e9), st.floats(-1e9, 1e9), st.one_of(st.just(0.0), intervals))
def test_the_next_cycle_is_in_its_bounds_and_never_while_the_hub_checks(every, draw, now, checks_at, check_every):
    wait = cycle_in_s(every, draw, now, checks_at, check_every)
    quiet = min(5.0, every / 10, check_every / 10)
    assert 0.9 * every - 1e-6 <= wait <= 1.1 * every + 2 * quiet + 1e-6
    if check_every:
        since = (now + wait - checks_at) % check_every
        assert min(since, check_every - since) >= quiet - 1e-5


@given(intervals, draws)
def test_without_a_known_check_the_next_cycle_is_give_or_take_a_tenth(every, draw):
    for check in ((), (None, 300.0), (17.0, 0.0)):
        assert cycle_in_s(every, draw, 1000.0, *check) == pytest.approx(every * (0.9 + 0.2 * draw))


@given(intervals, st.floats(0, 1e6), intervals)
def test_cycles_that_make_way_for_the_hub_stay_spread(every, checks_at, check_every):
    waits = sorted(cycle_in_s(every, n / 1000, 0.0, checks_at, check_every) for n in range(1000))
    # Evenly spread, any 50 of 1000 take a twentieth of the range; where some have made way there are twice as many.
    for first, last in zip(waits, waits[50:], strict=False):
        assert last - first >= 0.2 * every * 0.05 * 0.45


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


@given(st.booleans(), st.integers(-3, 20), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e4, 1e4))
def test_whatever_was_kept_of_a_breaker_a_probe_goes_within_ten_times_its_open_time(
    opened, failures, probe_in, stays, now
):
    breaker = Breaker(3, 10.0)
    breaker.restore(opened=opened, failures=failures, probe_in_s=probe_in, stays_s=stays, now_s=now)
    assert breaker.state == ("open" if opened else "closed")
    breaker.overloaded(now, probe=False)
    if breaker.state == "open":
        assert breaker.probe_in_s(now) <= 100
        breaker.probe(now + breaker.probe_in_s(now))
        assert 10 <= breaker.stays_s <= 100


def test_a_breaker_goes_on_where_another_one_stood():
    breaker = Breaker(3, 10.0)
    breaker.restore(opened=True, failures=3, probe_in_s=7.0, stays_s=40.0, now_s=5.0)
    assert breaker.probe_in_s(5.0) == 7
    breaker.probe(12.0)
    breaker.overloaded(12.0, probe=True)
    assert breaker.probe_in_s(12.0) == 80


def test_failures_in_a_row_go_on_in_the_next_life():
    breaker = Breaker(3, 10.0)
    breaker.restore(opened=False, failures=2, probe_in_s=0.0, stays_s=10.0, now_s=0.0)
    breaker.overloaded(0.0, probe=False)
    assert breaker.state == "open"


def test_what_was_kept_does_not_close_or_prolong_a_breaker_that_knows_better():
    breaker = _opened(at=100.0)
    for opened in (True, False):
        breaker.restore(opened=opened, failures=0, probe_in_s=80.0, stays_s=100.0, now_s=105.0)
        assert (breaker.state, breaker.probe_in_s(105.0)) == ("open", 5)


def _go(limit: Rate, at: float) -> None:
    limit.reserve(at)
    limit.spend(at)


def _opened(at: float) -> Breaker:
    breaker = Breaker(1, 10.0)
    breaker.overloaded(at, probe=False)
    return breaker


@given(takes_s=st.floats(0.01, 30), limit=st.integers(1, 50), count=st.integers(2, 200))
def test_what_is_spread_goes_out_no_faster_than_it_gets_done_and_hardly_slower(takes_s: float, limit: int, count: int):
    spread, now_s = Spread(), 0.0
    assert spread.wait_s(now_s, limit) == 0, "how long one takes isn't known yet"
    spread.took(takes_s)
    for _ in range(count):
        now_s += spread.wait_s(now_s, limit)
        assert spread.wait_s(now_s, limit) == 0
        spread.goes(now_s)
    gaps_s = now_s / (count - 1)
    assert gaps_s <= takes_s / limit + 1e-6
    assert gaps_s >= min(Spread.LONGEST_S, 0.89 * takes_s / limit) - 1e-5


def test_a_clock_that_jumps_back_makes_nobody_wait_longer_than_a_gap():
    spread = Spread()
    spread.took(1.0)
    spread.goes(1000.0)
    assert spread.wait_s(0.0, 10) <= 0.1
    assert spread.wait_s(2000.0, 10) == 0


@given(takes_s=st.floats(0.01, 5), limit=st.integers(5, 50), count=st.integers(2, 200))
def test_turns_are_half_a_place_further_apart_than_the_places_allow(takes_s: float, limit: int, count: int):
    spread = Spread()
    spread.took(takes_s)
    first, *_, last = (spread.turn(100.0, limit) for _ in range(count + 1))
    gap_s = (last - first) / count
    assert first == 100.0
    assert gap_s == pytest.approx(min(1.0, takes_s / (limit - 0.5)))
    if gap_s < 1.0:
        # What began in time for its place to be free ends between two turns.
        assert takes_s / gap_s % 1 == pytest.approx(0.5)


@given(limit=st.integers(1, 50), takes_s=st.floats(0.01, 5))
def test_turns_cost_a_ninth_of_the_speed_at_most(limit: int, takes_s: float):
    spread = Spread()
    spread.took(takes_s)
    assert spread.turn(0.0, limit) == 0.0
    assert spread.turn(0.0, limit) <= takes_s / limit / 0.9 + 1e-9


def test_the_first_turns_are_apart_before_any_act_is_done():
    spread = Spread()
    assert [round(spread.turn(7.0, 10), 3) for _ in range(4)] == [7.0, 7.105, 7.211, 7.316]


def test_a_turn_after_a_pause_comes_at_once():
    spread = Spread()
    spread.turn(0.0, 10)
    assert spread.turn(60.0, 10) == 60.0


def test_a_clock_that_jumps_back_moves_no_turn_further_away():
    spread = Spread()
    spread.turn(1000.0, 10)
    assert spread.turn(0.0, 10) <= 0.2
