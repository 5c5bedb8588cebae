from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from disruption_world import START, World
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hubguard.model import FindingKind, Reading, Source
from hubguard.snapshot.decide.activity import ALIVE
from hubguard.snapshot.decide.brake import Caution
from hubguard.snapshot.decide.memory import Watch
from hubguard.snapshot.model import BrakeReason

MOST_AWAITED = 200

LIMIT_S = 2 * 300 + 30


def second(n: float) -> datetime:
    return START + timedelta(seconds=n)


# -- the list of servers ------------------------------------------------------------------------------------------


def test_a_sane_first_look_objects_to_nothing():
    judged = World("ann").look()
    assert (judged.brake, judged.clock_from, judged.findings) == (None, None, ())


def test_an_incomplete_list_brakes_from_the_first_such_look_to_the_last():
    world = World("ann")
    world.look()
    part = Reading(Source.HUB_API, world.now, complete=False, took_s=0.1, detail="page 3 is missing")
    for n in (60, 120):
        world.pass_time(60)
        seen = world.seen()
        judged = world.look(snapshot=replace(seen.snapshot, readings=(part,)))
        assert judged.brake is not None
        assert (judged.brake.reason, judged.brake.since) == (BrakeReason.INCOMPLETE, second(60))
        assert judged.brake.why == "the server list is incomplete: page 3 is missing"
        assert not judged.brake.acceptable
        assert world.now == second(n)
    assert world.look().brake is None


def test_a_list_from_the_database_is_not_whole_while_the_hub_itself_is_silent():
    world = World("ann")
    world.look(hub_answered=False)
    assert world.reason is BrakeReason.INCOMPLETE


def test_a_proxy_that_cannot_be_read_leaves_the_list_whole():
    world = World("ann")
    world.proxy_up = False
    assert world.look().brake is None


# -- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skew_s", "brakes"), [(None, False), (0.0, False), (60.0, False), (60.1, True), (-9e5, False), (math.nan, False)]
)
def test_only_a_clock_ahead_of_the_hubs_makes_people_look_idle(skew_s, brakes):
    world = World("ann")
    world.look(skew_s=skew_s)
    assert (world.reason is BrakeReason.CLOCK) is brakes
    world.look(skew_s=0.0)
    assert world.reason is None


# -- a hub that has just started ----------------------------------------------------------------------------------


def test_servers_in_check_brake_until_the_hub_is_done():
    world = World("ann", "bob")
    world.pending = {"bob": "check"}
    world.look_on(600)
    assert world.reason is BrakeReason.CHECKING
    world.pending = {}
    assert world.look_on(60).brake is None


def test_servers_in_any_other_pending_state_brake_nothing():
    world = World("ann", "bob")
    world.pending = {"ann": "spawn", "bob": "stop"}
    assert world.look_on(60).brake is None


def test_servers_that_never_leave_check_are_stuck_and_brake_no_longer():
    world = World("ann", "bob", caution=Caution(pending_limit_s=1800))
    world.pending = {"bob": "check"}
    world.look()
    world.look_on(1740)
    assert world.reason is BrakeReason.CHECKING
    for _ in range(100):
        world.look_on(60)
        assert world.reason is None


def test_a_new_start_of_the_hub_has_its_own_time_for_checking():
    world = World("ann", caution=Caution(pending_limit_s=1800))
    world.generation = 1000.0
    world.pending = {"ann": "check"}
    world.look_on(7200)
    assert world.reason is None
    world.generation = 2000.0
    world.look_on(60)
    assert world.reason is BrakeReason.CHECKING


def test_the_database_knows_nothing_of_checking_and_neither_starts_nor_ends_that_brake():
    world = World("ann")
    alive = Reading(Source.HUB_API, START, complete=True, took_s=0.1, detail=ALIVE)

    def look_at_the_database() -> None:
        world.pending = {}
        world.look(snapshot=replace(world.seen().snapshot, readings=(alive,)))

    look_at_the_database()
    assert world.reason is None
    world.pending = {"ann": "check"}
    world.look()
    look_at_the_database()
    assert world.reason is BrakeReason.CHECKING
    world.look()
    assert world.reason is None


