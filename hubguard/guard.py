"""The guard: keeps the lease, and its parts running while it holds it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, fields
from typing import Protocol

from hubguard.act.mandate import Mandate
from hubguard.config import Settings
from hubguard.cull.model import CycleReport, Wish
from hubguard.cull.part import Culling
from hubguard.drift.cycle import DriftCycles
from hubguard.errors import HubGuardError, JournalError
from hubguard.handover import HandingOver
from hubguard.hub.facts import HubFacts
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.proxy.part import Watching
from hubguard.prune.cycle import PruneCycles
from hubguard.snapshot.cycle import Snapshots
from hubguard.status import Mode, Status
from hubguard.watch.cycle import Watch
from hubguard.watch.notify.queue import Notices

log = logging.getLogger(__name__)

REOPEN_S = 5.0
"""Seconds between two tries to open a journal that couldn't be used."""


class Part(Protocol):
    """What the guard keeps running while it holds the lease: a turn, then a wait, again and again."""

    @property
    def name(self) -> str:
        """For the log."""

    async def turn(self) -> None:
        """Do what is due. Raises HubGuardError if that can't be done now."""

    async def wait(self) -> None:
        """Wait until the next turn is due."""

    def begin_anew(self) -> None:
        """This guard has the lease again: another guard may have acted since."""

    async def close(self) -> None:
        """Give up what is under way beside a turn."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a guard, in the order in which they start.

    ``drifts``, ``proxy`` and ``watch`` are None if this guard doesn't look for drift, has no canary, or doesn't watch,
    ``notices`` if nobody is notified.
    """

    culling: Culling
    drifts: DriftCycles | None
    proxy: Watching | None
    pruning: PruneCycles
    watch: Watch | None
    notices: Notices | None = None

    def there(self) -> tuple[Part, ...]:
        """Those that this guard has."""
        return tuple(part for field in fields(self) if (part := getattr(self, field.name)) is not None)


class Guard:
    """The guard of one hub, which keeps its ``parts`` running while it holds the lease."""

    def __init__(
        self,
        settings: Settings,
        mandate: Mandate,
        snapshots: Snapshots,
        parts: Parts,
        facts: HubFacts,
        budget: Budget,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.mandate = mandate
        self.snapshots = snapshots
        self.parts = parts
        self._facts = facts
        self._handing_over = HandingOver(settings, mandate, parts.culling.cycles, facts, clock)
        self._budget = budget
        self._clock = clock
        self._started_at = clock.now()

    # -- living ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the lease and the parts running until cancelled; then give up the lease and close the journal.

        With wrong settings, only open the journal, so that pages can show it.
        """
        try:
            await asyncio.gather(
                self._keep_lease(), self._handing_over.run(), *map(self._keep_running, self.parts.there())
            )
        finally:
            await self._end()

    async def once(self, asked_by: str, wish: Wish) -> CycleReport:
        """One cycle in place of :meth:`run`, under a lease that is taken for it and given up afterwards.

        Raises HubGuardError, with the holder's name if another guard holds the lease.
        """
        try:
            await self.mandate.open()
            await self._keep_lease_once()
            keeping = asyncio.ensure_future(self._keep_lease())
            try:
                return await self.parts.culling.cycle(asked_by, wish)
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        finally:
            await self._end()

    async def _end(self) -> None:
        for part in reversed(self.parts.there()):
            await part.close()
        await self.mandate.close()

    async def _keep_lease(self) -> None:
        while True:
            wait_s = self.settings.guard.lease_s / 3
            try:
                await self.mandate.open()
                if not self.settings.errors:
                    await self._keep_lease_once()
                    if self.snapshots.begun and self.mandate.holds_lease:
                        # What the budget has learned outlives a guard that is killed in its first cycle.
                        await self.snapshots.remember_pace(self.mandate.journal)
                self.mandate.note_trouble(None)
            except JournalError as error:
                self.mandate.note_trouble(error)
                wait_s = min(wait_s, REOPEN_S)
            await self._clock.sleep(wait_s)

    async def _keep_lease_once(self) -> None:
        if await self.mandate.keep_lease():
            for part in self.parts.there():
                part.begin_anew()

    async def _keep_running(self, part: Part) -> None:
        while True:
            if self.mandate.holds_lease and not self.settings.errors:
                try:
                    await part.turn()
                except HubGuardError as error:
                    log.warning("No turn of %s: %s", part.name, error)
                except Exception:
                    log.exception(
                        "Unexpected error in %s (a bug in HubGuard). It continues with its next turn.", part.name
                    )
            await part.wait()

    def status(self) -> Status:
        """What the guard knows of itself now. Never blocks, never raises."""
        mode, why = self._mode()
        mandate, snapshots = self.mandate, self.snapshots
        return Status(
            at=self._clock.now(),
            mode=mode,
            why=why,
            stance=mandate.stance,
            started_at=self._started_at,
            holder=mandate.holder,
            lease=mandate.lease,
            holds_lease=mandate.holds_lease,
            hub_version=self._facts.version,
            errors=self.settings.errors,
            notes=(*self._facts.notes, *filter(None, [self._handing_over.note])),
            budget=self._budget.use(),
            armed=mandate.armed,
            armed_by_settings=mandate.by_settings,
            brake=snapshots.brake,
            clock_from=snapshots.clock_from,
            findings=snapshots.findings,
            handover=self._handing_over.status(mode, why),
        )

    def _mode(self) -> tuple[Mode, str]:
        mandate, brake = self.mandate, self.snapshots.brake
        if self.settings.errors:
            return Mode.TROUBLED, f"HubGuard takes no action until a setting is corrected. {self.settings.errors[0]}"
        if mandate.trouble:
            return Mode.TROUBLED, f"HubGuard takes no action: its journal isn't available. {mandate.trouble}"
        if mandate.lease is None:
            return Mode.STARTING, "HubGuard is starting and opens its journal."
        if not mandate.holds_lease:
            return Mode.STANDBY, mandate.why_standby
        if mandate.held:
            return Mode.HELD, mandate.stance.sentence
        if self.snapshots.last is None:
            return Mode.STARTING, "HubGuard is starting and reads the hub's servers for the first time."
        if brake is not None:
            return Mode.BRAKED, brake.sentence
        if mandate.armed:
            return Mode.ACTING, "HubGuard stops servers that are due."
        return Mode.OBSERVING, f"HubGuard stops nothing: {mandate.why_observing}."
