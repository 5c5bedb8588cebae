"""The nouns of watching: signals and their samples, rules, alerts, silences, incidents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import NamedTuple


class Severity(str, Enum):
    """When to act."""

    NOW = "now"  # users are hit, or will be within the hour
    TODAY = "today"
    WEEK = "this-week"


class Unit(str, Enum):
    """What a signal's number counts."""

    SECONDS = "s"
    BYTES = "bytes"
    SHARE = "share"  # from 0 to 1
    COUNT = "count"
    PER_MINUTE = "per-minute"
    CORES = "cores"  # of a processor: 1.5 is one and a half cores busy


class SignalSource(str, Enum):
    """Where signals are read. Each can be unavailable by itself."""

    HUB = "hub"  # /hub/health, and how long the hub's API takes
    HUB_METRICS = "hub-metrics"  # the hub's /metrics
    HUB_PROCESS = "hub-process"  # the hub's process on this machine, or its pod
    HUB_DB = "hub-db"  # the hub's database
    PROXY = "proxy"  # the proxy watch: its two ports and the canary
    PROXY_METRICS = "proxy-metrics"  # the proxy's /metrics
    PROXY_PROCESS = "proxy-process"  # the proxy's process on this machine, or its pod
    BACKENDS = "backends"  # what really runs, against the hub's count
    MACHINE = "machine"  # ephemeral ports of this machine
    FOLDERS = "folders"  # disk and inodes of named folders
    STARTS = "starts"  # failed starts by cause
    HUBGUARD = "hubguard"  # HubGuard itself


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that is measured every ``every_s`` seconds. ``title`` is its name on charts.

    ``name`` is also the middle of the metric's (``hub_latency_seconds`` is exported as ``hubguard_hub_latency_seconds``).
    ``per`` says what its subjects are ("folder", "cause"), "" if it has none. ``counter``: it only rises, until whatever
    counts starts again.
    """

    name: str
    title: str
    unit: Unit
    source: SignalSource
    every_s: float
    per: str = ""
    counter: bool = False


def signal_key(name: str, subject: str = "") -> str:
    """How the samples of a signal's subject are named: ``disk_free_share:/srv``, or the name alone without a subject."""
    return f"{name}:{subject}" if subject else name


def split_key(key: str) -> tuple[str, str]:
    """(name, subject) of such a key; the subject is "" if it has none."""
    name, _, subject = key.partition(":")
    return name, subject


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What one source returned: ``values`` by key. ``why`` says in one sentence why it couldn't be read, "" if it could.

    A source that isn't set up (``configured`` False) isn't missed; ``why`` then says how to set it up.
    """

    source: SignalSource
    at: datetime
    values: Mapping[str, float] = field(default_factory=dict, hash=False)
    why: str = ""
    configured: bool = True

    @property
    def readable(self) -> bool:
        """Whether it could be read."""
        return self.configured and not self.why


class Sample(NamedTuple):
    """The value of one signal over one step of time, which begins ``at`` (unix time). One reading is all three."""

    at: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """Seconds until a limit is reached if a trend goes on: ``likely_s``, and not before ``least_s`` or after ``most_s`` with
    90 % confidence. ``most_s`` None: it may never be.
    """

    likely_s: float
    least_s: float
    most_s: float | None


class AlertState(str, Enum):
    """How an alert stands."""

    PENDING = "pending"  # its condition holds, but not yet for long enough
    FIRING = "firing"
    CLEARING = "clearing"  # firing, and its condition has ended, but not yet for long enough
    UNKNOWN = "unknown"  # firing when its source was lost: nobody knows whether it still holds


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule's condition for one subject ("" if the rule has none), as of ``seen_at``.

    ``since`` is when the condition first held, ``raised_at`` when that had lasted long enough (None while pending),
    ``clear_since`` since when it doesn't hold, None while it does. ``looks`` are the readings in a row that showed it.
    ``value`` is what was read last, ``worst`` the worst while it lasted; ``limit`` is what the value is held against.
    ``left`` is set by forecasts. ``id`` is its row in the journal's database, None until it is raised. ``read_at`` is when
    the last reading began that counts as a look (unix time).
    """

    rule: str
    subject: str
    state: AlertState
    since: datetime
    seen_at: datetime
    looks: int
    value: float
    worst: float
    limit: float | None = None
    raised_at: datetime | None = None
    clear_since: datetime | None = None
    left: TimeLeft | None = None
    id: int | None = None
    read_at: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """(rule, subject)."""
        return self.rule, self.subject

    @property
    def raised(self) -> bool:
        """Whether it has been raised and isn't resolved."""
        return self.raised_at is not None


class Change(str, Enum):
    """What became of an alert."""

    RAISED = "raised"
    RESOLVED = "resolved"
    LOST = "lost"  # its source can't be read any more
    FOUND = "found"  # its source can be read again, and it still holds


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of one alert, which is as it was afterwards."""

    change: Change
    alert: Alert


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert that was raised, as it is kept: the sentence of then, and when it was resolved (None: it isn't).

    ``verdict`` is what a check found about it, "" if none ran. ``incident`` is the id of the incident that it belongs to.
    """

    id: int
    rule: str
    subject: str
    severity: Severity
    raised_at: datetime
    resolved_at: datetime | None
    value: float
    worst: float
    sentence: str
    verdict: str = ""
    incident: int | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody is notified of ``rule`` ("" for every rule) about ``subject`` (None for every subject) until then.

    ``ended_at`` is set when it was ended early. Alerts are raised and shown all the same.
    """

    id: int
    rule: str
    subject: str | None
    until: datetime
    actor: str
    why: str
    made_at: datetime
    ended_at: datetime | None = None

    def covers(self, rule: str, subject: str, now: datetime) -> bool:
        """Whether that alert is silenced at ``now``."""
        return (
            self.rule in ("", rule)
            and self.subject in (None, subject)
            and now < self.until
            and (self.ended_at is None or now < self.ended_at)
        )


@dataclass(frozen=True, slots=True)
class Incident:
    """A time in which something was wrong for users. ``closed_at`` None: it goes on.

    ``severity`` is the worst of its alerts, None for one that was opened by hand without any. ``opened_by`` and
    ``closed_by`` are "hubguard" or a person.
    """

    id: int
    title: str
    opened_at: datetime
    opened_by: str
    severity: Severity | None = None
    closed_at: datetime | None = None
    closed_by: str | None = None


@dataclass(frozen=True, slots=True)
class IncidentNote:
    """What somebody wrote down during or after an incident."""

    at: datetime
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class TimelineItem:
    """One line of an incident's timeline. ``until`` is set if it stands for several events in a row.

    ``actor`` is a person, or "hubguard" for what HubGuard did or noticed by itself. ``acted``: something was changed at
    the hub, or tried to be.
    """

    at: datetime
    actor: str
    text: str
    until: datetime | None = None
    acted: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of what an incident meant for users, in words, and what shows it."""

    text: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a span of time, or of an incident and its surroundings.

    ``alerts`` are those raised or firing in it, oldest first; ``items`` and ``notes`` are oldest first, too. ``unknown`` are
    sentences on what wasn't measured. ``cut``: the journal has more entries than are looked through. ``incident`` is None
    for a span that was asked for by its times.
    """

    since: datetime
    until: datetime
    incident: Incident | None = None
    alerts: tuple[AlertRow, ...] = ()
    items: tuple[TimelineItem, ...] = ()
    figures: tuple[Figure, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[IncidentNote, ...] = ()
    cut: bool = False
