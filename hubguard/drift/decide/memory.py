"""What of drift outlives a restart of the guard, and its way to JSON and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from hubguard.drift.model import Drift, DriftKind
from hubguard.model import Key

T = TypeVar("T")

REMEMBERED = 1000
"""So many drifts at most, and as many ghosts and outlived backends, are remembered over a restart."""

WORDS = 200
"""So many characters of what was expected, and of what was seen, are remembered over a restart."""


@dataclass(frozen=True, slots=True)
class DriftMemory:
    """The drifts that are followed; by run, when a stop didn't end it; by server, when its backend was said to outlive it,
    and in which words.
    """

    drifts: tuple[Drift, ...] = ()
    ghosts: Mapping[tuple[str, str, datetime | None], datetime] = field(default_factory=dict, hash=False)
    outlived: Mapping[Key, tuple[datetime, str]] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "drifts": [_plain(drift) for drift in self.drifts],
            "ghosts": [
                [user, name, started and started.isoformat(), at.isoformat()]
                for (user, name, started), at in self.ghosts.items()
            ],
            "outlived": [[*key, at.isoformat(), detail] for key, (at, detail) in self.outlived.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], now: datetime) -> DriftMemory:
        """What ``data`` tells. What can't be read of it is left out; no time of a ghost or backend is after ``now``."""
        return cls(
            tuple(_each(_drift_from, data.get("drifts"))),
            dict(_each(lambda row: _ghost_from(row, now), data.get("ghosts"))),
            dict(_each(lambda row: _outlived_from(row, now), data.get("outlived"))),
        )


def _plain(drift: Drift) -> dict[str, Any]:
    """What of a drift outlives a restart: what it is, and the counting. The rest the next look tells."""
    return {
        "kind": drift.kind.value,
        "user": drift.user,
        "server": drift.server,
        "subject": drift.subject,
        "expected": drift.expected[:WORDS],
        "observed": drift.observed[:WORDS],
        "since": drift.since.isoformat(),
        "seen_at": drift.seen_at.isoformat(),
        "started": drift.started and drift.started.isoformat(),
        "sightings": drift.sightings,
        "looks": drift.looks,
        "missed": drift.missed,
        "raised_at": drift.raised_at and drift.raised_at.isoformat(),
    }


def _each(read: Callable[[Any], T], rows: object) -> list[T]:
    """What ``read`` makes of each row, without those that it can't read: another version may have written them."""
    found = []
    for row in (rows if isinstance(rows, list) else [])[:REMEMBERED]:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            found.append(read(row))
    return found


def _drift_from(data: Any) -> Drift:
    user, server = data["user"], data["server"]
    return Drift(
        kind=DriftKind(data["kind"]),
        user=None if user is None else _text(user),
        server=None if server is None else _text(server),
        expected=_text(data["expected"]),
        observed=_text(data["observed"]),
        since=_surely(data["since"]),
        seen_at=_surely(data["seen_at"]),
        subject=_text(data["subject"]),
        started=_at(data["started"]),
        sightings=_count(data["sightings"]),
        looks=_count(data["looks"]),
        missed=_count(data["missed"]),
        raised_at=_at(data["raised_at"]),
    )


def _ghost_from(row: Any, now: datetime) -> tuple[tuple[str, str, datetime | None], datetime]:
    user, name, started, at = row
    return (_text(user), _text(name), _at(started)), min(_surely(at), now)


def _outlived_from(row: Any, now: datetime) -> tuple[Key, tuple[datetime, str]]:
    user, name, at, detail = row
    return (_text(user), _text(name)), (min(_surely(at), now), _text(detail))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _at(text: object) -> datetime | None:
    return None if text is None else _surely(text)


def _surely(text: object) -> datetime:
    at = datetime.fromisoformat(_text(text))
    if at.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return at.astimezone(timezone.utc)
