"""Whether this guard may act, and why not: the journal, the lease, and what people and the settings have set.

It knows no feature. Parts act by :meth:`Mandate.attempt`, and by nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from hubguard.act.attempt import Attempt
from hubguard.act.handover import Handover
from hubguard.act.lease import LeaseKeeper
from hubguard.errors import ActingRefused, HubGuardError, JournalError
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import ArmedBy, Lease, Stance
from hubguard.model import Action, Grounds, Order, Outcome
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)


class Mandate:
    """Whether this guard may act for the hub.

    ``armed`` is what the settings say, None if they leave it to people. ``observe_only`` is why this guard mustn't act by
    itself whatever people set, or "". ``handover`` is from the idle cullers whose place HubGuard takes, None if there are
    none: it then culls while these wait, unless people have said otherwise. ``wrong_setting`` is the first error in the
    settings, or "": then nothing is done.

    ``superseded`` is set when the guard of a newer hub has taken the lease, and ``allowed`` when a person allows acting: who
    waits for that clears it. ``trouble`` is why the journal can't be used, or "". ``stance`` is what people have set, as last
    read. ``settled_at_s`` is when an outcome was last recorded (monotonic), None: never.
    """

    def __init__(
        self,
        journal: AsyncJournal,
        keeper: LeaseKeeper,
        clock: Clock,
        *,
        armed: bool | None = None,
        observe_only: str = "",
        handover: Handover | None = None,
        wrong_setting: str = "",
    ) -> None:
        self.journal = journal
        self.superseded = asyncio.Event()
        self.allowed = asyncio.Event()
        self._trouble = ""
        self.stance = Stance()
        self.handover = handover
        self.settled_at_s: float | None = None
        self._keeper = keeper
        self._clock = clock
        self._armed = armed
        self._observe_only = observe_only
        self._wrong_setting = wrong_setting
        self._under_way: set[int] = set()

    # -- the journal and the lease --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the journal unless it is open, and read what people have set. Raises JournalError."""
        await self.journal.open()
        await self.refresh()

    async def refresh(self) -> Stance:
        """What people have set, read again. Raises JournalError."""
        self.stance = await self.journal.stance()
        return self.stance

    async def keep_lease(self) -> bool:
        """Take or renew the lease; whether it is newly ours: another guard may have acted before. Raises JournalError."""
        held_before = self.holds_lease
        holds = await self._keeper.keep()
        if self._keeper.superseded:
            self.superseded.set()
        if holds and not held_before:
            log.info("This guard holds the lease (fence %d).", self.fence)
            return True
        if held_before and not holds:
            log.warning("This guard has lost the lease and no longer acts.")
        return False

    def note_trouble(self, error: JournalError | None) -> None:
        """Remember why the journal can't be used, None: it can."""
        if error is not None and str(error) != self._trouble:
            log.error("%s", error)
        self._trouble = "" if error is None else str(error)

    async def close(self) -> None:
        """Give up the lease and close the journal."""
        await self._keeper.give_up()
        self.journal.close()

    @property
    def trouble(self) -> str:
        """Why the journal can't be used now, or "" if it can."""
        return self._trouble or self.journal.silent

    @property
    def holds_lease(self) -> bool:
        """Whether the lease is ours at this moment."""
        return self._keeper.lease is not None

    @property
    def lease(self) -> Lease | None:
        """The lease as the journal had it last, ours or another guard's."""
        return self._keeper.seen

    @property
    def fence(self) -> int:
        """The number of the lease, for the journal; 0 before it was first read."""
        return self._keeper.seen.fence if self._keeper.seen is not None else 0

    @property
    def holder(self) -> str:
        """This guard's name in the lease."""
        return self._keeper.holder

    # -- may we ---------------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether a person has put acting on hold, as last read."""
        return self.stance.held

    @property
    def by_settings(self) -> bool | None:
        """Whether the settings arm this guard (True) or only let it observe (False); None if people decide."""
        return False if self._observe_only else self._armed

    def only_observe(self, why: str) -> None:
        """From now on this guard mustn't act by itself, because of ``why``; "": it may again."""
        self._observe_only = why

    @property
    def armed_by(self) -> ArmedBy:
        """Who armed this guard, whether or not a culler that it replaces still works."""
        if self.by_settings is not None:
            return ArmedBy.SETTINGS if self.by_settings else ArmedBy.NOBODY
        if self.stance.armed is not None:
            return ArmedBy.PERSON if self.stance.armed else ArmedBy.NOBODY
        return ArmedBy.NOBODY if self.handover is None else ArmedBy.CULLER

    @property
    def armed(self) -> bool:
        """Whether this guard may cull without being asked."""
        return self.armed_by is not ArmedBy.NOBODY and not self._why_not_ours

    @property
    def armed_for_all(self) -> bool:
        """Whether this guard may do everything without being asked, and not only what an idle culler did."""
        return self.armed and self.armed_by is not ArmedBy.CULLER

    @property
    def _why_not_ours(self) -> str:
        return "" if self.handover is None else self.handover.why_not_ours

    @property
    def why_observing(self) -> str:
        """Why this guard isn't armed, as a clause; "" if it is."""
        if self.armed:
            return ""
        if self._observe_only:
            return self._observe_only
        if self.armed_by is not ArmedBy.NOBODY:
            return self._why_not_ours
        return "HubGuard.armed is False in the config" if self.by_settings is False else "nobody has armed it"

    @property
    def why_standby(self) -> str:
        """Who is in charge instead of this guard, as a sentence; "" if this guard is."""
        if self.holds_lease:
            return ""
        seen = self._keeper.seen
        if seen is None:
            return "This guard isn't in charge of this hub yet, so it may not act."
        where = f" at {seen.address}" if seen.address else ""
        return f"Another guard ({seen.holder}{where}) is in charge of this hub."

    def check(self) -> None:
        """Raises HubGuardError with the reason unless this guard may act for the hub, asked or not."""
        if self._wrong_setting:
            raise HubGuardError(f"HubGuard takes no action until a setting is corrected. {self._wrong_setting}")
        self.journal.check()
        if not self.holds_lease:
            raise HubGuardError(self.why_standby)

    def why_not(self, order: Order) -> str:
        """Why ``order`` may not be carried out now, as last read; "" if it may. The journal has the last word.

        It is asked about all that isn't culling: for that, see ``why_observing``.
        """
        if self._wrong_setting:
            return f"HubGuard takes no action until a setting is corrected. {self._wrong_setting}"
        if not self.holds_lease:
            return self.why_standby
        if self.held:
            return self.stance.sentence
        if order.asked or self.armed_for_all:
            return ""
        return self.why_observing or "only culling was taken over from the idle culler, and nobody has armed the rest"

    def may_act(self, order: Order) -> bool:
        """Whether ``order`` may be carried out now, as last read."""
        return not self.why_not(order)

    # -- what people set ------------------------------------------------------------------------------------------

    async def arm(self, actor: str, why: str) -> None:
        """Let HubGuard act without being asked. Raises HubGuardError if the settings forbid it."""
        if self.by_settings is False:
            raise HubGuardError(f"Arming changes nothing: {self.why_observing}. Change that first.")
        await self._set(self.journal.arm(actor, why, self._clock.now()))
        self.allowed.set()

    async def observe(self, actor: str, why: str) -> None:
        """Let HubGuard only observe. Raises HubGuardError if the settings arm it."""
        if self.by_settings:
            raise HubGuardError("HubGuard.armed is True in the config. Change it there; to stop acting now, use hold.")
        await self._set(self.journal.observe(actor, why, self._clock.now()))

    async def hold(self, actor: str, why: str) -> None:
        """Put acting on hold: nothing is sent until a person resumes."""
        await self._set(self.journal.hold(actor, why, self._clock.now()))

    async def resume(self, actor: str, why: str) -> None:
        """End the hold, and accept what a brake objects to if a person may do that."""
        await self._set(self.journal.resume(actor, why, self._clock.now()))
        self.allowed.set()

    async def _set(self, change: Awaitable[Stance]) -> None:
        self.stance = await change

    # -- acting ---------------------------------------------------------------------------------------------------

    @property
    def intents_under_way(self) -> frozenset[int]:
        """The ids of the intents that this guard is carrying out. Nobody else settles them."""
        return frozenset(self._under_way)

    def attempt(self, action: Action, order: Order, detail: str = "") -> Attempt:
        """One try at ``action``. Its intent is under way until it is settled or the attempt closed."""
        return Attempt(self, self._clock, action, order, detail)

    async def intend(self, action: Action, order: Order, detail: str = "", grounds: Grounds | None = None) -> int:
        """The intent's id, committed under our lease. Raises LeaseLost, ActingRefused or JournalError: then send nothing."""
        if not order.asked and (why := self._why_not_ours):
            raise ActingRefused(f"Nothing was sent: {why}.")
        intent = await self._keeper.intend(
            action,
            order.actor,
            asked=order.asked,
            armed=self.by_settings,
            by_default=self.armed_by is ArmedBy.CULLER,
            detail=detail,
            grounds=grounds,
        )
        self._under_way.add(intent)
        return intent

    async def settle(self, intent: int, outcome: Outcome) -> None:
        """Record the outcome of ``intent``. Raises JournalError: it then stays open, and a later look settles it."""
        await self._keeper.settle(intent, outcome)
        self.settled_at_s = self._clock.monotonic_s()
        self.release(intent)

    def release(self, intent: int) -> None:
        """Nobody here is working on ``intent`` any more: if it is still open, a later look settles it."""
        self._under_way.discard(intent)

    async def skip(self, action: Action, actor: str, detail: str) -> None:
        """Record that ``action`` wasn't done, and why. Raises JournalError."""
        await self._keeper.skip(action, actor, detail)
