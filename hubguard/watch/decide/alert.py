"""Which alerts are raised and cleared: rules over the history of signals, in a state machine that doesn't flap.

The states and their durations are those of Prometheus' alerting rules (pending, firing, ``for``, ``keep_firing_for``),
with a threshold for clearing that differs from the one for raising.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from hubguard.watch.decide.history import History
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.decide.trend import time_left
from hubguard.watch.model import Alert, AlertState, Change, Severity, TimeLeft, Transition, signal_key, split_key


class Verdict(str, Enum):
    """What a condition says of one look."""

    HOLDS = "holds"
    BETWEEN = "between"  # no longer bad enough to raise, and not good enough to clear
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a condition makes of the history of one subject. ``limit`` is what ``value`` is held against, if anything.

    ``low``: the lower the value, the worse.
    """

    verdict: Verdict
    value: float
    limit: float | None = None
    left: TimeLeft | None = None
    low: bool = False


class Condition(Protocol):
    """What an alert is about."""

    @property
    def signal(self) -> str:
        """The name of the signal that is judged."""
        ...

    def judge(self, history: History, subject: str, now: float) -> Judgement | None:
        """The judgement at ``now`` (unix time); None if the signals aren't fresh or don't reach back far enough."""
        ...


@dataclass(frozen=True, slots=True)
class Level:
    """The mean of ``signal`` over ``over_s`` seconds is at ``raise_at`` or beyond, and clears at ``clear_at``.

    ``below``: beyond means below. ``beside`` names a signal that must be at ``least`` or more, too, so that a share of
    almost nothing raises nothing.
    """

    signal: str
    raise_at: float
    clear_at: float
    over_s: float = 0.0
    below: bool = False
    beside: str = ""
    least: float = 0.0

    def judge(self, history: History, subject: str, now: float) -> Judgement | None:
        """Judge the mean over the time."""
        value = _mean(history, signal_key(self.signal, subject), self.over_s, now)
        if value is None:
            return None
        beyond = (value <= self.raise_at) if self.below else (value >= self.raise_at)
        if beyond and self.beside:
            beside = _mean(history, signal_key(self.beside, subject), self.over_s, now)
            beyond = beside is not None and beside >= self.least
        ended = (value >= self.clear_at) if self.below else (value <= self.clear_at)
        verdict = Verdict.HOLDS if beyond else Verdict.ENDED if ended else Verdict.BETWEEN
        return Judgement(verdict, value, self.raise_at, low=self.below)


@dataclass(frozen=True, slots=True)
class Forecast:
    """``signal`` reaches its limit within ``within_s`` seconds if its trend over ``over_s`` goes on; clears at twice that.

    The limit is ``limit``, or the signal ``limit_signal`` where that is known. ``falling``: the limit is a floor. Below
    ``from_share`` of the limit nothing is forecast (with ``falling``: above ``from_value``): what is nearly empty may rise
    fast for a while. At ``sure_share`` of the limit it holds whatever the trend.
    """

    signal: str
    within_s: float
    over_s: float
    limit: float | None = None
    limit_signal: str = ""
    falling: bool = False
    from_share: float = 0.0
    from_value: float | None = None
    sure_share: float | None = None

    def judge(self, history: History, subject: str, now: float) -> Judgement | None:
        """Judge the time left. A trend counts only if half of the time that it is drawn over is there."""
        last = fresh(history, signal_key(self.signal, subject), now)
        limit = self.limit
        if self.limit_signal and limit is None:
            known = history.last(signal_key(self.limit_signal, subject))
            limit = None if known is None else known.mean
        if last is None or limit is None or (limit <= 0 and not self.falling):
            return None
        value = last
        if self.sure_share is not None and value >= self.sure_share * limit:
            return Judgement(Verdict.HOLDS, value, limit, self._left(history, subject, limit, now), self.falling)
        worth_it = (
            (self.from_value is None or value <= self.from_value) if self.falling else value >= self.from_share * limit
        )
        left = self._left(history, subject, limit, now) if worth_it else None
        # The slope must be sure: without an upper bound of the time left, it may as well be flat.
        if left is not None and left.most_s is not None and left.likely_s <= self.within_s:
            return Judgement(Verdict.HOLDS, value, limit, left, self.falling)
        if left is not None and left.likely_s <= 2 * self.within_s:
            return Judgement(Verdict.BETWEEN, value, limit, left, self.falling)
        return Judgement(Verdict.ENDED, value, limit, left, self.falling)

    def _left(self, history: History, subject: str, limit: float, now: float) -> TimeLeft | None:
        samples = history.over(signal_key(self.signal, subject), self.over_s, now)
        if not samples or now - samples[0].at < self.over_s / 2:
            return None
        return time_left(samples, limit, rising=not self.falling)


