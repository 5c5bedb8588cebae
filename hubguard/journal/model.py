"""The nouns of the journal: the lease, the stance, exemptions, entries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from hubguard.model import Grounds, OutcomeKind


@dataclass(frozen=True, slots=True)
class Exemption:
    """Somebody has asked to keep a server, or all of a user's (``server`` None), until a time.

    ``ended_at`` and ``ended_by`` are set when it was ended early.
    """

    id: int
    user: str
    server: str | None
    until: datetime
    actor: str
    why: str
    made_at: datetime
    ended_at: datetime | None = None
    ended_by: str | None = None

    def covers(self, user: str, server: str, now: datetime) -> bool:
        """Whether that server is to be kept at ``now``."""
        return (
            self.user == user
            and self.server in (None, server)
            and now < self.until
            and (self.ended_at is None or now < self.ended_at)
        )


@dataclass(frozen=True, slots=True)
class Stance:
    """Whether HubGuard may act, as people have set it. Each ``*_by``/``*_at``/``*_why`` describes the last change, or
    is None.

    ``armed`` None: nobody has armed it or disarmed it yet (it observes).
    """

    armed: bool | None = None
    armed_by: str | None = None
    armed_at: datetime | None = None
    armed_why: str | None = None
    held: bool = False
    held_by: str | None = None
    held_at: datetime | None = None
    held_why: str | None = None

    @property
    def sentence(self) -> str:
        """``On hold (Ann: exam week).``, for people; "" if acting isn't on hold."""
        return f"On hold{self._by_and_why}." if self.held else ""

    @property
    def clause(self) -> str:
        """``HubGuard is on hold (Ann: exam week)``, to stand in a sentence; "" if acting isn't on hold."""
        return f"HubGuard is on hold{self._by_and_why}" if self.held else ""

    @property
    def _by_and_why(self) -> str:
        return f" ({self.held_by or 'someone'}: {self.held_why or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on one hub. ``fence`` rises with every change of holder; requests carry it and old ones are refused.

    ``address`` is the URL where the holder's API is reached, or "". ``expires_at`` is when it lapses unless renewed.
    """

    holder: str
    address: str
    fence: int
    generation: float
    taken_at: datetime
    expires_at: datetime


class ArmedBy(str, Enum):
    """By whose word HubGuard acts without being asked."""

    NOBODY = "nobody"
    SETTINGS = "settings"  # HubGuard.armed
    PERSON = "person"
    CULLER = "culler"  # as long as the entry of an idle culler that HubGuard replaces is there; for culling alone


class Event(str, Enum):
    """What an entry of the journal records."""

    INTENT = "intent"  # about to be sent
    OUTCOME = "outcome"  # what came of an intent
    ARMED = "armed"
    OBSERVING = "observing"
    HELD = "held"
    RESUMED = "resumed"
    KEPT = "kept"  # an exemption
    RELEASED = "released"  # an exemption was ended early
    BRAKED = "braked"
    BRAKE_OVER = "brake-over"
    FINDING = "finding"
    CLEARED = "cleared"  # a finding is resolved
    CYCLE = "cycle"
    LEASE = "lease"
    ANNOUNCED = "announced"  # what HubGuard would do, said once while it may not
    ALERT = "alert"  # an alert was raised
    ALERT_OVER = "alert-over"  # it is resolved
    SILENCED = "silenced"
    INCIDENT = "incident"  # an incident was opened, closed, or somebody wrote something down about it
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. ``refers_to`` is the id of the intent that an outcome belongs to, else None.

    ``outcome`` is set for outcomes only. ``started`` is the run of the server that was meant. ``fence`` is 0 for what people
    did without a lease. ``grounds`` is what an intent and its outcome are based on, None if an earlier version wrote it.
    ``plan`` is the digest of the plan to delete users that it belongs to, None: it belongs to none.
    """

    id: int
    at: datetime
    event: Event
    actor: str
    fence: int
    user: str | None = None
    server: str | None = None
    started: datetime | None = None
    action: str | None = None
    reason: str | None = None
    outcome: OutcomeKind | None = None
    detail: str = ""
    refers_to: int | None = None
    grounds: Grounds | None = None
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """How often acting on one run has failed since it last worked, and when last."""

    count: int
    last_at: datetime
