"""Brings a database to this version's tables, under a lock, and refuses databases that aren't HubGuard's to change."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

import hubguard
from hubguard.journal.database import Database
from hubguard.journal.tables import PREFIX, VERSION_TABLE, stance

UPGRADE_WAIT_S = 60
"""Seconds to wait for another process that upgrades the database."""

_UPGRADE_SILENT_S = 2.0 * UPGRADE_WAIT_S + 5

# Two of these together are a hub's database; one alone may be any program's.
_HUB_TABLES = frozenset({"users", "spawners", "api_tokens"})
# The revisions of JupyterHub 4.1, 5 and 6.
_HUB_REVISIONS = frozenset({"0eee8c825d24", "4621fec11365", "f460b0348206"})

# Any number will do, as long as all versions of HubGuard use the same one.
_POSTGRESQL_LOCK = 0x4875624775617264

# Alembic keeps what it is working on in module globals.
_one_thread = threading.Lock()


def migrations_folder() -> Path:
    """The absolute path of the migrations: those of the installed package, else those of the checkout."""
    spec = find_spec("hubguard.migrations")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(hubguard.__file__).resolve().parent.parent / "migrations"


def alembic_config() -> Config:
    """Alembic's configuration; ``attributes["connection"]`` must be set before it is used to upgrade."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def newest_revision() -> str:
    """The revision that this version of HubGuard works with."""
    return str(_scripts().get_current_head())


@cache
def _scripts() -> ScriptDirectory:
    # Whoever asks a new one for a revision has all of them read and run.
    return ScriptDirectory.from_config(alembic_config())


def revisions(url: str) -> tuple[str | None, str]:
    """(the revision that the database at ``url`` is at, the newest known here). Changes nothing.

    The first is None if there are no tables of HubGuard's yet. Raises JournalError when the database can't be read.
    """
    database = Database(url)
    try:
        if database.missing:
            return None, newest_revision()
        with database.reading() as connection:
            return _revision(connection), newest_revision()
    finally:
        database.close()


def upgrade(database: Database) -> None:
    """The database has exactly the declared tables. Several openers, threads or processes, may call this at once.

    Raises JournalError, and leaves the database as it was, when it is a hub's or another program's, when its revision
    is unknown here, or when it can't be used. A failed upgrade is rolled back, except on MySQL, which can't do that.
    """
    with _one_thread:
        database.make_file()
        # Once before anything is locked: a database that isn't ours isn't even locked for a moment.
        with database.reading() as connection:
            _refuse_unless_ours(database, connection)
        with _mysql_locked(database), database.writing(silent_s=_UPGRADE_SILENT_S) as connection:
            _lock_postgresql(database, connection)
            _refuse_unless_ours(database, connection)
            config = alembic_config()
            if _revision(connection) != newest_revision():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            # A database that can only be read lets all of the above pass when there is nothing to upgrade.
            connection.execute(sa.update(stance).values(id=stance.c.id))


def _refuse_unless_ours(database: Database, connection: Connection) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    if len(tables & _HUB_TABLES) >= 2 or _is_stamped_by_a_hub(connection, tables):
        raise database.refuse(
            "is the database of a JupyterHub",
            "HubGuard keeps its journal in a database of its own and has changed nothing here. "
            "Point HubGuard.db_url at another one.",
        )
    if VERSION_TABLE in tables:
        _refuse_unknown_revision(database, connection)
        return
    ours = sorted(table for table in tables if table.startswith(PREFIX))
    if ours:
        raise database.refuse(
            f"has tables of HubGuard's but no revision ({', '.join(ours)})",
            "It was not copied or restored in full; nothing was changed. "
            "Restore it, or point HubGuard.db_url at another one.",
        )
    if tables and database.dialect == "sqlite":
        raise database.refuse(
            f"belongs to another program (it has {len(tables)} tables, among them {min(tables)})",
            "Nothing was changed. Point HubGuard.db_url at a new file.",
        )


def _is_stamped_by_a_hub(connection: Connection, tables: set[str]) -> bool:
    if "alembic_version" not in tables:
        return False
    stamps = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all()
    return not _HUB_REVISIONS.isdisjoint(stamps)


def _refuse_unknown_revision(database: Database, connection: Connection) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    revision = _revision(connection)
    if revision is not None and revision not in known:
        raise database.refuse(
            f"is at revision {revision}, and this HubGuard ({hubguard.__version__}) knows none after {newest_revision()}",
            "A newer HubGuard made it; nothing was changed. "
            "Install that version again, or restore a backup from before it.",
        )


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    return "+".join(sorted(heads)) or None


@contextmanager
def _mysql_locked(database: Database) -> Iterator[None]:
    """On MySQL, whose transactions don't hold for tables, nobody else upgrades meanwhile. Nothing for other databases.

    The lock lives on a connection of its own, so that it is given back after the upgrade has been committed.
    """
    if database.dialect not in ("mysql", "mariadb"):
        yield
        return
    # These names count for the whole server, and are short.
    name = "hubguard-" + hashlib.sha256(str(database.engine.url.database).encode()).hexdigest()[:32]
    lock = {"name": name, "wait": UPGRADE_WAIT_S}
    with database.reading(silent_s=_UPGRADE_SILENT_S) as keeper:
        if keeper.execute(sa.text("SELECT GET_LOCK(:name, :wait)"), lock).scalar() != 1:
            raise database.refuse(
                f"has been upgraded by somebody else for more than {UPGRADE_WAIT_S} seconds",
                "HubGuard tries again by itself; if this stays, end the other one.",
            )
        try:
            yield
        finally:
            keeper.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": name})


def _lock_postgresql(database: Database, connection: Connection) -> None:
    """On PostgreSQL nobody else upgrades until the transaction ends. SQLite's write lock does the same."""
    if database.dialect != "postgresql":
        return
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{UPGRADE_WAIT_S}s'"))
    connection.execute(sa.text(f"SET LOCAL statement_timeout = '{2 * UPGRADE_WAIT_S}s'"))
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
