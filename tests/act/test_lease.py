"""The lease: one guard acts, its fence rises with each change of holder, and a stale one is refused."""

from __future__ import annotations

import pytest
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.lease import HUB, LeaseKeeper
from hubguard.errors import ActingRefused, LeaseLost
from hubguard.journal.model import Event, Lease
from hubguard.model import Action

LEASE_S = 30.0
STOP = Action("ann", "", None, None, "idle")


class Scene:
    """Guards of one hub: one journal, one clock."""

    def __init__(self) -> None:
        self.journal = InlineJournal()
        self.clock = VirtualClock()

    def guard(self, holder: str, generation: float = 0.0) -> LeaseKeeper:
        where = f"http://{holder}"
        return LeaseKeeper(
            self.journal, self.clock, holder=holder, address=where, generation=generation, lease_s=LEASE_S
        )

    async def after(self, seconds: float) -> None:
        await self.clock.run(self.clock.sleep(seconds))


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def intend(guard: LeaseKeeper, **given: bool | None) -> int:
    return await guard.intend(STOP, "hubguard", **{"asked": False, "armed": True, **given})  # type: ignore[arg-type]


async def test_the_first_guard_gets_the_lease_and_the_second_stands_by(scene: Scene):
    one, two = scene.guard("one"), scene.guard("two")
    assert (await one.keep(), await two.keep()) == (True, False)
    assert one.lease is not None
    assert two.lease is None
    assert two.seen == one.lease
    with pytest.raises(LeaseLost):
        await intend(two)
    assert scene.journal.journal.open_intents() == ()


async def test_a_lease_that_was_not_renewed_runs_out_for_its_holder_before_another_one_takes_it(scene: Scene):
    one, two = scene.guard("one"), scene.guard("two")
    await one.keep()
    await scene.after(LEASE_S - 0.1)
    assert one.lease is not None
    await scene.after(0.2)
    assert one.lease is None, "it can't be sure of it any more"
    with pytest.raises(LeaseLost):
        await intend(one)
    assert await two.keep()
    assert two.seen is not None
    assert two.seen.fence == 2


async def test_a_lease_that_is_renewed_lasts_and_keeps_its_fence(scene: Scene):
    one, two = scene.guard("one"), scene.guard("two")
    for _ in range(10):
        assert await one.keep()
        assert not await two.keep()
        await scene.after(LEASE_S / 3)
    assert one.lease is not None
    assert one.lease.fence == 1


async def test_a_stale_fence_is_refused_and_the_guard_that_had_it_knows_that_it_lost_the_lease(scene: Scene):
    """The guard of a newer hub has taken the lease; the older one still counts on its own until it asks."""
    old, new = scene.guard("old", generation=1.0), scene.guard("new", generation=2.0)
    await old.keep()
    assert await new.keep()
    assert old.lease is not None
    with pytest.raises(LeaseLost):
        await intend(old)
    assert old.lease is None
    assert scene.journal.journal.open_intents() == ()
    assert await intend(new) > 0


async def test_only_the_guard_of_an_older_hub_is_superseded(scene: Scene):
    old, new = scene.guard("old", generation=1.0), scene.guard("new", generation=2.0)
    await old.keep()
    await new.keep()
    assert not await old.keep()
    assert old.superseded
    assert not new.superseded


async def test_an_external_guard_stands_by_beside_a_managed_one_and_is_not_superseded(scene: Scene):
    """It has no hub of its own (generation 0) that could have been replaced: it goes on when the lease is free."""
    managed, external = scene.guard("managed", generation=1.0), scene.guard("external")
    await managed.keep()
    for _ in range(3):
        assert not await external.keep()
    assert not external.superseded
    await managed.give_up()
    assert await external.keep()


async def test_a_guard_of_the_same_hub_does_not_take_the_lease_from_its_twin(scene: Scene):
    one, twin = scene.guard("one", generation=1.0), scene.guard("twin", generation=1.0)
    assert await one.keep()
    assert not await twin.keep()
    assert not twin.superseded


async def test_a_lease_that_was_given_up_is_free_at_once_and_its_holder_acts_no_more(scene: Scene):
    one, two = scene.guard("one"), scene.guard("two")
    await one.keep()
    await one.give_up()
    assert one.lease is None
    assert await two.keep()


async def test_a_lease_dated_far_ahead_is_free_once_its_holder_was_silent_for_twice_its_length(scene: Scene):
    """The holder's clock was a day ahead when it took the lease, and it is gone."""
    scene.journal.journal.take_lease(HUB, "ahead", "", 0, scene.clock.now(), 86_400)
    one = scene.guard("one")
    assert not await one.keep()
    await scene.after(2 * LEASE_S - 1)
    assert not await one.keep()
    await scene.after(2)
    assert not await one.keep(), "it is released now"
    assert await one.keep()


async def test_a_guard_that_has_long_been_up_waits_as_long_for_a_silent_holder(scene: Scene):
    one = scene.guard("one")
    await scene.after(10 * LEASE_S)
    scene.journal.journal.take_lease(HUB, "ahead", "", 0, scene.clock.now(), 86_400)
    assert not await one.keep()
    await scene.after(2 * LEASE_S - 1)
    for _ in range(2):
        assert not await one.keep()
    await scene.after(1)
    assert not await one.keep(), "it is released now"
    assert await one.keep()


async def test_a_holders_silence_counts_from_the_question_and_not_from_a_slow_journals_answer(scene: Scene):
    scene.journal.journal.take_lease(HUB, "ahead", "", 0, scene.clock.now(), 86_400)
    one, read = scene.guard("one"), scene.journal.lease

    async def slow(name: str) -> Lease | None:
        await scene.clock.sleep(5)
        return await read(name)

    scene.journal.lease = slow  # type: ignore[method-assign]
    assert not await scene.clock.run(one.keep())
    await scene.after(2 * LEASE_S - 5)
    assert not await scene.clock.run(one.keep()), "it is released now"
    assert await one.keep()


async def test_a_holder_that_renews_is_not_silent_however_long_one_waits(scene: Scene):
    one, two = scene.guard("one"), scene.guard("two")
    for _ in range(20):
        assert await one.keep()
        assert not await two.keep()
        await scene.after(LEASE_S / 3)
    assert one.lease is not None


@pytest.mark.parametrize(("asked", "armed"), [(False, False), (False, None)])
async def test_an_intent_that_nobody_asked_for_takes_an_armed_guard(scene: Scene, asked: bool, armed: bool | None):
    one = scene.guard("one")
    await one.keep()
    with pytest.raises(ActingRefused, match="only observes"):
        await intend(one, asked=asked, armed=armed)
    assert await intend(one, asked=True, armed=armed) > 0


async def test_a_hold_refuses_every_intent_whoever_asked_and_however_armed(scene: Scene):
    one = scene.guard("one")
    await one.keep()
    scene.journal.journal.hold("ann", "exam", scene.clock.now())
    for asked in (False, True):
        with pytest.raises(ActingRefused, match="On hold"):
            await intend(one, asked=asked)
    assert scene.journal.journal.entries(event=Event.INTENT) == ()
