"""Watching in virtual time: readers that fail and hang, restarts, a journal that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.guard import PlacedJournal
from doubles.watch import FakeReader
from virtual_time import VirtualClock

from hubguard.errors import JournalError
from hubguard.journal.model import Event
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.rules import RULES
from hubguard.watch.incident import CALM_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import NotSetUp, SourceUnavailable

DOWN: Mapping[str, float] = {"hub_up": 0.0}
UP: Mapping[str, float] = {"hub_up": 1.0}


class World:
    """A part that watches, with one reader of the hub, over a journal in memory."""

    def __init__(self, *readers: FakeReader) -> None:
        self.clock = VirtualClock()
        self.books = PlacedJournal()
        self.hub = FakeReader(SignalSource.HUB, UP)
        self.watch = self.begin_anew(self.hub, *readers)

    def begin_anew(self, *readers: FakeReader) -> Watch:
        """Another guard, over the same journal."""
        mandate: Any = SimpleNamespace(journal=self.books, fence=1)
        self.watch = Watch(RULES, readers or (self.hub,), mandate, self.clock, keep_days=400)
        return self.watch

    async def pass_s(self, seconds: float) -> None:
        """Turns and waits, as the guard has them, for that time."""
        ends = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < ends:
            try:
                await self.clock.run(self.watch.turn())
            except JournalError:
                pass
            await self.clock.run(self.watch.wait())

    def firing(self) -> list[str]:
        return [alert.rule for alert in self.watch.status().alerts]

    def entries(self, event: Event) -> list[str]:
        return [entry.detail for entry in reversed(self.books.sync.entries(event=event, limit=1000))]


async def test_a_hub_that_is_down_raises_an_alert_and_opens_an_incident_and_both_end() -> None:
    world = World()
    await world.pass_s(60)
    world.hub.values = DOWN
    await world.pass_s(80)
    assert world.firing() == []
    await world.pass_s(40)
    assert world.firing() == ["HubDown"]
    assert world.entries(Event.ALERT) == ["The hub doesn't answer."]
    assert world.watch.incidents.current is not None
    world.hub.values = UP
    await world.pass_s(120)
    assert world.firing() == []
    assert world.entries(Event.ALERT_OVER) == ["HubDown is resolved."]
    assert world.watch.incidents.current is not None
    await world.pass_s(CALM_S + 20)
    assert world.watch.incidents.current is None
    opened, closed = world.entries(Event.INCIDENT)
    assert opened == "incident 1 opened: The hub doesn't answer."
    assert closed.startswith("incident 1 closed: recovered")


async def test_an_alert_that_can_wait_keeps_no_incident_open() -> None:
    world = World()
    world.hub.values = {**DOWN, "disk_free_share:/srv": 0.08}
    await world.pass_s(400)
    assert set(world.firing()) == {"HubDown", "DiskLow"}
    world.hub.values = {**UP, "disk_free_share:/srv": 0.08}
    await world.pass_s(120 + CALM_S)
    assert world.firing() == ["DiskLow"]
    assert world.watch.incidents.current is None


async def test_a_guard_that_takes_over_neither_raises_an_alert_again_nor_forgets_it() -> None:
    world = World()
    world.hub.values = DOWN
    await world.pass_s(120)
    world.begin_anew()
    await world.pass_s(120)
    assert world.firing() == ["HubDown"]
    world.hub.values = UP
    await world.pass_s(120)
    assert (len(world.entries(Event.ALERT)), len(world.entries(Event.ALERT_OVER))) == (1, 1)
    (row,) = await world.watch.alerts.alerts(since=world.clock.now() - timedelta(days=1))
    assert row.resolved_at is not None


async def test_a_guard_killed_between_raising_and_remembering_does_not_raise_twice() -> None:
    world = World()
    world.hub.values = DOWN
    remember, world.books.sync.remember = world.books.sync.remember, lambda *given: None  # type: ignore[method-assign]
    await world.pass_s(120)
    world.books.sync.remember = remember  # type: ignore[method-assign]
    world.begin_anew()
    await world.pass_s(200)
    assert len(await world.watch.alerts.alerts()) == 1
    world.hub.values = UP
    await world.pass_s(120)
    assert await world.watch.alerts.alerts() == ()


async def test_what_changes_while_the_journal_is_away_is_kept_once_it_is_back() -> None:
    world = World()
    await world.pass_s(60)
    world.hub.values = DOWN
    world.books.fails = JournalError("The journal doesn't answer.")
    await world.pass_s(300)
    assert world.firing() == ["HubDown"]
    world.hub.values = UP
    await world.pass_s(120)
    world.books.fails = None
    await world.pass_s(30)
    assert (len(world.entries(Event.ALERT)), len(world.entries(Event.ALERT_OVER))) == (1, 1)


async def test_a_reader_that_hangs_keeps_the_others_waiting_for_seconds_only() -> None:
    hangs = FakeReader(SignalSource.HUB_DB)

    async def never() -> Mapping[str, float]:
        await asyncio.Event().wait()
        return {}

    hangs.read = never  # type: ignore[method-assign]
    world = World(hangs)
    await world.pass_s(60)
    of = {reading.source: reading for reading in world.watch.status().readings}
    assert of[SignalSource.HUB].readable
    assert of[SignalSource.HUB_DB].why == "No answer within 8 s."


@pytest.mark.parametrize(
    ("error", "configured"),
    [(SourceUnavailable("It's gone."), True), (NotSetUp("Set it up."), False), (RuntimeError("a bug"), True)],
)
async def test_a_source_that_fails_says_why_and_the_others_go_on(error: Exception, configured: bool) -> None:
    fails = FakeReader(SignalSource.HUB_DB, {"database_up": 1.0})
    fails.fails = error
    world = World(fails)
    await world.pass_s(60)
    of = {reading.source: reading for reading in world.watch.status().readings}
    assert (of[SignalSource.HUB_DB].configured, of[SignalSource.HUB_DB].readable) == (configured, False)
    assert of[SignalSource.HUB_DB].why
    assert of[SignalSource.HUB].readable
    assert world.watch.history.last("database_up") is None


async def test_a_source_is_read_as_often_as_it_says() -> None:
    reads = {"often": 0, "seldom": 0}

    class Counted(FakeReader):
        async def read(self) -> Mapping[str, float]:
            reads["seldom" if self.every_s == 60 else "often"] += 1
            return {}

    world = World()
    world.begin_anew(Counted(SignalSource.HUB), Counted(SignalSource.HUB_DB, every_s=60.0))
    await world.pass_s(600)
    assert reads == {"often": 60, "seldom": 10}


async def test_signals_are_kept_in_every_step_and_read_back_after_a_restart() -> None:
    world = World()
    await world.pass_s(2 * 3600)
    now = world.clock.now()
    for step_s, fewest in ((10, 700), (60, 118), (600, 12), (3600, 2)):
        kept = world.books.sync and (await world.watch.signals.samples(step_s, now - timedelta(hours=3), now))
        assert len(kept["hub_up"]) >= fewest, step_s
        assert all(sample.mean == 1.0 for sample in kept["hub_up"])
    world.begin_anew()
    await world.pass_s(10)
    assert len(world.watch.history.over("hub_up", 3600.0, world.clock.now().timestamp())) >= 58
