"""Carrying out a plan of culling in virtual time: what is sent, what isn't, and whose outcome is whose."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from doubles.hub import MemoryHub, Request, Stops
from virtual_time import VirtualClock

from hubguard.act.attempt import Attempt
from hubguard.cull.act import Executor
from hubguard.cull.decide.judge import CullPolicy, judge_all, judge_users, plan
from hubguard.cull.model import Known, Plan
from hubguard.errors import HubFailed, HubRefused, JournalError
from hubguard.model import Action, Cause, Order, Outcome, OutcomeKind, Server, User
from hubguard.pacing.budget import Budget

LOOK_LASTS_S = 15.0
UNVERIFIED_A_PLACE = 5

POLICY = CullPolicy(idle_timeout_s=600.0, max_age_s=0.0, users=True, user_idle_timeout_s=3600.0)
VERIFY_S = 60.0


class SlowHub(MemoryHub):
    """A hub at which a request to stop or delete a user in ``turns`` waits once for its turn: how long, and what happens."""

    turns: dict[str, tuple[float, Callable[[], object]]]

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        await self._wait(user)
        return await super().stop_server(user, name, remove=remove, confirm=confirm)

    async def delete_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        await self._wait(name)
        await super().delete_user(name, confirm=confirm)

    async def _wait(self, user: str) -> None:
        seconds, happens = self.turns.pop(user, (0.0, lambda: None))
        if seconds:
            await self._clock.sleep(seconds)
        happens()


@dataclass
class Keeper:
    """What an attempt writes down: each intent's action by id, its outcome, and who was left alone."""

    intents: dict[int, Action] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    skipped: list[Action] = field(default_factory=list)
    fails: Exception | None = None

    async def intend(self, action: Action, *args: Any, **kwargs: Any) -> int:
        self.intents[len(self.intents) + 1] = action
        return len(self.intents)

    async def settle(self, intent: int, outcome: Outcome) -> None:
        if self.fails is not None:
            raise self.fails
        assert intent not in self.outcomes
        self.outcomes[intent] = outcome

    async def skip(self, action: Action, *args: Any) -> None:
        self.skipped.append(action)

    def release(self, intent: int) -> None:
        pass


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hub = SlowHub(clock=self.clock)
        self.hub.turns = {}
        self.keeper = Keeper()
        self.known = Known()
        self.before_look: Callable[[Action], Any] = lambda action: None
        self.turn: Callable[[], Awaitable[None]] = self.at_once

    def idle(self, *users: str, stops: Stops = Stops.WORKS, stop_s: float = 0.0) -> None:
        """Idle servers of these users, the first for longest."""
        for minutes, user in zip(itertools.count(60, -1), users, strict=False):
            began, used = self.clock.now() - timedelta(days=1), self.clock.now() - timedelta(minutes=minutes)
            self.hub.add(Server(user, "", True, None, began, used), stops=stops, stop_s=stop_s)

    def gone(self, *users: str) -> None:
        """Users without a server who were last there two hours ago."""
        for user in users:
            at = self.clock.now() - timedelta(hours=2)
            self.hub.add_user(User(user, False, (), ("user",), at - timedelta(days=1), at))

    async def at_once(self) -> None:
        """Whoever asks for a turn has it."""

    def at_s(self, call: str) -> list[float]:
        return [request.at_s for request in self.hub.requests if request.call == call]

    async def plan(self) -> Plan:
        now = self.clock.now()
        servers = judge_all(await self.hub.list_servers(), POLICY, {}, now)
        users = judge_users(await self.hub.list_users(inactive_since=None), POLICY, (), now)
        made = plan(servers, POLICY, now, users)
        self.hub.requests.clear()
        return made

    async def carried_out(self, made: Plan | None = None, *, concurrency: int = 1) -> dict[str, Outcome]:
        """The outcomes by user, in the plan's order."""

        async def known_now(action: Action, server: Server | None) -> Known:
            self.before_look(action)
            return self.known

        executor = Executor(
            self.hub,
            self.clock,
            POLICY,
            known_now,
            lambda action: Attempt(self.keeper, self.clock, action, Order("ann")),  # type: ignore[arg-type]
            self.keeper.settle,
            self.turn,
            verify_s=VERIFY_S,
            running=10,
        )
        made = made or await self.plan()
        outcomes = await self.clock.run(executor.run(made, concurrency=concurrency))
        assert tuple(action for action, _ in outcomes) == made.actions
        return {action.user: outcome for action, outcome in outcomes}

    def sent(self, call: str = "stop") -> list[str]:
        return [request.user for request in self.hub.requests if request.call == call]


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- the second look --------------------------------------------------------------------------------------------------


