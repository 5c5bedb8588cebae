"""The part that looks for drift and repairs it: looks and repairs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.mandate import Mandate
from hubguard.backends.port import Backends
from hubguard.drift.decide.follow import DriftPolicy
from hubguard.drift.looks import Looks
from hubguard.drift.model import Drift, DriftKind, DriftReport, RepairPlan
from hubguard.drift.observe import WorldObserver
from hubguard.drift.repairs import Limits, Repairs
from hubguard.drift.settings import HubGuardDrift
from hubguard.errors import HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.model import Key, Order
from hubguard.pacing.clock import Clock
from hubguard.proxy.table import ExpectedRoutes
from hubguard.snapshot.cycle import Snapshots

BEFORE_FIRST_S = 1.0
"""Seconds between asking whether a cycle has read the hub's servers. Before, nothing can differ from them."""

SOON = 6.0
SOONEST_S = 5.0
"""While something is suspected, HubGuard looks SOON times as often, but not more often than every SOONEST_S seconds."""


class DriftCycles:
    """Looks for drift, one look at a time, and carries out repairs, one plan at a time."""

    def __init__(
        self,
        settings: HubGuardDrift,
        limits: Limits,
        hub: HubAPI,
        observer: WorldObserver,
        backends: Backends | None,
        snapshots: Snapshots,
        mandate: Mandate,
        clock: Clock,
        chance: Callable[[], float],
        *,
        table: ExpectedRoutes,
    ) -> None:
        policy = DriftPolicy(
            sightings=settings.sightings,
            for_s=settings.for_s,
            clear_after=settings.clear_after,
            pending_limit_s=limits.pending_limit_s,
            every_s=settings.every_s,
        )
        kinds = [DriftKind(kind) for kind in settings.repair]
        self._every_s = settings.every_s
        self._snapshots = snapshots
        self._mandate = mandate
        self._clock = clock
        self._ready = False
        self._chance = chance
        self._watch = table.watch
        self._looks = Looks(observer, snapshots, table, clock, policy)
        self._repairs = Repairs(
            self._looks, hub, backends, snapshots, mandate, clock, chance, table.watch, kinds, limits
        )
        self._next_look_at: datetime | None = None

    @property
    def report(self) -> DriftReport | None:
        """What the last look found, with how repairs and the proxy are now; None before the first look."""
        report = self._looks.report
        if report is None:
            return None
        return replace(
            report,
            repaired=self._repairs.done,
            doubted=self._repairs.doubted,
            by_itself=tuple(kind for kind in DriftKind if kind in self._repairs.kinds),
            next_look_at=self._next_look_at,
            watch=self._watch(),
        )

    def begin_anew(self) -> None:
        """The next look first reads what the journal remembers: another guard may have looked since."""
        self._looks.begin_anew()

    @property
    def next_in_s(self) -> float:
        """Seconds until the next look: fewer while something is suspected, under repair, or raised and not seen now.

        Not while the hub doesn't answer: nothing would be decided.
        """
        every_s = self._every_s
        if (self._repairs.busy or self._looks.undecided) and self._looks.complete:
            every_s = min(every_s, max(SOONEST_S, every_s / SOON))
        return every_s * (0.9 + 0.2 * self._chance())

    async def look(self) -> DriftReport:
        """Look at all sources, and settle what an earlier guard left open. Raises HubGuardError if this guard may not act."""
        self._mandate.check()
        await self._looks.begin(self._mandate.journal)
        await self._repairs.settle_what_was_left()
        await self._looks.look(self._mandate.journal)
        report = self.report
        assert report is not None
        return report

    async def look_at(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        """The differences of these servers at this moment, or those of all routes if ``keys`` is empty."""
        return await self._looks.look_at(keys)

    async def close(self) -> None:
        """Give up what is under way. Its intents stay open, and the next look of any guard settles them."""
        await self._repairs.close()

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """Note the hub's report that a backend outlived its server's stop."""
        self._looks.note_outlived(user, server, detail)

    def plan(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """A plan for these raised differences, and for all of these kinds. Raises HubGuardError if one can't be repaired."""
        self._mandate.check()
        return self._repairs.plan(ids=ids, kinds=kinds)

    async def repair(self, digest: str, count: int, order: Order) -> RepairPlan:
        """Begin to carry out the plan of that digest. Raises HubGuardError with the reason if it isn't begun."""
        self._mandate.check()
        await self._mandate.refresh()
        if self._mandate.held:
            raise HubGuardError(f"{self._mandate.stance.sentence} Nothing was repaired; resume first.")
        brake = self._snapshots.brake
        if brake is not None and not self._repairs.only_routes(digest):
            raise HubGuardError(f"{brake.sentence} Nothing was repaired.")
        return self._repairs.begin(digest, count, order)

    # -- as a part of the guard -----------------------------------------------------------------------------------

    name = "drift"

    async def turn(self) -> None:
        """Look for drift, and begin what the policy repairs, once a cycle has read the hub's servers."""
        self._ready = self._snapshots.last is not None
        if self._ready:
            await self.look()
            if self._mandate.may_act(Order("hubguard")):
                self._repairs.begin_by_policy()

    async def wait(self) -> None:
        """Wait until the next look is due."""
        wait_s = BEFORE_FIRST_S
        if self._ready:
            wait_s = self.next_in_s
            self._next_look_at = self._clock.now() + timedelta(seconds=wait_s)
        self._ready = False
        await self._clock.sleep(wait_s)
