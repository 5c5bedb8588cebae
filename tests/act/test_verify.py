"""What came of a stop is what a re-read shows, and nothing else: not the hub's answer, and not a read that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from virtual_time import VirtualClock

from hubguard.act.verify import Verifier
from hubguard.errors import BudgetExhausted, HubError, HubFailed, HubUnreachable
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind, Server

STARTED = datetime(2024, 3, 5, 7, 0, tzinfo=timezone.utc)
VERIFY_S = 60.0

Shown = Server | HubError | BudgetExhausted | RuntimeError | None


def server(user: str = "ann", *, ready: bool = True, pending: str | None = None, started: datetime = STARTED) -> Server:
    return Server(user, "", ready, pending, started, None)


def stop(user: str = "ann", kind: ActionKind = ActionKind.STOP_SERVER) -> Action:
    return Action(user, "", STARTED, None, "idle", kind=kind)


class ScriptedHub:
    """Shows of each user's server what ``script(user, seconds)`` says; an error is raised. ``reads`` is what it was asked."""

    def __init__(self, clock: VirtualClock, script: Callable[[str, float], Shown], *users: str) -> None:
        self._clock = clock
        self._script = script
        self._users = users
        self.reads: list[tuple[float, str]] = []
        self.list_error: HubError | None = None

    def _shown(self, user: str) -> Server | None:
        shown = self._script(user, self._clock.monotonic_s())
        if isinstance(shown, Exception):
            raise shown
        return shown

    async def get_server(self, user: str, name: str) -> Server | None:
        self.reads.append((self._clock.monotonic_s(), user))
        return self._shown(user)

    async def list_servers(self) -> tuple[Server, ...]:
        self.reads.append((self._clock.monotonic_s(), "everybody"))
        if self.list_error is not None:
            error, self.list_error = self.list_error, None
            raise error
        return tuple(shown for user in self._users if (shown := self._shown(user)) is not None)


class Scene:
    """A verifier over a scripted hub, in virtual time."""

    def __init__(self, script: Callable[[str, float], Shown], *users: str, running: int = 1) -> None:
        self.clock = VirtualClock()
        self.hub = ScriptedHub(self.clock, script, *users)
        self.verifier = Verifier(self.hub, self.clock, verify_s=VERIFY_S, running=running)  # type: ignore[arg-type]

    async def outcome(self, action: Action | None = None, remark: str = "", *, failed: bool = False) -> Outcome:
        return await self.clock.run(self.verifier.outcome(action or stop(), remark, failed=failed))

    async def outcomes(self, users: list[str]) -> dict[str, Outcome]:
        async def all_of_them() -> list[Outcome]:
            return await asyncio.gather(*(self.verifier.outcome(stop(user), "", failed=False) for user in users))

        return dict(zip(users, await self.clock.run(all_of_them()), strict=True))


async def test_a_server_that_is_gone_at_a_reread_is_done():
    scene = Scene(lambda _, at_s: None if at_s >= 3 else server())
    outcome = await scene.outcome()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.DONE, Cause.NONE)
    assert 3 <= scene.clock.monotonic_s() < 5


async def test_the_first_reread_waits_half_a_second_and_each_next_twice_as_long_up_to_eight():
    scene = Scene(lambda _, at_s: server(ready=False, pending="stop"))
    await scene.outcome()
    assert [at_s for at_s, _ in scene.hub.reads] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 56.0]


async def test_another_run_of_the_server_shows_that_this_one_is_gone():
    scene = Scene(lambda _, at_s: server(started=STARTED + timedelta(seconds=30)))
    outcome = await scene.outcome()
    assert outcome.kind is OutcomeKind.DONE
    assert "started again" in outcome.detail


async def test_a_stop_that_was_taken_and_changed_nothing_is_a_failure_once_the_time_is_up():
    scene = Scene(lambda _, at_s: server())
    outcome = await scene.outcome()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.FAILED, Cause.CHANGED_NOTHING)
    assert scene.clock.monotonic_s() > VERIFY_S - 8


async def test_a_server_that_is_still_on_its_way_down_when_the_time_is_up_is_unverified():
    scene = Scene(lambda _, at_s: server(ready=False, pending="stop"))
    outcome = await scene.outcome()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.UNVERIFIED, Cause.NONE)


async def test_a_server_that_was_on_its_way_down_and_is_ready_again_came_back():
    scene = Scene(lambda _, at_s: server() if at_s >= 30 else server(ready=False, pending="stop"))
    outcome = await scene.outcome()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.FAILED, Cause.CAME_BACK)
    assert scene.clock.monotonic_s() < VERIFY_S


async def test_it_came_back_also_where_a_read_in_between_showed_it_neither_stopping_nor_ready():
    between = server(ready=False)
    scene = Scene(
        lambda _, at_s: server() if at_s >= 8 else between if at_s >= 4 else server(ready=False, pending="stop")
    )
    assert (await scene.outcome()).cause is Cause.CAME_BACK


async def test_a_server_that_was_never_seen_on_its_way_down_did_not_come_back():
    """It may just not have begun to stop: that it is ready at first is no end."""
    scene = Scene(
        lambda _, at_s: None if at_s >= 20 else server(ready=False, pending="stop") if at_s >= 10 else server()
    )
    outcome = await scene.outcome()
    assert (outcome.kind, outcome.cause) == (OutcomeKind.DONE, Cause.NONE)


async def test_with_the_hubs_no_a_server_that_is_as_it_was_is_a_failure_at_once():
    scene = Scene(lambda _, at_s: server())
    outcome = await scene.outcome(remark="the hub answered 500", failed=True)
    assert outcome.kind is OutcomeKind.FAILED
    assert "the hub answered 500" in outcome.detail
    assert scene.clock.monotonic_s() == 0.0


