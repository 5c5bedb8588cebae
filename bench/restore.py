"""``python -m bench.restore``: how long all routes are missing after the proxy has lost its table.

A real hub (SQLite, an external configurable-http-proxy) with 300 and 3,000 running servers at one shared endpoint. The proxy
is killed, and another is started 2 s later, with an empty table. *By hand* is one ``POST /hub/api/proxy`` by somebody who
knows at once, the moment the new proxy's API takes connections; *HubGuard* is the proxy watch; *the hub alone* waits for its
own check, at a random moment of its interval: half of it on average. Times count from the start of the new proxy's process
until its table, read ten times a second by somebody else, has every route. By hand and HubGuard take turns on one hub, so
that both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from typing_extensions import override

from bench.cull import Goal
from hubguard.errors import HubGuardError, ProxyError
from hubguard.hub.client import HTTPHubAPI
from hubguard.model import Key, Outcome
from hubguard.pacing.budget import Budget
from hubguard.pacing.clock import SystemClock
from hubguard.proxy.act import RouteChecks
from hubguard.proxy.canary import HTTPCanary
from hubguard.proxy.client import HTTPProxyAPI
from hubguard.proxy.cycle import ProxyWatch
from hubguard.proxy.model import WatchState
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer
from hubguard.staging.processes import listens

SIZES = (300, 3000)
RUNS = 3
HUB_UP_S = 600.0
AWAY_S = 2.0
"""Seconds for which the proxy is gone, as when a platform starts another."""

# The hub's own polls are off: they cost the same whoever mends.
CONFIG = """
c.Spawner.poll_interval = 0
c.JupyterHub.cleanup_servers = False
c.JupyterHub.service_check_interval = 3600
c.JupyterHub.last_activity_interval = {interval_s}
"""


@dataclass(frozen=True)
class Restored:
    """One loss of all routes. ``restored_s`` counts from the new proxy's start until its table has every route again.

    ``detected_s`` is from the kill until HubGuard knew, ``posts`` how often it had the hub check; None if it wasn't there.
    """

    who: str
    servers: int
    restored_s: float
    detected_s: float | None = None
    posts: int | None = None


class World:
    """A hub with ``servers`` servers at one endpoint, and its proxy."""

    def __init__(self, hub: TestbedHub, table: HTTPProxyAPI, servers: int) -> None:
        self.hub = hub
        self.table = table
        self.servers = servers
        self.expected: dict[str, Key | None] = {f"/user/{name}": (name, "") for name in _names(servers)}
        self.killed_s = 0.0

    async def lose(self) -> float:
        """Kill the proxy, and start another a little later; returns at its start, which is the result (monotonic seconds)."""
        self.killed_s = time.monotonic()
        await self.hub.kill_proxy()
        await asyncio.sleep(AWAY_S)
        began_s = time.monotonic()
        self._starting = asyncio.create_task(self.hub.start_proxy())
        return began_s

    async def api_up(self) -> None:
        """Return as soon as the new proxy's API takes connections."""
        port = int(self.hub.proxy_api_url.rpartition(":")[2])
        while not await asyncio.to_thread(listens, port):  # noqa: ASYNC110  # another process begins to listen
            await asyncio.sleep(0.01)

    async def whole(self, timeout_s: float) -> float:
        """When every route was in the table again (monotonic seconds). It is read ten times a second, whoever mends."""
        await self._starting
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                found = await self.table.routes()
            except ProxyError:
                found = {}
            if found.keys() >= self.expected.keys():
                return time.monotonic()
            await asyncio.sleep(0.1)
        raise HubGuardError(f"The routes weren't back after {timeout_s:g} s.")


async def by_hand(world: World) -> Restored:
    """Somebody who knows at once has the hub check its routes as soon as the proxy's API is there."""
    began_s = await world.lose()
    await world.api_up()
    asked = asyncio.create_task(world.hub.api("POST", "proxy"))
    ended_s = await world.whole(60.0)
    if (answer := await asked).status != 200:
        raise HubGuardError(f"The hub answered {answer.status} when asked to check its routes.")
    return Restored("by hand", world.servers, ended_s - began_s)


async def alone(world: World, interval_s: float) -> Restored:
    """The hub alone, with its own check."""
    began_s = await world.lose()
    ended_s = await world.whole(2 * interval_s + 60.0)
    return Restored(f"the hub alone, every {interval_s:g} s", world.servers, ended_s - began_s)


class _Checks(RouteChecks):
    """Always allowed, and counted instead of journaled."""

    def __init__(self) -> None:
        self.posts = 0

    @override
    def may_act(self) -> bool:
        return True

    @override
    async def record(self, what: str, outcome: Outcome | None) -> None:
        self.posts += outcome is None


