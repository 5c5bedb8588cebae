"""How pages and API show the sources of a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hubguard.model import Reading, Source
from hubguard.wire import extended


@dataclass(frozen=True, slots=True)
class SourceShape:
    """One source's reading. ``complete`` false means some of it is missing, for the reason in ``detail``."""

    source: Source
    at: datetime
    age_s: float
    complete: bool
    took_s: float
    detail: str


def describe_source(reading: Reading, now: datetime) -> SourceShape:
    """One reading, with its age at ``now``."""
    age_s = round(max(0.0, (now - reading.at).total_seconds()), 3)
    return extended(SourceShape, reading, age_s=age_s, took_s=round(reading.took_s, 3))
