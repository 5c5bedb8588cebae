"""The hub's database, opened for writing: one connection, short waits, and nobody else at it while it is changed."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from hubguard.errors import OfflineRefused
from hubguard.hub.database import REVISIONS
from hubguard.hub.read_only import ReadOnly

WRITABLE = ("4621fec11365", "f460b0348206")
"""The Alembic revisions of the hub's database that are changed here: those of JupyterHub 5 and 6."""

HUB_TABLES = (
    "users",
    "groups",
    "roles",
    "services",
    "servers",
    "oauth_clients",
    "spawners",
    "user_group_map",
    "user_role_map",
    "group_role_map",
    "service_role_map",
    "api_tokens",
    "oauth_codes",
    "shares",
    "share_codes",
)
"""The hub's tables, each after those that it points to."""

MADE_AT_START = frozenset({"shares", "share_codes"})
"""Tables that a hub makes at its start and no revision makes: absent after an upgrade from JupyterHub 4.1, they are empty."""

LOCK_WAIT_S = 1
"""Seconds to wait for a lock; whoever holds one longer uses the database."""

_CONNECT_TIMEOUT_S = 5
_BUSY, _LOCKED = 5, 6


@dataclass(frozen=True, slots=True)
class Tables:
    """The hub's tables as this database has them, with all their columns, and which others there are, in name order.

    ``hub`` lacks those of MADE_AT_START that no hub has made yet. ``revision`` is the Alembic revision. No column has a type:
    values are what the driver takes and gives.
    """

    revision: str
    hub: Mapping[str, sa.TableClause] = field(hash=False)
    others: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> sa.TableClause:
        return self.hub[name]


