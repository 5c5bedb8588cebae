"""One cycle after another: observe, decide, act, record. The only module that knows all four."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hubguard.act.executor import LOOK_LASTS_S, Executor
from hubguard.act.lease import Books, LeaseKeeper
from hubguard.clients.budget import Budget
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.config import Settings
from hubguard.decide.cull import CullPolicy, judge_all
from hubguard.decide.cull import plan as plan_cull
from hubguard.errors import HubGuardError, JournalError
from hubguard.journal.store import Journal
from hubguard.model import (
    Action,
    CycleReport,
    Entry,
    Mode,
    Outcome,
    OutcomeKind,
    Plan,
    Snapshot,
    Stance,
    Standing,
    Status,
    Verdict,
)
from hubguard.observe.snapshot import observe

log = logging.getLogger(__name__)

HISTORY_S = 7 * 86400.0
"""How far back failures count for the back-off of a run; longer than the longest back-off there can be."""

REOPEN_S = 5.0
"""Between two tries to open a journal that couldn't be used."""

WOULD_BE_STOPPED = "would be stopped now"

REMEMBERED_NOTES = 5000
"""So many of the last notes are looked through after a start, so that a restart doesn't say everything once more."""

LEARN_S = 600.0
"""How long what the hub said of its version and of our scopes counts: an upgraded hub or a mended role shows by then."""

JITTER = 0.1
"""The share by which a cycle comes early or late, so that several hubs and the hub's own checks stay out of step."""