async def test_a_request_that_waited_longer_than_a_look_lasts_looks_again_and_spares_who_came_back(scene: Scene):
    scene.idle("ann")
    scene.hub.turns["ann"] = (LOOK_LASTS_S + 1, lambda: scene.hub.change("ann", last_activity=scene.clock.now()))
    outcomes = await scene.carried_out()
    assert outcomes["ann"].kind is OutcomeKind.SKIPPED
    assert (scene.sent("get"), scene.sent("stop")) == (["ann", "ann"], [])
    assert scene.keeper.intents == {}


async def test_no_request_rests_on_a_look_older_than_its_limit(scene: Scene):
    scene.idle("ann")
    scene.hub.turns["ann"] = (LOOK_LASTS_S + 1, lambda: None)
    outcomes = await scene.carried_out()
    assert outcomes["ann"].kind is OutcomeKind.DONE
    *_, look, stop = [request for request in scene.hub.requests if request.call in ("get", "stop")][:3]
    assert (look.call, stop.call) == ("get", "stop")
    assert stop.at_s - look.at_s <= LOOK_LASTS_S


async def test_a_look_that_is_fresh_is_not_repeated(scene: Scene):
    scene.idle("ann")
    scene.hub.turns["ann"] = (LOOK_LASTS_S - 1, lambda: None)
    await scene.carried_out()
    assert [request.call for request in scene.hub.requests[:2]] == ["get", "stop"]


async def test_a_user_who_comes_back_while_their_deletion_waits_is_looked_at_again_and_kept(scene: Scene):
    scene.gone("ann")
    scene.hub.turns["ann"] = (LOOK_LASTS_S + 1, lambda: scene.idle("ann"))
    outcomes = await scene.carried_out()
    assert outcomes["ann"].kind is OutcomeKind.SKIPPED
    assert (scene.sent("get-user"), scene.sent("delete")) == (["ann", "ann"], [])


async def test_a_server_that_was_used_since_the_plan_is_spared(scene: Scene):
    scene.idle("ann", "ben")
    made = await scene.plan()
    scene.hub.change("ann", last_activity=scene.clock.now())
    outcomes = await scene.carried_out(made)
    assert outcomes["ann"].kind is OutcomeKind.SKIPPED
    assert scene.sent() == ["ben"]
    assert [action.user for action in scene.keeper.skipped] == ["ann"]


async def test_the_clock_of_a_server_starts_again_after_an_outage(scene: Scene):
    scene.idle("ann")
    made = await scene.plan()
    scene.known = Known(clock_from=scene.clock.now() - timedelta(minutes=5))
    outcomes = await scene.carried_out(made)
    assert outcomes["ann"].kind is OutcomeKind.SKIPPED
    assert scene.sent() == []


async def test_the_clock_of_a_user_starts_again_after_an_outage(scene: Scene):
    scene.gone("ann")
    made = await scene.plan()
    scene.known = Known(clock_from=scene.clock.now() - timedelta(minutes=5))
    outcomes = await scene.carried_out(made)
    assert outcomes["ann"].kind is OutcomeKind.SKIPPED
    assert scene.sent("delete") == []


async def test_an_outage_before_a_user_was_last_there_makes_nobody_wait(scene: Scene):
    scene.gone("ann")
    made = await scene.plan()
    scene.known = Known(clock_from=scene.clock.now() - timedelta(hours=5))
    outcomes = await scene.carried_out(made)
    assert outcomes["ann"].kind is OutcomeKind.DONE


# -- the plan's end ---------------------------------------------------------------------------------------------------


async def test_nothing_is_sent_for_a_plan_that_has_expired(scene: Scene):
    scene.idle("ann")
    made = await scene.plan()
    await scene.clock.run(scene.clock.sleep(600))
    outcomes = await scene.carried_out(made)
    assert (outcomes["ann"].kind, outcomes["ann"].cause) == (OutcomeKind.SKIPPED, Cause.NOT_TRIED)
    assert scene.hub.requests == []


