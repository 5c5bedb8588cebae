"""Whether a hub uses its database: a running one keeps users in memory, and would bring back or trip over what changed."""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.client import HTTPException
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.errors import OfflineRefused
from hubguard.prune.model import Caution
from hubguard.prune.offline.database import Database

LATELY_S = 330.0
"""Seconds after which a writer counts as gone: a hub in use records activity every 300 s by default. One that nobody
uses may write nothing for hours, so silence alone proves nothing."""

DEFAULT_API_URL = "http://127.0.0.1:8081/hub/api"
"""Where a hub answers whose config says nothing else (JupyterHub 5 and 6: hub_ip, hub_port, base_url)."""

HUB_NOT_ASKED = Caution(
    "hub-not-asked",
    f"The address of the hub's API is unknown, so HubGuard asks only {DEFAULT_API_URL} whether a hub runs. Name its config"
    " with --config, or set JUPYTERHUB_API_URL. Otherwise make sure yourself that the hub doesn't run: a running hub keeps"
    " the users that it has in memory.",
)
PROCESSES_NOT_SEEN = "processes-not-seen"
"""The names of what has to be acknowledged before the database is changed, and isn't a plan's."""

PIDS_NAMED = 5
"""Maximum processes named by number in one sentence."""

ANSWER_TIMEOUT_S = 5.0
"""Seconds for a hub to answer."""
CLOSING_S = 2.0
"""A connection that is gone by then was about to close."""

_OF_A_PROXY = (502, 503, 504)
_MARK = "X-JupyterHub-Version"
_FIRST_NAMESPACE = "pid:[4026531836]"  # what Linux calls the one in which all processes are seen
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
    """``why`` says who uses the database, in one or two sentences, None: nobody to be seen. ``notes``: what else is odd.

    ``cautions`` say what can't be seen, and have to be acknowledged before anything is changed.
    """

    why: str | None
    notes: tuple[str, ...] = ()
    cautions: tuple[Caution, ...] = ()


def why_in_use(
    url: str, folder: Path, *, now: datetime, hub_api_url: str | None, also_at: Sequence[str] = ()
) -> str | None:
    """Who uses the hub's database, and what to do; None if nobody is seen to. Raises OfflineRefused, HubDBError."""
    database = Database(url, folder)
    written_at_s = database.written_at_s()
    with database.connection() as connection, connection.begin():
        return look(
            database, connection, now=now, hub_api_url=hub_api_url, also_at=also_at, written_at_s=written_at_s
        ).why


def cautions(url: str, folder: Path, *, hub_api_url: str | None, also_at: Sequence[str] = ()) -> tuple[Caution, ...]:
    """What can't be seen of who uses the database, to be acknowledged by name before it is changed; empty: nothing.

    The database isn't connected to. Raises HubDBError for a URL that can't be used.
    """
    file = Database(url, folder).file
    return _cautions(hub_api_url is not None or bool(also_at), [] if file is None else _holders(file)[1])


def refuse_in_use(
    database: Database,
    connection: Connection,
    *,
    now: datetime,
    hub_api_url: str | None,
    also_at: Sequence[str],
    written_at_s: float | None,
    acknowledged: Collection[str],
) -> tuple[str, ...]:
    """Raises OfflineRefused where a hub uses the database, or what can't be seen isn't acknowledged; else what is odd.

    What was acknowledged is among that (see :func:`look`).
    """
    seen = look(database, connection, now=now, hub_api_url=hub_api_url, also_at=also_at, written_at_s=written_at_s)
    if seen.why is not None:
        raise database.refused(
            "is in use", f"{seen.why} A running hub keeps users in memory, so HubGuard can't work beside it."
        )
    if missing := [caution for caution in seen.cautions if caution.name not in acknowledged]:
        cautions = " ".join(f"{caution.name}: {caution.why}" for caution in missing)
        raise database.refused("may be in use", f"This must be acknowledged by name first. {cautions}")
    return (*seen.notes, *(caution.why for caution in seen.cautions))


def look(
    database: Database,
    connection: Connection,
    *,
    now: datetime,
    hub_api_url: str | None,
    also_at: Sequence[str],
    written_at_s: float | None,
) -> Look:
    """Who uses ``database``, seen from within a transaction on ``connection``.

    ``hub_api_url`` is where the hub would answer, None: nobody has said so. ``also_at`` are further such addresses, as its
    config has them. Without any, DEFAULT_API_URL is asked, and only a JupyterHub there counts: it is a guess.

    ``written_at_s`` is when its file was written (see Database.written_at_s) before ``connection`` was opened, since what a
    killed hub left half-done is cleared up by opening it. A time that is further ahead of ``now`` than LATELY_S isn't taken
    for a writing of now: a clock that was wrong once doesn't lock the operator out forever. When something was written
    doesn't matter if all processes are seen, none has the file open, and it is known where the hub would answer.
    """
    notes: list[str] = []
    known = [*([] if hub_api_url is None else [hub_api_url]), *also_at]
    for address in dict.fromkeys(known or [DEFAULT_API_URL]):
        if answer := _answer(address, of_a_hub=not known):
            return Look(f"The hub {answer} at {address}: stop it first.")
    unseen: list[str] = []
    if database.file is not None:
        holders, unseen = _holders(database.file)
        if holders:
            return Look(f"It is open in {'; '.join(holders)}: stop that first.")
    elif others := _others(database, connection):
        return Look(
            f"These are connected to it: {'; '.join(others)}. Stop the hub, and a HubGuard that keeps its journal in the "
            "same database, first, or disconnect these."
        )
    if database.kind == "mysql":
        notes.append("Without the right PROCESS, MySQL shows only this account's own connections.")
    if database.file is not None and known and not unseen:
        # All who could hold the file were seen, and the hub doesn't answer where it would: there is no writer to wait for.
        return Look(None, tuple(notes))
    times: list[tuple[str, datetime | None]] = []
    for name, table in _ACTIVITY:
        times.append((f"{name}.last_activity", _latest(connection, table, now + timedelta(seconds=LATELY_S))))
        times.append((f"{name}.last_activity", _latest(connection, table, None)))
    if written_at_s is not None:
        times.append(("the file", datetime.fromtimestamp(written_at_s, timezone.utc)))
    why = _wrote_lately(times, now, notes)
    if why is not None and database.file is not None:
        why += " There is no wait if the hub's config is known and all processes are seen."
    return Look(why, tuple(notes), _cautions(bool(known), unseen))