class Guard:
    """The guard of one hub: keeps the lease, runs the cycles, and answers what pages, API and CLI ask (GuardPort).

    ``open_books`` opens the journal; it may raise JournalError, and is then called again. ``chance`` gives numbers in
    [0, 1). ``observe_only`` is why this guard must not act by itself whatever people set (another culler at work), or "".
    ``took_over`` names the idle culler whose place it takes, or "". ``notes`` go to the Overview as they are.
    ``features`` tells for each hub scope what needs it: what our token lacks of them becomes a note.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        budget: Budget,
        open_books: Callable[[], Awaitable[Books]],
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
    ) -> None:
        self.settings = settings
        self.policy = _policy(settings)
        self.superseded = asyncio.Event()
        self._hub = hub
        self._budget = budget
        self._open_books = open_books
        self._clock = clock
        self._chance = chance
        self._holder, self._address, self._generation = holder, address, generation
        self._observe_only = observe_only
        self._took_over = took_over
        self._notes = notes
        self._features = features or {}
        self._scope_notes: tuple[str, ...] = ()
        self._forgot_at: datetime | None = None
        self._books: Books | None = None
        self._keeper: LeaseKeeper | None = None
        self._trouble = ""
        self._stance = Stance()
        self._brake = ""
        self._hub_version: str | None = None
        self._last: CycleReport | None = None
        self._last_good_at: datetime | None = None
        self._next_at: datetime | None = None
        self._started_at = clock.now()
        self._one_at_a_time = asyncio.Lock()
        self._soon = asyncio.Event()
        self._announced: set[tuple[str, str, datetime | None]] | None = None
        self._learned_at: datetime | None = None

    # -- living ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the lease and run cycles until cancelled; then the lease is given up and the journal closed.

        With wrong settings it opens the journal, so that pages can show it, and does nothing else.
        """
        try:
            await asyncio.gather(self._keep_lease(), self._run_cycles())
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
        if self._keeper is not None:
            await self._keeper.give_up()
        if self._books is not None:
            self._books.close()

    async def _keep_lease(self) -> None:
        while True:
            wait_s = self.settings.guard.lease_s / 3
            try:
                await self._open()
                if not self.settings.errors:
                    await self._keep_lease_once()
                self._trouble = ""
            except JournalError as error:
                if str(error) != self._trouble:
                    log.error("%s", error)
                self._trouble = str(error)
                wait_s = min(wait_s, REOPEN_S)
            await self._clock.sleep(wait_s)

    async def _open(self) -> None:
        """The journal is open, and the stance is as it has it. Raises JournalError."""
        if self._books is None:
            self._books = await self._open_books()
            self._keeper = LeaseKeeper(
                self._books,
                self._clock,
                holder=self._holder,
                address=self._address,
                generation=self._generation,
                lease_s=self.settings.guard.lease_s,
            )
        self._stance = await self._books.call(self._books.journal.stance)

    async def _keep_lease_once(self) -> None:
        assert self._keeper is not None
        held_before = self._keeper.lease is not None
        holds = await self._keeper.keep()
        if self._keeper.superseded:
            self.superseded.set()
        if holds and not held_before:
            log.info("This guard holds the lease (fence %d).", self._keeper.seen.fence if self._keeper.seen else 0)
            if self._took_over and self._stance.armed is None:
                why = f"took over from {self._took_over}, and goes on with its settings"
                await self._set(Journal.arm, "hubguard", why)
            self._soon.set()
        elif held_before and not holds:
            log.warning("This guard has lost the lease and acts no more.")

    async def _run_cycles(self) -> None:
        while True:
            self._soon.clear()
            if not self.settings.errors and self._keeper is not None and self._keeper.lease is not None:
                try:
                    await self._cycle_alone("hubguard", asked=False)
                except HubGuardError as error:
                    log.warning("No cycle: %s", error)
                except Exception:
                    log.exception("A cycle ended in a defect of HubGuard; the next one comes as planned")
            wait_s = self.settings.cull.every_s * (1 + JITTER * (2 * self._chance() - 1))
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
        if self.settings.errors:
            raise HubGuardError(f"Nothing is done until this setting is right: {self.settings.errors[0]}")
        self._usable_books()
        if self._keeper is None or self._keeper.lease is None:
            raise HubGuardError(self._standby_why())
        policy = self.policy if idle_timeout_s is None else replace(self.policy, idle_timeout_s=idle_timeout_s)
        return await self._cycle_alone(
            asked_by, asked=True, dry_run=dry_run, policy=policy, rate=rate, concurrency=concurrency
        )

    async def _cycle_alone(
        self,
        actor: str,
        *,
        asked: bool,
        dry_run: bool = False,
        policy: CullPolicy | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        async with self._one_at_a_time:
            with self._budget.lowered(rate=rate, concurrency=concurrency):
                report = await self._cycle(
                    actor,
                    asked=asked,
                    dry_run=dry_run,
                    policy=policy or self.policy,
                    rate=rate,
                    concurrency=concurrency,
                )
            if not dry_run and policy in {None, self.policy}:
                self._last = report
            return report

    async def _cycle(
        self,
        actor: str,
        *,
        asked: bool,
        dry_run: bool,
        policy: CullPolicy,
        rate: float | None,
        concurrency: int | None,
    ) -> CycleReport:
        books, keeper = self._usable_books(), self._keeper
        assert keeper is not None
        began_at = self._clock.now()
        # Read before the snapshot is taken: an intent that is open by now is older than what the snapshot shows.
        open_intents = await books.call(books.journal.open_intents)
        snapshot = await observe(self._hub, self._clock)
        if snapshot.complete:
            await self._settle_what_was_left(open_intents, snapshot)
        history = await books.call(books.journal.failures, began_at - timedelta(seconds=HISTORY_S))
        verdicts = judge_all(snapshot.servers, policy, history, self._clock.now())
        plan = plan_cull(verdicts, policy, self._clock.now())
        self._stance = await books.call(books.journal.stance)
        skipped_why = self._why_not_to_act(snapshot, asked=asked, dry_run=dry_run)
        outcomes: tuple[tuple[Action, Outcome], ...] = ()
        if skipped_why:
            await self._announce(verdicts, skipped_why, complete=snapshot.complete, dry_run=dry_run)
        elif plan.actions:
            executor = Executor(self._hub, keeper, self._clock, verify_s=self.settings.cull.verify_s)
            outcomes = await executor.run(
                plan,
                policy,
                actor,
                asked=asked,
                armed=self._armed_by_settings(),
                concurrency=self._width(rate, concurrency),
            )
            await self._note_cycle(actor, plan, outcomes)
        await self._forget_what_is_old()
        if snapshot.complete:
            self._last_good_at = self._clock.now()
            if self._learned_at is None or self._clock.now() - self._learned_at >= timedelta(seconds=LEARN_S):
                await self._learn_about_hub()
        return CycleReport(began_at, self._clock.now(), snapshot, verdicts, plan, outcomes, skipped_why)

    def _why_not_to_act(self, snapshot: Snapshot, *, asked: bool, dry_run: bool) -> str:
        reading = next((reading for reading in snapshot.readings if not reading.complete), None)
        self._brake = f"the list of servers is incomplete: {reading.detail}" if reading else ""
        if dry_run:
            return "this was a dry run"
        if self._stance.held:
            return "acting is on hold"
        if self._brake:
            return self._brake
        if not asked and not self._armed():
            return f"HubGuard only observes: {self._why_observing()}"
        return ""

    def _width(self, rate: float | None, concurrency: int | None) -> int:
        """How many servers are worked on at once: not so many that a second look grows old while it waits for its turn."""
        use = self._budget.use()
        rate = min(rate or use.rate, use.rate)
        return max(1, min(concurrency or use.concurrency_cap, use.concurrency_cap, int(rate * LOOK_LASTS_S / 3)))

    async def _settle_what_was_left(self, open_intents: tuple[Entry, ...], snapshot: Snapshot) -> None:
        """Intents without an outcome, left by a guard that ended in between, are settled by what the snapshot shows.

        A server that is in the middle of something stays open: its end isn't known yet.
        """
        books = self._usable_books()
        seen = {server.key: server for server in snapshot.servers}
        for intent in open_intents:
            server = seen.get((intent.user or "", intent.server or ""))
            if server is None or server.started != intent.started:
                outcome = Outcome(OutcomeKind.DONE, "that run was found gone by a later look")
            elif server.pending is not None:
                continue
            else:
                outcome = Outcome(OutcomeKind.UNVERIFIED, "the guard ended before it knew; it is still running")
            await books.call(books.journal.settle, intent.id, outcome, self._clock.now())

    async def _announce(self, verdicts: tuple[Verdict, ...], why: str, *, complete: bool, dry_run: bool) -> None:
        """The journal says once for each run what would have been done to it."""
        if dry_run:
            return
        books = self._usable_books()
        if self._announced is None:
            told = await books.call(books.journal.entries, event="note", limit=REMEMBERED_NOTES)
            self._announced = {
                (entry.user or "", entry.server or "", entry.started)
                for entry in told
                if entry.detail.startswith(WOULD_BE_STOPPED)
            }
        due = {verdict.server.run: verdict for verdict in verdicts if verdict.standing is Standing.STOP}
        news = [
            Action(verdict.server.user, verdict.server.name, verdict.server.started, None, verdict.reason)
            for run, verdict in due.items()
            if run not in self._announced
        ]
        if news:
            detail = f"{WOULD_BE_STOPPED}, but {why}"
            await books.call(books.journal.note_each, news, "hubguard", self._clock.now(), detail)
        # What wasn't seen this time, as with the hub down, has been said all the same.
        self._announced = set(due) if complete else self._announced | set(due)

    async def _note_cycle(self, actor: str, plan: Plan, outcomes: tuple[tuple[Action, Outcome], ...]) -> None:
        books = self._usable_books()
        counts = {kind: sum(outcome.kind is kind for _, outcome in outcomes) for kind in OutcomeKind}
        told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count)
        rest = f"; {plan.left_out} more wait for the next cycle" if plan.left_out else ""
        fence = self._keeper.seen.fence if self._keeper and self._keeper.seen else 0
        detail = f"{len(plan.actions)} servers to stop: {told}{rest}"
        with contextlib.suppress(JournalError):
            await books.call(books.journal.note, "cycle", actor, fence, self._clock.now(), detail)

    async def _forget_what_is_old(self) -> None:
        """Once a day, so that the journal doesn't grow for ever; piece by piece, so that the lease can be renewed between."""
        now = self._clock.now()
        if self._forgot_at is None or now - self._forgot_at >= timedelta(days=1):
            books = self._usable_books()
            self._forgot_at = now
            try:
                gone = await books.call(books.journal.forget, now - timedelta(days=self.settings.guard.journal_days))
            except JournalError as error:
                # What this cycle did is told all the same.
                log.warning("The journal keeps what is old for another day: %s", error)
                return
            if gone:
                self._forgot_at = None  # there may be more, which waits for the next cycle
                log.info(
                    "The journal has forgotten %d entries older than %d days.", gone, self.settings.guard.journal_days
                )

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
        await self._set(Journal.arm, actor, why)
        self._soon.set()

    async def observe(self, actor: str, why: str) -> None:
        """See GuardPort."""
        if self._armed_by_settings():
            raise HubGuardError("HubGuard.armed is True in the config. Change it there; to stop acting now, use hold.")
        await self._set(Journal.observe, actor, why)

    async def hold(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self._set(Journal.hold, actor, why)

    async def resume(self, actor: str, why: str) -> None:
        """See GuardPort."""
        await self._set(Journal.resume, actor, why)
        self._soon.set()

    async def _set(self, change: Callable[[Journal, str, str, datetime], Stance], actor: str, why: str) -> None:
        books = self._usable_books()
        self._stance = await books.call(change, books.journal, actor, why, self._clock.now())

    # -- what people ask --------------------------------------------------------------------------------------------

    async def entries(
        self,
        *,
        before_id: int | None = None,
        limit: int = 100,
        user: str | None = None,
        server: str | None = None,
        event: str | None = None,
    ) -> tuple[Entry, ...]:
        """See GuardPort."""
        books = self._usable_books()
        return await books.call(
            books.journal.entries, before_id=before_id, limit=limit, user=user, server=server, event=event
        )

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
            last_cycle=self._last,
            last_good_cycle_at=self._last_good_at,
            next_cycle_at=self._next_at,
            errors=self.settings.errors,
            notes=self._notes + self._scope_notes,
            budget=self._budget.use(),
        )

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
            return (
                Mode.HELD,
                f"{self._stance.held_by or 'Someone'} has put acting on hold: {self._stance.held_why or ''}",
            )
        if self._last is None:
            return Mode.STARTING, "HubGuard is starting: the hub's servers are being read for the first time."
        if self._brake:
            return Mode.BRAKED, f"HubGuard holds back, since {self._brake}"
        if self._armed():
            return Mode.ACTING, "Servers that are due are stopped."
        return Mode.OBSERVING, f"Nothing is stopped: {self._why_observing()}."

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

    def _usable_books(self) -> Books:
        if self._books is None:
            raise JournalError(self._trouble or "The journal isn't open yet. Try again in a few seconds.")
        return self._books


def _policy(settings: Settings) -> CullPolicy:
    cull = settings.cull
    return CullPolicy(
        idle_timeout_s=cull.idle_timeout_s,
        max_age_s=cull.max_age_s,
        admin_servers=cull.admin_servers,
        default_servers=cull.default_servers,
        named_servers=cull.named_servers,
        remove_named_servers=cull.remove_named_servers,
        plan_cap=cull.plan_cap,
        retry_base_s=cull.retry_base_s,
        retry_max_s=cull.retry_max_s,
    )