# -- the number of users ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "brakes"),
    [
        (1000, 801, False),
        (1000, 800, True),
        (1000, 0, True),
        (50, 40, True),
        (49, 39, True),
        (49, 40, False),
        (9, 0, False),
        (10, 0, True),
        (1000, 5000, False),
    ],
)
def test_a_fall_brakes_from_its_share_on_and_never_for_fewer_than_ten(before, after, brakes):
    world = World(users=before)
    world.look()
    world.users = after
    world.look_on(60)
    assert (world.reason is BrakeReason.POPULATION) is brakes


def test_users_that_hubguard_deletes_are_not_missed():
    world = World(users=1000)
    world.look()
    for left in (700, 400, 100, 0):
        world.users = left
        world.look_on(60, deleted_users=300 if left else 100)
        assert world.reason is None


def test_users_gone_beside_those_that_hubguard_deleted_are_missed():
    world = World(users=1000)
    world.look()
    world.users = 500
    world.look_on(60, deleted_users=300)
    assert world.reason is BrakeReason.POPULATION
    world.users = 561
    world.look_on(60)
    assert world.reason is None


def test_own_deletions_count_when_the_number_could_not_be_read_then():
    world = World(users=1000)
    world.look()
    snapshot = replace(world.seen().snapshot, users_total=None)
    world.look(snapshot=snapshot, deleted_users=300)
    world.users = 700
    assert world.look_on(60).brake is None


def test_many_small_steps_within_an_hour_add_up():
    world = World(users=1000)
    world.look()
    for _ in range(59):
        world.users -= 4
        world.look_on(60)
    assert world.reason is BrakeReason.POPULATION


@given(st.floats(0.01, 0.09), st.sampled_from([60, 600, 3600]))
@settings(max_examples=12, deadline=None)
def test_a_slow_fall_over_days_never_brakes(share_an_hour, every_s):
    world = World(users=20_000)
    world.look()
    users = 20_000.0
    for _ in range(min(400, int(24 * 3600 / every_s))):
        users *= (1 - share_an_hour) ** (every_s / 3600)
        world.users = int(users)
        assert world.look_on(every_s, every_s=every_s).brake is None


@pytest.mark.parametrize("minute", [1, 30, 58, 59, 60, 61, 62, 118, 119, 120, 121, 300])
def test_two_steps_within_minutes_add_up_at_whatever_time_they_come(minute):
    world = World(users=1000)
    world.look()
    world.look_on(60 * minute)
    world.users = 890
    world.look_on(60)
    assert world.reason is None
    world.users = 790
    world.look_on(60)
    assert world.reason is BrakeReason.POPULATION


def test_a_slow_fall_after_the_clock_was_put_back_brakes_nothing():
    world = World(users=1000)
    world.look_on(7200)
    world.now -= timedelta(days=400)
    for _ in range(20):
        world.users -= 25
        assert world.look_on(3600, every_s=1800).brake is None


def test_a_share_counts_exactly_where_floating_point_would_round_it_up():
    assert 0.07 * 300 > 21
    world = World(users=300, caution=Caution(population_fall=0.07))
    world.look()
    world.users = 279
    world.look_on(60)
    assert world.reason is BrakeReason.POPULATION


def test_an_unknown_number_of_users_brakes_nothing_and_forgets_nothing():
    world = World(users=1000)
    world.look()
    for _ in range(200):
        world.look(snapshot=replace(world.seen().snapshot, users_total=None))
        assert world.reason is None
    world.users = 50
    world.look()
    assert world.reason is BrakeReason.POPULATION


def test_a_fall_while_we_were_away_is_seen():
    world = World(users=1000)
    world.look()
    world.pass_time(5 * 86400)
    world.users = 50
    world.look()
    assert world.reason is BrakeReason.POPULATION


def test_a_person_who_resumes_accepts_the_number_and_later_falls_count_from_there():
    world = World(users=1000)
    world.look_on(3 * 3600)
    world.users = 700
    world.look_on(7 * 86400, every_s=3600)
    assert world.reason is BrakeReason.POPULATION
    resumed_at = world.now + timedelta(seconds=5)
    world.look_on(60, resumed_at=resumed_at)
    assert world.reason is None
    world.look_on(600, resumed_at=resumed_at)
    assert world.reason is None
    world.users = 500
    world.look_on(60, resumed_at=resumed_at)
    assert world.reason is BrakeReason.POPULATION, "the same word of a person doesn't count twice"


def test_a_person_accepts_the_number_that_was_shown_and_not_what_came_after():
    world = World(users=1000)
    world.look()
    world.users = 700
    world.look_on(60)
    resumed_at = world.now + timedelta(seconds=5)
    world.users = 50
    judged = world.look_on(60, resumed_at=resumed_at)
    assert judged.brake is not None
    assert judged.brake.since == world.now
    assert "and had 700" in judged.brake.why


