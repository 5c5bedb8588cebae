"""Looking for drift again and again, and repairing it: observe, decide, act, record, and what is remembered between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.act.verify import CHANGED_NOTHING
from hubguard.backends.port import Backends
from hubguard.config import Settings
from hubguard.cull.cycle import Cycles
from hubguard.drift.act import Repairer
from hubguard.drift.decide import follow
from hubguard.drift.decide.memory import REMEMBERED, DriftMemory
from hubguard.drift.model import (
    REMEDIES,
    ROUTE_KINDS,
    Drift,
    DriftKind,
    DriftReport,
    Repair,
    Repaired,
    RepairPlan,
    World,
)
from hubguard.drift.observe import WorldObserver
from hubguard.errors import HubGuardError, JournalError, Unrecordable
from hubguard.hub.api import HubAPI
from hubguard.model import Action, ActionKind, FindingKind, Key, Outcome, OutcomeKind, Source
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import backoff_s
from hubguard.proxy.model import ProxyWatchStatus, WatchState
from hubguard.snapshot.cycle import NEWS, SETTLED_BY_DRIFT
from hubguard.snapshot.model import Snapshot

log = logging.getLogger(__name__)

T = TypeVar("T")

DRIFT = "drift"
"""Under this name the journal keeps what has been seen so far."""

REMEMBER_EVERY_S = 60.0
"""What is only suspected comes and goes with each look on a busy hub: what changed there is written down so often. What is
raised or ends is written down at once; that a count has moved is no reason to write at all."""

CLEARED_FOR_S = 3600.0
"""For so long what is over is still told of."""

LAST_REPAIRS = 200
"""So many repairs are told of."""

PLANS = 20
"""So many plans that were made wait to be carried out; the oldest is forgotten for a new one."""

SOON = 6.0
"""While something is suspected, looks come so many times as often, but not more often than every SOONEST_S."""
SOONEST_S = 5.0

TOO_MANY = 3
TOO_LARGE_A_SHARE = 0.2
"""When more servers, and more than this share of them, seem to have lost their backend, it is rather the backends' API that
is wrong: nothing is done about them by itself. Those that are only suspected count, too: they are of the same word."""

GONE_KINDS = frozenset({DriftKind.SERVER_DEAD, DriftKind.SERVER_GHOST})
"""Two words for one thing that is seen: no backend."""

OVERTIME_S = 600.0
"""Repairs that are still under way so long after their plan has expired hang, and are given up."""

ENDS_S = 1.0
"""What is cancelled has ended by then, or never will."""

NOT_KNOWN = Outcome(
    OutcomeKind.UNVERIFIED, "HubGuard ended before it knew; what was begun is in the journal, and the next looks tell"
)

OUTLIVED_FOR_S = 86400.0
"""A hub's word that a backend outlived its server counts for a day, unless a look has shown it gone before."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """How often in a row repairing one drift by itself has failed, and when the next try may be."""

    count: int
    next_at: datetime


