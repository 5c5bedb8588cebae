from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualClock

from hubguard.clients.budget import Budget, Lane
from hubguard.errors import BudgetExhausted

ACT, RESERVED = Lane.ACT, Lane.RESERVED

lanes = st.sampled_from(Lane)
rates = st.sampled_from([0.05, 0.7, 1.0, 3.0, 20.0, 333.3])
endings = st.sampled_from(["ok", "ok", "ok", "no", "overload", "busy", "silent", "error"])


class Traffic:
    """Sends requests through a budget on a virtual clock, and notes when each began."""

    def __init__(self, **numbers) -> None:
        self.clock = VirtualClock()
        self.budget = Budget(clock=self.clock, **{"rate": 1.0, "burst": 1, "concurrency": 10, **numbers})
        self.began: dict[Lane, list[float]] = defaultdict(list)
        self.order: list[object] = []
        self.in_flight = self.most_in_flight = self.refused = 0

    async def send(self, lane, *, after=0.0, takes=0.0, ending="ok", safe=True, name=None):
        await self.clock.sleep(after)
        async with self.budget.slot(lane, safe=safe) as slot:
            self.began[lane].append(self.clock.monotonic_s())
            self.order.append(name)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                await self.clock.sleep(takes)
                if ending == "ok":
                    slot.succeeded()
                elif ending in ("no", "overload"):
                    slot.failed(overload=ending == "overload")
                elif ending == "busy":
                    slot.retry_after(3.0)
                    slot.failed(overload=True)
                elif ending == "error":
                    raise RuntimeError("the request came to nothing")
            finally:
                self.in_flight -= 1

    async def send_whatever_comes(self, *args, **kwargs):
        try:
            await self.send(*args, **kwargs)
        except BudgetExhausted:
            self.refused += 1
        except RuntimeError:
            pass

    def run(self, *requests):
        async def all_of_them():
            await asyncio.gather(*requests)

        async def main():
            await self.clock.run(all_of_them())

        asyncio.run(main())
        assert self.budget.use().in_flight == self.in_flight == 0


def assert_paced(times, rate, burst):
    times = sorted(times)
    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = rate * (times[last] - times[first]) + burst
            assert last - first + 1 <= allowed + 1e-3, f"{last - first + 1} requests where {allowed} are allowed"


@settings(max_examples=60, deadline=None)
@given(
    rates,
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(
        st.tuples(lanes, st.floats(0, 30), st.floats(0, 30), endings, st.booleans()),
        min_size=1,
        max_size=60,
    ),
)
def test_whatever_fails_no_window_holds_more_than_rate_and_burst_and_all_come_to_an_end(
    rate, burst, concurrency, requests
):
    traffic = Traffic(rate=rate, burst=burst, concurrency=concurrency)
    traffic.run(
        *(
            traffic.send_whatever_comes(lane, after=after / rate, takes=takes / rate, ending=ending, safe=safe)
            for lane, after, takes, ending, safe in requests
        )
    )
    assert_paced(traffic.began[ACT] + traffic.began[RESERVED], rate, burst)
    assert_paced(traffic.began[ACT], rate * 0.8, max(1, int(burst * 0.8)))
    assert traffic.most_in_flight <= concurrency
    assert len(traffic.order) + traffic.refused == len(requests)


@settings(max_examples=40, deadline=None)
@given(rates, st.integers(1, 12), st.integers(2, 12), st.integers(1, 8))
def test_acting_at_its_utmost_leaves_a_fifth_of_the_rate_to_the_reserved_lane(rate, burst, concurrency, wanted):
    traffic = Traffic(rate=rate, burst=burst, concurrency=concurrency)
    start = 10 / rate
    traffic.run(
        *(traffic.send(ACT) for _ in range(60)),
        *(traffic.send(RESERVED, after=start) for _ in range(wanted)),
    )
    for index, began in enumerate(traffic.began[RESERVED]):
        assert began <= start + 1 / rate + index * 5 / rate + 1e-6
    assert_paced(traffic.began[ACT], rate * 0.8, max(1, int(burst * 0.8)))
    assert_paced(traffic.began[ACT] + traffic.began[RESERVED], rate, burst)


