from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualClock

from hubguard.errors import BudgetExhausted
from hubguard.pacing.budget import Budget, Destination, Lane
from hubguard.pacing.model import PaceState

ACT, RESERVED = Lane.ACT, Lane.RESERVED
HUB, PROXY = Destination.HUB, Destination.PROXY

lanes = st.sampled_from(Lane)
rates = st.sampled_from([0.05, 0.7, 1.0, 3.0, 20.0, 333.3])
destinations = st.sampled_from(Destination)
endings = st.sampled_from(["ok", "ok", "ok", "ok, unsaid", "unsent", "no", "overload", "busy", "silent", "error"])


class Traffic:
    """Sends requests through a budget on a virtual clock, and notes when each went out."""

    def __init__(self, *, clock=None, **numbers) -> None:
        self.clock = clock or VirtualClock()
        self.budget = Budget(clock=self.clock, **{"rate": 1.0, "burst": 1, "concurrency": 10, **numbers})
        self.began: dict[Lane, list[float]] = defaultdict(list)
        self.order: list[object] = []
        self.in_flight: Counter[tuple[Destination, Lane]] = Counter()
        self.most_acting = self.most_in_flight = self.refused = self.unsent = 0

    async def send(
        self,
        lane,
        *,
        after=0.0,
        prepares=0.0,
        takes=0.0,
        ending="ok",
        safe=True,
        name=None,
        to=HUB,
        kind=None,
    ):
        await self.clock.sleep(after)
        async with self.budget.slot(lane, safe=safe, to=to, kind=kind) as slot:
            self.in_flight[to, lane] += 1
            self.most_acting = max(self.most_acting, self.in_flight[to, ACT])
            self.most_in_flight = max(self.most_in_flight, self.in_flight[to, ACT] + self.in_flight[to, RESERVED])
            try:
                await self.clock.sleep(prepares)
                if ending == "unsent":
                    self.unsent += 1
                    return
                if ending == "ok, unsaid":
                    # Who doesn't say when it goes out has it counted when it is over.
                    await self.clock.sleep(takes)
                    self._went_out(lane, name)
                    slot.succeeded()
                    return
                slot.begins()
                self._went_out(lane, name)
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
                self.in_flight[to, lane] -= 1

    def _went_out(self, lane, name):
        self.began[lane].append(self.clock.monotonic_s())
        self.order.append(name)

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
        assert self.budget.use().in_flight == self.in_flight.total() == 0


def assert_paced(times, rate, burst):
    times = sorted(times)
    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = rate * (times[last] - times[first]) + burst
            assert last - first + 1 <= allowed + 1e-3, f"{last - first + 1} requests where {allowed} are allowed"


def with_reserved_places(concurrency):
    return concurrency + max(1, int(concurrency * 0.2))


a_request = st.fixed_dictionaries(
    {
        "lane": lanes,
        "after": st.floats(0, 30),
        "prepares": st.one_of(st.just(0.0), st.floats(0, 10)),
        "takes": st.floats(0, 30),
        "ending": endings,
        "safe": st.booleans(),
        "to": destinations,
        "kind": st.sampled_from([None, "user"]),
    }
)


def sent(traffic, requests, rate):
    """All of ``requests``, with their times in intervals of ``rate``, whatever comes of them."""
    in_s = [
        {**request, **{name: request[name] / rate for name in ("after", "prepares", "takes")}} for request in requests
    ]
    return [traffic.send_whatever_comes(**request) for request in in_s]


@settings(max_examples=150, deadline=None)
@given(rates, st.integers(1, 12), st.integers(1, 12), st.lists(a_request, min_size=1, max_size=60))
def test_whatever_fails_no_window_holds_more_than_rate_and_burst_and_all_come_to_an_end(
    rate, burst, concurrency, requests
):
    traffic = Traffic(rate=rate, burst=burst, concurrency=concurrency)
    traffic.run(*sent(traffic, requests, rate))
    assert_paced(traffic.began[ACT] + traffic.began[RESERVED], rate, burst)
    assert_paced(traffic.began[ACT], rate * 0.8, max(1, int(burst * 0.8)))
    assert traffic.most_acting <= concurrency
    assert traffic.most_in_flight <= with_reserved_places(concurrency)
    assert traffic.budget.use().requests == len(traffic.order)
    assert len(traffic.order) + traffic.refused + traffic.unsent == len(requests)


