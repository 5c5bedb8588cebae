"""Servers and cycles as the API returns them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hubguard.cull import words as cull_words
from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.model import CullStatus, CycleReport, Reason, Standing, Verdict
from hubguard.journal.model import Exemption
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind
from hubguard.snapshot.model import Evidence
from hubguard.status import Mode, Status
from hubguard.web.sources import SourceShape, describe_source
from hubguard.wire import extended


@dataclass(frozen=True, slots=True)
class FactShape:
    """Something that a decision is based on: what it is, and its state in words."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class ServerShape:
    """A server as of the last cycle, and what is to happen to it.

    ``idle_since``, by ``evidence``, and ``idle_s`` are null if the hub reports no times; ``due_at`` if nothing would ever
    stop it. ``rule`` names the rule whose limits apply, null for those of the settings; 0 is off. ``active_at`` is its last
    real use by HubGuard's own record. ``outcome`` is what came of acting on it in the last cycle, or null. ``explanation``
    is one sentence, ``facts`` what it is based on. ``not_acting`` says why HubGuard stops nothing at all right now, ""
    while it acts.
    """

    user: str
    name: str
    admin: bool
    ready: bool
    pending: str | None
    started: datetime | None
    last_activity: datetime | None
    active_at: datetime | None
    idle_since: datetime | None
    evidence: Evidence | None
    idle_s: float | None
    standing: Standing
    reason: Reason
    rule: str | None
    idle_timeout_s: float
    max_age_s: float
    exemption: Exemption | None
    due_at: datetime | None
    not_before: datetime | None
    failures: int
    outcome: OutcomeKind | None
    explanation: str
    facts: tuple[FactShape, ...]
    not_acting: str


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
    """One planned action. ``outcome`` is null if nothing was sent; ``detail`` is one line on what came of it.
    ``cause`` is the part of it that code may act on, "" for none.

    With the kind delete-user, ``user`` is deleted, and ``name`` is empty.
    """

    kind: ActionKind
    user: str
    name: str
    reason: Reason
    remove: bool
    outcome: OutcomeKind | None
    detail: str
    cause: Cause


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
    """The last cycle in numbers: how many servers it saw, what it planned, and what came of that.

    ``planned`` is the sum of the three below it. ``users_due`` counts the users that are still to be deleted, planned or not.
    """

    began_at: datetime
    ended_at: datetime
    servers: int
    planned: int
    stop_server: int
    interrupt_spawn: int
    delete_user: int
    users_due: int
    left_out: int
    done: int
    skipped: int
    failed: int
    unverified: int
    skipped_why: str


@dataclass(frozen=True, slots=True)
class OverdueShape:
    """The server that has been due for longest and isn't stopped yet."""

    user: str
    name: str
    due_at: datetime
    overdue_s: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Running:
    """A verdict of the last cycle on a server that still runs, with what came of acting on it (None: nothing was tried)."""

    verdict: Verdict
    outcome: Outcome | None


LONG_OVERDUE_S = 1800.0
"""Seconds for which a server may be due while armed, before ``/health`` says that HubGuard isn't culling."""


SORTS = ("due", "name", "idle", "started")


def list_running(report: CycleReport | None) -> list[Running]:
    """The servers of ``report`` that still run, nearest to being stopped first; those it has stopped are left out."""
    if report is None:
        return []
    outcomes = {
        (action.user, action.name, action.started): outcome
        for action, outcome in report.outcomes
        if action.kind is not ActionKind.DELETE_USER
    }
    rows = [Running(verdict, outcomes.get(verdict.server.run)) for verdict in report.verdicts]
    return [row for row in rows if row.outcome is None or row.outcome.kind is not OutcomeKind.DONE]


def find(report: CycleReport | None, user: str, name: str) -> Running | None:
    """That server if it still runs as of ``report``; else None."""
    return next((row for row in list_running(report) if row.verdict.server.key == (user, name)), None)


