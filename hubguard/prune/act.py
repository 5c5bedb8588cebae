"""Carrying out a plan to remove users: each by a second look, an intent, the request, a re-read and an outcome."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from hubguard.act.attempt import Attempt, Sent
from hubguard.act.lease import Books, LeaseKeeper
from hubguard.errors import (
    ActingRefused,
    BudgetExhausted,
    HubBusy,
    HubDBError,
    HubError,
    HubFailed,
    HubGuardError,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
    OtherHubsDB,
    Unrecordable,
)
from hubguard.hub.api import HubAPI
from hubguard.hub.nouns import Account
from hubguard.journal.model import Entry
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind, same_run
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import Rate, backoff_s
from hubguard.prune.model import Deletion, PrunePlan, PruneRun

log = logging.getLogger(__name__)

TRIES = 3
"""So often deleting one user is tried in one go, each time by a new second look, before it counts as failed."""

RETRY_S, LONGEST_RETRY_S = 10.0, 120.0
"""Before a second try, and what may come on top of it: mostly it is a server that the hub still stops."""

REREAD_S, LONGEST_REREAD_S = 0.5, 8.0

AT_ONCE = 3
"""So many users at most are worked on at once: one that the hub deletes, which is all it does then, the next one, and one
that is being written down. With more, others wait longer for the hub, and nothing is gained. It has to stay below what makes
a fall of the population (decide.watch.FEWEST_GONE), since it may be counted while they go."""

GATEWAY = (502, 504)
"""What is answered in place of a hub that isn't there, where something stands before it; so is 503, as HubBusy."""

HALF_WAY = (
    "the hub's authenticator may have forgotten the user already, so that they can't log in; delete them in the hub's admin"
    " page, or by another plan"
)
"""5.5 and 6.1 run authenticator.delete_user before anything that can fail."""


class Ends(str, Enum):
    """Why the runner has stopped working on a plan."""

    DONE = "done"  # every user is settled
    WAITS = "waits"  # it goes on by itself when the hub and its database answer
    PAUSES = "pauses"  # until a person resumes it
    LEFT = "left"  # to whoever has turned it, or acts now


@dataclass(frozen=True, slots=True)
class End:
    """How it ended; ``why`` is one line, or ""."""

    how: Ends
    why: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """A second look: the user as they are now, None: nobody by that name; and why they aren't to go, None where they are."""

    account: Account | None
    why_not: str | None


SecondLook = Callable[[Deletion], Awaitable[Looked]]
IsGone = Callable[[Deletion], Awaitable[bool]]


