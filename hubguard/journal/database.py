"""From a URL to a database: how each kind is connected to, and what its troubles mean. Never shows a password."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.pool import NullPool, StaticPool

from hubguard.answers import Answers
from hubguard.errors import InDoubt, JournalError, Unrecordable

CONNECT_TIMEOUT_S = 4
"""Seconds to connect to a database server."""

LOCK_TIMEOUT_S = 3
"""Seconds to wait for a lock."""

STATEMENT_TIMEOUT_S = 4
"""Seconds after which the database server ends a statement."""

SILENT_S = 5.0
"""Seconds after which a database server that hasn't answered is given up."""

STALLED_AFTER_S = 15
"""Seconds after which the database server ends the transaction of a frozen guard, so that another can have the lease.

Longer than any transaction needs.
"""

_MYSQL_DRIVERS = ("mysql+pymysql", "mariadb+pymysql", "mysql+mysqldb", "mariadb+mysqldb")

_CONSEQUENCE = "Nothing can be recorded, so HubGuard takes no action."

IN_DOUBT = "The change may or may not have been recorded: look at the journal before you repeat it."
"""What else is said of a change whose commit got no answer."""

# What a database says, in lower case, and what that means for an operator.
_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("readonly database", "read-only", "read only"),
        "is read-only",
        "Let the account that HubGuard runs as write to it (for SQLite: to the file and to its folder).",
    ),
    (
        ("disk is full", "no space left", "could not extend file", "table is full", "disk full"),
        "is full",
        "Make room on its disk, or raise its quota.",
    ),
    (
        ("database is locked", "lock timeout", "lock wait timeout"),
        f"has been locked by somebody else for more than {LOCK_TIMEOUT_S} seconds",
        "Look for a backup or another program that keeps it locked; HubGuard tries again by itself.",
    ),
    (
        ("statement timeout", "maximum statement execution time"),
        f"took more than {STATEMENT_TIMEOUT_S} seconds",
        "Look for what slows its server down; HubGuard tries again by itself.",
    ),
    (
        ("password authentication failed", "access denied", "permission denied", "no password supplied"),
        "doesn't let HubGuard in",
        "Check the account, the password and the rights in HubGuard.db_url.",
    ),
    (
        ("file is not a database", "malformed", "file is encrypted"),
        "isn't a usable database",
        "Restore it from a backup, or point HubGuard.db_url at a new file.",
    ),
    (
        ("unable to open database file", "is a directory"),
        "can't be opened",
        "Check that its folder exists and belongs to the account that HubGuard runs as.",
    ),
    (
        ("no such table", "undefinedtable", 'relation "hubguard_'),
        "has lost HubGuard's tables",
        "Was the file replaced or removed? Restart HubGuard to begin a new journal, or restore the old one first.",
    ),
    (
        (
            "connection refused",
            "could not connect",
            "connection failed",
            "can't connect",
            "timeout expired",
            "timed out",
            "could not translate host",
            "failed to resolve",
            "closed the connection",
            "connection closed",
            "connection is closed",
            "consuming input failed",
            "could not receive data",
            "eof detected",
            "lost connection",
            "connection is lost",
            "gone away",
            "no route to host",
            "network is unreachable",
            "terminating connection",
            "is starting up",
        ),
        "can't be reached",
        "Check that it runs and that host and port in HubGuard.db_url are right; HubGuard tries again by itself.",
    ),
)


