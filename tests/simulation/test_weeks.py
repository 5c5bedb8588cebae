"""Weeks of a hub's life, with all that goes wrong in them: what is guaranteed holds in every moment of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
from doubles.hub import Stops
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from simulation.world import EVERY_S, LIMIT_S, RETRY_MAX_S, SETTINGS, UPDATE_S, Key, World

from hubguard.errors import HubGuardError
from hubguard.model import User

USERS = [f"u{number:02}" for number in range(8)]
KEYS: list[Key] = [(user, "") for user in USERS] + [("u00", "lab"), ("u01", "lab")]
MANY = 40

keys = st.sampled_from(KEYS)
pauses = st.sampled_from([0.3, 1.0, 7.0, 61.0, EVERY_S, EVERY_S, 1200.0, LIMIT_S + 90.0, 3 * 3600.0])


class Weeks(RuleBasedStateMachine):
    """Anything may happen at any time; the world itself fails as soon as a guarantee is broken."""

    world: World

    @initialize(proxy_told=st.booleans(), database_told=st.booleans(), armed=st.sampled_from([True, True, True, False]))
    def begins(self, proxy_told: bool, database_told: bool, armed: bool) -> None:
        self.world = World(proxy_told=proxy_told, database_told=database_told)
        for number in range(MANY):
            self.world.hub.add_user(User(f"student{number:02}", admin=False))
        if armed:
            self.world.journal.arm("ada", "", self.world.clock.now())
        self.world.begin()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.in_a_sane_world_all_that_is_due_is_stopped()
            finally:
                self.world.close()

    @rule(seconds=pauses)
    def time_passes(self, seconds: float) -> None:
        self.world.passes(seconds)

    # -- people -------------------------------------------------------------------------------------------------------

    @rule(key=keys, stops=st.sampled_from(list(Stops)), stop_s=st.sampled_from([0.0, 0.0, 1.0, 15.0, 100.0]))
    def somebody_starts_a_server(self, key: Key, stops: Stops, stop_s: float) -> None:
        self.world.start(key, stops=stops, stop_s=stop_s)

    @rule(
        stops=st.sampled_from([Stops.WORKS, Stops.WORKS, Stops.ANSWER_LOST]),
        stop_s=st.sampled_from([0.0, 1.0]),
        idle_s=st.sampled_from([0.0, LIMIT_S - 60, 2 * LIMIT_S]),
    )
    def everybody_has_a_server(self, stops: Stops, stop_s: float, idle_s: float) -> None:
        for key in KEYS:
            self.world.start(key, stops=stops, stop_s=stop_s, idle_s=idle_s)

    @rule(key=keys)
    def somebody_uses_theirs(self, key: Key) -> None:
        self.world.use(key)

    @rule(key=keys)
    def somebody_stays_for_long(self, key: Key) -> None:
        self.world.regulars.add(key)

    @rule()
    def everybody_leaves(self) -> None:
        self.world.regulars.clear()

    @rule(who=st.sets(keys, min_size=1), when=st.sampled_from(["list", "get", "stop", "version"]))
    def some_come_back_in_the_midst_of_a_cycle(self, who: set[Key], when: str) -> None:
        self.world.comes_back[when] = who

    @rule(key=keys)
    def somebody_stops_theirs(self, key: Key) -> None:
        self.world.gone(key)

    @rule(key=keys)
    def an_admin_starts_it_anew(self, key: Key) -> None:
        self.world.gone(key)
        self.world.start(key)

    # -- what breaks ----------------------------------------------------------------------------------------------------

    @rule(up=st.booleans())
    def the_hub_goes_or_comes(self, up: bool) -> None:
        self.world.switch_hub(up)

    @rule(up=st.booleans())
    def the_proxy_goes_or_comes(self, up: bool) -> None:
        self.world.switch_proxy(up)

    @rule(up=st.booleans())
    def the_database_is_locked_or_free(self, up: bool) -> None:
        self.world.switch_database(up)

    @rule(
        nth=st.sampled_from(
            [None, None, (2, "429"), (3, "500"), (1, "503"), (2, "timeout"), (5, "500"), (1, "timeout")]
        )
    )
    def answers_fail(self, nth: tuple[int, str] | None) -> None:
        self.world.every_nth_fails = nth

    @rule()
    def the_proxy_forgets_all(self) -> None:
        self.world.proxy.wipe()

    @rule(frozen=st.booleans())
    def the_hub_notices_no_use(self, frozen: bool) -> None:
        self.world.frozen = frozen

    @rule(share=st.sampled_from([0.1, 0.5]))
    def users_are_gone(self, share: float) -> None:
        for number in range(int(MANY * share)):
            self.world.hub._users.pop(f"student{number:02}", None)

    @rule()
    def users_are_back(self) -> None:
        for number in range(MANY):
            self.world.hub.add_user(User(f"student{number:02}", admin=False))

    # -- the guard ------------------------------------------------------------------------------------------------------

    @rule(away_s=st.sampled_from([0.1, 1.0, 130.0, 7200.0]))
    def the_guard_is_killed(self, away_s: float) -> None:
        self.world.kill()
        self.world.passes(away_s)
        self.world.begin()

    @rule(away_s=st.sampled_from([0.1, 30.0]))
    def the_guard_is_restarted(self, away_s: float) -> None:
        self.world.end()
        self.world.passes(away_s)
        self.world.begin()

    @rule(steps=st.integers(0, 60), away_s=st.sampled_from([0.1, 130.0]))
    def the_guard_is_killed_between_two_steps(self, steps: int, away_s: float) -> None:
        life = self.world.life
        assert life is not None
        life.dies_at = len(life.steps) + steps
        self.world.passes(EVERY_S)
        self.world.kill()
        self.world.passes(away_s)
        self.world.begin()

    @rule(seconds=st.sampled_from([-86400.0, -3600.0, -30.0, 30.0, 3600.0, 86400.0]))
    def the_date_jumps(self, seconds: float) -> None:
        self.world.jump(seconds)

    @rule()
    def the_date_is_right_again(self) -> None:
        self.world.jump(-self.world.wall.ahead_s)

    # -- people who look after it ------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(["hold", "resume", "resume", "arm", "arm", "observe"]))
    def somebody_decides(self, what: str) -> None:
        life = self.world.life
        assert life is not None
        with contextlib.suppress(HubGuardError):
            self.world.run(getattr(life.guard.mandate, what)("ada", "for a reason"))

    @rule(user=st.sampled_from(USERS), hours=st.sampled_from([0.2, 3.0]))
    def somebody_asks_to_keep_theirs(self, user: str, hours: float) -> None:
        world = self.world
        assert world.life is not None
        until = world.wall.now() + timedelta(hours=hours)
        with contextlib.suppress(HubGuardError):
            kept = world.run(
                world.life.guard.parts.culling.exempt("ada", "a long run", user=user, server=None, until=until)
            )
            world.kept_until[kept.id] = (user, until, world.clock.monotonic_s())

    @precondition(lambda self: self.world.kept_until)
    @rule(data=st.data())
    def it_need_not_be_kept(self, data: st.DataObject) -> None:
        world = self.world
        assert world.life is not None
        one = data.draw(st.sampled_from(sorted(world.kept_until)))
        with contextlib.suppress(HubGuardError):
            world.run(world.life.guard.parts.culling.end_exemption(one, "ada", ""))
            del world.kept_until[one]

    # -- and in the end -----------------------------------------------------------------------------------------------------

    def in_a_sane_world_all_that_is_due_is_stopped(self) -> None:
        world = self.world
        world.heal()
        world.switch_database(True)
        assert world.life is not None
        # A guard that died while its clock was ahead leaves a lease that takes its time to be seen as nobody's.
        for _ in range(20):
            if world.life.guard.mandate.holds_lease:
                break
            world.passes(2 * EVERY_S)
        # Long enough for the slowest back-off, a feed that has to be seen alive again, and a number of users to be noticed.
        world.passes(2 * UPDATE_S + 2 * EVERY_S)
        world.run(world.life.guard.mandate.resume("ada", "all is well"))
        world.passes(2 * LIMIT_S + RETRY_MAX_S)
        status = world.life.guard.status()
        assert status.brake is None, status.brake
        assert world.running() == set(), world.explained()
        world.all_is_accounted_for()


PROFILE = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def test_weeks_of_faults_break_no_guarantee():
    run_state_machine_as_test(
        Weeks, settings=settings(max_examples=6, stateful_step_count=30, derandomize=True, **PROFILE)
    )


@pytest.mark.long
def test_many_weeks_of_faults_break_no_guarantee():
    run_state_machine_as_test(
        Weeks, settings=settings(max_examples=100, stateful_step_count=60, derandomize=True, **PROFILE)
    )


def test_a_guard_that_died_while_its_clock_was_ahead_keeps_no_other_from_acting():
    world = World()
    try:
        world.journal.arm("ada", "", world.clock.now())
        world.jump(7 * 86400.0)
        world.begin()
        world.passes(60.0)
        world.kill()
        world.jump(-7 * 86400.0)
        world.start(("ada", ""), idle_s=2 * LIMIT_S)
        world.begin()
        world.passes(3600.0)
        assert world.running() == set(), world.explained()
        world.all_is_accounted_for()
    finally:
        world.close()


QUICK = {"HubGuardCull": {**SETTINGS["HubGuardCull"], "every_s": 60.0}}


@pytest.fixture
def world() -> Iterator[World]:
    world = World(settings=QUICK)
    world.journal.arm("ada", "", world.clock.now())
    world.begin()
    world.passes(UPDATE_S + 1)
    yield world
    world.close()


def test_use_that_the_proxy_has_forgotten_still_counts_where_it_was_seen(world: World):
    """It loses its table before the hub has taken over what was in it, and has no route until the hub puts it right."""
    world.start(("ada", ""), idle_s=LIMIT_S - 60)
    world.use(("ada", ""))
    world.passes(130)
    world.proxy.wipe()
    world.passes(100)
    assert world.running() == {("ada", "")}


def test_nothing_is_stopped_on_the_hubs_word_alone_while_the_proxy_does_not_answer(world: World):
    """Too short to be an outage, and long enough to miss somebody who has just come back."""
    world.start(("ada", ""), idle_s=LIMIT_S + 60)
    world.use(("ada", ""))
    world.proxy_up = False
    world.passes(100)
    assert world.running() == {("ada", "")}
    world.proxy_up = True
    world.passes(LIMIT_S + 300)
    assert world.running() == set()
