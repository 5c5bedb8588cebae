"""What reading the hub's database costs: `python bench/hub_db.py [URL]`.

Hubs of 1,000, 10,000 and 50,000 users with the same 1,000 servers running. Without a URL on SQLite files of its own; a URL
must be of an empty database each time, so give one and a single size after it: `python bench/hub_db.py URL 50000`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hubguard.clients.hub_db import SQLHubDB
from hubguard.testbed.seed import seed

RUNNING = 1000
READINGS = 25


async def cost(url: str, users: int) -> tuple[float, float, int]:
    """Milliseconds of a reading (median), milliseconds of the list of stale users, and how many they are."""
    seed(url, users=users, running=RUNNING, groups=50, named=100)
    db = SQLHubDB(url)
    try:
        took_s = [(await db.read()).took_s for _ in range(READINGS)]
        began_s = time.perf_counter()
        stale = await db.inactive_users(datetime.now(timezone.utc) - timedelta(days=90))
        return 1000 * statistics.median(took_s), 1000 * (time.perf_counter() - began_s), len(stale)
    finally:
        db.close()


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else None
    sizes = [int(size) for size in sys.argv[2:]] or [1000, 10_000, 50_000]
    first = None
    print(f"{'users':>7} {'running':>8} {'read (ms)':>10} {'against first':>14} {'stale':>7} {'list them (ms)':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for users in sizes:
            read_ms, stale_ms, stale = asyncio.run(cost(url or f"sqlite:///{Path(folder) / f'{users}.sqlite'}", users))
            first = first or read_ms
            print(f"{users:7} {RUNNING:8} {read_ms:10.1f} {read_ms / first:14.2f} {stale:7} {stale_ms:15.0f}")


if __name__ == "__main__":
    main()
