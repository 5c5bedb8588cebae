"""The nouns. All values here are frozen; all datetimes are UTC-aware; unknown is None, never 0 and never "stopped"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum


class Source(str, Enum):
    """Where a reading comes from."""

    HUB_API = "hub_api"
    HUB_DB = "hub_db"
    PROXY = "proxy"
    BACKEND = "backend"
    HUB_ROUTES = "hub_routes"  # the proxy's table as the hub's API tells it


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
    ``groups`` and ``roles`` are its user's, in name order, and None where the hub doesn't tell them (a missing scope).
    ``options`` is what it was started with (``user_options``), and None where the hub doesn't tell.
    """

    user: str
    name: str
    ready: bool
    pending: str | None
    started: datetime | None
    last_activity: datetime | None
    admin: bool = False
    groups: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    options: Mapping[str, object] | None = field(default=None, hash=False)

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


def same_run(one: datetime | None, other: datetime | None) -> bool:
    """Whether two starts of a server by one name are of the same run, whichever source each is from.

    A hub's database on MySQL keeps whole seconds, and no server is started twice within one.
    """
    if one is None or other is None:
        return one is other
    return abs(one - other) < timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class User:
    """A user as the hub's API shows it. ``servers`` holds those that the hub calls active, in name order.

    ``created`` and ``last_activity`` are None where the hub doesn't know or tell them, ``groups`` and ``roles`` where the
    hub doesn't tell.
    """

    name: str
    admin: bool
    groups: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    created: datetime | None = None
    last_activity: datetime | None = None
    servers: tuple[Server, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """A route in the proxy's table. ``path`` begins with a slash and has none at its end, but for ``/`` itself.

    ``user`` and ``server`` are those that the hub has put into the route's data, and None for a route of something else.
    ``last_activity`` is when the proxy last saw traffic on it, or when it was added, whichever is later; None: not told.
    """

    path: str
    target: str
    user: str | None = None
    server: str | None = None
    last_activity: datetime | None = None

    @property
    def key(self) -> tuple[str, str] | None:
        """(user, name) of the server it leads to, None for a route of something else."""
        return None if self.user is None else (self.user, self.server or "")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What HubGuard believes at one moment. ``servers`` is sorted by (user, name); ``readings`` has one row a source.

    ``users_total`` is how many users the hub has, None where it wasn't told. ``users`` holds those who may be deleted, by
    name, and None where nobody asked for them. ``routes`` is the proxy's table by path, None where it couldn't be read.
    """

    taken_at: datetime
    servers: tuple[Server, ...]
    readings: tuple[Reading, ...]
    users_total: int | None = None
    users: tuple[User, ...] | None = None
    routes: Mapping[str, Route] | None = field(default=None, hash=False)

    def reading(self, source: Source) -> Reading | None:
        """The reading of ``source``, or None where it wasn't asked."""
        return next((r for r in self.readings if r.source is source), None)

    @property
    def complete(self) -> bool:
        """True when the hub answered in full. Its database and the proxy only spare it questions, and may be missing."""
        return all(r.complete for r in self.readings if r.source is Source.HUB_API)


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
    RULE = "rule"  # a rule of the policy says never
    EXEMPTION = "exemption"  # somebody has asked to keep it, and until when
    HOOK = "hook"  # the operator's own function says no, or failed
    CANT_TELL = "cant-tell"  # a rule asks for what the hub doesn't tell (groups, roles, options)
    STUCK = "pending-stuck"  # pending for longer than its limit


class Evidence(str, Enum):
    """What an idle clock counts from."""

    HUB = "hub"  # the hub's last activity
    START = "start"  # it was started after any activity that is known
    PROXY = "proxy"  # the proxy has seen traffic that the hub hasn't noticed yet
    RECOVERY = "recovery"  # hub or proxy came back from an outage: nobody's activity counted during it


@dataclass(frozen=True, slots=True)
class Exemption:
    """Somebody has asked to keep a server, or all of a user's (``server`` None), until a time.

    ``ended_at`` and ``ended_by`` are set when it was ended early.
    """

    id: int
    user: str
    server: str | None
    until: datetime
    actor: str
    why: str
    made_at: datetime
    ended_at: datetime | None = None
    ended_by: str | None = None

    def covers(self, user: str, server: str, now: datetime) -> bool:
        """Whether that server is to be kept at ``now``."""
        return (
            self.user == user
            and self.server in (None, server)
            and now < self.until
            and (self.ended_at is None or now < self.ended_at)
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What HubGuard itself has seen of one server, kept after it is gone.

    ``active_at`` is the last real use, by ``evidence``; None: none was seen. It leaves out what only looks like use: a route
    that was added anew, by itself or with all of a table that was lost (then ``readded_at`` is its time).
    ``pending_since`` is when it was first seen ``pending`` as it is.
    ``route_missing``: it was ready and had no route when the proxy was last read.
    """

    user: str
    server: str
    started: datetime | None
    active_at: datetime | None = None
    evidence: Evidence | None = None
    pending: str | None = None
    pending_since: datetime | None = None
    readded_at: datetime | None = None
    route_missing: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What HubGuard knows of one run beyond the hub's list of servers; None: nothing.

    ``failures`` tells of earlier tries, ``proxy_activity`` of the last traffic that the proxy has seen, ``active_at`` of the
    last real use by HubGuard's own record, ``pending_since`` since when HubGuard has seen it pending as it is now.
    ``clock_from``: no idle clock counts from before that. ``restores`` are the times (from, to) in which a proxy's lost table
    was filled again: what the hub's and the proxy's times tell of these isn't use.
    ``hook`` is the answer of the operator's own function: True for stop, False for keep, None where there is no such
    function; ``hook_error`` is one line on why it has none.
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about one server, with what it rests on.

    ``idle_since`` is the time that idleness is counted from, by ``evidence``; ``due_at`` when the server is or would be
    stopped by the nearest limit, ``not_before`` the end of a back-off; each None where it doesn't apply. ``rule`` names the
    rule whose limits apply, None for those of the settings; ``idle_timeout_s`` and ``max_age_s`` are these limits, 0 for
    off. ``known`` is what else it rests on.
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
    """The decision about one user, who may be deleted: STOP, KEEP, WAIT (a server still runs), EXEMPT or UNKNOWN."""

    user: User
    standing: Standing
    reason: Reason
    idle_since: datetime | None
    due_at: datetime | None
    rule: str | None = None


class ActionKind(str, Enum):
    """What is done."""

    STOP_SERVER = "stop-server"
    INTERRUPT_SPAWN = "interrupt-spawn"  # end a start that has been pending for too long
    DELETE_USER = "delete-user"
    CHECK_ROUTES = "check-routes"  # have the hub compare the proxy's table with what it knows, and mend it
    START_AND_STOP = "start-and-stop"  # end a server that the hub only believes in
    END_BACKEND = "end-backend"


class DriftKind(str, Enum):
    """How what is believed and what is can differ. The values are the vocabulary of pages, API and docs."""

    ROUTE_MISSING = "route-missing"  # the hub says ready, and there is no route
    ROUTE_WRONG_TARGET = "route-wrong-target"  # its route leads elsewhere
    ROUTE_STALE = "route-stale"  # a route for a server that isn't
    SERVICE_ROUTE_MISSING = "service-route-missing"
    HUB_ROUTE_MISSING = "hub-route-missing"
    SERVER_DEAD = "server-dead"  # the hub says ready, and its backend is gone or doesn't answer
    SERVER_GHOST = "server-ghost"  # the same, and a stop changed nothing
    SERVER_ORPHAN = "server-orphan"  # the hub says stopped, or knows nothing of it, and the backend lives
    PENDING_STUCK = "pending-stuck"
    ORM_DANGLING = "orm-dangling"  # rows of the hub's database that lead nowhere
    ACTIVITY_FROZEN = "activity-frozen"


class PruneReason(str, Enum):
    """Why a user is stale, or is kept."""

    INACTIVE = "inactive"  # stale: last active longer ago than the limit
    NEVER_ACTIVE = "never-active"  # stale: never active, and made longer ago than the limit
    ACTIVE = "active"  # neither
    NOT_ASKED_FOR = "not-asked-for"  # stale, but not of the groups, roles or names that were asked for
    ADMIN = "admin"
    IN_CONFIG = "named-in-config"  # would come back at the hub's next start
    PROTECTED_GROUP = "protected-group"
    PROTECTED_ROLE = "protected-role"
    PROTECTED_NAME = "protected-name"
    EXEMPTION = "exemption"
    SERVER_ACTIVE = "server-active"  # a server of theirs runs or is pending
    TOKEN_USED = "token-used"  # noqa: S105
    CALLER = "caller"
    NO_TIMES = "no-times"  # neither activity nor creation is known
    CANT_TELL = "cant-tell"  # what a criterion or a protection asks for isn't told (groups, roles)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to one server or user, with its precondition: that very run, still as idle as when decided on.

    A repair has the kind of drift as its ``reason``, and that the drift is still there as its precondition; where it is
    about no single server, ``user`` is "". ``remove`` also deletes a named server from the hub. ``started`` and
    ``last_activity`` are the reading it rests on; for a user ``started`` is when the user was created.
    """

    user: str
    name: str
    started: datetime | None
    last_activity: datetime | None
    reason: Reason | DriftKind | PruneReason
    remove: bool = False
    kind: ActionKind = ActionKind.STOP_SERVER

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

    ``event`` is one of: intent, outcome, armed, observing, held, resumed, kept, released, braked, brake-over, finding,
    cleared (a finding is over), cycle, lease, note. ``outcome`` is set for outcomes only. ``started`` is the run of the
    server that was meant. ``fence`` is 0 for what people did without a lease.
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
    user_verdicts: tuple[UserVerdict, ...] = ()


class BrakeReason(str, Enum):
    """Why HubGuard holds back by itself."""

    INCOMPLETE = "incomplete"  # the list of servers isn't whole
    CHECKING = "checking"  # the hub has just started, and doesn't know its own servers yet
    POPULATION = "population"  # many users are gone, and HubGuard didn't delete them
    PROXY_DOWN = "proxy-down"  # nobody's use of their server can be seen
    FROZEN = "activity-frozen"  # the proxy sees traffic that the hub doesn't notice any more
    OVER_CAP = "over-cap"  # more is due at once than one cycle may do
    CLOCK = "clock"  # the hub's clock and ours differ by too much


@dataclass(frozen=True, slots=True)
class Brake:
    """HubGuard holds back. ``why`` is one clause for people ("the list of servers is incomplete: …"), ``ends`` one sentence.

    ``since`` is when it began. ``acceptable``: a person who resumes lets HubGuard go on with what it objects to.
    """

    reason: BrakeReason
    since: datetime
    why: str
    ends: str
    acceptable: bool = False


class FindingKind(str, Enum):
    """What a finding is about."""

    PENDING_STUCK = "pending-stuck"
    CAME_BACK = (
        "came-back"  # it was seen gone after a stop, or the stop was accepted, and it is ready again: the same run
    )
    ACTIVITY_FROZEN = "activity-frozen"
    CANT_TELL = "cant-tell"  # nothing tells a quiet hub from one whose activity is frozen
    NOT_CULLING = "not-culling"  # servers are long overdue
    RULE = "rule"  # a rule of the policy can't match, or is shadowed by another
    PRUNE_HELD = "prune-held"  # a scheduled pruning removes nobody until a person has looked


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an operator should look at; ``detail`` is one sentence. ``user`` and ``server`` are None for the hub."""

    kind: FindingKind
    since: datetime
    detail: str
    user: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How actions ended, counted since the guard started."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    unverified: int = 0

    @property
    def error_ratio(self) -> float | None:
        """The share of what was sent that failed or couldn't be verified; None before anything was sent."""
        sent = self.done + self.failed + self.unverified
        return (self.failed + self.unverified) / sent if sent else None


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
    ``brake`` is set while HubGuard holds back. ``clock_from``: idle clocks were started anew then, after an outage.
    ``armed`` is what holds, by people or by the settings. ``tally`` is of this guard's life, ``recent`` of the last hour.
    ``oldest_overdue`` is the server that has been due for longest and isn't stopped yet. ``findings`` are what an operator
    should look at, most recent last. ``pruned`` tells how users of plans were settled in this guard's life, and
    ``prune_waiting`` how many of the plan that is being carried out, or is paused, wait for their turn.
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
    armed: bool = False
    brake: Brake | None = None
    clock_from: datetime | None = None
    tally: Tally = field(default_factory=Tally)
    recent: Tally = field(default_factory=Tally)
    oldest_overdue: Verdict | None = None
    findings: tuple[Finding, ...] = ()
    pruned: Tally = field(default_factory=Tally)
    prune_waiting: int = 0


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """How the budget stands: requests in flight, the concurrency allowed now and at most, the rate, and the breaker.

    ``concurrency`` is how many stops and the like may be in flight at the hub; ``in_flight`` counts looking, too, and may
    be over it. ``breaker`` is the hub's: closed, open or probing. ``requests`` (sent), ``failures`` and ``waited_s``
    (seconds, summed) count since the guard started.
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


@dataclass(frozen=True, slots=True)
class PaceState:
    """What of the pace at the hub outlives a restart of the guard.

    ``concurrency`` is the limit at that moment. ``breaker`` is closed or open; an open one lets a probe go in ``probe_in_s``
    and stays open for ``stays_open_s`` between two probes. ``failures`` is how many requests in a row have failed.
    """

    concurrency: int
    breaker: str
    failures: int
    probe_in_s: float
    stays_open_s: float
