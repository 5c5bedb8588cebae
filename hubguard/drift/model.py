"""The nouns of drift: what each source says of servers and routes, where they differ, and how that is repaired.

As in ``model``, values are frozen, datetimes UTC-aware, and unknown is None.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from urllib.parse import unquote

from hubguard.backends.model import Backend
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Action, ActionKind, Key, Outcome, Reading, Route, Server, Source
from hubguard.proxy.model import ProxyWatchStatus


class DriftKind(str, Enum):
    """How sources can differ. The values are the vocabulary of pages, API and docs."""

    ROUTE_MISSING = "route-missing"  # the hub says ready, and there is no route
    ROUTE_WRONG_TARGET = "route-wrong-target"  # its route leads elsewhere
    ROUTE_STALE = "route-stale"  # a route for a server that doesn't run
    SERVICE_ROUTE_MISSING = "service-route-missing"
    HUB_ROUTE_MISSING = "hub-route-missing"
    SERVER_DEAD = "server-dead"  # the hub says ready, and its backend is gone or doesn't answer
    SERVER_GHOST = "server-ghost"  # the same, and a stop changed nothing
    SERVER_ORPHAN = "server-orphan"  # the hub says stopped, or knows nothing of it, and the backend lives
    PENDING_STUCK = "pending-stuck"
    ORM_DANGLING = "orm-dangling"  # rows of the hub's database that lead nowhere
    ACTIVITY_FROZEN = "activity-frozen"


ROUTE_KINDS = frozenset(
    {
        DriftKind.ROUTE_MISSING,
        DriftKind.ROUTE_WRONG_TARGET,
        DriftKind.ROUTE_STALE,
        DriftKind.SERVICE_ROUTE_MISSING,
        DriftKind.HUB_ROUTE_MISSING,
    }
)

REMEDIES: Mapping[DriftKind, ActionKind] = {
    **dict.fromkeys(ROUTE_KINDS, ActionKind.CHECK_ROUTES),
    DriftKind.SERVER_DEAD: ActionKind.STOP_SERVER,
    DriftKind.SERVER_GHOST: ActionKind.START_AND_STOP,
    DriftKind.SERVER_ORPHAN: ActionKind.END_BACKEND,
    DriftKind.PENDING_STUCK: ActionKind.INTERRUPT_SPAWN,
}
"""What repairs each kind. Kinds that aren't here are only reported."""


@dataclass(frozen=True, slots=True)
class World:
    """What every source said, each at its own time; ``readings`` has one row a source, as in a Snapshot.

    ``servers`` is the hub's word by (user, name), None if it gave none. For servers in ``unsure`` that word is older than
    this look, or from the hub's database, which knows nothing pending: nothing is concluded from it.
    ``routes`` is the table by path, from the proxy's API or through the hub; None if neither could be read.
    ``targets`` is where the hub believes each server is reached (without the path), by its database; None if it isn't read.
    ``prefixes`` has the path of the route that each of the hub's services must have, by name, None if the hub doesn't report
    it; ``base_url`` is the hub's own, and ``hub_route`` the path of the route to the hub, None: as ``base_url``.
    ``backends`` are all that could be seen; ``whole``: these are all there are, so that absence means gone.
    ``orm`` is None if the hub's database isn't read. ``ghosts`` are runs (user, name, started) that a stop, accepted by the
    hub, didn't end. ``outlived`` has the reports of the hub's own spawner on backends that outlived a stop, and when.
    ``frozen_since`` is set while activity is frozen. ``pending_from``: the hub, which keeps in memory only what is pending,
    started then or later, so nothing has been pending for longer; None if unknown.
    """

    at: datetime
    readings: tuple[Reading, ...]
    servers: Mapping[Key, Server] | None = field(hash=False)
    unsure: frozenset[Key] = frozenset()
    routes: Mapping[str, Route] | None = field(default=None, hash=False)
    targets: Mapping[Key, str] | None = field(default=None, hash=False)
    prefixes: Mapping[str, str] | None = field(default=None, hash=False)
    base_url: str = "/"
    backends: tuple[Backend, ...] | None = None
    whole: bool = False
    orm: ORMCounts | None = None
    ghosts: frozenset[tuple[str, str, datetime | None]] = frozenset()
    outlived: Mapping[Key, tuple[datetime, str]] = field(default_factory=dict, hash=False)
    frozen_since: datetime | None = None
    pending_from: datetime | None = None
    hub_route: str | None = None

    @property
    def hub_path(self) -> str:
        """The path that the hub's own route has in the table."""
        return self.hub_route or "/" + unquote(self.base_url).strip("/")

    def reading(self, source: Source) -> Reading | None:
        """The reading of ``source``, or None if it wasn't read."""
        return next((reading for reading in self.readings if reading.source is source), None)


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference between sources.

    ``user`` and ``server`` name the server it is about, and are None for a service, the hub or its database. ``subject``
    distinguishes several of one kind and server (a route's path, a backend's id, a service's name), else "". ``started`` is
    the run. ``expected``, ``observed`` and each line of ``evidence`` are for people. It was first seen at ``since``, last at
    ``seen_at``, in ``sightings`` of the ``looks`` that could have seen it; ``missed`` looks in a row haven't since.
    ``raised_at`` is None while it is only suspected. ``backend`` is the one concerned.
    """

    kind: DriftKind
    user: str | None
    server: str | None
    expected: str
    observed: str
    since: datetime
    seen_at: datetime
    subject: str = ""
    started: datetime | None = None
    evidence: tuple[str, ...] = ()
    sightings: int = 1
    looks: int = 1
    missed: int = 0
    raised_at: datetime | None = None
    backend: Backend | None = None

    @property
    def key(self) -> tuple[DriftKind, str | None, str | None, str]:
        """Which one it is, from look to look."""
        return (self.kind, self.user, self.server, self.subject)

    @property
    def id(self) -> str:
        """The same as ``key``, as 16 hex digits, for addresses and commands."""
        parts = [self.kind.value, self.user, self.server, self.subject]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair. ``drifts`` are the ids of the differences it repairs; ``backend`` is the one to end, or None."""

    action: Action
    drifts: tuple[str, ...]
    backend: Backend | None = None


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """Frozen repairs, in the order of the drift they are for. ``digest`` is a SHA-256 over them (hex).

    It can't be applied after ``expires_at``, nor without its digest and the number of its repairs.
    """

    made_at: datetime
    expires_at: datetime
    repairs: tuple[Repair, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """A repair with its outcome, None while it is under way. ``actor`` asked for it."""

    repair: Repair
    actor: str
    began_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What the last look found. ``drifts`` has the raised first, oldest first; then the suspected.

    ``narrowed`` says what is unknown and why, one sentence each. ``repaired`` are the last repairs, newest first.
    ``cleared`` are those resolved in the last hour, newest first, each with ``seen_at`` as of its last sighting.
    ``by_itself`` are the kinds that are repaired without being asked while HubGuard may act. Of those in ``doubted``, more
    are there at once than is likely, so they count as a source's mistake and are repaired only when asked. ``used_at`` is
    the last real use of each server, as far as HubGuard has seen it.
    """

    world: World
    drifts: tuple[Drift, ...]
    narrowed: tuple[str, ...] = ()
    repaired: tuple[Repaired, ...] = ()
    cleared: tuple[Drift, ...] = ()
    watch: ProxyWatchStatus = field(default_factory=ProxyWatchStatus)
    next_look_at: datetime | None = None
    by_itself: tuple[DriftKind, ...] = ()
    doubted: tuple[DriftKind, ...] = ()
    used_at: Mapping[Key, datetime] = field(default_factory=dict, hash=False)