async def guarded(world: World) -> Restored:
    """HubGuard watches."""
    checks = _Checks()
    hub, token = world.hub, world.hub.proxy_token or ""
    budget = Budget(rate=20.0, burst=10, concurrency=10)
    async with (
        HTTPHubAPI(hub.api_url, hub.token, budget) as api,
        HTTPProxyAPI(hub.proxy_api_url, token, budget) as table,
    ):
        watch = ProxyWatch(
            HTTPCanary(hub.proxy_api_url, token, budget, name="bench", public_url=hub.url),
            table,
            api,
            budget,
            SystemClock(),
            expected=lambda: world.expected,
            checks=checks,
        )
        running = asyncio.create_task(watch.run())
        try:
            await _until(watch, WatchState.FINE)
            await asyncio.sleep(3.0)
            noticing = asyncio.create_task(_until(watch, WatchState.GONE))
            began_s = await world.lose()
            ended_s = await world.whole(60.0)
            detected_s = await noticing - world.killed_s
            await _until(watch, WatchState.FINE)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return Restored("HubGuard", world.servers, ended_s - began_s, detected_s, checks.posts)


async def bench(arguments: argparse.Namespace) -> int:
    """Exit code 0 where all goals are met."""
    found: list[Restored] = []
    goals: list[Goal] = []
    for servers in arguments.servers:
        async with _world(servers, 3600.0) as world:
            pairs = []
            for run in range(arguments.runs):
                _say(f"{servers} servers, run {run + 1} of {arguments.runs}")
                # One right after the other, so that both have met the same machine.
                pairs.append((await by_hand(world), await guarded(world)))
        found += [one for pair in pairs for one in pair]
        goals += _goals(servers, pairs)
        _say(_table(found))
        for interval_s in arguments.intervals:
            _say(f"{servers} servers, the hub alone with a check every {interval_s:g} s")
            async with _world(servers, interval_s) as world:
                found.append(await alone(world, interval_s))
        _say(_table(found))
    if arguments.json:
        print(
            json.dumps({"found": [asdict(one) for one in found], "goals": [asdict(goal) for goal in goals]}, indent=1)
        )
    else:
        for goal in goals:
            print(f"{goal.what}: {goal.value:.2f}, at most {goal.at_most:g}: {'met' if goal.met else 'NOT met'}")
    return 0 if all(goal.met for goal in goals) else 1


def _goals(servers: int, pairs: Sequence[tuple[Restored, Restored]]) -> list[Goal]:
    ours = [one.restored_s for _, one in pairs]
    ratios = [one.restored_s / hand.restored_s for hand, one in pairs]
    goals = [
        Goal(f"{servers} servers: time to the last route, HubGuard / by hand (median)", statistics.median(ratios), 2.0)
    ]
    if servers == max(SIZES):
        goals.append(Goal(f"{servers} servers: s from the new proxy's start to the last route (worst)", max(ours), 3.0))
    return goals


@asynccontextmanager
async def _world(servers: int, interval_s: float) -> AsyncIterator[World]:
    population = Population(servers=tuple(SeededServer(name, idle_for_s=60.0) for name in _names(servers)))
    config = CONFIG.format(interval_s=int(interval_s))
    async with (
        TestbedHub(config=config, population=population, external_proxy=True, start_timeout_s=HUB_UP_S) as hub,
        HTTPProxyAPI(
            hub.proxy_api_url,
            hub.proxy_token or "",
            Budget(rate=1000, burst=1000, concurrency=10, breaker_failures=10**6),
        ) as table,
    ):
        yield World(hub, table, servers)


async def _until(watch: ProxyWatch, state: WatchState) -> float:
    """When the watch first says so, to 5 ms (monotonic seconds)."""
    for _ in range(60 * 200):
        if watch.status.state is state:
            return time.monotonic()
        await asyncio.sleep(0.005)
    raise HubGuardError(f"The proxy never was {state.value}: {watch.status}")


def _names(servers: int) -> list[str]:
    return [f"user-{number:04}" for number in range(servers)]


def _table(found: Sequence[Restored]) -> str:
    lines = ["| restore | servers | runs | detected s | all routes back s (median) | worst s | questions to the hub |"]
    lines.append("| --- " * 7 + "|")
    for who, servers in dict.fromkeys((one.who, one.servers) for one in found):
        these = [one for one in found if (one.who, one.servers) == (who, servers)]
        took = [one.restored_s for one in these]
        detected = [one.detected_s for one in these if one.detected_s is not None]
        posts = [one.posts for one in these if one.posts is not None]
        cells = [
            who,
            str(servers),
            str(len(these)),
            f"{statistics.median(detected):.3f}" if detected else "-",
            f"{statistics.median(took):.2f}",
            f"{max(took):.2f}",
            str(max(posts)) if posts else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0: all goals met; 1: not all, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(prog="python -m bench.restore", description=__doc__)
    parser.add_argument("--servers", type=int, action="append", help="how many (default: 300, then 3000)")
    parser.add_argument("--runs", type=int, default=RUNS, help="losses for each of HubGuard and by hand")
    parser.add_argument(
        "--full", action="store_true", help="the hub alone with a check every 300 s, too: up to 5 minutes"
    )
    parser.add_argument("--quick", action="store_true", help="300 servers and no hub alone, to see that it works")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    arguments = parser.parse_args()
    arguments.servers = [300] if arguments.quick else arguments.servers or list(SIZES)
    arguments.intervals = [] if arguments.quick else [60.0, 300.0] if arguments.full else [60.0]
    # Told to end, it ends all that it has started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return asyncio.run(bench(arguments))
    except HubGuardError as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Ended; nothing is left running.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
