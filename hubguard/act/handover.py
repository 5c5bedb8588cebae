"""The guard's side of the handover from idle cullers: it shows what it can do, and knows whether the cullers wait."""

from __future__ import annotations

import logging
from pathlib import Path

from hubguard import understudy
from hubguard.inhub.handover import Handover as TakenOver
from hubguard.pacing.clock import Clock
from hubguard.understudy import Claim, Report, Word

log = logging.getLogger(__name__)


class Handover:
    """HubGuard's place in the folder that it shares with the understudies of the cullers that it replaces.

    ``takeover`` is what the include found and did. ``held_before`` is why an earlier process of this hub's HubGuard was on
    hold when it ended, or "". ``reports`` are what the understudies said last, in the order of the
    cullers, None for one that has said nothing.
    """

    def __init__(self, takeover: TakenOver, clock: Clock) -> None:
        self.takeover = takeover
        self.names = tuple(culler.name for culler in takeover.cullers)
        self.reports: tuple[Report | None, ...] = (None,) * len(self.names)
        self._folder = Path(takeover.folder)
        self._clock = clock
        self._said = ""
        claim = understudy.read_claim(self._folder)
        self.held_before = claim.why if claim is not None and claim.word is Word.HELD else ""

    @property
    def name(self) -> str:
        """The names of the cullers, for people."""
        return " and ".join(self.names)

    @property
    def running(self) -> tuple[str, ...]:
        """The cullers that were running when their understudies last said so."""
        return tuple(
            name for name, report in zip(self.names, self.reports, strict=True) if report is not None and report.runs
        )

    @property
    def ours(self) -> bool:
        """Whether all cullers wait, by their understudies' promises, so that HubGuard may cull."""
        now_s = self._clock.monotonic_s()
        return all(report is not None and not report.runs and report.until_s > now_s for report in self.reports)

    @property
    def why_not_ours(self) -> str:
        """Why HubGuard may not cull yet, as a clause; "" if it may."""
        if self.ours:
            return ""
        if self.running:
            whys = {report.why for report in self.reports if report is not None and report.runs}
            return f"{' and '.join(self.running)} culls ({'; '.join(sorted(whys))})"
        return f"{self.name} hasn't handed over yet"

    def show(self, word: Word, why: str) -> None:
        """Show the understudies what HubGuard can do now, and read what they said. Never raises."""
        try:
            understudy.write(self._folder / understudy.CLAIM, Claim(word, why, self._clock.monotonic_s()))
            said = ""
        except OSError as error:
            said = (
                f"HubGuard can't tell the idle culler that it works: {self._folder} can't be written ({error.strerror})"
            )
        if said and said != self._said:
            log.error("%s", said)
        self._said = said
        self.reports = tuple(understudy.read_report(self._folder, number) for number in range(len(self.names)))
