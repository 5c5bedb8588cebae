"""Carrying out a plan to remove users: each by a second look, an intent, the request, a re-read and an outcome."""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hubguard.act.attempt import Attempt, Sent
from hubguard.act.delete import HALF_WAY, UserDeleter
from hubguard.errors import HubGuardError, JournalError, Unrecordable, UserNotDeleted
from hubguard.hub.api import HubAPI
from hubguard.model import Action, ActionKind, Cause, Outcome, OutcomeKind, same_run
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import Rate, backoff_s
from hubguard.prune.model import Deletion, UndoFacts
from hubguard.prune.record import Record
from hubguard.prune.review import Review
from hubguard.prune.standing import End, Ends, Standing

log = logging.getLogger(__name__)

TRIES = 3
"""Tries at one user in one go, each after a new second look, before the user counts as failed."""

RETRY_S, LONGEST_RETRY_S = 10.0, 120.0
"""Seconds before a second try, and the most that is added to them. Usually the hub is still stopping a server."""

NOT_DELETED_MOST = 5
"""Users that the hub fails to delete one after another, after which a plan is paused: what raises in its authenticator may
have done half of its work each time."""

AT_ONCE = 3
"""Maximum users in work at once: one that the hub deletes, which is all it does then, the next one, and one that is
being written down. More make others wait longer for the hub and gain nothing. It stays below what counts as a fall of
the population (snapshot.decide.memory.FEWEST_GONE), since users may be counted while they go."""


NOT_OURS = "gone, and this plan didn't delete them"


@dataclass(frozen=True, slots=True)
class Pace:
    """``rate``: users begun per second at most. ``concurrency``: users in work at once. ``verify_s``: seconds of re-reads."""

    rate: float
    concurrency: int
    verify_s: float


