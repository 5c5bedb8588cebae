"""Where the sources differ about servers and routes, in a single look: no counting, no memory.

Pending is unknown, and so is all that is based on a source that is missing or incomplete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from urllib.parse import unquote

from hubguard.backends.model import Backend
from hubguard.drift.decide.evidence import Wording, Words, is_active
from hubguard.drift.model import Drift, DriftKind, World
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Key, Reading, Route, Server, Source, same_run

DriftKey = tuple[DriftKind, str | None, str | None, str]
"""The key of a Drift: which difference it is, from look to look."""

TWO_RUNS = timedelta(seconds=60)
"""Backends of one server whose starts are further apart than this belong to different runs. Clocks differ by less."""

SURELY_STOPPED_S = 90.0
"""Seconds after a stop from which a live backend that the spawner reported counts as an orphan. Before, it may still be
ending: a batch queue calls a job COMPLETING for a minute after a good stop."""

HEARD_S = 600.0
"""Seconds for which a spawner's report alone, which no look at the backends confirms, is a suspicion. It never is more."""

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference as one look shows it; the first five fields mean what they mean in a Drift.

    ``words`` returns what people read of it. ``since`` is set if it was reported before this look. ``surely``: it was both
    reported and seen later, and needs no second look. ``heard``: it was only reported, or seen too soon after that, so it
    isn't raised. ``backend`` is the one concerned.
    """

    kind: DriftKind
    user: str | None
    server: str | None
    subject: str
    started: datetime | None
    words: Callable[[], Words]
    since: datetime | None = None
    surely: bool = False
    heard: bool = False
    backend: Backend | None = None

    @property
    def key(self) -> DriftKey:
        """Which one it is, from look to look."""
        return (self.kind, self.user, self.server, self.subject)


class Comparison:
    """What the sources of ``world`` say, side by side. A server that is pending for ``pending_limit_s`` seconds is drift.

    ``asking``: nothing is concluded yet, so the hub's word counts however old it is, and whatever it came from.
    """

    def __init__(self, world: World, pending_limit_s: float, *, asking: bool = False) -> None:
        self.world = world
        self.at = world.at
        complete = {reading.source: reading for reading in world.readings if reading.complete}
        self._hub = complete.get(Source.HUB_API)
        self._knows_hub = world.servers is not None and (asking or self._hub is not None)
        self._table = None
        if world.routes is not None:
            self._table = complete.get(Source.PROXY) or complete.get(Source.HUB_ROUTES)
        self._db = complete.get(Source.HUB_DB)
        self._targets = world.targets if self._db is not None else None
        self._backend = complete.get(Source.BACKEND) if world.backends is not None else None
        self._words = Wording(world, self._hub, self._table, self._db, self._backend, pending_limit_s)
        self._servers: Mapping[Key, Server] = world.servers or {}
        self._unsure = frozenset[Key]() if asking else world.unsure
        self._prefix = user_prefix(world.base_url)
        # One each, since that is all that most have: at 50,000 servers, lists of one would take most of the time.
        self._route_of: dict[Key, Route] = {}
        self._backend_of: dict[Key, Backend] = {}
        self._more_routes: dict[Key, list[Route]] = {}
        self._more_backends: dict[Key, list[Backend]] = {}
        self._misplaced: dict[Key, Route] = {}
        self._hosted = has_subdomains(world.routes or {}, self._prefix)
        if self._table is not None:
            self._read_table(world.routes or {})
        if self._backend is not None:
            for backend in world.backends or ():
                key = (backend.user, backend.server)
                if self._backend_of.setdefault(key, backend) is not backend:
                    self._more_backends.setdefault(key, []).append(backend)

    # -- what each look has to have ------------------------------------------------------------------------------------

    def routes_of(self, key: Key) -> Sequence[Route]:
        """The routes for that server, in no order, without those in another server's place."""
        first = self._route_of.get(key)
        return () if first is None else (first, *self._more_routes.get(key, ()))

    def backends_of(self, key: Key) -> Sequence[Backend]:
        """All known backends of that server, in the world's order."""
        first = self._backend_of.get(key)
        return () if first is None else (first, *self._more_backends.get(key, ()))

    def readings(self, kind: DriftKind, subject: str) -> tuple[Reading, ...] | None:
        """The readings that such a difference is based on; None if one is missing or incomplete: then it is unknown."""
        needed: tuple[Reading | None, ...]
        if kind is DriftKind.ORM_DANGLING:
            needed = (self._db if self.world.orm is not None else None,)
        elif kind in {DriftKind.SERVER_DEAD, DriftKind.SERVER_GHOST}:
            needed = (self._hub, self._backend)
        elif kind is DriftKind.SERVER_ORPHAN:
            needed = (self._hub, self._backend) if subject else (self._hub,)
        elif kind in {DriftKind.PENDING_STUCK, DriftKind.ACTIVITY_FROZEN}:
            needed = (self._hub,)
        elif kind is DriftKind.ROUTE_WRONG_TARGET and self._targets is not None:
            needed = (self._hub, self._table, self._db)
        else:
            needed = (self._hub, self._table)
        if not self._knows_hub and kind is not DriftKind.ORM_DANGLING:
            return None
        readings = tuple(reading for reading in needed if reading is not None)
        return readings if len(readings) == len(needed) else None

    def can_tell(self, drift: Drift) -> bool:
        """Whether this look would show ``drift`` if it were still there."""
        if self.readings(drift.kind, drift.subject) is None:
            return False
        if drift.user is None:
            return self._can_tell_shared(drift.kind)
        key = (drift.user, drift.server or "")
        if key in self._unsure:
            return False
        server = self._servers.get(key)
        if drift.kind is DriftKind.PENDING_STUCK:
            return True
        if server is not None and server.pending is not None:
            return False
        ready = server is not None and server.ready
        if drift.kind in {DriftKind.SERVER_DEAD, DriftKind.SERVER_GHOST}:
            return not ready or self._fate(key) is not None
        if drift.kind is DriftKind.SERVER_ORPHAN and drift.subject:
            return self._can_tell_orphan(key, drift.subject, ready=ready)
        if drift.kind is DriftKind.ROUTE_WRONG_TARGET and ready and self._targets is None:
            # A hub's database that fails now may have given that target. One that is never read hasn't.
            return self.world.reading(Source.HUB_DB) is None or drift.subject not in (self.world.routes or {})
        return True

    def _can_tell_orphan(self, key: Key, id_: str, *, ready: bool) -> bool:
        listed = [backend.alive for backend in self.backends_of(key) if backend.id == id_]
        if not listed:
            return ready or self.world.whole
        if None in listed:
            return False
        # Alone beside a server that is ready again, it is the one that runs it; of several, any may be.
        return True not in listed or not ready or sum(backend.alive is True for backend in self.backends_of(key)) == 1

    def _can_tell_shared(self, kind: DriftKind) -> bool:
        if kind is DriftKind.SERVICE_ROUTE_MISSING:
            return self.world.prefixes is not None and not self._hosted
        return kind is not DriftKind.HUB_ROUTE_MISSING or not self._hosted

    def run_now(self, key: Key) -> tuple[datetime | None] | None:
        """When the run that the hub has now was started, in a tuple; None if there is none, or it is unknown."""
        server = self._servers.get(key) if self._hub is not None and key not in self._unsure else None
        return None if server is None or not is_active(server) else (server.started,)

    # -- all differences -----------------------------------------------------------------------------------------------

    def differences(self) -> dict[DriftKey, Difference]:
        """All differences, by key, in no order."""
        by_key = {difference.key: difference for difference in self._of_database()}
        if self._knows_hub:
            for of in (self._of_servers, self._of_stale_routes, self._of_shared_routes, self._of_orphans):
                by_key.update((difference.key, difference) for difference in of())
            if self.world.frozen_since is not None:
                since = self.world.frozen_since
                difference = Difference(
                    DriftKind.ACTIVITY_FROZEN, None, None, "", None, partial(self._words.frozen, since), since=since
                )
                by_key[difference.key] = difference
        return by_key

    def _of_servers(self) -> Iterator[Difference]:
        targets, route_of, backend_of = self._targets or {}, self._route_of, self._backend_of
        has_table, has_backends = self._table is not None, self._backend is not None
        several = self._more_routes.keys() | self._misplaced.keys()
        for key, server in self._servers.items():
            if key in self._unsure:
                continue
            if server.pending is not None:
                words = partial(self._words.stuck, server)
                yield Difference(DriftKind.PENDING_STUCK, *key, server.pending, server.started, words)
            elif server.ready:
                if has_table:
                    route, target = route_of.get(key), targets.get(key)
                    if route is None or route.target != target or key in several:
                        yield from self._of_its_routes(key, server, target)
                backend = backend_of.get(key)
                if (
                    has_backends
                    and (backend is None or not backend.alive or key in self._more_backends)
                    and self._fate(key) is False
                ):
                    ghost = self._is_ghost(server)
                    kind = DriftKind.SERVER_GHOST if ghost else DriftKind.SERVER_DEAD
                    words = partial(self._words.dead, server, self._of_this_run(key), ghost)
                    yield Difference(kind, *key, "", server.started, words)

    def _of_its_routes(self, key: Key, server: Server, target: str | None) -> Iterator[Difference]:
        kind = DriftKind.ROUTE_WRONG_TARGET
        astray = self._misplaced.get(key) if self._misplaced else None
        if astray is not None:
            yield Difference(
                kind, *key, astray.path, server.started, partial(self._words.wrong, server, target, astray)
            )
        routes = self.routes_of(key)
        if not routes:
            if astray is None:
                words = partial(self._words.missing, server, target, own_path(self._prefix, key))
                yield Difference(DriftKind.ROUTE_MISSING, *key, "", server.started, words)
            return
        if target is None:
            return
        for route in routes:
            if route.target != target and _leads_elsewhere(route.target, target):
                words = partial(self._words.wrong, server, target, route)
                yield Difference(kind, *key, route.path, server.started, words)

    def _of_stale_routes(self) -> Iterator[Difference]:
        servers = self._servers
        for key in self._route_of:
            server = servers.get(key)
            if (server is not None and (server.ready or server.pending is not None)) or key in self._unsure:
                continue
            for route in self.routes_of(key):
                yield Difference(
                    DriftKind.ROUTE_STALE, *key, route.path, None, partial(self._words.stale, server, route)
                )

    def _of_shared_routes(self) -> Iterator[Difference]:
        routes = self.world.routes or {}
        # If each user has a subdomain, hub and services have theirs, too, in front of their paths.
        if self._table is None or self._hosted:
            return
        for name, prefix in (self.world.prefixes or {}).items():
            path = _path(prefix)
            if path not in routes:
                words = partial(self._words.service, name, path)
                yield Difference(DriftKind.SERVICE_ROUTE_MISSING, None, None, name, None, words)
        if (path := self.world.hub_path) not in routes:
            yield Difference(DriftKind.HUB_ROUTE_MISSING, None, None, "", None, partial(self._words.hub_route, path))

    def _of_orphans(self) -> Iterator[Difference]:
        kind = DriftKind.SERVER_ORPHAN
        listed = set()
        servers, several = self._servers, self._more_backends
        for key in self._backend_of:
            server = servers.get(key)
            ready = server is not None and server.ready
            if (ready and key not in several) or key in self._unsure:
                continue
            if server is not None and server.pending is not None:
                continue
            # What answers over HTTP at the address that a server had may be anything by now.
            orphans = [backend for backend in self.backends_of(key) if backend.alive and backend.kind != "http"]
            started = None
            if server is not None and ready:
                orphans, started = _of_older_runs(orphans, server), server.started
            report = None if ready else self.world.outlived.get(key)
            surely = report is not None and self._after(report[0], SURELY_STOPPED_S)
            for backend in orphans:
                words = partial(self._words.orphan, server, backend, report)
                ending = report is not None and not surely
                yield Difference(kind, *key, backend.id, started, words, surely=surely, heard=ending, backend=backend)
                listed.add(key)
        for key, report in self.world.outlived.items():
            if key not in listed and key not in self._unsure and self._still_outlives(key, report[0]):
                yield Difference(
                    kind, *key, "", None, partial(self._words.outlived, report), since=report[0], heard=True
                )

    def _still_outlives(self, key: Key, told_at: datetime) -> bool:
        server = self._servers.get(key)
        # It is reported from within the stop, which the hub calls pending until it is done.
        if server is not None and (server.ready or server.pending not in {None, "stop"}):
            return False
        if (self.at - told_at).total_seconds() > HEARD_S:
            return False
        if not self.world.whole or not self._after(told_at, 0.0):
            return True
        return any(backend.alive is None for backend in self.backends_of(key))

    def _after(self, told_at: datetime, by_s: float) -> bool:
        """Whether the backends were read more than ``by_s`` seconds after that."""
        return self._backend is not None and (self._backend.at - told_at).total_seconds() > by_s

    def _of_database(self) -> Iterator[Difference]:
        if self._db is None or self.world.orm is None:
            return
        for part in fields(ORMCounts):
            if count := getattr(self.world.orm, part.name):
                words = partial(self._words.dangling, part.name, count)
                yield Difference(DriftKind.ORM_DANGLING, None, None, part.name, None, words)

    def _is_ghost(self, server: Server) -> bool:
        return any(
            (user, name) == server.key and same_run(started, server.started)
            for user, name, started in self.world.ghosts
        )

    def _fate(self, key: Key) -> bool | None:
        """Whether anything runs that server, by the backends; None if unknown."""
        backends = self._of_this_run(key)
        if not backends:
            return False if self.world.whole else None
        alive = [backend.alive for backend in backends]
        return True if True in alive else None if None in alive else False

    def _of_this_run(self, key: Key) -> Sequence[Backend]:
        """The backends that may run that server: without those of earlier runs if this run's own is known to be gone."""
        backends, server = self.backends_of(key), self._servers.get(key)
        if len(backends) < 2 or server is None or server.started is None:
            return backends
        begins = server.started - TWO_RUNS
        # With some kinds a backend that is gone has no start; they report that only of the one that the hub expects.
        if not any(
            backend.alive is False and (backend.started is None or backend.started >= begins) for backend in backends
        ):
            return backends
        return [backend for backend in backends if backend.started is None or backend.started >= begins]

    def _read_table(self, routes: Mapping[str, Route]) -> None:
        prefix, odd = self._prefix, []
        for path, route in routes.items():
            user, name = route.user, route.server
            if user is None:
                continue
            key = (user, name or "")
            if path != (f"{prefix}{user}/{name}" if name else prefix + user):
                odd.append((key, route))
            elif self._route_of.setdefault(key, route) is not route:
                self._more_routes.setdefault(key, []).append(route)
        if not odd:
            return
        owners = {own_path(prefix, key): key for key, server in self._servers.items() if is_active(server)}
        for key, route in odd:
            owner = owners.get(route.path)
            if owner is not None:
                self._misplaced[owner] = route
            elif self._route_of.setdefault(key, route) is not route:
                self._more_routes.setdefault(key, []).append(route)


