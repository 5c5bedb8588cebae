"""Keeps the notices that wait to be sent: the queue outlives a guard that ends at any moment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import add_entry, one_text
from hubguard.journal.model import Event
from hubguard.journal.store import Journal
from hubguard.watch.decide.notice import Notice
from hubguard.watch.model import AlertRow, Change, Silence
from hubguard.watch.store.alerts import HUBGUARD, to_alert, to_silence

_alert, _notice, _silence = tables.alert, tables.notice, tables.silence

READ_MOST = 1000
"""Maximum notices of a receiver read at once, the oldest first. What is left out is read when these are sent."""


class NoticeStore:
    """The notices. Every method raises JournalError when the database fails."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def waiting(self, receivers: Collection[str]) -> tuple[Notice, ...]:
        """Those for ``receivers`` that are neither sent nor given up, oldest first."""
        query = (
            sa.select(_notice, *(column.label(f"alert_{column.name}_") for column in _alert.c))
            .join(_alert, _alert.c.id == _notice.c.alert_id)
            .where(_notice.c.ended_at.is_(None))
            .order_by(_notice.c.id)
            .limit(READ_MOST)
        )
        with self.journal.reading() as connection:
            # One by one: what waits for a receiver that is gone must not crowd out the others'.
            rows = [connection.execute(query.where(_notice.c.receiver == receiver)).all() for receiver in receivers]
        return tuple(_to_notice(row) for some in rows for row in some)

    def silences_since(self, at: datetime) -> tuple[Silence, ...]:
        """Those that are in force, or have ended since."""
        with self.journal.reading() as connection:
            return tuple(map(to_silence, connection.execute(sa.select(_silence).where(_silence.c.silent_until >= at))))

    def claim(self, notices: Sequence[Notice], again_at: datetime) -> tuple[Notice, ...]:
        """A try of each begins, as far as it still waits as it is in ``notices``; those, with the try counted.

        A guard that ends before the answer leaves them due at ``again_at``, as ones that may have arrived.
        """
        claimed = []
        with self.journal.writing() as connection:
            for notice in notices:
                same = (_notice.c.id == notice.id, _notice.c.tries == notice.tries, _notice.c.ended_at.is_(None))
                values = {"tries": notice.tries + 1, "due_at": again_at, "reached": True}
                if connection.execute(sa.update(_notice).where(*same).values(**values)).rowcount == 1:
                    # ``reached`` stays as it was before this try: the answer decides.
                    claimed.append(replace(notice, tries=notice.tries + 1))
        return tuple(claimed)

    def end(self, notices: Sequence[Notice], now: datetime) -> None:
        """They are sent."""
        ids = [notice.id for notice in notices]
        with self.journal.writing() as connection:
            sent = sa.update(_notice).where(_notice.c.id.in_(ids)).values(ended_at=now, trouble="")
            connection.execute(sent)

    def put_off(self, notices: Sequence[Notice], again_at: datetime, trouble: str, *, reached: bool) -> None:
        """They are due again then, and so is whatever waits for the same receiver, no earlier. ``reached``: see Result."""
        with self.journal.writing() as connection:
            for notice in notices:
                values = {
                    "due_at": again_at,
                    "trouble": one_text(trouble),
                    "reached": reached or notice.reached,
                }
                connection.execute(sa.update(_notice).where(_notice.c.id == notice.id).values(**values))
            receivers = {notice.receiver for notice in notices}
            others = (_notice.c.receiver.in_(receivers), _notice.c.ended_at.is_(None), _notice.c.due_at < again_at)
            connection.execute(sa.update(_notice).where(*others).values(due_at=again_at))

    def give_up(self, notices: Sequence[Notice], trouble: str, now: datetime, fence: int, *, reached: bool) -> None:
        """They won't be sent, and the journal says so."""
        with self.journal.writing() as connection:
            for notice in notices:
                values = {
                    "ended_at": now,
                    "given_up": True,
                    "trouble": one_text(trouble),
                    "reached": reached or notice.reached,
                }
                connection.execute(sa.update(_notice).where(_notice.c.id == notice.id).values(**values))
            for receiver in sorted({notice.receiver for notice in notices}):
                rules = sorted({notice.alert.rule for notice in notices if notice.receiver == receiver})
                detail = f"{receiver} didn't get a notice of {', '.join(rules)}, and won't: {trouble}"
                add_entry(connection, now, Event.NOTE, HUBGUARD, fence, reason="notice", detail=detail)

    def firing(self, receiver: str) -> tuple[AlertRow, ...]:
        """The alerts that aren't resolved and that this receiver has heard of, oldest first."""
        heard = sa.select(_notice.c.alert_id).where(
            _notice.c.receiver == receiver,
            _notice.c.change == Change.RAISED.value,
            _notice.c.ended_at.is_not(None),
            _notice.c.reached.is_(True),
        )
        query = sa.select(_alert).where(_alert.c.resolved_at.is_(None), _alert.c.id.in_(heard)).order_by(_alert.c.id)
        with self.journal.reading() as connection:
            return tuple(map(to_alert, connection.execute(query.limit(READ_MOST))))


def _to_notice(row: Any) -> Notice:
    alert = SimpleNamespace(**{column.name: getattr(row, f"alert_{column.name}_") for column in _alert.c})
    return Notice(
        row.id, row.receiver, Change(row.change), to_alert(alert), row.made_at, row.due_at, row.tries, row.reached
    )


class AsyncNotices(AsyncStore[NoticeStore]):
    """NoticeStore, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, NoticeStore)

    waiting = awaited(NoticeStore.waiting)
    silences_since = awaited(NoticeStore.silences_since)
    claim = awaited(NoticeStore.claim)
    end = awaited(NoticeStore.end)
    put_off = awaited(NoticeStore.put_off)
    give_up = awaited(NoticeStore.give_up)
    firing = awaited(NoticeStore.firing)
