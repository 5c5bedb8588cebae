"""What the API answers with: a class for each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from hubguard import wire
from hubguard.watch.cycle import WatchStatus
from hubguard.watch.decide.alert import Rule
from hubguard.watch.decide.failed_starts import CauseOfFailures, FailedStart, by_cause, describe_row
from hubguard.watch.decide.history import History
from hubguard.watch.decide.sentence import describe_alert
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import (
    Alert,
    AlertRow,
    AlertState,
    Figure,
    Incident,
    IncidentNote,
    Sample,
    Severity,
    Signal,
    SignalSource,
    SourceReading,
    Story,
    TimeLeft,
    TimelineItem,
    Unit,
    split_key,
)


@dataclass(frozen=True, slots=True)
class AlertShape:
    """An alert that is raised and not resolved, or pending (``raised_at`` null). ``sentence`` says what is wrong now,
    ``first`` the first thing to do, ``why`` why it is watched.

    ``value`` is the newest reading, ``worst`` the worst while it lasted, ``limit`` what they are held against, in the
    signal's unit. ``left`` is set by forecasts. ``id`` is null while pending.
    """

    rule: str
    subject: str
    severity: Severity
    state: AlertState
    sentence: str
    why: str
    first: str
    signal: str
    since: datetime
    raised_at: datetime | None
    seen_at: datetime
    value: float
    worst: float
    limit: float | None
    left: TimeLeft | None
    id: int | None


@dataclass(frozen=True, slots=True)
class SignalSourceShape:
    """Whether a source of signals can be read. ``why`` says why it can't, or how it is set up."""

    source: SignalSource
    at: datetime
    readable: bool
    configured: bool
    why: str


def describe(rules: Mapping[str, Rule], status: WatchStatus) -> tuple[AlertShape, ...]:
    """The raised alerts, the most urgent first, then the pending."""
    return tuple(
        describe_one(rules[alert.rule], alert) for alert in (*status.alerts, *status.pending) if alert.rule in rules
    )


def describe_one(rule: Rule, alert: Alert) -> AlertShape:
    """That alert, with the words of its rule."""
    return wire.extended(
        AlertShape,
        rule,
        alert,
        rule=rule.name,
        sentence=describe_alert(rule, alert),
        first=rule.first.format(subject=alert.subject),
        signal=rule.condition.signal,
    )


def describe_source(reading: SourceReading) -> SignalSourceShape:
    """That reading, without its values."""
    return wire.extended(SignalSourceShape, reading, readable=reading.readable)


@dataclass(frozen=True, slots=True)
class StoryShape:
    """An incident with its surroundings, or a span of time (``incident`` null). All that is listed is oldest first.

    ``unknown`` says what wasn't measured. ``cut``: the journal has more than is shown.
    """

    since: datetime
    until: datetime
    incident: Incident | None
    alerts: tuple[AlertRow, ...]
    items: tuple[TimelineItem, ...]
    figures: tuple[Figure, ...]
    unknown: tuple[str, ...]
    notes: tuple[IncidentNote, ...]
    cut: bool


def describe_story(story: Story) -> StoryShape:
    """That story as the API returns it."""
    return wire.extended(StoryShape, story)


@dataclass(frozen=True, slots=True)
class NewestShape:
    """The newest reading of a signal about one subject, "" if the signal has none."""

    subject: str
    at: datetime
    value: float


@dataclass(frozen=True, slots=True)
class SignalShape:
    """A signal that HubGuard can measure, every ``every_s`` seconds. ``per`` says what its subjects are, "" without any.

    ``counter``: it only rises, until whatever counts starts again. ``readable`` is null before its source was first read.
    """

    name: str
    title: str
    unit: Unit
    source: SignalSource
    every_s: float
    per: str
    counter: bool
    readable: bool | None
    newest: tuple[NewestShape, ...]


@dataclass(frozen=True, slots=True)
class SampleShape:
    """The lowest, mean and highest value over one step of time, which begins ``at``."""

    at: datetime
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True)
class SeriesShape:
    """What a signal was, in steps of ``step_s`` seconds, oldest first. A step in which nothing was measured is left out."""

    name: str
    subject: str
    unit: Unit
    since: datetime
    until: datetime
    step_s: int
    samples: tuple[SampleShape, ...]


@dataclass(frozen=True, slots=True)
class FailedStartsShape:
    """The starts that failed within the last half hour.

    ``sentence`` says how near the hub is to its exit, "" if nothing failed in a row. ``counted`` is how many the hub counts,
    null if that is unknown. Who is hit is known of failures that the hub's process reported: ``causes`` has
    the most frequent first, ``failures`` the newest.
    """

    sentence: str
    counted: int | None
    causes: tuple[CauseOfFailures, ...]
    failures: tuple[FailedStart, ...]


def describe_starts(history: History, failed: tuple[FailedStart, ...]) -> FailedStartsShape:
    """Those failures, with what the signals say."""
    names = ("failed_starts_in_a_row", "failed_starts_limit", "failed_starts_recent")
    newest = {name: last.mean for name in names if (last := history.last(name)) is not None}
    counted = newest.get("failed_starts_recent")
    return FailedStartsShape(
        describe_row(newest), None if counted is None else round(counted), by_cause(failed), failed
    )


def describe_signals(history: History, status: WatchStatus) -> tuple[SignalShape, ...]:
    """Every signal, with what was read last."""
    readable = {reading.source: reading.readable for reading in status.readings}
    return tuple(
        wire.extended(SignalShape, signal, readable=readable.get(signal.source), newest=_newest(history, signal))
        for signal in SIGNALS.values()
    )


def _newest(history: History, signal: Signal) -> tuple[NewestShape, ...]:
    return tuple(
        NewestShape(split_key(key)[1], _moment(last.at), last.mean)
        for key in history.keys(signal.name)
        if (last := history.last(key)) is not None
    )


def describe_series(
    signal: Signal, subject: str, since: datetime, until: datetime, step_s: int, samples: Sequence[Sample]
) -> SeriesShape:
    """Those samples as the API returns them."""
    shapes = tuple(SampleShape(_moment(sample.at), sample.low, sample.mean, sample.high) for sample in samples)
    return SeriesShape(signal.name, subject, signal.unit, since, until, step_s, shapes)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)
