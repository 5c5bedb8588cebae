"""The guard: keeps the lease, runs one cycle after another, and answers what people ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.lease import LeaseKeeper
from hubguard.backends.port import Backends
from hubguard.config import Settings
from hubguard.cull.cycle import Cycles, caution_of
from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.hook import Hook, Hooked
from hubguard.cull.model import CycleReport
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.model import DriftKind, DriftReport, RepairPlan
from hubguard.drift.observe import WorldObserver
from hubguard.drift.repairs import Limits
from hubguard.errors import HubGuardError, JournalError
from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Event, Exemption, Stance
from hubguard.model import Outcome
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import cycle_in_s
from hubguard.proxy.canary import Canary
from hubguard.proxy.client import ProxyAPI
from hubguard.proxy.cycle import ProxyWatch
from hubguard.proxy.model import ProxyWatchStatus
from hubguard.proxy.table import ExpectedRoutes
from hubguard.prune.cycle import PruneCycles
from hubguard.prune.review import HubConfigFacts
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.observe import Observer
from hubguard.status import Mode, Status

log = logging.getLogger(__name__)

REOPEN_S = 5.0
"""Between two tries to open a journal that couldn't be used."""

BEFORE_FIRST_S = 1.0
"""Before the first cycle has seen the hub, nothing can drift from it: looked after so often."""

LEARN_S = 600.0
"""How long what the hub said of its version and of our scopes counts: an upgraded hub or a mended role shows by then."""


