"""What one snapshot remembers for the next: names under which the journal keeps it, and small questions to a snapshot."""

from __future__ import annotations

from datetime import datetime, timedelta

from hubguard.journal.model import Entry
from hubguard.model import (
    ActionKind,
    OutcomeKind,
    Source,
)
from hubguard.pacing.model import PaceState
from hubguard.snapshot.model import Snapshot

NEWS = 100
"""So many new findings a cycle are told in the journal; the page shows all that there are."""


SETTLED_BY_DRIFT = frozenset(
    kind.value for kind in (ActionKind.CHECK_ROUTES, ActionKind.START_AND_STOP, ActionKind.END_BACKEND)
)
"""Only a look at all sources tells what came of these."""


WATCH, PACE = "watch", "pace"
"""Under these names the journal keeps what the brake and the budget remember."""


def _is_deletion(entry: Entry) -> bool:
    return entry.action == ActionKind.DELETE_USER.value and entry.outcome is OutcomeKind.DONE


def _answered(snapshot: Snapshot, source: Source) -> bool | None:
    reading = snapshot.reading(source)
    return None if reading is None else reading.complete


def _same_pace(one: tuple[PaceState, datetime | None], other: tuple[PaceState, datetime | None]) -> bool:
    if one[0] != other[0] or one[1] is None or other[1] is None:
        return one == other
    return abs(one[1] - other[1]) < timedelta(seconds=1)
