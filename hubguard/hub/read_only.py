"""A database of somebody else's that can only be read, in transactions too short to be in anybody's way.

SQLite files are opened read-only, other databases get read-only transactions, and what takes too long is broken off.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hubguard.answers import Answers
from hubguard.errors import HubDBError

LONGEST_S = 2.0
"""Maximum seconds for a transaction, which is then broken off."""

LOCK_TIMEOUT_S = 3.0
"""Maximum seconds that a reading waits for whoever writes to SQLite; waiting holds nobody up."""

CONNECT_TIMEOUT_S = 3
"""Seconds to connect to a database server."""

SILENT_S = 15
"""Seconds after which a silent connection counts as lost: longer than connecting and any transaction."""

SLACK_S = 0.4
"""Seconds beyond those of a transaction, after which a failure means that nobody answers."""

TRY_AGAIN_S = 2.0
"""Seconds for which a database that doesn't answer isn't asked again: whoever waits for it gets an error at once."""

ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "postgresql": {
        **{"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname", "PGPASSWORD": "password"},
        **{"PGPASSFILE": "passfile", "PGSSLMODE": "sslmode", "PGSSLROOTCERT": "sslrootcert"},
        **{"PGSSLCERT": "sslcert", "PGSSLKEY": "sslkey"},
    },
    "mysql": {"MYSQL_PWD": "password"},
}
"""By kind of database, the variables that its driver reads, each with the argument that it stands for."""

# What a database says, in lower case, and what that means for an operator.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("interrupted", "statement timeout", "max_statement_time", "maximum statement execution time"),
        f"took more than {LONGEST_S:g} seconds to read, and was let go so that the hub isn't held up",
        "Look for what slows its disk or its server down.",
    ),
    (
        ("database is locked", "lock wait timeout", "lock timeout"),
        "is locked by somebody else",
        "Look for a backup or another program that keeps it locked, if this goes on.",
    ),
    (
        # SQLite asks for a write where a hub that was killed has left a half-made one.
        ("readonly database", "read-only", "read only"),
        "can't be read without a write, and HubGuard never writes to it",
        "A hub that was killed may have left one unfinished: the hub itself clears it up when it uses its database.",
    ),
    (
        ("password authentication failed", "access denied", "permission denied", "no password supplied"),
        "doesn't let HubGuard in",
        "Check account, password and rights; reading is all that is needed.",
    ),
    (
        ("no such table", "no such column", "does not exist", "undefined", "doesn't exist", "unknown column"),
        "has no such table, column, database or account",
        "Is this the hub's database?",
    ),
    (
        ("file is not a database", "malformed", "file is encrypted"),
        "isn't a usable database",
        "Is this the hub's database?",
    ),
    (
        ("unable to open database file", "is a directory"),
        "can't be opened",
        "Let the account that HubGuard runs as read the file, and enter its folder.",
    ),
)


class ReadOnly:
    """The hub's database at ``url``, of which nothing but reading is possible.

    A relative SQLite file is one below ``folder``. ``place`` names it for people and holds no account, password or option.
    ``told_by`` is the option of a command that is the URL, so that it is read for that command alone; None: it is the setting
    HubGuard.hub_db_url, HubGuard continues to read by itself, and knows the hub by its API, too. ``arguments`` are for the
    driver of a database server.

    Nothing is connected to yet. Raises HubDBError for a URL that can't be used and for a missing driver.
    """

    def __init__(
        self, url: str, folder: Path, *, told_by: str | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        self._told_by = told_by
        self._arguments = arguments or {}
        self._url = self._parse(url)
        self._file = self._find(folder)
        self.place = _place(self._url, self._file)
        self._engine = self._make_engine()
        self._answers = Answers(self._engine)
        self._silent = ""
        self._try_again_at_s = 0.0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One short transaction, on a connection of its own, that sees one moment. All troubles come out as HubDBError.

        A database that hasn't answered fails at once for the next seconds.
        """
        if self._file is not None and not self._file.exists():
            raise self.trouble(
                "doesn't exist", "Check the path; a relative one is taken from the folder that the hub runs in."
            )
        began_s = time.monotonic()
        if began_s < self._try_again_at_s:
            raise HubDBError(self._silent)
        try:
            with self._answers.within(LONGEST_S + CONNECT_TIMEOUT_S), self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, UnicodeError) as error:
            # "from None": the drivers' own errors may quote the whole connection string.
            trouble = self._explain(error)
            now_s = time.monotonic()
            if now_s - began_s > LONGEST_S + SLACK_S:
                self._silent, self._try_again_at_s = str(trouble), now_s + TRY_AGAIN_S
            raise trouble from None

    def trouble(self, what: str, hint: str, *, detail: str = "") -> HubDBError:
        """The error to raise: this database ``what``; ``hint`` says what to do."""
        return HubDBError(f"The hub's database ({self.place}) {what}. {self._so()} {hint}", detail=detail)

    def _so(self) -> str:
        if self._told_by:
            return "It isn't read, and nothing was done."
        return "It isn't read, and HubGuard knows only what the hub's API shows."

    def _parse(self, text: str) -> URL:
        told_by = self._told_by or "HubGuard.hub_db_url"
        try:
            url = make_url(text)
            backend = url.get_backend_name()
        except (ArgumentError, ValueError):
            raise HubDBError(
                f"{told_by} isn't a database URL. {self._so()} Write it like JupyterHub.db_url, for example "
                "sqlite:////srv/jupyterhub/jupyterhub.sqlite."
            ) from None
        if backend not in {"sqlite", "postgresql", "mysql", "mariadb"}:
            raise HubDBError(
                f"{told_by}: HubGuard can't make sure that it only reads from {backend}, the hub's database. "
                f"{self._so()} HubGuard reads SQLite, PostgreSQL, MySQL and MariaDB."
            )
        if url.drivername == "postgresql":
            # What this name stands for depends on SQLAlchemy's version; a hub may come with either driver.
            url = url.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'psycopg2'}")
        return url

    def _find(self, folder: Path) -> Path | None:
        if self._url.get_backend_name() != "sqlite":
            return None
        name = self._url.database or ""
        if name in {"", ":memory:"} or name.startswith("file:"):
            raise HubDBError(
                f"{self._told_by or 'HubGuard.hub_db_url'}: {name or ':memory:'} is no plain path to a file, as the hub's"
                f" database is. {self._so()} One in memory can't be read from outside; write others like"
                " sqlite:////srv/jupyterhub/jupyterhub.sqlite."
            )
        return (folder / name).absolute()

    def _make_engine(self) -> Engine:
        url, options = self._url, {**self._arguments, **_network_arguments(self._url)}
        try:
            if self._file is not None:
                engine = sa.create_engine("sqlite://", creator=_opener(self._file), poolclass=NullPool)
            else:
                # A connection is made for each transaction: the hub's database has none to spare for one that idles.
                engine = sa.create_engine(url, connect_args=options, poolclass=NullPool)
        except ModuleNotFoundError as error:
            raise self.trouble(
                f"needs a driver that isn't installed (no Python module {error.name})",
                "Install it beside HubGuard, or name another one in the URL, such as postgresql+psycopg or mysql+pymysql.",
            ) from None
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as error:
            raise self.trouble(
                f"can't be used by way of {url.drivername} ({type(error).__name__})", "Check the URL."
            ) from None
        event.listen(engine, "begin", _begin)
        return engine

    def _explain(self, error: Exception) -> HubDBError:
        cause = getattr(error, "orig", None) or error
        said = str(cause).strip()
        secrets = [self._url.password, self._url.query.get("password")]
        for secret in (*secrets, *(self._arguments.get(name) for name in ("password", "passwd"))):
            if secret:
                said = said.replace(str(secret), "***")
        what, hint = _meaning(f"{said} {type(cause).__name__}".lower())
        hint = hint or ("Check the URL, and its server." if self._told_by else "HubGuard tries again by itself.")
        first_line = said.splitlines()[0].rstrip(".") if said else type(cause).__name__
        return self.trouble(f"{what}: {first_line}", hint, detail=said)