async def test_a_plan_that_expires_on_the_way_is_left_there(scene: Scene):
    scene.idle("ann", "ben", "cas")
    made = await scene.plan()
    await scene.clock.run(scene.clock.sleep(590))
    scene.hub.turns["ann"] = (11.0, lambda: None)
    outcomes = await scene.carried_out(made)
    assert outcomes["ann"].kind is OutcomeKind.DONE
    assert {outcomes[user].cause for user in ("ben", "cas")} == {Cause.NOT_TRIED}
    assert {request.user for request in scene.hub.requests} == {"ann"}


async def test_nobody_is_deleted_before_all_servers_of_the_plan_are_settled(scene: Scene):
    scene.idle("ann", stop_s=20.0)
    scene.gone("ben")
    outcomes = await scene.carried_out(concurrency=5)
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.DONE}
    gone_at = max(request.at_s for request in scene.hub.requests if request.call == "get")
    (look, *_) = [request for request in scene.hub.requests if request.call == "get-user"]
    assert look.at_s >= gone_at >= 20.0


# -- whose outcome is whose -------------------------------------------------------------------------------------------


async def test_each_stop_has_its_own_outcome_however_long_each_takes(scene: Scene):
    scene.idle("slow", "ghost", "raises", "quick", "lost")
    for user, (stops, stop_s) in {
        "slow": (Stops.WORKS, 25.0),
        "ghost": (Stops.GHOST, 0.0),
        "raises": (Stops.POLL_RAISES, 0.0),
        "quick": (Stops.WORKS, 0.0),
        "lost": (Stops.ANSWER_LOST, 0.0),
    }.items():
        server = await scene.hub.get_server(user, "")
        assert server is not None
        scene.hub.add(server, stops=stops, stop_s=stop_s)
    outcomes = await scene.carried_out(concurrency=3)
    assert {user: (outcome.kind, outcome.cause) for user, outcome in outcomes.items()} == {
        "slow": (OutcomeKind.DONE, Cause.NONE),
        "ghost": (OutcomeKind.FAILED, Cause.CHANGED_NOTHING),
        "raises": (OutcomeKind.FAILED, Cause.NONE),
        "quick": (OutcomeKind.DONE, Cause.NONE),
        "lost": (OutcomeKind.DONE, Cause.NONE),
    }
    recorded = {scene.keeper.intents[intent].user: outcome for intent, outcome in scene.keeper.outcomes.items()}
    assert recorded == outcomes


async def test_each_deletion_has_its_own_outcome(scene: Scene):
    scene.gone("ann", "ben", "cas")
    scene.hub.fault = lambda asked: (
        HubFailed("no", status=500) if (asked.call, asked.user) == ("delete", "ben") else None
    )
    outcomes = await scene.carried_out(concurrency=3)
    kinds = {user: outcome.kind for user, outcome in outcomes.items()}
    assert kinds == {"ann": OutcomeKind.DONE, "ben": OutcomeKind.FAILED, "cas": OutcomeKind.DONE}
    recorded = {scene.keeper.intents[intent].user: outcome for intent, outcome in scene.keeper.outcomes.items()}
    assert recorded == outcomes


# -- what ends the rest, and what doesn't -----------------------------------------------------------------------------


def fails(*calls: tuple[str, str], error: Exception | None = None) -> Callable[[Request], Any]:
    return lambda asked: (error or HubFailed("no", status=500)) if (asked.call, asked.user) in calls else None


@pytest.mark.parametrize("call", ["get", "stop"])
async def test_one_failure_never_ends_the_rest(scene: Scene, call: str):
    scene.idle("ann", "ben", "cas")
    scene.hub.fault = fails((call, "ann"))
    outcomes = await scene.carried_out()
    assert [outcomes[user].kind for user in ("ben", "cas")] == [OutcomeKind.DONE, OutcomeKind.DONE]
    assert outcomes["ann"].kind is not OutcomeKind.DONE


async def test_a_bug_in_one_second_look_never_ends_the_rest(scene: Scene):
    scene.idle("ann", "ben")

    def breaks(action: Action) -> None:
        if action.user == "ann":
            raise ZeroDivisionError

    scene.before_look = breaks
    outcomes = await scene.carried_out()
    assert (outcomes["ann"].cause, outcomes["ben"].kind) == (Cause.NOT_TRIED, OutcomeKind.DONE)


async def test_a_hub_that_refuses_the_token_ends_the_rest(scene: Scene):
    scene.idle("ann", "ben", "cas")
    scene.hub.fault = fails(("stop", "ann"), error=HubRefused("no"))
    outcomes = await scene.carried_out()
    assert outcomes["ann"].kind is OutcomeKind.FAILED
    assert {outcomes[user].cause for user in ("ben", "cas")} == {Cause.NOT_TRIED}
    assert scene.sent() == ["ann"]