def _cautions(hub_known: bool, unseen: Sequence[str]) -> tuple[Caution, ...]:
    cautions = [] if hub_known else [HUB_NOT_ASKED]
    if unseen:
        # Root may be kept from looking into some, too.
        instead = "" if os.geteuid() == 0 else "run this as root on the machine that the hub runs on, or "
        cautions.append(
            Caution(
                PROCESSES_NOT_SEEN,
                f"Whether they have the database open can't be seen of {' and '.join(unseen)}: {instead}make sure yourself"
                " that no hub runs.",
            )
        )
    return tuple(cautions)


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
        f"It was written recently ({what}, {LATELY_S - left_s:.0f} s ago); the writer may still be there. If no hub "
        f"runs, wait {left_s:.0f} s and try again."
    )


def _latest(connection: Connection, table: sa.TableClause, until: datetime | None) -> datetime | None:
    """The latest there; with ``until``, of those up to then: a time that is far ahead doesn't hide what was written now."""
    statement = sa.select(sa.func.max(table.c.last_activity))
    if until is not None:
        naive = until.astimezone(timezone.utc).replace(tzinfo=None)
        statement = statement.where(table.c.last_activity <= sa.bindparam("until", naive, type_=sa.DateTime()))
    value = connection.execute(statement).scalar()
    if value is None:
        return None
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at


def _answer(hub_api_url: str, *, of_a_hub: bool) -> str | None:
    """What it does at that address, None: nothing is there, or only a proxy that has no hub behind it.

    ``of_a_hub``: only what says that it is a JupyterHub counts.
    """
    # Not by way of a proxy that the environment names: the question is what listens there.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(hub_api_url, timeout=ANSWER_TIMEOUT_S) as answer:
            return None if of_a_hub and _MARK not in answer.headers else "answers"
    except urllib.error.HTTPError as error:
        if _MARK not in error.headers and (of_a_hub or error.code in _OF_A_PROXY):
            return None
        return f"answers (with status {error.code})"
    except urllib.error.URLError as error:
        # Refused, no such name, no way there: nothing was reached.
        return "answers by TLS" if isinstance(error.reason, ssl.SSLError) and not of_a_hub else None
    except TimeoutError:
        return None if of_a_hub else "takes connections, though it doesn't answer,"
    except (HTTPException, OSError):
        return None if of_a_hub else "answers"
    except ValueError:
        raise OfflineRefused(
            f"{hub_api_url!r} isn't an address of a hub's API, so the hub can't be asked whether it runs. Nothing was "
            "changed. Write it like http://127.0.0.1:8081/hub/api."
        ) from None


def _holders(file: Path) -> tuple[list[str], list[str]]:
    """The other processes that have the file open, and of which processes that can't be seen, in words.

    Files are told by device and number, not by path: a container, or another link, has another path for the same file.
    """
    wanted = {
        identity for suffix in ("", "-wal", "-shm", "-journal") if (identity := _number(f"{file}{suffix}")) is not None
    }
    holders, closed = [], []
    for process in psutil.process_iter(["pid", "name"]):
        if process.pid == os.getpid():
            continue
        try:
            if any(_number(path) in wanted for path in _open_in(process)):
                holders.append(f"process {process.pid} ({process.info['name']})")
        except (psutil.AccessDenied, PermissionError):
            closed.append(process.pid)
        except (psutil.Error, OSError):  # it is gone
            continue
    unseen = [_closed_words(closed)] if closed else []
    try:
        if os.readlink("/proc/self/ns/pid") != _FIRST_NAMESPACE:
            unseen.append("all processes outside this container")
    except OSError:  # not on Linux
        pass
    return holders, unseen


def _closed_words(pids: Sequence[int]) -> str:
    named = ", ".join(map(str, pids[:PIDS_NAMED]))
    return f"{len(pids)} processes of other accounts ({named}{', …' if len(pids) > PIDS_NAMED else ''})"


def _open_in(process: psutil.Process) -> list[str]:
    """Paths that identify the files that a process has open. Raises psutil.Error, OSError."""
    folder = f"/proc/{process.pid}/fd"
    if os.path.isdir("/proc/self/fd"):
        # These lead to the very files, also where the process has paths of its own.
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    return [opened.path for opened in process.open_files()]


def _number(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except OSError:  # it is closed by now, or there is none
        return None
    return (status.st_dev, status.st_ino)


def _others(database: Database, connection: Connection) -> list[str]:
    """The other connections to this database that stay."""
    ends_s = time.monotonic() + CLOSING_S
    while True:
        if database.kind == "postgresql":
            connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        rows = connection.exec_driver_sql(_CONNECTIONS[database.kind]).all()
        if not rows or time.monotonic() > ends_s:
            return [
                f"process {pid}, {application or 'a program'} of the account {account or '(unknown)'} from "
                + (address or "a local socket")
                + (f" since {since:%Y-%m-%d %H:%M:%S %Z}".rstrip() if since else "")
                for pid, account, application, address, since in rows
            ]
        time.sleep(0.1)
