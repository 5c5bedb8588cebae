"""Looking for drift again and again, and repairing it: observe, decide, act, record, and what is remembered between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.act.repair import Repairer
from hubguard.act.verify import CHANGED_NOTHING
from hubguard.clients.backends.port import Backends
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.config import Settings
from hubguard.cycle import NEWS, SETTLED_BY_DRIFT, Cycles
from hubguard.decide import drift as decide
from hubguard.drift import (
    REMEDIES,
    ROUTE_KINDS,
    Drift,
    DriftReport,
    Key,
    ProxyWatchStatus,
    Repair,
    Repaired,
    RepairPlan,
    WatchState,
    World,
)
from hubguard.errors import HubGuardError, JournalError
from hubguard.limits import backoff_s
from hubguard.model import Action, ActionKind, DriftKind, FindingKind, Outcome, OutcomeKind, Snapshot
from hubguard.observe.world import WorldObserver

log = logging.getLogger(__name__)

DRIFT = "drift"
"""Under this name the journal keeps what has been seen so far."""

REMEMBERED = 1000
"""So many drifts at most, and as many ghosts, are remembered over a restart."""

CLEARED_FOR_S = 3600.0
"""For so long what is over is still told of."""

LAST_REPAIRS = 200
"""So many repairs are told of."""

PLANS = 20
"""So many plans that were made wait to be carried out; the oldest is forgotten for a new one."""

SOON = 6.0
"""While something is suspected, looks come so many times as often, but not more often than every SOONEST_S."""
SOONEST_S = 5.0

TOO_MANY = 10
TOO_LARGE_A_SHARE = 0.2
"""When so many servers, and this share of them, seem to have lost their backend at once, it is rather the backends' API that
is wrong: nothing is done about them by itself."""

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
        self._policy = decide.DriftPolicy(
            sightings=settings.drift.sightings,
            for_s=settings.drift.for_s,
            clear_after=settings.drift.clear_after,
            pending_limit_s=settings.cull.pending_limit_s,
        )
        self._kinds = frozenset(map(DriftKind, settings.drift.repair))
        self._looking = asyncio.Lock()
        self._repairing = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()
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
        self._remembered: dict[str, Any] | None = None

    # -- looking --------------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Before the next look, what the journal remembers is read: another guard may have looked since."""
        self._begun = False

    @property
    def next_in_s(self) -> float:
        """Seconds until the next look: sooner while something is suspected, or was raised and isn't cleared yet."""
        every_s = self._settings.drift.every_s
        if any(drift.raised_at is None or drift.missed for drift in self._drifts):
            every_s = max(SOONEST_S, every_s / SOON)
        return every_s * (0.9 + 0.2 * self._chance())

    def looks_next(self, at: datetime) -> None:
        """The report tells when the next look will be."""
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
            world = self._with_what_we_know(
                await self._observer.look(self._recent(), (key for drift in self._drifts if (key := _server(drift))))
            )
            before = {drift.key: drift for drift in self._drifts}
            self._drifts, ended = decide.follow(self._drifts, world, self._policy)
            self._keep_table(world)
            await self._tell(books, world.at, before, ended)
            self._forget(world)
            await self._remember(books, world.at)
            self.report = self._reported(world)
            return self.report

    async def look_at(self, keys: Sequence[Key]) -> tuple[Drift, ...]:
        """The differences there are now, as far as they concern these servers, or all routes where none are named.

        What was seen before doesn't count: each stands for what is there at this moment. Raises HubGuardError where a source
        that told something at the last look doesn't now.
        """
        world = self._with_what_we_know(await self._observer.look(self._recent(), keys, only=bool(keys)))
        known = self.report.world if self.report is not None else world
        for reading in world.readings:
            before = known.reading(reading.source)
            if not reading.complete and (before is None or before.complete):
                raise HubGuardError(f"What is there now can't be told: {reading.detail}")
        if world.servers is None:
            raise HubGuardError("What is there now can't be told: the hub doesn't list its servers.")
        once = replace(self._policy, sightings=1, for_s=0.0, clear_after=1)
        # For how long something has been pending, one look can't tell.
        pending = [drift for drift in self._drifts if drift.kind is DriftKind.PENDING_STUCK]
        return decide.follow(pending, world, once)[0]

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
        if world.routes is None or self._watch().state not in (WatchState.FINE, WatchState.OFF):
            return
        ours = {world.base_url.rstrip("/") or "/", *(world.prefixes or {}).values()}
        ours = {path.rstrip("/") or "/" for path in ours}
        self._table = {path: route.key for path, route in world.routes.items() if route.key is not None or path in ours}

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
            drifts=self._drifts,
            narrowed=decide.narrowed(world),
            repaired=self._repaired,
            cleared=self._cleared,
        )

    async def _tell(self, books: Books, now: datetime, before: Mapping[Any, Drift], ended: tuple[Drift, ...]) -> None:
        """The journal has what was raised and what is over since the last look."""
        raised = [one for one in self._drifts if one.raised_at is not None and _was_not_raised(before.get(one.key))]
        over = [one for one in ended if one.raised_at is not None]
        for event, drifts in (("finding", raised), ("cleared", over)):
            for drift in drifts[:NEWS]:
                with contextlib.suppress(JournalError):
                    await books.call(
                        books.journal.note, event, "hubguard", 0, now, in_a_line(drift),
                        user=drift.user, server=drift.server,
                    )  # fmt: skip
        horizon = now - timedelta(seconds=CLEARED_FOR_S)
        self._cleared = tuple(one for one in (*over, *self._cleared) if one.seen_at > horizon)[:REMEMBERED]

    def _forget(self, world: World) -> None:
        """What can't matter any more isn't kept: ghosts of runs that are over, and what outlived its server long ago."""
        horizon = world.at - timedelta(seconds=OUTLIVED_FOR_S)
        self._outlived = {key: told for key, told in self._outlived.items() if told[0] > horizon}
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
        for kind in kinds:
            if kind not in REMEDIES:
                raise HubGuardError(f"{kind.value} is only reported: HubGuard has no repair for it.")
        wanted = [drift for drift in self._drifts if drift.raised_at and (drift.id in ids or drift.kind in kinds)]
        plan = decide.plan_repairs(wanted, self._clock.now())
        if not plan.repairs:
            raise HubGuardError("There is nothing to repair: no such drift has been raised.")
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
        if self._repairing.locked():
            raise HubGuardError("Other repairs are under way. Nothing was done; try again when they are through.")
        del self._plans[digest]
        task = asyncio.get_running_loop().create_task(
            self._carry_out(books, keeper, plan, actor, why, asked=True, armed=armed)
        )
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return plan

    def only_routes(self, digest: str) -> bool:
        """Whether the plan of that digest has the hub check its routes and does nothing else."""
        plan = self._plans.get(digest)
        return plan is not None and all(repair.action.kind is ActionKind.CHECK_ROUTES for repair in plan.repairs)

    async def repair_by_itself(self, books: Books, keeper: LeaseKeeper, *, armed: bool | None) -> None:
        """What the policy wants repaired without being asked is repaired, as far as it isn't backing off."""
        now = self._clock.now()
        due = [
            drift
            for drift in self._drifts
            if drift.raised_at is not None
            and drift.kind in self._kinds
            and drift.missed == 0
            and not (drift.id in self._failed and now < self._failed[drift.id].next_at)
            and not (drift.kind not in ROUTE_KINDS and self._looks_like_a_lie(drift.kind))
        ]
        if self._watch().state in (WatchState.GONE, WatchState.HANGS, WatchState.WIPED):
            # The watch has the hub fill the table as soon as the proxy answers; before, the hub could only wait for it.
            due = [drift for drift in due if drift.kind not in ROUTE_KINDS]
        if self._cycles.brake is not None:
            # A brake is about destructive acts. Checking routes destroys nothing, and after an outage it is what helps.
            due = [drift for drift in due if drift.kind in ROUTE_KINDS]
        if not due or self._repairing.locked():
            return
        await self._carry_out(
            books, keeper, decide.plan_repairs(due, now), "hubguard", "by the policy", asked=False, armed=armed
        )

    def _looks_like_a_lie(self, kind: DriftKind) -> bool:
        world = self.report.world if self.report is not None else None
        servers = len(world.servers or ()) if world is not None else 0
        count = sum(drift.kind is kind and drift.raised_at is not None for drift in self._drifts)
        return count > max(TOO_MANY, TOO_LARGE_A_SHARE * servers)

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
        async with self._repairing:
            began_at = self._clock.now()
            for repair in plan.repairs:
                self._note_repair(Repaired(repair, actor, began_at))
            log.info("%d repairs, asked for by %s (%s).", len(plan.repairs), actor, why)
            try:
                await self._repairer_under(keeper).run(
                    plan,
                    actor,
                    asked=asked,
                    armed=armed,
                    concurrency=self._settings.budget.concurrency,
                    running=len(self.report.world.servers or ()) if self.report is not None else 0,
                )
            except HubGuardError as error:
                log.warning("Repairs ended early: %s", error)
            except Exception:
                log.exception("Repairs ended in a defect of HubGuard")
            finally:
                self._repaired = tuple(one for one in self._repaired if one.ended_at is not None)
        with contextlib.suppress(HubGuardError):
            await self.look(books, keeper)

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
        for id in repair.drifts:
            if outcome.kind is OutcomeKind.DONE:
                self._failed.pop(id, None)
            else:
                count = self._failed[id].count + 1 if id in self._failed else 1
                cull = self._settings.cull
                wait_s = backoff_s(count, self._chance(), cull.retry_base_s, cull.retry_max_s)
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
        told = await books.call(books.journal.recall, DRIFT)
        if told is not None:
            # What another version has written is no reason not to begin.
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                self._drifts = tuple(map(_drift_from, told[0]["drifts"]))
                self._ghosts = {
                    (user, name, _at(started)): _surely(at) for user, name, started, at in told[0]["ghosts"]
                }
                self._outlived = {
                    (user, name): (_surely(at), detail) for user, name, at, detail in told[0]["outlived"]
                } | self._outlived
        self._begun = True

    async def _remember(self, books: Books, now: datetime) -> None:
        value = {
            "drifts": [_plain(drift) for drift in self._drifts[:REMEMBERED]],
            "ghosts": [
                [user, name, started and started.isoformat(), at.isoformat()]
                for (user, name, started), at in list(self._ghosts.items())[-REMEMBERED:]
            ],
            "outlived": [[*key, at.isoformat(), detail] for key, (at, detail) in self._outlived.items()],
        }
        if value != self._remembered:
            await books.call(books.journal.remember, DRIFT, value, now)
            self._remembered = value


