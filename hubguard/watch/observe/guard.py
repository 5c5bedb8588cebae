"""What HubGuard knows of itself, of the hub's servers and of the proxy anyway: reading it costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.model import SignalSource


@dataclass(frozen=True, slots=True)
class GuardNumbers:
    """What the parts of the guard know at one moment; None: unknown.

    ``budget_waited_s`` is the sum of what requests have waited since the guard started.
    """

    last_good_cycle_age_s: float | None = None
    error_share: float | None = None
    budget_waited_s: float | None = None
    drift_raised: int | None = None


class GuardReader:
    """Reads ``numbers``."""

    source = SignalSource.HUBGUARD
    every_s = OFTEN_S

    def __init__(self, numbers: Callable[[], GuardNumbers]) -> None:
        self._numbers = numbers

    async def read(self) -> Mapping[str, float]:
        """What is known."""
        numbers = self._numbers()
        values = {
            "last_good_cycle_age_seconds": numbers.last_good_cycle_age_s,
            "error_share": numbers.error_share,
            "drift_raised": numbers.drift_raised,
        }
        return {name: float(value) for name, value in values.items() if value is not None}

    async def close(self) -> None:
        """Nothing is open."""
