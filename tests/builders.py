"""What tests are made of: one moment, spans from it, and servers as they are then."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hubguard.model import Server

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
EXACT_NOW = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
"""For databases: a moment with microseconds, which they must keep."""

DAY_S = 86400.0


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def days(number: float) -> timedelta:
    return timedelta(days=number)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def days_ago(number: float = 0, seconds: float = 0) -> datetime:
    return NOW - timedelta(days=number, seconds=seconds)


def exactly_ago(seconds: float | None) -> datetime | None:
    """The moment that many seconds before EXACT_NOW; None stays None."""
    return None if seconds is None else EXACT_NOW - timedelta(seconds=seconds)


def server(user: str = "ann", name: str = "", *, idle_s: float = 60, age_s: float = 3600, **fields: Any) -> Server:
    """A server that has run for ``age_s`` seconds, idle for ``idle_s``; ready unless pending, or what ``fields`` say."""
    pending = fields.pop("pending", None)
    made = {"ready": pending is None, "started": ago(age_s), "last_activity": ago(idle_s), **fields}
    return Server(user, name, pending=pending, **made)
