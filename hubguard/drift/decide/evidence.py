"""A difference in words: what is expected, what is observed, and which source said what, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from hubguard.backends.model import Backend
from hubguard.drift.model import World
from hubguard.model import Reading, Route, Server, server_label
from hubguard.words import SOURCE_WORDS, stamp

Words = tuple[str, str, tuple[str, ...]]
"""(expected, observed, evidence) of a difference, for people."""

ROWS: Mapping[str, str] = {
    "servers_of_nobody": "server rows without a spawner or a service",
    "spawners_without_server": "spawners that name a server row that doesn't exist",
    "expired_tokens": "expired tokens",
    "expired_codes": "expired OAuth codes",
    "expired_share_codes": "expired share codes",
    "memberships_of_nobody": "rows of group and role maps that name a user who doesn't exist",
}
"""What the fields of ORMCounts count."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The words for differences of one look.

    The readings are the complete ones. A difference that needs a reading which is None here has no words. ``limit_s`` is
    how many seconds a server may be pending.
    """

    world: World
    hub: Reading | None
    table: Reading | None
    db: Reading | None
    backend: Reading | None
    limit_s: float

    def missing(self, server: Server, target: str | None, path: str) -> Words:
        """It is ready and has no route at ``path``, which should lead to ``target``."""
        there = (self.world.routes or {}).get(path)
        seen = "no route" if there is None else f"no route of the hub's; {path} is somebody else's"
        lines = (
            self._hub_says(server),
            *self._database_says(target),
            self._line(self.table, f"no route for it among {len(self.world.routes or ()):,}"),
        )
        return (f"ready, so a route to {target or 'it'}", seen, lines)

    def wrong(self, server: Server, target: str | None, route: Route) -> Words:
        """``route``, which is in its place or for it, leads elsewhere."""
        whose = "" if route.key == server.key else f", which belongs to {server_label(*(route.key or ('', '')))}"
        said = f"{route.path} leads to {route.target}{whose}"
        lines = (self._hub_says(server), *self._database_says(target), self._line(self.table, said))
        expected = "ready, so a route for it" if target is None else f"ready at {target}"
        return (expected, f"the route {route.path} to {route.target}{whose}", lines)

    def stale(self, server: Server | None, route: Route) -> Words:
        """``route`` is for a server that doesn't run; ``server`` is what the hub says of it, if anything."""
        lines = (
            self._hub_says(server),
            self._line(self.table, f"{route.path} leads to {route.target}"),
        )
        return ("no such server, so no route", f"the route {route.path} to {route.target}", lines)

    def service(self, name: str, path: str) -> Words:
        """That service of the hub has no route at ``path``."""
        lines = (
            self._line(self.hub, f"the service {name} is reached at {path}"),
            self._line(self.table, f"no route {path}"),
        )
        return (f"the service {name} at {path}", "no route", lines)

    def hub_route(self, path: str) -> Words:
        """The hub itself has no route at ``path``."""
        lines = (self._line(self.hub, "it answers"), self._line(self.table, f"no route {path}"))
        seen = "no route: the hub's pages can't be reached, unless the proxy's default target leads there"
        return (f"the hub's own route {path}", seen, lines)

    def dead(self, server: Server, backends: Sequence[Backend], ghost: bool) -> Words:
        """It is ready, and none of ``backends`` lives; ``ghost``: a stop changed nothing."""
        backends = sorted(backends, key=lambda backend: backend.id)
        states = [_state(backend) for backend in backends] or ["none for it, and the list is complete"]
        lines = (self._hub_says(server), *(self._line(self.backend, state) for state in states))
        seen = "; ".join(states) if backends else "its backend is gone"
        if ghost:
            return ("ready", f"{seen}; a stop that the hub accepted changed nothing", lines)
        return ("ready", seen, lines)

    def orphan(self, server: Server | None, backend: Backend, report: tuple[datetime, str] | None) -> Words:
        """``backend`` lives, and not for the run that the hub has; ``report`` is when its spawner reported it, and how."""
        started = "" if backend.started is None else f", started {stamp(backend.started)}"
        lines = [
            self._hub_says(server),
            self._line(self.backend, f"{backend.name} lives{started}{backend.detail and f'; {backend.detail}'}"),
            f"owner: {backend.proof or 'unknown, so HubGuard never ends it'}",
        ]
        if report is not None:
            lines.append(_spawner_said(report))
        if server is None or not is_active(server):
            return ("stopped or unknown, so no backend", f"{backend.name} lives", tuple(lines))
        lines.append(
            "While the server runs, HubGuard ends a backend only if it belongs to this hub and started more than a minute"
            " before the running one. End anything else yourself, for example with `docker` or `kubectl`."
        )
        return (
            "ready, with the backend of this run alone",
            f"{backend.name} of an earlier run still runs",
            tuple(lines),
        )

    def outlived(self, report: tuple[datetime, str]) -> Words:
        """Only the hub's spawner reported that a backend was still there, right after the stop."""
        lines = (
            self._line(self.hub, "it doesn't run"),
            _spawner_said(report),
            "It may only have needed a moment longer. If it still runs, end it yourself, for example with `kubectl`.",
        )
        return ("stopped, so no backend", "its backend was still there right after the stop", lines)

    def stuck(self, server: Server) -> Words:
        """It has been pending longer than its limit."""
        expected = f"pending for at most {self.limit_s:g} s"
        return (expected, f"still pending ({server.pending})", (self._hub_says(server),))

    def dangling(self, name: str, count: int) -> Words:
        """``count`` rows of that kind, a field of ORMCounts."""
        return ("none", f"{count:,} {ROWS[name]}", (self._line(self.db, f"{count:,} {ROWS[name]}"),))

    def frozen(self, since: datetime) -> Words:
        """Activity no longer advances."""
        lines = (self._line(self.hub, f"no activity has advanced since {stamp(since)}"),)
        return ("activity that advances with traffic", "no activity advances", lines)

    def _line(self, reading: Reading | None, said: str) -> str:
        assert reading is not None
        return f"{SOURCE_WORDS[reading.source]}, {stamp(reading.at)}: {said}"

    def _hub_says(self, server: Server | None) -> str:
        if server is None or not is_active(server):
            return self._line(self.hub, "no such server runs")
        started = "" if server.started is None else f", started {stamp(server.started)}"
        return self._line(self.hub, f"{(server.pending and f'pending {server.pending}') or 'ready'}{started}")

    def _database_says(self, target: str | None) -> tuple[str, ...]:
        return () if target is None else (self._line(self.db, f"it is reached at {target}"),)


def _state(backend: Backend) -> str:
    """How a backend that isn't alive was seen, with its name once: some details begin with it."""
    detail = backend.detail
    return detail if detail.startswith(backend.name) else f"{backend.name}: {detail or 'gone'}"


def is_active(server: Server) -> bool:
    """Whether the hub runs it, or is starting or stopping it."""
    return server.ready or server.pending is not None


def _spawner_said(report: tuple[datetime, str]) -> str:
    return f"Hub's spawner, {stamp(report[0])}: {report[1] or 'it still runs after its stop'}"
