"""What the API answers with, and the pages show: plain values made from a guard's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hubguard.decide.cull import CullPolicy
from hubguard.model import (
    Action,
    BudgetUse,
    CycleReport,
    Lease,
    Mode,
    Outcome,
    OutcomeKind,
    Reason,
    Source,
    Stance,
    Standing,
    Status,
    Verdict,
)
from hubguard.web import present


@dataclass(frozen=True, slots=True)
class ServerShape:
    """A server as of the last cycle, and what is to happen to it.

    ``idle_s`` is null where the hub tells no times; ``due_at`` where nothing would ever stop it. ``outcome`` is what came
    of acting on it in the last cycle, or null. ``explanation`` is one sentence.
    """

    user: str
    name: str
    admin: bool
    ready: bool
    pending: str | None
    started: datetime | None
    last_activity: datetime | None
    idle_s: float | None
    standing: Standing
    reason: Reason
    due_at: datetime | None
    not_before: datetime | None
    failures: int
    outcome: OutcomeKind | None
    explanation: str


@dataclass(frozen=True, slots=True)
class SourceShape:
    """One source's reading. ``complete`` false means some of it is missing, for the reason in ``detail``."""

    source: Source
    at: datetime
    age_s: float
    complete: bool
    took_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class CountsShape:
    """How many servers run as of the last cycle, by standing."""

    running: int = 0
    stop: int = 0
    wait: int = 0
    keep: int = 0
    exempt: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class ActionShape:
    """One planned action. ``outcome`` is null where nothing was sent; ``detail`` is one line on what came of it."""

    user: str
    name: str
    reason: Reason
    remove: bool
    outcome: OutcomeKind | None
    detail: str


@dataclass(frozen=True, slots=True)
class CycleShape:
    """What a cycle saw and did. ``skipped_why`` says why it didn't act at all, else it is empty.

    ``servers`` counts what it saw, ``left_out`` what the cap kept out of the plan.
    """

    began_at: datetime
    ended_at: datetime
    servers: int
    actions: tuple[ActionShape, ...]
    left_out: int
    plan_digest: str
    skipped_why: str
    sources: tuple[SourceShape, ...]


@dataclass(frozen=True, slots=True)
class LastCycleShape:
    """The last cycle in numbers: how many servers it saw, planned to stop, and what came of them."""

    began_at: datetime
    ended_at: datetime
    servers: int
    planned: int
    left_out: int
    done: int
    skipped: int
    failed: int
    unverified: int
    skipped_why: str


@dataclass(frozen=True, slots=True)
class StatusShape:
    """What HubGuard is doing. ``sentence`` says it in words; ``last_cycle`` is null before the first one."""

    at: datetime
    mode: Mode
    sentence: str
    why: str
    stance: Stance
    started_at: datetime
    holder: str
    holds_lease: bool
    lease: Lease | None
    hub_version: str | None
    servers: CountsShape
    sources: tuple[SourceShape, ...]
    last_cycle: LastCycleShape | None
    last_good_cycle_at: datetime | None
    next_cycle_at: datetime | None
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    budget: BudgetUse | None


@dataclass(frozen=True, slots=True)
class HealthShape:
    """Whether HubGuard works. ``ok`` is false while it starts, is in trouble, or hasn't had a good cycle for long.

    ``last_good_cycle_age_s`` is null before the first one.
    """

    ok: bool
    mode: Mode
    last_good_cycle_age_s: float | None


@dataclass(frozen=True, slots=True)
class Running:
    """A verdict of the last cycle on a server that still runs, with what came of acting on it (None: nothing was tried)."""

    verdict: Verdict
    outcome: Outcome | None


STALE_CYCLE_S = 900.0
"""Without a good cycle for this long, or for three times as long as cycles are apart, ``/health`` says so."""

SORTS = ("due", "name", "idle", "started")


def running(report: CycleReport | None) -> list[Running]:
    """The servers of ``report`` that still run, nearest to being stopped first; those it has stopped are left out."""
    if report is None:
        return []
    outcomes = {(action.user, action.name, action.started): outcome for action, outcome in report.outcomes}
    rows = [Running(verdict, outcomes.get(verdict.server.run)) for verdict in report.verdicts]
    return [row for row in rows if row.outcome is None or row.outcome.kind is not OutcomeKind.DONE]


def find(report: CycleReport | None, user: str, name: str) -> Running | None:
    """That server, where it still runs as of ``report``; else None."""
    return next((row for row in running(report) if row.verdict.server.key == (user, name)), None)