class Pruner:
    """Deletes the users of the plan that ``standing`` is about. Make a new one each time the plan goes on.

    ``undo`` has what the undo file holds of each user, by name: nobody else is deleted. ``attempt_for`` makes an attempt at
    an action.
    """

    def __init__(
        self,
        hub: HubAPI,
        review: Review,
        standing: Standing,
        record: Record,
        attempt_for: Callable[[Action], Attempt],
        undo: Mapping[str, UndoFacts],
        pace: Pace,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        self._deleter = UserDeleter(hub, clock, verify_s=pace.verify_s, note_error=standing.note)
        self._review = review
        self._standing = standing
        self._record = record
        self._attempt_for = attempt_for
        self._undo = undo
        self._pace = pace
        self._clock = clock
        self._chance = chance
        self._deletions = standing.plan.deletions
        self._rate = Rate(pace.rate, 1, clock.monotonic_s())
        self._turns = asyncio.Lock()
        self._queue: list[tuple[float, int]] = []
        self._not_deleted: set[str] = set()

    async def work(self) -> End:
        """Delete one user after another until all are settled or something ends it; how it ended. Raises JournalError.

        Users whose deletion was under way when somebody else stopped are read again first.
        """
        await self._settle_open_intents()
        await self._reread_unverified()
        settled = await self._record.settled()
        self._queue = [(0.0, position) for position in range(len(self._deletions)) if position not in settled]
        await self._all_take_turns()
        if self._standing.end is not None:
            return self._standing.end
        if unknown := await self._reread_unverified():
            return End(Ends.WAITS, f"the hub doesn't answer, so it is unknown whether {unknown:,} users are deleted")
        all_settled = len(await self._record.settled()) == len(self._deletions)
        return End(Ends.DONE if all_settled else Ends.WAITS)

    # -- what was left --------------------------------------------------------------------------------------------

    async def _settle_open_intents(self) -> None:
        """Settle the intents of this plan that a guard left without an outcome; those of others aren't touched."""
        positions = {deletion.user: position for position, deletion in enumerate(self._deletions)}
        for intent in await self._record.open_intents():
            position = positions.get(intent.user or "")
            if position is None or intent.action != ActionKind.DELETE_USER.value:
                continue
            deletion = self._deletions[position]
            if not same_run(deletion.created, intent.started):
                continue
            gone = await self._deleter.is_gone(deletion.user, deletion.created)
            if gone:
                outcome = Outcome(OutcomeKind.DONE, "a later look found that user gone")
                await self._record.settle_intent(intent.id, outcome)
                await self._record.settle(position, outcome)
            elif gone is False:
                detail = "the guard ended before it knew; the user is still there"
                await self._record.settle_intent(intent.id, Outcome(OutcomeKind.UNVERIFIED, detail))

    async def _reread_unverified(self) -> int:
        """Users who are gone are done, and those still there wait for their turn again; how many remain unknown."""
        unknown = 0
        for position in await self._record.unverified():
            deletion = self._deletions[position]
            gone = await self._deleter.is_gone(deletion.user, deletion.created)
            if gone:
                await self._record.settle(position, Outcome(OutcomeKind.DONE, "gone at a later re-read"))
            elif gone is None:
                unknown += 1
            elif self._record.tries.get(position, 0) >= TRIES:
                why = f"still there: the hub never said what came of it (tried {TRIES} times); {HALF_WAY}"
                await self._record.settle(position, Outcome(OutcomeKind.FAILED, why))
            else:
                await self._record.wait_again(position)
        return unknown

    # -- one after another ----------------------------------------------------------------------------------------

    async def _all_take_turns(self) -> None:
        at_once = max(1, min(self._pace.concurrency, AT_ONCE))
        tasks = [asyncio.ensure_future(self._take_turns()) for _ in range(at_once)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turns(self) -> None:
        while self._queue and self._standing.end is None:
            due_s, position = heapq.heappop(self._queue)
            try:
                wait_s = due_s - self._clock.monotonic_s()
                if wait_s > 0:
                    await self._clock.sleep(min(wait_s, RETRY_S))
                    heapq.heappush(self._queue, (due_s, position))
                    # A long wait ends with the rest: somebody may have paused the plan meanwhile.
                    await self._standing.check()
                    continue
                await self._wait_for_turn()
                if await self._standing.check():
                    await self._try(position)
            except JournalError as error:
                self._standing.stop_for(error)

    async def _wait_for_turn(self) -> None:
        async with self._turns:
            while (wait_s := self._rate.wait_s(self._clock.monotonic_s())) > 0:
                await self._clock.sleep(wait_s)
            self._rate.reserve(self._clock.monotonic_s())
            self._rate.spend(self._clock.monotonic_s())

    async def _try(self, position: int) -> None:
        deletion = self._deletions[position]
        action = Action(
            deletion.user,
            "",
            deletion.created,
            deletion.last_activity,
            deletion.reason.value,
            kind=ActionKind.DELETE_USER,
            plan=self._standing.plan.digest,
        )
        if deletion.user not in self._undo:
            why = "the undo file doesn't have them: they weren't there when it was written"
            await self._record.skip(action, why)
            await self._record.settle(position, Outcome(OutcomeKind.SKIPPED, why, Cause.GONE))
            return
        attempt = self._attempt_for(action)
        try:
            outcome, error = await self._delete(deletion, attempt)
            self._count_failures(deletion.user, outcome, error)
            if outcome.kind is OutcomeKind.DONE:
                # One commit for both halves what this costs the disk.
                await self._record.settle(position, outcome, attempt.intent)
                return
            if attempt.intent is not None:
                await self._record.settle_intent(attempt.intent, outcome)
            await self._conclude(position, outcome, error)
        finally:
            attempt.close()

    def _count_failures(self, user: str, outcome: Outcome, error: Exception | None) -> None:
        """Pause the plan if the hub fails to delete one user after another."""
        if outcome.kind is OutcomeKind.DONE:
            self._not_deleted.clear()
        elif isinstance(error, UserNotDeleted):
            self._not_deleted.add(user)
        if len(self._not_deleted) >= NOT_DELETED_MOST:
            why = (
                f"The hub failed to delete {NOT_DELETED_MOST} users in a row, among them {min(self._not_deleted)}. Its log"
                " says what fails; often it is delete_user of its authenticator. Correct that, then resume."
            )
            self._standing.stop(End(Ends.PAUSES, why))

    async def _conclude(self, position: int, outcome: Outcome, error: Exception | None) -> None:
        """Settle that user, or let them wait for another try; ``error`` kept the request from going out or was the answer."""
        ends = error is not None and self._standing.stop_for(error)
        if outcome.kind is OutcomeKind.UNVERIFIED:
            self._record.tries[position] = self._record.tries.get(position, 0) + 1
            await self._record.settle(position, outcome)
            self._standing.stop(End(Ends.WAITS, outcome.detail))
            return
        not_tried = outcome.cause is Cause.NOT_TRIED
        if (outcome.kind is OutcomeKind.SKIPPED and not not_tried) or isinstance(error, Unrecordable):
            await self._record.settle(position, outcome)
            return
        if not_tried and ends:
            return
        tries = self._record.tries[position] = self._record.tries.get(position, 0) + 1
        if tries >= TRIES:
            failed = Outcome(OutcomeKind.FAILED, f"{outcome.detail} (tried {tries} times)")
            await self._record.settle(position, failed)
            return
        wait_s = RETRY_S + backoff_s(tries, self._chance(), RETRY_S, LONGEST_RETRY_S)
        heapq.heappush(self._queue, (self._clock.monotonic_s() + wait_s, position))

    # -- one user -------------------------------------------------------------------------------------------------

    async def _delete(self, deletion: Deletion, attempt: Attempt) -> tuple[Outcome, Exception | None]:
        """What came of trying to delete that user, not yet written down, and the error that concerns the plan, if any."""
        error: HubGuardError | None = None
        was_ours = is_gone = False

        async def look() -> str | None:
            nonlocal error, was_ours, is_gone
            try:
                seen = await self._review.second_look(
                    self._standing.plan, deletion, self._standing.acknowledged, self._undo.get(deletion.user)
                )
                is_gone = seen.account is None or seen.account.name != deletion.user
                if seen.account is None or is_gone or not same_run(seen.account.created, deletion.created):
                    by = await self._record.intended_by(deletion)
                    was_ours = self._standing.plan.digest in by
                    if is_gone and not by:
                        self._standing.note_gone()
            except HubGuardError as raised:
                error = raised
                raise
            return seen.why_not

        async def send() -> str:
            nonlocal error
            try:
                return await self._deleter.send(deletion.user, attempt)
            except HubGuardError as raised:
                error = raised
                raise

        sent = await attempt.make(look, send)
        if not isinstance(sent, Sent):
            outcome, _ = sent
            if outcome.kind is OutcomeKind.SKIPPED and outcome.cause is not Cause.NOT_TRIED:
                if was_ours:
                    outcome = Outcome(OutcomeKind.DONE, "gone, as HubGuard had requested before")
                elif is_gone:
                    outcome = replace(outcome, detail=NOT_OURS, cause=Cause.GONE)
            return outcome, error
        proof = functools.partial(self._review.is_gone, deletion)
        outcome = await self._deleter.verify(deletion.user, deletion.created, sent, proof=proof)
        # A hub that failed to answer has deleted the user all the same, or another try tells.
        concerns = sent.refused or (outcome.kind is OutcomeKind.FAILED and isinstance(error, UserNotDeleted))
        return outcome, error if concerns else None
