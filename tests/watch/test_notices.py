"""The queue of notices in virtual time: receivers that fail, hang and come back, silences, restarts, crashes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from doubles.guard import PlacedJournal
from doubles.watch import alert_of
from virtual_time import VirtualClock

from hubguard.journal import tables
from hubguard.journal.model import Event
from hubguard.times import DAY_S
from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import LONGEST_BACK_OFF_S, Result, Together
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import Severity
from hubguard.watch.notify import queue
from hubguard.watch.notify.choose import Named
from hubguard.watch.notify.queue import Notices
from hubguard.watch.store.alerts import AlertStore

FINE = Result(delivered=True, said="ok")
FAILS = Result(delivered=False, said="answered 500", again=True)
CANT_REACH = Result(delivered=False, said="can't be reached", again=True, reached=False)
WRONG = Result(delivered=False, said="answered 400", again=False, reached=False)
SLOWED = Result(delivered=False, said="answered 429", again=True, retry_after_s=600.0, reached=False)


class FakeReceiver:
    """Answers ``answer``, and keeps when it got what."""

    def __init__(
        self,
        clock: VirtualClock,
        together: Together = Together.ONE,
        *,
        repeat_s: float | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.together = together
        self.spacing_s = 0.5
        self.repeat_s = repeat_s
        self.answer = FINE
        self.takes_s = takes_s
        self.got: list[tuple[float, list[str]]] = []
        self._clock = clock

    async def send(self, messages: Sequence[Message]) -> Result:
        words = [f"{'-' if one.resolved else '+'}{one.rule}{one.subject}" for one in messages]
        self.got.append((self._clock.monotonic_s(), words))
        await self._clock.sleep(self.takes_s)
        return self.answer

    async def close(self) -> None:
        pass

    @property
    def words(self) -> list[str]:
        return [word for _, words in self.got for word in words]

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.got]


class World:
    """Receivers by name, over a journal in memory; alerts are raised and resolved straight in the store."""

    def __init__(self, *names: str, **given: Any) -> None:
        self.clock = VirtualClock()
        self.books = PlacedJournal()
        self.alerts = AlertStore(self.books.sync)
        self.receivers = {name: FakeReceiver(self.clock, **given) for name in names or ("ops",)}
        self.notices = self.begin_anew()

    @property
    def ops(self) -> FakeReceiver:
        return self.receivers["ops"]

    def begin_anew(self) -> Notices:
        """Another guard, over the same journal."""
        mandate: Any = SimpleNamespace(journal=self.books, fence=1, holds_lease=True)
        named = [Named(name, frozenset(Severity), one) for name, one in self.receivers.items()]
        self.notices = Notices(named, RULES, mandate, self.clock)
        return self.notices

    def raise_(self, rule: str = "HubDown", subject: str = "") -> int:
        alert = alert_of(rule, subject, raised_at=self.clock.now())
        return self.alerts.raise_alert(alert, Severity.NOW, "It is wrong.", 1, tuple(self.receivers))

    def resolve(self, id_: int) -> None:
        self.alerts.resolve_alert(id_, 0.0, "over", 1, tuple(self.receivers), self.clock.now())

    def silence(self, rule: str, for_s: float) -> int:
        now = self.clock.now()
        return self.alerts.silence(rule, None, now + timedelta(seconds=for_s), "ann", "", now).id

    async def pass_s(self, seconds: float) -> None:
        """Turns for that time; in one of hours, less often than the guard has them, so that days take milliseconds."""
        apart_s = queue.EVERY_S if seconds <= 1000 else 300.0

        async def turns() -> None:
            ends_s = self.clock.monotonic_s() + seconds
            while self.clock.monotonic_s() < ends_s:
                await self.notices.turn()
                await self.clock.sleep(apart_s)

        await self.clock.run(turns())

    def rows(self) -> list[Any]:
        with self.books.sync.reading() as connection:
            return list(connection.execute(sa.select(tables.notice).order_by(tables.notice.c.id)))

    def notes(self) -> list[str]:
        return [entry.detail for entry in self.books.sync.entries(event=Event.NOTE, limit=100)]


async def test_who_is_notified_of_an_alert_learns_that_it_is_resolved() -> None:
    world = World()
    id_ = world.raise_()
    await world.pass_s(10)
    world.resolve(id_)
    await world.pass_s(10)
    await world.pass_s(DAY_S)
    assert world.ops.words == ["+HubDown", "-HubDown"]
    assert world.notices.status().counts == {("ops", "sent"): 2, ("ops", "failed"): 0, ("ops", "given-up"): 0}


async def test_who_hasnt_heard_of_an_alert_doesnt_hear_that_it_is_resolved() -> None:
    world = World()
    world.resolve(world.raise_())
    await world.pass_s(60)
    assert world.ops.words == []


async def test_who_couldnt_be_reached_while_it_lasted_hears_nothing_of_it() -> None:
    world = World()
    world.ops.answer = CANT_REACH
    id_ = world.raise_()
    await world.pass_s(60)
    assert set(world.ops.words) == {"+HubDown"}
    world.resolve(id_)
    world.ops.answer = FINE
    world.ops.got.clear()
    await world.pass_s(DAY_S)
    assert world.ops.words == []


async def test_who_may_have_heard_of_it_hears_that_it_is_resolved() -> None:
    """A receiver that broke off its answer may have opened an incident, which nothing else would close."""
    world = World()
    world.ops.answer = FAILS
    id_ = world.raise_()
    await world.pass_s(6)
    world.ops.answer = CANT_REACH
    await world.pass_s(30)
    world.resolve(id_)
    world.ops.answer = FINE
    world.ops.got.clear()
    await world.pass_s(600)
    assert world.ops.words == ["-HubDown"]


async def test_a_failing_receiver_is_tried_less_and_less_often_also_after_a_restart() -> None:
    world = World()
    world.ops.answer = FAILS
    world.raise_()
    await world.pass_s(300)
    world.begin_anew()
    for _ in range(3):
        await world.pass_s(1000)
    apart = [after - before for before, after in zip(world.ops.times, world.ops.times[1:], strict=False)]
    assert [round(one, -1) for one in apart[:6]] == [10, 20, 40, 80, 160, 320]
    assert max(apart) <= LONGEST_BACK_OFF_S + 2 * queue.EVERY_S


async def test_a_receiver_that_asks_for_time_gets_it() -> None:
    world = World()
    world.ops.answer = SLOWED
    world.raise_()
    await world.pass_s(590)
    assert len(world.ops.got) == 1
    world.ops.answer = FINE
    await world.pass_s(30)
    assert len(world.ops.got) == 2


async def test_what_is_refused_as_wrong_is_sent_once_and_the_others_go_on() -> None:
    world = World()
    world.ops.answer = WRONG
    for subject in "abc":
        world.raise_("DiskLow", subject)
    await world.pass_s(3600)
    assert world.ops.words == ["+DiskLowa", "+DiskLowb", "+DiskLowc"]
    assert world.notices.status().counts["ops", "given-up"] == 3
    assert world.notes()[0] == "ops didn't get a notice of DiskLow, and won't: answered 400"


async def test_it_gives_up_after_a_day_and_says_so() -> None:
    world = World()
    world.ops.answer = CANT_REACH
    world.raise_()
    await world.pass_s(DAY_S - 3600)
    assert world.notes() == []
    await world.pass_s(2 * 3600)
    assert world.notes() == ["ops didn't get a notice of HubDown, and won't: can't be reached"]
    (row,) = world.rows()
    assert row.given_up
    assert row.ended_at is not None
    tries = len(world.ops.got)
    await world.pass_s(DAY_S)
    assert len(world.ops.got) == tries


async def test_a_failing_receiver_is_a_finding_until_it_works_again() -> None:
    world = World()
    world.ops.answer = FAILS
    world.raise_()
    began = world.clock.now()
    await world.pass_s(60)
    (finding,) = world.notices.status().findings
    assert finding.detail == "Notices don't reach ops: answered 500."
    assert finding.since - began < timedelta(seconds=1)
    world.ops.answer = FINE
    await world.pass_s(60)
    assert world.notices.status().findings == ()


async def test_a_receiver_that_hangs_keeps_no_other_waiting() -> None:
    world = World("ops", "slow")
    world.receivers["slow"].takes_s = 50.0
    for subject in "abcdef":
        world.raise_("DiskLow", subject)
    await world.pass_s(10)
    assert len(world.ops.words) == 6
    assert len(world.receivers["slow"].words) == 1
    await world.clock.run(world.notices.close())


async def test_a_receiver_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SEND_S", 0.02)
    world = World()

    async def never(messages: Sequence[Message]) -> Result:
        await asyncio.sleep(3600)
        return FINE

    world.ops.send = never  # type: ignore[method-assign]
    world.raise_()
    await world.notices.turn()
    await asyncio.gather(*world.notices._under_way.values())
    (finding,) = world.notices.status().findings
    assert finding.detail == "Notices don't reach ops: no answer within 0.02 s."
    (row,) = world.rows()
    assert (row.tries, row.ended_at, row.reached) == (1, None, True)


async def test_a_receiver_that_raises_stops_nothing() -> None:
    world = World("ops", "broken")

    async def breaks(messages: Sequence[Message]) -> Result:
        raise RuntimeError("oops")

    world.receivers["broken"].send = breaks  # type: ignore[method-assign]
    world.raise_()
    await world.pass_s(30)
    assert world.ops.words == ["+HubDown"]
    assert world.notices.status().counts["broken", "failed"] > 1


async def test_the_notices_of_a_dead_receiver_dont_each_wait_for_it() -> None:
    world = World()
    world.ops.answer = CANT_REACH
    for subject in "abcdefghij":
        world.raise_("DiskLow", subject)
    await world.pass_s(8)
    assert len(world.ops.got) == 1


async def test_many_at_once_come_as_one_digest_and_a_few_one_by_one() -> None:
    world = World(together=Together.DIGEST)
    for subject in "abcdefgh":
        world.raise_("DiskLow", subject)
    await world.pass_s(10)
    assert [len(words) for _, words in world.ops.got] == [8]
    for subject in "ij":
        world.raise_("DiskLow", subject)
    await world.pass_s(10)
    assert [len(words) for _, words in world.ops.got] == [8, 1, 1]


async def test_requests_keep_the_receivers_distance() -> None:
    world = World()
    for subject in range(150):
        world.raise_("DiskLow", str(subject))
    await world.pass_s(200)
    assert len(world.ops.words) == 150
    apart = [after - before for before, after in zip(world.ops.times, world.ops.times[1:], strict=False)]
    assert min(apart) >= world.ops.spacing_s


async def test_a_silenced_alert_is_notified_when_the_silence_ends_while_it_is_firing() -> None:
    world = World()
    world.silence("HubDown", 600)
    world.raise_()
    await world.pass_s(590)
    assert world.ops.words == []
    await world.pass_s(30)
    assert world.ops.words == ["+HubDown"]


async def test_a_silence_that_is_ended_early_lets_the_notice_go() -> None:
    world = World()
    id_ = world.silence("", 2 * DAY_S)
    world.raise_()
    await world.pass_s(DAY_S + 3600)
    world.alerts.end_silence(id_, "bob", world.clock.now())
    world.ops.answer = FAILS
    await world.pass_s(6)
    world.ops.answer = FINE
    await world.pass_s(60)
    assert world.ops.words == ["+HubDown", "+HubDown"]


async def test_an_alert_that_ends_during_its_silence_is_never_notified() -> None:
    world = World()
    world.silence("HubDown", 600)
    id_ = world.raise_()
    await world.pass_s(100)
    world.resolve(id_)
    await world.pass_s(1000)
    assert world.ops.words == []


async def test_an_alert_that_comes_back_is_notified_again_after_its_end() -> None:
    world = World()
    for _ in range(3):
        id_ = world.raise_()
        await world.pass_s(10)
        world.resolve(id_)
        await world.pass_s(10)
    assert world.ops.words == ["+HubDown", "-HubDown"] * 3


async def test_a_receiver_that_forgets_is_reminded_of_what_lasts_and_of_nothing_else() -> None:
    world = World(together=Together.ALL, repeat_s=60.0)
    id_ = world.raise_()
    await world.pass_s(400)
    assert 6 <= world.ops.words.count("+HubDown") <= 8
    world.silence("HubDown", 300)
    world.ops.got.clear()
    await world.pass_s(290)
    assert world.ops.words == []
    await world.pass_s(100)
    assert set(world.ops.words) == {"+HubDown"}
    world.resolve(id_)
    await world.pass_s(10)
    world.ops.got.clear()
    await world.pass_s(300)
    assert world.ops.words == []


async def test_a_receiver_that_forgets_is_reminded_also_by_the_next_guard() -> None:
    world = World(together=Together.ALL, repeat_s=60.0)
    world.raise_()
    await world.pass_s(10)
    world.begin_anew()
    world.ops.got.clear()
    await world.pass_s(70)
    assert "+HubDown" in world.ops.words


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_guard_that_is_killed_between_claim_and_answer_neither_loses_nor_repeats_more_than_once(
    arrived: bool,
) -> None:
    world = World()
    world.raise_()

    async def killed(messages: Sequence[Message]) -> Result:
        if arrived:
            world.ops.got.append((0.0, ["+HubDown"]))
        raise asyncio.CancelledError

    fine, world.ops.send = world.ops.send, killed  # type: ignore[method-assign]
    await world.notices.turn()
    await asyncio.gather(*world.notices._under_way.values(), return_exceptions=True)
    world.ops.send = fine  # type: ignore[method-assign]
    world.begin_anew()
    await world.pass_s(queue.ANSWER_S - 10)
    assert len(world.ops.got) == arrived
    await world.pass_s(DAY_S)
    assert Counter(world.ops.words) == {"+HubDown": 1 + arrived}


async def test_a_guard_that_is_killed_after_the_claim_closes_what_may_be_open() -> None:
    world = World()
    id_ = world.raise_()
    world.ops.takes_s = 5.0
    await world.notices.turn()
    await asyncio.sleep(0)
    await world.clock.run(world.notices.close())
    world.ops.takes_s = 0.0
    world.begin_anew()
    world.resolve(id_)
    await world.pass_s(DAY_S)
    assert world.ops.words == ["+HubDown", "-HubDown"]


async def test_two_guards_at_once_send_a_notice_once() -> None:
    world = World()
    world.raise_()
    first = world.notices
    second = world.begin_anew()
    await first.turn()
    await second.turn()
    await world.clock.run(world.clock.sleep(10))
    assert world.ops.words == ["+HubDown"]


async def test_a_notice_for_a_receiver_that_was_removed_is_left_alone() -> None:
    world = World("ops", "gone")
    world.raise_()
    del world.receivers["gone"]
    world.begin_anew()
    await world.pass_s(60)
    assert [row.ended_at is None for row in world.rows()] == [False, True]


async def test_a_guard_that_lost_the_lease_sends_nothing_more() -> None:
    world = World()
    for subject in "abc":
        world.raise_("DiskLow", subject)
    mandate: Any = world.notices._mandate
    sends: Callable[..., Any] = world.ops.send

    async def loses(messages: Sequence[Message]) -> Result:
        mandate.holds_lease = False
        result: Result = await sends(messages)
        return result

    world.ops.send = loses  # type: ignore[method-assign]
    await world.notices.turn()
    await world.clock.run(world.clock.sleep(20))
    assert len(world.ops.words) == 1