def test_a_person_who_resumed_before_the_fall_was_shown_accepts_nothing():
    world = World(users=1000)
    world.look()
    world.users = 50
    world.look_on(60, resumed_at=world.now)
    assert world.reason is BrakeReason.POPULATION
    world.look_on(60, resumed_at=world.now - timedelta(seconds=20))
    assert world.reason is BrakeReason.POPULATION


def test_nobody_accepts_a_fall_that_another_brake_has_hidden():
    world = World(users=1000)
    world.look()
    world.users = 50
    world.look_on(600, skew_s=100.0)
    assert world.reason is BrakeReason.CLOCK
    world.look_on(60, resumed_at=world.now)
    assert world.reason is BrakeReason.POPULATION
    world.look_on(60, resumed_at=world.now)
    assert world.reason is BrakeReason.POPULATION
    world.look_on(60, resumed_at=world.now + timedelta(seconds=1))
    assert world.reason is None


def test_nobody_accepts_how_far_the_number_fell_behind_another_brake():
    world = World(users=1000)
    world.look()
    world.users = 700
    world.look_on(60)
    assert world.reason is BrakeReason.POPULATION
    world.users = 50
    world.look_on(60, skew_s=100.0)
    assert world.reason is BrakeReason.CLOCK
    judged = world.look_on(60, resumed_at=world.now)
    assert world.reason is BrakeReason.POPULATION
    assert judged.brake is not None
    assert "and had 700" in judged.brake.why


def test_a_brake_lasts_since_its_own_begin_whatever_came_up_behind_it():
    world = World("ann", users=1000)
    world.look()
    world.look_on(60, skew_s=100.0)
    world.pending = {"ann": "check"}
    judged = world.look_on(60, skew_s=100.0)
    assert judged.brake is not None
    assert (judged.brake.reason, judged.brake.since) == (BrakeReason.CLOCK, second(60))
    judged = world.look_on(60)
    assert judged.brake is not None
    assert (judged.brake.reason, judged.brake.since) == (BrakeReason.CHECKING, second(120))


def test_a_word_given_while_the_hub_is_silent_for_a_moment_is_not_lost():
    world = World(users=1000)
    world.look()
    world.users = 50
    world.look_on(60, due=5000)
    world.hub_up = False
    resumed_at = world.now + timedelta(seconds=5)
    world.look_on(60, resumed_at=resumed_at)
    assert world.reason is BrakeReason.INCOMPLETE
    world.hub_up = True
    world.look_on(60, resumed_at=resumed_at)
    assert world.reason is None


def test_nobody_accepts_a_large_plan_that_another_brake_has_hidden():
    world = World(caution=Caution(plan_cap=100))
    world.look_on(600, due=500, skew_s=100.0)
    resumed_at = world.now + timedelta(seconds=1)
    world.look_on(60, due=500, skew_s=100.0, resumed_at=resumed_at)
    world.look_on(60, due=500, resumed_at=resumed_at)
    assert world.reason is BrakeReason.OVER_CAP


# -- a plan over its cap ------------------------------------------------------------------------------------------


def test_a_plan_over_its_cap_waits_for_a_person_who_accepts_it_until_it_is_worked_off():
    world = World(caution=Caution(plan_cap=100))
    world.look(due=100)
    assert world.reason is None
    judged = world.look_on(600, due=101)
    assert judged.brake is not None
    assert (judged.brake.reason, judged.brake.acceptable) == (BrakeReason.OVER_CAP, True)
    resumed_at = world.now + timedelta(seconds=1)
    world.look_on(6000, due=250, resumed_at=resumed_at)
    assert world.reason is None
    world.look_on(60, due=100, resumed_at=resumed_at)
    world.look_on(60, due=101, resumed_at=resumed_at)
    assert world.reason is BrakeReason.OVER_CAP


@pytest.mark.parametrize("blind", ["silent", "checking"])
def test_an_accepted_plan_stays_accepted_while_nobody_can_count_what_is_due(blind):
    world = World("ann", caution=Caution(plan_cap=100))
    world.look(due=500)
    resumed_at = world.now + timedelta(seconds=1)
    world.look_on(60, due=500, resumed_at=resumed_at)
    world.hub_up, world.pending = blind != "silent", {"ann": "check"} if blind == "checking" else {}
    world.look_on(60, due=0, resumed_at=resumed_at)
    assert world.reason is not None
    world.hub_up, world.pending = True, {}
    world.look_on(60, due=500, resumed_at=resumed_at)
    assert world.reason is None


