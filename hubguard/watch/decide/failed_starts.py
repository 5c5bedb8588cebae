"""Starts that failed: why, who is hit and since when, by what the hub's own process reported."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

KEPT = 500
"""Maximum failed starts that are kept, the newest."""

KEPT_S = 1800.0
"""Seconds for which a failed start is shown: as long as those that an alert counts."""

REFUSED, OTHER = "refused", "other"

_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(signs, re.IGNORECASE))
    for cause, signs in (
        (
            "image-pull",
            r"ErrImage|ImagePull|ImageNotFound|InvalidImageName|pull access|no such image|manifest unknown|pulling image",
        ),
        ("unschedulable", r"FailedScheduling|Unschedulable|nodes are available|didn't trigger scale-up"),
        ("out-of-memory", r"OOMKill|out of memory|cannot allocate memory|exit ?code 137"),
        ("crash", r"CrashLoop|BackOff"),
        ("timeout", r"TimeoutError|timed out|didn't respond in|did not start in|failed to start in"),
        ("crash", r"exited|exit ?(code|status)|failed to start|No such file|Permission denied"),
    )
)
"""What a message that names a cause holds, the closest cause first: a pod without a node is also one that timed out."""


@dataclass(frozen=True, slots=True)
class FailedStart:
    """One start that failed. ``message`` is the spawner's, with the last warnings of its platform."""

    at: datetime
    user: str
    server: str
    cause: str
    message: str


@dataclass(frozen=True, slots=True)
class CauseOfFailures:
    """One cause, who is hit, and when first, within the time that is looked at."""

    cause: str
    count: int
    users: tuple[str, ...]
    since: datetime


def cause_of_error(error: str, message: str, *, refused: bool) -> str:
    """Why that start failed, by the name of the error and its message. ``refused``: it never began."""
    if refused:
        return REFUSED
    text = f"{error}: {message}"
    return next((cause for cause, signs in _SIGNS if signs.search(text)), OTHER)


class FailedStarts:
    """What was reported of late. It only knows the times that it is told."""

    def __init__(self) -> None:
        self._told: deque[FailedStart] = deque(maxlen=KEPT)

    def add(self, failed: FailedStart) -> None:
        """Keep that one."""
        self._told.append(failed)

    def recent(self, now: datetime) -> tuple[FailedStart, ...]:
        """Those of the last half hour, newest first."""
        since = now - timedelta(seconds=KEPT_S)
        return tuple(failed for failed in reversed(self._told) if since < failed.at <= now)

    def causes_between(self, since: datetime, until: datetime) -> dict[str, int]:
        """How many there were by cause after ``since``, up to ``until``, of those that the hub had begun."""
        counts: dict[str, int] = {}
        for failed in self._told:
            if since < failed.at <= until and failed.cause != REFUSED:
                counts[failed.cause] = counts.get(failed.cause, 0) + 1
        return counts


def by_cause(failed: Sequence[FailedStart]) -> tuple[CauseOfFailures, ...]:
    """``failed`` by cause, the most frequent first."""
    groups: dict[str, list[FailedStart]] = {}
    for one in failed:
        groups.setdefault(one.cause, []).append(one)
    causes = (
        CauseOfFailures(cause, len(some), tuple(sorted({one.user for one in some})), min(one.at for one in some))
        for cause, some in groups.items()
    )
    return tuple(sorted(causes, key=lambda one: (-one.count, one.cause)))


def describe_row(values: Mapping[str, float]) -> str:
    """How near the hub is to its exit, by the newest values of the signals; "" if nothing failed in a row."""
    row, limit = values.get("failed_starts_in_a_row"), values.get("failed_starts_limit")
    if not row:
        return ""
    if limit:
        return f"{row:.0f} of {limit:.0f} in a row failed: the hub exits at {limit:.0f}."
    return f"{row:.0f} in a row failed."
