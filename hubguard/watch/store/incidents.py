"""Keeps incidents and what people write down about them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.errors import NotThere
from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import add_entry, one_at_a_time, one_text
from hubguard.journal.model import Event
from hubguard.journal.store import Journal
from hubguard.watch.model import Incident, IncidentNote, Severity

_incident = tables.incident
_note = tables.incident_note


class NoSuchIncident(NotThere):
    """There is no incident of that id, or it is closed."""


class IncidentStore:
    """Incidents and their notes. Every method raises JournalError when the database fails."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def open_incident(
        self, title: str, by: str, now: datetime, *, severity: Severity | None = None, fence: int = 0
    ) -> Incident:
        """The incident that is open: a new one, or the one that was open already. The journal has a new one."""
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            known = connection.execute(_open_ones()).first()
            if known is not None:
                return _to_incident(known)
            values = {"title": one_text(title), "opened_at": now, "opened_by": by}
            row = connection.execute(
                sa.insert(_incident).values(**values, severity=None if severity is None else severity.value)
            )
            (id_,) = row.inserted_primary_key or (0,)
            add_entry(connection, now, Event.INCIDENT, by, fence, detail=f"incident {id_} opened: {title}")
            return _incident_of(connection, int(id_))

    def close_incident(self, id_: int, by: str, now: datetime, why: str, *, fence: int = 0) -> Incident:
        """That incident is closed; the journal has it. Raises NoSuchIncident if there is none, or it was closed before."""
        with self.journal.writing() as connection:
            open_ = (_incident.c.id == id_, _incident.c.closed_at.is_(None))
            closing = sa.update(_incident).where(*open_).values(closed_at=now, closed_by=by)
            if connection.execute(closing).rowcount != 1:
                raise NoSuchIncident(f"No incident {id_} is open. Nothing was changed.")
            detail = f"incident {id_} closed" + (f": {why}" if why else "")
            add_entry(connection, now, Event.INCIDENT, by, fence, detail=detail)
            return _incident_of(connection, id_)

    def add_note(self, id_: int, by: str, text: str, now: datetime) -> IncidentNote:
        """What somebody wrote down is kept with that incident, open or closed. Raises NoSuchIncident."""
        with self.journal.writing() as connection:
            _incident_of(connection, id_)
            text = one_text(text)
            connection.execute(sa.insert(_note).values(incident_id=id_, at=now, actor=by, text=text))
            return IncidentNote(now, by, text)

    def incidents(self, *, limit: int = 100) -> tuple[Incident, ...]:
        """The newest, at most ``limit``, newest first."""
        query = sa.select(_incident).order_by(_incident.c.id.desc()).limit(limit)
        with self.journal.reading() as connection:
            return tuple(map(_to_incident, connection.execute(query)))

    def open_now(self) -> Incident | None:
        """The one that is open; None if none is."""
        with self.journal.reading() as connection:
            row = connection.execute(_open_ones()).first()
        return None if row is None else _to_incident(row)

    def incident(self, id_: int) -> Incident:
        """That incident. Raises NoSuchIncident."""
        with self.journal.reading() as connection:
            return _incident_of(connection, id_)

    def notes(self, id_: int) -> tuple[IncidentNote, ...]:
        """What was written down about that incident, oldest first."""
        query = sa.select(_note).where(_note.c.incident_id == id_).order_by(_note.c.id)
        with self.journal.reading() as connection:
            return tuple(IncidentNote(row.at, row.actor, row.text) for row in connection.execute(query))


def _open_ones() -> sa.Select[Any]:
    return sa.select(_incident).where(_incident.c.closed_at.is_(None)).order_by(_incident.c.id.desc())


def _incident_of(connection: Connection, id_: int) -> Incident:
    row = connection.execute(sa.select(_incident).where(_incident.c.id == id_)).one_or_none()
    if row is None:
        raise NoSuchIncident(f"There is no incident {id_}. Nothing was changed.")
    return _to_incident(row)


def _to_incident(row: Any) -> Incident:
    severity = None if row.severity is None else Severity(row.severity)
    return Incident(row.id, row.title, row.opened_at, row.opened_by, severity, row.closed_at, row.closed_by)


class AsyncIncidents(AsyncStore[IncidentStore]):
    """IncidentStore, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, IncidentStore)

    open_incident = awaited(IncidentStore.open_incident)
    close_incident = awaited(IncidentStore.close_incident)
    add_note = awaited(IncidentStore.add_note)
    incidents = awaited(IncidentStore.incidents)
    open_now = awaited(IncidentStore.open_now)
    incident = awaited(IncidentStore.incident)
    notes = awaited(IncidentStore.notes)
