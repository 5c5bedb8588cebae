"""Drift in words and plain values, for pages, API and command: differences, routes, repairs, and who believes what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from hubguard import words
from hubguard.backends.model import Backend
from hubguard.drift.decide.repair import remedy
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
from hubguard.model import ActionKind, Cause, OutcomeKind, Reading
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.status import Mode, Status
from hubguard.web import sources as web_sources

KIND_WORDS: dict[DriftKind, str] = {
    DriftKind.ROUTE_MISSING: "Route missing",
    DriftKind.ROUTE_WRONG_TARGET: "Route leads elsewhere",
    DriftKind.ROUTE_STALE: "Stale route",
    DriftKind.SERVICE_ROUTE_MISSING: "Service's route missing",
    DriftKind.HUB_ROUTE_MISSING: "Hub's route missing",
    DriftKind.SERVER_DEAD: "Dead server",
    DriftKind.SERVER_GHOST: "Ghost",
    DriftKind.SERVER_ORPHAN: "Orphan",
    DriftKind.PENDING_STUCK: "Stuck",
    DriftKind.ORM_DANGLING: "Dangling rows",
    DriftKind.ACTIVITY_FROZEN: "Activity frozen",
}

_REMEDY_WORDS: dict[ActionKind, str] = {
    ActionKind.CHECK_ROUTES: "have the hub check its routes, which mends all of them at once",
    ActionKind.STOP_SERVER: "have the hub stop it, so that it can be started again",
    ActionKind.START_AND_STOP: "start it and stop it at once, so that the hub lets go of it",
    ActionKind.INTERRUPT_SPAWN: "interrupt its start",
}

_NO_REMEDY: dict[DriftKind, str] = {
    DriftKind.ORM_DANGLING: (
        "Only counted here. The rows do no harm in small numbers; they are removed by pruning, with the hub stopped."
    ),
    DriftKind.ACTIVITY_FROZEN: (
        "Nothing that HubGuard may do mends this. See in the hub's log whether it still reads the proxy's routes"
        " (JupyterHub.last_activity_interval), and restart the hub where it doesn't. Until then, nothing idle is stopped."
    ),
    DriftKind.PENDING_STUCK: (
        "HubGuard can interrupt a start, and this isn't one. See in the hub's log what it waits for; a restart of the hub"
        " ends the wait."
    ),
    DriftKind.SERVER_ORPHAN: "It isn't proved to be this hub's, so HubGuard never ends it. Look at it, and end it by hand.",
}

_UNSEEN_ORPHAN = (
    "HubGuard doesn't see it itself (HubGuardDrift.backend), so it can't end it. Look where the hub starts its servers,"
    " and end it by hand."
)

WATCH_WORDS: dict[WatchState, tuple[str, str]] = {
    WatchState.OFF: ("standby", "Not watched"),
    WatchState.STARTING: ("starting", "Starting"),
    WatchState.FINE: ("done", "Fine"),
    WatchState.GONE: ("failed", "Gone"),
    WatchState.HANGS: ("failed", "Hangs"),
    WatchState.WIPED: ("failed", "Lost its table"),
    WatchState.DEAF: ("failed", "Public port is deaf"),
}
"""The shape and the word for how the proxy stands."""


class DriftState(str, Enum):
    """How sure a difference is."""

    RAISED = "raised"  # it is drift
    SUSPECTED = "suspected"  # it hasn't been seen often or long enough yet


@dataclass(frozen=True, slots=True)
class BackendShape:
    """What runs, or ran, a server. ``id`` names it for good, people find it by ``name``. ``alive`` null: it can't be told.

    ``proof`` says why it is this hub's; it is empty where that isn't proved, and it is never ended then.
    """

    kind: str
    id: str
    name: str
    alive: bool | None
    started: datetime | None
    proof: str
    detail: str


@dataclass(frozen=True, slots=True)
class RepairedShape:
    """A repair that was asked for or made by itself, and what came of it; ``outcome`` is null while it is under way.

    ``drifts`` are the ids of what it is for. ``says`` is what is done, in words, ``detail`` one line on what came of it.
    """

    kind: ActionKind
    user: str
    name: str
    reason: DriftKind
    drifts: tuple[str, ...]
    says: str
    actor: str
    began_at: datetime
    ended_at: datetime | None
    outcome: OutcomeKind | None
    detail: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class DriftShape:
    """One difference between what is believed and what is.

    ``user`` and ``server`` are null where it is about no single server; ``subject`` tells several of one kind apart.
    ``raised_at`` is null while it is only suspected. ``remedy`` is what HubGuard would do about it when asked, null where it
    only reports; ``advice`` says that, or what else to do, in words. ``by_itself`` is one sentence on whether that is done
    without being asked and, where not now, why; it is empty for what is only reported. ``repaired`` is the last repair, or
    null.
    """

    id: str
    kind: DriftKind
    state: DriftState
    user: str | None
    server: str | None
    subject: str
    started: datetime | None
    expected: str
    observed: str
    since: datetime
    seen_at: datetime
    sightings: int
    looks: int
    raised_at: datetime | None
    evidence: tuple[str, ...]
    remedy: ActionKind | None
    advice: str
    by_itself: str
    backend: BackendShape | None
    repaired: RepairedShape | None


@dataclass(frozen=True, slots=True)
class KindCountShape:
    """How many differences of one kind there are."""

    kind: DriftKind
    raised: int
    suspected: int


@dataclass(frozen=True, slots=True)
class ReportShape:
    """What the last look at all sources found, in numbers; ``looked_at`` is null before the first look.

    ``servers``, ``routes`` and ``backends`` are how many there are, null where that isn't known; ``whole`` says that no
    other backends are there. ``sentence`` says how it stands, ``narrowed`` what can't be told and why, a sentence each.
    ``repaired`` are the last repairs, ``cleared`` what is over since an hour at most, both newest first. ``by_itself`` are
    the kinds that are repaired without being asked, and ``by_itself_says`` is that in words, and why it isn't done now.
    """

    sentence: str
    looked_at: datetime | None = None
    next_look_at: datetime | None = None
    raised: int = 0
    suspected: int = 0
    kinds: tuple[KindCountShape, ...] = ()
    servers: int | None = None
    routes: int | None = None
    backends: int | None = None
    whole: bool = False
    sources: tuple[web_sources.SourceShape, ...] = ()
    narrowed: tuple[str, ...] = ()
    watch: ProxyWatchStatus = field(default_factory=ProxyWatchStatus)
    repaired: tuple[RepairedShape, ...] = ()
    cleared: tuple[DriftShape, ...] = ()
    by_itself: tuple[DriftKind, ...] = ()
    by_itself_says: str = ""


@dataclass(frozen=True, slots=True)
class RepairShape:
    """One repair of a plan. ``drifts`` are the ids of what it mends, ``says`` is what will be done, in words."""

    kind: ActionKind
    user: str
    name: str
    reason: DriftKind
    drifts: tuple[str, ...]
    backend: BackendShape | None
    says: str


@dataclass(frozen=True, slots=True)
class PlanShape:
    """What would be done. To have it done, send ``digest`` and ``count`` back before it expires."""

    made_at: datetime
    expires_at: datetime
    digest: str
    count: int
    repairs: tuple[RepairShape, ...]


# -- differences ----------------------------------------------------------------------------------------------------------


def state(drift: Drift) -> DriftState:
    """Whether it is drift, or only suspected."""
    return DriftState.SUSPECTED if drift.raised_at is None else DriftState.RAISED


def advice(drift: Drift) -> str:
    """What can be done about it, as one sentence or two."""
    kind = remedy(drift)
    if kind is None:
        unseen = drift.kind is DriftKind.SERVER_ORPHAN and drift.backend is None
        return _UNSEEN_ORPHAN if unseen else _NO_REMEDY[drift.kind]
    says = remedy_words(kind, drift.backend)
    return f"{says[0].upper()}{says[1:]}."


def remedy_words(kind: ActionKind, backend: Backend | None) -> str:
    """What is done, as a clause that begins with a verb."""
    if kind is ActionKind.END_BACKEND:
        name = backend.name if backend is not None else "the backend"
        return f"end {name}: what runs in it, and isn't saved, is lost"
    return _REMEDY_WORDS[kind]


def label(drift: Drift) -> str:
    """What it is about, as people name it."""
    if drift.user is not None:
        return words.kept_label(drift.user, drift.server or "")
    if drift.kind is DriftKind.ORM_DANGLING:
        return f"the hub's database: {drift.subject.replace('_', ' ')}"
    return drift.subject or "the hub"


def chosen(
    drifts: Iterable[Drift], *, q: str = "", kinds: Sequence[DriftKind] = (), wanted: DriftState | None = None
) -> list[Drift]:
    """Those of these kinds (none given: all) and in that state whose server or subject contains ``q``, in their order."""
    part = q.casefold()
    return [
        drift
        for drift in drifts
        if (not kinds or drift.kind in kinds)
        and (wanted is None or state(drift) is wanted)
        and (not part or part in label(drift).casefold() or part in drift.subject.casefold())
    ]


def last_repairs(repaired: Iterable[Repaired]) -> dict[str, Repaired]:
    """The newest repair by the id of each difference that it was for; ``repaired`` has the newest first."""
    found: dict[str, Repaired] = {}
    for one in repaired:
        for drift in one.repair.drifts:
            found.setdefault(drift, one)
    return found


def drift(one: Drift, repairs: Mapping[str, Repaired], unasked: Mapping[DriftKind, str]) -> DriftShape:
    """One difference as the API gives it; ``repairs`` as of last_repairs, ``unasked`` as of without_asking."""
    last = repairs.get(one.id)
    return DriftShape(
        id=one.id,
        kind=one.kind,
        state=state(one),
        user=one.user,
        server=one.server,
        subject=one.subject,
        started=one.started,
        expected=one.expected,
        observed=one.observed,
        since=one.since,
        seen_at=one.seen_at,
        sightings=one.sightings,
        looks=one.looks,
        raised_at=one.raised_at,
        evidence=one.evidence,
        remedy=remedy(one),
        advice=advice(one),
        by_itself=unasked.get(one.kind, "") if remedy(one) is not None else "",
        backend=_backend(one.backend),
        repaired=repaired(last) if last is not None else None,
    )


def _backend(one: Backend | None) -> BackendShape | None:
    if one is None:
        return None
    return BackendShape(one.kind, one.id, one.name, one.alive, one.started, one.proof, one.detail)


def repaired(one: Repaired) -> RepairedShape:
    """A repair and its outcome as the API gives them."""
    action, outcome = one.repair.action, one.outcome
    return RepairedShape(
        kind=action.kind,
        user=action.user,
        name=action.name,
        reason=DriftKind(action.reason),
        drifts=one.repair.drifts,
        says=repair_words(one.repair),
        actor=one.actor,
        began_at=one.began_at,
        ended_at=one.ended_at,
        outcome=outcome.kind if outcome else None,
        detail=outcome.detail if outcome else "",
        cause=outcome.cause if outcome else Cause.NONE,
    )


def repair_words(repair: Repair) -> str:
    """What a repair does, as one clause: ``ann/gpu: interrupt its start``."""
    action = repair.action
    says = remedy_words(action.kind, repair.backend)
    return f"{action.label}: {says}" if action.user else says


def plan(made: RepairPlan) -> PlanShape:
    """A plan as the API gives it."""
    repairs = tuple(
        RepairShape(
            one.action.kind,
            one.action.user,
            one.action.name,
            DriftKind(one.action.reason),
            one.drifts,
            _backend(one.backend),
            repair_words(one),
        )
        for one in made.repairs
    )
    return PlanShape(made.made_at, made.expires_at, made.digest, len(repairs), repairs)


# -- the report -----------------------------------------------------------------------------------------------------------


def not_looked(status: Status) -> str:
    """Why no look has been taken yet, and what that means."""
    return {
        Mode.TROUBLED: "HubGuard is in trouble and hasn't looked at the sources. The Overview says what is wrong.",
        Mode.STANDBY: "Another guard acts for this hub, and looks for drift. This one only stands by.",
    }.get(
        status.mode,
        "HubGuard hasn't looked at all sources yet, so it can't tell whether they agree. It looks soon after it started.",
    )


def down(report: DriftReport) -> tuple[Reading, ...]:
    """The readings of the last look that are missing or not whole."""
    return tuple(reading for reading in report.world.readings if not reading.complete)


def blind(report: DriftReport) -> bool:
    """Whether the last look told of neither servers nor routes enough to say that they agree."""
    return report.world.servers is None or report.world.routes is None or bool(down(report))


def headline(report: DriftReport) -> str:
    """One sentence: how it stands."""
    raised = sum(one.raised_at is not None for one in report.drifts)
    suspected = len(report.drifts) - raised
    if raised:
        more = f"; {suspected:,} more {'is' if suspected == 1 else 'are'} suspected" if suspected else ""
        return f"{words.count(raised, 'difference')} between what is believed and what is{more}."
    if blind(report):
        return "It can't be told whether the hub's beliefs are true, since not every source could be read."
    if suspected:
        are = "is" if suspected == 1 else "are"
        return f"{words.count(suspected, 'difference')} {are} suspected, and none is sure yet."
    return healthy(report.world)


def healthy(world: World) -> str:
    """That all that was compared agrees, with how much that was."""
    parts = [words.count(len(world.servers or ()), "server"), words.count(len(world.routes or ()), "route")]
    if world.backends is not None:
        parts.append(words.count(len(world.backends), "backend"))
    return f"All agree: {', '.join(parts[:-1])} and {parts[-1]}."


def report(found: DriftReport | None, status: Status) -> ReportShape:
    """The report as the API gives it; None before the first look."""
    if found is None:
        return ReportShape(sentence=not_looked(status))
    world, repairs, over = found.world, last_repairs(found.repaired), dict[DriftKind, str]()
    return ReportShape(
        sentence=headline(found),
        looked_at=world.at,
        next_look_at=found.next_look_at,
        raised=sum(one.raised_at is not None for one in found.drifts),
        suspected=sum(one.raised_at is None for one in found.drifts),
        kinds=kind_counts(found.drifts),
        servers=None if world.servers is None else len(world.servers),
        routes=None if world.routes is None else len(world.routes),
        backends=None if world.backends is None else len(world.backends),
        whole=world.whole,
        sources=sources(world, status.at),
        narrowed=found.narrowed,
        watch=found.watch,
        repaired=tuple(map(repaired, found.repaired)),
        cleared=tuple(drift(one, repairs, over) for one in found.cleared),
        by_itself=found.by_itself,
        by_itself_says=by_itself_words(found, status),
    )


def without_asking(found: DriftReport, status: Status) -> dict[DriftKind, str]:
    """By kind, whether it is repaired without being asked and, where not now, why: a sentence each."""
    waits = _waits_for(found, status)
    told = {}
    for kind in REMEDIES:
        if kind not in found.by_itself:
            told[kind] = "Only when asked."
        elif waits and not (waits == _NO_BRAKE and kind in ROUTE_KINDS):
            told[kind] = f"By itself, once {waits}."
        elif kind in found.doubted:
            told[kind] = (
                "Only when asked now: when so many are there at once, it is rather what sees the backends that is wrong."
            )
        else:
            told[kind] = "By itself, soon."
    return told


_NO_BRAKE = "HubGuard no longer holds back"


def _waits_for(found: DriftReport, status: Status) -> str:
    """What has to come before HubGuard repairs anything by itself, one clause; "" where it may now."""
    if not status.holds_lease:
        return "this guard holds the lease"
    if status.stance.held:
        return "acting is resumed"
    if not status.armed:
        return "HubGuard is armed"
    if found.watch.state in {WatchState.GONE, WatchState.HANGS, WatchState.WIPED}:
        return "the proxy is well again"
    return _NO_BRAKE if status.brake is not None else ""


def by_itself_words(found: DriftReport, status: Status) -> str:
    """What HubGuard repairs without being asked and, where not now, why; one sentence or two."""
    if not found.by_itself:
        return "HubGuard repairs nothing by itself (HubGuardDrift.repair is empty)."
    routes = [kind for kind in found.by_itself if kind in ROUTE_KINDS]
    others = [kind for kind in found.by_itself if kind not in ROUTE_KINDS]
    words = [KIND_WORDS[kind].lower() for kind in (*routes, *others)]
    if len(routes) == len(ROUTE_KINDS):
        words[: len(routes)] = ["whatever is wrong with routes"]
    names, waits = ", ".join(words), _waits_for(found, status)
    if waits == _NO_BRAKE and routes:
        only = ", but only what is wrong with routes while it holds back" if others else ""
        return f"By itself HubGuard repairs {names}{only}; the rest when asked."
    if waits:
        return f"Nothing is repaired by itself until {waits}; then {names}, and the rest when asked."
    return f"By itself HubGuard repairs {names}; the rest when asked."


def kind_counts(drifts: Iterable[Drift]) -> tuple[KindCountShape, ...]:
    """How many there are of each kind that there is any of, in the order of the kinds."""
    by = Counter((one.kind, state(one)) for one in drifts)
    counted = (KindCountShape(kind, by[kind, DriftState.RAISED], by[kind, DriftState.SUSPECTED]) for kind in DriftKind)
    return tuple(one for one in counted if one.raised or one.suspected)


def sources(world: World, now: datetime) -> tuple[web_sources.SourceShape, ...]:
    """The readings of a look, with their age at ``now``."""
    return tuple(web_sources.source(reading, now) for reading in world.readings)


# -- for a terminal -------------------------------------------------------------------------------------------------------


def drift_text(one: Mapping[str, Any]) -> str:
    """One difference, in the form in which the API gives it, as lines for a terminal."""
    about = words.kept_label(one["user"], one["server"] or "") if one["user"] is not None else one["subject"]
    kind = DriftKind(one["kind"])
    seen = f"seen in {one['sightings']} of {one['looks']} looks since {one['since']}"
    last = one["repaired"]
    lines = [
        f"{one['id']}  {kind.value}  {about or 'the hub'}  ({one['state']}, {seen})",
        f"  expected: {one['expected']}",
        f"  observed: {one['observed']}",
        f"  {'repair' if one['remedy'] else 'to do'}: {one['advice']} {one['by_itself']}".rstrip(),
    ]
    if last is not None:
        came = last["outcome"] or "under way"
        lines.append(f"  last repair ({last['actor']}): {came}{': ' + last['detail'] if last['detail'] else ''}")
    return "\n".join(lines)


def plan_text(made: Mapping[str, Any]) -> str:
    """A plan, in the form in which the API gives it, as lines for a terminal."""
    lines = [f"{words.count(made['count'], 'repair')}:"]
    for one in made["repairs"]:
        mends = f" ({words.count(len(one['drifts']), 'difference')})" if len(one["drifts"]) > 1 else ""
        lines.append(f"  {one['reason']}: {one['says']}{mends}")
    return "\n".join(lines)
