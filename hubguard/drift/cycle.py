"""The part that looks for drift and repairs it: looks and repairs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from hubguard.act.lease import LeaseKeeper
from hubguard.backends.port import Backends
from hubguard.drift.decide.follow import DriftPolicy
from hubguard.drift.looks import Looks
from hubguard.drift.model import Drift, DriftKind, DriftReport, RepairPlan
from hubguard.drift.observe import WorldObserver
from hubguard.drift.repairs import Limits, Repairs
from hubguard.drift.settings import HubGuardDrift
from hubguard.hub.api import HubAPI
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.model import Action, ActionKind, Key, Outcome
from hubguard.pacing.clock import Clock
from hubguard.proxy.model import ProxyWatchStatus
from hubguard.proxy.table import ExpectedRoutes
from hubguard.snapshot.cycle import Snapshots

SOON = 6.0
SOONEST_S = 5.0
"""While something is suspected, HubGuard looks SOON times as often, but not more often than every SOONEST_S seconds."""


class DriftCycles:
    """Looks for drift, one look at a time, and carries out repairs, one plan at a time.

    ``watch`` returns how the proxy is.
    """

    def __init__(
        self,
        settings: HubGuardDrift,
        limits: Limits,
        hub: HubAPI,
        observer: WorldObserver,
        backends: Backends | None,
        snapshots: Snapshots,
        clock: Clock,
        chance: Callable[[], float],
        *,
        table: ExpectedRoutes,
        watch: Callable[[], ProxyWatchStatus] = ProxyWatchStatus,
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
        self._chance = chance
        self._watch = watch
        self._looks = Looks(observer, snapshots, table, clock, policy)
        self._repairs = Repairs(self._looks, hub, backends, snapshots, clock, chance, watch, kinds, limits)
        self._next_look_at: datetime | None = None
        self._restoring: frozenset[int] = frozenset()

    @property
    def report(self) -> DriftReport | None:
        """What the last look found, with how repairs and the proxy are now; None before the first look."""
        found = self._looks.report
        if found is None:
            return None
        return replace(
            found,
            repaired=self._repairs.done,
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

    def looks_next(self, at: datetime) -> None:
        """The report says when the next look comes."""
        self._next_look_at = at

    def under_way(self) -> frozenset[int]:
        """The ids of the intents that are being carried out."""
        return self._repairs.under_way() | self._restoring

    async def look(self, journal: AsyncJournal, keeper: LeaseKeeper) -> DriftReport:
        """Look at all sources, and settle what an earlier guard left open. Raises JournalError."""
        await self._looks.begin(journal)
        await self._repairs.settle_what_was_left(journal, keeper)
        await self._looks.look(journal)
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
        return self._repairs.plan(ids=ids, kinds=kinds)

    def only_routes(self, digest: str) -> bool:
        """Whether the plan of that digest only has the hub check its routes."""
        return self._repairs.only_routes(digest)

    def repair(
        self,
        journal: AsyncJournal,
        keeper: LeaseKeeper,
        digest: str,
        count: int,
        actor: str,
        why: str,
        *,
        armed: bool | None,
    ) -> RepairPlan:
        """Begin to carry out the plan of that digest. The caller has checked hold and brake. Raises HubGuardError."""
        return self._repairs.begin(journal, keeper, digest, count, actor, why, armed=armed)

    def repair_by_itself(self, journal: AsyncJournal, keeper: LeaseKeeper, *, armed: bool | None) -> None:
        """Begin what the policy repairs without being asked, except what is backing off."""
        self._repairs.begin_by_policy(journal, keeper, armed=armed)

    async def record_restore(
        self, journal: AsyncJournal, keeper: LeaseKeeper, what: str, outcome: Outcome | None, *, armed: bool | None
    ) -> None:
        """Journal that the hub is about to fill the proxy's lost table again, or with ``outcome`` what came of it.

        Raises LeaseLost, ActingRefused or JournalError; then nothing may be sent.
        """
        if outcome is None:
            action = Action("", "", None, None, DriftKind.ROUTE_MISSING, kind=ActionKind.CHECK_ROUTES)
            intent = await keeper.intend(action, "hubguard", asked=False, armed=armed, detail=what)
            self._restoring = frozenset({intent})
            return
        restoring, self._restoring = self._restoring, frozenset()
        for intent in restoring:
            await keeper.settle(intent, outcome)