class DriftCycles:
    """Looks for drift, one look at a time, and carries out repairs, one plan at a time.

    ``report`` is what the last look found, None before the first. ``watch`` tells how the proxy stands.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        observer: WorldObserver,
        backends: Backends | None,
        cycles: Cycles,
        clock: Clock,
        chance: Callable[[], float],
        *,
        watch: Callable[[], ProxyWatchStatus] = ProxyWatchStatus,
    ) -> None:
        self.report: DriftReport | None = None
        self._settings = settings
        self._hub = hub
        self._observer = observer
        self._backends = backends
        self._cycles = cycles
        self._clock = clock
        self._chance = chance
        self._watch = watch
        self._policy = follow.DriftPolicy(
            sightings=settings.drift.sightings,
            for_s=settings.drift.for_s,
            clear_after=settings.drift.clear_after,
            pending_limit_s=settings.cull.pending_limit_s,
            every_s=settings.drift.every_s,
        )
        self._kinds = frozenset(map(DriftKind, settings.drift.repair))
        self._looking = asyncio.Lock()
        self._repairing = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._untold: list[tuple[str, datetime, Drift]] = []
        self._next_look_at: datetime | None = None
        self._begun = False
        self._drifts: tuple[Drift, ...] = ()
        self._cleared: tuple[Drift, ...] = ()
        self._repaired: tuple[Repaired, ...] = ()
        self._ghosts: dict[tuple[str, str, datetime | None], datetime] = {}
        self._outlived: dict[Key, tuple[datetime, str]] = {}
        self._plans: dict[str, RepairPlan] = {}
        self._failed: dict[str, _Failed] = {}
        self._repairer: Repairer | None = None
        self._restoring: frozenset[int] = frozenset()
        self._table: dict[str, Key | None] = {}
        self._remembered: tuple[Any, Any] | None = None
        self._remembered_at_s = float("-inf")

    # -- looking --------------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Before the next look, what the journal remembers is read: another guard may have looked since."""
        self._begun = False

    @property
    def next_in_s(self) -> float:
        """Seconds until the next look: sooner while something is suspected, under repair, or raised and not seen now.

        Not for what is pending, which takes minutes to be drift; nor while the hub doesn't answer: nothing would be decided.
        """
        every_s = self._settings.drift.every_s
        of_hub = self.report.world.reading(Source.HUB_API) if self.report is not None else None
        undecided = self._repairing or any(
            drift.missed or (drift.raised_at is None and drift.kind is not DriftKind.PENDING_STUCK)
            for drift in self._drifts
        )
        if undecided and of_hub is not None and of_hub.complete:
            every_s = min(every_s, max(SOONEST_S, every_s / SOON))
        return every_s * (0.9 + 0.2 * self._chance())

    def looks_next(self, at: datetime) -> None:
        """The report tells when the next look will be."""
        self._next_look_at = at
        if self.report is not None:
            self.report = replace(self.report, next_look_at=at)

    def under_way(self) -> frozenset[int]:
        """The ids of the intents that are being worked on here."""
        repairing = self._repairer.under_way if self._repairer is not None else frozenset()
        return repairing | self._restoring

    async def look(self, books: Books, keeper: LeaseKeeper) -> DriftReport:
        """Take a look at everything; ``report`` is what it found, and the journal has what is new. Raises JournalError."""
        async with self._looking:
            if not self._begun:
                await self._begin(books)
            await self._settle_what_was_left(books, keeper)
            world = self._with_what_we_know(await self._observer.look(self._recent(), self._to_be_asked_for()))
            before = {drift.key: drift for drift in self._drifts}
            self._drifts, ended = follow.follow(self._drifts, world, self._policy)
            self._keep_table(world)
            self._note(world.at, before, ended)
            self._forget(world)
            self.report = self._reported(world)
            # Last: whatever becomes of the journal, what was seen is told.
            await self._tell(books)
            await self._remember(books, world.at)
            return self.report

    async def close(self) -> None:
        """What is being repaired is left as it is: its intents stay open, and the next look of any guard settles them."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def look_at(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        """The differences there are now, as far as they concern these servers, or all routes where none are named.

        What was seen before doesn't count: each stands for what is there at this moment. Raises HubGuardError where a source
        that could show it doesn't tell in full.
        """
        world = self._with_what_we_know(
            await self._observer.look(self._recent(), keys, only=bool(keys), routes_only=not keys)
        )
        # What isn't found is taken for mended: so each source that could show it has to have told all.
        needed = (Source.HUB_API, Source.BACKEND) if keys else (Source.HUB_API, Source.PROXY, Source.HUB_ROUTES)
        silent = [reading for reading in world.readings if reading.source in needed and not reading.complete]
        if silent:
            raise HubGuardError(f"What is there now can't be told: {silent[0].detail}")
        if world.servers is None or (world.routes is None and not keys):
            raise HubGuardError("What is there now can't be told: a source gave no answer.")
        once = replace(self._policy, sightings=1, for_s=0.0, clear_after=1)
        # For how long something has been pending, one look can't tell.
        pending = [drift for drift in self._drifts if drift.kind is DriftKind.PENDING_STUCK]
        return follow.follow(pending, world, once)[0]

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """See GuardPort."""
        self._outlived[user, server] = (self._clock.now(), detail[:500])
        while len(self._outlived) > REMEMBERED:
            del self._outlived[min(self._outlived, key=lambda key: self._outlived[key][0])]

    def expected_routes(self) -> dict[str, Key | None]:
        """The paths that belong into the proxy's table, by the last look at one that was whole; empty before there was one.

        Each with the server it leads to, None for others. Those of servers that don't run any more, as far as is known, and
        of what isn't the hub's are left out.
        """
        servers = self.report.world.servers if self.report is not None else None
        if servers is None:
            return dict(self._table)
        return {
            path: key
            for path, key in self._table.items()
            if key is None or ((server := servers.get(key)) is not None and server.ready)
        }

    def _keep_table(self, world: World) -> None:
        servers = world.servers
        if servers is None or world.routes is None or self._watch().state not in (WatchState.FINE, WatchState.OFF):
            return
        ours = {_path(world.base_url), *map(_path, (world.prefixes or {}).values())}
        there = {path: route.key for path, route in world.routes.items() if route.key is not None or path in ours}
        routed = set(there.values())
        # What is missing belongs there all the same: this may be a table that was lost before the watch could tell.
        for path, key in self._table.items():
            belongs = path in ours if key is None else key not in routed and key in servers and servers[key].ready
            if belongs:
                there.setdefault(path, key)
        self._table = there

    def _to_be_asked_for(self) -> set[Key]:
        """The servers of which the hub's word matters, whatever the other sources say."""
        return {key for drift in self._drifts if (key := _server(drift)) is not None} | self._outlived.keys()

    def _recent(self) -> Snapshot | None:
        last = self._cycles.last
        return last.snapshot if last is not None else None

    def _with_what_we_know(self, world: World) -> World:
        frozen = [one.since for one in self._cycles.findings if one.kind is FindingKind.ACTIVITY_FROZEN]
        return replace(
            world,
            ghosts=frozenset(self._ghosts) | self._cycles.came_back,
            outlived=dict(self._outlived),
            frozen_since=min(frozen, default=None),
        )

    def _reported(self, world: World) -> DriftReport:
        return DriftReport(
            world=world,
            drifts=follow.shown(self._drifts),
            narrowed=follow.narrowed(world),
            repaired=self._repaired,
            cleared=self._cleared,
            next_look_at=self._next_look_at,
            by_itself=tuple(kind for kind in DriftKind if kind in self._kinds),
            doubted=tuple(kind for kind in DriftKind if kind not in ROUTE_KINDS and self._looks_like_a_lie(kind)),
        )

    def _note(self, now: datetime, before: Mapping[Any, Drift], ended: tuple[Drift, ...]) -> None:
        """What was raised and what is over since the last look is to be told."""
        raised = [one for one in self._drifts if one.raised_at is not None and _was_not_raised(before.get(one.key))]
        over = [one for one in ended if one.raised_at is not None]
        self._untold += [("finding", now, one) for one in raised] + [("cleared", now, one) for one in over]
        horizon = now - timedelta(seconds=CLEARED_FOR_S)
        self._cleared = tuple(one for one in (*over, *self._cleared) if one.seen_at > horizon)[:REMEMBERED]

    async def _tell(self, books: Books) -> None:
        """The journal has what is to be told: the first of each look one by one, and how many more there were.

        What it doesn't take now it gets with the next look.
        """
        while self._untold:
            event, at, _ = self._untold[0]
            together = [drift for other, then, drift in self._untold if (other, then) == (event, at)]
            try:
                for drift in together[:NEWS]:
                    await _told(books, event, at, drift)
                    self._untold.remove((event, at, drift))
                if rest := [one.kind.value for one in together[NEWS:]]:
                    counts = ", ".join(f"{rest.count(kind):,} {kind}" for kind in sorted(set(rest)))
                    await books.call(books.journal.note, event, "hubguard", 0, at, f"and more at once: {counts}")
            except JournalError as error:
                log.warning("The journal doesn't tell yet of %d drifts: %s", len(self._untold), error)
                del self._untold[:-REMEMBERED]
                return
            self._untold = [one for one in self._untold if one[:2] != (event, at)]

    def _forget(self, world: World) -> None:
        """What can't matter any more isn't kept: ghosts of runs that are over, and what outlived its server long ago."""
        horizon = world.at - timedelta(seconds=OUTLIVED_FOR_S)
        self._outlived = {
            key: told for key, told in self._outlived.items() if told[0] > horizon and not _is_gone(world, key, told[0])
        }
        if world.servers is not None:
            runs = {server.run for server in world.servers.values()}
            keys = {(drift.user, drift.server) for drift in self._drifts}
            self._ghosts = {
                run: at for run, at in self._ghosts.items() if run in runs or (run[0], run[1]) in keys or at > horizon
            }
        there = {drift.id for drift in self._drifts}
        self._failed = {id: failed for id, failed in self._failed.items() if id in there}

    # -- repairing ------------------------------------------------------------------------------------------------

    def plan(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """See GuardPort.plan_repairs."""
        known = {drift.id: drift for drift in self._drifts}
        for id in ids:
            drift = known.get(id)
            if drift is None:
                raise HubGuardError(f"There is no drift {id} (any more). Look at the list again.")
            if drift.raised_at is None:
                raise HubGuardError(f"{in_a_line(drift)}: that is only suspected so far. Wait for the next looks.")
            if drift.kind not in REMEDIES:
                raise HubGuardError(f"{drift.kind.value} is only reported: HubGuard has no repair for it.")
            if follow.remedy(drift) is None:
                raise HubGuardError(f"{in_a_line(drift)}: HubGuard can't repair this one. {_why_not(drift)}")
        for kind in kinds:
            if kind not in REMEDIES:
                raise HubGuardError(f"{kind.value} is only reported: HubGuard has no repair for it.")
        wanted = [drift for drift in self._drifts if drift.raised_at and (drift.id in ids or drift.kind in kinds)]
        plan = follow.plan_repairs(wanted, self._clock.now())
        if not plan.repairs:
            raise HubGuardError("There is nothing to repair: no such drift has been raised that HubGuard can repair.")
        self._plans.pop(plan.digest, None)
        self._plans[plan.digest] = plan
        while len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def repair(
        self, books: Books, keeper: LeaseKeeper, digest: str, count: int, actor: str, why: str, *, armed: bool | None
    ) -> RepairPlan:
        """See GuardPort.repair. Hold and brake are the caller's to look at first."""
        plan = self._plans.get(digest)
        if plan is None or self._clock.now() >= plan.expires_at:
            raise HubGuardError("There is no such plan (any more): it has expired, or was never made. Make it again.")
        if count != len(plan.repairs):
            raise HubGuardError(f"The plan has {len(plan.repairs)} repairs, not {count}. Nothing was done.")
        if self._repairing:
            raise HubGuardError("Other repairs are under way. Nothing was done; try again when they are through.")
        del self._plans[digest]
        self._begin_repairs(books, keeper, plan, actor, why, asked=True, armed=armed)
        return plan

    def only_routes(self, digest: str) -> bool:
        """Whether the plan of that digest has the hub check its routes and does nothing else."""
        plan = self._plans.get(digest)
        return plan is not None and all(repair.action.kind is ActionKind.CHECK_ROUTES for repair in plan.repairs)

    def repair_by_itself(self, books: Books, keeper: LeaseKeeper, *, armed: bool | None) -> None:
        """What the policy wants repaired without being asked is begun to be repaired, as far as it isn't backing off."""
        if self._repairing or keeper.lease is None:
            return
        if self._watch().state in (WatchState.GONE, WatchState.HANGS, WatchState.WIPED):
            # The watch has the hub fill the table as soon as the proxy answers. Before, the hub could only wait for it, and a
            # server that is stopped without its proxy becomes a ghost (5.5, 6.1).
            return
        now = self._clock.now()
        ours = [
            drift
            for drift in self._drifts
            if drift.raised_at is not None and drift.kind in self._kinds and drift.missed == 0
        ]
        ready = [drift for drift in ours if drift.id not in self._failed or now >= self._failed[drift.id].next_at]
        due = []
        if any(drift.kind in ROUTE_KINDS for drift in ready):
            # One check is for all of them: were each checked when its own time has come, there would be no backing off.
            due = [drift for drift in ours if drift.kind in ROUTE_KINDS]
        if self._cycles.brake is None:
            # A brake is about destructive acts. Checking routes destroys nothing, and after an outage it is what helps.
            due += [one for one in ready if one.kind not in ROUTE_KINDS and not self._looks_like_a_lie(one.kind)]
        plan = follow.plan_repairs(due, now)
        if plan.repairs:
            self._begin_repairs(books, keeper, plan, "hubguard", "by the policy", asked=False, armed=armed)

    def _looks_like_a_lie(self, kind: DriftKind) -> bool:
        world = self.report.world if self.report is not None else None
        servers = len(world.servers or ()) if world is not None else 0
        same = GONE_KINDS if kind in GONE_KINDS else {kind}
        count = sum(drift.kind in same for drift in follow.shown(self._drifts))
        return count > max(TOO_MANY, TOO_LARGE_A_SHARE * servers)

    def _begin_repairs(
        self,
        books: Books,
        keeper: LeaseKeeper,
        plan: RepairPlan,
        actor: str,
        why: str,
        *,
        asked: bool,
        armed: bool | None,
    ) -> None:
        """They are under way; looks go on beside them."""
        self._repairing = True
        began_at = self._clock.now()
        for repair in plan.repairs:
            self._note_repair(Repaired(repair, actor, began_at))
        log.info("%d repairs, asked for by %s (%s).", len(plan.repairs), actor, why)
        task = asyncio.get_running_loop().create_task(
            self._carry_out(books, keeper, plan, actor, why, asked=asked, armed=armed)
        )
        self._under_way.add(task)
        task.add_done_callback(self._end_repairs)

    def _end_repairs(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not self._under_way:
            # One that is cancelled before its first step comes to nothing that it could tell.
            self._ended(NOT_KNOWN)

    def _ended(self, unknown: Outcome) -> None:
        """Nothing is being repaired any more; what hasn't told of its end has come to ``unknown``."""
        self._repairing = False
        for one in [one for one in self._repaired if one.ended_at is None]:
            self._note_repair(replace(one, ended_at=self._clock.now(), outcome=unknown), instead_of=one)

    async def _carry_out(
        self,
        books: Books,
        keeper: LeaseKeeper,
        plan: RepairPlan,
        actor: str,
        why: str,
        *,
        asked: bool,
        armed: bool | None,
    ) -> None:
        unknown = NOT_KNOWN
        try:
            if asked:
                fence = keeper.seen.fence if keeper.seen is not None else 0
                what = f"repairs were asked for, {len(plan.repairs)} in all: {why}"
                await books.call(books.journal.note, "note", actor, fence, self._clock.now(), what)
            running = len(self.report.world.servers or ()) if self.report is not None else 0
            repairing = self._repairer_under(keeper).run(
                plan, actor, asked=asked, armed=armed, concurrency=self._settings.budget.concurrency, running=running
            )
            await self._within(repairing, (plan.expires_at - self._clock.now()).total_seconds() + OVERTIME_S)
        except HubGuardError as error:
            log.warning("Repairs ended early: %s", error)
            unknown = Outcome(OutcomeKind.UNVERIFIED, f"repairs ended early: {error}")
        except Exception:
            log.exception("Repairs ended in a defect of HubGuard")
        finally:
            self._ended(unknown)
        try:
            await self.look(books, keeper)
        except HubGuardError as error:
            log.warning("No look for drift after repairs: %s", error)
        except Exception:
            log.exception("The look after repairs ended in a defect of HubGuard")

    async def _within(self, working: Coroutine[Any, Any, object], longest_s: float) -> None:
        """Wait for it, and no longer than that: what runs the servers may be anybody's, and never answer."""
        task = asyncio.ensure_future(working)
        patience = asyncio.ensure_future(self._clock.sleep(longest_s))
        try:
            await asyncio.wait({task, patience}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
            if hangs := not task.done():
                task.cancel()
                # So that nothing is written when the journal is closed; what doesn't heed it is left behind.
                await asyncio.wait({task}, timeout=ENDS_S)
        if hangs:
            self._repairer = None
            raise HubGuardError(f"they hung, and were given up after {longest_s:g} s")
        task.result()

    def _repairer_under(self, keeper: LeaseKeeper) -> Repairer:
        if self._repairer is None:
            self._repairer = Repairer(
                self._hub,
                self._backends,
                keeper,
                self._clock,
                self.look_at,
                verify_s=self._settings.cull.verify_s,
                told=self._settled,
            )
        return self._repairer

    async def _settle_what_was_left(self, books: Books, keeper: LeaseKeeper) -> None:
        """What a guard that ended in between has left open is settled by what a look shows."""
        left = [
            one
            for one in await books.call(books.journal.open_intents)
            if one.action in SETTLED_BY_DRIFT and one.id not in self.under_way()
        ]
        if left:
            await self._repairer_under(keeper).settle_left(left)

    def _settled(self, repair: Repair, outcome: Outcome) -> None:
        """What came of one repair is told of, and what is concluded from it."""
        now = self._clock.now()
        for one in self._repaired:
            if one.repair == repair and one.ended_at is None:
                self._note_repair(replace(one, ended_at=now, outcome=outcome), instead_of=one)
                break
        action = repair.action
        if outcome.kind is OutcomeKind.FAILED and outcome.detail.startswith(CHANGED_NOTHING):
            self._ghosts[action.user, action.name, action.started] = now
        # One draw for all of one repair: together they failed, and one request is for all of them.
        draw = self._chance()
        for id in repair.drifts:
            if outcome.kind is OutcomeKind.DONE:
                self._failed.pop(id, None)
            else:
                count = self._failed[id].count + 1 if id in self._failed else 1
                cull = self._settings.cull
                wait_s = backoff_s(count, draw, cull.retry_base_s, cull.retry_max_s)
                self._failed[id] = _Failed(count, now + timedelta(seconds=wait_s))

    def _note_repair(self, repaired: Repaired, instead_of: Repaired | None = None) -> None:
        others = tuple(one for one in self._repaired if one is not instead_of)
        self._repaired = (repaired, *others)[:LAST_REPAIRS]
        if self.report is not None:
            self.report = replace(self.report, repaired=self._repaired)

    async def record_restore(
        self, books: Books, keeper: LeaseKeeper, what: str, outcome: Outcome | None, *, armed: bool | None
    ) -> None:
        """The journal has that the hub is about to fill the proxy's lost table again, or with ``outcome`` what came of it.

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

    # -- remembering ----------------------------------------------------------------------------------------------

    async def _begin(self, books: Books) -> None:
        """What another guard, or we before a restart, had seen by then goes on."""
        told = await books.call(books.journal.recall, DRIFT)
        if told is not None:
            memory = DriftMemory.from_dict(told[0], self._clock.now())
            self._drifts, self._ghosts = memory.drifts, dict(memory.ghosts)
            self._outlived = {**memory.outlived, **self._outlived}
        # What it didn't know was raised will be raised, and told, again.
        self._untold = []
        self._remembered = None
        self._begun = True

    async def _remember(self, books: Books, now: datetime) -> None:
        """The journal has what must outlive us. Raises JournalError."""
        kept = self._drifts[:REMEMBERED]
        ghosts = list(self._ghosts.items())[-REMEMBERED:]
        weighs = (
            [(one.key, one.started, one.raised_at) for one in kept if one.raised_at is not None],
            ghosts,
            sorted((key, at) for key, (at, _) in self._outlived.items()),
        )
        passes = [(one.key, one.started, one.since) for one in kept if one.raised_at is None]
        now_s = self._clock.monotonic_s()
        lately = now_s - self._remembered_at_s < REMEMBER_EVERY_S
        if self._remembered is not None and self._remembered[0] == weighs and (lately or self._remembered[1] == passes):
            return
        value = DriftMemory(kept, dict(ghosts), self._outlived).to_dict()
        await books.call(books.journal.remember, DRIFT, value, now)
        self._remembered, self._remembered_at_s = (weighs, passes), now_s


async def _told(books: Books, event: str, at: datetime, drift: Drift) -> None:
    """The journal has it, under the names of user and server where it can hold them. Raises JournalError."""
    line = in_a_line(drift)
    try:
        await books.call(books.journal.note, event, "hubguard", 0, at, line, user=drift.user, server=drift.server)
    except Unrecordable:
        await books.call(books.journal.note, event, "hubguard", 0, at, line)


def in_a_line(drift: Drift) -> str:
    """``route-missing: ann/work: expected ..., seen ...``, for the journal and errors."""
    about = "/".join(part for part in (drift.user, drift.server) if part) or drift.subject or "the hub"
    return f"{drift.kind.value}: {about}: expected {drift.expected}; seen: {drift.observed}"


def _server(drift: Drift) -> Key | None:
    return None if drift.user is None else (drift.user, drift.server or "")


def _path(prefix: str) -> str:
    return prefix.rstrip("/") or "/"


def _is_gone(world: World, key: Key, told_at: datetime) -> bool:
    """Whether a look shows that what outlived its server, by a word of ``told_at``, is gone, or is that server again."""
    of_hub, of_backends = world.reading(Source.HUB_API), world.reading(Source.BACKEND)
    server = None if world.servers is None or key in world.unsure else world.servers.get(key)
    if of_hub is not None and of_hub.complete and of_hub.at > told_at and server is not None and server.ready:
        return True
    if of_backends is None or not of_backends.complete or not world.whole or of_backends.at <= told_at:
        return False
    return not any(one.key == key and one.alive is not False for one in world.backends or ())


def _why_not(drift: Drift) -> str:
    if drift.kind is not DriftKind.SERVER_ORPHAN:
        return "Only a start that is pending can be interrupted."
    if drift.backend is None:
        return "What runs it can't be seen; end it with the tools of what runs the servers."
    if drift.backend.proof:
        return f"{drift.backend.name} may be what runs the server that is there now. Look at it by hand."
    return f"{drift.backend.name} isn't proved to be this hub's. Look at it by hand."


def _was_not_raised(before: Drift | None) -> bool:
    return before is None or before.raised_at is None
