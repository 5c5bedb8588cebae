"""The nouns of culling: verdicts, plans, reports of a cycle."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.journal.model import Exemption, Failures
from hubguard.model import Action, Finding, Outcome, Server, Tally, User
from hubguard.snapshot.model import Evidence, Snapshot


class Standing(str, Enum):
    """What is to happen to a server in this cycle."""

    STOP = "stop"  # it is due, and nothing stands in the way
    WAIT = "wait"  # it is due, but something stands in the way for now (pending, back-off)
    KEEP = "keep"  # it isn't due yet; ``due_at`` says when it would be
    EXEMPT = "exempt"  # the policy never stops it
    UNKNOWN = "unknown"  # the hub doesn't report enough to decide


class Reason(str, Enum):
    """Why a server has its standing. ``hubguard.words`` has the words for people."""

    IDLE = "idle"  # idle for longer than the idle timeout
    TOO_OLD = "too-old"  # running for longer than the max age
    SURPLUS = "surplus"  # one of those idle for longest, beyond as many as a rule allows
    ACTIVE = "active"  # neither idle nor old enough yet
    PENDING = "pending"  # the hub is busy with it
    NOT_READY = "not-ready"
    BACKING_OFF = "backing-off"  # earlier tries failed; the next isn't due yet
    ADMIN = "admin"  # servers of admins are left alone by policy
    DEFAULT_SERVER = "default-server"  # default servers are left alone by policy
    NAMED_SERVER = "named-server"  # named servers are left alone by policy
    NO_TIMES = "no-times"  # neither activity nor start is known
    NO_LIMITS = "no-limits"  # both limits are switched off
    RULE = "rule"  # a rule of the policy says never; it keeps the users that it is about, too
    EXEMPTION = "exemption"  # somebody has asked to keep it, and until when
    HOOK = "hook"  # the operator's own function says no, or failed
    CANT_TELL = "cant-tell"  # a rule depends on what the hub doesn't show (groups, roles, options), or on a unit
    STUCK = "pending-stuck"  # pending for longer than its limit
    PROTECTED = "protected"  # a user that the settings of pruning protect, or that the hub's config names
    BEYOND = "beyond"  # the idle culler that HubGuard replaces had no right to it
    DOTS = "dots"  # a name of dots alone, which has no path of its own at the hub
    SWITCHED_OFF = "named-servers-off"  # the hub has named servers switched off, and lets nobody stop any
    STORAGE = "storage"  # a user whose storage would go, too, which nobody has acknowledged


@dataclass(frozen=True, slots=True)
class Surplus:
    """A server is one too many: ``rule`` allows ``most`` of the ``count`` that its user has, or with ``in_all`` all users."""

    rule: str
    count: int
    most: int
    in_all: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What HubGuard knows of one run beyond the hub's list of servers; None: nothing.

    ``failures`` are earlier attempts, ``proxy_activity`` is the last traffic that the proxy has seen, ``active_at``
    the last real use by HubGuard's own record, ``pending_since`` since when HubGuard has seen it pending as it is
    now. ``clock_from``: no idle clock counts from before that. ``restores`` are the times (from, to) in which a
    proxy's lost table was filled again: the hub's and the proxy's times within these aren't use. ``hook`` is the
    answer of the operator's own function: True for stop, False for keep, None if there is no such function;
    ``hook_error`` is one line on why it has none. ``surplus``: it is one too many.
    """

    failures: Failures | None = None
    exemption: Exemption | None = None
    proxy_activity: datetime | None = None
    active_at: datetime | None = None
    pending_since: datetime | None = None
    clock_from: datetime | None = None
    restores: tuple[tuple[datetime, datetime], ...] = ()
    hook: bool | None = None
    hook_error: str = ""
    surplus: Surplus | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about one server, with what it is based on.

    ``idle_since`` is the time that idleness is counted from, by ``evidence``; ``due_at`` when the server is or would be
    stopped by the nearest limit, ``not_before`` the end of a back-off; each None if it doesn't apply. ``rule`` names the
    rule whose limits apply, None for those of the settings; ``idle_timeout_s`` and ``max_age_s`` are these limits, 0 for
    off. ``known`` is what else it is based on.
    """

    server: Server
    standing: Standing
    reason: Reason
    idle_since: datetime | None
    due_at: datetime | None
    not_before: datetime | None = None
    failures: int = 0
    evidence: Evidence | None = None
    rule: str | None = None
    idle_timeout_s: float = 0.0
    max_age_s: float = 0.0
    known: Known = field(default_factory=Known)


@dataclass(frozen=True, slots=True)
class UserVerdict:
    """The decision about one user, who may be deleted: STOP, KEEP, WAIT (a server runs, a back-off), EXEMPT or UNKNOWN.

    ``failures`` counts the tries so far.
    """

    user: User
    standing: Standing
    reason: Reason
    idle_since: datetime | None
    due_at: datetime | None
    rule: str | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Protected:
    """Users who are never deleted: by names (globs), groups, roles, or since the hub's config names them.

    A user with unknown groups or roles is kept if that matters.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    in_config: frozenset[str] = frozenset()


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


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done in one cycle, and the verdicts that it is based on."""

    verdicts: tuple[Verdict, ...]
    user_verdicts: tuple[UserVerdict, ...]
    plan: Plan

    @property
    def due(self) -> int:
        """How many actions the plan would have without its cap."""
        return len(self.plan.actions) + self.plan.left_out


@dataclass(frozen=True, slots=True)
class Wish:
    """How a person wants one cycle to be. ``dry_run`` decides and does nothing.

    ``idle_timeout_s`` replaces the idle limit of the settings; ``rate``, in requests per second, and ``concurrency`` can
    only lower the budget. None: as the settings have it.
    """

    dry_run: bool = False
    idle_timeout_s: float | None = None
    rate: float | None = None
    concurrency: int | None = None


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
    user_verdicts: tuple[UserVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class CullStatus:
    """What culling knows of itself at one moment.

    ``last_cycle`` and ``next_cycle_at`` are None before the first cycle, ``last_good_cycle_at`` before one has succeeded.
    ``under_way`` is the cycle that is being carried out, without its outcomes; None between two.
    ``tally`` is of this guard's life, ``recent`` of the last hour. ``oldest_overdue`` is the server that has been due for
    longest and still runs. ``findings`` are what an operator should look at, most recent last.
    """

    last_cycle: CycleReport | None = None
    last_good_cycle_at: datetime | None = None
    next_cycle_at: datetime | None = None
    tally: Tally = field(default_factory=Tally)
    recent: Tally = field(default_factory=Tally)
    oldest_overdue: Verdict | None = None
    findings: tuple[Finding, ...] = ()
    under_way: CycleReport | None = None

    @property
    def newest(self) -> CycleReport | None:
        """The report with the newest look at the hub."""
        return self.under_way or self.last_cycle
