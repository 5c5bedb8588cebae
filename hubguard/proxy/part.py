"""The proxy watch as a part of the guard."""

from __future__ import annotations

import asyncio

from hubguard.act.mandate import Mandate
from hubguard.model import Action, ActionKind, Order, Outcome
from hubguard.pacing.clock import Clock
from hubguard.proxy.cycle import ProxyWatch

REASON = "route-missing"
"""The reason in the journal: drift's word for it."""

LEASE_EVERY_S = 1.0
"""Seconds between asking whether this guard still holds the lease."""


class Watching:
    """Runs ``watch`` while this guard holds the lease: the guards of a hub have one canary between them."""

    name = "the proxy watch"

    def __init__(self, watch: ProxyWatch, mandate: Mandate, clock: Clock) -> None:
        self._watch = watch
        self._mandate = mandate
        self._clock = clock

    def begin_anew(self) -> None:
        """Nothing is remembered from one lease to the next."""

    async def turn(self) -> None:
        """Watch until the lease is lost."""
        watching = asyncio.ensure_future(self._watch.run())
        try:
            while self._mandate.holds_lease and not watching.done():
                await self._clock.sleep(LEASE_EVERY_S)
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended

    async def wait(self) -> None:
        """Wait until the lease is looked at again."""
        await self._clock.sleep(LEASE_EVERY_S)

    async def close(self) -> None:
        """Nothing is under way beside a turn."""


class Restores:
    """Asks the mandate, and writes intent and outcome. ``wanted``: the settings want missing routes repaired unasked."""

    def __init__(self, mandate: Mandate, *, wanted: bool) -> None:
        self._mandate = mandate
        self._wanted = wanted
        self._intent: int | None = None

    def may_act(self) -> bool:
        """Whether the hub may be asked now."""
        return self._wanted and self._mandate.may_act(Order("hubguard"))

    async def record(self, what: str, outcome: Outcome | None) -> None:
        """Journal that the hub is about to fill the table, or with ``outcome`` what came of it.

        Raises LeaseLost, ActingRefused or JournalError; then nothing may be sent.
        """
        intent, self._intent = self._intent, None
        if outcome is None:
            if intent is not None:
                self._mandate.release(intent)
            action = Action("", "", None, None, REASON, kind=ActionKind.CHECK_ROUTES)
            self._intent = await self._mandate.intend(action, Order("hubguard"), what)
        elif intent is not None:
            try:
                await self._mandate.settle(intent, outcome)
            finally:
                self._mandate.release(intent)