# -- outages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["hub_up", "proxy_up"])
@pytest.mark.parametrize(
    ("every_s", "looks", "counts"),
    [(60, 1, False), (60, 2, True), (30, 3, False), (30, 4, True), (600, 1, False), (600, 2, True)],
)
def test_an_outage_is_two_failed_looks_and_its_time(what, every_s, looks, counts):
    world = World("ann")
    world.look()
    world.pass_time(3600)
    setattr(world, what, False)
    world.look()
    if looks > 1:
        world.look_on(every_s * (looks - 1), every_s=every_s)
    setattr(world, what, True)
    judged = world.look_on(every_s, every_s=every_s)
    assert judged.clock_from == (world.now if counts else None)
    assert judged.brake is None


def test_single_failed_looks_again_and_again_are_no_outage():
    world = World("ann")
    for _ in range(50):
        world.hub_up = False
        world.look_on(600, every_s=600)
        world.hub_up = True
        assert world.look_on(600, every_s=600).clock_from is None


def test_a_proxy_that_is_down_brakes_once_it_is_an_outage():
    world = World("ann")
    world.look()
    world.proxy_up = False
    assert world.look_on(120).brake is None
    world.look_on(60)
    assert world.reason is BrakeReason.PROXY_DOWN
    world.proxy_up = True
    judged = world.look_on(60)
    assert judged.brake is None
    assert judged.clock_from == world.now


def test_a_proxy_that_was_not_asked_since_the_hub_was_silent_is_neither_up_nor_down():
    world = World("ann")
    world.proxy_up = False
    world.look_on(60)
    world.hub_up = False
    world.look_on(600, proxy_answered=None)
    world.hub_up = world.proxy_up = True
    assert world.look_on(60).clock_from == world.now


def test_a_hub_that_tells_of_its_start_only_after_a_failed_look_was_still_gone_for_that_long():
    world = World("ann")
    world.generation = START.timestamp()
    world.look_on(600)
    world.pass_time(3600)
    world.generation, world.hub_up = world.now.timestamp(), False
    world.look()
    world.hub_up = True
    assert world.look_on(60).clock_from == world.now


# -- a frozen feed ------------------------------------------------------------------------------------------------


def frozen_world(*people: str, **settings: object) -> World:
    world = World(*people, **settings)  # type: ignore[arg-type]
    world.look_on(600, use=people)
    world.feed_alive = False
    world.look_on(LIMIT_S + 360, use=people)
    assert world.reason is BrakeReason.FROZEN
    return world


def test_the_finding_tells_how_many_servers_are_missed_and_since_when():
    world = World("ann", "bob", "eve")
    world.look_on(300)
    world.feed_alive = False
    world.pass_time(60)
    world.use("ann", "bob")
    world.look()
    used_at = world.now
    judged = world.look_on(900)
    (finding,) = judged.findings
    assert (finding.kind, finding.since) == (FindingKind.ACTIVITY_FROZEN, used_at)
    assert "on 2 servers" in finding.detail


def test_a_frozen_feed_takes_two_clean_looks_to_be_believed_again():
    world = frozen_world("ann", "bob")
    world.update()
    world.look_on(60)
    assert world.reason is BrakeReason.FROZEN
    assert "two looks in a row" in world.judged.findings[0].detail
    world.look_on(60)
    assert world.reason is None


def test_a_frozen_feed_with_nobody_left_whom_it_missed_brakes_no_longer():
    world = frozen_world("ann", "bob")
    world.start("eve")
    world.stop("ann")
    world.stop("bob")
    world.look_on(120)
    assert world.reason is None


def test_a_wiped_table_does_not_end_a_frozen_feed():
    world = frozen_world("ann", "bob")
    world.wipe()
    for _ in range(60):
        world.look_on(60)
        assert world.reason is BrakeReason.FROZEN
    world.restore()
    for _ in range(60):
        world.look_on(60)
        assert world.reason is BrakeReason.FROZEN
    world.feed_alive = True
    world.look_on(420)
    assert world.reason is None


