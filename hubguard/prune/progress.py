"""How far plans have come, in this guard's life: counted for status and metrics, and how fast the plan under way goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from hubguard.model import Outcome, OutcomeKind, Tally
from hubguard.pacing.clock import Clock
from hubguard.prune.model import PruneRun, PruneState

RATE_OVER_S = 60.0
"""Seconds over which the rate of a plan is measured."""


class Progress:
    """Counts how users of plans are settled. ``on_deleted`` is called for each that was deleted.

    ``tally`` counts outcomes in this guard's life, ``waiting`` users of the plans under way whose turn hasn't come.
    """

    def __init__(self, clock: Clock, on_deleted: Callable[[], None]) -> None:
        self.tally = Tally()
        self.waiting = 0
        self.digest = ""
        self._clock = clock
        self._on_deleted = on_deleted
        self._settled_at_s: deque[float] = deque()

    def begin(self, run: PruneRun) -> None:
        """``run`` is what is carried out from now on."""
        self._settled_at_s.clear()
        self.digest = run.digest
        self.waiting = run.count - run.settled

    def count(self, outcome: Outcome) -> None:
        """A user of a plan is settled."""
        self._settled_at_s.append(self._clock.monotonic_s())
        self.waiting = max(0, self.waiting - 1)
        self.tally = replace(self.tally, **{outcome.kind.value: getattr(self.tally, outcome.kind.value) + 1})
        if outcome.kind is OutcomeKind.DONE:
            self._on_deleted()

    def with_pace(self, run: PruneRun) -> PruneRun:
        """``run`` with its rate and the time left, if this guard is carrying it out."""
        if run.state is not PruneState.RUNNING or run.digest != self.digest:
            return run
        now_s = self._clock.monotonic_s()
        while self._settled_at_s and self._settled_at_s[0] < now_s - RATE_OVER_S:
            self._settled_at_s.popleft()
        if len(self._settled_at_s) < 2:
            return run
        per_s = len(self._settled_at_s) / max(1.0, now_s - self._settled_at_s[0])
        return replace(run, per_s=per_s, left_s=(run.count - run.settled) / per_s)
