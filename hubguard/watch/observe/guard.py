"""What the parts of the guard know anyway, of HubGuard itself, of the proxy and of what runs: reading it costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hubguard.pacing.clock import Clock
from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import NotSetUp

Numbers = Callable[[], Mapping[str, float | None] | str]
"""What is known now by key, None for what is unknown; or a sentence on why there is nothing to be known."""


class GuardReader:
    """Reads ``numbers``.

    A key of ``rates`` is a sum that only grows, and becomes the signal beside it, its rise in a minute. One of ``changes`` is
    the moment of a start, and becomes the number of times that it was seen to change.
    """

    every_s = OFTEN_S

    def __init__(
        self,
        source: SignalSource,
        numbers: Numbers,
        clock: Clock,
        *,
        rates: Mapping[str, str] | None = None,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self._numbers = numbers
        self._clock = clock
        self._rates = rates or {}
        self._changes = changes or {}
        self._before: dict[str, tuple[float, float]] = {}
        self._changed: dict[str, int] = {}

    async def read(self) -> Mapping[str, float]:
        """What is known. Raises NotSetUp with that sentence."""
        numbers = self._numbers()
        if isinstance(numbers, str):
            raise NotSetUp(numbers)
        now_s, values = self._clock.monotonic_s(), dict[str, float]()
        for name, value in numbers.items():
            if value is None:
                continue
            before = self._before.get(name)
            if name in self._rates:
                if before is not None and now_s > before[1] and value >= before[0]:
                    values[self._rates[name]] = (value - before[0]) * 60 / (now_s - before[1])
            elif name in self._changes:
                self._changed[name] = self._changed.get(name, 0) + (before is not None and before[0] != value)
                values[self._changes[name]] = float(self._changed[name])
            else:
                values[name] = float(value)
            self._before[name] = float(value), now_s
        return values

    async def close(self) -> None:
        """Nothing is open."""