def test_a_restarted_hub_is_believed_when_it_takes_over_activity_and_not_before():
    world = World("ann")
    world.generation = START.timestamp()
    world.look()
    world.feed_alive = False
    world.look_on(1200, use=("ann",))
    assert world.reason is BrakeReason.FROZEN
    world.generation = world.now.timestamp()
    world.look_on(240)
    assert world.reason is BrakeReason.FROZEN
    world.feed_alive = True
    world.look_on(420)
    assert world.reason is None


def test_one_odd_server_among_many_that_are_taken_over_brakes_nothing():
    people = ("ann", "bob", "eve", "odd")
    world = World(*people)
    world.odd = {"odd"}
    for _ in range(120):
        world.look_on(60, use=people)
        assert world.reason is None


def test_a_server_known_to_be_odd_does_not_brake_when_the_others_go_home():
    people = ("ann", "bob", "eve", "odd")
    world = World(*people)
    world.odd = {"odd"}
    for n in range(300):
        world.look_on(60, use=people if n < 60 else ("odd",))
        assert world.reason is None
    world.odd = set()
    world.look_on(1200, use=("odd",))
    world.feed_alive = False
    world.look_on(1200, use=("odd",))
    assert world.reason is BrakeReason.FROZEN, "it isn't odd any more once the hub has taken it over"


def test_a_feed_that_misses_half_of_the_servers_is_frozen():
    people = ("ann", "bob", "eve", "joe")
    world = World(*people)
    world.odd = {"eve", "joe"}
    world.look_on(1200, use=people)
    assert world.reason is BrakeReason.FROZEN


def test_a_server_whose_activity_the_hub_never_knew_is_waited_for_all_the_same():
    world = World("ann")
    world.feed_alive = False
    world.hub["ann"] = None
    world.look_on(1200, use=("ann",))
    assert world.reason is BrakeReason.FROZEN


def test_fractions_of_a_second_that_a_database_drops_are_not_waited_for():
    world = World("ann")
    world.coarse = True
    for n in range(60):
        world.look_on(60.7, every_s=60.7, use=("ann",) if n < 15 else ())
        assert world.reason is None


def test_fractions_of_a_second_are_no_sign_of_life_either():
    quiet, people = ("q1", "q2", "q3"), ("ann",)
    world = World(*quiet, *people)
    world.coarse = True
    world.pass_time(0.5)
    world.use(*quiet)
    world.look_on(1200)
    world.feed_alive = False
    world.look_on(LIMIT_S + 120, use=people)
    assert world.reason is BrakeReason.FROZEN


def test_a_hub_that_was_restarted_again_and_again_had_no_time_for_its_update():
    world = World("ann")
    for n in range(12):
        world.generation = START.timestamp() + n
        world.look_on(240, use=("ann",))
        assert world.reason is None
        world.restart_hub(10)


def test_an_outage_gives_the_hub_its_whole_interval_again():
    world = World("ann")
    world.look_on(300)
    world.look_on(10, every_s=10, use=("ann",))
    world.look_on(280, every_s=10)
    world.hub_up = False
    world.look_on(600, every_s=300)
    world.restart_hub(290)
    for _ in range(20):
        world.look_on(60)
        assert world.reason is None


def test_looks_that_are_always_far_apart_notice_a_frozen_feed_with_the_second_one():
    world = World("ann")
    world.look_on(3 * 3600, every_s=3600)
    world.feed_alive = False
    world.look_on(3600, every_s=3600, use=("ann",))
    assert world.reason is None
    world.look_on(3600, every_s=3600)
    assert world.reason is BrakeReason.FROZEN


def test_times_that_a_new_proxy_with_a_slow_clock_has_forgotten_are_not_waited_for():
    world = World("ann")
    world.look_on(240)
    world.look_on(30, every_s=30, use=("ann",))
    world.proxy["ann"] = world.now - timedelta(days=1)
    world.look_on(1800)
    assert world.reason is None


def test_the_oldest_miss_is_told_for_as_long_as_the_feed_is_frozen():
    world = World("ann", "bob")
    world.feed_alive = False
    world.look_on(60, use=("ann",))
    world.look_on(900, use=("bob",))
    world.stop("ann")
    world.look_on(600)
    assert world.judged.findings[0].since == second(60)


def test_clean_looks_that_are_not_in_a_row_end_nothing():
    world = frozen_world("ann", "bob")
    for _ in range(3):
        world.update()
        world.look_on(60)
        assert world.reason is BrakeReason.FROZEN
        world.wipe()
        world.look_on(60)
        assert world.reason is BrakeReason.FROZEN
        world.restore()


