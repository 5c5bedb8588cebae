"""Made-up reports of drift, for the pages' tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from builders import NOW

from hubguard.backends.model import Backend
from hubguard.drift.model import (
    REMEDIES,
    ROUTE_KINDS,
    Drift,
    DriftKind,
    DriftReport,
    Repair,
    Repaired,
    RepairPlan,
    World,
)
from hubguard.errors import HubGuardError
from hubguard.model import Action, ActionKind, Cause, Order, Outcome, OutcomeKind, Reading, Route, Server, Source
from hubguard.proxy.model import ProxyWatchStatus, WatchState

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


def planned(report: DriftReport | None, ids: Sequence[str], kinds: Sequence[DriftKind]) -> RepairPlan:
    """The plan as a guard makes it: one repair for all routes, one for each of the others."""
    if report is None:
        raise HubGuardError("No look has been taken yet.")
    known = {one.id: one for one in report.drifts if one.raised_at is not None}
    for one in ids:
        if one not in known:
            raise HubGuardError(f"There is no raised drift {one} any more. Nothing was planned.")
        if known[one].kind not in REMEDIES:
            raise HubGuardError(f"{known[one].kind.value} is only reported. Nothing was planned.")
    wanted = [one for one in known.values() if one.id in ids or one.kind in kinds]
    routes = [one for one in wanted if REMEDIES.get(one.kind) is ActionKind.CHECK_ROUTES]
    repairs = []
    if routes:
        action = Action("", "", None, None, routes[0].kind, kind=ActionKind.CHECK_ROUTES)
        repairs.append(Repair(action, tuple(one.id for one in routes)))
    for one in wanted:
        if one.kind in REMEDIES and one not in routes:
            action = Action(
                one.user or "", one.server or "", one.started, None, one.kind.value, kind=REMEDIES[one.kind]
            )
            repairs.append(Repair(action, (one.id,), one.backend))
    if not repairs:
        raise HubGuardError("There is nothing to repair.")
    digest = hashlib.sha256(repr(repairs).encode()).hexdigest()
    return RepairPlan(NOW, NOW + timedelta(minutes=10), tuple(repairs), digest)


class FakeDrifts:
    """Drift as a test sets it in ``report``; what it was asked to do is in the guard's ``asked``."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard
        self.report: DriftReport | None = None
        self.plans: dict[str, RepairPlan] = {}

    async def look(self) -> DriftReport:
        self._guard.do("look")
        if self.report is None:
            raise HubGuardError("The hub gave no answer, so nothing could be looked at.")
        return self.report

    def plan(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        plan = planned(self.report, ids, kinds)
        self.plans[plan.digest] = plan
        return plan

    async def repair(self, digest: str, count: int, order: Order) -> RepairPlan:
        plan = self.plans.get(digest)
        if plan is None:
            raise HubGuardError("There is no such plan any more: look at it anew. Nothing was done.")
        if count != len(plan.repairs):
            raise HubGuardError(f"The plan has {len(plan.repairs)} repairs, not {count}. Nothing was done.")
        if self._guard.state.stance.held:
            raise HubGuardError("Acting is on hold. Nothing was done.")
        assert order.asked
        self._guard.do("repair", digest, count, order.actor, order.why)
        assert self.report is not None
        under_way = tuple(Repaired(one, order.actor, NOW) for one in plan.repairs)
        self.report = replace(self.report, repaired=under_way + self.report.repaired)
        return plan

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        self._guard.asked.append(("outlived", user, server, detail))


def settled(
    repaired: Repaired, kind: OutcomeKind = OutcomeKind.DONE, detail: str = "", cause: Cause = Cause.NONE
) -> Repaired:
    """The same repair, over."""
    return replace(repaired, ended_at=NOW, outcome=Outcome(kind, detail, cause))