class Pruner:
    """Carries out one plan that is under way. Make a new one each time it goes on.

    ``second_look`` looks at one user anew. ``is_gone`` is a proof that costs the hub nothing; where it says no, the hub is
    asked. ``may_go`` is asked before each, and says how it ends, where it does. ``hub_was_away`` is told when the hub hasn't
    answered, before anybody is looked at again: it may be another one that answers next. ``in_undo`` are those of whom the
    undo file holds all there is: nobody else is deleted. ``told`` is given each outcome that settles a user, when it is on
    disk. At most ``rate`` users a second are begun, ``concurrency`` or AT_ONCE of them at once. ``failures`` counts how often
    each user (by position) was tried in vain, over all times that it goes on, and is kept by whoever makes it.
    """

    def __init__(
        self,
        hub: HubAPI,
        books: Books,
        keeper: LeaseKeeper,
        clock: Clock,
        chance: Callable[[], float],
        second_look: SecondLook,
        is_gone: IsGone,
        may_go: Callable[[], Awaitable[End | None]],
        hub_was_away: Callable[[], None],
        *,
        plan: PrunePlan,
        run: PruneRun,
        in_undo: Collection[str],
        told: Callable[[Outcome], None],
        rate: float,
        concurrency: int,
        verify_s: float,
        armed: bool | None,
        failures: dict[int, int],
    ) -> None:
        self._hub = hub
        self._books = books
        self._keeper = keeper
        self._clock = clock
        self._chance = chance
        self.look = second_look
        self._proved_gone = is_gone
        self._may_go = may_go
        self._hub_was_away = hub_was_away
        self._plan = plan
        self._run = run
        self._began_at = run.began_at or run.made_at
        self._in_undo = frozenset(in_undo)
        self._told = told
        self._rate = Rate(rate, 1, clock.monotonic_s())
        self._turns = asyncio.Lock()
        self._concurrency = max(1, min(concurrency, AT_ONCE))
        self._verify_s = verify_s
        self._armed = armed
        self._queue: list[tuple[float, int]] = []
        self._failures = failures
        self._attempts: set[Attempt] = set()
        self._end: End | None = None

    @property
    def under_way(self) -> frozenset[int]:
        """The ids of the intents that are being worked on."""
        return frozenset(attempt.intent for attempt in self._attempts if attempt.intent is not None)

    async def work(self, left_open: Iterable[Entry]) -> End:
        """Delete who waits for their turn until all are settled, or something ends it; how. Raises JournalError.

        ``left_open`` are the intents that had no outcome when it began. What was under way then is read again first.
        """
        await self._settle_left_open(left_open)
        await self._read_unverified_again()
        settled = {one.position for one in await self._books.call(self._books.journal.pruned, self._plan.digest)}
        self._queue = [(0.0, position) for position in range(len(self._plan.deletions)) if position not in settled]
        await self._all_take_turns()
        if self._end is not None:
            return self._end
        if unsure := await self._read_unverified_again():
            return End(Ends.WAITS, f"what became of {unsure:,} users isn't known yet: the hub doesn't tell")
        return End(Ends.WAITS if await self._waiting() else Ends.DONE)

    async def _waiting(self) -> bool:
        settled = await self._books.call(self._books.journal.pruned, self._plan.digest)
        return len(settled) < len(self._plan.deletions)

    # -- what was left --------------------------------------------------------------------------------------------

    async def _settle_left_open(self, left_open: Iterable[Entry]) -> None:
        positions = {deletion.user: position for position, deletion in enumerate(self._plan.deletions)}
        for intent in left_open:
            position = positions.get(intent.user or "")
            if (
                position is None
                or intent.action != ActionKind.DELETE_USER.value
                or intent.at < self._began_at
                or not same_run(self._plan.deletions[position].created, intent.started)
            ):
                continue
            gone = await self._is_gone(self._plan.deletions[position])
            if gone is None:
                continue
            if gone:
                outcome = Outcome(OutcomeKind.DONE, "that user was found gone by a later look")
            else:
                outcome = Outcome(OutcomeKind.UNVERIFIED, "the guard ended before it knew; the user is still there")
            await self._keeper.settle(intent.id, outcome)
            if gone:
                await self._settle(position, outcome)

    async def _read_unverified_again(self) -> int:
        """Those that are gone are done, those that are still there wait for their turn again; how many don't tell."""
        unsure = 0
        for one in await self._books.call(self._books.journal.pruned, self._plan.digest):
            if one.outcome.kind is not OutcomeKind.UNVERIFIED:
                continue
            gone = await self._is_gone(self._plan.deletions[one.position])
            if gone:
                await self._settle(one.position, Outcome(OutcomeKind.DONE, "gone at a later re-read"))
            elif gone is False and self._failures.get(one.position, 0) >= TRIES:
                why = f"still there: the hub never told what came of it (tried {TRIES} times); {HALF_WAY}"
                await self._settle(one.position, Outcome(OutcomeKind.FAILED, why))
            elif gone is False:
                await self._books.call(self._books.journal.wait_again, self._plan.digest, one.position)
            else:
                unsure += 1
        return unsure

    async def _is_gone(self, deletion: Deletion) -> bool | None:
        """Whether that very user is gone; None: the hub doesn't tell."""
        try:
            user = await self._hub.get_user(deletion.user)
        except (HubError, BudgetExhausted) as error:
            self.note_away(error)
            log.info("What became of deleting %s isn't known yet: %s", deletion.user, error)
            return None
        return user is None or not same_run(user.created, deletion.created)

    # -- one after another ----------------------------------------------------------------------------------------

    async def _all_take_turns(self) -> None:
        tasks = [asyncio.ensure_future(self._take_turns()) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turns(self) -> None:
        while self._queue and self._end is None:
            due_s, position = heapq.heappop(self._queue)
            try:
                wait_s = due_s - self._clock.monotonic_s()
                if wait_s > 0:
                    await self._clock.sleep(min(wait_s, RETRY_S))
                    heapq.heappush(self._queue, (due_s, position))
                    # Long waits end with the rest: somebody may have paused it meanwhile.
                    await self._look_whether_it_goes_on()
                    continue
                await self._turn()
                await self._look_whether_it_goes_on()
                if self._end is None:
                    await self._try(position)
            except JournalError as error:
                self._end = self._end or _ended_by(error)

    async def _look_whether_it_goes_on(self) -> None:
        # Not in one expression: what another task has found meanwhile would be lost.
        end = await self._may_go()
        self._end = self._end or end

    async def _turn(self) -> None:
        """Wait until the next may be begun."""
        async with self._turns:
            while (wait_s := self._rate.wait_s(self._clock.monotonic_s())) > 0:
                await self._clock.sleep(wait_s)
            self._rate.reserve(self._clock.monotonic_s())
            self._rate.spend(self._clock.monotonic_s())

    async def _try(self, position: int) -> None:
        deletion = self._plan.deletions[position]
        action = Action(
            deletion.user,
            "",
            deletion.created,
            deletion.last_activity,
            deletion.reason.value,
            kind=ActionKind.DELETE_USER,
        )
        if deletion.user not in self._in_undo:
            why = "the undo file doesn't have them: they weren't there when it was written"
            await self._keeper.skip(action, self._run.actor, why)
            await self._settle(position, Outcome(OutcomeKind.SKIPPED, why))
            return
        attempt = Attempt(
            self._keeper,
            self._clock,
            action,
            self._run.actor,
            asked=not self._run.scheduled,
            armed=self._armed,
            detail=f"plan {self._plan.digest[:12]}",
        )
        self._attempts.add(attempt)
        try:
            outcome, error = await _Once(self, deletion, attempt).make()
            if outcome.kind is OutcomeKind.DONE:
                # One commit for both, which is half of what this costs the disk.
                await self._settle(position, outcome, attempt.intent)
                return
            if attempt.intent is not None:
                await self._keeper.settle(attempt.intent, outcome)
            await self._conclude(position, outcome, error)
        finally:
            self._attempts.discard(attempt)

    async def _conclude(self, position: int, outcome: Outcome, error: Exception | None) -> None:
        """What one try means for that user, and for all: ``error`` is what kept it from going out, or was the answer."""
        end = None if error is None else _ended_by(error)
        if end is not None:
            self._end = self._end or end
        if outcome.kind is OutcomeKind.UNVERIFIED:
            self._failures[position] = self._failures.get(position, 0) + 1
            await self._settle(position, outcome)
            self._end = self._end or End(Ends.WAITS, outcome.detail)
            return
        not_tried = outcome.kind is OutcomeKind.SKIPPED and outcome.cause is Cause.NOT_TRIED
        if (outcome.kind is OutcomeKind.SKIPPED and not not_tried) or isinstance(error, Unrecordable):
            await self._settle(position, outcome)
            return
        if not_tried and end is not None:
            return
        failures = self._failures[position] = self._failures.get(position, 0) + 1
        if failures >= TRIES:
            await self._settle(position, Outcome(OutcomeKind.FAILED, f"{outcome.detail} (tried {failures} times)"))
            return
        wait_s = RETRY_S + backoff_s(failures, self._chance(), RETRY_S, LONGEST_RETRY_S)
        heapq.heappush(self._queue, (self._clock.monotonic_s() + wait_s, position))

    async def _settle(self, position: int, outcome: Outcome, intent: int | None = None) -> None:
        settle, now = self._books.journal.settle_pruned, self._clock.now()
        if await self._books.call(settle, self._plan.digest, position, outcome, now, intent=intent):
            self._told(outcome)

    async def verify(self, deletion: Deletion, sent: Sent) -> Outcome:
        """What came of a request that went out: a re-read tells, again and again where the hub doesn't answer."""
        until_s, wait_s = self._clock.monotonic_s() + self._verify_s, REREAD_S
        if not sent.remark and await self._proved_gone(deletion):
            return Outcome(OutcomeKind.DONE, "gone at a re-read")
        while True:
            silent: HubGuardError | None = None
            try:
                user = await self._hub.get_user(deletion.user)
            except (HubError, BudgetExhausted) as error:
                self.note_away(error)
                silent = error
            else:
                if user is None:
                    return Outcome(OutcomeKind.DONE, "gone at a re-read" + (f" ({sent.remark})" if sent.remark else ""))
                if not same_run(user.created, deletion.created):
                    return Outcome(OutcomeKind.DONE, "that user is gone; one of the same name is there since")
                if sent.failed:
                    return Outcome(OutcomeKind.FAILED, f"still there: {sent.remark}; {HALF_WAY}")
            if self._clock.monotonic_s() + wait_s > until_s:
                break
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_REREAD_S)
        if silent is not None:
            return Outcome(OutcomeKind.UNVERIFIED, f"it couldn't be read again: {silent}")
        return Outcome(OutcomeKind.FAILED, f"still there: {sent.remark or 'the hub said that it was deleted'}")

    async def was_ours(self, deletion: Deletion) -> bool:
        """Whether this plan was about to delete that very user before."""
        asked = self._books.journal.deletion_intended
        return await self._books.call(asked, deletion.user, deletion.created, self._began_at)

    async def send(self, deletion: Deletion, attempt: Attempt) -> None:
        """The request, once."""
        try:
            await self._hub.delete_user(deletion.user, confirm=attempt.confirm)
        except HubError as error:
            self.note_away(error)
            raise

    def note_away(self, error: Exception) -> None:
        """Where ``error`` says that the hub isn't there, another one may be when it answers again."""
        if _is_away(error):
            self._hub_was_away()