class Database:
    """The hub's database at ``url``; a relative SQLite file is one below ``folder``. Nothing is connected to yet.

    ``reader`` reads it and nothing else; ``place`` names it for people and holds no account, password or option; ``kind`` is
    "sqlite", "postgresql" or "mysql" (MariaDB, too), ``file`` the SQLite file or None. Raises HubDBError for a URL that can't
    be used.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.reader = ReadOnly(url, folder, told_by="--hub-db")
        self.place = self.reader.place
        parsed = make_url(url)
        name = parsed.get_backend_name()
        self.kind = "mysql" if name == "mariadb" else name
        self.file: Path | None = None
        if self.kind == "sqlite":
            self.file = (folder / str(parsed.database)).absolute()
            self._engine = sa.create_engine("sqlite://", creator=self._open, poolclass=NullPool)
        else:
            if parsed.drivername == "postgresql":
                # What this name stands for depends on SQLAlchemy's version.
                parsed = parsed.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'psycopg2'}")
            self._engine = sa.create_engine(
                parsed, connect_args={"connect_timeout": _CONNECT_TIMEOUT_S}, poolclass=NullPool
            )
        self._secret = parsed.password
        event.listen(self._engine, "begin", _begin)

    def refused(self, what: str, hint: str, *, detail: str = "") -> OfflineRefused:
        """The error to raise: this database ``what``; ``hint`` says what to do."""
        return OfflineRefused(f"The hub's database ({self.place}) {what}. Nothing was changed. {hint}", detail=detail)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The one connection. All of its troubles come out as OfflineRefused; what wasn't committed is undone then."""
        if self.file is not None and not self.file.is_file():
            raise self.refused(
                "doesn't exist", "Check the path; a relative one is taken from the folder that the hub runs in."
            )
        try:
            with self._engine.connect() as connection, _unswept():
                yield connection
        except SQLAlchemyError as error:
            # "from None": the drivers' own errors may quote the whole connection string.
            said = self._said(error)
            first = said.splitlines()[0].rstrip(".")
            raise self.refused(
                f"gave an error: {first}",
                "Where it says that somebody holds a lock, stop them; else check account, rights and disk, and try again.",
                detail=said,
            ) from None

    def _said(self, error: SQLAlchemyError) -> str:
        cause = getattr(error, "orig", None) or error
        said = str(cause).strip() or type(cause).__name__
        return said.replace(str(self._secret), "***") if self._secret else said

    @contextmanager
    def rehearsing(self, connection: Connection) -> Iterator[Connection]:
        """A connection on which a dry run may change everything: to a copy of a SQLite database, in memory, else the same.

        A hub that is started while a SQLite file is locked ends at once (6.1); elsewhere it waits.
        """
        if self.file is None:
            yield connection
            return
        source = connection.connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            try:
                source.backup(copy, progress=give_up)
            except sqlite3.Error as error:
                raise self._locked(error) from None
            engine = sa.create_engine("sqlite://", creator=lambda: copy, poolclass=StaticPool)
            event.listen(engine, "begin", _begin)
            with engine.connect() as rehearsed:
                yield rehearsed

    @contextmanager
    def changing(self, connection: Connection, *, commit: bool) -> Iterator[Tables]:
        """One transaction in which nobody else reads or writes the hub's tables; undone at the end without ``commit``.

        Raises OfflineRefused where it can't be had for somebody else's lock, or the tables are of an unknown revision.
        """
        connection.execution_options(hubguard_begin="BEGIN EXCLUSIVE")
        try:
            transaction = connection.begin()
        except SQLAlchemyError as error:
            raise self._locked(error) from None
        with transaction:
            tables = self.tables(connection)
            self._lock(connection, tables)
            yield tables
            if not commit:
                transaction.rollback()
                return
            try:
                transaction.commit()
            except SQLAlchemyError as error:
                if self.kind == "sqlite":  # its file is all there is: what isn't committed is undone
                    raise
                raise OfflineRefused(
                    f"The hub's database ({self.place}) was lost during the commit: it is unknown whether it kept the"
                    " changes. Check whether the users are there before you continue. Running the same again is safe.",
                    detail=self._said(error),
                ) from None

    def tables(self, connection: Connection) -> Tables:
        """Its tables. Raises OfflineRefused where they aren't those of a JupyterHub 5 or 6."""
        inspector = sa.inspect(connection)
        names = set(inspector.get_table_names())
        versions: list[str] = []
        if "alembic_version" in names:
            version = sa.table("alembic_version", sa.column("version_num"))
            versions = [str(row[0]) for row in connection.execute(sa.select(version.c.version_num))]
        revision = ", ".join(versions)
        missing = [name for name in HUB_TABLES if name not in {*names, *MADE_AT_START}]
        if revision not in WRITABLE or missing:
            known = " and ".join(f"JupyterHub {REVISIONS[revision]}" for revision in WRITABLE)
            raise self.refused(
                f"has the revision {revision or '(none)'}"
                + (f" and lacks the tables {', '.join(missing)}" if missing and revision in WRITABLE else "")
                + f", and HubGuard changes only those of {known}",
                "Restore the database from a backup: a hub's has them."
                if revision in WRITABLE
                else "Upgrade the hub's database with `jupyterhub upgrade-db`, or upgrade HubGuard.",
            )
        hub = {
            name: sa.table(name, *(sa.column(column["name"]) for column in inspector.get_columns(name)))
            for name in HUB_TABLES
            if name in names
        }
        return Tables(revision, hub, tuple(sorted(names - set(HUB_TABLES) - {"alembic_version"})))

    def written_at_s(self) -> float | None:
        """When the SQLite file, or what SQLite keeps beside it, was last written: Unix time in seconds; else None."""
        if self.file is None:
            return None
        newest = None
        for suffix in ("", "-wal", "-journal"):
            try:
                at_s = Path(f"{self.file}{suffix}").stat().st_mtime
            except OSError:
                continue
            newest = at_s if newest is None else max(newest, at_s)
        return newest

    def version(self, connection: Connection) -> int | None:
        """A number that is another one when somebody else has written to the SQLite file since it was last asked for."""
        if self.file is None:
            return None
        return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())

    def _open(self) -> sqlite3.Connection:
        """Opens the file, and never creates it."""
        connection = sqlite3.connect(
            f"file:{quote(str(self.file))}?mode=rw",
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,  # transactions begin where we say
        )
        # Until the commit nothing is written to the file: a dry run leaves it, and its time, as they are.
        connection.execute("PRAGMA cache_spill = OFF")
        return connection

    def _lock(self, connection: Connection, tables: Tables) -> None:
        preparer = connection.dialect.identifier_preparer
        names = [preparer.quote(name) for name in tables.hub]
        try:
            match self.kind:
                case "postgresql":
                    connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE NOWAIT")
                case "mysql":
                    # LOCK TABLES would end the transaction; a locking read of all rows keeps out other rows, too.
                    connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}")
                    for name in names:
                        connection.exec_driver_sql(f"SELECT 1 FROM {name} FOR UPDATE").all()  # noqa: S608
        except SQLAlchemyError as error:
            raise self._locked(error) from None

    def _locked(self, error: Exception) -> OfflineRefused:
        said = str(getattr(error, "orig", None) or error).strip()
        return self.refused(
            f"can't be locked ({said.splitlines()[0] if said else type(error).__name__})",
            "Somebody else uses it, or this account may not lock it: stop the hub and every HubGuard, wait for backups, "
            "and try again.",
            detail=said,
        )


@contextmanager
def _unswept() -> Iterator[None]:
    """Python doesn't look for rings of garbage: among all the rows that are kept, looking takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def give_up(status: int, remaining: int, total: int) -> None:
    """For SQLite's copying, which would wait for a lock forever. Raises sqlite3.OperationalError."""
    if status in (_BUSY, _LOCKED):
        raise sqlite3.OperationalError("database is locked")


def _begin(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        statement: Any = connection.get_execution_options().get("hubguard_begin", "BEGIN")
        connection.exec_driver_sql(str(statement))
