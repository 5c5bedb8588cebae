"""The part that watches, with alerts as a test places them; for the pages' tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from builders import NOW, minutes

from hubguard.act.mandate import Mandate
from hubguard.pacing.clock import Clock
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import Alert, AlertState, SignalSource, SourceReading


class FakeReader:
    """Reads ``values``, or raises ``fails``."""

    def __init__(
        self, source: SignalSource = SignalSource.HUB, values: Mapping[str, float] | None = None, every_s: float = 10.0
    ) -> None:
        self.source = source
        self.every_s = every_s
        self.values: Mapping[str, float] = values or {}
        self.fails: Exception | None = None
        self.closed = False

    async def read(self) -> Mapping[str, float]:
        if self.fails is not None:
            raise self.fails
        return dict(self.values)

    async def close(self) -> None:
        self.closed = True


def alert_of(rule: str, subject: str = "", /, *, raised: bool = True, **changed: Any) -> Alert:
    """That alert, firing for five minutes at NOW, but for what is ``changed``."""
    made: dict[str, Any] = {
        "rule": rule,
        "subject": subject,
        "state": AlertState.FIRING if raised else AlertState.PENDING,
        "since": NOW - minutes(6),
        "seen_at": NOW,
        "looks": 30,
        "value": 2.5,
        "worst": 3.5,
        "limit": 2.0,
        "raised_at": NOW - minutes(5) if raised else None,
        "id": 1 if raised else None,
    }
    return Alert(**{**made, **changed})


def every_alert() -> tuple[Alert, ...]:
    """Every rule, firing, and one that is pending."""
    return (
        *(
            alert_of(rule.name, "/srv/homes" if "{subject}" in rule.sentence else "", id=id_ + 1)
            for id_, rule in enumerate(RULES)
        ),
        alert_of("DiskLow", "/scratch", raised=False),
    )


class PlacedWatch(Watch):
    """The part itself, without a reader; it shows what is placed in it."""

    def __init__(self, mandate: Mandate, clock: Clock) -> None:
        super().__init__(RULES, (), mandate, clock, keep_days=400)

    def place(self, alerts: Iterable[Alert], readings: Iterable[SourceReading] = ()) -> None:
        """From now on these are the alerts, and what was last read."""
        self._alerts = {alert.key: alert for alert in alerts}
        self._readings = {reading.source: reading for reading in readings}
        self._read_at = NOW


def readings_of_each_kind(why: str = "The database didn't answer.") -> tuple[SourceReading, ...]:
    """A source that was read, one that isn't available, and one that isn't set up."""
    return (
        SourceReading(SignalSource.HUB, NOW, {"hub_up": 1.0}),
        SourceReading(SignalSource.HUB_DB, NOW, why=why),
        SourceReading(SignalSource.PROXY_METRICS, NOW, why=why, configured=False),
    )