def without_password(url: str) -> str:
    """``url`` as it may be shown; a URL that can't be read is not shown at all."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(not a database URL)"


@dataclass(slots=True)
class _Progress:
    """How far a transaction is."""

    committing: bool = False


class Database:
    """One database and the way to it. Transactions are either for reading or for writing; each is one short block.

    ``place`` names it for people and holds no account, password or option. Raises JournalError for a URL that isn't one
    and for a missing driver. Nothing is connected to yet.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self.place = _place(self._url)
        self.engine = self._make_engine()
        self._answers = Answers(self.engine)
        self._writer = self.engine.execution_options(hubguard_writes=True)

    @property
    def dialect(self) -> str:
        """``sqlite``, ``postgresql``, ``mysql`` or ``mariadb``."""
        return self.engine.dialect.name

    @contextmanager
    def reading(self, *, silent_s: float | None = None) -> Iterator[Connection]:
        """A connection to read with. All troubles of the database come out as JournalError.

        A server that doesn't answer for ``silent_s`` seconds (None: SILENT_S) is such a trouble.
        """
        with self._translated(), self._answers.within(silent_s or SILENT_S), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, *, silent_s: float | None = None) -> Iterator[Connection]:
        """One transaction, committed at the end of the block and rolled back by any exception.

        In SQLite it has the write lock from its first moment, so nothing that it has read can have changed since.
        Elsewhere a row stays as it was read only when it was locked or changed. What ends in a JournalError wasn't done,
        and isn't done later; the one exception, a connection that breaks in the very commit, says so.
        """
        progress = _Progress()
        with self._translated(progress), self._answers.within(silent_s or SILENT_S), self._writer.begin() as connection:
            yield connection
            progress.committing = True

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for other databases, for one in memory, and if the URL is a ``file:`` address."""
        name = self._url.database
        if self.dialect != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
            return None
        return Path(name)

    @property
    def missing(self) -> bool:
        """Whether there is no such SQLite file. One that can't be looked for counts as there: opening it shows more."""
        try:
            return self.file is not None and not self.file.exists()
        except OSError:
            return False

    def make_file(self) -> None:
        """A SQLite file that didn't exist does now, empty, for its owner alone (0600). Nothing for other databases."""
        if self.file is None:
            return
        try:
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            hint = "Check that its folder exists and belongs to the account that HubGuard runs as."
            raise self._trouble("can't be created", error.strerror or "unknown error", hint) from None

    def close(self) -> None:
        """Every connection is closed."""
        self.engine.dispose()

    def refuse(self, what: str, meaning: str, *, detail: str = "") -> JournalError:
        """The error to raise: this database ``what``; ``meaning`` says what to do."""
        return JournalError(f"The journal's database ({self.place}) {what}. {meaning}", detail=detail)

    @contextmanager
    def _translated(self, progress: _Progress | None = None) -> Iterator[None]:
        if self.missing:
            # SQLite would quietly begin an empty one.
            raise self._trouble("is gone", "no such file", "Restore it, or restart HubGuard to begin a new journal.")
        try:
            yield
        except StatementError as error:
            if type(error) is StatementError and isinstance(error.orig, ValueError):
                raise Unrecordable(f"It can't be recorded: {error.orig}.") from None
            # "from None": the drivers' own errors may quote the whole connection string.
            trouble = self._explain(error)
            if (
                progress is not None
                and progress.committing
                and isinstance(error, DBAPIError)
                and error.connection_invalidated
            ):
                raise InDoubt(f"{trouble} {IN_DOUBT}", detail=trouble.detail) from None
            raise trouble from None
        except SQLAlchemyError as error:
            raise self._explain(error) from None
        except UnicodeError as error:
            raise Unrecordable(
                f"The journal's database ({self.place}) can't hold a text that isn't valid Unicode. It was not recorded.",
                detail=str(error),
            ) from None

    def _explain(self, error: SQLAlchemyError) -> JournalError:
        cause = getattr(error, "orig", None) or error
        said = self._without_secrets(str(cause)).strip()
        state = getattr(cause, "sqlstate", None)
        what, hint = _meaning(f"{said} {type(cause).__name__}".lower())
        first_line = said.splitlines()[0] if said else type(cause).__name__
        statement = getattr(error, "statement", None)
        detail = "\n".join(part for part in (said, f"SQLSTATE {state}" if state else "", statement or "") if part)
        return self._trouble(what, first_line, hint, detail=detail)

    def _trouble(self, what: str, said: str, hint: str, *, detail: str = "") -> JournalError:
        return JournalError(
            f"The journal's database ({self.place}) {what}: {said.rstrip('.')}. {_CONSEQUENCE} {hint}".rstrip(),
            detail=detail,
        )

    def _without_secrets(self, text: str) -> str:
        secrets = [self._url.password, self._url.query.get("password")]
        for secret in secrets:
            if secret and isinstance(secret, str):
                text = text.replace(secret, "***")
        return text

    def _make_engine(self) -> Engine:
        url = self._url
        options: dict[str, Any] = {}
        backend = url.get_backend_name()
        if backend == "sqlite":
            # The default journal mode (delete) is left as it is: write-ahead logging doesn't work on a network file
            # system, which is where many hubs keep their files, and these transactions are few and short.
            options["connect_args"] = {"timeout": LOCK_TIMEOUT_S, "check_same_thread": False}
            memory = url.database in (None, "", ":memory:")
            # A file is opened for each transaction: one that was replaced meanwhile is noticed, rather than written to
            # after it has lost its name.
            options["poolclass"] = StaticPool if memory else NullPool
        else:
            options |= {"pool_size": 2, "max_overflow": 2, "pool_timeout": CONNECT_TIMEOUT_S, "pool_pre_ping": True}
            options["isolation_level"] = "READ COMMITTED"
            options["connect_args"] = _network_arguments(url)
        try:
            engine = sa.create_engine(url, **options)
        except ModuleNotFoundError as error:
            raise _missing_driver(url, error) from None
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as error:
            raise JournalError(
                f"HubGuard.db_url: {url.drivername} can't be used ({type(error).__name__}). "
                "Use sqlite, postgresql+psycopg or mysql+pymysql."
            ) from None
        if engine.dialect.is_async:
            raise JournalError(
                f"HubGuard.db_url: {url.drivername} is an asynchronous driver, and the journal needs a plain one. "
                "Use sqlite, postgresql+psycopg or mysql+pymysql."
            )
        event.listen(engine, "connect", _prepare_connection(backend))
        if backend == "sqlite":
            event.listen(engine, "begin", _begin_sqlite)
        return engine


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
        url.get_backend_name()
    except (ArgumentError, ValueError):
        raise JournalError(
            "HubGuard.db_url isn't a database URL. Examples: sqlite:////var/lib/hubguard/hubguard.sqlite, "
            "postgresql://account:password@host/database."
        ) from None
    if url.drivername == "postgresql":
        # What this name stands for depends on SQLAlchemy's version; the extra installs psycopg 3.
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername in _MYSQL_DRIVERS:
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


