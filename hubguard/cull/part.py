"""Culling as a part of the guard: when its cycles come, and what people ask of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from hubguard.act.mandate import Mandate
from hubguard.cull.cycle import Cycles
from hubguard.cull.decide.judge import CullPolicy
from hubguard.cull.model import CullStatus, CycleReport, Wish
from hubguard.errors import HubGuardError
from hubguard.hub.facts import HubFacts
from hubguard.journal.model import Exemption
from hubguard.model import Order
from hubguard.pacing.clock import Clock
from hubguard.pacing.limits import cycle_in_s
from hubguard.snapshot.cycle import Snapshots


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When cycles come: every ``every_s`` seconds, away from the hub's own checks, sooner after an incomplete look.

    ``hub_checks_at_s`` is a moment (unix time) at which the hub checks its routes, None if unknown; it does so every
    ``hub_check_every_s`` seconds. ``chance`` returns numbers in [0, 1).
    """

    every_s: float
    outage_s: float
    hub_check_every_s: float
    chance: Callable[[], float]
    hub_checks_at_s: float | None = None


class Culling:
    """Runs one cycle after another, and keeps exemptions. ``next_at`` is when the next cycle comes, None before the first."""

    name = "culling"

    def __init__(
        self,
        cycles: Cycles,
        snapshots: Snapshots,
        mandate: Mandate,
        facts: HubFacts,
        clock: Clock,
        rhythm: Rhythm,
        *,
        longest_exemption_s: float,
    ) -> None:
        self.cycles = cycles
        self.next_at: datetime | None = None
        self._snapshots = snapshots
        self._mandate = mandate
        self._facts = facts
        self._clock = clock
        self._rhythm = rhythm
        self._longest_exemption_s = longest_exemption_s
        self._soon = asyncio.Event()

    @property
    def policy(self) -> CullPolicy:
        """What the settings want culled."""
        return self.cycles.policy

    def status(self) -> CullStatus:
        """What culling knows of itself now. Never blocks, never raises."""
        cycles = self.cycles
        return CullStatus(
            last_cycle=cycles.last,
            last_good_cycle_at=cycles.last_good_at,
            next_cycle_at=self.next_at,
            tally=cycles.tally,
            recent=cycles.recent,
            oldest_overdue=cycles.oldest_overdue,
            findings=cycles.findings,
            under_way=cycles.under_way,
        )

    # -- as a part of the guard -----------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """The next cycle comes now, and first reads what the journal remembers: another guard may have acted since."""
        self._snapshots.begin_anew()
        self._soon.set()

    async def turn(self) -> None:
        """Run one cycle."""
        self._clear()
        await self._cycle(Order("hubguard"), Wish())

    async def wait(self) -> None:
        """Wait until the next cycle is due, or a person allows acting."""
        rhythm = self._rhythm
        wait_s = cycle_in_s(
            rhythm.every_s,
            rhythm.chance(),
            self._clock.now().timestamp(),
            hub_checks_at_s=rhythm.hub_checks_at_s,
            hub_check_every_s=rhythm.hub_check_every_s,
        )
        if not self._snapshots.saw_all:
            # A second look tells an outage from one slow answer.
            wait_s = min(wait_s, rhythm.outage_s / 2)
        self.next_at = self._clock.now() + timedelta(seconds=wait_s)
        sleeping = asyncio.ensure_future(self._clock.sleep(wait_s))
        waiting = [sleeping, *(asyncio.ensure_future(event.wait()) for event in (self._soon, self._mandate.allowed))]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._clear()

    def _clear(self) -> None:
        self._soon.clear()
        self._mandate.allowed.clear()

    async def close(self) -> None:
        """Nothing is under way beside a turn."""

    # -- what people ask ------------------------------------------------------------------------------------------

    async def cycle(self, asked_by: str, wish: Wish) -> CycleReport:
        """Run one cycle now and act on it even while only observing, since a person asks for it by name.

        Hold and brake still apply. ``wish`` is for this cycle alone. Raises HubGuardError with the reason it couldn't.
        """
        self._mandate.check()
        return await self._cycle(Order(asked_by, asked=True), wish)

    async def _cycle(self, order: Order, wish: Wish) -> CycleReport:
        await self._mandate.refresh()
        report = await self.cycles.run(order, wish)
        if report.snapshot.complete:
            await self._facts.refresh()
        return report

    async def exempt(self, actor: str, why: str, *, user: str, server: str | None, until: datetime) -> Exemption:
        """Keep that server, or all of the user's (``server`` None), until then.

        Names may be as people type them. Raises UnknownUser, and HubGuardError if there is no such server, or it isn't
        allowed.
        """
        now = self._clock.now()
        latest = now + timedelta(seconds=self._longest_exemption_s)
        if until <= now:
            raise HubGuardError("An exemption must end in the future. Nothing was changed.")
        if until > latest:
            raise HubGuardError(
                f"An exemption may last until {latest:%Y-%m-%d %H:%M} UTC at the longest"
                " (HubGuard.longest_exemption_s). Nothing was changed."
            )
        self._mandate.journal.check()
        user, server = await self.cycles.meant(user, server)
        return await self._mandate.journal.exempt(user, server, until, actor, why, now)

    async def end_exemption(self, exemption_id: int, actor: str, why: str) -> Exemption:
        """End that exemption now. Raises NoSuchExemption if there is none in force."""
        return await self._mandate.journal.end_exemption(exemption_id, actor, why, self._clock.now())

    async def exemptions(self, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        """Those in force, newest first; with ``ended`` also those that are over. ``user``, as typed; None: anybody's."""
        if user is not None:
            user = self.cycles.seen_as(user) or user
        return await self._mandate.journal.exemptions(self._clock.now(), user=user, ended=ended)