def in_a_line(drift: Drift) -> str:
    """``route-missing: ann/work: expected ..., seen ...``, for the journal and errors."""
    about = "/".join(part for part in (drift.user, drift.server) if part) or drift.subject or "the hub"
    return f"{drift.kind.value}: {about}: expected {drift.expected}; seen: {drift.observed}"


def _server(drift: Drift) -> Key | None:
    return None if drift.user is None else (drift.user, drift.server or "")


def _was_not_raised(before: Drift | None) -> bool:
    return before is None or before.raised_at is None


def _plain(drift: Drift) -> dict[str, Any]:
    """What of a drift outlives a restart: what it is, and the counting. The rest the next look tells."""
    return {
        "kind": drift.kind.value,
        "user": drift.user,
        "server": drift.server,
        "subject": drift.subject,
        "expected": drift.expected,
        "observed": drift.observed,
        "since": drift.since.isoformat(),
        "seen_at": drift.seen_at.isoformat(),
        "started": drift.started and drift.started.isoformat(),
        "sightings": drift.sightings,
        "looks": drift.looks,
        "missed": drift.missed,
        "raised_at": drift.raised_at and drift.raised_at.isoformat(),
    }


def _drift_from(data: Mapping[str, Any]) -> Drift:
    return Drift(
        kind=DriftKind(data["kind"]),
        user=data["user"],
        server=data["server"],
        expected=data["expected"],
        observed=data["observed"],
        since=_surely(data["since"]),
        seen_at=_surely(data["seen_at"]),
        subject=data["subject"],
        started=_at(data["started"]),
        sightings=int(data["sightings"]),
        looks=int(data["looks"]),
        missed=int(data["missed"]),
        raised_at=_at(data["raised_at"]),
    )


def _at(text: str | None) -> datetime | None:
    return None if text is None else _surely(text)


def _surely(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return at
