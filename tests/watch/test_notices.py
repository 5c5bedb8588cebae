"""The queue of notices in virtual time: receivers that fail, restarts, digests, silences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from builders import minutes
from doubles.guard import PlacedJournal
from doubles.watch import alert_of
from virtual_time import VirtualClock

from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import Result, Together, back_off_s
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import Severity
from hubguard.watch.notify.choose import Named
from hubguard.watch.notify.queue import Notices
from hubguard.watch.store.alerts import AlertStore

WELL = Result(delivered=True, said="answered 200")
BROKEN = Result(delivered=False, said="answered 500", again=True, reached=False)


class FakeReceiver:
    """Keeps what it was sent, and answers what it is set to."""

    spacing_s = 0.1

    def __init__(self, together: Together = Together.ONE, repeat_s: float | None = None) -> None:
        self.together = together
        self.repeat_s = repeat_s
        self.answer = WELL
        self.sent: list[list[str]] = []

    async def send(self, messages: Sequence[Message]) -> Result:
        self.sent.append([f"{message.rule} {'over' if message.resolved else 'raised'}" for message in messages])
        return self.answer

    async def close(self) -> None:
        pass


class World:
    def __init__(self, **receivers: FakeReceiver) -> None:
        self.clock = VirtualClock()
        self.books = PlacedJournal()
        self.receivers = receivers or {"ops": FakeReceiver()}
        self.begin_anew()

    def begin_anew(self) -> None:
        """Another guard, over the same journal and receivers."""
        mandate: Any = SimpleNamespace(journal=self.books, fence=1, holds_lease=True)
        named = [Named(name, frozenset(Severity), receiver) for name, receiver in self.receivers.items()]
        self.notices = Notices(named, RULES, mandate, self.clock)

    @property
    def store(self) -> AlertStore:
        return AlertStore(self.books.sync)

    @property
    def sent(self) -> list[list[str]]:
        return self.receivers["ops"].sent

    def raised(self, rule: str = "HubDown", to: Sequence[str] = ("ops",), subject: str = "") -> int:
        alert = alert_of(rule, subject, raised_at=self.clock.now(), id=None)
        return self.store.raise_alert(alert, Severity.NOW, f"{rule} it is.", 1, to)

    def resolved(self, id_: int, to: Sequence[str] = ("ops",)) -> None:
        self.store.resolve_alert(id_, 1.0, "It is resolved.", 1, to, self.clock.now())

    async def pass_s(self, seconds: float) -> None:
        async def life() -> None:
            ends = self.clock.now() + timedelta(seconds=seconds)
            while self.clock.now() < ends:
                await self.notices.turn()
                await self.notices.wait()

        await self.clock.run(life())


async def test_a_raised_alert_is_sent_once_and_its_end_once() -> None:
    world = World()
    id_ = world.raised()
    await world.pass_s(60)
    world.resolved(id_)
    await world.pass_s(60)
    assert world.sent == [["HubDown raised"], ["HubDown over"]]


async def test_a_receiver_that_fails_is_tried_again_with_pauses_and_over_a_restart() -> None:
    world = World()
    world.receivers["ops"].answer = BROKEN
    world.raised()
    await world.pass_s(600)
    tries = len(world.sent)
    assert 4 <= tries <= 7
    (finding,) = world.notices.status().findings
    assert "Notices don't reach ops: answered 500." in finding.detail
    world.begin_anew()
    world.receivers["ops"].answer = WELL
    await world.pass_s(1000)
    assert len(world.sent) == tries + 1
    assert world.notices.status().findings == ()


async def test_a_dead_receiver_keeps_no_other_waiting() -> None:
    world = World(ops=FakeReceiver(), dead=FakeReceiver())
    world.receivers["dead"].answer = BROKEN
    world.raised(to=("dead", "ops"))
    await world.pass_s(30)
    assert world.sent == [["HubDown raised"]]


async def test_what_a_receiver_refuses_for_good_is_not_sent_again() -> None:
    world = World()
    world.receivers["ops"].answer = Result(delivered=False, said="answered 400", again=False)
    world.raised()
    await world.pass_s(3600)
    assert len(world.sent) == 1
    assert world.notices.status().counts["ops", "given-up"] == 1


@pytest.mark.long
async def test_a_notice_is_given_up_after_a_day() -> None:
    world = World()
    world.receivers["ops"].answer = BROKEN
    world.raised()
    await world.pass_s(25 * 3600)
    tries = len(world.sent)
    await world.pass_s(7200)
    assert len(world.sent) == tries
    assert world.notices.status().counts["ops", "given-up"] == 1


async def test_who_never_heard_of_an_alert_does_not_hear_of_its_end() -> None:
    world = World()
    world.receivers["ops"].answer = BROKEN
    id_ = world.raised()
    await world.pass_s(30)
    world.resolved(id_)
    world.receivers["ops"].answer = WELL
    world.sent.clear()
    await world.pass_s(3600)
    assert ["HubDown over"] not in world.sent or world.sent.index(["HubDown raised"]) < world.sent.index(
        ["HubDown over"]
    )


async def test_many_at_once_come_as_one_digest_to_people() -> None:
    world = World(ops=FakeReceiver(Together.DIGEST))
    for i in range(8):
        world.raised("DiskLow", subject=f"/srv{i}")
    await world.pass_s(30)
    assert [len(batch) for batch in world.sent] == [8]


async def test_a_silenced_alert_waits_and_is_sent_if_it_lasts_when_the_silence_ends() -> None:
    world = World()
    now = world.clock.now()
    world.store.silence("HubDown", None, now + minutes(30), "ann", "deploy", now)
    world.raised()
    await world.pass_s(1500)
    assert world.sent == []
    await world.pass_s(600)
    assert world.sent == [["HubDown raised"]]


async def test_a_silenced_alert_that_is_over_before_the_silence_is_never_sent() -> None:
    world = World()
    now = world.clock.now()
    world.store.silence("", None, now + minutes(30), "ann", "deploy", now)
    id_ = world.raised()
    await world.pass_s(300)
    world.resolved(id_)
    await world.pass_s(3600)
    assert world.sent == []


async def test_a_receiver_that_forgets_is_reminded_as_long_as_the_alert_lasts() -> None:
    world = World(ops=FakeReceiver(Together.ALL, repeat_s=60.0))
    id_ = world.raised()
    await world.pass_s(300)
    assert 4 <= world.sent.count(["HubDown raised"]) <= 7
    world.resolved(id_)
    await world.pass_s(300)
    assert world.sent[-1] == ["HubDown over"]


async def test_without_the_lease_nothing_is_sent() -> None:
    world = World()
    world.notices._mandate.holds_lease = False  # type: ignore[misc]
    world.raised()
    await world.pass_s(60)
    assert world.sent == []


@pytest.mark.parametrize(("tries", "pause_s"), [(1, 10), (2, 20), (5, 160), (9, 900), (5000, 900)])
def test_pauses_double_up_to_a_quarter_of_an_hour(tries: int, pause_s: float) -> None:
    assert back_off_s(tries) == pause_s
