"""Pruning again and again: reading, planning, carrying out, and what is remembered between."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.act.prune import End, Ends, Looked, Pruner
from hubguard.act.restore import Restorer
from hubguard.clients import undo_file
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.clients.hub_db import HubDB
from hubguard.config import Settings
from hubguard.cycle import Cycles
from hubguard.decide import prune as decide
from hubguard.decide import prune_plan
from hubguard.decide.prune_risks import TOKENS
from hubguard.errors import HubError, HubGuardError, HubRefused, JournalError, UndoError
from hubguard.limits import backoff_s
from hubguard.model import BrakeReason, Finding, FindingKind, Outcome, OutcomeKind, Source, Stance, Tally
from hubguard.observe.accounts import AccountReader, AccountsRead
from hubguard.prune import (
    Account,
    Caution,
    Deletion,
    Protection,
    PruneItem,
    PrunePlan,
    PruneRun,
    PruneState,
    PruneVerdict,
    StaleCriteria,
    Storage,
    UndoHead,
    UndoUser,
    UsersReport,
)

log = logging.getLogger(__name__)

UNDO_FOLDER = "hubguard-undo"

READ_LASTS_S = 300.0
"""Users as they were read so lately are shown as they are. Every plan and every deletion reads anew."""

AWAY_S = 3600.0
"""Whoever looked at a plan has turned to other things when HubGuard comes back after so long: a person lets it go on."""

WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
"""Before a plan that waits for the hub goes on: in between, one harmless read finds out whether it answers."""

LATELY_S = 60.0
"""The rate is that of so many seconds."""

LOOKING_S = 0.2
"""While a cycle counts users, nobody is deleted; asked after so often whether it is through."""

PLANS_KEPT = 4
"""So many plans are kept as they were read from the journal: one for 50,000 users takes half a second to read."""

SCHEDULE = "prune"
"""Under this name the journal keeps when the last scheduled pruning was."""

TRANSIENT = frozenset({BrakeReason.INCOMPLETE, BrakeReason.CHECKING, BrakeReason.PROXY_DOWN})
"""These end by themselves, as an outage does, so that a plan waits for that rather than for a person."""

UNDER_WAY = (PruneState.RUNNING, PruneState.PAUSED)


@dataclass(frozen=True, slots=True)
class Told:
    """What the include tells of the hub's config. ``named`` are the users it names, None where that isn't known.

    ``classes`` are the full names of the spawner's class and those it is made of, nearest first; empty: not known.
    ``settings`` are those of its settings that decide what becomes of storage. ``overrides``: it has code of its own for
    what is done when a user is deleted; None: not known.
    """

    named: frozenset[str] | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    overrides: bool | None = None

    @classmethod
    def from_dict(cls, told: Mapping[str, Any] | None) -> Told:
        """As the include has written it; what it didn't tell isn't known."""
        told = told or {}
        named = told.get("named")
        return cls(
            None if named is None else frozenset(map(str, named)),
            tuple(map(str, told.get("classes") or ())),
            dict(told.get("settings") or {}),
            told.get("overrides"),
        )


class PruneCycles:
    """Implements PrunePort for one guard, and carries out one plan at a time.

    ``books`` gives the journal, ``keeper`` the lease; both raise HubGuardError with why, where they can't be used now.
    ``armed`` is what the settings say about acting (None: people do), ``acting`` whether HubGuard may act by itself.
    ``tally`` tells how users of plans were settled in this guard's life, ``waiting`` how many of the plan under way aren't,
    ``findings`` what an operator should look at.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        database: HubDB | None,
        cycles: Cycles,
        clock: Clock,
        chance: Callable[[], float],
        *,
        books: Callable[[], Books],
        keeper: Callable[[], LeaseKeeper],
        armed: Callable[[], bool | None],
        acting: Callable[[], bool],
        told: Told | None = None,
    ) -> None:
        self.tally = Tally()
        self.waiting = 0
        self.findings: tuple[Finding, ...] = ()
        self._settings = settings
        self._hub = hub
        self._cycles = cycles
        self._clock = clock
        self._chance = chance
        self._books = books
        self._keeper = keeper
        self._armed = armed
        self._acting = acting
        self._told = told or Told()
        self._undo_folder = Path(settings.prune.undo_folder or UNDO_FOLDER).absolute()
        self._reader = AccountReader(hub, database, clock)
        self._read: AccountsRead | None = None
        self._reading = asyncio.Lock()
        self._beginning = asyncio.Lock()
        self._plans: dict[str, PrunePlan] = {}
        self._in_undo: tuple[str, frozenset[str]] = ("", frozenset())
        self._pruner: Pruner | None = None
        self._task: asyncio.Task[None] | None = None
        self._of_task = ""
        self._settled_at_s: deque[float] = deque()
        self._failures = 0
        self._not_before_s = float("-inf")
        self._anew = True

    # -- looking --------------------------------------------------------------------------------------------------

    def default_criteria(self) -> StaleCriteria:
        """See PrunePort."""
        prune = self._settings.prune
        return StaleCriteria(
            inactive_for_s=prune.inactive_for_s,
            never_active_for_s=prune.never_active_for_s,
            groups=tuple(prune.groups),
            roles=tuple(prune.roles),
            names=tuple(prune.names),
        )

    async def users(self, criteria: StaleCriteria | None = None, *, caller: str | None = None) -> UsersReport:
        """See PrunePort."""
        criteria = decide.checked(criteria or self.default_criteria())
        self._keeper()
        read = await self._read_lately(criteria)
        verdicts = await self._judge(read, criteria, caller)
        storage = await self._storage()
        notes = []
        if read.since is not None:
            notes.append(
                f"Only users who weren't active since {read.since:%Y-%m-%d} are listed: more would cost the hub too much"
                " by way of its API. Give HubGuard the hub's database (HubGuard.hub_db_url) to see all."
            )
        notes += [caution.why for caution in await self._cautions(storage)]
        return UsersReport(
            read_at=read.at,
            criteria=criteria,
            verdicts=verdicts,
            users_total=read.users_total,
            source=read.source.value,
            whole=read.since is None,
            storage=storage,
            notes=tuple(notes),
            took_s=read.took_s,
        )

    async def user(
        self, name: str, criteria: StaleCriteria | None = None, *, caller: str | None = None
    ) -> PruneVerdict | None:
        """See PrunePort."""
        criteria = decide.checked(criteria or self.default_criteria())
        self._keeper()
        try:
            account = await self._reader.one(name)
        except HubRefused:
            # Without the right to see tokens, the rest can be told all the same.
            account = await self._reader.one(name, tokens=False)
        if account is None:
            return None
        books, now = self._books(), self._clock.now()
        exemptions = await books.call(books.journal.exemptions, now, user=name)
        uses = await books.call(books.journal.uses, name)
        return decide.judge([account], criteria, self._protection(caller), exemptions, uses, now)[0]

    async def _read_lately(self, criteria: StaleCriteria) -> AccountsRead:
        async with self._reading:
            now, lasts = self._clock.now(), timedelta(seconds=READ_LASTS_S)
            since, read = decide.since(criteria, now), self._read
            fresh = read is not None and abs(now - read.at) < lasts
            if read is None or not fresh or (read.since is not None and read.since < since - lasts):
                self._read = read = await self._reader.read(since)
            return read

    async def _judge(self, read: AccountsRead, criteria: StaleCriteria, caller: str | None) -> tuple[PruneVerdict, ...]:
        books, now = self._books(), self._clock.now()
        exemptions = await books.call(books.journal.exemptions, now)
        uses = await books.call(books.journal.uses)
        return decide.judge(read.accounts, criteria, self._protection(caller), exemptions, uses, now)

    def _protection(self, *callers: str | None) -> Protection:
        prune = self._settings.prune
        return Protection(
            groups=tuple(prune.protected_groups),
            roles=tuple(prune.protected_roles),
            names=tuple(prune.protected_names),
            in_config=self._told.named,
            token_used_within_s=prune.token_used_within_s,
            callers=tuple(caller for caller in callers if caller),
        )

    async def _storage(self) -> Storage:
        classes: Sequence[str] = self._told.classes
        if not classes:
            try:
                spawner = await self._hub.spawner_class()
            except HubError as error:
                log.info("Which spawner the hub has isn't known: %s", error)
                spawner = None
            classes = [spawner] if spawner else []
        return prune_plan.storage(classes, self._told.settings, self._told.overrides)

    async def _cautions(self, storage: Storage) -> tuple[Caution, ...]:
        tokens_known = await self._reader.tokens_known()
        return prune_plan.cautions(storage, self._protection(), tokens_known=tokens_known)

    # -- planning -------------------------------------------------------------------------------------------------

    async def plan(self, criteria: StaleCriteria, actor: str, *, caller: str | None = None) -> PrunePlan:
        """See PrunePort."""
        criteria = decide.checked(criteria)
        self._keeper()
        plan = await self._make_plan(criteria, actor, caller, cap=None)
        if not plan.deletions:
            raise HubGuardError("Nobody is stale by these limits who isn't kept, so there is nothing to plan.")
        await self._keep(plan)
        return plan

    async def _make_plan(
        self, criteria: StaleCriteria, actor: str, caller: str | None, *, cap: int | None
    ) -> PrunePlan:
        async with self._reading:
            self._read = read = await self._reader.read(decide.since(criteria, self._clock.now()))
        storage = await self._storage()
        try:
            startup_s = await self._hub.startup_s()
        except HubError:
            startup_s = None
        try:
            named_servers = int((await self._hub.version()).partition(".")[0]) >= 6
        except ValueError:
            named_servers = False
        cautions = await self._cautions(storage)
        of_database = read.source is Source.HUB_DB
        verdicts = await self._judge(read, criteria, caller)
        # In the journal's thread: for 50,000 users the digest takes a while, in which others are answered.
        return await self._books().call(
            prune_plan.freeze,
            verdicts,
            criteria,
            self._clock.now(),
            made_by=actor,
            life_s=self._settings.prune.plan_life_s,
            cap=cap,
            users_total=read.users_total,
            storage=storage,
            cautions=cautions,
            lost=prune_plan.lost(storage, offline=False, rows=of_database, named_servers=named_servers),
            startup_s=startup_s,
            rows_known=of_database,
        )

    async def _keep(self, plan: PrunePlan, *, scheduled: bool = False, why: str = "") -> PruneRun:
        books = self._books()

        def keep() -> PruneRun:
            text = json.dumps(prune_plan.to_dict(plan), separators=(",", ":"))
            return books.journal.keep_plan(plan, text, scheduled=scheduled, why=why)

        run = await books.call(keep)
        self._remember(plan)
        return run

    def _remember(self, plan: PrunePlan) -> None:
        self._plans.pop(plan.digest, None)
        self._plans[plan.digest] = plan
        while len(self._plans) > PLANS_KEPT:
            del self._plans[next(iter(self._plans))]

    # -- what is asked of plans -----------------------------------------------------------------------------------

    async def runs(self, *, limit: int = 100) -> tuple[PruneRun, ...]:
        """See PrunePort."""
        books = self._books()
        return tuple(map(self._with_pace, await books.call(books.journal.prune_runs, limit=limit)))

    async def run(self, digest: str) -> PruneRun:
        """See PrunePort."""
        books = self._books()
        run = await books.call(books.journal.prune_run, digest)
        if run is None:
            raise _no_plan(digest)
        return self._with_pace(run)

    async def plan_of(self, digest: str) -> PrunePlan:
        """See PrunePort."""
        plan = self._plans.get(digest) or await self._read_plan(digest)
        if plan is None:
            raise _no_plan(digest)
        self._remember(plan)
        return plan

    async def _read_plan(self, digest: str) -> PrunePlan | None:
        books = self._books()

        def read() -> PrunePlan | None:
            text = books.journal.plan_text(digest)
            return None if text is None else prune_plan.from_dict(json.loads(text))

        try:
            return await books.call(read)
        except (ValueError, RecursionError) as error:
            raise JournalError(
                f"Plan {digest[:12]} in the journal isn't what it was ({error}), so it isn't carried out. Make a new one."
            ) from None

    async def items(
        self, digest: str, *, state: str | None = None, offset: int = 0, limit: int | None = None
    ) -> tuple[PruneItem, ...]:
        """See PrunePort."""
        plan, books = await self.plan_of(digest), self._books()
        first, end = (offset, None if limit is None else offset + limit) if state is None else (0, None)
        settled = {one.position: one for one in await books.call(books.journal.pruned, digest, first, end)}
        wanted = []
        for position, deletion in enumerate(plan.deletions[first:end], first):
            one = settled.get(position)
            item = PruneItem(position, deletion, one.outcome if one else None, one.at if one else None)
            if state is None or item.state == state:
                wanted.append(item)
        if state is not None:
            wanted = wanted[offset : None if limit is None else offset + limit]
        return tuple(wanted)

    def _with_pace(self, run: PruneRun) -> PruneRun:
        if run.state is not PruneState.RUNNING or run.digest != self._of_task:
            return run
        now_s = self._clock.monotonic_s()
        while self._settled_at_s and self._settled_at_s[0] < now_s - LATELY_S:
            self._settled_at_s.popleft()
        if len(self._settled_at_s) < 2:
            return run
        per_s = len(self._settled_at_s) / max(1.0, now_s - self._settled_at_s[0])
        return replace(run, per_s=per_s, left_s=(run.count - run.settled) / per_s)

    # -- beginning, pausing, ending -------------------------------------------------------------------------------

    async def apply(
        self, digest: str, count: int, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()
    ) -> PruneRun:
        """See PrunePort."""
        keeper, books = self._keeper(), self._books()
        async with self._beginning:
            known = await books.call(books.journal.prune_run, digest)
            plan = None if known is None else await self.plan_of(digest)
            refusal = prune_plan.refusal(plan, count=count, now=self._clock.now(), acknowledged=acknowledged)
            if refusal is not None:
                raise HubGuardError(refusal)
            assert plan is not None
            assert known is not None
            if plan.offline:
                raise HubGuardError("This plan is for a hub that doesn't run. Nothing was done; make one for this hub.")
            if known.state is not PruneState.PLANNED:
                raise HubGuardError(f"This plan was begun before, and is {known.state.value}. Nothing was done.")
            await self._refuse_while_held(books)
            if (brake := self._cycles.brake) is not None:
                raise HubGuardError(
                    f"HubGuard holds back, since {brake.why.rstrip('.')}. {brake.ends} Nothing was deleted."
                )
            return await self._begin(books, keeper, plan, actor, why)

    async def _begin(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, actor: str, why: str) -> PruneRun:
        """The undo file is on disk, and the plan under way. Raises HubGuardError, and then nothing is done."""
        for other in await books.call(books.journal.prunes_under_way):
            if other.state is PruneState.RUNNING:
                raise HubGuardError(
                    f"Another plan ({other.digest[:12]}) is being carried out. Nothing was done; wait for it, pause or"
                    " cancel it."
                )
        written, names = await self._write_undo(books, plan)
        run = await books.call(
            books.journal.begin_prune,
            plan.digest,
            actor,
            why,
            str(written.path),
            written.sha256,
            self._clock.now(),
        )
        if run is None:
            # Nothing rests on it, and it holds what nobody should keep without need.
            await books.call(written.path.unlink, missing_ok=True)
            raise HubGuardError("Somebody else has begun this plan, or another, at this moment. Look at how it stands.")
        self._in_undo = (plan.digest, names)
        log.info("Plan %s, to remove %d users, is carried out for %s (%s).", plan.digest[:12], run.count, actor, why)
        self._start(books, keeper, plan, run)
        return run

    async def _write_undo(self, books: Books, plan: PrunePlan) -> tuple[undo_file.Written, frozenset[str]]:
        names = [deletion.user for deletion in plan.deletions]
        now = self._clock.now()
        users: list[UndoUser] = await self._reader.undo_users(names, decide.since(plan.criteria, now))
        if not users:
            raise HubGuardError("None of the users of this plan is there any more. Nothing was done; make a new one.")
        revision, place = "", ""
        if (database := self._reader.database) is not None:
            revision = (await database.accounts(None, names[:1])).revision
            place = str(getattr(database, "place", ""))
        head = UndoHead(plan.digest, now, plan.made_by, database=place, revision=revision)
        written = await books.call(undo_file.write, self._undo_folder, head, users)
        return written, frozenset(user.name for user in users)

    async def pause(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        run = await self._turn(digest, (PruneState.RUNNING,), PruneState.PAUSED, actor, _by("paused", actor, why))
        return self._with_pace(run)

    async def resume(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        keeper, books = self._keeper(), self._books()
        plan = await self.plan_of(digest)
        await self._refuse_while_held(books)
        run = await self._turn(digest, (PruneState.PAUSED,), PruneState.RUNNING, actor, "")
        self._failures, self._not_before_s = 0, float("-inf")
        # Where the one under way is still ending, the next tick goes on with it.
        if self._task is None or self._task.done():
            self._start(books, keeper, plan, run)
        return run

    async def cancel(self, digest: str, actor: str, why: str) -> PruneRun:
        """See PrunePort."""
        states = (PruneState.PLANNED, *UNDER_WAY)
        return await self._turn(digest, states, PruneState.CANCELLED, actor, _by("cancelled", actor, why))

    async def _turn(
        self, digest: str, from_states: tuple[PruneState, ...], to: PruneState, actor: str, why: str
    ) -> PruneRun:
        books = self._books()
        run = await books.call(books.journal.turn_prune, digest, from_states, to, actor, why, self._clock.now())
        if run is None:
            stands = await self.run(digest)
            if to is PruneState.RUNNING and stands.state in from_states:
                raise HubGuardError("Another plan is being carried out. Nothing was changed; wait for it, or pause it.")
            raise HubGuardError(
                f"This plan is {stands.state.value}, so it can't be made {to.value}. Nothing was changed."
            )
        return run

    async def _refuse_while_held(self, books: Books) -> None:
        if not self._settings.prune.delete_users:
            raise HubGuardError(
                "HubGuardPrune.delete_users is False, so HubGuard deletes nobody. Set it before HubGuard's include, and"
                " restart the hub. Nothing was done."
            )
        stance: Stance = await books.call(books.journal.stance)
        if stance.held:
            raise HubGuardError(f"{_held(stance)}. Nothing was done; resume first.")

    # -- carrying out ---------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """What the journal tells of plans under way is looked at anew: another guard may have been at work since."""
        self._anew = True

    def under_way(self) -> frozenset[int]:
        """The ids of the intents that are being worked on here."""
        return self._pruner.under_way if self._pruner is not None else frozenset()

    async def close(self) -> None:
        """What is under way is left as it is: whoever holds the lease next goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def tick(self) -> None:
        """What is under way goes on, and what is due by schedule begins. Raises HubGuardError. Call it every few seconds."""
        if self._task is not None and not self._task.done():
            return
        keeper, books = self._keeper(), self._books()
        under_way = await books.call(books.journal.prunes_under_way)
        self.waiting = sum(run.count - run.settled for run in under_way)
        running = next((run for run in under_way if run.state is PruneState.RUNNING), None)
        anew, self._anew = self._anew, False
        if running is None:
            await self._prune_by_schedule(books, keeper)
            return
        if anew and (why := await self._too_long_ago(books, running)):
            await self._pause_by_itself(books, running.digest, why)
        elif self._clock.monotonic_s() >= self._not_before_s:
            self._start(books, keeper, await self.plan_of(running.digest), running)

    async def _too_long_ago(self, books: Books, run: PruneRun) -> str:
        """Why a person should look before a plan goes on that another guard, or we in an earlier life, has left; or ""."""
        now = self._clock.now()
        turned_at = await books.call(books.journal.prune_turned_at, run.digest)
        if turned_at is not None and now - turned_at > timedelta(seconds=AWAY_S):
            return f"HubGuard was away since {turned_at:%Y-%m-%d %H:%M} UTC. Resume it if it is still wanted."
        life_s = self._settings.prune.plan_life_s
        if run.began_at is not None and now - run.began_at > timedelta(seconds=life_s):
            return f"HubGuard was restarted, and the plan was begun over {life_s:g} s ago. Resume it if it is still wanted."
        return ""

    async def _pause_by_itself(self, books: Books, digest: str, why: str) -> None:
        log.warning("Plan %s is paused: %s", digest[:12], why)
        now = self._clock.now()
        await books.call(
            books.journal.turn_prune, digest, (PruneState.RUNNING,), PruneState.PAUSED, "hubguard", why, now
        )

    def _start(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> None:
        self._settled_at_s.clear()
        self._of_task = plan.digest
        self.waiting = run.count - run.settled
        self._task = asyncio.get_running_loop().create_task(self._carry_out(books, keeper, plan, run))

    async def _carry_out(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> None:
        try:
            end = await self._work(books, keeper, plan, run)
        except UndoError as error:
            end = End(Ends.PAUSES, str(error))
        except HubGuardError as error:
            end = End(Ends.WAITS, str(error))
        except Exception:
            log.exception("Plan %s came upon a defect of HubGuard", plan.digest[:12])
            end = End(Ends.WAITS, "a defect in HubGuard; its log tells more. It is tried again")
        finally:
            self._pruner = None
        try:
            await self._conclude(books, plan, end)
        except JournalError as error:
            log.warning("The journal doesn't tell yet how plan %s stands: %s", plan.digest[:12], error)

    async def _work(self, books: Books, keeper: LeaseKeeper, plan: PrunePlan, run: PruneRun) -> End:
        settings = self._settings
        in_undo = await self._names_in_undo(books, run)
        open_intents = await books.call(books.journal.open_intents)
        if run.why:
            await books.call(books.journal.say_of_prune, plan.digest, "")
        self._pruner = Pruner(
            self._hub,
            books,
            keeper,
            self._clock,
            self._chance,
            lambda deletion: self._second_look(books, plan, deletion),
            lambda: self._may_go(books, keeper, plan.digest),
            plan=plan,
            run=run,
            in_undo=in_undo,
            told=self._settled,
            rate=settings.prune.rate,
            concurrency=settings.budget.concurrency,
            verify_s=settings.cull.verify_s,
            armed=self._armed(),
        )
        return await self._pruner.work(open_intents)

    async def _names_in_undo(self, books: Books, run: PruneRun) -> frozenset[str]:
        if self._in_undo[0] != run.digest:
            _, users = await self._read_undo(books, run)
            self._in_undo = (run.digest, frozenset(user.name for user in users))
        return self._in_undo[1]

    async def _read_undo(self, books: Books, run: PruneRun) -> tuple[UndoHead, tuple[UndoUser, ...]]:
        if run.undo_file is None:
            raise UndoError(f"Plan {run.digest[:12]} has no undo file: it was never begun.")
        return await books.call(undo_file.read, Path(run.undo_file), sha256=run.undo_sha256)

    async def _second_look(self, books: Books, plan: PrunePlan, deletion: Deletion) -> Looked:
        """What that very user is now, by every source there is, and by what people have asked for meanwhile."""
        account = await self._account(plan, deletion)
        now = self._clock.now()
        exemptions = await books.call(books.journal.exemptions, now, user=deletion.user)
        use = (await books.call(books.journal.uses, deletion.user)).get(deletion.user)
        why_not = decide.second_look(
            deletion, account, plan.criteria, self._protection(), exemptions, use, self._clock.now()
        )
        return Looked(account, why_not)

    async def _account(self, plan: PrunePlan, deletion: Deletion) -> Account | None:
        try:
            return await self._reader.one(deletion.user)
        except HubRefused:
            # Only where somebody has acknowledged that tokens can't be seen may it go on without.
            if (
                not any(caution.name == TOKENS for caution in plan.cautions)
                and self._settings.prune.token_used_within_s
            ):
                raise
            return await self._reader.one(deletion.user, tokens=False)

    async def _may_go(self, books: Books, keeper: LeaseKeeper, digest: str) -> End | None:
        while self._cycles.looking:
            await self._clock.sleep(LOOKING_S)
        if keeper.lease is None:
            return End(Ends.LEFT)
        if await books.call(books.journal.prune_state, digest) is not PruneState.RUNNING:
            return End(Ends.LEFT)
        if not self._settings.prune.delete_users:
            return End(Ends.PAUSES, "HubGuardPrune.delete_users is False, so HubGuard deletes nobody.")
        stance: Stance = await books.call(books.journal.stance)
        if stance.held:
            return End(Ends.PAUSES, f"{_held(stance)}. Resume acting, then this plan.")
        brake = self._cycles.brake
        if brake is None:
            return None
        why = f"HubGuard holds back, since {brake.why.rstrip('.')}. {brake.ends}"
        return End(Ends.WAITS if brake.reason in TRANSIENT else Ends.PAUSES, why)

    def _settled(self, outcome: Outcome) -> None:
        self._settled_at_s.append(self._clock.monotonic_s())
        self._failures = 0
        self.waiting = max(0, self.waiting - 1)
        count = getattr(self.tally, outcome.kind.value) + 1
        self.tally = replace(self.tally, **{outcome.kind.value: count})
        if outcome.kind is OutcomeKind.DONE:
            self._cycles.count_deleted()

    async def _conclude(self, books: Books, plan: PrunePlan, end: End) -> None:
        if end.how is Ends.DONE:
            await books.call(
                books.journal.turn_prune,
                plan.digest,
                (PruneState.RUNNING,),
                PruneState.DONE,
                "hubguard",
                "",
                self._clock.now(),
            )
            self._read = None
        elif end.how is Ends.PAUSES:
            await self._pause_by_itself(books, plan.digest, end.why)
        elif end.how is Ends.WAITS:
            self._failures += 1
            wait_s = WAIT_S + backoff_s(self._failures, self._chance(), WAIT_S, LONGEST_WAIT_S)
            self._not_before_s = self._clock.monotonic_s() + wait_s
            log.info("Plan %s waits: %s", plan.digest[:12], end.why)
            await books.call(books.journal.say_of_prune, plan.digest, end.why)

    # -- bringing back --------------------------------------------------------------------------------------------

    async def restore(
        self, digest: str, count: int, actor: str, why: str, *, token: str, sha256: str | None = None
    ) -> PruneRun:
        """See PrunePort."""
        self._keeper()
        books = self._books()
        async with self._beginning:
            run = await self.run(digest)
            if run.state is PruneState.RUNNING:
                raise HubGuardError(
                    "This plan is being carried out. Nobody was brought back; pause or cancel it first."
                )
            stance: Stance = await books.call(books.journal.stance)
            if stance.held:
                raise HubGuardError(f"{_held(stance)}. Nobody was brought back; resume first.")
            if sha256 is not None and sha256 != run.undo_sha256:
                raise UndoError(
                    "The undo file you have isn't the one that was written for this plan. Nobody was brought back."
                )
            deleted = await self._deleted_by(books, digest)
            if count != len(deleted):
                raise HubGuardError(
                    f"This plan deleted {len(deleted):,} users, not {count:,}. Nobody was brought back."
                )
            head, users = await self._read_undo(books, run)
            chosen = [user for user in users if user.name in deleted]
            what = f"bringing back {len(chosen):,} users of plan {digest[:12]} was asked for: {why}"
            await books.call(books.journal.note, "note", actor, 0, self._clock.now(), what)
            async with self._hub.with_token(token) as hub:
                restorer = Restorer(hub, confirm=self._may_restore)
                outcomes = await restorer.restore(chosen, since=head.made_at)
            restored = sum(outcome.kind is OutcomeKind.DONE for _, outcome in outcomes)
            self._read = None
            return await books.call(books.journal.note_restored, digest, outcomes, restored, actor, self._clock.now())

    async def _may_restore(self) -> None:
        self._keeper()
        stance: Stance = await self._books().call(self._books().journal.stance)
        if stance.held:
            raise HubGuardError(_held(stance))

    async def _deleted_by(self, books: Books, digest: str) -> frozenset[str]:
        """The users whom that plan deleted, those among them of whom it wasn't sure then and who are gone."""
        plan, names = await self.plan_of(digest), set()
        for one in await books.call(books.journal.pruned, digest):
            deletion = plan.deletions[one.position]
            unsure = one.outcome.kind is OutcomeKind.UNVERIFIED
            if one.outcome.kind is OutcomeKind.DONE or (unsure and await self._hub.get_user(deletion.user) is None):
                names.add(deletion.user)
        return frozenset(names)

    # -- by schedule ----------------------------------------------------------------------------------------------

    async def _prune_by_schedule(self, books: Books, keeper: LeaseKeeper) -> None:
        every_s, now = self._settings.prune.every_s, self._clock.now()
        if every_s <= 0 or not self._acting() or not self._settings.prune.delete_users:
            return
        last = await books.call(books.journal.recall, SCHEDULE)
        if last is not None and timedelta() <= now - last[1] < timedelta(seconds=every_s):
            return
        if self._cycles.last is None or (await books.call(books.journal.stance)).held:
            return
        # Before it begins: one that ends in a defect isn't tried over and over.
        await books.call(books.journal.remember, SCHEDULE, {}, now)
        if (brake := self._cycles.brake) is not None:
            await self._hold_back(books, f"HubGuard holds back, since {brake.why.rstrip('.')}.")
            return
        criteria = decide.checked(self.default_criteria())
        plan = await self._make_plan(criteria, "hubguard", None, cap=self._settings.prune.run_cap)
        if not plan.deletions:
            self.findings = ()
            return
        await self._keep(plan, scheduled=True, why="by schedule")
        stale = len(plan.deletions) + plan.left_out
        why = prune_plan.held(stale, plan.gain.users_before, self._settings.prune.share_cap)
        if why is None:
            acknowledged = tuple(self._settings.prune.acknowledged)
            why = prune_plan.refusal(plan, count=len(plan.deletions), now=self._clock.now(), acknowledged=acknowledged)
        if why is not None:
            await self._hold_back(books, why)
            return
        self.findings = ()
        async with self._beginning:
            await self._begin(books, keeper, plan, "hubguard", "by schedule")

    async def _hold_back(self, books: Books, why: str) -> None:
        now = self._clock.now()
        detail = f"Scheduled pruning removes nobody: {why}"
        since = self.findings[0].since if self.findings else now
        self.findings = (Finding(FindingKind.PRUNE_HELD, since, detail),)
        log.warning("%s", detail)
        await books.call(books.journal.note, "finding", "hubguard", 0, now, detail)


def _no_plan(digest: str) -> HubGuardError:
    return HubGuardError(
        f"There is no plan {digest[:12]} (any more): it was never made here, or has been forgotten. Make it again."
    )


def _by(what: str, actor: str, why: str) -> str:
    return f"{what} by {actor}" + (f": {why}" if why else "")


def _held(stance: Stance) -> str:
    return f"{stance.held_by or 'Someone'} has put acting on hold: {stance.held_why or 'no reason given'}"
