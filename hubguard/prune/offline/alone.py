"""Having the hub's database to ourselves: nobody uses it, and nobody else gets at it until a change is made or undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial

from sqlalchemy.engine import Connection

from hubguard.prune.offline.database import Database, Tables
from hubguard.prune.offline.in_use import refuse_in_use


class Opened:
    """A database that nobody used a moment ago, on the one ``connection`` to it."""

    def __init__(
        self, database: Database, connection: Connection, refuse: Callable[[Connection], tuple[str, ...]]
    ) -> None:
        self.connection = connection
        self._database = database
        self._refuse = refuse
        with connection.begin():
            refuse(connection)
            self._version = database.version(connection)

    @contextmanager
    def changing(
        self, *, revision: str, mismatch: tuple[str, str], dry_run: bool
    ) -> Iterator[tuple[Connection, Tables, tuple[str, ...]]]:
        """One transaction with everybody else kept out: its connection, the hub's tables, and what of the hub is odd.

        A dry run works on a copy, or undoes it all at the end. Raises OfflineRefused where somebody has come to use the
        database meanwhile, or the tables aren't of ``revision``: ``mismatch`` says what is, and what to do.
        """
        database = self._database
        with (
            database.rehearsing(self.connection) if dry_run else nullcontext(self.connection) as connection,
            database.changing(connection, commit=not dry_run) as tables,
        ):
            seen = self._refuse(connection)
            if not dry_run and database.version(connection) != self._version:
                raise database.refused("was written to by somebody else just now", "Find out who, and stop it.")
            if tables.revision != revision:
                what, hint = mismatch
                raise database.refused(f"has the revision {tables.revision}, and {what} {revision}", hint)
            yield connection, tables, seen


@contextmanager
def opened(
    database: Database,
    *,
    now: datetime,
    hub_api_url: str | None,
    also_at: Sequence[str],
    acknowledged: Sequence[str],
) -> Iterator[Opened]:
    """The database, opened. Raises OfflineRefused where a hub uses it, or what can't be seen isn't acknowledged.

    For the arguments see :func:`in_use.look` and :func:`in_use.refuse_in_use`.
    """
    # Before it is opened: that clears up what a killed hub has left half-done, which is a writing, too.
    written_at_s = database.written_at_s()
    with database.connection() as connection:
        yield Opened(
            database,
            connection,
            partial(
                refuse_in_use,
                database,
                now=now,
                hub_api_url=hub_api_url,
                also_at=also_at,
                written_at_s=written_at_s,
                acknowledged=acknowledged,
            ),
        )
