"""What the API answers with, and the pages show: plain values made from a guard's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.model import CullStatus
from hubguard.cull.shapes import (
    CountsShape,
    LastCycleShape,
    OverdueShape,
    count_standings,
    count_users_due,
    describe_last_cycle,
    describe_overdue,
    describe_sources,
    is_late,
    list_running,
    overdue_s,
)
from hubguard.dashboard import words as dashboard_words
from hubguard.drift.model import DriftReport
from hubguard.guard import Guard
from hubguard.journal.model import Lease, Stance
from hubguard.model import Finding, Tally
from hubguard.pacing.model import BudgetUse
from hubguard.prune.model import PruneStatus
from hubguard.snapshot.model import Brake
from hubguard.status import HandoverStatus, Mode, Status
from hubguard.watch.model import Severity
from hubguard.watch.notify.queue import NoticesStatus
from hubguard.watch.shapes import AlertShape
from hubguard.watch.shapes import describe as describe_alerts
from hubguard.web.base import Badge
from hubguard.web.sources import SourceShape


@dataclass(frozen=True, slots=True)
class AlertCountsShape:
    """How many alerts are raised and not resolved, by when to act."""

    now: int
    today: int
    this_week: int


@dataclass(frozen=True, slots=True)
class StatusShape:
    """What HubGuard is doing. ``sentence`` says it in words; ``last_cycle`` is null before the first one.

    ``brake`` is set while HubGuard is braked; if it is ``acceptable``, a person can resume. ``clock_from``: idle
    clocks restarted then, after an outage. ``tally`` is of this guard's life, ``recent`` of the last hour, and
    ``error_ratio`` the share of what was sent in it that failed or couldn't be verified, null if nothing was.
    ``findings`` are what an operator should look at, most recent last. ``handover`` says who
    culls, by whose word, and what was taken over from an idle culler. ``alerts`` is null if this guard isn't watching.
    """

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
    brake: Brake | None
    clock_from: datetime | None
    tally: Tally
    recent: Tally
    error_ratio: float | None
    oldest_overdue: OverdueShape | None
    findings: tuple[Finding, ...]
    handover: HandoverStatus
    alerts: AlertCountsShape | None


@dataclass(frozen=True, slots=True)
class HealthShape:
    """Whether HubGuard works. ``ok`` is false while it starts, isn't working, or hasn't had a good cycle for long; while
    it is armed and a server has been due for over half an hour; or when most of what it sent in the last hour failed.

    ``last_good_cycle_age_s`` is null before the first one, ``oldest_overdue_s`` if no server is overdue, ``error_ratio`` if
    nothing was sent in the last hour. ``reasons`` are sentences on why it isn't ok, without names; null unless asked for.
    """

    ok: bool
    mode: Mode
    last_good_cycle_age_s: float | None
    oldest_overdue_s: float | None
    error_ratio: float | None
    braked: bool
    reasons: tuple[str, ...] | None = None


STALE_CYCLE_S = 900.0
"""Seconds since the last good cycle, and at least three times the time between cycles, after which ``/health`` says so."""


@dataclass(frozen=True, slots=True)
class State:
    """What the guard and its parts know of themselves at one moment. ``drift`` is None before the first look.

    ``alerts`` are those that are raised, the most urgent first; None if this guard isn't watching.
    """

    guard: Status
    cull: CullStatus
    prune: PruneStatus
    drift: DriftReport | None
    policy: CullPolicy
    alerts: tuple[AlertShape, ...] | None
    notices: NoticesStatus = field(default_factory=NoticesStatus)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What an operator should look at."""
        return self.cull.findings + self.guard.findings + self.prune.findings + self.notices.findings


def state_of(guard: Guard) -> State:
    """Ask the guard and its parts. Never blocks, never raises."""
    parts = guard.parts
    drift = None if parts.drifts is None else parts.drifts.report
    notices = NoticesStatus() if parts.notices is None else parts.notices.status()
    return State(
        guard.status(),
        parts.culling.status(),
        parts.pruning.status(),
        drift,
        parts.culling.policy,
        raised(guard),
        notices,
    )