class _Once:
    """One try at one user, which remembers what went wrong on the way."""

    def __init__(self, pruner: Pruner, deletion: Deletion, attempt: Attempt) -> None:
        self._pruner = pruner
        self._deletion = deletion
        self._attempt = attempt
        self._error: Exception | None = None
        self._gone = False

    async def make(self) -> tuple[Outcome, Exception | None]:
        """What came of it, not yet written down, and the error of it, None where all went well."""
        sent = await self._attempt.make(self._look, self._send)
        if not isinstance(sent, Sent):
            outcome, _ = sent
            if self._gone and outcome.kind is OutcomeKind.SKIPPED and outcome.cause is not Cause.NOT_TRIED:
                outcome = Outcome(OutcomeKind.DONE, "gone, as HubGuard had asked for before")
            return outcome, self._error
        if sent.refused:
            outcome = Outcome(OutcomeKind.FAILED, sent.remark)
        else:
            outcome = await self._pruner.verify(self._deletion, sent)
        # A hub that only failed to answer has done what it was asked all the same, or a try more tells.
        return outcome, self._error if sent.refused else None

    async def _look(self) -> str | None:
        try:
            looked = await self._pruner.look(self._deletion)
            account = looked.account
            if looked.why_not is not None and (
                account is None or not same_run(account.created, self._deletion.created)
            ):
                self._gone = await self._pruner.was_ours(self._deletion)
        except HubGuardError as error:
            self._error = error
            raise
        return looked.why_not

    async def _send(self) -> str:
        try:
            await self._pruner.send(self._deletion, self._attempt)
        except HubGuardError as error:
            self._error = error
            raise
        return ""


def _is_away(error: Exception) -> bool:
    return isinstance(error, (HubUnreachable, HubBusy)) or (isinstance(error, HubFailed) and error.status in GATEWAY)


def _ended_by(error: Exception) -> End | None:
    """What ``error`` means for the rest of a plan; None: nothing."""
    if isinstance(error, LeaseLost):
        return End(Ends.LEFT, str(error))
    if isinstance(error, (ActingRefused, HubRefused, OtherHubsDB)):
        return End(Ends.PAUSES, str(error))
    if isinstance(error, Unrecordable):
        return None
    if isinstance(error, (JournalError, BudgetExhausted, HubDBError)) or _is_away(error):
        return End(Ends.WAITS, str(error))
    return None
