"""What a guard has seen of servers and wants to know again after a restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import one_at_a_time, one_text
from hubguard.journal.store import Journal
from hubguard.snapshot.model import Evidence, Seen

SEEN_AGAIN_S = 86_400
"""Seconds after which a server that is still there is marked as seen again, even if nothing about it has changed."""

_READ_AT_ONCE = 500

_activity = tables.activity

_CHANGE = sa.update(_activity).where(
    _activity.c.user_name == sa.bindparam("of_user"), _activity.c.server_name == sa.bindparam("of_server")
)


class ActivityStore:
    """What was seen of each server, kept in the journal. Every method raises JournalError when the database fails."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def activity(self) -> dict[tuple[str, str], Seen]:
        """By (user, server): what was seen of each, also of those that are gone. 50,000 take about a second."""
        with self.journal.reading() as connection:
            return {(row.user_name, row.server_name): _to_seen(row) for row in connection.execute(sa.select(_activity))}

    def see(self, rows: Iterable[Seen], now: datetime) -> int:
        """What was seen of those servers is on disk, all or none; how many of them had changed. Others stay as they were.

        The later ``active_at`` stays, with its evidence, whoever saw it; but one later than ``now`` is replaced. Of several
        rows for a server the last one counts. A server whose names the journal can't hold is left out.
        """
        seen = {
            (row.user, row.server): _holdable(row)
            for row in rows
            if tables.holds(row.user) and tables.holds(row.server)
        }
        if not seen:
            return 0
        stale = now - timedelta(seconds=SEEN_AGAIN_S)
        new, changed = [], []
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            known = _known(connection, {user for user, _ in seen})
            for key, row in seen.items():
                before, seen_at = known.get(key, (None, now))
                after = _later(before, row, now)
                if before is None:
                    new.append(_to_row(after) | {"user_name": row.user, "server_name": row.server, "seen_at": now})
                elif after != before or seen_at <= stale:
                    changed.append(
                        _to_row(after) | {"of_user": row.user, "of_server": row.server, "seen_at": max(now, seen_at)}
                    )
            if new:
                connection.execute(sa.insert(_activity), new)
            if changed:
                connection.execute(_CHANGE, changed)
        return len(new) + len(changed)

    def forget(self, before: datetime) -> None:
        """What was seen of servers that weren't seen since ``before`` is gone."""
        with self.journal.writing() as connection:
            connection.execute(sa.delete(_activity).where(_activity.c.seen_at < before))


class AsyncActivity(AsyncStore[ActivityStore]):
    """The same, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, ActivityStore)

    activity = awaited(ActivityStore.activity)
    see = awaited(ActivityStore.see)
    forget = awaited(ActivityStore.forget)


def _known(connection: Connection, users: set[str]) -> dict[tuple[str, str], tuple[Seen, datetime]]:
    known, rest = {}, iter(users)
    while some := list(islice(rest, _READ_AT_ONCE)):
        for row in connection.execute(sa.select(_activity).where(_activity.c.user_name.in_(some))):
            known[row.user_name, row.server_name] = (_to_seen(row), row.seen_at)
    return known


def _later(before: Seen | None, after: Seen, now: datetime) -> Seen:
    if before is None or before.active_at is None or before.active_at > now:
        return after
    if after.active_at is not None and after.active_at >= before.active_at:
        return after
    return replace(after, active_at=before.active_at, evidence=before.evidence)


def _holdable(seen: Seen) -> Seen:
    return seen if seen.pending is None else replace(seen, pending=one_text(seen.pending)[: tables.PENDING_LENGTH])


def _to_row(seen: Seen) -> dict[str, Any]:
    return {
        "started": seen.started,
        "active_at": seen.active_at,
        "evidence": None if seen.evidence is None else seen.evidence.value,
        "pending": seen.pending,
        "pending_since": seen.pending_since,
        "readded_at": seen.readded_at,
        "route_missing": seen.route_missing,
    }


def _to_seen(row: Any) -> Seen:
    return Seen(
        user=row.user_name,
        server=row.server_name,
        started=row.started,
        active_at=row.active_at,
        evidence=None if row.evidence is None else Evidence(row.evidence),
        pending=row.pending,
        pending_since=row.pending_since,
        readded_at=row.readded_at,
        route_missing=row.route_missing,
    )