async def test_a_journal_that_takes_no_outcome_ends_the_rest_and_what_was_done_is_told(scene: Scene):
    scene.idle(*(f"user{number}" for number in range(20)))
    scene.keeper.fails = JournalError("full")
    outcomes = list((await scene.carried_out()).values())
    assert outcomes[0].kind is OutcomeKind.DONE
    assert outcomes[-1].cause is Cause.NOT_TRIED
    assert len(scene.sent()) < 20


async def test_the_end_that_one_stop_comes_upon_is_not_lost_though_one_after_it_has_nothing_to_say(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    scene.idle("ann", "ben", "cas")
    settle = scene.keeper.settle

    async def full_once(intent: int, outcome: Outcome) -> None:
        if scene.keeper.intents[intent].user == "ann":
            raise JournalError("full")
        await settle(intent, outcome)

    monkeypatch.setattr(scene.keeper, "settle", full_once)
    scene.hub.turns["ben"] = (5.0, lambda: None)
    outcomes = await scene.carried_out()
    assert {user: outcome.kind for user, outcome in outcomes.items()} == {
        "ann": OutcomeKind.DONE,
        "ben": OutcomeKind.DONE,
        "cas": OutcomeKind.SKIPPED,
    }
    assert "full" in outcomes["cas"].detail
    assert scene.sent() == ["ann", "ben"]


# -- how far apart ----------------------------------------------------------------------------------------------------


async def test_second_looks_and_stops_are_as_far_apart_as_one_takes_also_the_first_of_a_batch(scene: Scene):
    scene.turn = Budget(rate=1000, burst=1000, concurrency=10, clock=scene.clock).turn
    scene.idle(*(f"user{number:02}" for number in range(40)))
    made = await scene.plan()
    for number in range(40):
        scene.hub.turns[f"user{number:02}"] = (1.0, lambda: None)  # that long each stop takes
    began_s = scene.clock.monotonic_s()
    outcomes = await scene.carried_out(made, concurrency=10)
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.DONE}
    stops = scene.at_s("stop")
    looks = [request.at_s for request in scene.hub.requests if request.call == "get"][:10]
    assert (len(stops), len(looks)) == (40, 10)
    for times in (stops, looks):
        assert min(later - sooner for sooner, later in itertools.pairwise(times)) >= 0.1
    assert max(stops) - began_s < 5.5, "hardly slower than ten at a time"


async def test_what_is_not_tried_any_more_waits_for_no_turn(scene: Scene):
    scene.turn = Budget(rate=1000, burst=1000, concurrency=1, clock=scene.clock).turn
    scene.idle(*(f"user{number:02}" for number in range(40)))
    scene.hub.fault = fails(("stop", "user00"), error=HubRefused("no"))
    await scene.carried_out()
    assert scene.clock.monotonic_s() < 5


# -- how many at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_stop_that_was_verified_makes_room_for_the_next(scene: Scene, concurrency: int):
    users = [f"user{number:02}" for number in range(4 * concurrency * UNVERIFIED_A_PLACE)]
    scene.idle(*users)
    outcomes = await scene.carried_out(concurrency=concurrency)
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.DONE}
    assert scene.sent() == users


async def test_a_user_who_is_spared_makes_room_for_the_next(scene: Scene):
    users = [f"user{number:02}" for number in range(4 * UNVERIFIED_A_PLACE)]
    scene.idle(*users)
    made = await scene.plan()
    for user in users[:-1]:
        scene.hub.change(user, last_activity=scene.clock.now())
    await scene.carried_out(made)
    assert scene.sent() == users[-1:]


async def test_a_user_who_was_deleted_makes_room_for_the_next(scene: Scene):
    users = [f"user{number:02}" for number in range(4 * UNVERIFIED_A_PLACE)]
    scene.gone(*users)
    outcomes = await scene.carried_out()
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.DONE}
    assert scene.sent("delete") == users


async def test_no_more_stops_wait_for_their_proof_than_there_is_room_for(scene: Scene):
    users = [f"user{number:02}" for number in range(2 * UNVERIFIED_A_PLACE)]
    scene.idle(*users, stops=Stops.GHOST)
    await scene.carried_out()
    in_time = [request for request in scene.hub.requests if request.call == "stop" and request.at_s < VERIFY_S / 2]
    assert len(in_time) == UNVERIFIED_A_PLACE
    assert scene.sent() == users
