"""Keeps the alerts that were raised, what is silenced, and the notices that wait to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.errors import NotThere
from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import add_entry, one_text
from hubguard.journal.model import Event
from hubguard.journal.store import Journal
from hubguard.watch.model import Alert, AlertRow, Change, Severity, Silence

_alert = tables.alert
_silence = tables.silence
_notice = tables.notice

HUBGUARD = "hubguard"


class NoSuchSilence(NotThere):
    """No silence of that id is in force."""


class AlertStore:
    """Alerts, silences and notices. Every method raises JournalError when the database fails."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    # -- alerts ---------------------------------------------------------------------------------------------------

    def raise_alert(
        self,
        alert: Alert,
        severity: Severity,
        sentence: str,
        fence: int,
        receivers: Sequence[str],
        *,
        incident: int | None = None,
    ) -> int:
        """The alert is kept as raised, the journal has it, and a notice to each of ``receivers`` waits; its id.

        One that is kept as raised already and not resolved, of the same rule and subject, stays as it is: a guard that
        ended before it could remember the alert must not notify twice.
        """
        assert alert.raised_at is not None
        with self.journal.writing() as connection:
            same = sa.and_(
                _alert.c.rule == alert.rule, _alert.c.subject == alert.subject, _alert.c.resolved_at.is_(None)
            )
            known = connection.execute(sa.select(_alert.c.id).where(same)).scalars().first()
            if known is not None:
                return int(known)
            row = connection.execute(
                sa.insert(_alert).values(
                    rule=alert.rule,
                    subject=alert.subject,
                    severity=severity.value,
                    raised_at=alert.raised_at,
                    value=alert.value,
                    worst=alert.worst,
                    sentence=one_text(sentence),
                    verdict="",
                    incident_id=incident,
                )
            )
            (id_,) = row.inserted_primary_key or (0,)
            add_entry(connection, alert.raised_at, Event.ALERT, HUBGUARD, fence, reason=alert.rule, detail=sentence)
            _add_notices(connection, int(id_), Change.RAISED, receivers, alert.raised_at)
            return int(id_)

    def resolve_alert(
        self, id_: int, worst: float, sentence: str, fence: int, receivers: Sequence[str], now: datetime
    ) -> bool:
        """The alert is kept as resolved, the journal has it, and who was notified of it learns so. False: it was already.

        A notice that it was raised and that still waits is dropped. ``receivers`` hear that it is resolved only if they may
        have heard that it was raised.
        """
        with self.journal.writing() as connection:
            resolving = (
                sa.update(_alert)
                .where(_alert.c.id == id_, _alert.c.resolved_at.is_(None))
                .values(resolved_at=now, worst=worst)
            )
            if connection.execute(resolving).rowcount != 1:
                return False
            rule = connection.execute(sa.select(_alert.c.rule).where(_alert.c.id == id_)).scalar_one()
            add_entry(connection, now, Event.ALERT_OVER, HUBGUARD, fence, reason=rule, detail=sentence)
            raised = sa.and_(_notice.c.alert_id == id_, _notice.c.change == Change.RAISED.value)
            told = sa.select(_notice.c.receiver).where(raised, _notice.c.reached.is_(True))
            heard = set(connection.execute(told).scalars())
            connection.execute(sa.delete(_notice).where(raised, _notice.c.ended_at.is_(None)))
            _add_notices(connection, id_, Change.RESOLVED, [name for name in receivers if name in heard], now)
            return True

    def note_verdict(self, id_: int, verdict: str) -> None:
        """What a check found is kept with the alert."""
        with self.journal.writing() as connection:
            connection.execute(sa.update(_alert).where(_alert.c.id == id_).values(verdict=one_text(verdict)))

    def alerts(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        incident: int | None = None,
        limit: int = 100,
    ) -> tuple[AlertRow, ...]:
        """Those that aren't resolved and those that were at ``since`` or later, newest first, at most ``limit``.

        ``since`` None: only those that aren't resolved. ``until``: only those raised by then. ``incident``: only its own.
        """
        open_ = _alert.c.resolved_at.is_(None)
        where = open_ if since is None else sa.or_(open_, _alert.c.resolved_at >= since)
        query = sa.select(_alert).where(where).order_by(_alert.c.id.desc()).limit(limit)
        if until is not None:
            query = query.where(_alert.c.raised_at <= until)
        if incident is not None:
            query = query.where(_alert.c.incident_id == incident)
        with self.journal.reading() as connection:
            return tuple(map(to_alert, connection.execute(query)))

    def alert(self, id_: int) -> AlertRow | None:
        """The alert of that id; None if there is none (any more)."""
        with self.journal.reading() as connection:
            row = connection.execute(sa.select(_alert).where(_alert.c.id == id_)).one_or_none()
        return None if row is None else to_alert(row)

    def forget_alerts(self, before: datetime) -> int:
        """Alerts resolved before then are gone, with their notices, and so are silences that were over; how many alerts."""
        with self.journal.writing() as connection:
            old = sa.select(_alert.c.id).where(_alert.c.resolved_at < before)
            connection.execute(sa.delete(_notice).where(_notice.c.alert_id.in_(old)))
            connection.execute(sa.delete(_silence).where(_silence.c.silent_until < before))
            return connection.execute(sa.delete(_alert).where(_alert.c.resolved_at < before)).rowcount

    # -- silences -------------------------------------------------------------------------------------------------

    def silence(self, rule: str, subject: str | None, until: datetime, actor: str, why: str, now: datetime) -> Silence:
        """Nobody is notified of that until then; the journal has it."""
        with self.journal.writing() as connection:
            values = {"rule": rule, "subject": subject, "silent_until": until, "actor": actor}
            made = connection.execute(sa.insert(_silence).values(**values, why=one_text(why), made_at=now))
            (id_,) = made.inserted_primary_key or (0,)
            what = f"{_named(rule, subject)} until {until:%Y-%m-%d %H:%M} UTC"
            add_entry(connection, now, Event.SILENCED, actor, 0, reason=rule, detail=f"{what}: {why}" if why else what)
            return Silence(int(id_), rule, subject, until, actor, one_text(why), now)

    def end_silence(self, id_: int, actor: str, now: datetime) -> Silence:
        """That silence is over; the journal has it. Raises NoSuchSilence."""
        with self.journal.writing() as connection:
            in_force = (_silence.c.id == id_, _silence.c.ended_at.is_(None), _silence.c.silent_until > now)
            if connection.execute(sa.update(_silence).where(*in_force).values(ended_at=now)).rowcount != 1:
                raise NoSuchSilence(f"No silence {id_} is in force. Nothing was changed.")
            silence = to_silence(connection.execute(sa.select(_silence).where(_silence.c.id == id_)).one())
            what = f"{_named(silence.rule, silence.subject)} no longer"
            add_entry(connection, now, Event.SILENCED, actor, 0, reason=silence.rule, detail=what)
            return silence

    def silences(self, now: datetime) -> tuple[Silence, ...]:
        """Those in force, newest first."""
        query = sa.select(_silence).where(_silence.c.ended_at.is_(None), _silence.c.silent_until > now)
        with self.journal.reading() as connection:
            return tuple(map(to_silence, connection.execute(query.order_by(_silence.c.id.desc()))))


