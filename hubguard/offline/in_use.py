"""Whether a hub uses its database: a running one keeps users in memory, and would bring back or trip over what changed."""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.errors import OfflineRefused
from hubguard.offline.database import Database

LATELY_S = 330.0
"""Whoever wrote so lately may still be there: a hub writes down activity every 300 s, unless it is set otherwise."""

ANSWER_TIMEOUT_S = 5.0
CLOSING_S = 2.0
"""A connection that is gone by then was about to close."""

_OF_A_PROXY = (502, 503, 504)
_ACTIVITY = tuple((name, sa.table(name, sa.column("last_activity"))) for name in ("users", "spawners", "api_tokens"))
_CONNECTIONS = {
    # Who may not see more of another account's connections is still told that they are there.
    "postgresql": "SELECT pid, usename, application_name, client_addr, backend_start FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL "
    "AND (backend_type = 'client backend' OR backend_type IS NULL) ORDER BY backend_start",
    "mysql": "SELECT id, user, '', host, NULL FROM information_schema.processlist "
    "WHERE db = database() AND id <> connection_id() ORDER BY id",
}


@dataclass(frozen=True, slots=True)
class Look:
    """``why`` says who uses the database, in one or two sentences, None: nobody to be seen. ``notes``: what can't be seen."""

    why: str | None
    notes: tuple[str, ...] = ()


def why_in_use(url: str, folder: Path, *, now: datetime, hub_api_url: str | None) -> str | None:
    """Who uses the hub's database, and what to do; None where nobody is seen to. Raises OfflineRefused, HubDBError.

    ``hub_api_url`` is where the hub would answer, None: it isn't asked.
    """
    database = Database(url, folder)
    written_at_s = database.written_at_s()
    with database.connection() as connection, connection.begin():
        return look(database, connection, now=now, hub_api_url=hub_api_url, written_at_s=written_at_s).why


def refuse_in_use(
    database: Database, connection: Connection, *, now: datetime, hub_api_url: str | None, written_at_s: float | None
) -> tuple[str, ...]:
    """Raises OfflineRefused where a hub uses the database; else what couldn't be seen (see :func:`look`)."""
    seen = look(database, connection, now=now, hub_api_url=hub_api_url, written_at_s=written_at_s)
    if seen.why is not None:
        raise database.refused(
            "is in use", f"{seen.why} A running hub keeps users in memory, so there is no way around."
        )
    return seen.notes


def look(
    database: Database, connection: Connection, *, now: datetime, hub_api_url: str | None, written_at_s: float | None
) -> Look:
    """Who uses ``database``, seen from within a transaction on ``connection``.

    ``written_at_s`` is when its file was written (see Database.written_at_s) before ``connection`` was opened, since what a
    killed hub left half-done is cleared up by opening it. A time that is further ahead of ``now`` than LATELY_S isn't taken
    for a writing of now: a clock that was wrong once doesn't lock the operator out for ever.
    """
    notes: list[str] = []
    if hub_api_url is None:
        notes.append("No address of the hub is given, so it wasn't asked whether it runs.")
    elif answer := _answer(hub_api_url):
        return Look(f"The hub {answer} at {hub_api_url}: stop it first.", tuple(notes))
    if database.file is not None:
        holders, unseen = _holders(database.file)
        if holders:
            return Look(f"It is open in {'; '.join(holders)}: stop that first.", tuple(notes))
        if unseen:
            notes.append(
                f"{unseen} processes of other accounts couldn't be looked into; one that has the database open would be "
                "seen only by its lock or by what it wrote."
            )
    elif others := _others(database, connection):
        return Look(
            f"These are connected to it: {'; '.join(others)}. Stop the hub, and a HubGuard that keeps its journal in the "
            "same database, first.",
            tuple(notes),
        )
    if database.kind == "mysql":
        notes.append("Without the right PROCESS, MySQL shows only this account's own connections.")
    times = [(f"{name}.last_activity", _latest(connection, table)) for name, table in _ACTIVITY]
    if written_at_s is not None:
        times.append(("the file", datetime.fromtimestamp(written_at_s, timezone.utc)))
    return Look(_wrote_lately(times, now, notes), tuple(notes))


def _wrote_lately(times: Iterable[tuple[str, datetime | None]], now: datetime, notes: list[str]) -> str | None:
    left_s, what = 0.0, ""
    for name, at in times:
        if at is None:
            continue
        ago_s = (now - at).total_seconds()
        if ago_s < -LATELY_S:
            notes.append(
                f"{name} is {-ago_s:.0f} s ahead of this machine's clock: it isn't taken for a writing of now. Make sure "
                "that no hub runs."
            )
        elif LATELY_S - ago_s > left_s:
            left_s, what = LATELY_S - ago_s, name
    if not what:
        return None
    return (
        f"It was written lately ({what}, {LATELY_S - left_s:.0f} s ago), and a running hub writes every 300 s: where none "
        f"runs, wait {left_s:.0f} s and try again. So it is after HubGuard's own writing, too."
    )


def _latest(connection: Connection, table: sa.TableClause) -> datetime | None:
    value = connection.execute(sa.select(sa.func.max(table.c.last_activity))).scalar()
    if value is None:
        return None
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at


def _answer(hub_api_url: str) -> str | None:
    """What it does at that address, None: nothing is there, or only a proxy that has no hub behind it."""
    # Not by way of a proxy that the environment names: the question is what listens there.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(hub_api_url, timeout=ANSWER_TIMEOUT_S):
            return "answers"
    except urllib.error.HTTPError as error:
        if error.code in _OF_A_PROXY and "X-JupyterHub-Version" not in error.headers:
            return None
        return f"answers (with status {error.code})"
    except urllib.error.URLError as error:
        # Refused, no such name, no way there: nothing was reached.
        return "answers by TLS" if isinstance(error.reason, ssl.SSLError) else None
    except TimeoutError:
        return "takes connections, though it doesn't answer,"
    except (HTTPException, OSError):
        return "answers"
    except ValueError:
        raise OfflineRefused(
            f"{hub_api_url!r} isn't an address of a hub's API, so the hub can't be asked whether it runs. Nothing was "
            "changed. Write it like http://127.0.0.1:8081/hub/api."
        ) from None


def _holders(file: Path) -> tuple[list[str], int]:
    """The other processes that have the file open, and how many couldn't be looked into."""
    real = os.path.realpath(file)
    wanted = {real, f"{real}-wal", f"{real}-shm", f"{real}-journal"}
    holders, unseen = [], 0
    for process in psutil.process_iter(["pid", "name"]):
        if process.pid == os.getpid():
            continue
        try:
            if any(opened.path in wanted for opened in process.open_files()):
                holders.append(f"process {process.pid} ({process.info['name']})")
        except psutil.AccessDenied:
            unseen += 1
        except (psutil.Error, OSError):  # it is gone
            continue
    return holders, unseen


def _others(database: Database, connection: Connection) -> list[str]:
    """The other connections to this database that stay."""
    ends_s = time.monotonic() + CLOSING_S
    while True:
        if database.kind == "postgresql":
            connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        rows = connection.exec_driver_sql(_CONNECTIONS[database.kind]).all()
        if not rows or time.monotonic() > ends_s:
            return [
                f"{application or 'a program'} of the account {account or '(unknown)'} from {address or 'a local socket'}"
                + (f" since {since:%Y-%m-%d %H:%M:%S %Z}".rstrip() if since else "")
                for _, account, application, address, since in rows
            ]
        time.sleep(0.1)
