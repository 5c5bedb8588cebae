"""The words and numbers that pages, API and CLI share. Text in, text out: no HTML, no clock, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from hubguard.model import Source, server_label

SOURCE_WORDS: dict[Source, str] = {
    Source.HUB_API: "Hub's API",
    Source.HUB_DB: "Hub's database",
    Source.PROXY: "Proxy",
    Source.BACKEND: "Backends",
    Source.HUB_ROUTES: "Proxy, as the hub sees it",
}


def duration(seconds: float) -> str:
    """How long, as people say it: ``12 s``, ``5 min``, ``1 h 12 min``, ``3 d 4 h``. Rounded down; negative counts as 0."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    return _units(whole - whole % 60)


def limit(seconds: float) -> str:
    """A limit as it is set, to the second below an hour: ``1 min 30 s``, ``2 h``; parts of a second only below one."""
    return f"{seconds:g} s" if seconds < 1 else _units(int(seconds))


def _units(whole: int) -> str:
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def age(at: datetime, now: datetime) -> str:
    """``12 s ago``, or ``just now`` for what lies less than a second back or, by a skewed clock, ahead."""
    passed_s = (now - at).total_seconds()
    return f"{duration(passed_s)} ago" if passed_s >= 1 else "just now"


def until(at: datetime, now: datetime) -> str:
    """``in 48 min``, or ``now`` for what is due."""
    left_s = (at - now).total_seconds()
    return f"in {duration(left_s)}" if left_s >= 1 else "now"


def clock(at: datetime, now: datetime) -> str:
    """``at 14:05 UTC``, with the date if it isn't today's: ``on 22 Nov at 14:05 UTC``."""
    at = at.astimezone(timezone.utc)
    time = f"at {at:%H:%M} UTC"
    if at.date() == now.astimezone(timezone.utc).date():
        return time
    year = "" if at.year == now.astimezone(timezone.utc).year else f" {at.year}"
    return f"on {at.day} {at:%b}{year} {time}"


def stamp(at: datetime) -> str:
    """The full time, to the second: ``2026-11-21 14:05:09 UTC``."""
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def day(at: datetime) -> str:
    """``28 Nov``, in UTC."""
    at = at.astimezone(timezone.utc)
    return f"{at.day} {at:%b}"


def kept_label(user: str, server: str | None) -> str:
    """What an exemption keeps: ``ann/gpu``, ``ann`` for the default server, ``all servers of ann`` for None."""
    if server is None:
        return f"all servers of {user}"
    return server_label(user, server)


def count(number: int, noun: str) -> str:
    """``1 server``, ``12,000 servers``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def as_json(value: Any) -> Any:
    """``value`` as JSON knows it: dataclasses as objects, times as ISO 8601 in UTC with a ``Z``, tuples as lists."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(item) for key, item in value.items()}
    return value


def json_text(value: Any) -> str:
    """``as_json`` as text; ``<`` is escaped, so that no browser ever takes it for a page."""
    return json.dumps(as_json(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
