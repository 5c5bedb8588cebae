"""Metrics for Prometheus, read from the guard's status at each scrape: nothing is counted twice or kept here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

import hubguard
from hubguard.cull.model import CycleReport, Standing
from hubguard.dashboard.shapes import State
from hubguard.drift.model import DriftKind, DriftReport
from hubguard.model import FindingKind, OutcomeKind, Tally
from hubguard.pacing.model import BudgetUse
from hubguard.proxy.model import WatchState
from hubguard.snapshot.model import BrakeReason
from hubguard.status import Mode
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.alert import fresh
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import split_key


def registry(state: Callable[[], State], watch: Watch | None = None) -> CollectorRegistry:
    """A registry that asks for the state at each scrape, and has this process's memory, CPU and files, too.

    With ``watch`` it has the signals and the alerts, as long as this guard is the one that watches.
    """
    made = CollectorRegistry()
    made.register(GuardCollector(state))
    if watch is not None:
        made.register(WatchCollector(state, watch))
    ProcessCollector(registry=made)
    return made


class GuardCollector(Collector):
    """The guard in numbers. What is unknown has no sample, rather than a 0."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the guard."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        state = self._state()
        status, culled = state.guard, state.cull
        versions = {"version": hubguard.__version__, "hub_version": status.hub_version or ""}
        yield InfoMetricFamily("hubguard", "HubGuard, and the hub it guards", versions)
        yield _labelled("hubguard_mode", "1 for the mode it is in", "mode", {m.value: m is status.mode for m in Mode})
        yield _gauge("hubguard_armed", "1 when it is armed, by people or by its settings", status.armed)
        yield _gauge("hubguard_held", "1 when people have put acting on hold", status.stance.held)
        yield _gauge(
            "hubguard_settings_errors", "Wrong settings; with any, HubGuard takes no action", len(status.errors)
        )
        yield _gauge("hubguard_holds_lease", "1 when this guard may act for the hub", status.holds_lease)
        if status.lease is not None:
            yield _gauge("hubguard_lease_fence", "Rises with every change of the guard that acts", status.lease.fence)
        yield from _time("hubguard_start_time_seconds", "When this guard started", status.started_at)
        yield from _time(
            "hubguard_last_good_cycle_time_seconds", "When a cycle last read the whole hub", culled.last_good_cycle_at
        )
        yield from _time("hubguard_next_cycle_time_seconds", "When the next cycle is planned", culled.next_cycle_at)
        text = "Actions since this guard started, by how they ended"
        yield _outcomes("hubguard_actions", text, culled.tally)
        text = "Users of plans since this guard started, by what became of them"
        yield _outcomes("hubguard_pruned_users", text, state.prune.tally)
        text = "Users of the plan that is being carried out, or is paused, who wait for their turn"
        yield _gauge("hubguard_prune_waiting_users", text, state.prune.waiting)
        if culled.recent.error_ratio is not None:
            text = "Share of what was sent in the last hour that failed or couldn't be verified"
            yield _gauge("hubguard_error_ratio", text, culled.recent.error_ratio)
        reason = status.brake.reason if status.brake else None
        brakes = {kind.value: kind is reason for kind in BrakeReason}
        yield _labelled("hubguard_brake", "1 for the reason of the brake", "reason", brakes)
        kinds = Counter(finding.kind for finding in state.findings)
        by_kind = {kind.value: kinds[kind] for kind in FindingKind}
        yield _labelled("hubguard_findings", "Findings that an operator should look at", "kind", by_kind)
        text = "Notices to receivers since this guard started, by how they ended"
        notices = CounterMetricFamily("hubguard_notices", text, labels=["receiver", "outcome"])
        for (receiver, outcome), number in state.notices.counts.items():
            notices.add_metric([receiver, outcome], float(number))
        yield notices
        if culled.last_cycle is not None:
            due_at = culled.oldest_overdue.due_at if culled.oldest_overdue else None
            late_s = max(0.0, (status.at - due_at).total_seconds()) if due_at else 0.0
            text = "Seconds for which the longest overdue server has been due; 0 if none is overdue"
            yield _gauge("hubguard_oldest_overdue_seconds", text, late_s)
            yield from _of_cycle(culled.last_cycle, status.at)
        if status.budget is not None:
            yield from _of_budget(status.budget)
        # A guard that stands by doesn't look any more: what it saw last would outlive what it saw.
        if status.holds_lease and state.drift is not None:
            yield from _of_drift(state.drift)


