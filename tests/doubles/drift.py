"""Made-up reports of drift for the pages' tests, and the part of the guard that shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from builders import NOW
from doubles.hub import MemoryHub
from inline_journal import InlineJournal
from virtual_time import VirtualClock

from hubguard.act.mandate import Mandate
from hubguard.backends.model import Backend
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.model import (
    ROUTE_KINDS,
    Drift,
    DriftKind,
    DriftReport,
    Repaired,
    RepairPlan,
    World,
)
from hubguard.drift.observe import WorldObserver
from hubguard.drift.repairs import Limits
from hubguard.drift.settings import HubGuardDrift
from hubguard.errors import HubGuardError
from hubguard.journal.model import Event
from hubguard.model import Cause, Outcome, OutcomeKind, Reading, Route, Server, Source
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.proxy.table import ExpectedRoutes
from hubguard.snapshot.cycle import Snapshots

LOOKED = NOW - timedelta(seconds=4)

PROVED = Backend(
    "process", "4711@1", "ann", "", True, "pid 4711", NOW - timedelta(hours=9), "started by this hub's API URL"
)


def reading(source: Source, detail: str = "", age_s: float = 4) -> Reading:
    return Reading(source, NOW - timedelta(seconds=age_s), not detail, 0.05, detail)


EVERY_SOURCE = tuple(reading(source) for source in (Source.HUB_API, Source.HUB_DB, Source.PROXY, Source.BACKEND))


def world_of(servers: Sequence[Server] = (), /, **changed: Any) -> World:
    """A world in which all of ``servers`` are as they ought to be, but for what is ``changed``."""
    targets = {server.key: f"http://10.0.0.{i % 250}:{20000 + i % 40000}" for i, server in enumerate(servers)}
    paths = {key: f"/user/{key[0]}/{key[1]}".rstrip("/") for key in targets}
    routes = {"/": Route("/", "http://127.0.0.1:8081")}
    routes |= {paths[key]: Route(paths[key], targets[key], *key, NOW) for key in targets}
    made = World(
        at=LOOKED,
        readings=EVERY_SOURCE,
        servers={server.key: server for server in servers},
        routes=routes,
        targets=targets,
        prefixes={"hubguard": "/services/hubguard"},
        backends=tuple(replace(PROVED, id=f"{i}@1", user=key[0], server=key[1]) for i, key in enumerate(targets)),
        whole=True,
    )
    return replace(made, **changed)


def drift_of(kind: DriftKind = DriftKind.SERVER_DEAD, user: str | None = "ann", **fields: Any) -> Drift:
    """One that is raised, unless ``raised_at`` is given as None."""
    made = Drift(
        kind=kind,
        user=user,
        server=None if user is None else "",
        expected="a server that answers at http://10.0.0.7:20007",
        observed="its process is gone",
        since=NOW - timedelta(seconds=95),
        seen_at=LOOKED,
        evidence=("The hub's API at 11:59:56 UTC: ready", "Backends at 11:59:56 UTC: pid 4711 is gone"),
        sightings=4,
        looks=4,
        raised_at=NOW - timedelta(seconds=40),
    )
    return replace(made, **fields)


def one_of_each() -> list[Drift]:
    """Drift of every kind, some of it only suspected, with and without a backend and its proof."""
    made = [
        drift_of(DriftKind.ROUTE_MISSING, "bea"),
        drift_of(
            DriftKind.ROUTE_WRONG_TARGET, "cid", server="gpu", subject="/user/cid/gpu", observed="a route elsewhere"
        ),
        drift_of(DriftKind.ROUTE_STALE, "dot", subject="/user/dot"),
        drift_of(DriftKind.SERVICE_ROUTE_MISSING, None, subject="hubguard"),
        drift_of(DriftKind.HUB_ROUTE_MISSING, None),
        drift_of(DriftKind.SERVER_DEAD, "eve"),
        drift_of(DriftKind.SERVER_GHOST, "fay"),
        drift_of(DriftKind.SERVER_ORPHAN, "gil", subject="1@1", backend=replace(PROVED, id="1@1", user="gil")),
        drift_of(
            DriftKind.SERVER_ORPHAN, "hal", subject="2@1", backend=replace(PROVED, id="2@1", user="hal", proof="")
        ),
        drift_of(DriftKind.SERVER_ORPHAN, "ida"),
        drift_of(DriftKind.PENDING_STUCK, "jon", subject="spawn"),
        drift_of(DriftKind.ORM_DANGLING, None, subject="expired_tokens", observed="1,204 expired tokens"),
        drift_of(DriftKind.ACTIVITY_FROZEN, None),
    ]
    return [*made, drift_of(DriftKind.SERVER_DEAD, "kim", raised_at=None, sightings=1, looks=1)]


def report_with(drifts: Sequence[Drift] = (), servers: Sequence[Server] = (), **fields: Any) -> DriftReport:
    """What a look found four seconds before NOW; raised first."""
    ordered = sorted(drifts, key=lambda one: one.raised_at is None)
    fields.setdefault("world", world_of(servers))
    fields.setdefault("watch", ProxyWatchStatus(WatchState.FINE, NOW - timedelta(hours=3)))
    fields.setdefault("by_itself", tuple(kind for kind in DriftKind if kind in ROUTE_KINDS))
    fields.setdefault("next_look_at", NOW + timedelta(seconds=26))
    return DriftReport(drifts=tuple(ordered), **fields)


class _Sources:
    """Shows each look the world that was placed. The second look before a repair never ends."""

    looks = 0
    world: World | None = None

    async def look(self, recent: Any, also: Any = (), *, only: bool = False, routes_only: bool = False) -> World:
        if only or routes_only:
            await asyncio.Event().wait()
        if self.world is None:
            raise HubGuardError("The hub gave no answer, so nothing could be looked at.")
        self.looks += 1
        return self.world


class PlacedDrifts(DriftCycles):
    """The part itself, in charge, at NOW: a test sets ``report``, what the last look found. Repairs stay under way."""

    def __init__(self, books: InlineJournal | None = None) -> None:
        self.sources = _Sources()
        self.books = books or InlineJournal()
        self.shown = ProxyWatchStatus()
        self.doubted: tuple[DriftKind, ...] = ()
        lease: Any = SimpleNamespace(lease=True, seen=SimpleNamespace(fence=1))
        snapshots = SimpleNamespace(
            last=None, findings=(), came_back=frozenset(), used_at={}, brake=None, clock_from=None
        )
        clock = VirtualClock(NOW)
        super().__init__(
            HubGuardDrift(),
            Limits(1800.0, 10, 60.0, 30.0, 3600.0),
            MemoryHub(),
            cast(WorldObserver, self.sources),
            None,
            cast(Snapshots, snapshots),
            Mandate(self.books, lease, clock),
            clock,
            lambda: 0.5,
            table=ExpectedRoutes(lambda: self.shown),
        )

    @property
    def report(self) -> DriftReport | None:
        found = super().report
        return replace(found, doubted=self.doubted) if found is not None and self.doubted else found

    @report.setter
    def report(self, report: DriftReport | None) -> None:
        """What the last look found, and what came of the last repairs."""
        self._looks.report = report
        self._looks.drifts = report.drifts if report else ()
        self.sources.world = report.world if report else None
        if report:
            self._repairs.done, self._repairs.kinds = report.repaired, frozenset(report.by_itself)
            self._next_look_at, self.shown = report.next_look_at, report.watch
            self.doubted = report.doubted

    @property
    def plans(self) -> dict[str, RepairPlan]:
        """The plans that wait to be carried out, by digest."""
        return self._repairs._plans

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Who had repairs carried out, and which, as the journal has it."""
        return [(entry.actor, entry.detail) for entry in self.books.sync.entries(event=Event.NOTE)][::-1]


def settled(
    repaired: Repaired, kind: OutcomeKind = OutcomeKind.DONE, detail: str = "", cause: Cause = Cause.NONE
) -> Repaired:
    """The same repair, over."""
    return replace(repaired, ended_at=NOW, outcome=Outcome(kind, detail, cause))
