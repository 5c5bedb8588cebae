"""The way back of each plan: the undo file that is written before it begins, and bringing back from it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hubguard.act.mandate import Mandate
from hubguard.errors import HubGuardError, UndoError
from hubguard.hub.api import HubAPI
from hubguard.hub.nouns import UndoUser
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Event
from hubguard.model import Cause, Outcome, OutcomeKind
from hubguard.pacing.clock import Clock
from hubguard.prune import undo_file
from hubguard.prune.decide import stale
from hubguard.prune.model import NotBack, PrunePlan, PruneRun, PruneState, RestoredRun, UndoFacts, UndoHead
from hubguard.prune.observe import AccountReader
from hubguard.prune.plans import why_held
from hubguard.prune.restore import Restorer
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.store import AsyncPrunes
from hubguard.wire import extended

UNDO_FOLDER = "hubguard-undo"


class Undo:
    """Writes undo files, and brings users back from them. Files are read and written in threads of their own.

    ``journal`` gives the journal, ``mandate`` the lease; both raise HubGuardError with why, where they can't be used now.
    """

    def __init__(
        self,
        settings: HubGuardPrune,
        hub: HubAPI,
        reader: AccountReader,
        clock: Clock,
        journal: AsyncJournal,
        mandate: Mandate,
    ) -> None:
        self._folder = Path(settings.undo_folder or UNDO_FOLDER).absolute()
        self._hub = hub
        self._reader = reader
        self._clock = clock
        self._journal = journal
        self._mandate = mandate
        self._facts: tuple[str | None, Mapping[str, UndoFacts]] = (None, {})

    async def write(self, plan: PrunePlan) -> undo_file.Written:
        """The undo file of all users of ``plan`` who are still there is on disk. Raises HubGuardError where it isn't."""
        names = [deletion.user for deletion in plan.deletions]
        now = self._clock.now()
        users = await self._reader.undo_users(names)
        there = await asyncio.to_thread(_facts_of, users)
        if not there:
            raise HubGuardError("Plan not started: none of its users exists any more. Make a new plan.")
        place = revision = ""
        if (database := self._reader.database) is not None:
            place, revision = database.place, (await database.accounts(None, names[:1])).revision
        head = UndoHead(plan.digest, now, plan.made_by, database=place, revision=revision)
        written = await asyncio.to_thread(undo_file.write, self._folder, head, users)
        self._facts = (written.sha256, there)
        return written

    async def facts(self, run: PruneRun) -> Mapping[str, UndoFacts]:
        """What is in the undo file of ``run``, by the names of its users. Raises UndoError."""
        if self._facts[0] is None or self._facts[0] != run.undo_sha256:
            _, users = await _read(run)
            self._facts = (run.undo_sha256, await asyncio.to_thread(_facts_of, users))
        return self._facts[1]

    async def restore(
        self, plan: PrunePlan, run: PruneRun, count: int, actor: str, why: str, *, token: str, sha256: str | None
    ) -> RestoredRun:
        """Restore the users that ``plan`` deleted, and return how it stands now and who isn't back.

        Users that an earlier request restored count as restored. The journal has each user as soon as the outcome is known.
        Raises HubGuardError too if no user could be tried, for example because a right is missing.
        """
        if run.state is PruneState.RUNNING:
            raise HubGuardError("Nobody was restored: the plan is running. Pause or cancel it first.")
        if held := await why_held(self._journal):
            raise HubGuardError(f"Nobody was restored. {held} Resume acting first.")
        if sha256 is not None and sha256 != run.undo_sha256:
            raise UndoError("Nobody was restored: your undo file isn't the one that was written for this plan.")
        deleted = await self._deleted_by(self._journal, plan)
        if count != len(deleted):
            raise HubGuardError(f"Nobody was restored: this plan deleted {len(deleted):,} users, not {count:,}.")
        head, users = await _read(run)
        chosen = [user for user in users if user.name in deleted]
        what = f"bringing back {len(chosen):,} users of plan {plan.digest[:12]} was asked for: {why}"
        await self._journal.note(Event.NOTE, actor, 0, self._clock.now(), what, plan=plan.digest)
        record = _Record(self._journal, self._clock, plan.digest, actor, len(chosen), run.restored)
        async with self._hub.with_token(token) as hub:
            outcomes = await Restorer(hub, confirm=self._may_restore).restore(
                chosen, since=head.made_at, begin=record.begin, progress=record.settle
            )
        untried = [outcome.detail for _, outcome in outcomes if outcome.cause is Cause.NOT_TRIED]
        if untried and len(untried) == len(outcomes):
            raise HubGuardError(f"Nobody was restored: {untried[0]}")
        not_back = [
            NotBack(name, done.kind, done.detail) for name, done in outcomes if done.kind is not OutcomeKind.DONE
        ]
        for name in sorted(deleted - {user.name for user in chosen}):
            not_back.append(NotBack(name, OutcomeKind.SKIPPED, "the undo file doesn't have them"))
        return extended(RestoredRun, await record.end(), not_back=tuple(not_back))

    async def _deleted_by(self, journal: AsyncJournal, plan: PrunePlan) -> frozenset[str]:
        """The users that the plan deleted, including those of unknown outcome who are gone."""
        names = set()
        for item in await AsyncPrunes(journal).pruned(plan.digest):
            user = plan.deletions[item.position].user
            unsure = item.outcome.kind is OutcomeKind.UNVERIFIED
            if item.outcome.kind is OutcomeKind.DONE or (unsure and await self._hub.get_user(user) is None):
                names.add(user)
        return frozenset(names)

    async def _may_restore(self) -> None:
        self._mandate.check()
        if held := await why_held(self._journal):
            raise HubGuardError(held)


