"""Whether a plan is still to be carried out, and how we know: asked again before each user is deleted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hubguard.act.mandate import Mandate
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
from hubguard.pacing.clock import Clock
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.model import PrunePlan, PruneState
from hubguard.prune.plans import why_held
from hubguard.prune.review import Review
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.store import AsyncPrunes
from hubguard.snapshot.cycle import Snapshots
from hubguard.snapshot.model import BrakeReason

STATE_LASTS_S = 0.5
"""Seconds for which it counts that a plan is running and acting isn't on hold, as the journal said. Whoever pauses the plan
in this guard is noticed at once, and the journal refuses every intent while acting is on hold."""

LOOKING_S = 0.2
"""Seconds between asking whether a cycle is done counting users. Nobody is deleted meanwhile."""

COUNT_EVERY_S = 5.0
"""Seconds between counts of the hub's users while a plan is carried out: a fall doesn't wait for the next look."""

GONE_MOST = 3
"""Users of a plan that are found deleted by somebody else before it pauses. A person resumes it."""

TRANSIENT = frozenset({BrakeReason.INCOMPLETE, BrakeReason.CHECKING, BrakeReason.PROXY_DOWN})
"""Brakes that end by themselves, as an outage does: the plan waits for that, and not for a person."""

GATEWAY = (502, 504)
"""Statuses that something before the hub answers when the hub is away; so is 503, as HubBusy."""


class Ends(str, Enum):
    """How work on a plan ends."""

    DONE = "done"  # every user is settled
    WAITS = "waits"  # it goes on by itself when the hub and its database answer
    PAUSES = "pauses"  # until a person resumes it
    LEFT = "left"  # to whoever has turned it, or holds the lease now


@dataclass(frozen=True, slots=True)
class End:
    """How work on a plan ends; ``why`` is one line, or ""."""

    how: Ends
    why: str = ""


class Standing:
    """Whether ``plan`` is still to be carried out. Make a new one each time it goes on.

    ``end`` says how work on it ends, None while it goes on; the first end counts. ``acknowledged`` names its cautions that
    are acknowledged. What is remembered between checks: until when the plan's state in the journal counts, and whether the
    hub's risks were read since it was last away, since another hub may answer then.
    """

    def __init__(
        self,
        plan: PrunePlan,
        acknowledged: frozenset[str],
        mandate: Mandate,
        review: Review,
        snapshots: Snapshots,
        settings: HubGuardPrune,
        clock: Clock,
    ) -> None:
        self.plan = plan
        self.acknowledged = acknowledged
        self.end: End | None = None
        self._journal = mandate.journal
        self._mandate = mandate
        self._review = review
        self._snapshots = snapshots
        self._settings = settings
        self._clock = clock
        self._state_until_s = float("-inf")
        self._turns = 0
        self._absences, self._risks_read_at = 0, -1
        self._count_at_s = float("-inf")
        self._gone = 0

    def stop(self, end: End) -> None:
        """Work on the plan ends so, unless an end was found before."""
        self.end = self.end or end

    def stop_for(self, error: Exception) -> bool:
        """Work on the plan ends if ``error`` concerns more than one user; whether it does."""
        end = _end_for(error)
        if end is not None:
            self.stop(end)
        return end is not None

    def note_gone(self) -> None:
        """Somebody else has deleted a user of the plan. It pauses if there are several: who else is at work?"""
        self._gone += 1
        if self._gone >= GONE_MOST:
            self.stop(
                End(
                    Ends.PAUSES,
                    f"somebody else deleted {self._gone} users of this plan meanwhile. Find out who, and resume the plan if"
                    " you still want it",
                )
            )

    def turned(self) -> None:
        """A person has paused or cancelled a plan: its state is read again before anybody else is deleted."""
        self._turns += 1
        self._state_until_s = float("-inf")

    def hub_was_away(self) -> None:
        """Nothing that was read before counts when the hub is back: it may be another hub, or its database restored."""
        self._review.look_anew()
        self._absences += 1

    def note(self, error: Exception) -> None:
        """Remember that the hub was away, if ``error`` says so."""
        if _is_away(error):
            self.hub_was_away()

    async def check(self) -> bool:
        """Whether the plan is still to be carried out at this moment; else ``end`` says why not. Raises JournalError."""
        end = await self._check()
        if end is not None:
            self.stop(end)
        return self.end is None

    async def _check(self) -> End | None:
        while self._snapshots.counting:
            await self._clock.sleep(LOOKING_S)
        if not self._mandate.holds_lease:
            return End(Ends.LEFT)
        if not self._settings.delete_users:
            return End(Ends.PAUSES, "HubGuardPrune.delete_users is False, so HubGuard deletes nobody.")
        if self._risks_read_at != self._absences and (end := await self.new_risks()) is not None:
            return end
        if self._clock.monotonic_s() >= self._count_at_s and (end := await self._fallen()) is not None:
            return end
        # Last, so that a person who pauses the plan while the hub is being read is noticed.
        if self._clock.monotonic_s() >= self._state_until_s and (end := await self._journaled()) is not None:
            return end
        brake = self._snapshots.brake
        if brake is None:
            return None
        return End(Ends.WAITS if brake.reason in TRANSIENT else Ends.PAUSES, brake.sentence)

    async def _fallen(self) -> End | None:
        """How it ends if users have disappeared since the last look, or can't be counted."""
        self._count_at_s = self._clock.monotonic_s() + COUNT_EVERY_S
        try:
            why = self._snapshots.why_fallen(await self._review.count_users())
        except HubGuardError as error:
            self.note(error)
            return _end_for(error)
        return End(Ends.PAUSES, why) if why else None

    async def _journaled(self) -> End | None:
        turns = self._turns
        state = await AsyncPrunes(self._journal).prune_state(self.plan.digest)
        if state is not PruneState.RUNNING:
            return End(Ends.LEFT)
        if held := await why_held(self._journal):
            return End(Ends.PAUSES, f"{held} Resume acting, then this plan.")
        if turns == self._turns:
            self._state_until_s = self._clock.monotonic_s() + STATE_LASTS_S
        return None

    async def new_risks(self) -> End | None:
        """How it ends if the hub of now needs an acknowledgement that is missing, or doesn't answer."""
        absences = self._absences
        try:
            missing = prune_plan.unacknowledged(await self._review.cautions(), self.acknowledged)
        except (HubError, BudgetExhausted) as error:
            return End(Ends.WAITS, str(error))
        if missing is not None:
            return End(
                Ends.PAUSES,
                f"the hub has changed since the plan started. To resume it, acknowledge this by name. {missing}",
            )
        self._risks_read_at = absences
        return None


def _is_away(error: Exception) -> bool:
    return isinstance(error, (HubUnreachable, HubBusy)) or (isinstance(error, HubFailed) and error.status in GATEWAY)


def _end_for(error: Exception) -> End | None:
    """How ``error`` ends work on a plan; None: it concerns one user only."""
    if isinstance(error, LeaseLost):
        return End(Ends.LEFT, str(error))
    if isinstance(error, (ActingRefused, HubRefused, OtherHubsDB)):
        return End(Ends.PAUSES, str(error))
    if isinstance(error, Unrecordable):
        return None
    if isinstance(error, (JournalError, BudgetExhausted, HubDBError)) or _is_away(error):
        return End(Ends.WAITS, str(error))
    return None
