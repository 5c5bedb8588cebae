"""A whole copy of the hub's SQLite database, beside it, before anything in it is deleted."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from sqlalchemy.engine import Connection

from hubguard.prune.offline.database import Database, give_up


def back_up(database: Database, connection: Connection, now: datetime) -> Path:
    """The copy's path; it is checked and safely on disk, and only its owner may read it.

    ``connection`` is in no transaction, since SQLite copies from none that may write: whether somebody else wrote since has
    to be asked afterwards, under lock (see Database.version). No file is ever overwritten. Raises OfflineRefused; then there
    is no copy.
    """
    assert database.file is not None
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    at = now.astimezone(timezone.utc)
    path = database.file.with_name(f"{database.file.name}.before-prune-{at:%Y%m%dT%H%M%S_%fZ}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
                # It isn't whole until it has its name: what a power cut leaves is thrown away.
                copy.execute("PRAGMA synchronous = OFF")
                source.backup(copy, progress=give_up)
                (said,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
            if said != "ok":
                raise database.refused(
                    f"isn't sound, as its copy shows: {said}",
                    "Restore it from a backup, or let SQLite's .recover mend it.",
                )
            _sync(partial)
            os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise database.refused(
            f"couldn't be copied to {path} ({error})",
            "Make room there, let this account write to that folder, and try again.",
        ) from None
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