class _Record:
    """Writes down a restoring while it goes on: a kill of the guard leaves in the journal what was begun, and who is back.

    ``before`` is how many were brought back when it was asked for earlier.
    """

    def __init__(self, journal: AsyncJournal, clock: Clock, digest: str, actor: str, count: int, before: int) -> None:
        self._journal = journal
        self._clock = clock
        self._digest = digest
        self._actor = actor
        self._count = count
        self._before = before
        self._begun = self._done = 0
        self._sure = True
        self._known: list[tuple[str, Outcome]] = []
        self._writing = asyncio.Lock()

    async def begin(self, names: Sequence[str]) -> None:
        """The journal says that these are next."""
        first, self._begun = self._begun + 1, self._begun + len(names)
        what = f"about to bring back users {first:,} to {self._begun:,} of {self._count:,} of plan {self._digest[:12]}"
        detail = f"{what}, from {names[0]} to {names[-1]}"
        await self._journal.note(Event.NOTE, self._actor, 0, self._clock.now(), detail, plan=self._digest)

    async def settle(self, name: str, outcome: Outcome) -> None:
        """The journal has what came of that user; of those that are known at the same time it is told together."""
        self._known.append((name, outcome))
        self._done += outcome.kind is OutcomeKind.DONE
        self._sure = self._sure and outcome.kind is not OutcomeKind.UNVERIFIED and outcome.cause is not Cause.NOT_TRIED
        async with self._writing:
            known, self._known = self._known, []
            if known:
                await self._write(known, max(self._before, self._done))

    async def end(self) -> PruneRun:
        """How the plan stands. Where each was looked at and read, those that were found back are all that are."""
        return await self._write([], self._done if self._sure else max(self._before, self._done))

    async def _write(self, known: Sequence[tuple[str, Outcome]], restored: int) -> PruneRun:
        now = self._clock.now()
        return await AsyncPrunes(self._journal).note_restored(self._digest, known, restored, self._actor, now)


def _facts_of(users: Iterable[UndoUser]) -> dict[str, UndoFacts]:
    """Without what is nobody's, which has no name."""
    return {user.name: stale.undo_facts(user) for user in users if user.name}


async def _read(run: PruneRun) -> tuple[UndoHead, tuple[UndoUser, ...]]:
    if run.undo_file is None:
        raise UndoError(f"Plan {run.digest[:12]} has no undo file: it was never started.")
    return await asyncio.to_thread(undo_file.read, Path(run.undo_file), sha256=run.undo_sha256)