def user_prefix(base_url: str) -> str:
    """The start of every server's route in the table, on a hub without subdomains."""
    return f"{unquote(base_url).rstrip('/')}/user/"


def has_subdomains(routes: Mapping[str, Route], prefix: str) -> bool:
    """Whether most routes of servers begin with a host before ``prefix``: this hub gives each user a subdomain.

    Most, since a single odd one means nothing: on any hub a server named ".." has its route at another path (5.5).
    """
    users = [path for path, route in routes.items() if route.user is not None]
    return 2 * sum(not path.startswith(prefix) and prefix in path for path in users) > len(users)


def own_path(prefix: str, key: Key) -> str:
    """The path of that server's route in the table."""
    user, name = key
    return f"{prefix}{user}/{name}" if name else prefix + user


def _path(url_path: str) -> str:
    return "/" + unquote(url_path).strip("/")


def _of_older_runs(alive: Sequence[Backend], server: Server) -> list[Backend]:
    """Those that can't belong to the hub's current run: they were there before it, and a later one fits it."""
    timed = [(backend.started, backend) for backend in alive if backend.started is not None]
    if server.started is None or len(timed) < 2:
        return []
    newest = max(started for started, _ in timed)
    if newest < server.started - TWO_RUNS:
        return []
    return [backend for started, backend in timed if newest - started > TWO_RUNS and started < server.started]


def _leads_elsewhere(target: str, other: str) -> bool:
    """Whether these URLs name different places, apart from their paths; False if unknown."""
    places = _place(target), _place(other)
    return None not in places and places[0] != places[1]


def _place(url: str) -> tuple[str, str, int] | None:
    """(scheme, host, port), with this machine's two names taken as one; None if it is no such URL."""
    scheme, found, rest = url.partition("://")
    if not found:
        return None
    scheme = scheme.lower()
    authority = rest.split("/", 1)[0].rpartition("@")[2].lower()
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        host, port = authority, ""
    if port and not port.isdecimal():
        return None
    number = int(port) if port else PORTS.get(scheme)
    if not host or number is None:
        return None
    return (scheme, "127.0.0.1" if host == "localhost" else host, number)