def test_a_frozen_feed_is_not_forgotten_when_a_silent_hub_keeps_us_from_asking_the_proxy():
    world = frozen_world("ann")
    world.look(hub_answered=False, proxy_answered=None)
    world.look()
    assert world.reason is BrakeReason.FROZEN


def test_a_server_known_to_be_odd_stays_so_when_the_table_is_wiped():
    people = ("ann", "bob", "eve", "odd")
    world = World(*people)
    world.odd = {"odd"}
    world.look_on(1200, use=people)
    world.look_on(900, use=("odd",))
    world.wipe()
    world.look_on(5, every_s=5)
    world.restore()
    world.look_on(1800, use=("odd",))
    assert world.reason is None


def test_nothing_is_remembered_of_runs_that_the_hub_has_long_caught_up_with():
    world = World("ann", "bob")
    world.look_on(900, use=("ann", "bob"))
    assert world.watch.feed.awaited
    world.look_on(1200)
    assert world.watch.feed.awaited == ()


def test_a_hub_that_never_takes_over_activity_by_its_settings_is_not_waited_for():
    world = World("ann", caution=Caution(hub_activity_interval_s=0))
    world.look_on(7200, use=("ann",))
    assert world.reason is None
    assert not world.found


def test_a_machine_that_slept_with_its_hub_wakes_up_without_a_brake():
    """The hub's next update comes up to an interval after it is back; nobody watched the feed in between."""
    world = World("ann")
    world.look_on(300)
    world.pass_time(10)
    world.use("ann")
    world.look()
    world.hub_up = False
    world.pass_time(86400)
    world.hub_up, world._updated = True, world.now
    for _ in range(10):
        world.look_on(60)
        assert world.reason is None


def test_a_proxy_that_is_no_longer_asked_ends_what_only_it_could_tell():
    world = frozen_world("ann")
    world.has_proxy = False
    world.look_on(60)
    assert world.reason is None


def test_a_frozen_feed_stays_so_while_the_proxy_cannot_be_read_for_a_moment():
    world = frozen_world("ann")
    world.proxy_up = False
    world.look_on(60)
    assert world.reason is BrakeReason.FROZEN


def test_what_is_remembered_of_the_feed_stays_small_on_a_large_hub():
    people = tuple(f"p{n}" for n in range(1000))
    world = World(*people)
    world.look_on(900, use=people)
    assert len(world.watch.feed.awaited) == MOST_AWAITED
    assert len(json.dumps(world.watch.to_dict())) < 60_000
    for person in people:
        world.stop(person)
    world.look_on(60)
    assert world.watch.feed.awaited == ()


def test_no_finding_where_servers_have_just_started_or_none_runs():
    world = World(has_proxy=False)
    world.look_on(7200)
    assert not world.found
    world.start("ann")
    world.look_on(600)
    assert not world.found
    world.look_on(60)
    assert world.found == {FindingKind.CANT_TELL}


def test_a_time_in_the_far_future_is_no_sign_that_the_hub_notes_anything():
    world = World("ann", "bob", has_proxy=False)
    world.hub["bob"] = second(1e9)
    world.pass_time(7200)
    world.look()
    assert world.found == {FindingKind.CANT_TELL}


def test_a_table_without_times_is_no_control():
    world = World("ann")
    routes = {path: replace(r, last_activity=None) for path, r in world.seen().snapshot.routes.items()}
    world.pass_time(7200)
    world.look(snapshot=replace(world.seen().snapshot, routes=routes))
    assert world.found == {FindingKind.CANT_TELL}
    assert world.reason is None


def test_a_wiped_table_or_a_silent_proxy_is_not_reported_as_lack_of_access():
    world = World("ann")
    world.pass_time(7200)
    world.wipe()
    world.look()
    assert not world.found
    world.proxy_up = False
    world.look()
    assert not world.found


# -- jumps of our own clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-400 * 86400, -3700, -1, 3700, 400 * 86400])
def test_a_jump_of_our_clock_in_a_sane_world_brakes_nothing(jump_s):
    world = World("ann", "bob")
    world.generation = START.timestamp()
    jump = timedelta(0)
    for n in range(90):
        world.pass_time(60)
        world.use("ann")
        jump += timedelta(seconds=jump_s) if n == 40 else timedelta(0)
        world.look(now=world.now + jump)
        assert world.reason is None


