"""What finding drift costs: `python -m bench.drift classify|looking|questions [--servers N] [--json]`.

*looking* and *questions* are on a real hub, of 1,000 servers by default: see bench/looking.py.

*classify*: by default 50,000 servers against as many routes and backends, once where all agree, once with 1 % drift
of five kinds, and once with an empty table. A look is all that is decided in it: which servers to read, what differs,
what is unknown, what to repair. Each case runs in a process of its own, whose peak memory includes the servers,
routes and backends themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import resource
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone

from bench import looking
from bench.contenders import BenchError
from hubguard.backends.model import Backend
from hubguard.drift.decide.follow import DriftPolicy, follow, suspects
from hubguard.drift.decide.narrowed import narrowed
from hubguard.drift.decide.repair import plan_repairs
from hubguard.drift.model import Drift, World
from hubguard.errors import HubGuardError
from hubguard.hub.nouns import ORMCounts
from hubguard.model import Reading, Route, Server, Source

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
POLICY = DriftPolicy(sightings=3, for_s=15, clear_after=2, pending_limit_s=1800)
CASES = ("healthy", "1 % drift", "empty table")
LOOKS = 7


@dataclass(frozen=True)
class Cost:
    """``look_s`` is the median and ``slowest_s`` the slowest of seven looks, ``cpu_s`` the median of the processor's time.

    ``raised`` is how much drift they raised. ``peak_mb`` is the most memory that the process had, ``before_mb`` the same
    before the first look.
    """

    case: str
    servers: int
    look_s: float
    slowest_s: float
    cpu_s: float
    before_mb: float
    peak_mb: float
    raised: int


def world(servers: int, case: str, look: int) -> World:
    """That many servers with a route and a backend each, as of that look; every list and time is made again, as by
    reading."""
    at = NOW + timedelta(seconds=10 * look)
    started = NOW - timedelta(hours=1)
    known: dict[tuple[str, str], Server] = {}
    routes = {"/": Route("/", "http://127.0.0.1:8081")}
    targets: dict[tuple[str, str], str] = {}
    backends = []
    for n in range(servers):
        # Every tenth is a named server.
        user, name = f"user-{n}", "gpu" if n % 10 == 0 else ""
        wrong = n % 500 if case == "1 % drift" else -1
        target = f"http://10.{n >> 16}.{n >> 8 & 255}.{n & 255}:8888"
        path = f"/user/{user}/{name}" if name else f"/user/{user}"
        if wrong != 0:
            known[user, name] = Server(user, name, True, None, started + timedelta(seconds=n), at)
            targets[user, name] = target
        if wrong != 1 and case != "empty table":
            leads_to = f"http://10.99.0.{n & 255}:1" if wrong == 2 else target
            routes[path] = Route(path, leads_to, user, name, at)
        if wrong != 3:
            backends.append(
                Backend(
                    "docker", f"id-{n}", user, name, wrong != 4, f"container jupyter-{user}", started, "its network"
                )
            )
    readings = tuple(
        Reading(source, at - timedelta(seconds=1), True, 0.1)
        for source in (Source.HUB_API, Source.HUB_DB, Source.PROXY, Source.BACKEND)
    )
    return World(
        at,
        readings,
        known,
        routes=routes,
        targets=targets,
        prefixes={},
        backends=tuple(backends),
        whole=True,
        orm=ORMCounts(),
    )


def classify(servers: int, case: str) -> Cost:
    """What looks at that many cost, in this very process."""
    before: tuple[Drift, ...] = ()
    took_s, cpu_s = [], []
    memory_mb = 0.0
    for look in range(LOOKS):
        seen = world(servers, case, look)
        gc.collect()
        memory_mb = memory_mb or _peak_mb()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        suspects(seen)
        before, _ = follow(before, seen, POLICY)
        narrowed(seen)
        plan_repairs((drift for drift in before if drift.raised_at), seen.at)
        took_s.append(time.perf_counter() - began_s)
        cpu_s.append(time.process_time() - began_cpu_s)
    raised = sum(drift.raised_at is not None for drift in before)
    median = statistics.median
    return Cost(case, servers, median(took_s), max(took_s), median(cpu_s), memory_mb, _peak_mb(), raised)


def costs(servers: int) -> Iterator[Cost]:
    """Each case in a process of its own."""
    for case in CASES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield pool.apply(classify, (servers, case))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Exit code 0; 1 where looking costs more than is promised, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["classify", "looking", "questions"])
    parser.add_argument("--servers", type=int, help="how many (default: 50,000 to classify, else 1,000)")
    parser.add_argument("--seconds", type=float, default=looking.SECONDS, help="of a phase of looking, about")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    asked = parser.parse_args()
    # Told to end, it ends all that it has started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if asked.part == "looking":
            return asyncio.run(look(asked.servers or looking.SERVERS, asked.seconds, as_json=asked.json))
        if asked.part == "questions":
            answers = asyncio.run(looking.questions(asked.servers or looking.SERVERS))
            told = json.dumps([asdict(one) for one in answers], indent=2)
            print(told if asked.json else looking.questions_table(answers))
            return 0
    except (BenchError, HubGuardError) as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Ended; nothing is left running.", file=sys.stderr)
        return 1
    found = costs(asked.servers or 50_000)
    if asked.json:
        print(json.dumps([asdict(cost) for cost in found], indent=2))
        return 0
    print(
        f"{'':12} {'servers':>8} {'a look (s)':>11} {'slowest (s)':>12} {'CPU (s)':>8} {'before (MB)':>12} {'peak (MB)':>10}"
        f" {'raised':>7}"
    )
    for cost in found:
        print(
            f"{cost.case:12} {cost.servers:8,} {cost.look_s:11.3f} {cost.slowest_s:12.3f} {cost.cpu_s:8.3f}"
            f" {cost.before_mb:12.0f} {cost.peak_mb:10.0f} {cost.raised:7,}"
        )
    return 0


async def look(servers: int, seconds: float, *, as_json: bool) -> int:
    """What looking costs a hub, on standard output; 0, or 1 where that is more than is promised."""

    def say(text: str) -> None:
        print(f"# {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    phases, parts = await looking.looking(servers, seconds, say)
    if as_json:
        told = {"phases": [asdict(one) for one in phases], "costs": [asdict(one) for one in parts]}
        print(json.dumps(told, indent=2))
    else:
        print(looking.table(phases, parts))
    return 0 if all(part.met for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
