"""The nouns of a snapshot: what was seen, and why acting is braked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.model import Reading, Route, Server, Source, User


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What HubGuard believes at one moment. ``servers`` is sorted by (user, name); ``readings`` has one row a source.

    ``users_total`` is how many users the hub has, None if unknown. ``users`` holds those who may be deleted, in no order,
    and None if they weren't read. ``routes`` is the proxy's table by path, None if it couldn't be read.
    """

    taken_at: datetime
    servers: tuple[Server, ...]
    readings: tuple[Reading, ...]
    users_total: int | None = None
    users: tuple[User, ...] | None = None
    routes: Mapping[str, Route] | None = field(default=None, hash=False)

    def reading(self, source: Source) -> Reading | None:
        """The reading of ``source``, or None if it wasn't read."""
        return next((r for r in self.readings if r.source is source), None)

    @property
    def complete(self) -> bool:
        """True when the hub answered in full. Its database and the proxy only save it requests, and may be missing."""
        return all(r.complete for r in self.readings if r.source is Source.HUB_API)


Run = tuple[str, str, datetime | None]
"""(user, name, started): which run of which server."""


class Evidence(str, Enum):
    """What an idle clock counts from."""

    HUB = "hub"  # the hub's last activity
    START = "start"  # it was started after any activity that is known
    PROXY = "proxy"  # the proxy has seen traffic that the hub hasn't noticed yet
    RECOVERY = "recovery"  # hub or proxy came back from an outage: nobody's activity counted during it


@dataclass(frozen=True, slots=True)
class Seen:
    """What HubGuard itself has seen of one server, kept after it is gone.

    ``active_at`` is the last real use, by ``evidence``; None: none was seen. It leaves out what only looks like use: a route
    that was added again, by itself or with all of a table that was lost (then ``readded_at`` is its time).
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
class Situation:
    """What the hub looks like at ``at``: a snapshot, and what HubGuard knows of its servers beside it.

    ``restores`` are the times (from, to) in which a proxy's lost table was filled again: the hub's and the proxy's
    times within these aren't use. No idle clock counts from before ``clock_from``; None: there was no outage.
    """

    at: datetime
    snapshot: Snapshot
    seen: Mapping[tuple[str, str], Seen] = field(default_factory=dict, hash=False)
    restores: tuple[tuple[datetime, datetime], ...] = ()
    clock_from: datetime | None = None


class BrakeReason(str, Enum):
    """Why HubGuard is braked."""

    INCOMPLETE = "incomplete"  # the list of servers isn't whole
    CHECKING = "checking"  # the hub has just started, and doesn't know its own servers yet
    POPULATION = "population"  # many users are gone, and HubGuard didn't delete them
    PROXY_DOWN = "proxy-down"  # nobody's use of their server can be seen
    FROZEN = "activity-frozen"  # the proxy sees traffic that the hub doesn't notice any more
    OVER_CAP = "over-cap"  # more is due at once than one cycle may do
    CLOCK = "clock"  # the hub's clock and ours differ by too much


@dataclass(frozen=True, slots=True)
class Brake:
    """HubGuard is braked. ``why`` is one clause for people ("the server list is incomplete: …"), ``ends`` one sentence.

    ``since`` is when it began. ``acceptable``: a person who resumes lets HubGuard continue despite it.
    """

    reason: BrakeReason
    since: datetime
    why: str
    ends: str
    acceptable: bool = False

    @property
    def cause(self) -> str:
        """``Braked: the server list is incomplete.``, for people."""
        return f"Braked: {self.why.rstrip('. ')}."

    @property
    def sentence(self) -> str:
        """``Braked: the server list is incomplete. It ends when …``, for people."""
        return f"{self.cause} {self.ends}".rstrip()
