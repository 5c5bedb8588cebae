"""Signals as series: the rules are run over them as the guard runs them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from builders import NOW

from hubguard.watch.decide.alert import Alerts, Rule, step
from hubguard.watch.decide.history import History
from hubguard.watch.decide.rules import RULES
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Change, split_key

Series = Callable[[float], float | None]
"""The value of a signal so many seconds after the beginning; None: its source can't be read then."""

STEP_S = 10


def raised(
    signals: Mapping[str, Series], until_s: float, *, begin: datetime = NOW, rules: tuple[Rule, ...] = RULES
) -> dict[str, float]:
    """The seconds at which each rule was first raised, by its name; signals are read as often as the catalogue says."""
    history, first = History(), dict[str, float]()
    alerts: Alerts = {}
    for i in range(int(until_s // STEP_S) + 1):
        at_s = float(i * STEP_S)
        now = begin + timedelta(seconds=at_s)
        values = {}
        for key, series in signals.items():
            if at_s % SIGNALS[split_key(key)[0]].every_s == 0 and (value := series(at_s)) is not None:
                values[key] = value
        history.add(now.timestamp(), values)
        alerts, changes = step(rules, alerts, history, now)
        for transition in changes:
            if transition.change is Change.RAISED:
                first.setdefault(transition.alert.rule, at_s)
    return first


def ramp(*points: tuple[float, float]) -> Series:
    """Straight lines through (seconds, value), level before the first and after the last."""

    def at(seconds: float) -> float:
        if seconds <= points[0][0]:
            return points[0][1]
        for (t0, v0), (t1, v1) in itertools.pairwise(points):
            if seconds <= t1:
                return v0 + (v1 - v0) * (seconds - t0) / (t1 - t0)
        return points[-1][1]

    return at
