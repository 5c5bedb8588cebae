"""The nouns. All values here are frozen; all datetimes are UTC-aware; unknown is None, never 0 and never "stopped"."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class Source(str, Enum):
    """Where a reading comes from."""

    HUB_API = "hub_api"
    HUB_DB = "hub_db"
    PROXY = "proxy"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source gave: when it was read, how long that took, and whether it is all there.

    ``complete`` False means some of it is missing, for the reason in ``detail``; nothing may be concluded from absence.
    """

    source: Source
    at: datetime
    complete: bool
    took_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """A server as the hub's API shows it. ``name`` is ``""`` for the default server.

    ``pending`` is the hub's word (spawn, stop, check, rename) or None. ``started`` and ``last_activity`` are None where
    the hub doesn't know them. One *run* of a server is identified by ``run``: it changes when the server is restarted.
    """

    user: str
    name: str
    ready: bool
    pending: str | None
    started: datetime | None
    last_activity: datetime | None
    admin: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(user, name): which server, over all its runs."""
        return (self.user, self.name)

    @property
    def run(self) -> tuple[str, str, datetime | None]:
        """(user, name, started): which run of which server."""
        return (self.user, self.name, self.started)

    @property
    def label(self) -> str:
        """How people name it: ``user`` for the default server, else ``user/name``."""
        return f"{self.user}/{self.name}" if self.name else self.user


@dataclass(frozen=True, slots=True)
class User:
    """A user as the hub's API shows it. ``servers`` holds those the hub lists, in name order."""

    name: str
    admin: bool
    groups: tuple[str, ...]
    last_activity: datetime | None
    servers: tuple[Server, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What HubGuard believes at one moment. ``servers`` is sorted by (user, name); ``readings`` has one row a source."""

    taken_at: datetime
    servers: tuple[Server, ...]
    readings: tuple[Reading, ...]

    def reading(self, source: Source) -> Reading | None:
        """The reading of ``source``, or None where it wasn't asked."""
        return next((r for r in self.readings if r.source is source), None)

    @property
    def complete(self) -> bool:
        """True when every source that was asked answered in full."""
        return all(r.complete for r in self.readings)


class Standing(str, Enum):
    """What is to happen to a server in this cycle."""

    STOP = "stop"  # it is due, and nothing stands in the way
    WAIT = "wait"  # it is due, but something stands in the way for now (pending, back-off)
    KEEP = "keep"  # it isn't due yet; ``due_at`` says when it would be
    EXEMPT = "exempt"  # the policy never stops it
    UNKNOWN = "unknown"  # the hub doesn't tell enough to decide


class Reason(str, Enum):
    """Why a server has its standing. ``hubguard.web.present`` has the words for people."""

    IDLE = "idle"  # idle for longer than the idle timeout
    TOO_OLD = "too-old"  # running for longer than the max age
    ACTIVE = "active"  # neither idle nor old enough yet
    PENDING = "pending"  # the hub is in the middle of something with it
    NOT_READY = "not-ready"
    BACKING_OFF = "backing-off"  # earlier tries failed; the next isn't due yet
    ADMIN = "admin"  # servers of admins are left alone by policy
    DEFAULT_SERVER = "default-server"  # default servers are left alone by policy
    NAMED_SERVER = "named-server"  # named servers are left alone by policy
    NO_TIMES = "no-times"  # neither activity nor start is known
    NO_LIMITS = "no-limits"  # both limits are switched off


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about one server, with what it rests on.

    ``idle_since`` is the time that idleness is counted from (last activity, else start), ``due_at`` when the server is
    or would be stopped by the nearest limit, ``not_before`` the end of a back-off; each None where it doesn't apply.
    """

    server: Server
    standing: Standing
    reason: Reason
    idle_since: datetime | None
    due_at: datetime | None
    not_before: datetime | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to one server, with its precondition: that very run, still as idle as it was when decided on.

    ``remove`` also deletes a named server from the hub. ``started`` and ``last_activity`` are the reading it rests on.
    """

    user: str
    name: str
    started: datetime | None
    last_activity: datetime | None
    reason: Reason
    remove: bool = False
    kind: str = "stop-server"

    @property
    def label(self) -> str:
        """How people name the server acted on."""
        return f"{self.user}/{self.name}" if self.name else self.user


@dataclass(frozen=True, slots=True)
class Plan:
    """Frozen actions in order: least failed, then most overdue first. ``left_out`` counts what the cap kept out of it.

    ``digest`` is a SHA-256 over the actions (hex); a plan isn't executed after ``expires_at``.
    """

    made_at: datetime
    expires_at: datetime
    actions: tuple[Action, ...]
    left_out: int
    digest: str


class OutcomeKind(str, Enum):
    """How an action ended."""

    DONE = "done"  # a re-read shows it
    SKIPPED = "skipped"  # its precondition no longer held, or acting was refused; nothing was sent
    FAILED = "failed"  # the hub refused or failed, and a re-read shows the server still there
    UNVERIFIED = "unverified"  # sent, and no re-read has settled what came of it


NOT_TRIED = "not tried"
"""How the detail of a skipped action begins that is due as before: something kept HubGuard from trying it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action; ``detail`` is one line for people."""

    kind: OutcomeKind
    detail: str


@dataclass(frozen=True, slots=True)
class Stance:
    """Whether HubGuard may act, as people have set it. Each ``*_by``/``*_at``/``*_why`` tells of the last change, or None.

    ``armed`` None: nobody has armed it or disarmed it yet (it observes).
    """

    armed: bool | None = None
    armed_by: str | None = None
    armed_at: datetime | None = None
    armed_why: str | None = None
    held: bool = False
    held_by: str | None = None
    held_at: datetime | None = None
    held_why: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on one hub. ``fence`` rises with every change of holder; requests carry it and old ones are refused.

    ``address`` is the URL where the holder's API is reached, or "". ``expires_at`` is when it lapses unless renewed.
    """

    holder: str
    address: str
    fence: int
    generation: float
    taken_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. ``refers_to`` is the id of the intent that an outcome belongs to, else None.

    ``event`` is one of: intent, outcome, armed, observing, held, resumed, cycle, lease, note. ``outcome`` is set for
    outcomes only. ``started`` is the run of the server that was meant. ``fence`` is 0 for what people did without a lease.
    """

    id: int
    at: datetime
    event: str
    actor: str
    fence: int
    user: str | None = None
    server: str | None = None
    started: datetime | None = None
    action: str | None = None
    reason: str | None = None
    outcome: OutcomeKind | None = None
    detail: str = ""
    refers_to: int | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """How often acting on one run has failed since it last worked, and when last."""

    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What one cycle saw and did. ``skipped_why`` is one line when it didn't act at all, else ""."""

    began_at: datetime
    ended_at: datetime
    snapshot: Snapshot
    verdicts: tuple[Verdict, ...]
    plan: Plan
    outcomes: tuple[tuple[Action, Outcome], ...] = field(default=())
    skipped_why: str = ""


class Mode(str, Enum):
    """What HubGuard is doing, in one word."""

    STARTING = "starting"  # nothing is known yet: no settings from the hub, no database or no first snapshot
    ACTING = "acting"  # armed, and stopping what is due
    OBSERVING = "observing"  # shows what it would do, and does nothing by itself
    HELD = "held"  # a person has put acting on hold
    BRAKED = "braked"  # HubGuard itself holds back; ``why`` says what for
    STANDBY = "standby"  # another guard holds the lease and acts for this hub
    TROUBLED = "troubled"  # a wrong setting or an unusable database: acts on nothing; ``why`` names it


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that pages, API and metrics tell about the guard itself at one moment.

    ``why`` is one sentence. ``errors`` are wrong settings, each starting with the setting's name; ``notes`` are things an
    operator should know (a missing optional scope, a taken-over culler). ``last_cycle`` and ``next_cycle_at`` are None
    before the first cycle, ``lease`` where nobody has ever held it, ``last_good_cycle_at`` before one has succeeded.
    """

    at: datetime
    mode: Mode
    why: str
    stance: Stance
    started_at: datetime
    holder: str
    lease: Lease | None = None
    holds_lease: bool = False
    hub_version: str | None = None
    last_cycle: CycleReport | None = None
    last_good_cycle_at: datetime | None = None
    next_cycle_at: datetime | None = None
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    budget: BudgetUse | None = None


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """How the budget stands: requests in flight, the concurrency allowed now and at most, the rate, and the breaker.

    ``requests``, ``failures`` and ``waited_s`` count since the guard started; ``breaker`` is closed, open or probing.
    """

    in_flight: int
    concurrency: int
    concurrency_cap: int
    rate: float
    burst: int
    breaker: str
    requests: int
    failures: int
    waited_s: float