@pytest.mark.parametrize("jump_s", [-400 * 86400, -3700, 3700, 400 * 86400])
def test_a_jump_of_our_clock_neither_ends_nor_accepts_nor_prolongs_a_fall(jump_s):
    world = World(users=1000)
    world.look_on(600, resumed_at=second(1e6))
    world.users = 50
    for n in range(90):
        world.pass_time(60)
        world.look(now=world.now + timedelta(seconds=jump_s if n >= 40 else 0), resumed_at=second(1e6))
        assert world.reason is BrakeReason.POPULATION
    now = world.now + timedelta(seconds=jump_s)
    world.look(now=now + timedelta(seconds=60), resumed_at=now + timedelta(seconds=30))
    assert world.reason is None


def test_a_clock_that_is_put_back_leaves_no_brake_that_begins_later_than_now():
    world = World(users=1000)
    world.look()
    world.users = 50
    world.look_on(60)
    back = world.now - timedelta(days=30)
    judged = world.look(now=back)
    assert judged.brake is not None
    assert judged.brake.since == back


def test_a_person_can_resume_right_after_the_clock_was_put_back():
    world = World(users=1000)
    world.look()
    world.users = 50
    world.look_on(60)
    back = world.now - timedelta(days=30)
    world.look(now=back, resumed_at=back - timedelta(seconds=30))
    assert world.reason is None


def test_a_clock_that_is_put_back_does_not_hide_a_proxy_that_is_down():
    world = World("ann")
    world.look()
    world.proxy_up = False
    world.look_on(60)
    world.now -= timedelta(days=30)
    world.look_on(240)
    assert world.reason is BrakeReason.PROXY_DOWN


def test_a_clock_that_is_put_back_leaves_no_idle_clock_in_the_future():
    world = World("ann")
    world.look()
    world.hub_up = False
    world.look_on(600)
    world.hub_up = True
    world.look_on(60)
    back = world.now - timedelta(days=30)
    assert world.look(now=back).clock_from == back


# -- the memory ---------------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.just(START.isoformat()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def full_watch() -> Watch:
    world = World("ann", "bob", users=1000, caution=Caution(plan_cap=1))
    world.generation = 123.5
    world.look_on(600, use=("ann", "bob"), due=5)
    world.hub_up = False
    world.look_on(600)
    world.hub_up = True
    world.users = 1
    world.feed_alive = False
    world.look_on(1800, use=("ann",), due=5, resumed_at=START)
    world.proxy_up = False
    world.look_on(600, due=5, resumed_at=START)
    return world.watch


def test_all_of_the_memory_survives_json():
    watch = full_watch()
    assert Watch.from_dict(json.loads(json.dumps(watch.to_dict()))) == watch
    fresh = Watch()
    remembered = {name for name in watch.to_dict() if watch.to_dict()[name] != fresh.to_dict()[name]}
    assert remembered == watch.to_dict().keys() - {"hub_down", "cap_accepted"}


@pytest.mark.parametrize("data", [{}, {"looked_at": None}, {"v": 7}, [], None, "text"])
def test_anything_else_is_a_fresh_memory(data):
    assert Watch.from_dict(data) == Watch()


@given(st.data(), junk)
def test_a_memory_with_a_hole_in_it_is_fresh_or_still_works(data, hole):
    kept = json.loads(json.dumps(full_watch_once()))
    place = kept
    while True:
        key = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else 0
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = hole
    watch = Watch.from_dict(kept)
    world = World("ann")
    world.watch = watch
    world.look_on(120)


_FULL: list[dict[str, object]] = []


def full_watch_once() -> dict[str, object]:
    if not _FULL:
        _FULL.append(full_watch().to_dict())
    return _FULL[0]


# -- any sequence at all ------------------------------------------------------------------------------------------

PEOPLE = tuple(f"p{n}" for n in range(8))


