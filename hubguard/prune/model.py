"""The nouns of pruning: who is stale, what goes with them, what came of it, and what brings them back.

All values are frozen; datetimes are UTC-aware; unknown is None, never 0 and never "none".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.hub.nouns import Account, ORMCounts
from hubguard.model import Cause, Finding, Outcome, OutcomeKind, Tally


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
    NO_TIMES = "no-times"  # neither activity nor creation is known, or a time can't be read
    CANT_TELL = "cant-tell"  # what a criterion or a protection asks for isn't told (groups, roles, creation)


@dataclass(frozen=True, slots=True)
class StaleCriteria:
    """Criteria of a plan: users who are stale by a limit and match everything else that is set. ``inactive_for_s``:
    those last active this many seconds ago or longer; 0: none of those who were ever active. ``never_active_for_s``:
    those who never were, and were created that long ago; 0: none of them. ``groups`` and ``roles``: in one of these.
    ``names``: globs, one of which matches the whole name, letter by letter. ``listed``: one of these names, as they
    are; None: no list is given, and an empty one asks for nobody. ``not_groups`` and ``not_roles``: in none of these.
    ``created_before`` and ``created_after`` (that moment included): None: whenever they were created.
    """

    inactive_for_s: float = 0.0
    never_active_for_s: float = 0.0
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    listed: tuple[str, ...] | None = None
    not_groups: tuple[str, ...] = ()
    not_roles: tuple[str, ...] = ()
    created_before: datetime | None = None
    created_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlanProtection:
    """Who is kept by the settings: members of the groups, holders of the roles, names that a glob in ``names`` matches.

    ``token_used_within_s``: users with a token that was used within this many seconds; 0: tokens keep nobody.
    """

    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    token_used_within_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection(PlanProtection):
    """Who is kept whatever the criteria, besides admins, the exempted and those with a running server.

    ``in_config`` are the users that the hub's config names, who would come back at its next start; None: unknown. ``callers``
    are the users who make the plan.
    """

    in_config: frozenset[str] | None = None
    callers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """What HubGuard's own journal knows about one user's activity.

    ``active_at`` is the last real use of any of their servers, None if none was seen. ``stops`` are the times (from, to)
    within which HubGuard itself stopped a server of theirs: the hub stamps the user's activity with such a moment.
    """

    active_at: datetime | None = None
    stops: tuple[tuple[datetime, datetime], ...] = ()


@dataclass(frozen=True, slots=True)
class PruneVerdict:
    """The decision about one user. ``reasons`` has the one reason for which they are stale, or all that keep them.

    The first of these is the one to tell where there is room for one. ``idle_since`` is what the limit counts from (their
    creation for who was never active), ``due_at`` when the limit is or was reached; None if there is no such time.
    """

    account: Account
    stale: bool
    reasons: tuple[PruneReason, ...]
    idle_since: datetime | None
    due_at: datetime | None

    @property
    def reason(self) -> PruneReason:
        """The first reason."""
        return self.reasons[0]


class StorageFate(str, Enum):
    """What becomes of a user's storage when the hub deletes them."""

    DELETED = "deleted"
    MAY_BE_DELETED = "may-be-deleted"  # the spawner has code of its own for that, and nobody knows what it does
    KEPT = "kept"
    UNKNOWN = "unknown"  # which spawner it is, is unknown


@dataclass(frozen=True, slots=True)
class Storage:
    """What deleting users does to their storage. ``spawner`` is the class's short name, None if unknown.

    ``why`` is one sentence for people.
    """

    fate: StorageFate
    spawner: str | None
    why: str

    @property
    def at_risk(self) -> bool:
        """Whether it takes an acknowledgement."""
        return self.fate is not StorageFate.KEPT


