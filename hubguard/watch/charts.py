"""Charts of signals and alerts: which samples, over which time, with which limit and which time marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from hubguard.times import DAY_S, HOUR_S
from hubguard.watch.decide.alert import Condition, Fall, Jump, Rule
from hubguard.watch.decide.history import History, level_for
from hubguard.watch.decide.rules import RULES
from hubguard.watch.decide.sentence import say
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Sample, Signal, Unit, signal_key
from hubguard.watch.shapes import AlertShape
from hubguard.web.chart import Chart, Limit, Point, Scale, Span, lay_out

SPANS_S: Mapping[str, float] = {"3h": 3 * HOUR_S, "day": DAY_S, "week": 7 * DAY_S, "month": 30 * DAY_S}
"""What can be chosen for charts of signals, in seconds."""

BEFORE_S = 3 * HOUR_S
"""Seconds that an alert's chart shows at least."""

MISSED = 2.5
"""Readings or steps without a value after which data is missing: one that comes late isn't missed."""

SCALES = {Unit.BYTES: Scale.BINARY, Unit.SECONDS: Scale.TIME, Unit.COUNT: Scale.WHOLE}
"""The numbers that are round in each unit; the others count in tens."""


def draw_signal(
    signal: Signal,
    subject: str,
    samples: Sequence[Sample],
    since: datetime,
    until: datetime,
    step_s: float,
    *,
    limit: Limit | None = None,
    spans: Sequence[Span] = (),
) -> Chart:
    """The chart of a signal's ``samples``, which are of ``step_s`` seconds each."""
    return lay_out(
        f"{signal.title}: {subject}" if subject else signal.title,
        map(Point._make, samples),
        since.timestamp(),
        until.timestamp(),
        lambda value: say(value, signal.unit).replace(" a minute", "/min"),
        gap_s=MISSED * max(step_s, signal.every_s),
        scale=SCALES.get(signal.unit, Scale.DECIMAL),
        limit=limit,
        spans=spans,
    )


def draw_alert(alert: AlertShape, rule: Rule, history: History, now: datetime) -> Chart:
    """The last hours of an alert that isn't resolved, from memory: with its limit, and the time marked since it began."""
    signal, begun = SIGNALS[alert.signal], alert.raised_at or alert.since
    span_s = min(SPANS_S["week"], max(BEFORE_S, 1.5 * (now - begun).total_seconds()))
    return draw_signal(
        signal,
        alert.subject,
        history.over(signal_key(signal.name, alert.subject), span_s, now.timestamp()),
        now - timedelta(seconds=span_s),
        now,
        level_for(span_s).step_s,
        limit=limit_of(rule.condition, alert),
        spans=(Span(begun.timestamp(), now.timestamp(), "firing" if alert.raised_at else "pending"),),
    )


def limit_word(condition: Condition) -> str:
    """What the value is held against."""
    if isinstance(condition, Fall):
        return "highest before"
    return "lowest before" if isinstance(condition, Jump) else "limit"


def limit_of(condition: Condition, alert: AlertShape | None = None) -> Limit | None:
    """What ``alert`` is held against; without one the limit that doesn't depend on readings.

    None if there is none, and if it is 0: there the chart has a line anyway.
    """
    if alert is not None and alert.limit:
        return Limit(alert.limit, limit_word(condition))
    value = getattr(condition, "raise_at", None)
    if value is None:
        value = getattr(condition, "limit", None)
    return Limit(value) if value else None


def span_around(raised_at: datetime, resolved_at: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """From when to when the chart of an alert reaches: as long before and after as it lasted, an hour at least."""
    end = resolved_at or now
    around = max(timedelta(hours=1), end - raised_at)
    return raised_at - around, min(now, end + around)


def rule_named(name: str, rules: Mapping[str, Rule]) -> Rule | None:
    """That rule, of those in force or built in; None for one of another version."""
    return rules.get(name) or next((rule for rule in RULES if rule.name == name), None)
