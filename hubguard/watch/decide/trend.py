"""Trends: how fast a signal rises or falls, and how much time is left until a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubguard.watch.model import Sample, TimeLeft

CONFIDENT = 1.645
"""Standard errors on each side of a slope that hold it with 90 % confidence."""

FEWEST = 6
"""Fewest samples that a trend is drawn through."""

NEVER_S = 10 * 365 * 86400.0
"""Seconds beyond which a forecast says nothing."""


def slope_of(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """(rise per second, standard error of that) of the line of least squares; None with too few samples to draw one."""
    if len(samples) < FEWEST:
        return None
    count = len(samples)
    begin = samples[0].at
    mean_t = sum(sample.at - begin for sample in samples) / count
    mean_v = sum(sample.mean for sample in samples) / count
    spread = sum((sample.at - begin - mean_t) ** 2 for sample in samples)
    if spread <= 0:
        return None
    slope = sum((sample.at - begin - mean_t) * (sample.mean - mean_v) for sample in samples) / spread
    rest = sum((sample.mean - mean_v - slope * (sample.at - begin - mean_t)) ** 2 for sample in samples)
    return slope, math.sqrt(rest / (count - 2) / spread)


def time_left(samples: Sequence[Sample], limit: float, *, rising: bool) -> TimeLeft | None:
    """Until ``limit`` is reached from where the signal is now; None if the trend doesn't lead there, or is unknown.

    ``rising``: the limit is a ceiling, else a floor. A signal that is at its limit or beyond has 0 seconds left.
    """
    if not samples:
        return None
    direction = 1.0 if rising else -1.0
    distance = (limit - samples[-1].mean) * direction
    if distance <= 0:
        return TimeLeft(0.0, 0.0, 0.0)
    fit = slope_of(samples)
    if fit is None:
        return None
    slope, error = fit
    likely, fastest, slowest = (slope * direction + side * CONFIDENT * error for side in (0, 1, -1))
    if likely <= 0 or distance / likely > NEVER_S:
        return None
    most_s = distance / slowest if slowest > 0 and distance / slowest <= NEVER_S else None
    return TimeLeft(distance / likely, distance / fastest, most_s)
