"""What people read of a difference: what is expected, what is seen, and which source has said what, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from hubguard.backends.model import Backend
from hubguard.drift.model import World
from hubguard.model import Reading, Route, Server, Source

Words = tuple[str, str, tuple[str, ...]]
"""(expected, observed, evidence) of a difference, for people."""

SOURCES: Mapping[Source, str] = {
    Source.HUB_API: "the hub's API",
    Source.HUB_DB: "the hub's database",
    Source.PROXY: "the proxy's table",
    Source.HUB_ROUTES: "the proxy's table as the hub tells it",
    Source.BACKEND: "the backends",
}
"""What evidence calls each source."""

ROWS: Mapping[str, str] = {
    "servers_of_nobody": "server rows without a spawner or a service",
    "spawners_without_server": "spawners that name a server row that isn't there",
    "expired_tokens": "expired tokens",
    "expired_codes": "expired OAuth codes",
    "expired_share_codes": "expired share codes",
    "memberships_of_nobody": "rows of group and role maps that name somebody who isn't there",
}
"""What the fields of ORMCounts count."""


@dataclass(frozen=True, slots=True)
class Wording:
    """Makes the words of one look. Of a difference that rests on a reading which is None here, nobody may ask for words.

    The readings are those that are complete; ``limit_s`` is for how many seconds a server may be pending.
    """

    world: World
    hub: Reading | None
    table: Reading | None
    db: Reading | None
    backend: Reading | None
    limit_s: float

    def missing(self, server: Server, target: str | None, path: str) -> Words:
        """It is ready, has no route at ``path``, and should have one to ``target``."""
        there = (self.world.routes or {}).get(path)
        seen = "no route" if there is None else f"no route of the hub's; at {path} one of somebody else's"
        lines = (
            self._hub_says(server),
            *self._database_says(target),
            self._line(self.table, f"no route that is for it among {len(self.world.routes or ()):,}"),
        )
        return (f"ready, so a route to {target or 'it'}", seen, lines)

    def wrong(self, server: Server, target: str | None, route: Route) -> Words:
        """``route``, which is at its place or for it, leads elsewhere."""
        whose = "" if route.key == server.key else f", which is for {_label(*(route.key or ('', '')))}"
        said = f"{route.path} leads to {route.target}{whose}"
        lines = (self._hub_says(server), *self._database_says(target), self._line(self.table, said))
        expected = "ready, so a route that is for it" if target is None else f"ready at {target}"
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
        seen = "no route: nobody reaches the hub's pages, unless the proxy's default target leads there"
        return (f"the hub's own route {path}", seen, lines)

    def dead(self, server: Server, backends: Sequence[Backend], ghost: bool) -> Words:
        """It is ready, and none of ``backends`` lives; ``ghost``: a stop has changed nothing."""
        backends = sorted(backends, key=lambda one: one.id)
        told = [_state(one) for one in backends] or ["there is none for it, and these are all"]
        lines = (self._hub_says(server), *(self._line(self.backend, one) for one in told))
        seen = "; ".join(told) if backends else "its backend is gone"
        if ghost:
            return ("ready", f"{seen}; and a stop that the hub took has changed nothing", lines)
        return ("ready", seen, lines)

    def orphan(self, server: Server | None, backend: Backend, told: tuple[datetime, str] | None) -> Words:
        """``backend`` lives, and not for the run that the hub has; ``told`` is what its spawner has said of it, and when."""
        started = "" if backend.started is None else f", started {utc(backend.started)}"
        lines = [
            self._hub_says(server),
            self._line(self.backend, f"{backend.name} lives{started}{backend.detail and f'; {backend.detail}'}"),
            f"whose it is: {backend.proof or 'not proved to be of this hub, so HubGuard never ends it'}",
        ]
        if told is not None:
            lines.append(_spawner_said(told))
        if server is None or not is_active(server):
            return ("stopped or unknown, so no backend", f"{backend.name} lives", tuple(lines))
        lines.append(
            "beside a server that runs, HubGuard ends only what is proved to be this hub's, began over a minute before it and"
            " isn't what runs it; anything else is to be ended by hand, with the tools of what runs it"
        )
        return ("ready, with the backend of this run alone", f"{backend.name} of an earlier run lives", tuple(lines))

    def outlived(self, told: tuple[datetime, str]) -> Words:
        """Only the hub's spawner knows that something lives on, as of right after the stop."""
        lines = (
            self._line(self.hub, "it doesn't run"),
            _spawner_said(told),
            "it may only have taken a moment longer to end; if it lives on, end it by hand with the tools of what runs it",
        )
        return ("stopped, so no backend", "its backend was still there right after the stop", lines)

    def stuck(self, server: Server) -> Words:
        """It has been pending for longer than its limit."""
        expected = f"the hub done with it within {self.limit_s:g} s"
        return (expected, f"still pending ({server.pending})", (self._hub_says(server),))

    def dangling(self, name: str, count: int) -> Words:
        """``count`` rows of that kind, a field of ORMCounts."""
        return ("none", f"{count:,} {ROWS[name]}", (self._line(self.db, f"{count:,} {ROWS[name]}"),))

    def frozen(self, since: datetime) -> Words:
        """Activity stands still."""
        lines = (self._line(self.hub, f"nobody's activity has advanced as it should since {utc(since)}"),)
        return ("activity that advances with the traffic", "it no longer advances for anybody", lines)

    def _line(self, reading: Reading | None, said: str) -> str:
        # Only what readings() has found complete is spoken of; before that, nobody asks for words.
        assert reading is not None
        return f"{SOURCES[reading.source]}, {utc(reading.at)}: {said}"

    def _hub_says(self, server: Server | None) -> str:
        if server is None or not is_active(server):
            return self._line(self.hub, "no such server runs")
        started = "" if server.started is None else f", started {utc(server.started)}"
        return self._line(self.hub, f"{(server.pending and f'pending {server.pending}') or 'ready'}{started}")

    def _database_says(self, target: str | None) -> tuple[str, ...]:
        return () if target is None else (self._line(self.db, f"it is reached at {target}"),)


def _state(one: Backend) -> str:
    """What isn't alive, and how that is seen: with its name once, which some details begin with."""
    return one.detail if one.detail.startswith(one.name) else f"{one.name}: {one.detail or 'gone'}"


def is_active(server: Server) -> bool:
    """Whether the hub has something running for it, or is in the middle of something with it."""
    return server.ready or server.pending is not None


def utc(at: datetime) -> str:
    """A time for people, to the second, in UTC."""
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _label(user: str, name: str) -> str:
    return f"{user}/{name}" if name else user


def _spawner_said(told: tuple[datetime, str]) -> str:
    return f"the hub's own spawner, {utc(told[0])}: {told[1] or 'it still runs after its stop'}"