@dataclass(frozen=True, slots=True)
class Caution:
    """What somebody has to acknowledge by ``name`` before a plan is carried out; ``why`` is one sentence."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Gain:
    """What is gained. ``rows`` has the number of rows that go by table of the hub; None: the hub's database isn't read.

    ``pages_before`` and ``pages_after`` are pages of 200 users. ``startup_s`` is how long the hub's last start took by its
    own measure, None if it doesn't say.
    """

    users_before: int
    users_after: int
    pages_before: int
    pages_after: int
    rows: Mapping[str, int] | None = field(default=None, hash=False)
    startup_s: float | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """One user to delete, with the reading it is based on: ``created``, ``last_activity`` (as the hub told it) and ``id``.

    If these have changed, the user isn't deleted. ``servers`` are the names of the servers that go with them, ``groups``
    and ``roles`` their memberships, ``tokens`` and ``shares`` numbers of rows; None: not told.
    """

    user: str
    created: datetime | None
    last_activity: datetime | None
    reason: PruneReason
    idle_since: datetime | None
    id: int | None = None
    servers: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    tokens: int | None = None
    shares: int | None = None


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """A frozen plan. ``deletions`` is in name order; ``kept`` counts who is kept, by first reason.

    ``digest`` is a SHA-256 (hex) over all the rest of it. It isn't begun after ``expires_at``. ``left_out`` counts the stale
    beyond its cap. ``cautions`` must be acknowledged; ``lost`` says what can't be brought back, one sentence each.
    ``protection`` has the groups, roles, names and the token limit that kept users when it was made, and no names of users.
    ``offline``: it is for a hub that doesn't run, and for the ``database`` named (without account or password), of that
    ``revision``; both "" online. ``housekeeping`` is what of rows of no use is removed along with it, None: nothing.
    """

    digest: str
    made_at: datetime
    expires_at: datetime
    made_by: str
    criteria: StaleCriteria
    deletions: tuple[Deletion, ...]
    kept: Mapping[PruneReason, int] = field(hash=False)
    gain: Gain
    storage: Storage
    cautions: tuple[Caution, ...] = ()
    lost: tuple[str, ...] = ()
    left_out: int = 0
    protection: PlanProtection = field(default_factory=PlanProtection)
    offline: bool = False
    database: str = ""
    revision: str = ""
    housekeeping: ORMCounts | None = None


class PruneState(str, Enum):
    """How a plan stands."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"  # by a person, or by HubGuard for the reason in ``why``
    CANCELLED = "cancelled"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PruneRun:
    """A plan, and what came of it so far. ``why`` says in one line why it stands as it does, or "".

    ``actor`` made the plan, or applied it; ``asked_why`` is what they gave as their reason. ``count`` is how many users it
    has; ``done``, ``skipped``, ``gone`` (somebody else deleted them), ``failed`` and ``unverified`` count those that are
    settled. ``per_s`` is how many were
    settled per second of late, ``left_s`` how long the rest takes at that; None if that is unknown.
    ``undo_file`` is where it is on the guard's machine, ``undo_sha256`` its checksum (hex); None before it is written.
    ``restored`` counts those that were brought back by it, and ``restored_at`` is when that was last done.
    ``acknowledged`` names the cautions that people have acknowledged for it, in order. ``criteria`` are the plan's; None:
    they are too long for a list of plans.
    """

    digest: str
    state: PruneState
    made_at: datetime
    expires_at: datetime
    actor: str
    count: int
    why: str = ""
    asked_why: str = ""
    scheduled: bool = False
    began_at: datetime | None = None
    ended_at: datetime | None = None
    done: int = 0
    skipped: int = 0
    gone: int = 0
    failed: int = 0
    unverified: int = 0
    per_s: float | None = None
    left_s: float | None = None
    undo_file: str | None = None
    undo_sha256: str | None = None
    restored: int = 0
    restored_at: datetime | None = None
    acknowledged: tuple[str, ...] = ()
    criteria: StaleCriteria | None = None

    @property
    def settled(self) -> int:
        """How many users are settled, one way or another."""
        return self.done + self.skipped + self.gone + self.failed + self.unverified


@dataclass(frozen=True, slots=True)
class NotBack:
    """A user who isn't there again after a restore: ``state`` is the outcome's kind, and ``detail`` says why in one line."""

    user: str
    state: OutcomeKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRun(PruneRun):
    """A plan after its users were restored, and who of them isn't there again."""

    not_back: tuple[NotBack, ...]


@dataclass(frozen=True, slots=True)
class PruneItem:
    """One deletion of a plan, and what came of it: ``outcome`` None means that its turn hasn't come."""

    index: int
    deletion: Deletion
    outcome: Outcome | None = None
    at: datetime | None = None

    @property
    def state(self) -> str:
        """``waiting``, ``gone`` (somebody else deleted them), or the outcome's kind."""
        return "waiting" if self.outcome is None else fate(self.outcome)


def fate(outcome: Outcome) -> str:
    """What became of a user of a plan, in one word: ``gone`` (somebody else deleted them), or the outcome's kind."""
    return Cause.GONE.value if outcome.cause is Cause.GONE else outcome.kind.value


@dataclass(frozen=True, slots=True)
class UsersReport:
    """Every user, judged. ``verdicts`` is in name order. ``criteria`` is what they were judged by, ``read_at`` when.

    ``source`` is "hub_db" or "hub_api". ``active_since``: users active since then aren't in it; None: everybody is.
    ``users_total`` is how many there are. ``notes`` say what is unknown, one sentence each.
    """

    read_at: datetime
    criteria: StaleCriteria
    verdicts: tuple[PruneVerdict, ...]
    users_total: int
    source: str
    active_since: datetime | None
    storage: Storage
    notes: tuple[str, ...] = ()
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class UndoFacts:
    """What of one user is in an undo file, as far as an Account tells it, too: what comes on top of it would be lost.

    ``tokens`` and ``shares`` are numbers of rows; None: it has no rows.
    """

    groups: frozenset[str]
    roles: frozenset[str]
    servers: frozenset[str]
    tokens: int | None = None
    shares: int | None = None


@dataclass(frozen=True, slots=True)
class SecondLook:
    """A user as they are right before they are deleted, None: nobody has that name; and why they aren't deleted, or None."""

    account: Account | None
    why_not: str | None


@dataclass(frozen=True, slots=True)
class UndoHead:
    """What an undo file is about. ``made_at`` is when it was written; ``database`` and ``revision`` are of the rows in it.

    ``revision`` is "" where it has no rows.
    """

    digest: str
    made_at: datetime
    made_by: str
    database: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class PruneStatus:
    """What pruning knows of itself at one moment.

    ``tally`` tells how users of plans were settled in this guard's life, ``waiting`` how many users of the plans under way
    aren't settled. ``findings`` are what an operator should look at.
    """

    tally: Tally = field(default_factory=Tally)
    waiting: int = 0
    findings: tuple[Finding, ...] = ()