def arguments_of(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What ``environ`` gives the driver of the database at the URL ``text``, as far as the URL itself doesn't say."""
    try:
        url = make_url(text)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        return {}
    said = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
    by_name = ENVIRONMENTS.get(kind, {})
    return {by_name[name]: value for name, value in environ.items() if name in by_name and by_name[name] not in said}


def _place(url: URL, file: Path | None) -> str:
    if file is not None:
        return f"SQLite, {file}"
    host = url.host or url.query.get("host") or "local socket"
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()} at {host}{port}/{url.database or ''}"


def _opener(file: Path) -> Callable[[], sqlite3.Connection]:
    """Opens the file for reading only, and never creates it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(str(file))}?mode=ro",
            uri=True,
            timeout=LOCK_TIMEOUT_S,
            isolation_level=None,  # transactions begin where we say
        )

    return connect


def _begin(connection: Connection) -> None:
    """Nothing but reading is possible, all of it sees one moment, and what takes too long is broken off."""
    limit_ms = round(1000 * LONGEST_S)
    match connection.dialect.name:
        case "sqlite":
            _begin_sqlite(connection)
            return
        case "postgresql":
            # For this transaction alone: behind a pooler, the connection is somebody else's afterwards.
            statements: tuple[str, ...] = (
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                f"SET LOCAL statement_timeout = {limit_ms}",
                f"SET LOCAL idle_in_transaction_session_timeout = {limit_ms}",
            )
        case _:
            mariadb = getattr(connection.dialect, "is_mariadb", False)
            limit = f"max_statement_time = {LONGEST_S}" if mariadb else f"max_execution_time = {limit_ms}"
            statements = (f"SET SESSION {limit}", "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    for statement in statements:
        connection.exec_driver_sql(statement)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
    # Here it waits for its lock; the time counts from when it has it, since then nobody else can write.
    connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1")
    ends_s = time.monotonic() + LONGEST_S
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.set_progress_handler(lambda: time.monotonic() > ends_s, 10_000)


def _network_arguments(url: URL) -> dict[str, Any]:
    """What makes the driver give up on a server that went silent."""
    driver = url.get_driver_name()
    if driver in {"psycopg", "psycopg2"}:
        silent_ms = 1000 * SILENT_S
        arguments: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": silent_ms}
        # A statement that was prepared is on the wrong connection behind a pooler.
        return {**arguments, "prepare_threshold": None} if driver == "psycopg" else arguments
    if driver in {"pymysql", "mysqldb"}:
        return {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": CONNECT_TIMEOUT_S, "charset": "utf8mb4"}
    return {}


def _meaning(said: str) -> tuple[str, str]:
    for marks, what, hint in _MEANINGS:
        if any(mark in said for mark in marks):
            return what, hint
    return "can't be reached or gave an error", ""
