"""A busy hub in virtual time, as its sources tell of it: each at another age, and none of them wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from hubguard.backends.model import Backend
from hubguard.drift.decide.follow import DriftPolicy, follow, shown, suspects
from hubguard.drift.model import Drift, World
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Key, Reading, Route, Server, Source

START = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


def second(at_s: float) -> datetime:
    return START + timedelta(seconds=at_s)


@dataclass(frozen=True)
class Run:
    """One run of a server, in seconds: when each source begins and ceases to tell of it."""

    key: Key
    number: int
    asked_s: float
    backend_s: float
    ready_s: float
    routed_s: float
    stopped_s: float
    unrouted_s: float
    ended_s: float
    left_s: float

    @property
    def target(self) -> str:
        return f"http://127.0.0.1:{10_000 + self.number}"

    @property
    def path(self) -> str:
        user, name = self.key
        return f"/user/{user}/{name}" if name else f"/user/{user}"


def runs_of(key: Key, chance: random.Random, until_s: float, first: int) -> list[Run]:
    """A server that starts and stops all the time, for as long as that."""
    runs: list[Run] = []
    at_s = chance.uniform(-90, 20)
    while at_s < until_s:
        ready_s = at_s + chance.uniform(0.5, 12)
        stopped_s = ready_s + chance.uniform(2, 90)
        ended_s = stopped_s + chance.uniform(0.5, 12)
        run = Run(
            key,
            first + len(runs),
            at_s,
            chance.uniform(at_s, ready_s),
            ready_s,
            ready_s + chance.uniform(0, 1),
            stopped_s,
            chance.uniform(stopped_s, ended_s),
            ended_s,
            ended_s + chance.uniform(0, 8),
        )
        runs.append(run)
        at_s = ended_s + chance.uniform(0.2, 40)
    return runs


class Churn:
    """``servers`` that start and stop for ``until_s`` seconds, and the watcher's looks at them.

    ``from_database``: the list of servers is always the database's, which knows of nothing pending, and the hub is asked
    only for the suspects. ``fault`` changes what the sources said into what they say with something broken.
    """

    def __init__(
        self, seed: int, *, servers: int = 200, until_s: float = 600, steady: tuple[str, ...] = (), from_database: bool
    ) -> None:
        self.chance = random.Random(seed)
        self.from_database = from_database
        self.until_s = until_s
        self.runs: list[Run] = []
        for n in range(servers):
            self.runs += runs_of((f"u{n // 2}", "x" * (n % 2)), self.chance, until_s, len(self.runs))
        for user in steady:
            always = (-900.0, -895.0, -890.0, -890.0, 1e9, 1e9, 1e9, 1e9)
            self.runs.append(Run((user, ""), len(self.runs), *always))
        self.fault: Callable[[World, float], World] = lambda world, at_s: world
        self.asked = 0

    def hub(self, at_s: float) -> dict[Key, Server]:
        found = {}
        for run in self.runs:
            if run.asked_s <= at_s < run.ended_s:
                pending = "spawn" if at_s < run.ready_s else "stop" if at_s >= run.stopped_s else None
                found[run.key] = Server(*run.key, pending is None, pending, second(run.asked_s), None)
        return found

    def database(self, at_s: float) -> dict[Key, Server]:
        return {key: replace(one, ready=True, pending=None) for key, one in self.hub(at_s).items()}

    def targets(self, at_s: float) -> dict[Key, str]:
        return {run.key: run.target for run in self.runs if run.backend_s <= at_s < run.ended_s}

    def routes(self, at_s: float) -> dict[str, Route]:
        table = {run.path: run for run in self.runs if run.routed_s <= at_s < run.unrouted_s}
        routes = {path: Route(path, run.target, *run.key) for path, run in table.items()}
        return {"/": Route("/", "http://hub"), "/services/grader": Route("/services/grader", "http://grader"), **routes}

    def backends(self, at_s: float) -> tuple[Backend, ...]:
        return tuple(
            Backend("process", str(run.number), *run.key, True, f"pid {run.number}", second(run.backend_s), "its URL")
            for run in self.runs
            if run.backend_s <= at_s < run.left_s
        )

    def world(self, at_s: float, before: tuple[Drift, ...]) -> World:
        """What one look gathers: an old list, and the hub asked anew for whom it must be."""
        ages = {source: self.chance.uniform(0.1, 4) for source in Source}
        list_s = at_s - self.chance.uniform(0.1, 20)
        listed = self.database(list_s) if self.from_database else self.hub(list_s)
        ages[Source.HUB_API] = 0.1
        world = World(
            second(at_s),
            tuple(
                Reading(source, second(at_s - ages[source]), True, 0.1)
                for source in (Source.HUB_API, Source.HUB_DB, Source.PROXY, Source.BACKEND)
            ),
            listed,
            unsure=frozenset(listed),
            routes=self.routes(at_s - ages[Source.PROXY]),
            targets=self.targets(at_s - ages[Source.HUB_DB]),
            prefixes={"grader": "/services/grader/"},
            backends=self.backends(at_s - ages[Source.BACKEND]),
            whole=True,
            orm=ORMCounts(),
        )
        world = self.fault(world, at_s)
        asked = {*suspects(world), *((one.user, one.server or "") for one in before if one.user is not None)}
        self.asked += len(asked)
        # What is broken at the hub itself it says as well when it is asked anew.
        now = self.fault(replace(world, servers=self.hub(at_s - 0.1)), at_s).servers or {}
        servers = {key: one for key, one in (world.servers or {}).items() if key not in asked}
        servers.update((key, now[key]) for key in asked if key in now)
        return replace(world, servers=servers, unsure=world.unsure - asked)

    def watch(
        self, policy: DriftPolicy, every_s: float = 30
    ) -> list[tuple[float, tuple[Drift, ...], tuple[Drift, ...]]]:
        """(seconds, what goes on, what ended) of each look; after a sixth of the time where anything is suspected."""
        looks = []
        at_s, before = 0.0, ()
        while at_s < self.until_s:
            before, ended = follow(before, self.world(at_s, before), policy)
            looks.append((at_s, before, ended))
            at_s += (every_s / 6 if shown(before) else every_s) * self.chance.uniform(0.9, 1.1)
        return looks
