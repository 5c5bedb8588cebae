"""Differences, repairs and reports of drift as the API gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.backends.model import Backend
from hubguard.drift import words as drift_words
from hubguard.drift.decide.repair import remedy
from hubguard.drift.model import Drift, DriftKind, DriftReport, Repaired, RepairPlan
from hubguard.model import ActionKind, Cause, OutcomeKind
from hubguard.proxy.model import ProxyWatchStatus
from hubguard.status import Status
from hubguard.web.sources import SourceShape, describe_source
from hubguard.wire import extended


class DriftState(str, Enum):
    """How sure a difference is."""

    RAISED = "raised"  # it is drift
    SUSPECTED = "suspected"  # not seen often or long enough yet


@dataclass(frozen=True, slots=True)
class BackendShape:
    """What runs, or ran, a server. ``id`` identifies it, people find it by ``name``. ``alive`` is null if unknown.

    ``proof`` says why it belongs to this hub. If it is empty, that is unknown, and HubGuard never ends it. ``command`` ends
    it by hand; it is empty if there is no such command.
    """

    kind: str
    id: str
    name: str
    alive: bool | None
    started: datetime | None
    proof: str
    detail: str
    command: str


@dataclass(frozen=True, slots=True)
class RepairedShape:
    """A repair, automatic or asked for, and its outcome, which is null while it is under way.

    ``drifts`` are the ids of the differences it repairs. ``says`` is what it does, in words, ``detail`` one line on the
    outcome.
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
    """One difference between the sources.

    ``user`` and ``server`` are null if it is about no single server. ``subject`` distinguishes several of one kind.
    ``raised_at`` is null while it is only suspected. ``remedy`` is what HubGuard does about it when asked, null if it only
    reports; ``advice`` says that, or what else to do, in words. ``by_itself`` is a sentence on whether HubGuard repairs it
    automatically and, if not now, why; it is empty for what is only reported. ``repaired`` is the last repair, or null.
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
    """The number of differences of one kind."""

    kind: DriftKind
    raised: int
    suspected: int


@dataclass(frozen=True, slots=True)
class ReportShape:
    """What the last look at all sources found, in numbers; ``looked_at`` is null before the first look.

    ``servers``, ``routes`` and ``backends`` are how many there are, null if unknown; ``whole`` says that there are no other
    backends. ``sentence`` is the state in words, ``narrowed`` what is unknown and why, a sentence each. ``repaired`` are the
    last repairs, ``cleared`` the differences resolved in the last hour, both newest first. ``by_itself`` are the kinds that
    HubGuard repairs automatically, and ``by_itself_says`` is that in words, and why not now.
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
    sources: tuple[SourceShape, ...] = ()
    narrowed: tuple[str, ...] = ()
    watch: ProxyWatchStatus = field(default_factory=ProxyWatchStatus)
    repaired: tuple[RepairedShape, ...] = ()
    cleared: tuple[DriftShape, ...] = ()
    by_itself: tuple[DriftKind, ...] = ()
    by_itself_says: str = ""


@dataclass(frozen=True, slots=True)
class RepairShape:
    """One repair of a plan. ``drifts`` are the ids of the differences it repairs, ``says`` is what it does, in words."""

    kind: ActionKind
    user: str
    name: str
    reason: DriftKind
    drifts: tuple[str, ...]
    backend: BackendShape | None
    says: str


@dataclass(frozen=True, slots=True)
class PlanShape:
    """What HubGuard would do. To apply it, send ``digest`` and ``count`` back before it expires."""

    made_at: datetime
    expires_at: datetime
    digest: str
    count: int
    repairs: tuple[RepairShape, ...]


def state_of(drift: Drift) -> DriftState:
    """Whether it is raised or only suspected."""
    return DriftState.SUSPECTED if drift.raised_at is None else DriftState.RAISED


