"""The proxy's table in plain values: each route with its verdict, and those that are missing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from hubguard.drift.model import Drift, DriftKind, DriftReport, World
from hubguard.model import Key, Route


class RouteVerdict(str, Enum):
    """Whether a route is right."""

    FINE = "fine"
    STALE = "stale"  # for a server that doesn't run
    WRONG_TARGET = "wrong-target"
    MISSING = "missing"  # should be in the table, and isn't
    UNKNOWN = "unknown"  # no source says whether it is right


@dataclass(frozen=True, slots=True)
class RouteShape:
    """A route at the proxy, or one that is missing there (``target`` null).

    ``expected`` is where it should lead, null if unknown. ``drift`` is the id of the difference behind the verdict, null for
    none, and ``raised`` says whether that is more than suspected.
    """

    path: str
    target: str | None
    user: str | None
    server: str | None
    last_activity: datetime | None
    expected: str | None
    verdict: RouteVerdict
    drift: str | None
    raised: bool


_ROUTE_VERDICTS = {
    DriftKind.ROUTE_STALE: RouteVerdict.STALE,
    DriftKind.ROUTE_WRONG_TARGET: RouteVerdict.WRONG_TARGET,
    DriftKind.ROUTE_MISSING: RouteVerdict.MISSING,
    DriftKind.SERVICE_ROUTE_MISSING: RouteVerdict.MISSING,
    DriftKind.HUB_ROUTE_MISSING: RouteVerdict.MISSING,
}


def list_routes(report: DriftReport) -> list[RouteShape]:
    """Every route of the last look by its path, and those that are missing; a route that differs comes first."""
    world = report.world
    by_path: dict[str, Drift] = {}
    by_server: dict[Key, Drift] = {}
    missing: list[Drift] = []
    for drift in report.drifts:
        verdict = _ROUTE_VERDICTS.get(drift.kind)
        if verdict is RouteVerdict.MISSING:
            missing.append(drift)
        elif verdict is not None:
            by_path[drift.subject] = drift
            if drift.user is not None and not drift.subject:
                by_server[drift.user, drift.server or ""] = drift
    rows = [_missing(drift, world) for drift in missing]
    for path, route in (world.routes or {}).items():
        differs = by_path.get(path) or (by_server.get(route.key) if route.key else None)
        rows.append(_route(route, world, differs))
    rank = {RouteVerdict.FINE: 2, RouteVerdict.UNKNOWN: 1}
    return sorted(rows, key=lambda row: (rank.get(row.verdict, 0), row.path))


def _route(route: Route, world: World, differs: Drift | None) -> RouteShape:
    expected = (world.targets or {}).get(route.key) if route.key else None
    if differs is not None:
        verdict = _ROUTE_VERDICTS[differs.kind]
    elif route.key is None:
        ours = route.path in (world.prefixes or {}).values() or route.path == world.hub_path
        verdict = RouteVerdict.FINE if ours else RouteVerdict.UNKNOWN
    else:
        seen = (world.servers or {}).get(route.key)
        sure = seen is not None and seen.ready and seen.pending is None and route.key not in world.unsure
        verdict = RouteVerdict.FINE if sure and expected is not None else RouteVerdict.UNKNOWN
    return RouteShape(
        route.path,
        route.target,
        route.user,
        route.server,
        route.last_activity,
        expected,
        verdict,
        differs.id if differs else None,
        differs is not None and differs.raised_at is not None,
    )


def _missing(drift: Drift, world: World) -> RouteShape:
    key = (drift.user or "", drift.server or "")
    path = (world.prefixes or {}).get(drift.subject, drift.subject)
    if drift.kind is DriftKind.HUB_ROUTE_MISSING:
        path = world.hub_path
    expected = (world.targets or {}).get(key) if drift.user is not None else None
    raised = drift.raised_at is not None
    return RouteShape(path, None, drift.user, drift.server, None, expected, RouteVerdict.MISSING, drift.id, raised)