def _add_notices(
    connection: Connection, alert: int, change: Change, receivers: Sequence[str], now: datetime, after_s: float = 0.0
) -> None:
    rows = [
        {
            "receiver": receiver,
            "alert_id": alert,
            "change": change.value,
            "made_at": now,
            "due_at": now + timedelta(seconds=after_s),
            "tries": 0,
            "trouble": "",
            "given_up": False,
            "reached": False,
        }
        for receiver in receivers
    ]
    if rows:
        connection.execute(sa.insert(_notice), rows)


def _named(rule: str, subject: str | None) -> str:
    return (rule or "all alerts") + (f" of {subject}" if subject else "")


def to_alert(row: Any) -> AlertRow:
    """The alert of a row of the table."""
    return AlertRow(
        row.id,
        row.rule,
        row.subject,
        Severity(row.severity),
        row.raised_at,
        row.resolved_at,
        row.value,
        row.worst,
        row.sentence,
        row.verdict,
        row.incident_id,
    )


def to_silence(row: Any) -> Silence:
    """The silence of a row of the table."""
    return Silence(row.id, row.rule, row.subject, row.silent_until, row.actor, row.why, row.made_at, row.ended_at)


class AsyncAlerts(AsyncStore[AlertStore]):
    """AlertStore, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, AlertStore)

    raise_alert = awaited(AlertStore.raise_alert)
    resolve_alert = awaited(AlertStore.resolve_alert)
    note_verdict = awaited(AlertStore.note_verdict)
    alerts = awaited(AlertStore.alerts)
    alert = awaited(AlertStore.alert)
    forget_alerts = awaited(AlertStore.forget_alerts)
    silence = awaited(AlertStore.silence)
    end_silence = awaited(AlertStore.end_silence)
    silences = awaited(AlertStore.silences)
