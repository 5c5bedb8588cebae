"""Somebody else at the hub: requests who they are a number of times per second, and prints how long each answer took.

``BYSTANDER_TOKEN=… python -m bench.bystander URL PER_SECOND`` asks until its standard input ends, and then prints JSON:
``latencies_s`` in the order of asking, counted from when each request was due, and ``failed``, how many weren't answered
with 200. It doesn't wait for one answer before it asks again: a hub that is slow for a second is slow for all who would
have come in that second.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp


@asynccontextmanager
async def beside(api_url: str, token: str, per_second: float) -> AsyncIterator[dict[str, Any]]:
    """Somebody asks that hub all along; the dict has what they saw once the block has ended."""
    told: dict[str, Any] = {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bystander", f"{api_url}/user", str(per_second)),
        env={**os.environ, "BYSTANDER_TOKEN": token},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield told
        said, _ = await asyncio.wait_for(process.communicate(b""), 60)
        told.update(json.loads(said))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them doesn't exceed; NaN where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


async def ask(url: str, per_second: float) -> None:
    loop = asyncio.get_running_loop()
    over = loop.run_in_executor(None, sys.stdin.read)
    latencies: dict[int, float] = {}
    failed = 0
    headers = {"Authorization": f"token {os.environ['BYSTANDER_TOKEN']}"}

    async def once(number: int, due_s: float) -> None:
        nonlocal failed
        try:
            async with session.get(url) as answer:
                await answer.read()
                failed += answer.status != 200
        except (aiohttp.ClientError, asyncio.TimeoutError):
            failed += 1
        latencies[number] = loop.time() - due_s

    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
    ) as session:
        began_s = loop.time()
        asking: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            if over.done():
                break
            due_s = began_s + number / per_second
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            task = asyncio.create_task(once(number, due_s))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
    print(json.dumps({"latencies_s": [latencies[number] for number in sorted(latencies)], "failed": failed}))


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[1], float(sys.argv[2])))
