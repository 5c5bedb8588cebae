"""What people have asked to keep, until when, and who ended it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from hubguard.errors import NotThere
from hubguard.journal import tables
from hubguard.journal.entries import Entries, add_entry, one_text
from hubguard.journal.model import Event, Exemption

_exemption = tables.exemption


class NoSuchExemption(NotThere):
    """There is no exemption of that id in force: it was never made, has expired, was ended, or has been forgotten."""


class Exemptions(Entries):
    """The part of a journal that keeps exemptions."""

    def exempt(self, user: str, server: str | None, until: datetime, actor: str, why: str, now: datetime) -> Exemption:
        """That server, or all of the user's (``server`` None), is to be kept until ``until``; the new exemption.

        Earlier ones for the same server stay in force. An entry, kept, says so. ``until`` must be later than ``now``
        (ValueError); how far ahead it may lie is for the caller to say.
        """
        if until <= now:
            raise ValueError("an exemption ends after it begins")
        why = one_text(why)
        with self.writing() as connection:
            added = connection.execute(
                sa.insert(_exemption).values(
                    user_name=user, server_name=server, kept_until=until, actor=actor, why=why, made_at=now
                )
            )
            key = added.inserted_primary_key
            assert key is not None
            made = Exemption(int(key[0]), user, server, until, actor, why, now)
            detail = f"until {_moment(until)} (exemption {made.id})" + (f": {why}" if why else "")
            add_entry(connection, now, Event.KEPT, actor, 0, user_name=user, server_name=server, detail=detail)
            return made

    def end_exemption(self, exemption_id: int, actor: str, why: str, now: datetime) -> Exemption:
        """That exemption has ended; the exemption as it is now. An entry, released, says so.

        Raises NoSuchExemption, and changes nothing, if there is none in force: then somebody has ended it, its time has
        passed, or there is none of that id. Of several that end it at once one does.
        """
        same = _exemption.c.id == exemption_id
        in_force = sa.and_(same, _exemption.c.ended_at.is_(None), _exemption.c.kept_until > now)
        with self.writing() as connection:
            ending = sa.update(_exemption).where(in_force).values(ended_at=now, ended_by=actor)
            ended = connection.execute(ending).rowcount == 1
            row = connection.execute(sa.select(_exemption).where(same)).one_or_none()
            if not ended or row is None:
                raise _not_in_force(exemption_id, row)
            exemption = _to_exemption(row)
            detail = f"exemption {exemption.id}, until {_moment(exemption.until)}, ended" + (
                f": {one_text(why)}" if why else ""
            )
            add_entry(
                connection,
                now,
                Event.RELEASED,
                actor,
                0,
                user_name=exemption.user,
                server_name=exemption.server,
                detail=detail,
            )
            return exemption

    def exemptions(self, now: datetime, *, user: str | None = None, ended: bool = False) -> tuple[Exemption, ...]:
        """Those in force, newest first; with ``ended`` also those that have ended. ``user`` None: anybody's."""
        query = sa.select(_exemption)
        if user is not None:
            query = query.where(_exemption.c.user_name == user)
        if not ended:
            still = sa.or_(_exemption.c.ended_at.is_(None), _exemption.c.ended_at > now)
            query = query.where(_exemption.c.kept_until > now, still)
        with self.reading() as connection:
            exemptions = map(_to_exemption, connection.execute(query))
            # Asked to order them by id, SQLite would read all that ever were, rather than use the index by time.
            return tuple(sorted(exemptions, key=lambda exemption: exemption.id, reverse=True))

    def _forget_exemptions(self, before: datetime) -> None:
        with self.writing() as connection:
            connection.execute(sa.delete(_exemption).where(_exemption.c.kept_until < before))


def _moment(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def _not_in_force(exemption_id: int, row: Any) -> NoSuchExemption:
    if row is None:
        return NoSuchExemption(
            f"There is no exemption {exemption_id}: it was never made, or ended long ago and is forgotten. "
            "Nothing was changed; look at those in force."
        )
    how = (
        f"{row.ended_by} ended it at {_moment(row.ended_at)}"
        if row.ended_at
        else f"it ran until {_moment(row.kept_until)}"
    )
    return NoSuchExemption(f"Exemption {exemption_id} has ended already: {how}. Nothing was changed.")


def _to_exemption(row: Any) -> Exemption:
    return Exemption(
        id=row.id,
        user=row.user_name,
        server=row.server_name,
        until=row.kept_until,
        actor=row.actor,
        why=row.why,
        made_at=row.made_at,
        ended_at=row.ended_at,
        ended_by=row.ended_by,
    )