@settings(max_examples=40, deadline=None)
@given(
    rates,
    st.integers(1, 12),
    st.lists(st.tuples(st.floats(1, 20), st.lists(a_request, max_size=20)), min_size=2, max_size=6),
)
def test_a_guard_that_crashes_again_and_again_keeps_to_its_pace_all_the_same(rate, burst, lives):
    clock, began = VirtualClock(), []
    for lasts, requests in lives:
        traffic = Traffic(clock=clock, rate=rate, burst=burst)

        async def life(traffic=traffic, requests=requests, lasts=lasts):
            tasks = [asyncio.create_task(request) for request in sent(traffic, requests, rate)]
            await clock.sleep(lasts / rate)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await clock.sleep(1 / rate)

        traffic.run(life())
        began += traffic.began[ACT] + traffic.began[RESERVED]
    assert_paced(began, rate, burst)


def test_the_first_request_of_a_new_guard_goes_at_once_and_the_next_at_the_pace():
    traffic = Traffic(rate=10.0, burst=100)
    traffic.run(*(traffic.send(RESERVED) for _ in range(4)))
    assert traffic.began[RESERVED] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_stops_whose_intents_are_slow_to_commit_do_not_bunch_up_when_they_go_out():
    """The journal hangs for two seconds while stops are let go at full pace; then all of them are ready at once."""
    traffic = Traffic(rate=20.0, burst=10, concurrency=100)

    async def journal_hangs(until):
        # Each is ready when the journal is.
        async with traffic.budget.slot(ACT, safe=False) as slot:
            await traffic.clock.sleep(until - traffic.clock.monotonic_s())
            slot.begins()
            traffic._went_out(ACT, None)
            slot.succeeded()

    async def scene():
        await traffic.clock.sleep(10.0)
        await asyncio.gather(*(journal_hangs(12.0) for _ in range(60)))

    traffic.run(scene())
    assert traffic.began[ACT][:8] == [12.0] * 8
    assert traffic.began[ACT][8] > 12.0
    assert_paced(traffic.began[ACT], 16.0, 8)


def test_whoever_waits_for_one_that_is_slow_to_go_out_goes_an_interval_after_it():
    traffic = Traffic(rate=1.0, burst=1)
    traffic.run(traffic.send(RESERVED, prepares=5.0, takes=1000.0), traffic.send(RESERVED, after=0.1))
    assert traffic.began[RESERVED] == [5.0, 6.0]


def test_what_was_let_go_but_never_sent_costs_the_rate_nothing():
    traffic = Traffic(rate=1.0, burst=1)
    traffic.run(*(traffic.send(RESERVED, ending="unsent", prepares=0.1) for _ in range(10)), traffic.send(RESERVED))
    assert traffic.began[RESERVED] == [pytest.approx(1.0)]
    assert traffic.budget.use().requests == 1


def test_a_request_goes_out_once_however_often_that_is_said():
    traffic = Traffic(rate=10.0, burst=10)

    async def says_it_again():
        async with traffic.budget.slot(RESERVED, safe=True) as slot:
            slot.begins()
            slot.begins()
            traffic._went_out(RESERVED, None)
            slot.succeeded()
            slot.begins()
        slot.begins()

    traffic.run(says_it_again(), traffic.send(RESERVED, after=0.05))
    assert traffic.began[RESERVED] == pytest.approx([0.0, 0.1])


@settings(max_examples=40, deadline=None)
@given(rates, st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))
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


@pytest.mark.parametrize("burst", [2, 3, 10])
def test_stops_that_are_slow_to_go_out_leave_some_of_the_burst_to_verification(burst):
    traffic = Traffic(rate=1.0, burst=burst, concurrency=100)
    traffic.run(
        *(traffic.send(ACT, after=50.0, prepares=1000.0) for _ in range(50)),
        traffic.send(RESERVED, after=60.0),
    )
    assert traffic.began[RESERVED] == [60.0]


@pytest.mark.parametrize("concurrency", [1, 2, 3, 10])
def test_as_many_stops_as_the_concurrency_may_take_for_ever_and_verification_still_has_a_place(concurrency):
    traffic = Traffic(rate=100.0, burst=100, concurrency=concurrency)
    traffic.run(
        *(traffic.send(ACT, takes=1000.0) for _ in range(concurrency + 5)),
        traffic.send(RESERVED, after=1.0),
    )
    assert traffic.began[RESERVED] == [1.0]
    assert traffic.most_acting == concurrency


