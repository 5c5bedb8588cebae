"""What pages, API and CLI may ask of a guard."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from hubguard.cull.model import CycleReport
from hubguard.drift.model import DriftKind, DriftReport, RepairPlan
from hubguard.journal.model import Entry, Event, Exemption
from hubguard.prune.model import PruneItem, PrunePlan, PruneRun, PruneVerdict, StaleCriteria, UsersReport
from hubguard.status import Status


class PrunePort(Protocol):
    """What pages, API and CLI may ask of a guard's pruning. Every method raises HubGuardError where it can't, saying why."""

    def default_criteria(self) -> StaleCriteria:
        """What the settings ask for. Never raises."""
        ...

    async def users(self, criteria: StaleCriteria | None = None, *, caller: str | None = None) -> UsersReport:
        """Everybody, judged by ``criteria`` (None: the settings'), as read a few minutes ago at most; ``caller`` is kept."""
        ...

    async def user(
        self, name: str, criteria: StaleCriteria | None = None, *, caller: str | None = None
    ) -> PruneVerdict | None:
        """Why that user would be removed or not, by a reading of now; None where the hub knows nobody by that name."""
        ...

    async def plan(self, criteria: StaleCriteria, actor: str, *, caller: str | None = None) -> PrunePlan:
        """A plan by a reading of now, kept in the journal until it is used or expires; it does nothing.

        ``caller`` is the user who asks, None for a service. Raises HubGuardError too where there is nobody to remove.
        """
        ...

    async def runs(self, *, limit: int = 100) -> tuple[PruneRun, ...]:
        """Plans and what came of them, newest first."""
        ...

    async def run(self, digest: str) -> PruneRun:
        """How the plan of that digest stands. Raises HubGuardError where there is none."""
        ...

    async def plan_of(self, digest: str) -> PrunePlan:
        """The plan of that digest. Raises HubGuardError where there is none."""
        ...

    async def items(
        self, digest: str, *, state: str | None = None, offset: int = 0, limit: int | None = None
    ) -> tuple[PruneItem, ...]:
        """The deletions of a plan in its order, each with its outcome; of one ``state`` (see PruneItem) where given."""
        ...

    async def apply(
        self, digest: str, count: int, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()
    ) -> PruneRun:
        """Carry out that plan; ``count`` is how many users it has, as a check. ``acknowledged`` names its cautions.

        The undo file is written and synced when this returns, and it is under way. Raises HubGuardError where there is no
        such plan, it has expired or was begun already, the count is wrong, a caution isn't acknowledged, acting is on hold,
        HubGuard holds back, or the undo file can't be written; nothing is done then. So where the hub has changed since, and
        something is to be acknowledged by now that the plan doesn't tell of.
        """
        ...

    async def pause(self, digest: str, actor: str, why: str) -> PruneRun:
        """Nobody more is deleted by that plan until it is resumed; the one under way is finished."""
        ...

    async def resume(self, digest: str, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()) -> PruneRun:
        """A paused plan goes on where it stopped.

        ``acknowledged`` names the cautions that have arisen since it was begun, as by another spawner. Raises HubGuardError,
        and it stays paused, where one isn't acknowledged.
        """
        ...

    async def cancel(self, digest: str, actor: str, why: str) -> PruneRun:
        """Nobody more is deleted by that plan, for good."""
        ...

    async def restore(
        self, digest: str, count: int, actor: str, why: str, *, token: str, sha256: str | None = None
    ) -> PruneRun:
        """Bring back whom that plan deleted, from its undo file, with the rights of ``token``, that of whoever asks.

        ``count`` is how many it deleted, as a check; ``sha256`` that of the file they have, where they have one. It is done
        when this returns: those who are there again are left as they are, so it may be asked for twice.
        """
        ...


class GuardPort(Protocol):
    """What pages, API and CLI may ask of a guard. All of it works, or says clearly why not, with the hub down."""

    def status(self) -> Status:
        """The guard's state now. Never blocks, never raises."""
        ...

    async def cycle(
        self,
        asked_by: str,
        *,
        dry_run: bool = False,
        idle_timeout_s: float | None = None,
        rate: float | None = None,
        concurrency: int | None = None,
    ) -> CycleReport:
        """Run one cycle now and act on it even when only observing, since a person asks for it by name.

        Hold and brake still apply. ``dry_run`` decides and does nothing. The overrides are for this cycle alone;
        ``rate`` and ``concurrency`` can only lower the budget. Raises HubGuardError with the reason it couldn't.
        """
        ...

    async def arm(self, actor: str, why: str) -> None:
        """Acting is allowed from now on. Raises JournalError where that couldn't be recorded.

        Raises HubGuardError where the config overrules it, as :meth:`observe` does.
        """
        ...

    async def observe(self, actor: str, why: str) -> None:
        """HubGuard only observes from now on; what is under way is finished. Raises JournalError."""
        ...

    async def hold(self, actor: str, why: str) -> None:
        """Nothing more is sent, whoever asks, until resumed. Raises JournalError."""
        ...

    async def resume(self, actor: str, why: str) -> None:
        """The hold is over, and what a brake objects to is accepted where a person may do that. Raises JournalError."""
        ...

    async def exempt(self, actor: str, why: str, *, user: str, server: str | None, until: datetime) -> Exemption:
        """That server, or with None every server of the user, is kept until then, whoever asks. Raises JournalError.

        Raises HubGuardError where ``until`` is over, or later than the settings allow.
        """
        ...

    async def end_exemption(self, exemption_id: int, actor: str, why: str) -> Exemption:
        """That exemption is over. Raises HubGuardError where there is none such, or it is over already."""
        ...

    async def exemptions(self, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        """Those in force, or with ``ended`` all there were, newest first. Raises JournalError."""
        ...

    async def entries(
        self,
        *,
        before_id: int | None = None,
        limit: int = 100,
        user: str | None = None,
        server: str | None = None,
        event: Event | None = None,
    ) -> tuple[Entry, ...]:
        """Journal entries, newest first, older than ``before_id`` where given; at most ``limit``. Raises JournalError."""
        ...

    def drift(self) -> DriftReport | None:
        """What the last look at all sources found; None before the first. Never blocks, never raises."""
        ...

    async def look_for_drift(self) -> DriftReport:
        """Look at all sources now. Raises HubGuardError with the reason it couldn't."""
        ...

    def plan_repairs(self, *, ids: tuple[str, ...] = (), kinds: tuple[DriftKind, ...] = ()) -> RepairPlan:
        """The plan for the raised drift of these ids and of these kinds; it does nothing.

        Raises HubGuardError where an id isn't known or not raised, its kind can only be reported, or there is nothing to do.
        """
        ...

    async def repair(self, digest: str, count: int, actor: str, why: str) -> RepairPlan:
        """Carry out the plan of that digest, which was made lately; ``count`` is how many repairs it has, as a check.

        It is under way when this returns; what came of it is in the ``repaired`` of later reports, and in the journal.
        Raises HubGuardError where there is no such plan, it has expired, the count is wrong, acting is on hold, or HubGuard
        holds back; nothing is done then.
        """
        ...

    @property
    def pruning(self) -> PrunePort:
        """What may be asked of pruning."""
        ...

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """The hub's own spawner says that the backend of that server lived on after it was stopped. Never raises."""
        ...
