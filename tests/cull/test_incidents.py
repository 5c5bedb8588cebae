"""What hubs have suffered, and what the whole guard does about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from doubles.hub import Stops
from simulation.world import BURST, EVERY_S, LIMIT_S, OUTAGE_S, RATE, UPDATE_S, World

from hubguard.cull.words import last_stop
from hubguard.dashboard.shapes import describe, health, state_of
from hubguard.errors import HubGuardError
from hubguard.journal.words import entry_sentence
from hubguard.model import FindingKind, OutcomeKind, User
from hubguard.snapshot.model import BrakeReason
from hubguard.status import Mode
from hubguard.words import stamp

PEOPLE = [(f"user{number:03}", "") for number in range(40)]


@pytest.fixture
def world() -> Iterator[World]:
    world = World(proxy_told=True)
    world.journal.arm("ada", "", world.clock.now())
    yield world
    world.close()


def stops_of(world: World) -> Counter[str | None]:
    """How often each user's server was asked to stop, by the intents."""
    return Counter(entry.user for entry in world.entries("intent"))


def test_incident_the_hub_was_flooded_with_requests_to_stop_servers_that_were_not_running(world: World):
    """mybinder.org, 2018-04-18: the culler took servers that weren't running for idle ones, and asked to stop them again and
    again, as fast as it could. The hub was kept busy with that; launches failed for about an hour.

    Sequence: servers idle; they stop, by their owners or by the culler; the culler goes on asking, from what it had listed.
    Cause: it acted on its list, and a stop of what isn't running is answered like one that works.
    Here: half of the servers go by themselves between list and stop. None of them is asked to stop, the others once.
    """
    for key in PEOPLE:
        world.start(key, idle_s=2 * LIMIT_S)
    gone = PEOPLE[::2]
    world.begin()
    while not world.sent:
        world.passes(0.05)
    left_alone = [key for key in gone if world.hub._records[key].active and key[0] not in stops_of(world)]
    for key in left_alone:
        world.gone(key)
    assert len(left_alone) > 12
    world.passes(3 * 3600)
    asked = stops_of(world)
    assert asked.keys().isdisjoint({user for user, _ in left_alone[4:]}), "a few may have been looked at just before"
    assert set(asked.values()) == {1}
    assert world.running() == set()
    requests = world.requests
    world.passes(3600)
    assert world.requests - requests <= 4 * 3600 / EVERY_S + 10, "with nothing to stop it only looks, once a cycle"


def test_incident_failed_stops_piled_up_while_the_hub_was_overloaded(world: World):
    """mybinder.org, 2018-04-18, second half: deletes failed with 5xx and timeouts, were tried again at once, and users piled
    up; when all of them were deleted together later, that loaded the hub into the next day (outages of 10 to 30 minutes).

    Sequence: the hub is slow and answers 503 or not at all; each cycle asks for all that failed once more; the backlog grows
    by those who become idle meanwhile; when the hub is well again, the whole backlog comes at once.
    Cause: no back-off, no breaker, no limit on the rate.
    Here: for three hours the hub fails all it is asked, while more and more is due. It is asked ever less, nothing is stopped
    on what isn't known, and afterwards the backlog goes within the budget (which the world checks on every request).
    """
    for key in PEOPLE[:20]:
        world.start(key, idle_s=2 * LIMIT_S)
    world.every_nth_fails = (1, "503")
    world.begin()
    world.passes(3 * 3600)
    assert world.sent == 0
    assert world.requests <= 3 * 3600 / EVERY_S * 3, "a hub that fails is asked a few times a cycle, by harmless reads"
    for key in PEOPLE[20:]:
        world.start(key, idle_s=2 * LIMIT_S)
    world.every_nth_fails = None
    back_s = world.clock.monotonic_s()
    world.passes(LIMIT_S + 4 * EVERY_S)
    assert world.running() == set(), world.explained()
    assert set(stops_of(world).values()) == {1}, "none was asked twice"
    assert world.clock.monotonic_s() - back_s > LIMIT_S
    world.all_is_accounted_for()


