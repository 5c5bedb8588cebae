"""The port to time and waiting. Tests pass a clock of their own; everything that waits takes one."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """Knows the time and waits."""

    def now(self) -> datetime:
        """Wall-clock time, UTC-aware. May jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever grow, from some start."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` (0 and less: after giving others a turn)."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall-clock time, UTC-aware."""
        return datetime.now(timezone.utc)

    def monotonic_s(self) -> float:
        """The system's monotonic clock, in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(max(0.0, seconds))
