"""The port to what is measured: a reader for each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hubguard.errors import HubGuardError
from hubguard.watch.model import SignalSource


class SourceUnavailable(HubGuardError):
    """The source can't be read now. The message is one sentence."""


class NotSetUp(HubGuardError):
    """The source isn't there to be read. The message says in one sentence how to set it up."""


class Reader(Protocol):
    """Reads the signals of one source."""

    @property
    def source(self) -> SignalSource:
        """Which one."""
        ...

    @property
    def every_s(self) -> float:
        """Seconds between two readings."""
        ...

    async def read(self) -> Mapping[str, float]:
        """What can be read now, by key; an unknown signal has no key, and no signal is 0 because it is unknown.

        That the hub or the proxy is down is a value, not an error. Rates and shares are those since the reading before,
        and missing in the first one. Raises SourceUnavailable, NotSetUp, and HubGuardError of the clients that it uses.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
