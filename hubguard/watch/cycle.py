"""Watching as a part of the guard: read what is due, judge it, keep what has changed, again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hubguard import wire
from hubguard.act.mandate import Mandate
from hubguard.errors import HubGuardError
from hubguard.pacing.clock import Clock
from hubguard.times import HOUR_S, YEAR_S
from hubguard.watch.decide.adjust import check_rule
from hubguard.watch.decide.alert import Alerts, Rule, step
from hubguard.watch.decide.failed_starts import FailedStarts
from hubguard.watch.decide.history import HOUR_STEP_S, LEVELS, History
from hubguard.watch.decide.sentence import describe_alert
from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.incident import Incidents
from hubguard.watch.model import (
    Alert,
    AlertState,
    Change,
    Sample,
    Severity,
    SignalSource,
    Silence,
    SourceReading,
    Transition,
)
from hubguard.watch.observe.port import NotSetUp, Reader, SourceUnavailable
from hubguard.watch.store.alerts import AsyncAlerts
from hubguard.watch.store.signals import AsyncSignals, step_for

log = logging.getLogger(__name__)

READ_S = 8.0
"""Seconds after which a source that hasn't answered counts as unavailable: one that hangs delays the others' next turn."""

KEEP_EVERY_S = 60.0
"""Seconds between two writes of what was measured: a crash loses no more than that."""

MEMORY = "alerts"
"""The key under which the journal remembers how alerts stand."""


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """What watching knows now. ``alerts`` are those raised and not resolved, the most urgent first, then the oldest.

    ``pending`` are those whose condition hasn't held for long enough. ``readings`` are the newest by source.
    ``read_at`` is when signals were last read, None before.
    """

    alerts: tuple[Alert, ...] = ()
    pending: tuple[Alert, ...] = ()
    readings: tuple[SourceReading, ...] = ()
    read_at: datetime | None = None


class Watch:
    """Reads signals, raises and resolves alerts. ``rules`` are those in force, by name; ``history`` is what was read of late.

    ``failed_starts`` are those that the hub's process reported.
    """

    name = "watching"

    def __init__(
        self,
        rules: Sequence[Rule],
        readers: Sequence[Reader],
        mandate: Mandate,
        clock: Clock,
        *,
        keep_days: int,
        failed_starts: FailedStarts | None = None,
        receivers: Callable[[Severity, str, str], Sequence[str]] = lambda severity, rule, subject: (),
    ) -> None:
        self.rules: Mapping[str, Rule] = {rule.name: rule for rule in rules}
        self.history = History()
        self.failed_starts = failed_starts or FailedStarts()
        self.signals = AsyncSignals(mandate.journal)
        self.alerts = AsyncAlerts(mandate.journal)
        self.incidents = Incidents(mandate.journal)
        self._readers = readers
        self._mandate = mandate
        self._clock = clock
        self._keep_days = keep_days
        self._receivers = receivers
        self._alerts: Alerts = {}
        self._readings: dict[SignalSource, SourceReading] = {}
        self._read_at: datetime | None = None
        self._due_s: dict[SignalSource, float] = {}
        self._begun = False
        self._unkept: list[Transition] = []
        self._ids: dict[tuple[str, str], int] = {}
        self._kept_s = 0.0
        self._kept_at = 0.0
        self._forgot_s: float | None = None

    def status(self) -> WatchStatus:
        """What watching knows now. Never blocks, never raises."""
        order = list(Severity)
        raised = [alert for alert in self._alerts.values() if alert.raised and alert.rule in self.rules]
        raised.sort(key=lambda alert: (order.index(self.rules[alert.rule].severity), alert.raised_at, alert.key))
        return WatchStatus(
            tuple(raised),
            tuple(alert for alert in self._alerts.values() if not alert.raised),
            tuple(self._readings[source] for source in SignalSource if source in self._readings),
            self._read_at,
        )

    async def samples(
        self, since: datetime, until: datetime, keys: Collection[str] | None = None
    ) -> tuple[int, dict[str, tuple[Sample, ...]]]:
        """(seconds of a step, samples by key), oldest first; ``keys`` None: of all. The step is the finest that fits.

        The newest come from memory, since they are kept only once a minute. Raises JournalError.
        """
        begin, end = since.timestamp(), until.timestamp()
        step_s = step_for(end - begin, (self._clock.now() - since).total_seconds())
        kept = await self.signals.samples(step_s, since, until, keys)
        newest = max(begin, self._kept_at - step_s)
        recent = self.history.hours(newest) if step_s == HOUR_STEP_S else self.history.steps(step_s, newest)
        by_key = {key: {sample.at: sample for sample in some} for key, some in kept.items()}
        for at, values in recent.items():
            for key, sample in values.items():
                if begin <= at <= end and (keys is None or key in keys):
                    by_key.setdefault(key, {})[at] = sample
        return step_s, {key: tuple(some[at] for at in sorted(some)) for key, some in by_key.items()}

    # -- what people set ------------------------------------------------------------------------------------------

    async def silences(self) -> tuple[Silence, ...]:
        """Those in force, newest first. Raises JournalError."""
        return await self.alerts.silences(self._clock.now())

    async def silence(self, rule: str, subject: str | None, until: datetime, actor: str, why: str) -> Silence:
        """Nobody is notified of ``rule`` ("" for every rule) about ``subject`` (None for every subject) until then.

        Raises HubGuardError for a rule that isn't there and for a time that has passed or is more than a year away.
        """
        check_rule(rule, self.rules)
        now = self._clock.now()
        if not now < until <= now + timedelta(seconds=YEAR_S):
            raise HubGuardError("Nothing silenced: the time must be in the future, and within a year.")
        return await self.alerts.silence(rule, subject, until, actor, why, now)

    async def end_silence(self, id_: int, actor: str) -> Silence:
        """That silence is over. Raises NoSuchSilence."""
        return await self.alerts.end_silence(id_, actor, self._clock.now())

    # -- as a part of the guard -----------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """The next turn first reads what the journal remembers: another guard may have watched since."""
        self._begun = False

    async def turn(self) -> None:
        """Read what is due, and raise and resolve alerts."""
        if not self._begun:
            await self._begin()
        await self._read_due()
        await self._judge()
        await self._keep()

    async def wait(self) -> None:
        """Wait until the next reading is due."""
        await self._clock.sleep(OFTEN_S)

    async def close(self) -> None:
        """Close the readers' connections."""
        for reader in self._readers:
            await reader.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        now = self._clock.now()
        self.history = History()
        for level in LEVELS:
            since = now - timedelta(seconds=level.kept_s)
            self.history.restore(level.step_s, await self.signals.samples(level.step_s, since, now))
        known = await self._mandate.journal.recall(MEMORY)
        self._alerts = _read_alerts(known[0] if known else {})
        await self.incidents.begin()
        self._kept_at = now.timestamp()
        self._kept_s = self._clock.monotonic_s()
        self._begun = True

    async def _read_due(self) -> None:
        now_s = self._clock.monotonic_s()
        due = [reader for reader in self._readers if self._due_s.get(reader.source, now_s) <= now_s]
        for reader in due:
            # A little less, so that a turn that comes a moment early doesn't skip one.
            self._due_s[reader.source] = now_s + reader.every_s - OFTEN_S / 2
        readings = await asyncio.gather(*map(self._reading, due))
        self._read_at = self._clock.now()
        at = self._read_at.timestamp()
        for reading in readings:
            before = self._readings.get(reading.source)
            if reading.why and reading.configured and (before is None or before.why != reading.why):
                log.warning("Signals of %s aren't read: %s", reading.source.value, reading.why)
            self._readings[reading.source] = reading
            self.history.add(at, reading.values)
        self.history.forget_gone(at)

    async def _reading(self, reader: Reader) -> SourceReading:
        try:
            values = await self._in_time(reader)
        except NotSetUp as error:
            return SourceReading(reader.source, self._clock.now(), why=str(error), configured=False)
        except HubGuardError as error:
            return SourceReading(reader.source, self._clock.now(), why=str(error))
        except Exception:
            log.exception("Unexpected error while reading %s (a bug in HubGuard)", reader.source.value)
            return SourceReading(
                reader.source, self._clock.now(), why="Unexpected error (a bug in HubGuard). See the log."
            )
        return SourceReading(reader.source, self._clock.now(), values)

    async def _in_time(self, reader: Reader) -> Mapping[str, float]:
        """What it read. Raises SourceUnavailable if that takes too long, and whatever it raises."""
        reading, waiting = asyncio.ensure_future(reader.read()), asyncio.ensure_future(self._clock.sleep(READ_S))
        try:
            await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise SourceUnavailable(f"No answer within {READ_S:g} s.")
            return reading.result()
        finally:
            for task in (reading, waiting):
                task.cancel()
            await asyncio.gather(reading, waiting, return_exceptions=True)

    async def _judge(self) -> None:
        self._alerts, changes = step(self.rules.values(), self._alerts, self.history, self._clock.now())
        self._unkept += changes
        while self._unkept:
            transition = self._unkept[0]
            await self._keep_transition(transition)  # a journal that isn't available leaves it for the next turn
            del self._unkept[0]
        urgent = any(self.rules[alert.rule].severity is Severity.NOW for alert in self._alerts.values() if alert.raised)
        await self.incidents.follow_calm(self._clock.now(), self._mandate.fence, urgent=urgent)
        if changes:
            await self._remember()

    async def _keep_transition(self, transition: Transition) -> None:
        alert = transition.alert
        rule = self.rules.get(alert.rule)
        now, fence = self._clock.now(), self._mandate.fence
        sentence = describe_alert(rule, alert) if rule is not None else f"{alert.rule} is no longer an alert."
        receivers = () if rule is None else self._receivers(rule.severity, alert.rule, alert.subject)
        if transition.change is Change.RAISED and rule is not None:
            log.warning("Alert %s (%s): %s", rule.name, rule.severity.value, sentence)
            incident = await self.incidents.follow_raised(rule, alert, sentence, fence)
            id_ = await self.alerts.raise_alert(alert, rule.severity, sentence, fence, receivers, incident=incident)
            self._ids[alert.key] = id_
            if alert.key in self._alerts:
                self._alerts = {**self._alerts, alert.key: replace(self._alerts[alert.key], id=id_)}
        elif transition.change is Change.RESOLVED and (known := self._ids.pop(alert.key, alert.id)) is not None:
            log.info("Alert %s is resolved.", alert.rule)
            lost = alert.state is AlertState.UNKNOWN
            how = "is over: what it is about is no longer watched" if lost else "is resolved"
            await self.alerts.resolve_alert(known, alert.worst, f"{alert.rule} {how}.", fence, receivers, now)

    async def _keep(self) -> None:
        """Write what was measured since the last time, once a minute, and forget what is old once an hour."""
        now_s, now = self._clock.monotonic_s(), self._clock.now()
        if now_s - self._kept_s < KEEP_EVERY_S:
            return
        since = self._kept_at
        for step_s in (level.step_s for level in LEVELS):
            await self.signals.keep_samples(step_s, self.history.steps(step_s, since))
        await self.signals.keep_samples(3600, self.history.hours(since))
        self._kept_s, self._kept_at = now_s, now.timestamp()
        await self._remember()
        if self._forgot_s is None or now_s - self._forgot_s >= HOUR_S:
            await self.signals.forget_samples(now, self._keep_days)
            await self.alerts.forget_alerts(now - timedelta(days=self._keep_days))
            self._forgot_s = now_s

    async def _remember(self) -> None:
        plain = {"alerts": [wire.to_plain(alert) for alert in self._alerts.values()]}
        await self._mandate.journal.remember(MEMORY, plain, self._clock.now())


def _read_alerts(data: Mapping[str, Any]) -> Alerts:
    """What ``_remember`` wrote, in this version or another; rows that can't be read are left out."""
    alerts: dict[tuple[str, str], Alert] = {}
    rows = data.get("alerts")
    for row in rows if isinstance(rows, list) else ():
        try:
            alert = wire.read(Alert, row, "memory")
        except wire.Malformed:
            continue
        alerts[alert.key] = alert
    return alerts