def select(
    drifts: Iterable[Drift], *, q: str = "", kinds: Sequence[DriftKind] = (), state: DriftState | None = None
) -> list[Drift]:
    """Those of these kinds (none: all) and in this state whose server or subject contains ``q``, in the same order."""
    part = q.casefold()
    return [
        drift
        for drift in drifts
        if (not kinds or drift.kind in kinds)
        and (state is None or state_of(drift) is state)
        and (not part or part in drift_words.label(drift).casefold() or part in drift.subject.casefold())
    ]


def latest_repairs(repaired: Iterable[Repaired]) -> dict[str, Repaired]:
    """The latest repair of each difference, by its id; ``repaired`` has the newest first."""
    latest: dict[str, Repaired] = {}
    for repair in repaired:
        for id in repair.repair.drifts:
            latest.setdefault(id, repair)
    return latest


def describe_drift(drift: Drift, repairs: Mapping[str, Repaired], policy: Mapping[DriftKind, str]) -> DriftShape:
    """A difference as the API returns it, with what latest_repairs and policy_sentences return."""
    latest = repairs.get(drift.id)
    return extended(
        DriftShape,
        drift,
        id=drift.id,
        state=state_of(drift),
        remedy=remedy(drift),
        advice=drift_words.advice_on(drift),
        by_itself=policy.get(drift.kind, "") if remedy(drift) is not None else "",
        backend=_describe_backend(drift.backend),
        repaired=describe_repair(latest) if latest is not None else None,
    )


def _describe_backend(backend: Backend | None) -> BackendShape | None:
    return extended(BackendShape, backend) if backend is not None else None


def describe_repair(repaired: Repaired) -> RepairedShape:
    """A repair and its outcome as the API returns them."""
    action, outcome = repaired.repair.action, repaired.outcome
    return extended(
        RepairedShape,
        repaired,
        kind=action.kind,
        user=action.user,
        name=action.name,
        reason=DriftKind(action.reason),
        drifts=repaired.repair.drifts,
        says=drift_words.repair_words(repaired.repair),
        outcome=outcome.kind if outcome else None,
        detail=outcome.detail if outcome else "",
        cause=outcome.cause if outcome else Cause.NONE,
    )


def describe_plan(plan: RepairPlan) -> PlanShape:
    """A plan as the API returns it."""
    repairs = tuple(
        extended(
            RepairShape,
            repair.action,
            reason=DriftKind(repair.action.reason),
            drifts=repair.drifts,
            backend=_describe_backend(repair.backend),
            says=drift_words.repair_words(repair),
        )
        for repair in plan.repairs
    )
    return extended(PlanShape, plan, count=len(repairs), repairs=repairs)


def describe_report(report: DriftReport | None, status: Status) -> ReportShape:
    """The report as the API returns it; None before the first look."""
    if report is None:
        return ReportShape(sentence=drift_words.why_no_look(status))
    world, repairs, policy = report.world, latest_repairs(report.repaired), dict[DriftKind, str]()
    return extended(
        ReportShape,
        report,
        sentence=drift_words.headline(report),
        looked_at=world.at,
        raised=sum(drift.raised_at is not None for drift in report.drifts),
        suspected=sum(drift.raised_at is None for drift in report.drifts),
        kinds=count_kinds(report.drifts),
        servers=None if world.servers is None else len(world.servers),
        routes=None if world.routes is None else len(world.routes),
        backends=None if world.backends is None else len(world.backends),
        whole=world.whole,
        sources=tuple(describe_source(reading, status.at) for reading in world.readings),
        repaired=tuple(map(describe_repair, report.repaired)),
        cleared=tuple(describe_drift(drift, repairs, policy) for drift in report.cleared),
        by_itself_says=drift_words.policy_words(report, status),
    )


def count_kinds(drifts: Iterable[Drift]) -> tuple[KindCountShape, ...]:
    """How many differences there are of each kind that occurs, in the order of the kinds."""
    counts = Counter((drift.kind, state_of(drift)) for drift in drifts)
    shapes = (
        KindCountShape(kind, counts[kind, DriftState.RAISED], counts[kind, DriftState.SUSPECTED]) for kind in DriftKind
    )
    return tuple(shape for shape in shapes if shape.raised or shape.suspected)
