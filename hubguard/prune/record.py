"""What the journal keeps of one plan while it is carried out."""

from __future__ import annotations

from hubguard.act.mandate import Mandate
from hubguard.journal.model import Entry
from hubguard.model import Action, Outcome, OutcomeKind
from hubguard.pacing.clock import Clock
from hubguard.prune.model import Deletion, PrunePlan, PruneRun
from hubguard.prune.progress import Progress
from hubguard.prune.store import AsyncPrunes


class Record:
    """Writes down what becomes of the users of ``plan``, and reads it again. All of it raises JournalError.

    ``tries`` counts, by position, how often deleting a user was tried in vain.
    """

    def __init__(
        self,
        mandate: Mandate,
        clock: Clock,
        plan: PrunePlan,
        run: PruneRun,
        *,
        tries: dict[int, int],
        progress: Progress,
    ) -> None:
        self.tries = tries
        self._journal = mandate.journal
        self._mandate = mandate
        self._clock = clock
        self._plan = plan
        self._run = run
        self._began_at = run.began_at or run.made_at
        self._progress = progress

    async def open_intents(self) -> tuple[Entry, ...]:
        """The plan's intents that have no outcome yet."""
        intents = await self._journal.open_intents()
        return tuple(intent for intent in intents if intent.plan == self._plan.digest)

    async def settle_intent(self, intent: int, outcome: Outcome) -> None:
        """That intent has an outcome."""
        await self._mandate.settle(intent, outcome)

    async def intended_by(self, deletion: Deletion) -> frozenset[str | None]:
        """The plans by which HubGuard was about to delete that very user since this plan began; None: by no plan."""
        return await AsyncPrunes(self._journal).intended_by(deletion.user, deletion.created, self._began_at)

    async def skip(self, action: Action, why: str) -> None:
        """The journal says that ``action`` isn't tried, and why."""
        await self._mandate.skip(action, self._run.actor, why)

    async def settled(self) -> dict[int, Outcome]:
        """The outcomes so far, by position."""
        settled = await AsyncPrunes(self._journal).pruned(self._plan.digest)
        return {user.position: user.outcome for user in settled}

    async def unverified(self) -> list[int]:
        """The positions of users who may have been deleted."""
        return [at for at, outcome in (await self.settled()).items() if outcome.kind is OutcomeKind.UNVERIFIED]

    async def settle(self, position: int, outcome: Outcome, intent: int | None = None) -> None:
        """What came of that user is on disk, in one commit with the outcome of ``intent`` if there is one."""
        now = self._clock.now()
        if await AsyncPrunes(self._journal).settle_pruned(self._plan.digest, position, outcome, now, intent=intent):
            self._progress.count(outcome)

    async def wait_again(self, position: int) -> None:
        """That user waits for their turn again."""
        await AsyncPrunes(self._journal).wait_again(self._plan.digest, position)
