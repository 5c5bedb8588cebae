from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from doubles.hub import MemoryHub
from doubles.paths import route_path
from doubles.proxy import MemoryCanary, MemoryProxy
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualClock

from hubguard.errors import BudgetExhausted, HubFailed, HubRefused, JournalError
from hubguard.model import OutcomeKind, Route, Server
from hubguard.pacing.budget import Budget, Destination, Lane
from hubguard.proxy import cycle
from hubguard.proxy.cycle import ProxyWatch
from hubguard.proxy.decide import (
    Asked,
    Compared,
    Do,
    Now,
    Restoring,
    Sighting,
    State,
    Verdict,
    Watched,
    compared,
    given_up,
    looked,
    missing,
    step,
)
from hubguard.proxy.model import WatchState

NOW = datetime(2024, 3, 5, 8, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


THERE = Sighting(Verdict.THERE)
LOST = Sighting(Verdict.MISSING, fresh=True)
DEAD = Sighting(Verdict.NO_ANSWER, "connection refused")
SILENT = Sighting(Verdict.TIMEOUT, "no answer within 2 s")


def after(*seen: Sighting, from_s: float = 0.0) -> Watched:
    """What is known after these looks, a second apart."""
    watched = Watched()
    for number, sighting in enumerate(seen):
        watched = looked(watched, sighting, at(from_s + number))
    return watched


# what follows from a look


def test_a_proxy_that_has_the_canary_is_fine_since_it_was_first_seen():
    status = after(THERE, THERE, THERE).status
    assert (status.state, status.since, status.wiped_at) == (WatchState.FINE, at(0), None)


def test_a_missing_canary_means_that_the_table_is_lost_since_it_was_last_seen():
    watched = after(THERE, THERE, LOST, THERE)
    status = watched.status
    assert (status.state, status.since, status.wiped_at) == (WatchState.WIPED, at(2), at(2))
    assert watched.windows(at(9)) == ((at(1), at(9)),)


def test_one_that_was_never_seen_cannot_be_lost():
    watched = after(LOST, LOST)
    assert (watched.status.state, watched.lost_from) == (WatchState.STARTING, None)


def test_a_proxy_that_takes_no_connection_is_gone_since_then_and_its_table_may_have_survived():
    watched = after(THERE, DEAD, DEAD)
    assert (watched.status.state, watched.status.since) == (WatchState.GONE, at(1))
    watched = looked(watched, Sighting(Verdict.THERE, fresh=True), at(5))
    assert (watched.status.state, watched.status.since) == (WatchState.FINE, at(5))
    assert "kept its table" in watched.status.why
    assert watched.windows(at(9)) == ()


def test_a_connection_that_ended_is_no_restart_where_the_start_is_the_same():
    watched = after(THERE, Sighting(Verdict.THERE, started_at=at(-99)), DEAD)
    assert "restarted" not in looked(watched, Sighting(Verdict.THERE, fresh=True, started_at=at(-98)), at(5)).status.why
    again = looked(watched, Sighting(Verdict.THERE, fresh=True, started_at=at(4)), at(5)).status
    assert "restarted" in again.why
    assert again.proxy_started_at == at(4)


def test_one_timeout_is_a_hiccup_and_two_in_a_row_are_a_hang():
    assert after(THERE, SILENT).status.state is WatchState.FINE
    assert after(THERE, SILENT, THERE, SILENT).status.state is WatchState.FINE
    hung = after(THERE, SILENT, SILENT, SILENT)
    assert (hung.status.state, hung.status.since) == (WatchState.HANGS, at(2))
    assert hung.windows(at(9)) == (), "it may answer again, with all its routes"
    assert looked(hung, THERE, at(4)).status.state is WatchState.FINE


def test_a_public_port_that_fails_twice_while_the_api_answers_makes_the_proxy_deaf():
    no, yes = Sighting(Verdict.THERE, public=False), Sighting(Verdict.THERE, public=True)
    assert after(THERE, no).status.state is WatchState.FINE
    assert after(THERE, no, yes, no).status.state is WatchState.FINE
    deaf = after(THERE, no, THERE, no)
    assert (deaf.status.state, deaf.status.since) == (WatchState.DEAF, at(3))
    assert looked(deaf, yes, at(4)).status.state is WatchState.FINE


def test_a_proxy_that_refuses_the_token_is_unusable_and_says_why():
    watched = after(THERE, Sighting(Verdict.UNUSABLE, "The proxy refuses HubGuard (403)."))
    assert (watched.status.state, watched.status.why) == (WatchState.UNUSABLE, "The proxy refuses HubGuard (403).")


def test_a_table_that_is_whole_again_ends_the_loss_and_leaves_its_window():
    lost = compared(after(THERE, LOST, THERE), ("/user/a",), at(4))
    assert (lost.status.state, lost.status.missing, lost.status.restored_at) == (WatchState.WIPED, ("/user/a",), None)
    whole = compared(lost, (), at(7))
    assert (whole.status.state, whole.status.missing, whole.status.restored_at) == (WatchState.FINE, (), at(7))
    assert whole.windows(at(99)) == ((at(0), at(7)),)


def test_the_window_of_an_earlier_loss_stands_beside_that_of_the_loss_under_way():
    whole = compared(after(THERE, LOST, THERE), (), at(3))
    lost = looked(looked(whole, THERE, at(50)), LOST, at(60))
    assert lost.windows(at(70)) == ((at(0), at(3)), (at(50), at(70)))


def test_a_restart_that_lost_the_table_is_not_told_as_one_that_kept_it():
    whole = compared(after(Sighting(Verdict.THERE, started_at=at(-99)), DEAD, LOST, THERE), (), at(4))
    known = looked(whole, Sighting(Verdict.THERE, started_at=at(2)), at(5)).status
    assert (known.state, known.why, known.proxy_started_at) == (WatchState.FINE, "", at(2))
    later = looked(looked(whole, DEAD, at(7)), Sighting(Verdict.THERE, fresh=True, started_at=at(8)), at(9)).status
    assert "kept its table" in later.why


def test_a_loss_during_a_loss_is_the_same_one():
    watched = after(THERE, LOST, THERE, DEAD, LOST, THERE)
    assert watched.status.wiped_at == at(4)
    assert watched.windows(at(9)) == ((at(0), at(9)),)


def test_a_new_loss_is_not_restored_because_an_old_one_was():
    whole = compared(after(THERE, LOST, THERE), (), at(3))
    again = looked(whole, LOST, at(4))
    assert (again.status.restored_at, again.status.wiped_at) == (None, at(4))


def test_what_is_given_up_is_told_and_its_window_ends():
    lost = compared(after(THERE, LOST, THERE), ("/user/a", "/user/b"), at(4))
    left = given_up(lost, at(600))
    assert (left.status.state, left.status.missing) == (WatchState.FINE, ("/user/a", "/user/b"))
    assert "2 of the routes aren't back" in left.status.why
    assert left.status.restored_at is None
    assert left.windows(at(999)) == ((at(0), at(600)),)


def test_routes_of_others_in_their_place_are_missing():
    table = {"/user/a": Route("/user/a", "t", "a", ""), "/user/b": Route("/user/b", "t", "a", ""), "/": Route("/", "t")}
    expected = {"/user/a": ("a", ""), "/user/b": ("b", ""), "/": None, "/services/x": None}
    assert missing(table, expected) == ("/services/x", "/user/b")
    assert missing({}, {}) == ()


sightings = st.builds(
    Sighting,
    verdict=st.sampled_from(Verdict),
    public=st.sampled_from([None, True, False]),
    fresh=st.booleans(),
    started_at=st.sampled_from([None, at(-50), at(-7)]),
)


@given(st.lists(st.one_of(sightings, st.sampled_from(["whole", "lacking", "given up"])), max_size=30))
def test_whatever_is_seen_windows_are_in_order_and_only_a_lost_table_is_wiped(story):
    watched = Watched()
    for number, seen in enumerate(story):
        before = watched
        if isinstance(seen, Sighting):
            watched = looked(watched, seen, at(number))
        elif seen == "given up":
            watched = given_up(watched, at(number))
        else:
            watched = compared(watched, () if seen == "whole" else ("/x",), at(number))
        status = watched.status
        if status.state is WatchState.WIPED:
            assert watched.lost_from is not None
            assert status.restored_at is None
        if status.state is not before.status.state:
            assert status.since == at(number)
        ends = [moment for window in watched.windows(at(number)) for moment in window]
        assert ends == sorted(ends)


# what to do next


def now(seconds: float, **more) -> Now:
    given = {"may_act": True, "asking": False, "knows_routes": True, "give_up_s": 600.0, **more}
    return Now(at=at(seconds), s=seconds, draw=0.5, **given)


def lost_at(seconds: float) -> State:
    """A table that was lost then, with the canary planted again."""
    state, _ = step(State(), THERE, now(seconds - 1))
    state, command = step(state, LOST, now(seconds))
    assert command.do is Do.PLANT
    return state


def test_a_lost_table_is_read_and_the_hub_asked_for_what_is_missing():
    state, command = step(lost_at(1), THERE, now(1))
    assert command.do is Do.COMPARE
    state, command = step(state, Compared(("/user/a",), 1), now(1))
    assert (command.do, state.watched.status.missing) == (Do.ASK_HUB, ("/user/a",))
    state, command = step(state, THERE, now(2, asking=True))
    assert (command.do, command.watch_connection) == (Do.WAIT, True)
    state, command = step(state, Asked(1, answered=True), now(3, asking=True))
    state, command = step(state, Compared((), 1), now(3, asking=True))
    assert (command.do, state.watched.status.state) == (Do.WAIT, WatchState.FINE)


@pytest.mark.parametrize(
    ("seen", "watches"),
    [(THERE, True), (Sighting(Verdict.THERE, fresh=True), False), (SILENT, False), (DEAD, False)],
)
def test_only_a_connection_that_outlived_a_look_shows_by_its_end_that_the_proxy_is_gone(seen, watches):
    """One that ends each time it was used would have a look follow the other without a pause."""
    state, _ = step(State(), THERE, now(0))
    _, command = step(state, seen, now(1))
    assert (command.do, command.watch_connection) == (Do.WAIT, watches)


def test_a_table_that_is_whole_all_the_same_is_not_restored():
    state, _ = step(lost_at(1), THERE, now(1))
    state, command = step(state, Compared((), 1), now(1))
    assert (command.do, state.watched.status.state) == (Do.WAIT, WatchState.FINE)


def test_what_was_read_of_a_table_that_is_lost_since_counts_for_nothing():
    state, _ = step(lost_at(1), THERE, now(1))
    state, _ = step(state, LOST, now(2))
    state, _ = step(state, Compared((), 1), now(2))
    assert state.watched.status.state is WatchState.WIPED


def test_a_hub_that_may_not_be_asked_is_not_and_the_table_is_read_ever_less_often():
    state, gaps, at_s = lost_at(1), [], 1.0
    while at_s < 100:
        state, command = step(state, THERE, now(at_s, may_act=False))
        assert command.do in (Do.WAIT, Do.COMPARE)
        if command.do is Do.COMPARE:
            gaps.append(at_s)
            state, command = step(state, Compared(("/user/a",), 1), now(at_s, may_act=False))
        assert command.do is Do.WAIT
        at_s += command.wait_s
    assert len(gaps) < 15
    assert "doesn't ask the hub" in state.watched.status.why


def waits(seen: Sighting, since_s: float, draw: float = 0.5) -> float:
    """Seconds until the next look, that long after ``seen`` was seen for the first time."""
    state, _ = step(State(), THERE, now(0))
    state, _ = step(state, seen, now(1))
    _, command = step(state, seen, replace(now(1 + since_s), draw=draw))
    return command.wait_s


def test_a_port_that_is_gone_is_tried_quickly_for_ten_seconds_and_slowly_from_then_on():
    assert [waits(DEAD, since_s) for since_s in (0, 9.9, 10, 3600)] == [0.1, 0.1, 2.0, 2.0]
    assert [waits(DEAD, 60, draw) for draw in (0.0, 0.5)] == [pytest.approx(4 / 3), 2.0]


def test_a_proxy_that_does_not_know_us_is_looked_at_every_five_seconds_and_any_other_in_one_to_two():
    unusable = Sighting(Verdict.UNUSABLE, "refused")
    assert [waits(unusable, 5, draw) for draw in (0.0, 0.5)] == pytest.approx([10 / 3, 5.0])
    assert [waits(seen, 5, draw) for seen in (THERE, SILENT) for draw in (0.0, 0.5)] == [1.0, 1.5, 1.0, 1.5]


def test_requests_to_a_hub_that_fails_come_ever_later_and_to_one_that_refuses_every_ten_minutes():
    state, gaps = lost_at(1), []
    for _ in range(8):
        state, _ = step(state, Asked(state.restoring.starts), now(100))
        gaps.append(state.restoring.ask_at_s - 100)
    assert gaps == [4.0, 6.0, 10.0, 18.0, 32.0, 32.0, 32.0, 32.0]
    state, _ = step(state, Asked(state.restoring.starts, refused="no"), now(100))
    assert state.restoring.ask_at_s == 700


def test_a_restart_since_the_request_makes_the_next_one_due_in_two_seconds_however_many_failed():
    state = replace(lost_at(1), restoring=Restoring(asked=7, starts=2))
    state, _ = step(state, Asked(1), now(100))
    assert (state.restoring.asked, state.restoring.ask_at_s) == (0, 102)


@pytest.mark.parametrize(("due_s", "expected_s"), [(100.0, 12.0), (11.0, 11.0)])
def test_a_restart_brings_the_next_request_forward_and_never_puts_it_off(due_s: float, expected_s: float):
    before, _ = step(State(), THERE, now(0))
    restoring = Restoring(asked=5, asked_at_s=10.0, ask_at_s=due_s)
    after_restart, _ = step(replace(before, restoring=restoring), LOST, now(50))
    assert (after_restart.restoring.asked, after_restart.restoring.ask_at_s) == (0, expected_s)
    for still in (replace(restoring, refused="no"), restoring):
        seen = LOST if still.refused else replace(LOST, fresh=False)
        same, _ = step(replace(before, restoring=still), seen, now(50))
        assert (same.restoring.asked, same.restoring.ask_at_s) == (5, due_s)


def test_failures_are_forgotten_only_after_more_than_a_minute_without_a_loss():
    before, _ = step(State(), THERE, now(0))
    before = replace(before, restoring=Restoring(asked=5, whole_s=10.0))
    for event in (THERE, None):
        assert step(before, event, now(70))[0].restoring.asked == 5
        assert step(before, event, now(70.1))[0].restoring.asked == 0


def test_a_lost_table_is_compared_after_one_second_and_then_half_as_long_again_each_time_up_to_a_quarter_minute():
    state, at_s, gaps = lost_at(1), 1.0, []
    for _ in range(9):
        state, command = step(state, THERE, now(at_s, may_act=False))
        assert command.do is Do.COMPARE
        gaps.append(state.restoring.compare_at_s - at_s)
        assert step(state, THERE, now(state.restoring.compare_at_s - 0.1, may_act=False))[1].do is Do.WAIT
        at_s = state.restoring.compare_at_s
    assert gaps == pytest.approx([1.0, 1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625, 15.0, 15.0])


def test_a_lost_table_is_waited_for_until_the_time_is_up_and_no_longer():
    lacking = Compared(("/user/a",), 1)
    for at_s, state in ((600.9, WatchState.WIPED), (601, WatchState.FINE)):
        assert step(lost_at(1), lacking, now(at_s, may_act=False))[0].watched.status.state is state


def test_what_is_due_while_a_table_is_lost_is_waited_for_and_a_tenth_of_a_second_at_least():
    restoring = Restoring(lost_s=1.0, losses=1, compare_at_s=50.4, ask_at_s=50.2)
    state = replace(lost_at(1), restoring=restoring)
    for at_s, may_act, asking, expected_s in (
        (50.0, True, False, 0.2),
        (50.0, False, False, 0.4),
        (50.0, True, True, 1.5),
        (40.0, True, False, 1.5),
        (50.15, False, False, 0.25),
        (50.15, True, False, 0.1),
    ):
        _, command = step(state, None, now(at_s, may_act=may_act, asking=asking))
        assert (command.do, command.wait_s) == (Do.WAIT, pytest.approx(expected_s)), (at_s, may_act, asking)


@pytest.mark.parametrize(("apart_s", "restarted"), [(2.0, False), (2.1, True), (-2.0, False), (-2.1, True)])
def test_starts_that_differ_by_two_seconds_are_one_start(apart_s: float, restarted: bool):
    watched = after(Sighting(Verdict.THERE, started_at=at(-99)))
    again = looked(watched, Sighting(Verdict.THERE, started_at=at(-99 + apart_s)), at(5)).status
    assert ("restarted" in again.why) is restarted


# the loop


class Checks:
    """What the watch asks before it has the hub check its routes, as the world has it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def may_act(self) -> bool:
        return self._world.may_act

    async def record(self, what: str, outcome: object) -> None:
        await self._world.record(what, outcome)


class World:
    """A hub and its proxy in memory, watched; ``recorded`` is what went to the journal, with its time."""

    def __init__(self, *, servers: int = 5, public_url: bool = True, draw: float = 0.5) -> None:
        self.clock = VirtualClock()
        self.budget = Budget(rate=20.0, burst=10, concurrency=10, clock=self.clock)
        self.proxy = MemoryProxy(clock=self.clock, budget=self.budget)
        self.hub = MemoryHub(clock=self.clock, budget=self.budget)
        self.hub.routes = self.proxy.table
        self.expected = {}
        for number in range(servers):
            user = f"user{number}"
            self.hub.add(Server(user, "", True, None, self.clock.now(), self.clock.now()))
            self.expected[route_path("/", user, "")] = (user, "")
        self.canary = MemoryCanary(self.proxy, clock=self.clock, budget=self.budget, has_public_url=public_url)
        self.may_act = True
        self.recorded: list[tuple[float, object]] = []
        self.refuses = False
        self.watch = ProxyWatch(
            self.canary,
            self.proxy,
            self.hub,
            self.budget,
            self.clock,
            expected=lambda: self.expected,
            checks=Checks(self),
            draw=lambda: draw,
        )
        self.in_flight = self.most_in_flight = 0

    async def record(self, why: str, outcome: object) -> None:
        if self.refuses:
            raise JournalError("acting is on hold")
        assert why == cycle.LOST
        self.recorded.append((self.clock.monotonic_s(), outcome))

    @property
    def posts(self) -> list[float]:
        return [request.at_s for request in self.hub.requests if request.call == "check-routes"]

    def run(self, story) -> None:
        async def watched() -> None:
            running = asyncio.ensure_future(self.watch.run())
            try:
                await self.clock.sleep(5.0)
                assert self.watch.status.state is WatchState.FINE
                await story()
                if running.done():
                    running.result()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(self._timed(watched()))

    async def _timed(self, awaitable) -> None:
        await self.clock.run(awaitable)

    def state(self) -> WatchState:
        return self.watch.status.state

    def whole(self) -> bool:
        return not missing(self.proxy.table, self.expected)


def since(world: World, moment: datetime) -> float:
    return (moment - world.clock.now()).total_seconds() + world.clock.monotonic_s()


def test_a_killed_proxy_shows_at_once_and_its_routes_are_back_in_the_second_after_it_is():
    world = World()

    async def story() -> None:
        killed_s = world.clock.monotonic_s()
        world.proxy.kill()
        await world.clock.sleep(0.01)
        assert world.state() is WatchState.GONE
        assert since(world, world.watch.status.since) - killed_s < 0.01
        await world.clock.sleep(4.0)
        assert world.posts == [], "a hub that asks a proxy that is gone is held up by it"
        world.proxy.start()
        await world.clock.sleep(1.0)
        assert world.whole()
        assert world.state() is WatchState.FINE
        assert len(world.posts) == 1
        assert [outcome and outcome.kind for _, outcome in world.recorded] == [None, OutcomeKind.DONE]
        assert world.recorded[0][0] <= world.posts[0]

    world.run(story)


def test_a_table_that_is_wiped_under_a_living_proxy_is_seen_by_the_next_look():
    world = World()

    async def story() -> None:
        wiped_s = world.clock.monotonic_s()
        world.proxy.wipe()
        await world.clock.sleep(3.0)
        assert world.whole()
        assert world.posts[0] - wiped_s <= 2.1
        ((begins, ends),) = world.watch.restores
        assert since(world, begins) <= wiped_s <= since(world, ends)

    world.run(story)


def test_where_only_the_canary_is_gone_the_hub_is_not_asked():
    world = World()

    async def story() -> None:
        world.proxy.remove(world.canary.path)
        await world.clock.sleep(10.0)
        assert world.posts == []
        assert world.canary.path in world.proxy.table
        assert world.state() is WatchState.FINE

    world.run(story)


def test_healthy_it_is_asked_once_in_one_to_two_seconds_and_the_hub_never():
    world = World()

    async def story() -> None:
        before = len(world.canary.times)
        await world.clock.sleep(600.0)
        looks = world.canary.times[before:]
        gaps = [later - sooner for sooner, later in itertools.pairwise(looks)]
        assert min(gaps) >= 1.0
        assert max(gaps) <= 2.05
        assert world.hub.requests == []
        assert world.proxy.requests == [], "the table is read only where it is lost"

    world.run(story)


def test_while_acting_is_not_allowed_it_only_reports_and_asks_as_soon_as_it_is():
    world = World()
    world.may_act = False

    async def story() -> None:
        world.proxy.kill()
        world.proxy.start()
        await world.clock.sleep(60.0)
        assert world.posts == []
        assert world.recorded == []
        assert world.state() is WatchState.WIPED
        assert world.watch.status.missing == tuple(sorted(world.expected))
        assert len(world.proxy.requests) < 15, "nor is the table read all the time"
        world.may_act = True
        await world.clock.sleep(5.0)
        assert len(world.posts) == 1
        assert world.whole()

    world.run(story)


def test_routes_that_the_hub_has_restored_itself_end_the_loss_without_asking_it():
    world = World()
    world.may_act = False

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(30.0)
        for path, (user, server) in world.expected.items():
            world.proxy.add(path, "http://127.0.0.1:1", user, server)
        await world.clock.sleep(16.0)
        assert world.state() is WatchState.FINE
        assert world.watch.status.restored_at is not None
        assert world.posts == []

    world.run(story)


def test_what_the_journal_refuses_is_not_sent():
    world = World()
    world.refuses = True

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(120.0)
        assert world.posts == []
        assert world.state() is WatchState.WIPED

    world.run(story)


def test_a_proxy_that_hangs_is_told_and_the_hub_is_not_sent_to_it():
    world = World()

    async def story() -> None:
        world.proxy.hangs = True
        await world.clock.sleep(10.0)
        assert world.state() is WatchState.HANGS
        await world.clock.sleep(200.0)
        assert world.posts == []
        looks = len(world.canary.times)
        await world.clock.sleep(60.0)
        assert 10 < len(world.canary.times) - looks < 40
        world.proxy.hangs = False
        await world.clock.sleep(6.0)
        assert world.state() is WatchState.FINE
        assert world.posts == []

    world.run(story)


def test_a_proxy_that_hangs_after_it_was_wiped_is_left_alone_until_it_answers():
    world = World()

    async def story() -> None:
        world.proxy.kill()
        world.proxy.start()
        world.proxy.hangs = True
        await world.clock.sleep(30.0)
        assert world.posts == []
        world.proxy.hangs = False
        await world.clock.sleep(5.0)
        assert world.whole()
        assert len(world.posts) == 1

    world.run(story)


def test_a_deaf_proxy_is_told_within_a_quarter_of_a_minute():
    world = World()

    async def story() -> None:
        world.proxy.deaf = True
        await world.clock.sleep(15.0)
        assert world.state() is WatchState.DEAF
        world.proxy.deaf = False
        await world.clock.sleep(3.0)
        assert world.state() is WatchState.FINE
        assert world.posts == []

    world.run(story)


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_storm_of_restarts_is_no_storm_of_requests_to_the_hub(draw):
    world = World(draw=draw)

    async def story() -> None:
        for _ in range(200):
            world.proxy.kill()
            await world.clock.sleep(0.5)
            world.proxy.start()
            await world.clock.sleep(2.5)
        gaps = [later - sooner for sooner, later in itertools.pairwise(world.posts)]
        assert min(gaps) >= 2.0
        assert len(world.posts) <= 200, "one for each start at most"
        await world.clock.sleep(5.0)
        assert world.whole(), "and the last start is met at once, as the first was"

    world.run(story)


def test_a_table_that_is_lost_again_and_again_by_a_proxy_that_was_not_restarted_is_met_ever_less_often():
    world = World()

    async def story() -> None:
        for _ in range(200):
            await world.clock.sleep(3.0)
            world.proxy.wipe()
        gaps = [later - sooner for sooner, later in itertools.pairwise(world.posts)]
        assert sum(gaps[10:]) / len(gaps[10:]) > 12
        await world.clock.sleep(70.0)
        assert world.whole()

    world.run(story)


def test_what_failed_through_deaths_of_the_proxy_does_not_delay_what_its_next_start_asks_for():
    world = World(draw=0.999)
    world.hub.fault = lambda request: HubFailed("the proxy is away (500)", status=500)

    async def story() -> None:
        for _ in range(4):
            world.proxy.kill()
            world.proxy.start()
            await world.clock.sleep(25.0)
        world.hub.fault = None
        world.budget.try_again(Destination.HUB)
        world.proxy.kill()
        world.proxy.start()
        await world.clock.sleep(5.0)
        assert world.whole()

    world.run(story)


def test_a_hub_that_refuses_is_left_in_peace_for_long_and_what_is_missing_is_told():
    world = World()
    world.hub.fault = lambda request: HubRefused("The token lacks the scope proxy.")

    async def story() -> None:
        for _ in range(5):
            world.proxy.kill()
            world.proxy.start()
            await world.clock.sleep(100.0)
            assert "lacks the scope proxy" in world.watch.status.why
        assert len(world.posts) == 1
        assert [outcome and outcome.kind for _, outcome in world.recorded] == [None, OutcomeKind.FAILED]
        await world.clock.sleep(400.0)
        assert world.state() is WatchState.FINE
        assert "lacks the scope proxy" in world.watch.status.why, "given up, and still told"

    world.run(story)


def test_routes_of_servers_that_were_stopped_since_the_last_look_are_not_missing():
    world = World(servers=40)

    async def story() -> None:
        await world.clock.sleep(100.0)
        for number in range(15):
            world.hub.change(f"user{number}", ready=False)
        world.proxy.kill()
        world.proxy.start()
        await world.clock.sleep(10.0)
        assert world.state() is WatchState.FINE
        assert world.watch.status.missing == ()
        assert len(world.posts) == 1
        questions = [request for request in world.hub.requests if request.call == "get"]
        assert len(questions) == 15, "each once"
        ends = [outcome for _, outcome in world.recorded if outcome is not None]
        assert [end.kind for end in ends] == [OutcomeKind.DONE]

    world.run(story)


def test_a_server_whose_route_stays_missing_is_read_once_a_minute():
    world = World()
    stopped, path = next((key, path) for path, key in world.expected.items() if key is not None)

    async def story() -> None:
        # The hub has let the route go, and calls the server ready all the same.
        check = world.hub.check_routes

        async def check_all_but_one(**how):
            await check(**how)
            world.proxy.table.pop(path, None)

        world.hub.check_routes = check_all_but_one
        world.proxy.wipe()
        await world.clock.sleep(150.0)
        asked = [request.at_s for request in world.hub.requests if request.call == "get"]
        assert 2 <= len(asked) <= 3, stopped
        assert all(later - sooner >= 60 for sooner, later in itertools.pairwise(asked))

    world.run(story)


def test_a_hub_that_fails_is_asked_ever_less_often_until_it_answers():
    world = World()
    world.hub.fault = lambda request: HubFailed("no (500)", status=500)

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(300.0)
        asked = list(world.posts)
        assert 3 < len(asked) < 20
        assert asked[-1] - asked[-2] > 4 * (asked[1] - asked[0])
        failed = [outcome.kind for _, outcome in world.recorded if outcome is not None]
        assert set(failed) == {OutcomeKind.FAILED}
        assert len(failed) == len(asked), "each intent has its outcome"
        assert world.watch.status.missing
        world.hub.fault = None
        await world.clock.sleep(250.0)  # the breaker itself waits up to 150 s
        assert world.whole()
        assert world.state() is WatchState.FINE

    world.run(story)


def test_a_hub_that_takes_half_a_minute_is_asked_once_at_a_time():
    world = World()
    world.hub.takes_s = 29.0

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(20.0)
        world.proxy.kill()
        world.proxy.start()
        await world.clock.sleep(5.0)
        assert len(world.posts) == 1
        await world.clock.sleep(120.0)
        assert world.whole()
        gaps = [later - sooner for sooner, later in itertools.pairwise(world.posts)]
        assert not gaps or min(gaps) >= 29.0

    world.run(story)


def test_what_stays_missing_is_told_and_given_up_in_the_end():
    world = World()
    world.expected["/services/nobody"] = None

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(60.0)
        assert world.watch.status.missing == ("/services/nobody",)
        assert world.state() is WatchState.WIPED
        await world.clock.sleep(700.0)
        asked = len(world.posts)
        assert world.state() is WatchState.FINE
        assert "1 of the routes" in world.watch.status.why
        await world.clock.sleep(600.0)
        assert len(world.posts) == asked

    world.run(story)


def test_a_breaker_that_was_opened_while_the_proxy_was_dead_does_not_keep_the_watch_away():
    world = World()

    async def story() -> None:
        world.proxy.kill()
        for _ in range(6):
            try:
                async with world.budget.slot(Lane.RESERVED, safe=True, to=Destination.PROXY) as slot:
                    slot.failed(overload=True)
            except BudgetExhausted:
                break
        await world.clock.sleep(1.0)
        world.proxy.start()
        await world.clock.sleep(1.0)
        assert world.whole()

    world.run(story)


def test_where_nothing_is_known_of_the_table_the_hub_is_asked_once_and_believed():
    world = World()
    world.expected = {}

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(10.0)
        assert len(world.posts) == 1
        assert world.state() is WatchState.FINE
        assert len(world.proxy.table) == 7  # five servers, the hub and the canary

    world.run(story)


def test_a_proxy_that_is_gone_for_hours_costs_a_connection_in_two_seconds_and_no_request():
    world = World()

    async def story() -> None:
        world.proxy.kill()
        await world.clock.sleep(60.0)
        requests, connects = world.budget.use().requests, len(world.canary.connects)
        await world.clock.sleep(3600.0)
        assert world.budget.use().requests == requests
        assert len(world.canary.connects) - connects < 3600 / 1.3
        world.proxy.start()
        await world.clock.sleep(4.0)
        assert world.whole()

    world.run(story)


def test_a_watch_that_begins_with_the_proxy_down_is_there_when_it_comes_up():
    world = World()

    async def alone() -> None:
        world.proxy.kill()
        running = asyncio.ensure_future(world.watch.run())
        await world.clock.sleep(30.0)
        assert world.state() is WatchState.GONE
        world.proxy.start()
        await world.clock.sleep(4.0)
        assert world.state() is WatchState.FINE
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(world._timed(alone()))


def test_at_its_end_the_canary_is_gone_and_nothing_else():
    world = World()

    async def story() -> None:
        assert world.canary.path in world.proxy.table

    world.run(story)
    assert world.canary.path not in world.proxy.table
    assert world.whole()


def test_an_end_in_the_middle_of_asking_leaves_no_intent_without_an_outcome():
    world = World()
    world.hub.takes_s = 29.0

    async def story() -> None:
        world.proxy.wipe()
        await world.clock.sleep(10.0)
        assert len(world.posts) == 1

    world.run(story)
    assert [outcome and outcome.kind for _, outcome in world.recorded] == [None, OutcomeKind.UNVERIFIED]


def test_a_fault_in_what_it_is_given_does_not_end_it():
    world = World()
    good, record = world.expected, world.record

    async def broken_record(why: str, outcome: object) -> None:
        raise RuntimeError("a bug")

    async def story() -> None:
        world.expected = None
        world.proxy.wipe()
        await world.clock.sleep(20.0)
        assert None not in [outcome for _, outcome in world.recorded[1::2]], "each intent has its outcome"
        world.expected, world.record = good, broken_record
        world.proxy.wipe()
        await world.clock.sleep(40.0)
        assert not world.whole()
        world.record = record
        await world.clock.sleep(120.0)
        assert world.whole()
        assert world.state() is WatchState.FINE

    world.run(story)


def test_while_a_table_is_being_restored_looks_come_when_they_are_due_and_not_in_a_rush():
    state, waits, at_s = lost_at(1), [], 1.0
    while at_s < 60:
        state, command = step(state, THERE, now(at_s, may_act=False))
        if command.do is Do.COMPARE:
            state, command = step(state, Compared(("/user/a",), 1), now(at_s, may_act=False))
        waits.append(command.wait_s)
        at_s += command.wait_s
    assert len(waits) < 60
    assert max(waits) <= 2
