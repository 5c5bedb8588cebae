"""What hubs have suffered, and what makes a brake useless by false alarms, as one look after another."""

from __future__ import annotations

from datetime import timedelta

from disruption_world import START, World

from hubguard.model import FindingKind
from hubguard.snapshot.decide.brake import Caution
from hubguard.snapshot.model import BrakeReason


def people(count: int) -> tuple[str, ...]:
    return tuple(f"student{number:04}" for number in range(count))


def test_incident_the_database_was_overwritten_and_most_users_were_gone():
    """datahub, 2017-02-09: a deploy overwrote the hub's database, about 1000 users became 50, for 10.8 hours.

    Everything about the 50 looks sane. HubGuard holds back for as long as it lasts, and goes on by itself once the backup
    is in place.
    """
    world = World(*people(40), users=1000)
    world.look_on(3600)
    world.users = 50
    judged = world.look_on(10.8 * 3600, due=40)
    assert world.reason is BrakeReason.POPULATION
    assert judged.brake is not None
    assert judged.brake.acceptable
    assert judged.brake.since == START + timedelta(seconds=3660)
    assert "50 users and had 1,000" in judged.brake.why
    world.users = 1000
    assert world.look_on(60).brake is None


def test_incident_everyone_looked_idle_after_an_outage_of_the_hub():
    """Nobody's activity advances while the hub is gone, so that all servers are long overdue when it is back."""
    world = World(*people(300))
    world.look_on(1800, use=people(300))
    world.hub_up = False
    assert world.look_on(7200).brake is not None
    assert world.reason is BrakeReason.INCOMPLETE
    world.hub_up = True
    judged = world.look_on(60)
    assert judged.brake is None
    assert judged.clock_from == world.now
    back = world.now
    assert world.look_on(3600).clock_from == back


def test_incident_nobody_could_reach_their_server_while_the_proxy_was_gone():
    """The hub is fine and lists everything; nobody can work, so that all look idle. It isn't their doing."""
    world = World(*people(300))
    world.look_on(1800, use=people(300))
    world.proxy_up = False
    world.look_on(3600)
    assert world.reason is BrakeReason.PROXY_DOWN
    world.proxy_up = True
    judged = world.look_on(60)
    assert judged.brake is None
    assert judged.clock_from == world.now


def test_a_class_of_300_that_leaves_at_once_brakes_nothing():
    world = World(*people(320), users=1000)
    world.look_on(5400, use=people(320))
    for person in people(300):
        world.stop(person)
    for _ in range(60):
        world.look_on(60, use=people(320)[300:])
        assert world.reason is None
        assert not world.found


def test_a_class_of_300_that_closes_its_laptops_and_is_due_together_brakes_nothing():
    world = World(*people(300))
    world.look_on(5400, use=people(300))
    for _ in range(60):
        world.look_on(60, due=300)
        assert world.reason is None
        assert not world.found


def test_a_quiet_sunday_night_is_no_frozen_feed():
    world = World(*people(300))
    world.look_on(3600, use=people(300))
    for _ in range(12 * 12):
        world.look_on(300, every_s=300)
        assert world.reason is None
        assert not world.found


def test_one_person_at_work_on_a_quiet_sunday_night_changes_nothing():
    world = World(*people(300))
    world.look_on(3600, use=people(300))
    for _ in range(4 * 60):
        world.look_on(60, use=people(1))
        assert world.reason is None
        assert not world.found


def test_incident_the_hub_stopped_taking_over_activity_while_people_worked():
    world = World(*people(300))
    world.look_on(3600, use=people(300))
    world.feed_alive = False
    frozen_at = world.now
    while world.look_on(60, use=people(20)).brake is None:
        assert world.now - frozen_at < timedelta(seconds=2 * 300 + 30 + 60 + 300)
    assert world.reason is BrakeReason.FROZEN
    assert world.found == {FindingKind.ACTIVITY_FROZEN}
    world.look_on(8 * 3600, every_s=600)
    assert world.reason is BrakeReason.FROZEN, "the people left, and the hub still hasn't noticed that they were there"
    world.feed_alive = True
    world.look_on(480)
    assert world.reason is None
    assert not world.found


def test_incident_the_hub_stopped_taking_over_activity_and_no_proxy_can_be_asked():
    """Nothing tells it from a quiet night then. It is said, and doesn't keep the hub from being cleaned up."""
    world = World(*people(300), has_proxy=False)
    world.look_on(3600, use=people(300))
    assert not world.found
    world.feed_alive = False
    world.look_on(1800, use=people(300))
    assert world.reason is None
    assert world.found == {FindingKind.CANT_TELL}
    world.feed_alive = True
    world.look_on(600, use=people(300))
    assert not world.found


def test_incident_the_proxy_lost_its_table_and_all_servers_look_used_since_the_restore():
    """Each restore stamps all routes with its own time; the hub takes that over with its next update."""
    world = World(*people(300))
    world.look_on(3600, use=people(100))
    world.wipe()
    for _ in range(30):
        world.look_on(60)
        assert world.reason is None
        assert not world.found
    world.wipe()
    world.look_on(60)
    world.restore()
    for _ in range(30):
        world.look_on(60)
        assert world.reason is None
        assert not world.found


def test_a_hub_that_runs_us_and_was_gone_for_an_hour_took_us_with_it():
    """The guard is the hub's own service: nobody could look while both were gone. The new hub's start tells."""
    world = World(*people(100))
    world.generation = START.timestamp() - 50
    world.look_on(1800, use=people(100))
    world.pass_time(3600)
    world.generation = world.now.timestamp() - 5
    judged = world.look()
    assert judged.brake is None
    assert judged.clock_from == world.now


def test_a_hub_that_runs_us_and_was_only_restarted_has_had_no_outage():
    world = World(*people(100))
    world.generation = START.timestamp() - 50
    world.look_on(1800, use=people(100))
    world.pass_time(90)
    world.generation = world.now.timestamp() - 5
    assert world.look().clock_from is None


def test_a_restart_between_two_looks_that_are_far_apart_has_been_no_outage():
    world = World(*people(10))
    world.generation = START.timestamp() - 50
    world.look_on(6000, every_s=600)
    world.pass_time(570)
    world.generation = world.now.timestamp()
    world.pass_time(30)
    assert world.look().clock_from is None


def test_our_own_absence_is_no_outage():
    world = World(*people(100))
    world.generation = START.timestamp() - 50
    world.look_on(1800, use=people(100))
    world.pass_time(7200)
    assert world.look().clock_from is None
    assert world.reason is None


def test_incident_a_settings_mistake_makes_everything_due_at_once():
    """An idle timeout of 36 s instead of 3600: 3000 servers are due. Nobody is stopped until somebody has looked."""
    world = World(users=5000, caution=Caution(plan_cap=1000))
    world.look_on(600, due=12)
    assert world.reason is None
    world.look_on(3600, due=3000)
    assert world.reason is BrakeReason.OVER_CAP
    world.look_on(60, due=12)
    assert world.reason is None