class WatchCollector(Collector):
    """The signals by their names, each with its subject as a label, and the alerts that fire."""

    def __init__(self, state: Callable[[], State], watch: Watch) -> None:
        self._state = state
        self._watch = watch

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the guard."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        state = self._state()
        if state.alerts is None:
            return
        now = state.guard.at.timestamp()
        history = self._watch.history
        for signal in SIGNALS.values():
            kind = CounterMetricFamily if signal.counter else GaugeMetricFamily
            family = kind(f"hubguard_{signal.name}", signal.title, labels=[signal.per] if signal.per else [])
            for key in history.keys(signal.name):
                value = fresh(history, key, now)
                if value is not None and (signal.per or not split_key(key)[1]):
                    family.add_metric([split_key(key)[1]] if signal.per else [], value)
            if family.samples:
                yield family
        text = "1 while an alert fires, with its severity in words of when to act"
        alerts = GaugeMetricFamily("hubguard_alert", text, labels=["alertname", "severity", "subject"])
        for alert in state.alerts:
            alerts.add_metric([alert.rule, alert.severity.value, alert.subject], 1.0)
        yield alerts
        text = "1 when a source of signals can be read; one that isn't set up has no sample"
        sources = GaugeMetricFamily("hubguard_signal_source_readable", text, labels=["source"])
        for reading in self._watch.status().readings:
            if reading.configured:
                sources.add_metric([reading.source.value], float(reading.readable))
        yield sources


def _outcomes(name: str, text: str, tally: Tally) -> Metric:
    family = CounterMetricFamily(name, text, labels=["outcome"])
    for kind in OutcomeKind:
        family.add_metric([kind.value], getattr(tally, kind.value))
    return family


def _of_cycle(report: CycleReport, now: datetime) -> Iterator[Metric]:
    standings = Counter(verdict.standing for verdict in report.verdicts)
    servers = {standing.value: standings[standing] for standing in Standing}
    yield _labelled(
        "hubguard_servers", "Servers seen by the last cycle, by what is to happen to them", "standing", servers
    )
    kinds = Counter(outcome.kind for _, outcome in report.outcomes)
    outcomes = {kind.value: kinds[kind] for kind in OutcomeKind}
    yield _labelled("hubguard_last_cycle_actions", "Actions of the last cycle, by how they ended", "outcome", outcomes)
    yield _gauge(
        "hubguard_last_cycle_left_out", "Due servers that the cap left to the next cycle", report.plan.left_out
    )
    took_s = (report.ended_at - report.began_at).total_seconds()
    yield _gauge("hubguard_last_cycle_duration_seconds", "How long the last cycle took", took_s)
    ages = {reading.source.value: max(0.0, (now - reading.at).total_seconds()) for reading in report.snapshot.readings}
    yield _labelled("hubguard_source_age_seconds", "How old the last reading of a source is", "source", ages)
    complete = {reading.source.value: reading.complete for reading in report.snapshot.readings}
    yield _labelled("hubguard_source_complete", "1 when that reading is all there", "source", complete)


def _of_budget(use: BudgetUse) -> Iterator[Metric]:
    yield _gauge("hubguard_budget_in_flight", "Requests to the hub in flight", use.in_flight)
    yield _gauge("hubguard_budget_concurrency", "Requests in flight that are allowed now", use.concurrency)
    yield _gauge("hubguard_budget_concurrency_cap", "Maximum requests in flight", use.concurrency_cap)
    yield _gauge("hubguard_budget_rate", "Requests per second that are allowed", use.rate)
    states = {state: state == use.breaker for state in ("closed", "open", "probing")}
    yield _labelled("hubguard_breaker", "1 for the state of the breaker", "state", states)
    yield CounterMetricFamily("hubguard_hub_requests", "Requests to the hub", use.requests)
    yield CounterMetricFamily("hubguard_hub_request_failures", "Requests to the hub that failed", use.failures)
    yield CounterMetricFamily("hubguard_budget_wait_seconds", "Time that requests waited for the budget", use.waited_s)


def _of_drift(report: DriftReport) -> Iterator[Metric]:
    yield from _time("hubguard_last_drift_look_time_seconds", "When all sources were last compared", report.world.at)
    complete = {reading.source.value: reading.complete for reading in report.world.readings}
    text = "1 when the last look for drift read all of this source; nothing is concluded from one that is 0"
    yield _labelled("hubguard_drift_source_complete", text, "source", complete)
    counts = Counter((drift.kind, drift.raised_at is not None) for drift in report.drifts)
    family = GaugeMetricFamily("hubguard_drifts", "Differences between the sources, by kind", labels=["kind", "state"])
    for kind in DriftKind:
        family.add_metric([kind.value, "raised"], float(counts[kind, True]))
        family.add_metric([kind.value, "suspected"], float(counts[kind, False]))
    yield family
    states = {state.value: state is report.watch.state for state in WatchState}
    yield _labelled("hubguard_proxy_watch", "1 for the state of the proxy, by HubGuard's watch", "state", states)
    text = "Routes that the proxy still lacked after it had lost its table, when they were last compared"
    yield _gauge("hubguard_proxy_missing_routes", text, len(report.watch.missing))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _time(name: str, text: str, at: datetime | None) -> Iterator[Metric]:
    if at is not None:
        yield _gauge(name, f"{text} (unix time)", at.timestamp())


def _labelled(name: str, text: str, label: str, values: dict[str, float] | dict[str, bool] | dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
