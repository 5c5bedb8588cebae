"""Whether the hub answers, how long it takes, and how many users it has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hubguard.errors import BudgetExhausted, HubBusy, HubError, HubGarbled, HubRefused
from hubguard.hub.api import HubAPI
from hubguard.pacing.clock import Clock
from hubguard.watch.decide.signals import OFTEN_S
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.port import SourceUnavailable

SILENT_S = 5.0
"""Seconds after which a hub that says nothing counts as down: less than a source has to be read in."""

USERS_EVERY = 6
"""Readings between two counts of the users: that costs the hub a query."""


class HubReader:
    """Asks the hub whose token ours is: a small request that reads its database, as every user's does."""

    source = SignalSource.HUB
    every_s = OFTEN_S

    def __init__(self, hub: HubAPI, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._readings = 0
        self._down = False

    async def read(self) -> Mapping[str, float]:
        """A hub that refuses or answers nonsense is up; one that doesn't answer in time, or fails, isn't.

        One that was down stays down while the breaker keeps requests away from it: a harmless request that finds out whether
        it answers again is one of ours.
        """
        began_s = self._clock.monotonic_s()
        try:
            await asyncio.wait_for(self._hub.whoami(), SILENT_S)
        except BudgetExhausted as error:
            if self._down:
                return {"hub_up": 0.0}
            raise SourceUnavailable(f"Nothing was sent to the hub: {error}") from None
        except (HubRefused, HubGarbled, HubBusy) as error:
            self._down = False
            raise SourceUnavailable(f"The hub answers, but not this: {error}") from None
        except (HubError, asyncio.TimeoutError):
            self._down = True
            return {"hub_up": 0.0}
        self._down = False
        values = {"hub_up": 1.0, "hub_latency_seconds": self._clock.monotonic_s() - began_s}
        if self._readings % USERS_EVERY == 0:
            try:
                values["users_total"] = float(await self._hub.count_users())
            except (HubError, BudgetExhausted):
                pass  # the hub is up, and how many users it has is unknown
        self._readings += 1
        return values

    async def close(self) -> None:
        """The hub's client isn't ours to close."""
