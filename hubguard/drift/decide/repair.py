"""What repairs a difference, whether it still should, and when too many at once are more likely a source's mistake."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from hubguard.backends.model import Backend
from hubguard.drift.decide.compare import TWO_RUNS
from hubguard.drift.decide.follow import ONE_IN_TWO_WORDS
from hubguard.drift.model import REMEDIES, ROUTE_KINDS, Drift, DriftKind, Repair, RepairPlan
from hubguard.model import Action, ActionKind, same_run

TOO_MANY = 3
TOO_LARGE_A_SHARE = 0.2
"""Above both (a number of servers, and a share of the hub's), it is more likely that the source is wrong than that all
these servers have lost their backend at once. HubGuard then repairs none of them unless asked."""

DOUBTED_FOR_S = 600.0
"""Seconds for which an automatic repair counts among those at once."""

GONE_KINDS = frozenset({DriftKind.SERVER_DEAD, DriftKind.SERVER_GHOST})
"""Both mean that no backend is seen, so they count together."""


def remedy(drift: Drift) -> ActionKind | None:
    """The action that repairs it; None if it can only be reported.

    That depends on its kind. It is also None for an orphan whose backend is unknown, may not belong to this hub, or started
    hardly before the run beside it, and for what is pending and isn't a start.
    """
    if drift.kind is DriftKind.SERVER_ORPHAN:
        if drift.backend is None or not drift.backend.proof:
            return None
        if drift.started is not None and not began_before(drift.backend, drift.started):
            return None
    if drift.kind is DriftKind.PENDING_STUCK and drift.subject != "spawn":
        return None
    return REMEDIES.get(drift.kind)


def began_before(backend: Backend, run: datetime) -> bool:
    """Whether ``backend`` surely belongs to an earlier run than the one that was started then."""
    return backend.started is not None and backend.started < run - TWO_RUNS


def plan_repairs(drifts: Iterable[Drift], now: datetime, *, lasts_s: float = 600.0) -> RepairPlan:
    """A plan that repairs these, made at ``now`` and valid for ``lasts_s`` seconds (ten minutes, as for a plan of stops).

    One check of routes comes first, for all that it repairs, then one repair for each of the others, in the given order.
    Differences without a remedy are left out, and duplicates count once. The same repairs always have the same digest.
    """
    given = {drift.id: drift for drift in drifts if remedy(drift) is not None}
    routes = sorted((id_ for id_, drift in given.items() if drift.kind in ROUTE_KINDS))
    repairs = []
    if routes:
        reason = min((given[id_].kind for id_ in routes), key=list(DriftKind).index)
        action = Action("", "", None, None, reason.value, kind=ActionKind.CHECK_ROUTES)
        repairs.append(Repair(action, tuple(routes)))
    for id_, drift in given.items():
        if drift.kind not in ROUTE_KINDS:
            action = Action(
                drift.user or "", drift.server or "", drift.started, None, drift.kind.value, kind=REMEDIES[drift.kind]
            )
            backend = drift.backend if action.kind is ActionKind.END_BACKEND else None
            repairs.append(Repair(action, (id_,), backend))
    return RepairPlan(now, now + timedelta(seconds=lasts_s), tuple(repairs), _digest(repairs))


def _digest(repairs: Sequence[Repair]) -> str:
    text = json.dumps([asdict(repair) for repair in repairs], default=str, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def still_there(repair: Repair, drifts: Sequence[Drift]) -> str:
    """Why ``repair`` is no longer due, one clause, by what a fresh look shows; "" if it is.

    It is due while a difference that it repairs is among ``drifts``, for the same run and the same backend.
    """
    wanted = set(repair.drifts)
    there = [drift for drift in drifts if drift.id in wanted]
    if not there:
        return _gone(repair, drifts)
    if repair.action.kind is ActionKind.CHECK_ROUTES:
        return ""
    why = ""
    for drift in there:
        if not same_run(drift.started, repair.action.started):
            why = "the server was started again"
        elif repair.backend is not None and (drift.backend is None or drift.backend.id != repair.backend.id):
            why = f"{repair.backend.name} is no longer the backend concerned"
        elif remedy(drift) is None:
            why = "HubGuard can no longer repair it"
        else:
            return ""
    return why


def _gone(repair: Repair, drifts: Sequence[Drift]) -> str:
    if repair.action.kind is ActionKind.CHECK_ROUTES:
        return "none of these routes differs now"
    for drift in drifts:
        same = (drift.user, drift.server) == (repair.action.user, repair.action.name)
        if same and ONE_IN_TWO_WORDS.get(drift.kind) == repair.action.reason:
            return f"it is a {drift.kind.value} now"
    return f"the sources now agree about {repair.action.label}, or one of them can't be read"


def doubted(drifts: Sequence[Drift], servers: int, repaired: Sequence[DriftKind] = ()) -> tuple[DriftKind, ...]:
    """The kinds of which there are too many at once to believe the source, on a hub with this many servers.

    ``drifts`` are all that are shown: the suspected count too, since the same source reports them. ``repaired`` are the kinds
    of those that were repaired automatically in the last DOUBTED_FOR_S and are no longer shown: a source that is wrong may
    show it server by server. Kinds of routes are never doubted: checking routes destroys nothing.
    """
    limit = max(TOO_MANY, TOO_LARGE_A_SHARE * servers)
    counts = Counter([*(drift.kind for drift in drifts), *repaired])
    gone = sum(counts[kind] for kind in GONE_KINDS)
    return tuple(
        kind for kind in DriftKind if kind not in ROUTE_KINDS and (gone if kind in GONE_KINDS else counts[kind]) > limit
    )
