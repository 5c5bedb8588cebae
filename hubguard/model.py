"""The nouns. All values here are frozen; all datetimes are UTC-aware; unknown is None, never 0 and never "stopped"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

ARMING_COVERS = (
    "Armed, HubGuard acts by itself: it stops servers that are due, repairs the kinds of drift in HubGuardDrift.repair,"
    " prunes on a schedule (HubGuardPrune.every_s), and deletes users if HubGuardCull.users is set. Otherwise it only"
    " observes."
)
NEEDS_NO_ARMING = (
    "What a person asks for needs no arming: a repair, a plan to delete users, one cycle of culling."
    " A hold stops these, too."
)
"""What arming covers, in the same words in pages, commands, API and docs."""


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

    ``pending`` is the hub's word (spawn, stop, check, rename) or None. ``started`` and ``last_activity`` are None if
    the hub doesn't know them. One *run* of a server is identified by ``run``: it changes when the server is restarted.
    ``groups`` and ``roles`` are its user's, in name order, and None if the hub doesn't show them (a missing scope).
    ``options`` is what it was started with (``user_options``), and None if the hub doesn't show them.
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
        """How people name it."""
        return server_label(self.user, self.name)


def server_label(user: str, name: str) -> str:
    """How people name a server: ``user`` for the default one, else ``user/name``."""
    return f"{user}/{name}" if name else user


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

    ``created`` and ``last_activity`` are None if the hub doesn't know or show them, ``groups`` and ``roles`` if the hub
    doesn't show them.
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
    """A route in the proxy's table. ``path`` begins with a slash and has none at its end, except ``/`` itself.

    ``user`` and ``server`` are those that the hub has put into the route's data, and None for a route of something else.
    ``last_activity`` is when the proxy last saw traffic on it, or when it was added, whichever is later; None: unknown.
    ``hub``: it is the hub's own.
    """

    path: str
    target: str
    user: str | None = None
    server: str | None = None
    last_activity: datetime | None = None
    hub: bool = False

    @property
    def key(self) -> tuple[str, str] | None:
        """(user, name) of the server it leads to, None for a route of something else."""
        return None if self.user is None else (self.user, self.server or "")


class ActionKind(str, Enum):
    """What is done."""

    STOP_SERVER = "stop-server"
    INTERRUPT_SPAWN = "interrupt-spawn"  # end a start that has been pending for too long
    DELETE_USER = "delete-user"
    CHECK_ROUTES = "check-routes"  # have the hub compare the proxy's table with what it knows, and mend it
    START_AND_STOP = "start-and-stop"  # end a server that the hub only believes in
    END_BACKEND = "end-backend"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do to one server or user, with its precondition: that very run, still as idle as when decided on.

    ``reason`` is a word of the feature that wants it: a Reason of culling, a DriftKind, a PruneReason. A repair's
    precondition is that the drift is still there; if it is about no single server, ``user`` is "". ``remove`` also
    deletes a named server from the hub. ``started`` and ``last_activity`` are the reading it is based on; for a user
    ``started`` is when the user was created. ``plan`` is the digest of the reviewed plan that it belongs to, None: none.
    """

    user: str
    name: str
    started: datetime | None
    last_activity: datetime | None
    reason: str
    remove: bool = False
    kind: ActionKind = ActionKind.STOP_SERVER
    plan: str | None = None

    @property
    def label(self) -> str:
        """How people name the server acted on."""
        return server_label(self.user, self.name)


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an action rested on at its second look: ``since`` then it was over the limit of ``limit_s`` seconds.

    ``since`` is when it was last used, started, created or went pending, as ``Action.reason`` says; ``evidence`` is what
    shows that ("hub", "start", "proxy", "recovery"), or "". ``rule`` names the rule whose limit it was, None for the
    settings. ``detail`` is what else there is to say, as a clause, or "".
    """

    limit_s: float
    since: datetime | None
    evidence: str = ""
    rule: str | None = None
    detail: str = ""


class OutcomeKind(str, Enum):
    """How an action ended."""

    DONE = "done"  # a re-read shows it
    SKIPPED = "skipped"  # its precondition no longer held, or acting was refused; nothing was sent
    FAILED = "failed"  # the hub refused or failed, and a re-read shows the server still there
    UNVERIFIED = "unverified"  # sent, and no re-read has settled what came of it


class Cause(str, Enum):
    """Why an action ended as it did, if something is decided by it."""

    NONE = ""  # the kind says all that is needed
    NOT_TRIED = "not-tried"  # skipped and due as before: something kept HubGuard from trying it
    CAME_BACK = "came-back"  # the stop had begun, and the same run is ready again
    GONE = "gone"  # skipped: somebody else has removed what was to be acted on
    CHANGED_NOTHING = "changed-nothing"  # the hub took the stop, and the same run was ready all along
    SWITCHED_OFF = "switched-off"  # skipped: the hub does this to no named server, by its settings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action. ``detail`` is one line for people; what code needs to know is in ``kind`` and ``cause``."""

    kind: OutcomeKind
    detail: str
    cause: Cause = Cause.NONE


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants something done, and why. ``asked``: a person has asked for it by name, so it is done while observing, too."""

    actor: str
    why: str = ""
    asked: bool = False


class FindingKind(str, Enum):
    """What a finding is about."""

    PENDING_STUCK = "pending-stuck"
    CAME_BACK = (
        "came-back"  # it was seen gone after a stop, or the stop was accepted, and it is ready again: the same run
    )
    ACTIVITY_FROZEN = "activity-frozen"
    CANT_TELL = "cant-tell"  # a quiet hub can't be distinguished from one whose activity is frozen
    NOT_CULLING = "not-culling"  # servers are long overdue
    RULE = "rule"  # a rule of the policy can't match, or is shadowed by another
    NOBODY = "nobody"  # a rule, a protection or an exemption is about users that the hub doesn't have
    PRUNE_HELD = "prune-held"  # a scheduled pruning removes nobody until a person has looked
    USERS_KEPT = "users-kept"  # inactive users aren't deleted until somebody accepts what goes with them
    NAMED_SERVERS_OFF = "named-servers-off"  # named servers are due, and the hub lets nobody stop any
    NEW_DATABASE = "new-database"  # the hub has a new database, which has none of the earlier users
    NOT_DELETED = "not-deleted"  # the hub fails to delete users
    RECEIVER = "receiver"  # notices don't reach a receiver


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an operator should look at; ``detail`` is one sentence. ``user`` and ``server`` are None for the hub."""

    kind: FindingKind
    since: datetime
    detail: str
    user: str | None = None
    server: str | None = None


ERRORS_MOST = 0.5
"""Share of actions that failed or are unverified, above which HubGuard counts as failing."""

ERRORS_AMONG = 10
"""Fewest actions for which the share that failed or is unverified is judged."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How actions ended, counted since the guard started.

    ``not_deleted`` counts those among ``failed`` that were to delete a user. An authenticator has its own code there, so
    they say nothing of how well the hub takes anything else, and are in no ratio.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    unverified: int = 0
    not_deleted: int = 0

    @property
    def error_ratio(self) -> float | None:
        """The share of what was sent that failed or couldn't be verified; None before anything was sent."""
        sent, bad = self._sent_and_bad()
        return bad / sent if sent else None

    @property
    def mostly_failed(self) -> bool:
        """Whether enough was sent to judge by, and most of it failed or couldn't be verified."""
        sent, bad = self._sent_and_bad()
        return sent >= ERRORS_AMONG and bad / sent > ERRORS_MOST

    def _sent_and_bad(self) -> tuple[int, int]:
        bad = self.failed + self.unverified - self.not_deleted
        return self.done + bad, bad


Key = tuple[str, str]
"""(user, name) of a server; the name is "" for the default one."""