def chosen(
    rows: Sequence[Running], *, q: str = "", standing: Standing | None = None, sort: str = "due"
) -> list[Running]:
    """``rows`` whose user or server name contains ``q`` (whatever the case) and that have ``standing``, in order.

    ``sort`` is one of SORTS, with ``-`` in front for the other way round; what has no such time comes last.
    """
    wanted = q.casefold()
    kept = [
        row
        for row in rows
        if (not wanted or wanted in row.verdict.server.label.casefold())
        and (standing is None or row.verdict.standing is standing)
    ]
    by, down = sort.lstrip("-"), sort.startswith("-")
    if by == "name":
        return sorted(kept, key=lambda row: row.verdict.server.key, reverse=down)
    known, unknown = [], []
    for row in kept:
        at = _time(row.verdict, by)
        if at is None:
            unknown.append(row)
        else:
            known.append((at, row.verdict.server.key, row))
    known.sort(key=lambda pair: pair[:2], reverse=down)
    return [row for _, _, row in known] + unknown


def _time(verdict: Verdict, by: str) -> datetime | None:
    if by == "due":
        return verdict.due_at
    return verdict.idle_since if by == "idle" else verdict.server.started


def counts(rows: Sequence[Running]) -> CountsShape:
    """How many of ``rows`` have which standing."""
    by = Counter(row.verdict.standing for row in rows)
    return CountsShape(running=len(rows), **{standing.value: by[standing] for standing in Standing})


def server(row: Running, policy: CullPolicy, status: Status) -> ServerShape:
    """One server as the API gives it, as of ``status.at``."""
    verdict, seen = row.verdict, row.verdict.server
    idle_s = (status.at - verdict.idle_since).total_seconds() if verdict.idle_since else None
    return ServerShape(
        user=seen.user,
        name=seen.name,
        admin=seen.admin,
        ready=seen.ready,
        pending=seen.pending,
        started=seen.started,
        last_activity=seen.last_activity,
        idle_s=None if idle_s is None else max(0.0, round(idle_s, 3)),
        standing=verdict.standing,
        reason=verdict.reason,
        due_at=verdict.due_at,
        not_before=verdict.not_before,
        failures=verdict.failures,
        outcome=row.outcome.kind if row.outcome else None,
        explanation=present.explain(verdict, policy, status.at, status.mode, row.outcome).sentence,
    )


def sources(report: CycleReport | None, now: datetime) -> tuple[SourceShape, ...]:
    """The readings of ``report``, with their age at ``now``."""
    return tuple(
        SourceShape(
            reading.source,
            reading.at,
            round(max(0.0, (now - reading.at).total_seconds()), 3),
            reading.complete,
            round(reading.took_s, 3),
            reading.detail,
        )
        for reading in (report.snapshot.readings if report else ())
    )


def cycle(report: CycleReport) -> CycleShape:
    """A cycle with every action it planned."""
    outcomes = dict(report.outcomes)

    def shape(action: Action) -> ActionShape:
        outcome = outcomes.get(action)
        kind, detail = (outcome.kind, outcome.detail) if outcome else (None, "")
        return ActionShape(action.user, action.name, action.reason, action.remove, kind, detail)

    return CycleShape(
        began_at=report.began_at,
        ended_at=report.ended_at,
        servers=len(report.snapshot.servers),
        actions=tuple(shape(action) for action in report.plan.actions),
        left_out=report.plan.left_out,
        plan_digest=report.plan.digest,
        skipped_why=report.skipped_why,
        sources=sources(report, report.ended_at),
    )


def _last_cycle(report: CycleReport) -> LastCycleShape:
    by = Counter(outcome.kind for _, outcome in report.outcomes)
    return LastCycleShape(
        began_at=report.began_at,
        ended_at=report.ended_at,
        servers=len(report.snapshot.servers),
        planned=len(report.plan.actions),
        left_out=report.plan.left_out,
        skipped_why=report.skipped_why,
        **{kind.value: by[kind] for kind in OutcomeKind},
    )


def of_status(status: Status) -> StatusShape:
    """The guard's status as the API gives it: numbers instead of every server."""
    numbers = counts(running(status.last_cycle))
    return StatusShape(
        at=status.at,
        mode=status.mode,
        sentence=present.headline(status, numbers.stop),
        why=status.why,
        stance=status.stance,
        started_at=status.started_at,
        holder=status.holder,
        holds_lease=status.holds_lease,
        lease=status.lease,
        hub_version=status.hub_version,
        servers=numbers,
        sources=sources(status.last_cycle, status.at),
        last_cycle=_last_cycle(status.last_cycle) if status.last_cycle else None,
        last_good_cycle_at=status.last_good_cycle_at,
        next_cycle_at=status.next_cycle_at,
        errors=status.errors,
        notes=status.notes,
        budget=status.budget,
    )


def health(status: Status) -> HealthShape:
    """What anyone may know: no names, no reasons."""
    good_at = status.last_good_cycle_at
    age_s = round(max(0.0, (status.at - good_at).total_seconds()), 3) if good_at else None
    works = status.mode not in {Mode.STARTING, Mode.TROUBLED}
    apart_s = 0.0
    if status.next_cycle_at and status.last_cycle:
        apart_s = (status.next_cycle_at - status.last_cycle.began_at).total_seconds()
    fresh = status.mode is Mode.STANDBY or (age_s is not None and age_s < max(STALE_CYCLE_S, 3 * apart_s))
    return HealthShape(works and fresh, status.mode, age_s)