def _place(url: URL) -> str:
    """Where it is, for people."""
    if url.get_backend_name() == "sqlite":
        return "SQLite in memory" if url.database in (None, "", ":memory:") else f"SQLite, {Path(url.database or '')}"
    host = url.host or url.query.get("host") or "local socket"
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()} at {host}{port}/{url.database or ''}"


def _network_arguments(url: URL) -> dict[str, Any]:
    """What makes the driver give up on a server that went silent within seconds, not after a quarter of an hour."""
    if url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        return {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "keepalives_idle": CONNECT_TIMEOUT_S,
            "keepalives_interval": CONNECT_TIMEOUT_S,
            "keepalives_count": 2,
            "tcp_user_timeout": round(1000 * SILENT_S),
        }
    if url.drivername in _MYSQL_DRIVERS:
        silent_s = math.ceil(SILENT_S)
        return {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": silent_s, "write_timeout": silent_s}
    return {}


def _missing_driver(url: URL, error: ModuleNotFoundError) -> JournalError:
    install = {
        "postgresql": "Install it: pip install 'hubguard[postgresql]'.",
        "mysql": "Install one and name it: pip install pymysql, and mysql+pymysql://… in the URL.",
        "mariadb": "Install one and name it: pip install pymysql, and mariadb+pymysql://… in the URL.",
    }
    return JournalError(
        f"HubGuard.db_url: the driver for {url.drivername} isn't installed (no Python module {error.name}). "
        + install.get(url.get_backend_name(), "Install that module.")
    )


def _meaning(said: str) -> tuple[str, str]:
    for marks, what, hint in _MEANINGS:
        if any(mark in said for mark in marks):
            return what, hint
    return "returned an error", ""


def _prepare_connection(backend: str) -> Any:
    """What every new connection is set to before its first use."""
    statements = {
        "postgresql": (
            f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'",
            f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'",
            f"SET idle_in_transaction_session_timeout = '{STALLED_AFTER_S}s'",
        ),
        "mysql": (f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_S}",),
        "mariadb": (f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_S}",),
    }.get(backend, ())

    def prepare(connection: Any, _record: Any) -> None:
        if backend == "sqlite":
            # The driver would begin transactions only at the first write; HubGuard begins them itself.
            connection.isolation_level = None
            return
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    return prepare


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("hubguard_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
