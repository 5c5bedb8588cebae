"""What pages, API and CLI may ask of a guard."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from hubguard.drift import DriftReport, RepairPlan
from hubguard.model import CycleReport, DriftKind, Entry, Exemption, Status


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
        event: str | None = None,
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

    def tell_outlived(self, user: str, server: str, detail: str) -> None:
        """The hub's own spawner says that the backend of that server lived on after it was stopped. Never raises."""
        ...