class Guard:
    """The guard of one hub: keeps the lease, runs the cycles, and answers what pages, API and CLI ask (GuardPort).

    ``chance`` gives numbers in
    [0, 1). ``observe_only`` is why this guard must not act by itself whatever people set (another culler at work), or "".
    ``took_over`` names the idle culler whose place it takes, or "". ``notes`` go to the Overview as they are.
    ``features`` tells for each hub scope what needs it: what our token lacks of them becomes a note. ``database`` and
    ``proxy`` are None where they can't be read, ``hook`` where the operator has none.
    ``world`` looks for drift, with ``backends`` where those can be told of; without it none is looked for. ``canary`` is the
    route of our own by which a proxy is watched, None where it isn't.
    ``hub_checks_at_s`` is a moment (unix time) at which the hub itself checks its routes, None where that isn't known.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        budget: Budget,
        journal: AsyncJournal,
        clock: Clock,
        chance: Callable[[], float],
        *,
        holder: str,
        address: str,
        generation: float,
        observe_only: str = "",
        took_over: str = "",
        notes: tuple[str, ...] = (),
        features: Mapping[str, str] | None = None,
        database: HubDB | None = None,
        proxy: ProxyAPI | None = None,
        hook: Hook | None = None,
        hub_checks_at_s: float | None = None,
        world: WorldObserver | None = None,
        backends: Backends | None = None,
        canary: Canary | None = None,
        told: HubConfigFacts | None = None,
    ) -> None:
        self.settings = settings
        self._hub_checks_at_s = hub_checks_at_s
        self._watch: ProxyWatch | None = None
        observer = Observer(hub, clock, database=database, proxy=proxy)
        self._snapshots = Snapshots(
            hub,
            budget,
            observer,
            clock,
            caution_of(settings),
            generation=generation,
            journal_days=settings.guard.journal_days,
            under_way=self._under_way,
            restores=lambda: self._watch.restores if self._watch is not None else (),
        )
        self._cycles = Cycles(
            settings,
            hub,
            budget,
            self._snapshots,
            observer,
            clock,
            hook=Hooked(hook) if hook is not None else None,
        )
        self._drifts: DriftCycles | None = None
        if world is not None:
            table = ExpectedRoutes(lambda: self._watch_status().state)
            limits = Limits(
                pending_limit_s=settings.cull.pending_limit_s,
                concurrency=settings.budget.concurrency,
                verify_s=settings.cull.verify_s,
                retry_base_s=settings.cull.retry_base_s,
                retry_max_s=settings.cull.retry_max_s,
            )
            self._drifts = DriftCycles(
                settings.drift,
                limits,
                hub,
                world,
                backends,
                self._snapshots,
                clock,
                chance,
                table=table,
                watch=self._watch_status,
            )
            if canary is not None and proxy is not None and not settings.errors:
                self._watch = ProxyWatch(
                    canary,
                    proxy,
                    hub,
                    budget,
                    clock,
                    expected=table.expected,
                    may_act=self._may_restore,
                    record=self._record_restore,
                )
        self._pruning = PruneCycles(
            settings.prune,
            hub,
            database,
            self._snapshots,
            clock,
            chance,
            journal=journal,
            keeper=self._acting_keeper,
            armed=self._armed_by_settings,
            acting=self._armed,
            facts=told,
            concurrency=settings.budget.concurrency,
            verify_s=settings.cull.verify_s,
            journal_days=settings.guard.journal_days,
        )
        self.policy = self._cycles.policy
        self.superseded = asyncio.Event()
        self._hub = hub
        self._budget = budget
        self._journal = journal
        self._clock = clock
        self._chance = chance
        self._holder, self._address, self._generation = holder, address, generation
        self._observe_only = observe_only
        self._took_over = took_over
        self._notes = notes
        self._features = features or {}
        self._scope_notes: tuple[str, ...] = ()
        self._keeper: LeaseKeeper | None = None
        self._trouble = ""
        self._stance = Stance()
        self._hub_version: str | None = None
        self._next_at: datetime | None = None
        self._started_at = clock.now()
        self._soon = asyncio.Event()
        self._learned_at: datetime | None = None

    # -- living ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the lease and run cycles until cancelled; then the lease is given up and the journal closed.

        With wrong settings it opens the journal, so that pages can show it, and does nothing else.
        """
        try:
            await asyncio.gather(
                self._keep_lease(), self._run_cycles(), self._run_drift(), self._run_watch(), self._run_pruning()
            )
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

        Raises HubGuardError, with the holder's name where another guard holds the lease.
        """
        try:
            await self._open()
            await self._keep_lease_once()
            keeping = asyncio.ensure_future(self._keep_lease())
            try:
                return await self.cycle(
                    asked_by, dry_run=dry_run, idle_timeout_s=idle_timeout_s, rate=rate, concurrency=concurrency
                )
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        finally:
            await self._end()

    async def _end(self) -> None:
        await self._pruning.close()
        if self._drifts is not None:
            await self._drifts.close()
        if self._keeper is not None:
            await self._keeper.give_up()
        self._journal.close()

    async def _keep_lease(self) -> None:
        while True:
            wait_s = self.settings.guard.lease_s / 3
            try:
                await self._open()
                if not self.settings.errors:
                    await self._keep_lease_once()
                    await self._remember()
                self._trouble = ""
            except JournalError as error:
                if str(error) != self._trouble:
                    log.error("%s", error)
                self._trouble = str(error)
                wait_s = min(wait_s, REOPEN_S)
            await self._clock.sleep(wait_s)

    async def _open(self) -> None:
        """The journal is open, and the stance is as it has it. Raises JournalError."""
        await self._journal.open()
        if self._keeper is None:
            self._keeper = LeaseKeeper(
                self._journal,
                self._clock,
                holder=self._holder,
                address=self._address,
                generation=self._generation,
                lease_s=self.settings.guard.lease_s,
            )
        self._stance = await self._journal.stance()

    async def _remember(self) -> None:
        """What the budget has learned outlives even a guard that is killed in the midst of its first cycle."""
        if self._snapshots.begun and self._keeper is not None and self._keeper.lease is not None:
            await self._snapshots.remember_pace(self._journal)

    async def _keep_lease_once(self) -> None:
        assert self._keeper is not None
        held_before = self._keeper.lease is not None
        holds = await self._keeper.keep()
        if self._keeper.superseded:
            self.superseded.set()
        if holds and not held_before:
            log.info("This guard holds the lease (fence %d).", self._keeper.seen.fence if self._keeper.seen else 0)
            # Whoever held it before may have left something to remember.
            self._snapshots.begin_anew()
            self._pruning.begin_anew()
            if self._drifts is not None:
                self._drifts.begin_anew()
            self._soon.set()
        elif held_before and not holds:
            log.warning("This guard has lost the lease and acts no more.")

    async def _run_cycles(self) -> None:
        while True:
            self._soon.clear()
            if not self.settings.errors and self._keeper is not None and self._keeper.lease is not None:
                try:
                    await self._cycle("hubguard", asked=False)
                except HubGuardError as error:
                    log.warning("No cycle: %s", error)
                except Exception:
                    log.exception("A cycle ended in a defect of HubGuard; the next one comes as planned")
            wait_s = cycle_in_s(
                self.settings.cull.every_s,
                self._chance(),
                self._clock.now().timestamp(),
                hub_checks_at_s=self._hub_checks_at_s,
                hub_check_every_s=self.settings.cull.hub_activity_interval_s,
            )
            if not self._snapshots.saw_all:
                # An outage is told from one slow answer by a second look.
                wait_s = min(wait_s, self.settings.cull.outage_s / 2)
            self._next_at = self._clock.now() + timedelta(seconds=wait_s)
            await self._sleep_or_soon(wait_s)

    async def _sleep_or_soon(self, wait_s: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(wait_s))
        asked = asyncio.ensure_future(self._soon.wait())
        try:
            await asyncio.wait({sleeping, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, asked):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _run_drift(self) -> None:
        while self._drifts is not None:
            wait_s = BEFORE_FIRST_S
            if self._cycles.last is not None and self._keeper is not None and self._keeper.lease is not None:
                try:
                    await self._look_and_repair(self._drifts, self._keeper)
                except HubGuardError as error:
                    log.warning("No look for drift: %s", error)
                except Exception:
                    log.exception("A look for drift ended in a defect of HubGuard; the next one comes as planned")
                wait_s = self._drifts.next_in_s
                self._drifts.looks_next(self._clock.now() + timedelta(seconds=wait_s))
            await self._clock.sleep(wait_s)

    async def _run_pruning(self) -> None:
        while True:
            # Only a cycle tells whether to hold back.
            if self._cycles.last is not None and self._holds_lease() and not self.settings.errors:
                try:
                    await self._pruning.tick()
                except HubGuardError as error:
                    log.warning("No pruning: %s", error)
                except Exception:
                    log.exception("Pruning came upon a defect of HubGuard; it goes on in a while")
            await self._clock.sleep(self._pruning.next_in_s)

    async def _run_watch(self) -> None:
        """One guard of a hub watches its proxy, the one that holds the lease: they have one canary between them."""
        while self._watch is not None:
            if self._holds_lease():
                await self._watch_while_holding(self._watch)
            await self._clock.sleep(BEFORE_FIRST_S)

    async def _watch_while_holding(self, watch: ProxyWatch) -> None:
        watching = asyncio.ensure_future(watch.run())
        try:
            while self._holds_lease() and not watching.done():
                await self._clock.sleep(BEFORE_FIRST_S)
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(ended, Exception):
            log.error("The proxy watch ended in a defect of HubGuard; it begins anew", exc_info=ended)

    def _under_way(self) -> frozenset[int]:
        """The ids of the intents that are being worked on by others than cycles."""
        of_drift = self._drifts.under_way() if self._drifts is not None else frozenset()
        return of_drift | self._pruning.under_way()

    def _holds_lease(self) -> bool:
        return self._keeper is not None and self._keeper.lease is not None

    def _watch_status(self) -> ProxyWatchStatus:
        return ProxyWatchStatus() if self._watch is None else self._watch.status

    def _may_restore(self) -> bool:
        """Whether the hub may be asked to fill the proxy's table without being asked to."""
        return (
            self._keeper is not None
            and self._keeper.lease is not None
            and self._armed()
            and not self._stance.held
            and DriftKind.ROUTE_MISSING.value in self.settings.drift.repair
        )

    async def _record_restore(self, what: str, outcome: Outcome | None) -> None:
        assert self._keeper is not None
        assert self._drifts is not None
        await self._drifts.record_restore(self._journal, self._keeper, what, outcome, armed=self._armed_by_settings())

    async def _look_and_repair(self, drifts: DriftCycles, keeper: LeaseKeeper) -> None:
        await drifts.look(self._journal, keeper)
        if self._armed() and not self._stance.held:
            drifts.repair_by_itself(self._journal, keeper, armed=self._armed_by_settings())

    # -- one cycle ------------------------------------------------------------------------------------------------

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
        self._acting_keeper()
        policy = None if idle_timeout_s is None else replace(self.policy, idle_timeout_s=idle_timeout_s)
        return await self._cycle(
            asked_by, asked=True, dry_run=dry_run, policy=policy, rate=rate, concurrency=concurrency
        )

    async def _cycle(
        self,
        actor: str,
        *,
        asked: bool,
        dry_run: bool = False,
        policy: CullPolicy | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        keeper = self._keeper
        assert keeper is not None
        self._stance = await self._journal.stance()
        if self._took_over and self._stance.armed is None:
            await self._set(
                self._journal.arm, "hubguard", f"took over from {self._took_over}, and goes on with its settings"
            )
        report = await self._cycles.run(
            self._journal,
            keeper,
            actor,
            asked=asked,
            armed=self._armed_by_settings(),
            why_observing="" if self._armed() else self._why_observing(),
            dry_run=dry_run,
            policy=policy,
            rate=rate,
            concurrency=concurrency,
        )
        learned_long_ago = self._learned_at is None or self._clock.now() - self._learned_at >= timedelta(
            seconds=LEARN_S
        )
        if report.snapshot.complete and learned_long_ago:
            await self._learn_about_hub()
        return report

    async def _learn_about_hub(self) -> None:
        try:
            _, held = await self._hub.whoami()
            self._scope_notes = tuple(
                f"No {feature}: the service's role lacks the scope {scope}."
                for scope, feature in self._features.items()
                if scope not in held
            )
            self._hub_version = await self._hub.version()
            self._learned_at = self._clock.now()
        except HubGuardError as error:
            log.warning("The hub doesn't tell its version or our scopes: %s", error)

    # -- what people set --------------------------------------------------------------------------------------------

    async def arm(self, actor: str, why: str) -> None:
        """See GuardPort."""
        if self._armed_by_settings() is False:
            raise HubGuardError(f"Arming changes nothing: {self._why_observing()}. Change that first.")
        await self._set(self._journal.arm, actor, why)
        self._soon.set()

    async def observe(self, actor: str, why: str) -> None:
        """See GuardPort."""
        if self._armed_by_settings():
            raise HubGuardError("HubGuard.armed is True in the config. Change it there; to stop acting now, use hold.")
        await self._set(self._journal.observe, actor, why)

    async def hold(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self._set(self._journal.hold, actor, why)

    async def resume(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self._set(self._journal.resume, actor, why)
        self._soon.set()

    async def exempt(self, actor: str, why: str, *, user: str, server: str | None, until: datetime) -> Exemption:
        """See GuardPort."""
        now, longest_s = self._clock.now(), self.settings.guard.longest_exemption_s
        if until <= now:
            raise HubGuardError("An exemption must end in the future. Nothing was changed.")
        if until > now + timedelta(seconds=longest_s):
            raise HubGuardError(
                f"An exemption may last until {now + timedelta(seconds=longest_s):%Y-%m-%d %H:%M} UTC at the longest"
                " (HubGuard.longest_exemption_s). Nothing was changed."
            )
        return await self._journal.exempt(user, server, until, actor, why, now)

    async def end_exemption(self, exemption_id: int, actor: str, why: str) -> Exemption:
        """See GuardPort."""
        return await self._journal.end_exemption(exemption_id, actor, why, self._clock.now())

    async def exemptions(self, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        """See GuardPort."""
        return await self._journal.exemptions(self._clock.now(), user=user, ended=ended)

    async def _set(self, change: Callable[[str, str, datetime], Awaitable[Stance]], actor: str, why: str) -> None:
        self._stance = await change(actor, why, self._clock.now())

    # -- what people ask --------------------------------------------------------------------------------------------

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
        return await self._journal.entries(before_id=before_id, limit=limit, user=user, server=server, event=event)

    def status(self) -> Status:
        """See GuardPort."""
        mode, why = self._mode()
        return Status(
            at=self._clock.now(),
            mode=mode,
            why=why,
            stance=self._stance,
            started_at=self._started_at,
            holder=self._holder,
            lease=self._keeper.seen if self._keeper else None,
            holds_lease=self._keeper is not None and self._keeper.lease is not None,
            hub_version=self._hub_version,
            last_cycle=self._cycles.last,
            last_good_cycle_at=self._cycles.last_good_at,
            next_cycle_at=self._next_at,
            errors=self.settings.errors,
            notes=self._notes + self._scope_notes,
            budget=self._budget.use(),
            armed=self._armed(),
            brake=self._snapshots.brake,
            clock_from=self._snapshots.clock_from,
            tally=self._cycles.tally,
            recent=self._cycles.recent,
            oldest_overdue=self._cycles.oldest_overdue,
            findings=self._cycles.findings + self._snapshots.findings + self._pruning.findings,
            pruned=self._pruning.tally,
            prune_waiting=self._pruning.waiting,
        )

    def drift(self) -> DriftReport | None:
        """See GuardPort."""
        return None if self._drifts is None else self._drifts.report

    async def look_for_drift(self) -> DriftReport:
        """See GuardPort."""
        keeper, drifts = self._may_look()
        return await drifts.look(self._journal, keeper)

    def plan_repairs(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """See GuardPort."""
        return self._may_look()[1].plan(ids=ids, kinds=kinds)

    async def repair(self, digest: str, count: int, actor: str, why: str) -> RepairPlan:
        """See GuardPort."""
        keeper, drifts = self._may_look()
        self._stance = await self._journal.stance()
        if self._stance.held:
            raise HubGuardError(f"{self._held_why().rstrip('. ')}. Nothing was repaired; resume first.")
        brake = self._snapshots.brake
        if brake is not None and not drifts.only_routes(digest):
            raise HubGuardError(
                f"HubGuard holds back, since {brake.why.rstrip('.')}. {brake.ends} Nothing was repaired."
            )
        return drifts.repair(self._journal, keeper, digest, count, actor, why, armed=self._armed_by_settings())

    @property
    def pruning(self) -> PruneCycles:
        """See GuardPort."""
        return self._pruning

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """See GuardPort."""
        if self._drifts is not None:
            self._drifts.tell_outlived(user, server, detail)

    def _may_look(self) -> tuple[LeaseKeeper, DriftCycles]:
        keeper = self._acting_keeper()
        if self._drifts is None:
            raise HubGuardError("This guard doesn't look for drift: it runs one cycle only.")
        return keeper, self._drifts

    def _acting_keeper(self) -> LeaseKeeper:
        """The lease, which is ours. Raises HubGuardError with why not, where this guard may not act for the hub now."""
        if self.settings.errors:
            raise HubGuardError(f"Nothing is done until this setting is right: {self.settings.errors[0]}")
        _ = self._journal.sync  # raises until it is open
        if self._keeper is None or self._keeper.lease is None:
            raise HubGuardError(self._standby_why())
        return self._keeper

    def _mode(self) -> tuple[Mode, str]:
        if self.settings.errors:
            return Mode.TROUBLED, f"A setting is wrong, so nothing is done. {self.settings.errors[0]}"
        if self._trouble:
            return Mode.TROUBLED, f"The journal can't be used, so nothing is done. {self._trouble}"
        if self._keeper is None or self._keeper.seen is None:
            return Mode.STARTING, "HubGuard is starting: its journal is being opened."
        if self._keeper.lease is None:
            return Mode.STANDBY, self._standby_why()
        if self._stance.held:
            return Mode.HELD, self._held_why()
        if self._cycles.last is None:
            return Mode.STARTING, "HubGuard is starting: the hub's servers are being read for the first time."
        brake = self._snapshots.brake
        if brake is not None:
            return Mode.BRAKED, f"HubGuard holds back, since {brake.why.rstrip('.')}. {brake.ends}"
        if self._armed():
            return Mode.ACTING, "Servers that are due are stopped."
        return Mode.OBSERVING, f"Nothing is stopped: {self._why_observing()}."

    def _held_why(self) -> str:
        return f"{self._stance.held_by or 'Someone'} has put acting on hold: {self._stance.held_why or ''}"

    def _why_observing(self) -> str:
        if self._observe_only:
            return self._observe_only
        return "HubGuard.armed is False in the config" if self.settings.guard.armed is False else "nobody has armed it"

    def _standby_why(self) -> str:
        seen = self._keeper.seen if self._keeper else None
        if seen is None:
            return "This guard doesn't hold the lease yet, so it may not act."
        where = f" at {seen.address}" if seen.address else ""
        return f"Another guard ({seen.holder}{where}) holds the lease and acts for this hub."

    def _armed_by_settings(self) -> bool | None:
        """What overrules the stance in the journal: True, False, or None for nothing does."""
        return False if self._observe_only else self.settings.guard.armed

    def _armed(self) -> bool:
        overruled = self._armed_by_settings()
        return bool(self._stance.armed if overruled is None else overruled)
