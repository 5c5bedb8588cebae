"""The way back of each plan: the undo file that is written before it begins, and bringing back from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from hubguard.act.lease import Books, LeaseKeeper
from hubguard.act.restore import Restorer
from hubguard.clients import undo_file
from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.config import Settings
from hubguard.errors import HubGuardError, UndoError
from hubguard.model import OutcomeKind
from hubguard.observe.accounts import AccountReader
from hubguard.prune import PrunePlan, PruneRun, PruneState, UndoHead, UndoUser
from hubguard.prune_plans import why_held

UNDO_FOLDER = "hubguard-undo"


class Undo:
    """Writes undo files, and brings users back from them. Files are read and written in threads of their own.

    ``books`` gives the journal, ``keeper`` the lease; both raise HubGuardError with why, where they can't be used now.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubAPI,
        reader: AccountReader,
        clock: Clock,
        books: Callable[[], Books],
        keeper: Callable[[], LeaseKeeper],
    ) -> None:
        self._folder = Path(settings.prune.undo_folder or UNDO_FOLDER).absolute()
        self._hub = hub
        self._reader = reader
        self._clock = clock
        self._books = books
        self._keeper = keeper
        self._names: tuple[str | None, frozenset[str]] = (None, frozenset())

    async def write(self, plan: PrunePlan) -> undo_file.Written:
        """The undo file of all users of ``plan`` who are still there is on disk. Raises HubGuardError where it isn't."""
        names = [deletion.user for deletion in plan.deletions]
        now = self._clock.now()
        users = await self._reader.undo_users(names)
        there = _names(users)
        if not there:
            raise HubGuardError("None of the users of this plan is there any more. Nothing was done; make a new one.")
        place = revision = ""
        if (database := self._reader.database) is not None:
            place, revision = database.place, (await database.accounts(None, names[:1])).revision
        head = UndoHead(plan.digest, now, plan.made_by, database=place, revision=revision)
        written = await asyncio.to_thread(undo_file.write, self._folder, head, users)
        self._names = (written.sha256, there)
        return written

    async def names(self, run: PruneRun) -> frozenset[str]:
        """The users that are in the undo file of ``run``. Raises UndoError."""
        if self._names[0] is None or self._names[0] != run.undo_sha256:
            _, users = await _read(run)
            self._names = (run.undo_sha256, _names(users))
        return self._names[1]

    async def restore(
        self, plan: PrunePlan, run: PruneRun, count: int, actor: str, why: str, *, token: str, sha256: str | None
    ) -> PruneRun:
        """Those whom ``plan`` deleted are there again, as PrunePort has it; how it stands now."""
        books = self._books()
        if run.state is PruneState.RUNNING:
            raise HubGuardError("This plan is being carried out. Nobody was brought back; pause or cancel it first.")
        if (held := await why_held(books)) is not None:
            raise HubGuardError(f"{held}. Nobody was brought back; resume first.")
        if sha256 is not None and sha256 != run.undo_sha256:
            raise UndoError(
                "The undo file you have isn't the one that was written for this plan. Nobody was brought back."
            )
        deleted = await self._deleted_by(books, plan)
        if count != len(deleted):
            raise HubGuardError(f"This plan deleted {len(deleted):,} users, not {count:,}. Nobody was brought back.")
        head, users = await _read(run)
        chosen = [user for user in users if user.name in deleted]
        what = f"bringing back {len(chosen):,} users of plan {plan.digest[:12]} was asked for: {why}"
        await books.call(books.journal.note, "note", actor, 0, self._clock.now(), what)
        async with self._hub.with_token(token) as hub:
            outcomes = await Restorer(hub, confirm=self._may_restore).restore(chosen, since=head.made_at)
        restored = sum(outcome.kind is OutcomeKind.DONE for _, outcome in outcomes)
        now = self._clock.now()
        return await books.call(books.journal.note_restored, plan.digest, outcomes, restored, actor, now)

    async def _deleted_by(self, books: Books, plan: PrunePlan) -> frozenset[str]:
        """The users whom that plan deleted, those among them of whom it wasn't sure then and who are gone."""
        names = set()
        for one in await books.call(books.journal.pruned, plan.digest):
            user = plan.deletions[one.position].user
            unsure = one.outcome.kind is OutcomeKind.UNVERIFIED
            if one.outcome.kind is OutcomeKind.DONE or (unsure and await self._hub.get_user(user) is None):
                names.add(user)
        return frozenset(names)

    async def _may_restore(self) -> None:
        self._keeper()
        if (held := await why_held(self._books())) is not None:
            raise HubGuardError(held)


def _names(users: Iterable[UndoUser]) -> frozenset[str]:
    """Without what is nobody's, which has no name."""
    return frozenset(user.name for user in users if user.name)


async def _read(run: PruneRun) -> tuple[UndoHead, tuple[UndoUser, ...]]:
    if run.undo_file is None:
        raise UndoError(f"Plan {run.digest[:12]} has no undo file: it was never begun.")
    return await asyncio.to_thread(undo_file.read, Path(run.undo_file), sha256=run.undo_sha256)