class SaneWorld(RuleBasedStateMachine):
    """Whatever people, servers, restarts and HubGuard itself do, a hub that works is never braked or found frozen."""

    @initialize(interval=st.sampled_from([60.0, 300.0]))
    def begin(self, interval: float) -> None:
        self.world = World(users=500, caution=Caution(hub_activity_interval_s=interval))
        self.world.generation = START.timestamp()

    @rule(who=st.sampled_from(PEOPLE))
    def starts_a_server(self, who: str) -> None:
        self.world.start(who)

    @rule(who=st.sets(st.sampled_from(PEOPLE)))
    def work(self, who: set[str]) -> None:
        self.world.use(*who)

    @rule(who=st.sets(st.sampled_from(PEOPLE)))
    def leave(self, who: set[str]) -> None:
        for person in who:
            self.world.stop(person)

    @rule(seconds=st.floats(0.1, 2000))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(every_s=st.sampled_from([7.0, 60.0, 290.0, 600.0, 3600.0]), looks=st.integers(1, 15))
    def looks_are_made(self, every_s: float, looks: int) -> None:
        for _ in range(looks):
            self.world.look_on(every_s, every_s=every_s)
            self.check()

    @rule(new=st.integers(0, 300))
    def users_come(self, new: int) -> None:
        self.world.users += new

    @rule(gone=st.integers(0, 9))
    def a_few_users_go_in_a_long_time(self, gone: int) -> None:
        self.world.users = max(0, self.world.users - gone)
        for _ in range(3):
            self.world.look_on(3700, every_s=3700)
            self.check()

    @rule(share=st.floats(0, 1))
    def hubguard_deletes_users(self, share: float) -> None:
        gone = int(self.world.users * share)
        self.world.users -= gone
        self.world.look(deleted_users=gone)
        self.check()

    @rule()
    def the_table_is_wiped_and_restored(self) -> None:
        self.world.wipe()
        self.world.look_on(5, every_s=5)
        self.check()
        self.world.restore()

    @rule(seconds=st.floats(1, 60))
    def the_hub_is_restarted(self, seconds: float) -> None:
        self.world.hub_up = False
        self.world.pass_time(seconds)
        self.world.hub_up = True
        self.world._updated = self.world.now
        self.world.generation = self.world.now.timestamp()

    @invariant()
    def check(self) -> None:
        if hasattr(self, "world") and self.world.judged is not None:
            assert self.world.reason is None
            assert not self.world.found


TestSaneWorld = SaneWorld.TestCase
TestSaneWorld.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(
    interval=st.sampled_from([30.0, 60.0, 300.0, 1800.0]),
    looks=st.integers(1, 20),
    before=st.lists(st.sets(st.sampled_from(PEOPLE)), max_size=40),
    after=st.lists(st.sets(st.sampled_from(PEOPLE)), max_size=60),
    wipe=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_frozen_feed_is_noticed_in_time_from_the_first_look_that_could_tell(interval, looks, before, after, wipe):
    every_s = (2 * interval + 30) / looks
    world = World(*PEOPLE, caution=Caution(hub_activity_interval_s=interval))
    if wipe:
        world.wipe()
        world.look()
        world.restore()
    world.look()
    for who in before:
        world.look_on(every_s, every_s=every_s, use=tuple(who))
        assert world.reason is None
    world.feed_alive = False
    first = None
    steps = [tuple(sorted(who)) for who in after] + [(PEOPLE[0],)]
    steps += [()] * (looks + 1)
    for who in steps:
        world.look_on(every_s, every_s=every_s, use=who)
        ahead = [p for p in PEOPLE if world.proxy[p] - world.hub[p] > timedelta(seconds=1)]
        first = first or (world.now if ahead else None)
        if first is not None and (world.now - first).total_seconds() >= 2 * interval + 30 + every_s:
            assert world.reason is BrakeReason.FROZEN
    assert world.reason is BrakeReason.FROZEN


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.booleans(), st.none() | st.booleans(), st.integers(0, 2000)), max_size=30
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_happened_before_a_world_that_stays_sane_is_acted_on_again(steps):
    world = World("ann", "bob", users=500)
    for seconds, hub, proxy, users in steps:
        world.now += timedelta(seconds=seconds)
        world.hub_up, world.proxy_up, world.users = hub, bool(proxy), users
        world.look(proxy_answered=proxy, due=users)
    world.hub_up = world.proxy_up = True
    world.users = max(world.users, world.watch.population.reference or 0)
    world._updated = world.now
    world.hub = dict.fromkeys(world.hub, world.now)
    world.proxy = dict(world.hub)
    world.look_on(900)
    assert world.reason is None


def test_a_hub_that_takes_over_no_activity_by_its_settings_is_not_said_to_have_stopped_noting_it():
    world = World("ann", has_proxy=False, caution=Caution(hub_activity_interval_s=0))
    world.look_on(7200)
    world.look_on(7200)
    assert not world.found