async def test_with_the_hubs_no_a_server_that_is_gone_all_the_same_is_done():
    scene = Scene(lambda _, at_s: None)
    outcome = await scene.outcome(remark="the hub answered 500", failed=True)
    assert outcome.kind is OutcomeKind.DONE
    assert scene.clock.monotonic_s() == 0.0


async def test_with_the_hubs_no_a_server_that_is_stopping_is_waited_for():
    scene = Scene(lambda _, at_s: None if at_s >= 5 else server(ready=False, pending="stop"))
    outcome = await scene.outcome(failed=True)
    assert outcome.kind is OutcomeKind.DONE
    assert scene.clock.monotonic_s() >= 5


@pytest.mark.parametrize(
    "error", [HubUnreachable("no answer"), HubFailed("oops", status=500), BudgetExhausted("no room")]
)
async def test_a_read_that_failed_shows_nothing_and_the_next_one_does(error: HubError | BudgetExhausted):
    scene = Scene(lambda _, at_s: error if at_s < 10 else server(ready=False, pending="stop") if at_s < 20 else None)
    outcome = await scene.outcome()
    assert outcome.kind is OutcomeKind.DONE
    assert scene.clock.monotonic_s() >= 20


async def test_where_no_read_ever_worked_the_outcome_is_unverified_and_says_so():
    scene = Scene(lambda _, at_s: HubUnreachable("nobody is there"))
    outcome = await scene.outcome()
    assert outcome.kind is OutcomeKind.UNVERIFIED
    assert "nobody is there" in outcome.detail


async def test_an_interrupted_start_that_came_up_is_left_running_and_counts_as_done():
    scene = Scene(lambda _, at_s: server())
    outcome = await scene.outcome(stop(kind=ActionKind.INTERRUPT_SPAWN))
    assert (outcome.kind, outcome.cause) == (OutcomeKind.DONE, Cause.NONE)


async def test_an_interrupted_start_that_the_hub_refused_to_end_is_a_failure_at_once():
    scene = Scene(lambda _, at_s: server(ready=False, pending="spawn"))
    outcome = await scene.outcome(stop(kind=ActionKind.INTERRUPT_SPAWN), "the hub answered 500", failed=True)
    assert outcome.kind is OutcomeKind.FAILED
    assert scene.clock.monotonic_s() == 0.0


MANY = [f"user-{number:02d}" for number in range(40)]


async def test_many_stops_are_read_again_by_one_list_and_each_has_its_own_outcome():
    gone = set(MANY[:20])
    scene = Scene(lambda user, at_s: None if user in gone else server(user), *MANY)
    outcomes = await scene.outcomes(MANY)
    assert {user for user, outcome in outcomes.items() if outcome.kind is OutcomeKind.DONE} == gone
    assert {outcomes[user].cause for user in MANY[20:]} == {Cause.CHANGED_NOTHING}
    assert scene.hub.reads[0] == (0.5, "everybody")


async def test_a_list_that_could_not_be_read_records_nobody_as_gone():
    scene = Scene(lambda user, at_s: server(user), *MANY)
    scene.hub.list_error = HubUnreachable("the connection broke")
    outcomes = await scene.outcomes(MANY)
    assert len(outcomes) == 40
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.FAILED}


async def test_a_few_stops_are_read_one_by_one_and_on_a_large_hub_more_of_them():
    few = MANY[:10]
    small, large = Scene(lambda *_: None, *MANY, running=1), Scene(lambda *_: None, *MANY, running=1000)
    await small.outcomes(few)
    assert {user for _, user in small.hub.reads} == set(few)
    await large.outcomes(MANY)
    assert {user for _, user in large.hub.reads} == set(MANY)


async def test_what_was_stopped_apart_is_read_again_as_far_apart_and_not_in_a_heap():
    scene = Scene(lambda *_: None)

    async def stopped(number: int) -> Outcome:
        await scene.clock.sleep(number / 8)
        return await scene.verifier.outcome(stop(f"user-{number}"), "", failed=False)

    async def story() -> list[Outcome]:
        return await asyncio.gather(*map(stopped, range(6)))

    assert {outcome.kind for outcome in await scene.clock.run(story())} == {OutcomeKind.DONE}
    assert [at_s for at_s, _ in scene.hub.reads] == [0.5, 0.625, 0.75, 0.875, 1.0, 1.125]


async def test_a_server_handed_over_while_others_are_waited_for_is_read_when_it_is_due():
    scene = Scene(lambda user, at_s: None if user == "bo" or at_s >= 50 else server(user, ready=False, pending="stop"))

    async def story() -> tuple[Outcome, float, Outcome]:
        ann = asyncio.ensure_future(scene.verifier.outcome(stop("ann"), "", failed=False))
        await scene.clock.sleep(17)
        bo = await scene.verifier.outcome(stop("bo"), "", failed=False)
        return bo, scene.clock.monotonic_s(), await ann

    bo, bo_at_s, ann = await scene.clock.run(story())
    assert (bo.kind, ann.kind) == (OutcomeKind.DONE, OutcomeKind.DONE)
    assert bo_at_s == 17.5


async def test_a_defect_while_reading_reaches_everybody_who_waits_instead_of_leaving_them_waiting():
    scene = Scene(lambda user, at_s: RuntimeError("a defect"))

    async def story() -> list[Outcome | BaseException]:
        waiting = [scene.verifier.outcome(stop(user), "", failed=False) for user in ("ann", "bo")]
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [str(found) for found in await scene.clock.run(story())] == ["a defect", "a defect"]