@pytest.mark.parametrize("concurrency", [2, 3, 10])
def test_stops_that_take_for_ever_leave_a_place_to_verification(concurrency):
    traffic = Traffic(rate=100.0, burst=100, concurrency=concurrency)
    traffic.run(
        *(traffic.send(ACT, takes=1000.0) for _ in range(concurrency + 5)),
        traffic.send(RESERVED, after=1.0),
    )
    assert traffic.began[RESERVED] == [1.0]
    assert traffic.most_in_flight <= concurrency


def test_with_one_place_for_all_verification_does_not_queue_behind_the_stops():
    traffic = Traffic(rate=100.0, burst=100, concurrency=1)
    traffic.run(*(traffic.send(ACT, takes=1.0) for _ in range(20)), traffic.send(RESERVED, after=0.5))
    assert traffic.began[RESERVED] == [1.0]


def test_even_a_hub_that_fails_all_the_time_leaves_a_place_to_verification():
    traffic = Traffic(rate=100.0, burst=100, concurrency=10, breaker_failures=1000)
    traffic.run(
        *(traffic.send(ACT, after=10.0 * n, takes=1.0, ending="overload") for n in range(8)),
        *(traffic.send(ACT, after=100.0, takes=1000.0) for _ in range(5)),
        traffic.send(RESERVED, after=101.0),
    )
    assert traffic.began[RESERVED] == [101.0]


def test_a_flood_of_looking_does_not_keep_acting_out():
    traffic = Traffic(rate=1.0, burst=1)
    traffic.run(
        *(traffic.send(RESERVED) for _ in range(20)),
        traffic.send(ACT, after=0.5),
        *(traffic.send(RESERVED, after=1.0) for _ in range(100)),
    )
    assert traffic.began[ACT][0] <= 30


@pytest.mark.parametrize("lane", list(Lane))
def test_in_one_lane_whoever_asked_first_goes_first(lane):
    traffic = Traffic(rate=1.0, burst=2, concurrency=2)
    traffic.run(*(traffic.send(lane, name=n, takes=(7 * n) % 3) for n in range(20)))
    assert traffic.order == list(range(20))


