"""What the guard knows of itself at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.cull.model import CycleReport, Verdict
from hubguard.errors import ConfigError
from hubguard.journal.model import Lease, Stance
from hubguard.model import Finding, Tally
from hubguard.pacing.model import BudgetUse
from hubguard.snapshot.model import Brake


class Mode(str, Enum):
    """What HubGuard is doing, in one word."""

    STARTING = "starting"  # nothing is known yet: no settings from the hub, no database or no first snapshot
    ACTING = "acting"  # armed, and stopping what is due
    OBSERVING = "observing"  # shows what it would do, and does nothing by itself
    HELD = "held"  # a person has put acting on hold
    BRAKED = "braked"  # HubGuard is braked; ``why`` says for which reason
    STANDBY = "standby"  # another guard holds the lease and acts for this hub
    TROUBLED = "troubled"  # a wrong setting or an unusable database: acts on nothing; ``why`` names it


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that pages, API and metrics tell about the guard itself at one moment.

    ``why`` is one sentence. ``errors`` are wrong settings; ``notes`` are things an
    operator should know (a missing optional scope, a taken-over culler). ``last_cycle`` and ``next_cycle_at`` are None
    before the first cycle, ``lease`` where nobody has ever held it, ``last_good_cycle_at`` before one has succeeded.
    ``brake`` is set while HubGuard is braked. ``clock_from``: idle clocks were restarted then, after an outage.
    ``armed`` is what holds, by people or by the settings. ``tally`` is of this guard's life, ``recent`` of the last hour.
    ``oldest_overdue`` is the server that has been due for longest and isn't stopped yet. ``findings`` are what an operator
    should look at, most recent last. ``pruned`` tells how users of plans were settled in this guard's life, and
    ``prune_waiting`` how many of the plan that is being carried out, or is paused, wait for their turn.
    """

    at: datetime
    mode: Mode
    why: str
    stance: Stance
    started_at: datetime
    holder: str
    lease: Lease | None = None
    holds_lease: bool = False
    hub_version: str | None = None
    last_cycle: CycleReport | None = None
    last_good_cycle_at: datetime | None = None
    next_cycle_at: datetime | None = None
    errors: tuple[ConfigError, ...] = ()
    notes: tuple[str, ...] = ()
    budget: BudgetUse | None = None
    armed: bool = False
    brake: Brake | None = None
    clock_from: datetime | None = None
    tally: Tally = field(default_factory=Tally)
    recent: Tally = field(default_factory=Tally)
    oldest_overdue: Verdict | None = None
    findings: tuple[Finding, ...] = ()
    pruned: Tally = field(default_factory=Tally)
    prune_waiting: int = 0
