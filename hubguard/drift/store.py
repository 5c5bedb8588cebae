"""What drift remembers across a restart, as JSON that the journal keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from hubguard import wire
from hubguard.drift.model import Drift, DriftKind
from hubguard.model import Key

REMEMBERED = 1000
"""Maximum differences, and as many ghosts and outlived backends, that are remembered across a restart."""

WORDS = 200
"""Maximum characters of what was expected, and of what was seen, that are remembered across a restart."""

Count = Annotated[int, Field(ge=0)]
GhostRow = tuple[str, str, datetime | None, datetime]
OutlivedRow = tuple[str, str, datetime, str]


@dataclass(frozen=True, slots=True)
class RememberedDrift:
    """What is remembered of a Drift: which one it is, and the counting. The next look shows the rest."""

    kind: DriftKind
    user: str | None
    server: str | None
    subject: str
    expected: str
    observed: str
    since: datetime
    seen_at: datetime
    started: datetime | None
    sightings: Count
    looks: Count
    missed: Count
    raised_at: datetime | None


@dataclass(frozen=True, slots=True)
class DriftMemory:
    """The differences that are followed; by run, when a stop didn't end it; by server, when the hub reported that its backend
    outlived it, and in which words.
    """

    drifts: tuple[Drift, ...] = ()
    ghosts: Mapping[tuple[str, str, datetime | None], datetime] = field(default_factory=dict, hash=False)
    outlived: Mapping[Key, tuple[datetime, str]] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "drifts": [
                wire.to_plain(
                    wire.extended(
                        RememberedDrift, drift, expected=drift.expected[:WORDS], observed=drift.observed[:WORDS]
                    )
                )
                for drift in self.drifts
            ],
            "ghosts": [
                [user, name, started and started.isoformat(), at.isoformat()]
                for (user, name, started), at in self.ghosts.items()
            ],
            "outlived": [[*key, at.isoformat(), detail] for key, (at, detail) in self.outlived.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], now: datetime) -> DriftMemory:
        """Read what ``to_dict`` wrote, in this version or another. Rows that can't be read are left out.

        A time of a ghost or backend that is after ``now`` counts as ``now``.
        """
        ghosts: list[GhostRow] = _rows(GhostRow, data.get("ghosts"))
        outlived: list[OutlivedRow] = _rows(OutlivedRow, data.get("outlived"))
        return cls(
            tuple(wire.extended(Drift, row) for row in _rows(RememberedDrift, data.get("drifts"))),
            {(user, name, started): min(at, now) for user, name, started, at in ghosts},
            {(user, name): (min(at, now), detail) for user, name, at, detail in outlived},
        )


def _rows(kind: Any, rows: object) -> list[Any]:
    """Each of ``rows`` as a ``kind``, except those that aren't one."""
    repairs = []
    for row in (rows if isinstance(rows, list) else [])[:REMEMBERED]:
        try:
            repairs.append(wire.read(kind, row, "memory"))
        except wire.Malformed:
            continue
    return repairs