async def test_a_waiter_that_is_cancelled_costs_the_others_nothing():
    clock = VirtualClock()
    budget = Budget(rate=1.0, burst=1, concurrency=1, clock=clock)
    began = []

    async def send(name):
        async with budget.slot(RESERVED, safe=True) as slot:
            began.append((name, clock.monotonic_s()))
            slot.succeeded()

    async def scene():
        tasks = {name: asyncio.create_task(send(name)) for name in "abcd"}
        await asyncio.sleep(0)
        tasks["b"].cancel()
        tasks["c"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    await clock.run(scene())
    assert began == [("a", 0.0), ("d", 1.0)]
    assert budget.use().in_flight == 0


async def test_a_waiter_cancelled_in_the_very_turn_it_was_let_in_gives_its_place_back():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=1000, concurrency=1, clock=clock)

    async def scene():
        holder = budget.slot(RESERVED, safe=True)
        await holder.__aenter__()
        waiter = asyncio.create_task(budget.slot(RESERVED, safe=True).__aenter__())
        await asyncio.sleep(0)
        await holder.__aexit__(None, None, None)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert budget.use().in_flight == 0
        async with budget.slot(RESERVED, safe=True):
            assert budget.use().in_flight == 1

    await clock.run(scene())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(lanes, st.floats(0, 10), st.floats(0, 5), st.floats(0, 12)), min_size=1, max_size=40),
    st.integers(1, 4),
)
def test_cancelling_at_any_moment_never_loses_a_place_nor_wakes_nobody(requests, concurrency):
    traffic = Traffic(rate=5.0, burst=2, concurrency=concurrency)

    async def cancelled(lane, after, takes, cancel_after):
        task = asyncio.create_task(traffic.send(lane, after=after, takes=takes))
        await traffic.clock.sleep(cancel_after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    last = traffic.send(RESERVED, after=20.0)
    traffic.run(*(cancelled(*request) for request in requests), last, traffic.send(ACT, after=20.0))
    assert traffic.began[RESERVED][-1] < 25
    assert traffic.began[ACT][-1] < 25


def test_an_open_breaker_turns_a_delete_away_at_once_even_when_a_probe_is_due():
    traffic = _with_open_breaker(open_s=15.0)
    with pytest.raises(BudgetExhausted, match=r"left alone.*in 10 s"):
        traffic.run(traffic.send(ACT, safe=False, after=5.0))
    with pytest.raises(BudgetExhausted):
        traffic.run(traffic.send(ACT, safe=False, after=1000.0))
    assert traffic.budget.use().breaker == "open"


def test_deletes_that_were_already_waiting_are_turned_away_when_the_breaker_opens():
    traffic = Traffic(rate=1.0, burst=1, breaker_failures=1)
    traffic.run(
        traffic.send(RESERVED, ending="overload", takes=0.1),
        *(traffic.send_whatever_comes(ACT, safe=False) for _ in range(5)),
        *(traffic.send_whatever_comes(RESERVED) for _ in range(5)),
    )
    assert traffic.refused == 10
    assert traffic.began[ACT] == []


def test_one_get_alone_probes_and_its_answer_lets_all_the_others_go():
    traffic = _with_open_breaker(open_s=15.0, rate=100.0, burst=100)
    traffic.run(*(traffic.send(RESERVED, after=20.0, takes=4.0) for _ in range(5)))
    first, *others = traffic.began[RESERVED][1:]
    assert first == 20.0
    assert min(others) == 24.0
    assert traffic.budget.use().breaker == "closed"


def test_a_probe_that_fails_turns_all_others_away_and_the_next_waits_twice_as_long():
    traffic = _with_open_breaker(open_s=15.0, rate=100.0, burst=100)
    traffic.run(
        traffic.send(RESERVED, after=20.0, takes=4.0, ending="overload"),
        *(traffic.send_whatever_comes(RESERVED, after=20.5) for _ in range(5)),
        traffic.send_whatever_comes(RESERVED, after=53.0),
        traffic.send(RESERVED, after=54.5),
    )
    assert traffic.refused == 6
    assert traffic.budget.use().breaker == "closed"


def test_a_probe_that_is_cancelled_lets_the_next_one_probe():
    traffic = _with_open_breaker(open_s=15.0, rate=100.0, burst=100)

    async def cancelled():
        task = asyncio.create_task(traffic.send(RESERVED, after=20.0, takes=50.0))
        await traffic.clock.sleep(30.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    traffic.run(cancelled(), traffic.send(RESERVED, after=21.0))
    assert traffic.began[RESERVED][-1] == 30.0
    assert traffic.budget.use().breaker == "closed"


def test_a_plain_no_is_an_answer_and_does_not_open_the_breaker():
    traffic = Traffic(rate=100.0, burst=100, breaker_failures=2)
    traffic.run(*(traffic.send(RESERVED, ending="no", after=n) for n in range(10)))
    use = traffic.budget.use()
    assert (use.breaker, use.concurrency, use.requests, use.failures) == ("closed", 10, 10, 10)


def test_a_retry_after_silences_every_lane_until_then():
    traffic = Traffic(rate=100.0, burst=100)
    traffic.run(
        traffic.send(RESERVED, ending="busy"),
        traffic.send(RESERVED, after=1.0),
        traffic.send(ACT, after=1.0, safe=False),
    )
    assert traffic.began[RESERVED][1] == pytest.approx(3.0)
    assert traffic.began[ACT] == [pytest.approx(3.0)]


def test_a_retry_after_of_a_year_counts_for_ten_minutes():
    traffic = Traffic()

    async def told_to_wait():
        async with traffic.budget.slot(ACT, safe=False) as slot:
            slot.retry_after(365 * 86400.0)
            slot.failed(overload=True)

    traffic.run(told_to_wait(), traffic.send(RESERVED, after=1.0))
    assert traffic.began[RESERVED] == [pytest.approx(600.0)]


def test_a_shorter_or_senseless_retry_after_does_not_end_a_longer_one():
    traffic = Traffic()

    async def told_to_wait():
        async with traffic.budget.slot(ACT, safe=False) as slot:
            for seconds in (60.0, 1.0, -5.0):
                slot.retry_after(seconds)
            slot.failed(overload=True)

    traffic.run(told_to_wait(), traffic.send(RESERVED, after=1.0))
    assert traffic.began[RESERVED] == [pytest.approx(60.0)]


def test_an_overload_halves_what_is_in_flight_and_success_wins_it_back_one_by_one():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=8)
    traffic.run(traffic.send(RESERVED, ending="overload"))
    assert traffic.budget.use().concurrency == 4
    traffic.run(*(traffic.send(ACT, takes=1.0) for _ in range(4)))
    assert traffic.budget.use().concurrency == 5
    traffic.run(*(traffic.send(ACT, takes=1.0) for _ in range(200)))
    assert traffic.budget.use().concurrency == 8


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(lanes, st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=40),
)
def test_a_lowered_budget_keeps_to_both_limits_and_never_raises_either(rate, concurrency, requests):
    traffic = Traffic(rate=10.0, burst=5, concurrency=6)

    async def scene():
        with traffic.budget.lowered(rate=rate, concurrency=concurrency):
            use = traffic.budget.use()
            assert use.rate <= 10.0
            assert use.concurrency <= 6
            await asyncio.gather(*(traffic.send(lane, after=after, takes=takes) for lane, after, takes in requests))

    traffic.run(scene())
    times = traffic.began[ACT] + traffic.began[RESERVED]
    assert_paced(times, 10.0, 5)
    assert_paced(times, rate, max(1, min(5, -(-rate // 1))))
    assert traffic.most_in_flight <= min(6, concurrency)
    assert traffic.budget.use().rate == 10.0


def test_whoever_still_waits_when_a_lowered_budget_ends_goes_on_at_full_speed():
    traffic = Traffic(rate=100.0, burst=100)

    async def scene():
        with traffic.budget.lowered(rate=0.1):
            tasks = [asyncio.create_task(traffic.send(RESERVED)) for _ in range(5)]
            await traffic.clock.sleep(5.0)
        await asyncio.gather(*tasks)

    traffic.run(scene())
    assert traffic.began[RESERVED] == [0.0, 5.0, 5.0, 5.0, 5.0]


def test_nobody_else_waits_for_a_lowered_cycle():
    """A person who looks at a page, or puts acting on hold, isn't slowed down by a cycle that another one asked for."""
    traffic = Traffic(rate=100.0, burst=100)

    async def scene():
        async def slow_cycle():
            with traffic.budget.lowered(rate=0.1, concurrency=1):
                await asyncio.gather(*(traffic.send(RESERVED, takes=1.0) for _ in range(4)))

        async def people():
            await traffic.clock.sleep(1.0)
            for _ in range(5):
                await traffic.send(RESERVED)

        await asyncio.gather(slow_cycle(), people())

    traffic.run(scene())
    assert traffic.began[RESERVED] == [0.0, *[1.0] * 5, 10.0, 20.0, 30.0]


def test_lowered_by_nothing_is_as_it_was():
    traffic = Traffic(rate=2.0, burst=5)
    with traffic.budget.lowered():
        assert traffic.budget.use().rate == 2.0
    with pytest.raises(ValueError, match="rate"), traffic.budget.lowered(rate=0.0):
        pass
    assert traffic.budget.use().concurrency == 10


def test_only_the_first_word_about_a_request_counts():
    traffic = Traffic(rate=100.0, burst=100)

    async def talks_too_much():
        async with traffic.budget.slot(RESERVED, safe=True) as slot:
            slot.succeeded()
            slot.failed(overload=True)

    traffic.run(talks_too_much())
    assert traffic.budget.use().failures == 0
    assert traffic.budget.use().concurrency == 10


def test_the_time_spent_waiting_is_counted():
    traffic = Traffic(rate=1.0, burst=1)
    traffic.run(*(traffic.send(RESERVED) for _ in range(4)))
    assert traffic.budget.use().waited_s == pytest.approx(6.0)


async def test_on_the_real_clock_it_paces_too_and_leaves_no_task_behind():
    budget = Budget(rate=200.0, burst=1, concurrency=5)
    before = time.monotonic()
    for _ in range(10):
        async with budget.slot(RESERVED, safe=True) as slot:
            slot.succeeded()
    assert time.monotonic() - before >= 9 / 200.0 - 1e-4
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _with_open_breaker(open_s: float, **numbers) -> Traffic:
    traffic = Traffic(breaker_failures=1, breaker_open_s=open_s, **numbers)
    traffic.run(traffic.send(RESERVED, ending="overload"))
    assert traffic.budget.use().breaker == "open"
    return traffic