def raised(guard: Guard) -> tuple[AlertShape, ...] | None:
    """The alerts that are raised, the most urgent first; None if this guard isn't watching, as one on standby isn't."""
    watch = guard.parts.watch
    if watch is None or not guard.mandate.holds_lease:
        return None
    return tuple(alert for alert in describe_alerts(watch.rules, watch.status()) if alert.raised_at is not None)


def badge(guard: Guard) -> Badge:
    """The worst of what the guard does and what it watches, for the tab of a browser."""
    mode, alerts = guard.status().mode, raised(guard) or ()
    if mode is Mode.TROUBLED or any(alert.severity is Severity.NOW for alert in alerts):
        return Badge(len(alerts), "hubguard-troubled.svg")
    if alerts or mode in {Mode.HELD, Mode.BRAKED}:
        return Badge(len(alerts), "hubguard-wait.svg")
    return Badge()


def describe(state: State) -> StatusShape:
    """The state as the API returns it: numbers instead of every server."""
    status, culled = state.guard, state.cull
    numbers = count_standings(list_running(culled.newest))
    acting = culled.under_way is not None and not culled.under_way.skipped_why
    return StatusShape(
        at=status.at,
        mode=status.mode,
        sentence=dashboard_words.headline(status, numbers.stop, count_users_due(culled.newest), under_way=acting),
        why=status.why,
        stance=status.stance,
        started_at=status.started_at,
        holder=status.holder,
        holds_lease=status.holds_lease,
        lease=status.lease,
        hub_version=status.hub_version,
        servers=numbers,
        sources=describe_sources(culled.newest, status.at),
        last_cycle=describe_last_cycle(culled.last_cycle) if culled.last_cycle else None,
        last_good_cycle_at=culled.last_good_cycle_at,
        next_cycle_at=culled.next_cycle_at,
        errors=tuple(map(str, status.errors)),
        notes=status.notes,
        budget=status.budget,
        brake=status.brake,
        clock_from=status.clock_from,
        tally=culled.tally,
        recent=culled.recent,
        error_ratio=_rounded(culled.recent.error_ratio),
        oldest_overdue=describe_overdue(status, culled, state.policy),
        findings=state.findings,
        handover=status.handover,
        alerts=None if state.alerts is None else count_alerts(state.alerts),
    )


def count_alerts(alerts: Sequence[AlertShape]) -> AlertCountsShape:
    """How many there are of each severity."""
    counts = Counter(alert.severity for alert in alerts)
    return AlertCountsShape(counts[Severity.NOW], counts[Severity.TODAY], counts[Severity.WEEK])


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)


def health(state: State, *, verbose: bool = False) -> HealthShape:
    """What anyone may know: no names, and no reasons that could hold one."""
    status, culled = state.guard, state.cull
    good_at = culled.last_good_cycle_at
    age_s = round(max(0.0, (status.at - good_at).total_seconds()), 3) if good_at else None
    works = status.mode not in {Mode.STARTING, Mode.TROUBLED}
    apart_s = 0.0
    if culled.next_cycle_at and culled.last_cycle:
        apart_s = (culled.next_cycle_at - culled.last_cycle.began_at).total_seconds()
    fresh = status.mode is Mode.STANDBY or (age_s is not None and age_s < max(STALE_CYCLE_S, 3 * apart_s))
    recent = culled.recent
    wrong = {
        "HubGuard is starting.": status.mode is Mode.STARTING,
        "HubGuard takes no action: a setting is wrong, or its journal isn't available.": status.mode is Mode.TROUBLED,
        "The last cycle that read the whole hub is too long ago.": works and not fresh,
        "HubGuard is armed, and a server has been due for too long.": is_late(status, culled),
        "Most actions of the last hour failed or couldn't be verified.": recent.mostly_failed,
    }
    reasons = tuple(sentence for sentence, holds in wrong.items() if holds)
    return HealthShape(
        ok=not reasons,
        mode=status.mode,
        last_good_cycle_age_s=age_s,
        oldest_overdue_s=overdue_s(culled, status.at),
        error_ratio=_rounded(recent.error_ratio),
        braked=status.brake is not None or status.mode is Mode.BRAKED,
        reasons=reasons if verbose else None,
    )
