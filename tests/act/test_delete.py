"""Whether a user is gone: only a re-read says so, and what can't be read is unknown and told."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from doubles.hub import MemoryHub
from virtual_time import VirtualClock

from hubguard.act.attempt import Sent
from hubguard.act.delete import UserDeleter
from hubguard.errors import HubGuardError, HubUnreachable
from hubguard.model import Outcome, OutcomeKind, User

ANSWERED = Sent("", failed=False)


class Scene:
    """A hub with ann, and the deleter; ``noted`` are the errors that it was given."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hub = MemoryHub(clock=self.clock)
        self.created = self.clock.now() - timedelta(days=500)
        self.hub.add_user(User("ann", False, (), ("user",), self.created, None))
        self.noted: list[HubGuardError] = []
        self.deleter = UserDeleter(self.hub, self.clock, verify_s=60.0, note_error=self.noted.append)

    def silent(self) -> None:
        self.hub.fault = lambda request: HubUnreachable("no answer")

    async def verified(self, sent: Sent = ANSWERED) -> Outcome:
        return await self.clock.run(self.deleter.verify("ann", self.created, sent))


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_user_is_gone_when_the_hub_has_none_of_that_name_or_one_who_was_created_later(scene: Scene):
    assert await scene.deleter.is_gone("ann", scene.created) is False
    assert await scene.deleter.is_gone("ann", scene.created - timedelta(days=1)) is True
    assert await scene.deleter.is_gone("bob", scene.created) is True
    assert scene.noted == []


async def test_while_the_hub_is_silent_it_is_unknown_whether_a_user_is_gone_and_that_is_told(scene: Scene):
    scene.silent()
    assert await scene.deleter.is_gone("ann", scene.created) is None
    assert [str(error) for error in scene.noted] == ["no answer"]


async def test_a_user_who_is_still_there_after_a_minute_was_not_deleted(scene: Scene):
    outcome = await scene.verified()
    assert (outcome.kind, scene.clock.monotonic_s() > 50) == (OutcomeKind.FAILED, True)
    assert scene.clock.monotonic_s() <= 60


async def test_one_who_is_gone_in_the_end_was_deleted_however_long_it_took(scene: Scene):
    async def goes() -> None:
        await scene.clock.sleep(40.0)
        scene.hub._users.pop("ann")

    going = asyncio.ensure_future(goes())
    outcome = await scene.verified()
    await going
    assert outcome == Outcome(OutcomeKind.DONE, "gone at a re-read")


async def test_after_a_lost_answer_a_user_is_read_again_for_as_long_as_after_any_other(scene: Scene):
    """The hub may have taken the request, and take its time."""

    async def goes() -> None:
        await scene.clock.sleep(40.0)
        scene.hub._users.pop("ann")

    going = asyncio.ensure_future(goes())
    outcome = await scene.verified(Sent("the answer was lost", failed=False))
    going.cancel()
    assert outcome == Outcome(OutcomeKind.DONE, "gone at a re-read (the answer was lost)")


async def test_with_the_hubs_no_a_user_who_is_still_there_is_a_failure_at_once_and_one_who_is_gone_was_deleted(
    scene: Scene,
):
    no = Sent("the hub answered 500", failed=True)
    outcome = await scene.verified(no)
    assert outcome.kind is OutcomeKind.FAILED
    assert "the hub answered 500" in outcome.detail
    assert scene.clock.monotonic_s() == 0.0
    scene.hub._users.pop("ann")
    assert (await scene.verified(no)).kind is OutcomeKind.DONE


async def test_a_hub_that_refused_deleted_nobody_and_isnt_asked_again(scene: Scene):
    outcome = await scene.verified(Sent("403", failed=True, refused=True))
    assert outcome == Outcome(OutcomeKind.FAILED, "403")
    assert scene.hub.requests == []


async def test_whoever_took_the_name_since_shows_that_the_user_before_them_is_gone(scene: Scene):
    scene.created -= timedelta(days=1)
    assert (await scene.verified()).kind is OutcomeKind.DONE


async def test_a_hub_that_stays_silent_leaves_it_open_and_each_silence_is_told(scene: Scene):
    scene.silent()
    assert (await scene.verified()).kind is OutcomeKind.UNVERIFIED
    assert len(scene.noted) > 5


@pytest.mark.parametrize(("remark", "proved"), [("", True), ("the answer was lost", False)])
async def test_a_proof_counts_where_the_hub_said_that_the_user_is_gone_and_isnt_asked_for_otherwise(
    scene: Scene, remark: str, proved: bool
):
    asked: list[str] = []

    async def proof() -> bool:
        asked.append("once")
        return True

    sent = Sent(remark, failed=False)
    outcome = await scene.clock.run(scene.deleter.verify("ann", scene.created, sent, proof=proof))
    assert (outcome.kind is OutcomeKind.DONE, len(asked), scene.hub.requests == []) == (proved, int(proved), proved)
