"""The guard: keeps the lease, and its parts running while it holds it."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Protocol

from hubguard.act.mandate import Mandate
from hubguard.config import Settings
from hubguard.cull.model import CycleReport
from hubguard.cull.part import Culling
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.model import DriftKind, DriftReport, RepairPlan
from hubguard.errors import HubGuardError, JournalError
from hubguard.hub.facts import HubFacts
from hubguard.journal.model import Entry, Event, Exemption
from hubguard.model import Order
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.proxy.part import Watching
from hubguard.prune.cycle import PruneCycles
from hubguard.snapshot.cycle import Snapshots
from hubguard.status import Mode, Status

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


class Guard:
    """The guard of one hub. ``parts`` are kept running while it holds the lease; they start in this order.

    ``drifts`` and ``watching`` are None if this guard doesn't look for drift or has no canary.
    """

    def __init__(
        self,
        settings: Settings,
        mandate: Mandate,
        snapshots: Snapshots,
        culling: Culling,
        drifts: DriftCycles | None,
        watching: Watching | None,
        pruning: PruneCycles,
        facts: HubFacts,
        budget: Budget,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.mandate = mandate
        self.snapshots = snapshots
        self.culling = culling
        self.drifts = drifts
        self.watching = watching
        self.pruning = pruning
        self.parts: tuple[Part, ...] = tuple(part for part in (culling, drifts, watching, pruning) if part is not None)
        self._facts = facts
        self._budget = budget
        self._clock = clock
        self._started_at = clock.now()

    @property
    def superseded(self) -> asyncio.Event:
        """Set when the guard of a newer hub has taken over."""
        return self.mandate.superseded

    # -- living ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the lease and the parts running until cancelled; then give up the lease and close the journal.

        With wrong settings, only open the journal, so that pages can show it.
        """
        try:
            await asyncio.gather(self._keep_lease(), *map(self._keep_running, self.parts))
        finally:
            await self._end()

    async def once(
        self,
        asked_by: str,
        *,
        dry_run: bool = False,
        idle_timeout_s: float | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        """One cycle in place of :meth:`run`, under a lease that is taken for it and given up afterwards.

        Raises HubGuardError, with the holder's name if another guard holds the lease.
        """
        try:
            await self.mandate.open()
            await self._keep_lease_once()
            keeping = asyncio.ensure_future(self._keep_lease())
            try:
                return await self.culling.cycle(
                    asked_by, dry_run=dry_run, idle_timeout_s=idle_timeout_s, rate=rate, concurrency=concurrency
                )
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        finally:
            await self._end()

    async def _end(self) -> None:
        for part in reversed(self.parts):
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
            for part in self.parts:
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

    # -- what people set and ask ----------------------------------------------------------------------------------

    async def cycle(
        self,
        asked_by: str,
        *,
        dry_run: bool = False,
        idle_timeout_s: float | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        """See GuardPort."""
        return await self.culling.cycle(
            asked_by, dry_run=dry_run, idle_timeout_s=idle_timeout_s, rate=rate, concurrency=concurrency
        )

    async def arm(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self.mandate.arm(actor, why)
        self.culling.wake()

    async def observe(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self.mandate.observe(actor, why)

    async def hold(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self.mandate.hold(actor, why)

    async def resume(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self.mandate.resume(actor, why)
        self.culling.wake()

    async def exempt(self, actor: str, why: str, *, user: str, server: str | None, until: datetime) -> Exemption:
        """See GuardPort."""
        return await self.culling.exempt(actor, why, user=user, server=server, until=until)

    async def end_exemption(self, exemption_id: int, actor: str, why: str) -> Exemption:
        """See GuardPort."""
        return await self.culling.end_exemption(exemption_id, actor, why)

    async def exemptions(self, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        """See GuardPort."""
        return await self.culling.exemptions(user=user, ended=ended)

    async def entries(
        self,
        *,
        before_id: int | None = None,
        limit: int = 100,
        user: str | None = None,
        server: str | None = None,
        event: Event | None = None,
    ) -> tuple[Entry, ...]:
        """See GuardPort."""
        return await self.mandate.journal.entries(
            before_id=before_id, limit=limit, user=user, server=server, event=event
        )

    def status(self) -> Status:
        """See GuardPort."""
        mode, why = self._mode()
        mandate, cycles, snapshots = self.mandate, self.culling.cycles, self.snapshots
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
            last_cycle=cycles.last,
            last_good_cycle_at=cycles.last_good_at,
            next_cycle_at=self.culling.next_at,
            errors=self.settings.errors,
            notes=self._facts.notes,
            budget=self._budget.use(),
            armed=mandate.armed,
            brake=snapshots.brake,
            clock_from=snapshots.clock_from,
            tally=cycles.tally,
            recent=cycles.recent,
            oldest_overdue=cycles.oldest_overdue,
            findings=cycles.findings + snapshots.findings + self.pruning.findings,
            pruned=self.pruning.tally,
            prune_waiting=self.pruning.waiting,
        )

    def drift(self) -> DriftReport | None:
        """See GuardPort."""
        return None if self.drifts is None else self.drifts.report

    async def look_for_drift(self) -> DriftReport:
        """See GuardPort."""
        return await self._looking().look()

    def plan_repairs(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """See GuardPort."""
        return self._looking().plan(ids=ids, kinds=kinds)

    async def repair(self, digest: str, count: int, actor: str, why: str) -> RepairPlan:
        """See GuardPort."""
        return await self._looking().repair(digest, count, Order(actor, why, asked=True))

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """See GuardPort."""
        if self.drifts is not None:
            self.drifts.tell_outlived(user, server, detail)

    def _looking(self) -> DriftCycles:
        if self.drifts is None:
            raise HubGuardError("This guard doesn't look for drift: it runs one cycle only.")
        return self.drifts

    def _mode(self) -> tuple[Mode, str]:
        mandate, brake = self.mandate, self.snapshots.brake
        if self.settings.errors:
            return Mode.TROUBLED, f"A setting is wrong, so nothing is done. {self.settings.errors[0]}"
        if mandate.trouble:
            return Mode.TROUBLED, f"The journal can't be used, so nothing is done. {mandate.trouble}"
        if mandate.lease is None:
            return Mode.STARTING, "HubGuard is starting: its journal is being opened."
        if not mandate.holds_lease:
            return Mode.STANDBY, mandate.why_standby
        if mandate.held:
            return Mode.HELD, mandate.stance.sentence
        if self.culling.cycles.last is None:
            return Mode.STARTING, "HubGuard is starting: the hub's servers are being read for the first time."
        if brake is not None:
            return Mode.BRAKED, brake.sentence
        if mandate.armed:
            return Mode.ACTING, "Servers that are due are stopped."
        return Mode.OBSERVING, f"Nothing is stopped: {mandate.why_observing}."
