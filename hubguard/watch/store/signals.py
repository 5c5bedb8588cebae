"""Keeps the signals, in steps that grow with their age."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import sqlalchemy as sa

from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import one_at_a_time
from hubguard.journal.store import Journal
from hubguard.times import DAY_S, HOUR_S
from hubguard.watch.model import Sample

_signal = tables.signal


@dataclass(frozen=True, slots=True)
class Keep:
    """Samples of ``step_s`` seconds are kept for ``for_s``; None: as long as the settings say."""

    step_s: int
    for_s: float | None


KEPT = (Keep(10, 6 * HOUR_S), Keep(60, 2 * DAY_S), Keep(600, 35 * DAY_S), Keep(3600, None))
"""What is kept, finest first. A month of sixty signals takes some 25 MB."""

CHART_POINTS = 1500
"""Maximum steps on a chart: the finest step is taken with which its span has no more."""


def step_for(span_s: float, age_s: float) -> int:
    """The finest step that is kept ``age_s`` seconds back, and shows ``span_s`` in at most CHART_POINTS steps."""
    for keep in KEPT:
        if (keep.for_s is None or age_s <= keep.for_s) and span_s / keep.step_s <= CHART_POINTS:
            return keep.step_s
    return KEPT[-1].step_s


class SignalStore:
    """The signals. Every method raises JournalError when the database fails."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def keep_samples(self, step_s: int, steps: Mapping[float, Mapping[str, Sample]]) -> None:
        """The samples of these steps, by the unix time at which each begins, replace what was kept of the same steps."""
        if not steps:
            return
        times = {_moment(at): samples for at, samples in steps.items()}
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            same = sa.and_(_signal.c.step_s == step_s, _signal.c.at.in_(list(times)))
            connection.execute(sa.delete(_signal).where(same))
            rows = [{"step_s": step_s, "at": at, "samples": _text(samples)} for at, samples in times.items()]
            connection.execute(sa.insert(_signal), rows)

    def samples(
        self, step_s: int, since: datetime, until: datetime, keys: Collection[str] | None = None
    ) -> dict[str, tuple[Sample, ...]]:
        """The kept samples of ``step_s`` from ``since`` to ``until`` by key, oldest first; ``keys`` None: all.

        A key without any isn't in it. Rows that can't be read are left out.
        """
        query = (
            sa.select(_signal.c.at, _signal.c.samples)
            .where(_signal.c.step_s == step_s, _signal.c.at >= since, _signal.c.at <= until)
            .order_by(_signal.c.at)
        )
        by_key: dict[str, list[Sample]] = {}
        with self.journal.reading() as connection:
            for row in connection.execute(query):
                at = row.at.timestamp()
                for key, values in _values(row.samples, keys).items():
                    by_key.setdefault(key, []).append(Sample(at, *values))
        return {key: tuple(samples) for key, samples in by_key.items()}

    def forget_samples(self, now: datetime, keep_days: int) -> int:
        """What is older than it is kept for is gone; the number of steps."""
        gone = 0
        for keep in KEPT:
            before = now - timedelta(seconds=keep_days * DAY_S if keep.for_s is None else keep.for_s)
            old = sa.delete(_signal).where(_signal.c.step_s == keep.step_s, _signal.c.at < before)
            with self.journal.writing() as connection:
                gone += connection.execute(old).rowcount
        return gone


def _text(samples: Mapping[str, Sample]) -> str:
    """As JSON: a number for a sample whose three values are one, else a list. Five digits are more than a chart shows."""
    plain = {}
    for key, sample in samples.items():
        low, mean, high = (float(f"{value:.5g}") for value in (sample.low, sample.mean, sample.high))
        plain[key] = mean if low == high else [low, mean, high]
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)


def _values(text: str, keys: Collection[str] | None) -> dict[str, tuple[float, float, float]]:
    """What ``_text`` wrote of these ``keys``, None: of all."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    values: dict[str, tuple[float, float, float]] = {}
    if not isinstance(plain, dict):
        return values
    for key in plain if keys is None else [key for key in keys if key in plain]:
        value = plain[key]
        three = value if isinstance(value, list) else [value] * 3
        if len(three) == 3 and all(isinstance(number, (int, float)) and math.isfinite(number) for number in three):
            values[str(key)] = (float(three[0]), float(three[1]), float(three[2]))
    return values


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)


class AsyncSignals(AsyncStore[SignalStore]):
    """SignalStore, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, SignalStore)

    keep_samples = awaited(SignalStore.keep_samples)
    samples = awaited(SignalStore.samples)
    forget_samples = awaited(SignalStore.forget_samples)