@dataclass(frozen=True, slots=True)
class Fall:
    """``signal`` is down by ``share`` of the highest that it was within ``within_s``, which was ``least`` or more.

    It clears when it is back at half of that fall, or when the highest has aged out of the time.
    """

    signal: str
    share: float
    within_s: float
    least: float

    def judge(self, history: History, subject: str, now: float) -> Judgement | None:
        """Judge the newest against the highest."""
        key = signal_key(self.signal, subject)
        last = fresh(history, key, now)
        samples = history.over(key, self.within_s, now)
        if last is None or not samples:
            return None
        highest = max(sample.high for sample in samples)
        fell = 1 - last / highest if highest > 0 else 0.0
        if highest >= self.least and fell >= self.share:
            return Judgement(Verdict.HOLDS, last, highest, low=True)
        verdict = Verdict.ENDED if highest < self.least or fell <= self.share / 2 else Verdict.BETWEEN
        return Judgement(verdict, last, highest, low=True)


@dataclass(frozen=True, slots=True)
class Jump:
    """``signal`` is up by ``share`` of the lowest that it was within ``within_s``, and by ``least`` or more."""

    signal: str
    share: float
    within_s: float
    least: float

    def judge(self, history: History, subject: str, now: float) -> Judgement | None:
        """Judge the newest against the lowest."""
        key = signal_key(self.signal, subject)
        last = fresh(history, key, now)
        samples = history.over(key, self.within_s, now)
        if last is None or not samples:
            return None
        lowest = min(sample.low for sample in samples)
        rise = last - lowest
        if rise >= self.least and rise >= self.share * lowest:
            return Judgement(Verdict.HOLDS, last, lowest)
        ended = rise < self.least / 2 or rise < self.share * lowest / 2
        return Judgement(Verdict.ENDED if ended else Verdict.BETWEEN, last, lowest)


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert. ``name`` is CamelCase and also that of the Prometheus rule; ``sentence`` says what is wrong, with
    ``{value}``, ``{limit}``, ``{subject}`` and ``{left}`` filled in by words.

    ``why`` says in one sentence why it is watched, ``first`` the first thing to do, with the command or page. It is raised
    when its condition has held for ``for_s`` seconds and in ``looks`` readings, and resolved when it has ended for
    ``clear_for_s``.
    """

    name: str
    severity: Severity
    condition: Condition
    sentence: str
    why: str
    first: str
    for_s: float
    clear_for_s: float
    looks: int = 3


LOST_S = 86400.0
"""Seconds without a reading after which an alert ends: what it is about is no longer watched."""

FRESH_FOR = 2.5
"""Times its interval after which a reading is too old to judge by: two were missed."""


def fresh(history: History, key: str, now: float) -> float | None:
    """The newest reading of that key; None if it is too old, or there is none."""
    last = history.last(key)
    fresh_s = FRESH_FOR * SIGNALS[split_key(key)[0]].every_s
    return None if last is None or now - last.at > fresh_s else last.mean


def _mean(history: History, key: str, over_s: float, now: float) -> float | None:
    """The mean over that time, of the newest reading alone for 0; None if the newest is too old."""
    last = fresh(history, key, now)
    if last is None or not over_s:
        return last
    samples = history.over(key, over_s, now)
    return sum(sample.mean for sample in samples) / len(samples) if samples else last


Alerts = Mapping[tuple[str, str], Alert]
"""The alerts that are pending or firing, by (rule, subject)."""


def step(
    rules: Iterable[Rule], alerts: Alerts, history: History, now: datetime
) -> tuple[Alerts, tuple[Transition, ...]]:
    """How the alerts stand at ``now``, and what has changed, in the order of the rules.

    Alerts of rules that aren't among ``rules`` any more are resolved.
    """
    after: dict[tuple[str, str], Alert] = {}
    changes: list[Transition] = []
    known = set()
    for rule in rules:
        known.add(rule.name)
        subjects = {split_key(key)[1] for key in history.keys(rule.condition.signal)}
        subjects |= {subject for name, subject in alerts if name == rule.name}
        for subject in sorted(subjects):
            before = alerts.get((rule.name, subject))
            judgement = rule.condition.judge(history, subject, now.timestamp())
            newest = history.last(signal_key(rule.condition.signal, subject))
            alert, change = follow(rule, subject, before, judgement, now, newest.at if newest else 0.0)
            if change is not None:
                assert alert is not None or before is not None
                changes.append(Transition(change, alert or before))  # type: ignore[arg-type]
            if alert is not None and change is not Change.RESOLVED:
                after[alert.key] = alert
    for alert in alerts.values():
        if alert.rule not in known and alert.raised:
            changes.append(Transition(Change.RESOLVED, replace(alert, seen_at=now)))
    return after, tuple(changes)


def follow(
    rule: Rule, subject: str, before: Alert | None, judgement: Judgement | None, now: datetime, read_at: float
) -> tuple[Alert | None, Change | None]:
    """The alert at ``now``, None if there is none, and what became of it. A resolved one comes as it was at the end.

    ``read_at`` (unix time) tells a new reading of the signal from one that was judged before. One whose source hasn't been
    read for a day is resolved, in the state unknown: a folder, say, that was taken out of the settings.
    """
    if judgement is None:
        if before is None or not before.raised:
            return None, None  # what was only pending may not hold any more: it begins again
        if now - before.seen_at > timedelta(seconds=LOST_S):
            return replace(before, state=AlertState.UNKNOWN), Change.RESOLVED
        lost = before.state is not AlertState.UNKNOWN
        return replace(before, state=AlertState.UNKNOWN, clear_since=None), Change.LOST if lost else None
    if before is None:
        if judgement.verdict is not Verdict.HOLDS:
            return None, None
        before = Alert(rule.name, subject, AlertState.PENDING, now, now, 0, judgement.value, judgement.value)
    seen = replace(
        before,
        since=min(before.since, now),  # the clock may have been set back
        seen_at=now,
        value=judgement.value,
        worst=(min if judgement.low else max)(before.worst, judgement.value),
        limit=judgement.limit,
        left=judgement.left,
    )
    if not before.raised:
        return _follow_pending(rule, seen, judgement, now, read_at)
    return _follow_raised(rule, seen, judgement, now, found=before.state is AlertState.UNKNOWN)


def _follow_pending(
    rule: Rule, alert: Alert, judgement: Judgement, now: datetime, read_at: float
) -> tuple[Alert | None, Change | None]:
    if judgement.verdict is not Verdict.HOLDS:
        return None, None
    alert = replace(alert, looks=alert.looks + (read_at != alert.read_at), read_at=read_at)
    if alert.looks < rule.looks or now - alert.since < timedelta(seconds=rule.for_s):
        return alert, None
    return replace(alert, state=AlertState.FIRING, raised_at=now), Change.RAISED


def _follow_raised(
    rule: Rule, alert: Alert, judgement: Judgement, now: datetime, *, found: bool
) -> tuple[Alert, Change | None]:
    back = Change.FOUND if found else None
    if judgement.verdict is not Verdict.ENDED:
        return replace(alert, state=AlertState.FIRING, clear_since=None), back
    since = min(alert.clear_since or now, now)
    alert = replace(alert, state=AlertState.CLEARING, clear_since=since)
    if now - since < timedelta(seconds=rule.clear_for_s):
        return alert, back
    return alert, Change.RESOLVED