def test_looking_keeps_to_its_places_too_and_acting_gets_none_of_those_on_top():
    traffic = Traffic(rate=1000.0, burst=100, concurrency=10)
    traffic.run(
        *(traffic.send(RESERVED, takes=100.0) for _ in range(30)),
        *(traffic.send(ACT, after=1.0, takes=100.0) for _ in range(30)),
    )
    assert (traffic.most_in_flight, traffic.most_acting) == (12, 10)


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
    assert traffic.most_acting <= min(6, concurrency)
    assert traffic.most_in_flight <= with_reserved_places(min(6, concurrency))
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


# rising latency


def test_a_hub_that_gets_slower_and_slower_is_asked_less_at_once_before_anything_fails():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=16)
    traffic.run(*(traffic.send(RESERVED, after=n, takes=0.02, kind="user") for n in range(50)))
    assert traffic.budget.use().concurrency == 16
    traffic.run(*(traffic.send(RESERVED, after=0.1 * n, takes=2.0, kind="user") for n in range(10)))
    assert traffic.budget.use().concurrency == 8, "those that were out together count once"
    traffic.run(*(traffic.send(RESERVED, after=10.0 * n, takes=2.0, kind="user") for n in range(5)))
    assert traffic.budget.use().concurrency == 1
    use = traffic.budget.use()
    assert (use.breaker, use.failures) == ("closed", 0)


def test_a_hub_that_is_slower_for_good_is_not_strangled_for_ever():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=8)
    traffic.run(*(traffic.send(RESERVED, after=n, takes=0.02, kind="user") for n in range(50)))
    traffic.run(*(traffic.send(RESERVED, after=10.0 * n, takes=2.0, kind="user") for n in range(100)))
    assert traffic.budget.use().concurrency == 1
    traffic.run(*(traffic.send(ACT, takes=5.0) for _ in range(200)))
    assert traffic.budget.use().concurrency == 8
    traffic.run(*(traffic.send(RESERVED, after=10.0 * n, takes=2.0, kind="user") for n in range(100)))
    assert traffic.budget.use().concurrency == 8


def test_how_long_lists_and_stops_take_says_nothing_and_each_kind_is_compared_with_itself():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=8)
    traffic.run(
        *(traffic.send(ACT, after=10.0 * n, takes=0.01 if n < 10 else 9.0) for n in range(30)),
        *(traffic.send(RESERVED, after=10.0 * n, takes=0.01, kind="user") for n in range(30)),
        *(traffic.send(RESERVED, after=10.0 * n, takes=9.0, kind="routes") for n in range(30)),
    )
    assert traffic.budget.use().concurrency == 8


def test_latency_counts_from_when_the_request_goes_out():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=8)
    for prepares in (0.0, 9.0):
        traffic.run(
            *(traffic.send(RESERVED, after=10.0 * n, prepares=prepares, takes=0.01, kind="user") for n in range(20))
        )
    assert traffic.budget.use().concurrency == 8


# two destinations


def test_a_proxy_that_is_down_costs_the_hub_neither_places_nor_its_breaker():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=8, breaker_failures=2)
    traffic.run(*(traffic.send(RESERVED, after=n, ending="overload", to=PROXY) for n in range(2)))
    use = traffic.budget.use()
    assert (use.concurrency, use.breaker) == (8, "closed")
    with pytest.raises(BudgetExhausted, match=r"The proxy failed several times.*in 15 s"):
        traffic.run(traffic.send(RESERVED, to=PROXY))
    traffic.run(*(traffic.send(RESERVED) for _ in range(5)), traffic.send(ACT, safe=False))


def test_a_hub_that_is_down_keeps_nobody_from_reading_the_proxy():
    traffic = _with_open_breaker(open_s=15.0, rate=1000.0, burst=1000)
    with pytest.raises(BudgetExhausted, match="The hub failed"):
        traffic.run(traffic.send(RESERVED))
    traffic.run(*(traffic.send(RESERVED, to=PROXY) for _ in range(5)))
    assert traffic.budget.use().breaker == "open"


def test_while_one_is_probed_requests_to_the_other_go_on():
    traffic = _with_open_breaker(open_s=15.0, rate=1000.0, burst=1000)
    traffic.run(
        traffic.send(RESERVED, after=20.0, takes=50.0),
        *(traffic.send_whatever_comes(RESERVED, after=21.0) for _ in range(2)),
        traffic.send(RESERVED, after=22.0, to=PROXY),
    )
    assert traffic.began[RESERVED][1:] == [20.0, 22.0, 70.0, 70.0]


