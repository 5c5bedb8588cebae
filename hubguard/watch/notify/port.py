"""What a receiver of notices is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hubguard.watch.decide.message import Message
from hubguard.watch.decide.notice import Result, Together


class Receiver(Protocol):
    """One that is notified."""

    @property
    def together(self) -> Together:
        """What it takes in one request."""

    @property
    def spacing_s(self) -> float:
        """Seconds between two requests."""

    @property
    def repeat_s(self) -> float | None:
        """Seconds between two reminders of an alert that lasts; None if it remembers by itself."""

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it. Raises nothing for what the network or the receiver does."""

    async def close(self) -> None:
        """Close its connections."""
