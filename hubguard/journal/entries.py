"""The lines of the journal: one more, and those that were written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from hubguard.journal import tables
from hubguard.journal.database import Database
from hubguard.journal.model import Entry, Event
from hubguard.model import Action, ActionKind, Grounds, Outcome, OutcomeKind, Tally
from hubguard.words import as_json

# A detail is a line; what a hub may send in place of one shouldn't fill the disk.
DETAIL_LENGTH = 2000
"""Maximum characters of an entry's detail."""

NOTES = frozenset(
    {
        Event.CYCLE,
        Event.LEASE,
        Event.NOTE,
        Event.BRAKED,
        Event.BRAKE_OVER,
        Event.FINDING,
        Event.CLEARED,
        Event.ANNOUNCED,
        Event.ALERT,
        Event.ALERT_OVER,
    }
)
"""The events that only record something. The others are written by the methods that do what they record."""

_entry = tables.entry


class Entries:
    """The part of a journal that is read and written line by line."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads."""
        return self._database.reading()

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that writes: on disk when it ends, undone when it raises."""
        return self._database.writing()

    def note(
        self,
        event: Event,
        actor: str,
        fence: int,
        now: datetime,
        detail: str = "",
        *,
        user: str | None = None,
        server: str | None = None,
        started: datetime | None = None,
        action: str | None = None,
        reason: str | None = None,
        plan: str | None = None,
    ) -> int:
        """One more entry; its id. ``fence`` is 0 without a lease.

        Other events have methods of their own, which do more than write: naming one here raises ValueError.
        """
        if event not in NOTES:
            raise ValueError(f"an entry {event.value!r} is written by the method that does what it records")
        with self.writing() as connection:
            return add_entry(
                connection,
                now,
                event,
                actor,
                fence,
                user_name=user,
                server_name=server,
                started=started,
                action=action,
                reason=reason,
                detail=detail,
                plan=plan,
            )

    def announce(
        self, actions: Iterable[tuple[Action, Grounds | None]], actor: str, now: datetime, detail: str
    ) -> None:
        """One more entry of event announced for each of ``actions`` with its grounds, all or none; ``fence`` is 0.

        One whose names the journal can't hold is left out.
        """
        with self.writing() as connection:
            for action, grounds in actions:
                if not (tables.holds(action.user) and tables.holds(action.name)):
                    continue
                add_entry(
                    connection,
                    now,
                    Event.ANNOUNCED,
                    actor,
                    0,
                    user_name=action.user,
                    server_name=action.name,
                    started=action.started,
                    action=action.kind.value,
                    reason=action.reason,
                    detail=detail,
                    grounds=None if grounds is None else grounds_text(grounds),
                )

    def entries(
        self,
        before_id: int | None = None,
        limit: int = 100,
        user: str | None = None,
        server: str | None = None,
        event: Event | None = None,
        plan: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[Entry, ...]:
        """At most ``limit`` entries, newest first, of those that fit all that is given; None means any.

        ``before_id`` continues after a page: pass the id of its last entry. ``server`` "" is the default server. ``plan``
        is a digest or its beginning. ``since`` and ``until`` are the first and the last moment.
        """
        query = sa.select(_entry).order_by(_entry.c.id.desc()).limit(limit)
        wanted = {
            _entry.c.user_name: user,
            _entry.c.server_name: server,
            _entry.c.event: None if event is None else event.value,
        }
        for column, value in wanted.items():
            if value is not None:
                query = query.where(column == value)
        if plan is not None:
            query = query.where(_entry.c.plan.startswith(plan, autoescape=True))
        if before_id is not None:
            query = query.where(_entry.c.id < before_id)
        if since is not None:
            query = query.where(_entry.c.at >= since)
        if until is not None:
            query = query.where(_entry.c.at <= until)
        with self.reading() as connection:
            return tuple(map(to_entry, connection.execute(query)))

    def resumed_at(self) -> datetime | None:
        """When a person last resumed acting after a hold; None: nobody has, as far as the journal remembers."""
        query = (
            sa.select(_entry.c.at).where(_entry.c.event == Event.RESUMED.value).order_by(_entry.c.id.desc()).limit(1)
        )
        with self.reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    def tally(self, since: datetime) -> Tally:
        """How many actions have ended since ``since``, that moment included, by how they ended."""
        # Every kind is named so that the index by outcome and time is used.
        kinds = [kind.value for kind in OutcomeKind]
        of_users = sa.func.sum(sa.case((_entry.c.action == ActionKind.DELETE_USER.value, 1), else_=0))
        query = (
            sa.select(_entry.c.outcome, sa.func.count(), of_users)
            .where(_entry.c.outcome.in_(kinds), _entry.c.at >= since)
            .group_by(_entry.c.outcome)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        not_deleted = sum(int(row[2]) for row in rows if row[0] == OutcomeKind.FAILED.value)
        return Tally(**{row[0]: row[1] for row in rows}, not_deleted=not_deleted)


def one_at_a_time(connection: Connection) -> None:
    """Nobody else adds what we are about to add, nor changes what we read, until the transaction ends."""
    connection.execute(sa.select(tables.stance.c.id).where(tables.stance.c.id == 1).with_for_update())


def add_entry(connection: Connection, now: datetime, event: Event, actor: str, fence: int, **values: Any) -> int:
    """One more entry, as part of the transaction of ``connection``; its id. ``values`` are columns of the table."""
    values["detail"] = one_text(values.get("detail", ""))
    added = connection.execute(sa.insert(_entry).values(at=now, event=event.value, actor=actor, fence=fence, **values))
    key = added.inserted_primary_key
    assert key is not None
    return int(key[0])


def one_text(text: str) -> str:
    """The text as every database can hold it: recording what happened must not fail for what a hub has sent."""
    return text[:DETAIL_LENGTH].replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def add_outcome(connection: Connection, intent_id: int, outcome: Outcome, now: datetime) -> bool:
    """Adds the outcome of that intent; False, and nothing is added: it has one, or there is no such intent."""
    intent = connection.execute(
        sa.select(_entry).where(_entry.c.id == intent_id, _entry.c.event == Event.INTENT.value)
    ).one_or_none()
    if intent is None:
        return False
    try:
        with connection.begin_nested():
            add_entry(
                connection,
                now,
                Event.OUTCOME,
                intent.actor,
                intent.fence,
                user_name=intent.user_name,
                server_name=intent.server_name,
                started=intent.started,
                action=intent.action,
                reason=intent.reason,
                outcome=outcome.kind.value,
                detail=outcome.detail,
                refers_to=intent_id,
                grounds=intent.grounds,
                plan=intent.plan,
            )
    except IntegrityError:
        return False
    return True


def to_entry(row: Any) -> Entry:
    """The entry in a row of the table."""
    return Entry(
        id=row.id,
        at=row.at,
        event=Event(row.event),
        actor=row.actor,
        fence=row.fence,
        user=row.user_name,
        server=row.server_name,
        started=row.started,
        action=row.action,
        reason=row.reason,
        outcome=None if row.outcome is None else OutcomeKind(row.outcome),
        detail=row.detail,
        refers_to=row.refers_to,
        grounds=None if row.grounds is None else _read_grounds(row.grounds),
        plan=row.plan,
    )


def grounds_text(grounds: Grounds) -> str:
    """``grounds`` as the table has them."""
    return json.dumps(as_json(grounds))


def _read_grounds(text: str) -> Grounds | None:
    try:
        value = json.loads(text)
        since = value["since"] and datetime.fromisoformat(value["since"].replace("Z", "+00:00"))
        return Grounds(**{**value, "since": since})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # of another version