def test_a_proxy_that_hangs_takes_no_place_from_the_hub():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=2)
    traffic.run(
        *(traffic.send(RESERVED, takes=1000.0, to=PROXY) for _ in range(10)),
        *(traffic.send(ACT, after=1.0, takes=1000.0) for _ in range(2)),
        traffic.send(RESERVED, after=2.0),
    )
    assert traffic.began[ACT] == pytest.approx([1.0, 1.001], abs=1e-2)
    assert 2.0 in traffic.began[RESERVED]


@pytest.mark.parametrize("told", list(Destination))
def test_a_retry_after_silences_nobody_but_who_sent_it(told):
    traffic = Traffic(rate=100.0, burst=100)
    other = PROXY if told is HUB else HUB
    traffic.run(
        traffic.send(RESERVED, ending="busy", to=told),
        traffic.send(RESERVED, after=1.0, to=told, name="silenced"),
        traffic.send(RESERVED, after=1.0, to=other, name="other"),
    )
    assert traffic.order == [None, "other", "silenced"]
    assert traffic.began[RESERVED] == pytest.approx([0.0, 1.0, 3.0])


def test_hub_and_proxy_share_one_rate():
    traffic = Traffic(rate=1.0, burst=1)
    traffic.run(*(traffic.send(RESERVED, to=to) for to in (HUB, PROXY, HUB, PROXY)))
    assert traffic.began[RESERVED] == pytest.approx([0.0, 1.0, 2.0, 3.0])


# restarts


def _restarted(traffic: Traffic, age_s: float, **numbers) -> Traffic:
    state = PaceState(**json.loads(json.dumps(dataclasses.asdict(traffic.budget.state()))))
    new = Traffic(rate=1000.0, burst=1000, **numbers)
    new.budget.restore(state, age_s)
    assert new.budget.use().in_flight == 0
    return new


def test_a_halved_concurrency_comes_back_halved_and_grows_again():
    traffic = Traffic(rate=1000.0, burst=1000, concurrency=16)
    traffic.run(traffic.send(RESERVED, ending="overload"))
    new = _restarted(traffic, 5.0, concurrency=16)
    assert new.budget.use().concurrency == 8
    new.run(*(new.send(ACT, takes=1.0) for _ in range(300)))
    assert new.budget.use().concurrency == 16


def test_what_comes_back_is_never_above_the_settings_nor_below_one():
    for kept, now in ((100, 4), (-3, 1), (0, 1), (2, 2)):
        traffic = Traffic(concurrency=4)
        traffic.budget.restore(PaceState(kept, "closed", 0, 0.0, 15.0), 0.0)
        assert traffic.budget.use().concurrency == now


def test_an_open_breaker_stays_open_for_what_is_left_of_its_time():
    traffic = _with_open_breaker(open_s=15.0)
    new = _restarted(traffic, 5.0, breaker_failures=1, breaker_open_s=15.0)
    for safe in (True, False):
        with pytest.raises(BudgetExhausted, match="in 6 s"):
            new.run(new.send(RESERVED if safe else ACT, safe=safe, after=4.0 if safe else 0.0))
    new.run(new.send_whatever_comes(ACT, safe=False, after=7.0), new.send(RESERVED, after=8.0))
    assert (new.refused, new.budget.use().breaker) == (1, "closed")


def test_an_age_below_zero_makes_nobody_wait_longer():
    traffic = _with_open_breaker(open_s=15.0)
    new = _restarted(traffic, -3600.0, breaker_failures=1, breaker_open_s=15.0)
    new.run(new.send(RESERVED, after=15.0))
    assert new.budget.use().breaker == "closed"


def test_a_probe_that_nobody_lived_to_hear_of_counts_as_not_answered():
    traffic = _with_open_breaker(open_s=15.0)
    states = []

    async def look():
        await traffic.clock.sleep(21.0)
        states.append(traffic.budget.state())

    traffic.run(traffic.send(RESERVED, after=20.0, takes=5.0), look())
    assert states == [PaceState(5, "open", 1, 15.0, 15.0)]


def test_a_guard_that_crashes_all_the_time_against_a_dead_hub_sends_one_probe_per_open_time():
    clock, began = VirtualClock(), []
    state = PaceState(10, "closed", 0, 0.0, 15.0)
    for _ in range(200):
        traffic = Traffic(clock=clock, rate=10.0, burst=10, breaker_failures=5, breaker_open_s=15.0)
        traffic.budget.restore(state, 1.0)

        async def life(traffic=traffic):
            await traffic.send_whatever_comes(RESERVED, ending="overload")
            await traffic.send_whatever_comes(ACT, safe=False, ending="overload")

        traffic.run(life())
        began += traffic.began[ACT] + traffic.began[RESERVED]
        state = traffic.budget.state()

        async def starts_anew():
            await clock.sleep(1.0)

        asyncio.run(clock.run(starts_anew()))
    assert len(began) <= 5 + 3 + 200 / 150 + 1, "five until it opens, then after 15, 30, 60, 120 and each 150 s"


