"""What watching costs: `python -m bench.watch [--days N] [--json]`.

*rules*: one evaluation of all default alerts over full histories. *store*: a month of all signals as the cycle keeps them, in
SQLite, and reading one signal's month for a chart. *chart*: laying that out. No hub is involved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hubguard.journal.store import open_journal
from hubguard.watch.decide.alert import Alerts, step
from hubguard.watch.decide.history import LEVELS, History
from hubguard.watch.decide.rules import RULES
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Sample, signal_key
from hubguard.watch.store.signals import KEPT, SignalStore, step_for

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
SUBJECTS = {"folder": ("/", "/home"), "cause": ("timeout", "throttled")}
GOALS = {"rules_ms": 5.0, "store_mb": 50.0, "chart_ms": 50.0}
"""Milliseconds and megabytes that are asked for."""


def keys() -> list[str]:
    """Every signal, for two subjects each if it has any."""
    made = []
    for signal in SIGNALS.values():
        made += [signal_key(signal.name, subject) for subject in SUBJECTS.get(signal.per, ("",))]
    return made


def value(key: str, at: float) -> float:
    """Some value that differs from step to step, and lets no alert fire for long."""
    return 0.3 + 0.2 * math.sin(at / 700 + len(key)) + (hash((key, int(at))) % 97) / 1000


def median_ms(work: Callable[[], object], times: int = 15) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def full_history() -> History:
    history, now = History(), NOW.timestamp()
    for level in LEVELS:
        steps = range(int(level.kept_s // level.step_s))
        history.restore(
            level.step_s,
            {
                key: [
                    Sample(now - level.step_s * i, *([value(key, now - level.step_s * i)] * 3)) for i in reversed(steps)
                ]
                for key in keys()
            },
        )
    return history


def rules_ms() -> float:
    history = full_history()
    alerts: Alerts = {}

    def evaluate() -> None:
        nonlocal alerts
        alerts, _ = step(RULES, alerts, history, NOW)

    evaluate()
    return median_ms(evaluate)


def store(days: int) -> tuple[float, float]:
    """(MB of the file after ``days``, ms to read one signal's whole time for a chart)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "journal.sqlite"
        journal = open_journal(f"sqlite:///{file}")
        empty = os.path.getsize(file)
        signals = SignalStore(journal)
        names, end = keys(), NOW.timestamp()
        for keep in KEPT:
            span_s = min(days * 86400.0, keep.for_s or math.inf)
            times = [end - keep.step_s * i for i in range(int(span_s // keep.step_s))]
            for start in range(0, len(times), 500):
                steps = {}
                for at in times[start : start + 500]:
                    steps[at] = {
                        key: Sample(at, value(key, at) * 0.9, value(key, at), value(key, at) * 1.1) for key in names
                    }
                signals.keep_samples(keep.step_s, steps)
        span_s = days * 86400.0
        step_s, since = step_for(span_s, span_s), NOW - timedelta(seconds=span_s)
        read = median_ms(lambda: signals.samples(step_s, since, NOW, {"hub_latency_seconds"}))
        size = (os.path.getsize(file) - empty) / 1e6
        journal.close()
        return size, read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size, read = store(arguments.days)
    found = {"rules_ms": rules_ms(), "store_mb": size, "chart_ms": read}
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, figure in found.items():
            print(f"{name}: {figure:.2f}, {figure / GOALS[name]:.2f} of the goal of {GOALS[name]:g}")
    return int(any(figure > GOALS[name] for name, figure in found.items()))


if __name__ == "__main__":
    sys.exit(main())
