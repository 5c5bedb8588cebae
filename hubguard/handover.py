"""Who culls: what HubGuard shows the understudies of idle cullers, what they answer, and what people see of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from hubguard.act.mandate import Mandate
from hubguard.config import Settings
from hubguard.cull.cycle import Cycles
from hubguard.errors import JournalError
from hubguard.hub.facts import HubFacts
from hubguard.journal.model import ArmedBy, Event
from hubguard.pacing.clock import Clock
from hubguard.status import Culls, HandoverStatus, Mode, OtherCuller, TakenSetting
from hubguard.understudy import Report, Word

log = logging.getLogger(__name__)

SHOW_S = 2.0
"""Seconds between two words to the understudies of idle cullers about whether HubGuard can do their work."""

CYCLE_MAY_TAKE_S = 180.0
"""Seconds, beyond one and a half times the time between cycles, without a look at the whole hub that count as a failure."""

LOOK_S = 600.0
"""Seconds between two looks for idle cullers among the services, by a guard without the include."""

AGAIN_S = 30.0
"""Seconds until the next look if the hub didn't answer."""

MEMORY = "handover"
"""The journal's memory of the cullers that were replaced."""


class HandingOver:
    """Keeps the understudies informed while the guard runs, and without an include looks for cullers itself."""

    def __init__(self, settings: Settings, mandate: Mandate, cycles: Cycles, facts: HubFacts, clock: Clock) -> None:
        self._settings = settings
        self._mandate = mandate
        self._cycles = cycles
        self._facts = facts
        self._found = facts.cullers
        self._clock = clock
        self._former = ""

    async def run(self) -> None:
        """Show what this guard can do and cull as soon as the cullers wait, until cancelled. May return before."""
        handover, mandate = self._mandate.handover, self._mandate
        if handover is None:
            await self._recall()
            while self._facts.without_include:
                why = await self._facts.why_not_alone(self._settings.guard.act_beside)
                if why is not None:
                    was_armed = mandate.armed
                    mandate.only_observe(why)
                    if mandate.armed and not was_armed:
                        mandate.allowed.set()
                await self._clock.sleep(LOOK_S if why is not None else AGAIN_S)
            return
        was_ours, hold = False, handover.held_before
        while True:
            if hold and await self._journal_knows(hold):
                hold = ""
            handover.show(*((Word.HELD, hold) if hold else self._fitness()))
            if handover.ours and not was_ours:
                await self._tell(f"{handover.name} waits, and HubGuard culls")
                with contextlib.suppress(JournalError):
                    await mandate.journal.remember(MEMORY, {"names": handover.name}, self._clock.now())
                mandate.allowed.set()
            elif was_ours and not handover.ours:
                await self._tell(f"HubGuard no longer culls: {handover.why_not_ours}")
            was_ours = handover.ours
            await self._clock.sleep(SHOW_S)

    async def _journal_knows(self, hold: str) -> bool:
        """Whether the journal can be read, and knows of the ``hold``, ended or not. One that never had a hold gets it now."""
        mandate = self._mandate
        try:
            stance = await mandate.refresh()
            if stance.held_at is None:
                await mandate.hold("hubguard", f"acting was on hold before HubGuard lost its journal ({hold})")
        except JournalError:
            return False
        return True

    async def _recall(self) -> None:
        """Remember which culler was replaced before, once the journal can be read."""
        while not self._mandate.holds_lease:
            await self._clock.sleep(SHOW_S)
        recalled: tuple[Mapping[str, Any], object] | None = None
        with contextlib.suppress(JournalError):
            recalled = await self._mandate.journal.recall(MEMORY)
        self._former = str(recalled[0].get("names", "")) if recalled else ""

    async def _tell(self, text: str) -> None:
        log.warning("%s.", text)
        with contextlib.suppress(JournalError):
            await self._mandate.journal.note(Event.NOTE, "hubguard", self._mandate.fence, self._clock.now(), text)

    def _fitness(self) -> tuple[Word, str]:
        """Whether this guard does, or could do, the work of the cullers that it replaces; and why not, as a clause."""
        mandate, cycles = self._mandate, self._cycles
        if mandate.held:
            return Word.HELD, mandate.stance.clause
        if self._settings.errors:
            return Word.UNABLE, f"a setting of HubGuard's is wrong: {self._settings.errors[0]}"
        if mandate.trouble:
            return Word.UNABLE, f"HubGuard's journal isn't available: {mandate.trouble}"
        if mandate.lease is None:
            return Word.STARTING, "HubGuard is starting"
        if not mandate.holds_lease:
            return Word.UNABLE, mandate.why_standby
        if mandate.armed_by is ArmedBy.NOBODY:
            return Word.UNABLE, f"HubGuard only observes: {mandate.why_observing}"
        if cycles.last is None and cycles.saw_all_at_s is None:
            return Word.STARTING, "HubGuard hasn't read the hub's servers yet"
        patience_s = 1.5 * self._settings.cull.every_s + CYCLE_MAY_TAKE_S
        worked_at_s = max(cycles.saw_all_at_s or 0.0, mandate.settled_at_s or 0.0)
        if cycles.saw_all_at_s is None or self._clock.monotonic_s() - worked_at_s > patience_s:
            return Word.UNABLE, "HubGuard can't read all of the hub's servers"
        if cycles.recent.mostly_failed:
            return Word.UNABLE, "most of what HubGuard sent to the hub in the last hour failed"
        return Word.ABLE, ""

    # -- what people see ------------------------------------------------------------------------------------------

    @property
    def note(self) -> str:
        """Says that a culler which HubGuard replaced is gone, and with it what armed and limited HubGuard; "" if not."""
        mandate = self._mandate
        if (
            not self._former
            or self._found.cullers
            or mandate.by_settings is not None
            or mandate.stance.armed is not None
        ):
            return ""
        return (
            f"The idle culler {self._former}, which HubGuard replaced, is no longer registered. Its limits and its right to"
            " act ended with it: HubGuard only observes, with its own settings, until you arm it."
        )

    def status(self, mode: Mode, why: str) -> HandoverStatus:
        """Who culls while the guard is in ``mode``, which it is in because of ``why``. Never raises."""
        mandate, takeover = self._mandate, self._found
        none: tuple[Report | None, ...] = (None,) * len(takeover.cullers)
        reports = none if mandate.handover is None else mandate.handover.reports
        others = [
            OtherCuller(
                culler.name,
                known=True,
                replaced=takeover.replaced,
                runs=(None if report is None else report.runs) if takeover.replaced else True,
                detail=report.why if report is not None else takeover.why,
                command=culler.command,
                reach=culler.reach,
            )
            for culler, report in zip(takeover.cullers, reports, strict=True)
        ]
        others += [
            OtherCuller(suspect.name, known=False, replaced=False, runs=None, detail=f"{suspect.why}. {suspect.advice}")
            for suspect in takeover.suspects
        ]
        culls = Culls.HUBGUARD if mode is Mode.ACTING else Culls.NOBODY
        if any(other.known and other.runs for other in others):
            culls = Culls.OTHER
        settings = takeover.settings if takeover.replaced else {}
        return HandoverStatus(
            culls,
            mandate.armed_by,
            "" if culls is Culls.HUBGUARD else (mandate.why_observing or why).rstrip("."),
            tuple(others),
            tuple(
                TakenSetting(f"{section}.{name}", repr(value))
                for section, values in settings.items()
                for name, value in values.items()
            ),
            takeover.api_url,
        )
