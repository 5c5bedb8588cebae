"""What the guard knows of itself at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from hubguard.errors import ConfigError
from hubguard.journal.model import ArmedBy, Lease, Stance
from hubguard.model import Finding
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


class Culls(str, Enum):
    """Who culls this hub, now."""

    HUBGUARD = "hubguard"
    OTHER = "other"  # one or more of the services that are listed
    NOBODY = "nobody"  # HubGuard only observes, is on hold, or is about to take over


@dataclass(frozen=True, slots=True)
class OtherCuller:
    """A service that culls or may cull. ``known``: its command is an idle culler's.

    ``replaced``: HubGuard takes its place, and its understudy runs the original when HubGuard can't. ``runs`` is whether the
    original runs, None if unknown. ``detail`` is the understudy's reason, or why the service looks like a culler. ``reach``
    is what its scopes are limited to, such as ``group=gpu``: one filter of each list has to fit, and without any it
    reaches everybody.
    """

    name: str
    known: bool
    replaced: bool
    runs: bool | None
    detail: str
    command: tuple[str, ...] = ()
    reach: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class TakenSetting:
    """A setting that was taken over from a culler's command: its name in a config file, and its value as written there."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class HandoverStatus:
    """Who culls, by whose word, and what was taken over. ``why`` says why somebody else or nobody culls, "" for HubGuard.

    ``settings`` are those that were taken over. ``api_url`` is the culler's own URL of the hub that HubGuard uses, or "".
    """

    culls: Culls = Culls.NOBODY
    armed_by: ArmedBy = ArmedBy.NOBODY
    why: str = ""
    others: tuple[OtherCuller, ...] = ()
    settings: tuple[TakenSetting, ...] = ()
    api_url: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What the guard knows of itself at one moment; its parts know the rest.

    ``why`` is one sentence. ``errors`` are wrong settings; ``notes`` are things an operator should know (a missing optional
    scope, a replaced culler). ``lease`` is None if nobody has ever held it. ``brake`` is set while HubGuard is braked.
    ``clock_from``: idle clocks restarted then, after an outage. ``armed`` is what is in effect;
    ``armed_by_settings`` None means that people decide it.
    ``findings`` are what an operator should look at in what was read from the hub, most recent last. ``handover`` says who
    culls.
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
    errors: tuple[ConfigError, ...] = ()
    notes: tuple[str, ...] = ()
    budget: BudgetUse | None = None
    armed: bool = False
    armed_by_settings: bool | None = None
    brake: Brake | None = None
    clock_from: datetime | None = None
    findings: tuple[Finding, ...] = ()
    handover: HandoverStatus = field(default_factory=HandoverStatus)