def test_incident_stops_that_always_fail_do_not_become_a_flood(world: World):
    """mybinder.org, 2018-04-18: what can't be stopped was asked to stop in every cycle, for hours.

    Sequence: the spawner can't be asked (poll raises), so that each DELETE is a 500; the server is due as before, and comes
    up again in each cycle. Cause: nothing remembered that it had just failed.
    Here: ten such servers for four hours. Each backs off by itself, up to the longest wait, out of step with the others.
    """
    for key in PEOPLE[:10]:
        world.start(key, stops=Stops.POLL_RAISES, idle_s=2 * LIMIT_S)
    world.begin()
    world.passes(3600)
    first = sum(stops_of(world).values())
    world.passes(3 * 3600)
    asked = stops_of(world)
    assert set(asked) == {user for user, _ in PEOPLE[:10]}
    assert first < 10 * 3600 / EVERY_S
    # Full jitter up to 900 s: one try in 450 s on average, and the next cycle is up to EVERY_S away.
    assert max(asked.values()) <= 4 * 3600 / 360
    outcomes = {entry.outcome for entry in world.entries("outcome")}
    assert outcomes <= {OutcomeKind.FAILED, OutcomeKind.UNVERIFIED}
    assert world.life is not None
    status = world.life.guard.parts.culling.status()
    assert status.oldest_overdue is not None
    assert status.recent.error_ratio == 1.0


@pytest.mark.parametrize("what", ["hub", "proxy"])
def test_incident_everyone_looked_idle_after_an_outage(world: World, what: str):
    """Many hubs, whenever the hub or the proxy was gone for longer than the idle timeout (datahub 2017 to 2024, among them).

    Sequence: a class is at work; hub or proxy is gone for two hours; it comes back, and no activity is on record since; all
    servers are over their limit, and the culler stops them under the people who are just coming back.
    Cause: nobody's activity can advance during an outage, and the culler took that for idleness.
    Here: nothing is stopped in the limit's time after the outage. Who comes back keeps the server, and who doesn't is stopped
    once the limit has passed since the recovery.
    """
    for key in PEOPLE:
        world.start(key)
    world.regulars.update(PEOPLE)
    world.begin()
    world.passes(2 * 3600)
    switch = world.switch_hub if what == "hub" else world.switch_proxy
    world.regulars.clear()
    switch(False)
    world.passes(2 * 3600)
    assert world.life is not None
    brake = world.life.guard.status().brake
    assert brake is not None
    assert brake.reason is (BrakeReason.INCOMPLETE if what == "hub" else BrakeReason.PROXY_DOWN)
    switch(True)
    back = PEOPLE[:15]
    world.passes(600)
    world.regulars.update(back)
    world.passes(LIMIT_S - 700)
    assert world.sent == 0
    world.passes(3 * EVERY_S + UPDATE_S + OUTAGE_S)
    assert world.running() == set(back), world.explained()


@pytest.mark.parametrize("how", ["all log out", "all just go away"])
def test_a_class_of_300_that_leaves_at_once_never_brakes(world: World, how: str):
    people = [(f"student{number:03}", "") for number in range(300)]
    for key in people:
        world.hub.add_user(User(key[0], admin=False))
        world.start(key)
    world.regulars.update(people)
    world.begin()
    world.passes(2700)
    world.regulars.clear()
    if how == "all log out":
        for key in people:
            world.gone(key)
    for _ in range(30):
        world.passes(EVERY_S)
        assert world.life is not None
        assert world.life.guard.status().brake is None
    assert world.running() == set()
    assert world.entries("braked") == ()
    assert BURST / RATE < EVERY_S, "or it would prove nothing about the pace"


def test_incident_nobody_could_say_afterwards_why_a_server_was_stopped(world: World):
    """A hub of a university, 2026-09: "Why was my server stopped?" had no answer a day later. The journal said "going to
    stop ann (idle)"; since when, by which limit and by whose word had stood on a page that was gone with the server.

    Here: the intent keeps what it rested on at its second look, the outcome has it, too, and both name it in words.
    """
    world.start(("ann", ""), idle_s=2 * LIMIT_S)
    used_at = world.hub._records["ann", ""].server.last_activity
    world.begin()
    world.passes(600)
    (intent,), (outcome,) = world.entries("intent"), world.entries("outcome")
    assert intent.grounds is not None
    assert (intent.grounds.limit_s, intent.grounds.since, intent.grounds.evidence) == (LIMIT_S, used_at, "hub")
    assert outcome.grounds == intent.grounds
    assert f"idle since {stamp(used_at)} by the hub's last activity, idle limit 1 h" in entry_sentence(intent)
    assert f"HubGuard stopped it at {stamp(outcome.at)}: idle since" in last_stop((outcome, intent))


