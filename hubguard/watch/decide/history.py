"""What the signals were of late, at three steps of time: enough for every rule, and bounded. And how samples are merged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubguard.watch.model import Sample


@dataclass(frozen=True, slots=True)
class Level:
    """Samples of ``step_s`` seconds each, kept for ``kept_s``."""

    step_s: int
    kept_s: float


LEVELS = (Level(10, 1200.0), Level(60, 6 * 3600.0), Level(600, 7 * 86400.0))
"""What is held in memory, finest first."""


def level_for(span_s: float) -> Level:
    """The finest level that reaches back ``span_s`` seconds, or the coarsest."""
    return next((level for level in LEVELS if span_s <= level.kept_s), LEVELS[-1])


HOUR_STEP_S = 3600
"""Seconds of the coarsest step that is kept."""

GONE_S = 3600.0
"""Seconds after which a signal that is no longer read is forgotten here: a folder that was taken out of the settings."""


def merge(samples: Iterable[Sample], step_s: int) -> tuple[Sample, ...]:
    """``samples``, oldest first, as samples of ``step_s`` seconds: lowest, mean and highest of each step."""
    steps: dict[float, list[Sample]] = {}
    for sample in samples:
        steps.setdefault(sample.at // step_s * step_s, []).append(sample)
    return tuple(
        Sample(
            at,
            min(sample.low for sample in some),
            math.fsum(sample.mean for sample in some) / len(some),
            max(sample.high for sample in some),
        )
        for at, some in steps.items()
    )


class History:
    """The samples of every key, oldest first. It only knows the times that it is told."""

    def __init__(self) -> None:
        self._levels = tuple(_LevelSamples(level) for level in LEVELS)

    def add(self, at: float, values: Mapping[str, float]) -> None:
        """Add what was read at ``at`` (unix time). What lies ahead of that is forgotten: the clock was set back."""
        for key, value in values.items():
            if math.isfinite(value):
                for level in self._levels:
                    level.add(key, at, value)

    def restore(self, step_s: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Take what was kept over a restart, for the level of ``step_s``, oldest first."""
        for level in self._levels:
            if level.level.step_s == step_s:
                level.samples.update({key: deque(some) for key, some in samples.items()})

    def forget_gone(self, now: float) -> None:
        """Forget the signals that haven't been read for an hour."""
        finest = self._levels[0].samples
        for key in [key for key, samples in finest.items() if samples[-1].at < now - GONE_S]:
            for level in self._levels:
                level.samples.pop(key, None)

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys of that signal that are known, in order: one for each subject."""
        return tuple(sorted(key for key in self._levels[0].samples if key == name or key.startswith(f"{name}:")))

    def over(self, key: str, span_s: float, now: float) -> tuple[Sample, ...]:
        """The samples of the last ``span_s`` seconds, oldest first, in the finest step that reaches back that far."""
        level = self._levels[LEVELS.index(level_for(span_s))]
        return tuple(sample for sample in level.samples.get(key, ()) if sample.at >= now - span_s)

    def steps(self, step_s: int, since: float) -> dict[float, dict[str, Sample]]:
        """The steps of that level that aren't over at ``since`` or begin later, by the time at which each begins."""
        steps: dict[float, dict[str, Sample]] = {}
        for level in self._levels:
            if level.level.step_s == step_s:
                for key, samples in level.samples.items():
                    for sample in reversed(samples):
                        if sample.at <= since - step_s:
                            break
                        steps.setdefault(sample.at, {})[key] = sample
        return steps

    def hours(self, since: float) -> dict[float, dict[str, Sample]]:
        """The same for steps of an hour, merged from the coarsest level."""
        begin = since // HOUR_STEP_S * HOUR_STEP_S
        hours: dict[float, dict[str, Sample]] = {}
        for key, samples in self._levels[-1].samples.items():
            for sample in merge((sample for sample in samples if sample.at >= begin), HOUR_STEP_S):
                hours.setdefault(sample.at, {})[key] = sample
        return hours

    def last(self, key: str) -> Sample | None:
        """The newest reading; None if there is none."""
        known = self._levels[0].samples.get(key)
        return known[-1] if known else None


class _LevelSamples:
    """The samples of one level by key, and how many readings the newest of each is made of."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.samples: dict[str, deque[Sample]] = {}
        self._readings: dict[str, int] = {}

    def add(self, key: str, at: float, value: float) -> None:
        known = self.samples.setdefault(key, deque())
        begin = at // self.level.step_s * self.level.step_s
        while known and known[-1].at > begin:
            known.pop()
        last = known[-1] if known else None
        if last is None or begin > last.at:
            known.append(Sample(begin, value, value, value))
            self._readings[key] = 1
        else:
            count = self._readings[key] = self._readings.get(key, 1) + 1
            mean = last.mean + (value - last.mean) / count
            known[-1] = Sample(begin, min(last.low, value), mean, max(last.high, value))
        while known[0].at < at - self.level.kept_s:
            known.popleft()
