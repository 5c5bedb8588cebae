"""What reading the hub's database costs: `python bench/hub_db.py [URL]`, or `python bench/hub_db.py api [USERS]`.

Hubs of 1,000, 10,000 and 50,000 users with the same 1,000 servers running. Without a URL on SQLite files of its own; a URL
must be of an empty database each time, so give one and a single size after it: `python bench/hub_db.py URL 50000`.

With "api": all users of a hub that runs (50,000, none with a running server), with all that hangs on them by way of
its database, against its list of users by way of its API, which is what jupyterhub-idle-culler --cull-users reads.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil

from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.database import SQLHubDB
from hubguard.pacing.budget import Budget
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import made_up
from hubguard.staging.seed import seed

TOKEN = "token-of-the-benchmark"
CONFIG = f"""
c.JupyterHub.services.append({{"name": "bench", "api_token": "{TOKEN}"}})
scopes = ["list:users", "read:users:activity", "read:servers"]
c.JupyterHub.load_roles.append({{"name": "bench", "services": ["bench"], "scopes": scopes}})
"""
RUNNING = 1000
READINGS = 25
LOOKS = 3


async def against_the_api(users: int) -> None:
    """Both on the same hub, one after the other; the hub's CPU is what it took meanwhile, with what it does of its own."""
    print(f"{'':10} {'users':>7} {'seconds':>8} {'hub CPU (s)':>12}")
    async with TestbedHub(population=made_up(users=users, running=0, groups=50), config=CONFIG) as hub:
        assert hub.pid is not None
        process, database = psutil.Process(hub.pid), SQLHubDB(hub.db_url)
        budget = Budget(rate=1e6, burst=10**6, concurrency=10)
        spent: dict[str, tuple[float, float]] = {}
        async with HTTPHubAPI(hub.api_url, TOKEN, budget) as api:
            # Its very first answers cost a hub more than all others.
            await api.count_users()
            for what, times in (("API", 1), ("database", LOOKS)):
                began_s, began_cpu_s = time.perf_counter(), sum(process.cpu_times()[:2])
                for _ in range(times):
                    if what == "API":
                        found = len(await api.list_users(inactive_since=None))
                    else:
                        found = len((await database.accounts(None)).accounts)
                took_s, cpu_s = time.perf_counter() - began_s, sum(process.cpu_times()[:2]) - began_cpu_s
                spent[what] = took_s / times, cpu_s / times
                print(f"{what:10} {found:7} {spent[what][0]:8.2f} {spent[what][1]:12.3f}")
        database.close()
    (api_s, api_cpu_s), (database_s, database_cpu_s) = spent["API"], spent["database"]
    shares = f"{database_s / api_s:.3f} of the API's time and {database_cpu_s / api_cpu_s:.4f} of its hub CPU"
    print(f"the database takes {shares}")


async def cost(url: str, users: int) -> tuple[float, float, int, float]:
    """Milliseconds of a reading (median), of the list of stale users, how many they are, and milliseconds of all accounts."""
    seed(url, users=users, running=RUNNING, groups=50, named=100)
    db = SQLHubDB(url)
    try:
        took_s = [(await db.read()).took_s for _ in range(READINGS)]
        began_s = time.perf_counter()
        stale = await db.inactive_users(datetime.now(timezone.utc) - timedelta(days=90))
        stale_s = time.perf_counter() - began_s
        accounts_s = statistics.median([(await db.accounts(None)).took_s for _ in range(LOOKS)])
        return 1000 * statistics.median(took_s), 1000 * stale_s, len(stale), 1000 * accounts_s
    finally:
        db.close()


def main() -> None:
    if sys.argv[1:2] == ["api"]:
        asyncio.run(against_the_api(int(sys.argv[2]) if len(sys.argv) > 2 else 50_000))
        return
    url = sys.argv[1] if len(sys.argv) > 1 else None
    sizes = [int(size) for size in sys.argv[2:]] or [1000, 10_000, 50_000]
    first = None
    print(f"{'users':>7} {'running':>8} {'read (ms)':>10} {'against first':>14}", end=" ")
    print(f"{'stale':>7} {'list them (ms)':>15} {'accounts (ms)':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for users in sizes:
            read_ms, stale_ms, stale, all_ms = asyncio.run(
                cost(url or f"sqlite:///{Path(folder) / f'{users}.sqlite'}", users)
            )
            first = first or read_ms
            print(
                f"{users:7} {RUNNING:8} {read_ms:10.1f} {read_ms / first:14.2f} {stale:7} {stale_ms:15.0f} {all_ms:14.0f}"
            )


if __name__ == "__main__":
    main()