def test_what_is_restored_late_does_not_forget_what_was_learned_meanwhile():
    traffic = _with_open_breaker(open_s=15.0, concurrency=8)
    traffic.budget.restore(PaceState(8, "closed", 0, 0.0, 15.0), 0.0)
    assert (traffic.budget.use().breaker, traffic.budget.use().concurrency) == ("open", 4)


def test_whoever_already_waits_when_an_open_breaker_is_restored_is_turned_away():
    traffic = Traffic(rate=1.0, burst=1)

    async def restores():
        await traffic.clock.sleep(0.5)
        traffic.budget.restore(PaceState(10, "open", 5, 10.0, 15.0), 0.0)
        assert traffic.refused == 0
        await traffic.clock.sleep(0.1)
        assert traffic.refused == 3

    traffic.run(*(traffic.send_whatever_comes(RESERVED) for _ in range(4)), restores())


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


# evidence that it is back


async def _fails(budget: Budget, to: Destination, times: int) -> None:
    for _ in range(times):
        async with budget.slot(Lane.RESERVED, safe=True, to=to) as slot:
            slot.failed(overload=True)


async def _asked(budget: Budget, to: Destination, *, safe: bool = True, ok: bool = True) -> None:
    async with budget.slot(Lane.RESERVED, safe=safe, to=to) as slot:
        slot.begins()
        if ok:
            slot.succeeded()
        else:
            slot.failed(overload=True)


async def test_where_it_is_known_to_be_back_one_probe_goes_at_once_and_closes_the_breaker():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=3, clock=clock)

    async def story() -> None:
        await _fails(budget, Destination.PROXY, 3)
        with pytest.raises(BudgetExhausted):
            await _asked(budget, Destination.PROXY)
        budget.try_again(Destination.PROXY)
        with pytest.raises(BudgetExhausted):
            await _asked(budget, Destination.PROXY, safe=False)
        await _asked(budget, Destination.PROXY)
        await _asked(budget, Destination.PROXY, safe=False)

    await clock.run(story())
    assert clock.monotonic_s() < 1.0


async def test_a_probe_on_such_evidence_that_fails_leaves_the_breaker_open_until_new_evidence():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=1, clock=clock)

    async def story() -> None:
        await _fails(budget, Destination.PROXY, 1)
        for _ in range(3):
            budget.try_again(Destination.PROXY)
            await _asked(budget, Destination.PROXY, ok=False)
            for _ in range(5):
                with pytest.raises(BudgetExhausted):
                    await _asked(budget, Destination.PROXY)

    await clock.run(story())
    assert budget.use().requests == 4


async def test_a_probe_on_such_evidence_that_is_given_up_may_be_followed_by_another():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=1, clock=clock)

    async def story() -> None:
        await _fails(budget, Destination.PROXY, 1)
        budget.try_again(Destination.PROXY)
        async with budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY):
            pass
        await _asked(budget, Destination.PROXY)

    await clock.run(story())


async def test_evidence_about_one_destination_says_nothing_about_the_other():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=1, clock=clock)

    async def story() -> None:
        await _fails(budget, Destination.HUB, 1)
        budget.try_again(Destination.PROXY)
        with pytest.raises(BudgetExhausted):
            await _asked(budget, Destination.HUB)

    await clock.run(story())


async def test_old_evidence_does_not_shorten_a_later_outage():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=1, clock=clock)

    async def story() -> None:
        budget.try_again(Destination.PROXY)
        await clock.sleep(1000.0)
        await _fails(budget, Destination.PROXY, 1)
        with pytest.raises(BudgetExhausted):
            await _asked(budget, Destination.PROXY)

    await clock.run(story())


async def test_evidence_that_comes_while_a_probe_is_out_outlives_its_failure():
    clock = VirtualClock()
    budget = Budget(rate=1000.0, burst=100, concurrency=10, breaker_failures=1, clock=clock)

    async def story() -> None:
        await _fails(budget, Destination.PROXY, 1)
        await clock.sleep(15.0)
        async with budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY) as slot:
            slot.begins()
            await clock.sleep(5.0)
            budget.try_again(Destination.PROXY)
            slot.failed(overload=True)
        await _asked(budget, Destination.PROXY)

    await clock.run(story())