def test_incident_health_was_false_and_the_page_said_starting_while_the_first_cycle_stopped_servers(world: World):
    """A hub of 300, 2026-10: after an update the first cycle had an hour's idle servers to stop, slowly. Until it ended the
    pages said "Starting" and "none is due", and the alert on ``/health`` went off.

    Here: from the first look on, it says what it does, and how many servers are being stopped.
    """
    for user in ("ann", "bo", "cy", "di"):
        world.start((user, ""), idle_s=2 * LIMIT_S, stop_s=40.0)
    world.begin()
    while not world.sent:
        world.passes(0.05)
    state = state_of(world.life.guard)
    assert state.cull.last_cycle is None
    shape = describe(state)
    assert shape.mode is Mode.ACTING
    assert shape.servers.stop == 4
    assert "4 servers are being stopped" in shape.sentence
    assert health(state).ok


def test_incident_a_kept_server_was_stopped_since_the_hub_has_the_name_in_small_letters(world: World):
    """A university with single sign-on, 2026-11: ``hubguard keep Kept@X.org`` was accepted, and the server stopped an hour
    later. The hub's authenticator makes small letters of names; the exemption matched nobody, without a word.

    Here: the name is resolved by asking the hub, by page, API and command alike; who is unknown is refused, with who is near.
    """
    world.start(("kept@x.org", ""), idle_s=2 * LIMIT_S)
    world.start(("other", ""), idle_s=2 * LIMIT_S)
    world.journal.hold("ada", "not yet", world.clock.now())
    world.begin()
    world.passes(10)
    keep = world.life.guard.parts.culling.exempt
    until = world.clock.now() + timedelta(days=1)
    made = world.run(keep("ada", "", user="Kept@X.org", server=None, until=until))
    assert made.user == "kept@x.org"
    with pytest.raises(HubGuardError, match=r"The hub has no user kpt@x\.org\. Did you mean kept@x\.org\?"):
        world.run(keep("ada", "", user="kpt@x.org", server=None, until=until))
    with pytest.raises(HubGuardError, match="The hub has no server kept@x.org/gpu"):
        world.run(keep("ada", "", user="kept@x.org", server="gpu", until=until))
    world.journal.resume("ada", "", world.clock.now())
    world.passes(2 * EVERY_S)
    assert stops_of(world) == {"other": 1}


def test_incident_a_name_could_be_kept_while_the_hub_was_down_and_nobody_had_it(world: World):
    """While the hub doesn't answer, what HubGuard has seen of it decides; nothing is taken on trust."""
    world.start(("ann", ""))
    world.begin()
    world.passes(10)
    world.every_nth_fails = (1, "503")
    keep = world.life.guard.parts.culling.exempt
    until = world.clock.now() + timedelta(days=1)
    assert world.run(keep("ada", "", user="Ann", server=None, until=until)).user == "ann"
    with pytest.raises(HubGuardError, match="the hub can't be reached to look up the user bo"):
        world.run(keep("ada", "", user="bo", server=None, until=until))


def test_incident_an_exemption_for_nobody_was_never_told(world: World):
    """One that was made before names were resolved, or whose user has been renamed, is a finding of its own."""
    world.journal.exempt("Kept@X.org", None, world.clock.now() + timedelta(days=1), "ada", "", world.clock.now())
    world.start(("kept@x.org", ""))
    world.begin()
    world.passes(2 * EVERY_S)
    (finding,) = world.life.guard.parts.culling.status().findings
    assert finding.kind is FindingKind.NOBODY
    assert finding.detail == "Exemption 1 keeps all servers of Kept@X.org, and the hub has no such user."