def select(
    rows: Sequence[Running], *, q: str = "", standing: Standing | None = None, sort: str = "due"
) -> list[Running]:
    """``rows`` whose user or server name contains ``q`` (in any case) and that have ``standing``, in order.

    ``sort`` is one of SORTS, with ``-`` in front to reverse it; servers without such a time come last.
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


def count_standings(rows: Sequence[Running]) -> CountsShape:
    """How many of ``rows`` have which standing."""
    by = Counter(row.verdict.standing for row in rows)
    return CountsShape(running=len(rows), **{standing.value: by[standing] for standing in Standing})


def describe_server(row: Running, policy: CullPolicy, status: Status) -> ServerShape:
    """One server as the API returns it, as of ``status.at``."""
    verdict, seen = row.verdict, row.verdict.server
    idle_s = (status.at - verdict.idle_since).total_seconds() if verdict.idle_since else None
    explanation = cull_words.explain(verdict, policy, status.at, status.mode, row.outcome)
    return extended(
        ServerShape,
        seen,
        verdict,
        active_at=verdict.known.active_at,
        idle_s=None if idle_s is None else max(0.0, round(idle_s, 3)),
        exemption=verdict.known.exemption,
        outcome=row.outcome.kind if row.outcome else None,
        explanation=explanation.sentence,
        facts=tuple(FactShape(what, text) for what, text in explanation.facts),
        not_acting="" if status.mode is Mode.ACTING else status.why,
    )


def describe_sources(report: CycleReport | None, now: datetime) -> tuple[SourceShape, ...]:
    """The readings of ``report``, with their age at ``now``."""
    return tuple(describe_source(reading, now) for reading in (report.snapshot.readings if report else ()))


def describe_cycle(report: CycleReport) -> CycleShape:
    """A cycle with every action it planned."""
    outcomes = dict(report.outcomes)

    def shape(action: Action) -> ActionShape:
        outcome = outcomes.get(action)
        kind, detail, cause = (outcome.kind, outcome.detail, outcome.cause) if outcome else (None, "", Cause.NONE)
        reason = Reason(action.reason)
        return extended(ActionShape, action, reason=reason, outcome=kind, detail=detail, cause=cause)

    return extended(
        CycleShape,
        report,
        servers=len(report.snapshot.servers),
        actions=tuple(map(shape, report.plan.actions)),
        left_out=report.plan.left_out,
        plan_digest=report.plan.digest,
        sources=describe_sources(report, report.ended_at),
    )


def describe_last_cycle(report: CycleReport) -> LastCycleShape:
    """A cycle in numbers."""
    by = Counter(outcome.kind for _, outcome in report.outcomes)
    planned = Counter(action.kind for action in report.plan.actions)
    return extended(
        LastCycleShape,
        report,
        servers=len(report.snapshot.servers),
        planned=len(report.plan.actions),
        stop_server=planned[ActionKind.STOP_SERVER],
        interrupt_spawn=planned[ActionKind.INTERRUPT_SPAWN],
        delete_user=planned[ActionKind.DELETE_USER],
        users_due=count_users_due(report),
        left_out=report.plan.left_out,
        **{kind.value: by[kind] for kind in OutcomeKind},
    )


def count_users_due(report: CycleReport | None) -> int:
    """How many users are due to be deleted and weren't deleted in ``report``."""
    if report is None:
        return 0
    deleted = {
        action.user
        for action, outcome in report.outcomes
        if action.kind is ActionKind.DELETE_USER and outcome.kind is OutcomeKind.DONE
    }
    return sum(
        verdict.standing is Standing.STOP and verdict.user.name not in deleted for verdict in report.user_verdicts
    )


def overdue_s(culled: CullStatus, now: datetime) -> float | None:
    """Seconds for which the longest overdue server has been due; None if none is overdue."""
    due_at = culled.oldest_overdue.due_at if culled.oldest_overdue else None
    return None if due_at is None else round(max(0.0, (now - due_at).total_seconds()), 3)


def is_late(status: Status, culled: CullStatus) -> bool:
    """Whether HubGuard ought to cull, and a server has been due for too long all the same. A person's hold is no lateness."""
    late_s = overdue_s(culled, status.at)
    meant_to_act = status.armed and status.mode in {Mode.ACTING, Mode.BRAKED}
    return meant_to_act and late_s is not None and late_s > LONG_OVERDUE_S


def describe_overdue(status: Status, culled: CullStatus, policy: CullPolicy) -> OverdueShape | None:
    """The longest overdue server as the API returns it; None if none is overdue."""
    oldest, late_s = culled.oldest_overdue, overdue_s(culled, status.at)
    if oldest is None or oldest.due_at is None or late_s is None:
        return None
    words = cull_words.explain(oldest, policy, status.at, status.mode).sentence
    return OverdueShape(oldest.server.user, oldest.server.name, oldest.due_at, late_s, words)
