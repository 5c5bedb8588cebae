"""``python -m bench.cull``: culling, side by side with jupyterhub-idle-culler, on real hubs; see bench/README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import psutil

from bench import bystander, contenders
from bench.contenders import BenchError, Contender, Service
from bench.gate import BudgetKept, Gate, budget_kept
from hubguard import config
from hubguard.errors import HubGuardError
from hubguard.inhub.idle_culler import settings_for
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer, SeededUser

DAY_S = 86400.0

# stop
STOP_S = 1.0
CONCURRENCY = 10
ASKS_PER_S = 20.0
# Without the last one the slow peer would begin its next cycle before the first one is over.
STOP_OPTIONS = ("--timeout=600", f"--concurrency={CONCURRENCY}", "--cull-every=3600")

# idle cycles
EVERY_S = 2
WHOLE_EVERY_S = 600.0
"""Seconds between HubGuard's readings of the whole list over REST, and of what it learns about the hub."""
CYCLE_APART_S = config.load(environ={}).cull.every_s
IDLE_OPTIONS = (f"--timeout={int(7 * DAY_S)}", f"--cull-every={EVERY_S}", f"--concurrency={CONCURRENCY}")
IDLE_CONFIG = f"""
c.HubGuard.armed = True
c.HubGuardCull.idle_timeout_s = {7 * DAY_S}
c.HubGuardCull.every_s = {EVERY_S}
"""

# The hub's own checks are the same whoever culls; switched off, they don't blur what is measured.
QUIET_HUB = """
c.Spawner.poll_interval = 0
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.service_check_interval = 3600
"""
HUB_UP_S = 600.0


@dataclass(frozen=True)
class Goal:
    """One ratio or number that is promised, and what came out."""

    what: str
    value: float
    at_most: float

    @property
    def met(self) -> bool:
        return self.value <= self.at_most


# -- many stops ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stops:
    """What stopping everybody took. ``gone_s``: until the last stop was answered; ``cycle_s``: until the cycle was over.

    ``hub_s`` are the CPU seconds of the hub meanwhile, with what the independent client asked.
    """

    who: str
    servers: int
    gone_s: float
    cycle_s: float
    in_flight: int
    requests: dict[str, int]
    hub_s: float
    budget: BudgetKept
    p50_ms: float
    p99_ms: float
    asked: int
    unanswered: int


async def stops(idle: int, peers: Sequence[str], say: Callable[[str], None]) -> tuple[list[Stops], list[Goal]]:
    """Everybody's way to stop ``idle`` servers, each on a fresh hub with the same people, and the goals."""
    found = []
    for version in peers:
        command, environ = contenders.peer_once(version, STOP_OPTIONS)
        say(f"stop: {idle} idle servers, jupyterhub-idle-culler {version}")
        found.append(await _stops(f"jupyterhub-idle-culler {version}", idle, command, environ, ends_by_itself=True))
    say(f"stop: {idle} idle servers, HubGuard")
    ours = await _stops("HubGuard", idle, contenders.drop_in(STOP_OPTIONS), {}, ends_by_itself=False)
    goals = []
    for theirs in found:
        goals += [
            Goal(f"time to the end of the cycle, HubGuard / {theirs.who}", ours.cycle_s / theirs.cycle_s, 1 / 8),
            Goal(f"p99 of an independent client, HubGuard / {theirs.who}", ours.p99_ms / theirs.p99_ms, 2.0),
        ]
    # What was sent in time may arrive late and the next one not: that much is taken for the way, and no more.
    on_the_way_ms = 1000 / config.load(environ={}).budget.rate
    goals.append(Goal("HubGuard ahead of its budget, ms", max(0.0, ours.budget.ahead_ms), on_the_way_ms))
    goals.append(Goal("HubGuard's stops in flight", ours.in_flight, CONCURRENCY))
    return [*found, ours], goals


async def _stops(who: str, idle: int, command: list[str], environ: dict[str, str], *, ends_by_itself: bool) -> Stops:
    busy = [f"busy-{number:03}" for number in range(max(1, idle // 10))]
    population = Population(
        servers=(
            *(SeededServer(f"idle-{number:03}", idle_for_s=7200, stop_s=STOP_S) for number in range(idle)),
            *(SeededServer(name, idle_for_s=1) for name in busy),
        )
    )
    async with _hub(population) as (hub, tokens), Gate(hub.api_url) as gate:
        await hub.servers()  # whoever comes first would pay for what the hub then keeps in memory
        async with bystander.beside(hub.api_url, tokens["bystander"], ASKS_PER_S) as told:
            await asyncio.sleep(2.0)
            assert hub.pid is not None
            began_s, hub_began_s = time.monotonic(), _cpu_s(hub.pid)
            async with contenders.running(command, hub, gate, tokens["culler"], **environ) as contender:
                limit_s = 120 + 3 * idle * STOP_S
                await contenders.over(contender, ends_by_itself=ends_by_itself, timeout_s=limit_s)
                ended_s, hub_s = time.monotonic(), _cpu_s(hub.pid) - hub_began_s
        left = {user for user, _ in await hub.servers()}
        if left != set(busy):
            raise BenchError(
                f"{who} left {len(left - set(busy))} idle servers running and stopped {len(set(busy) - left)} busy ones. "
                f"Its log ends with:\n{contender.text}"
            )
        answered = [
            asked.answered_s for asked in gate.asked if asked.method == "DELETE" and asked.answered_s is not None
        ]
        budget = config.load(settings_for({"concurrency": CONCURRENCY}), environ={}).budget
        return Stops(
            who=who,
            servers=idle,
            gone_s=max(answered) - began_s,
            cycle_s=ended_s - began_s,
            in_flight=gate.most_in_flight("DELETE"),
            requests=contenders.kinds([(asked.method, asked.path) for asked in gate.asked]),
            hub_s=hub_s,
            budget=budget_kept([asked.at_s for asked in gate.asked], budget.rate, budget.burst),
            p50_ms=1000 * bystander.quantile(told["latencies_s"], 0.5),
            p99_ms=1000 * bystander.quantile(told["latencies_s"], 0.99),
            asked=len(told["latencies_s"]),
            unanswered=told["failed"],
        )


# -- cycles with nothing to do ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """What one cycle with nothing to do costs, in CPU milliseconds; the hub's own CPU meanwhile is taken off.

    ``first_ms`` is HubGuard's first cycle with all that it asks at its start. ``hub_ms`` is what a cycle costs on average:
    for HubGuard a later one, and the tenth of the first that falls on it where cycles are a minute apart and the whole list
    is read every ten minutes. ``own_ms`` is the CPU of the program itself in a later cycle.
    """

    who: str
    users: int
    running: int
    cycles: int
    first_ms: float
    later_ms: float
    hub_ms: float
    background_ms_per_s: float
    own_ms: float
    rss_mb: float
    requests_later: dict[str, int]


async def idle_cycles(
    users: int, running: int, cycles: int, peers: Sequence[str], say: Callable[[str], None]
) -> list[Idle]:
    """The peers, HubGuard over REST alone, and HubGuard that may read the hub's database, one after the other on one hub."""
    found = []
    async with _hub(_at_rest(users, running)) as (hub, tokens), Gate(hub.api_url) as gate:
        assert hub.pid is not None
        await hub.servers()  # whoever comes first would pay for what the hub then keeps in memory
        await asyncio.sleep(5.0)
        background = await _background(hub.pid, max(10.0, cycles))
        for version in peers:
            say(f"idle: {users} users, {running} running, jupyterhub-idle-culler {version}")
            command, environ = contenders.peer_for_ever(version, IDLE_OPTIONS)
            measured = _Measured(f"jupyterhub-idle-culler {version}", users, running, background, hub.pid, gate)
            async with contenders.running(command, hub, gate, tokens["culler"], **environ) as contender:
                found.append(
                    await measured.run(contender, cycles, _asks_for_version(gate, measured), first_counts=False)
                )
        for who, db_url in (("HubGuard, REST alone", ""), ("HubGuard, hub's database", hub.db_url)):
            say(f"idle: {users} users, {running} running, {who}")
            service = Service(hub, IDLE_CONFIG + f"c.HubGuard.hub_db_url = {db_url!r}\n")
            measured = _Measured(who, users, running, background, hub.pid, gate)
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                contenders.running(service.command, hub, gate, tokens[contenders.SERVICE]) as contender,
            ):

                async def cycle_ended(session: aiohttp.ClientSession = session, service: Service = service) -> bool:
                    return await service.had_a_cycle(session)

                found.append(await measured.run(contender, cycles, cycle_ended, first_counts=True))
    return found


def idle_goals(found: Sequence[Idle]) -> list[Goal]:
    """What HubGuard promises of cycles with nothing to do, against each peer in ``found``."""
    rest, db = found[-2:]
    goals = []
    for theirs in found[:-2]:
        goals += [
            Goal(f"hub CPU per idle cycle, HubGuard with the database / {theirs.who}", db.hub_ms / theirs.hub_ms, 0.1),
            Goal(f"hub CPU per idle cycle, HubGuard over REST / {theirs.who}", rest.hub_ms / theirs.hub_ms, 1.0),
        ]
    return [*goals, Goal("HubGuard's memory, MB RSS", max(rest.rss_mb, db.rss_mb), 120.0)]


def _at_rest(users: int, running: int) -> Population:
    """That many users, ``running`` of them with a server, used an hour ago; the others were here some time ago."""
    names = [f"user-{number:05}" for number in range(users)]
    return Population(
        users=tuple(SeededUser(name, idle_for_s=DAY_S * (1 + number % 300)) for number, name in enumerate(names)),
        servers=tuple(SeededServer(name, idle_for_s=3600.0) for name in names[:running]),
    )


async def _background(pid: int, seconds: float) -> float:
    """CPU seconds per second of a hub that nobody asks anything."""
    before, began_s = _cpu_s(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (_cpu_s(pid) - before) / (time.monotonic() - began_s)


def _asks_for_version(gate: Gate, measured: _Measured) -> Callable[[], Awaitable[bool]]:
    """The peer begins each cycle by asking for the hub's version: then the one before is over."""
    seen = 0

    async def asked() -> bool:
        nonlocal seen
        begun = sum(asked.path.rstrip("/").endswith("/hub/api") for asked in gate.asked[measured.from_request :])
        more = begun > max(seen, 1)
        seen = max(seen, begun)
        return more

    return asked


@dataclass
class _Measured:
    """One program at work on a hub where there is nothing to do."""

    who: str
    users: int
    running: int
    background: float
    hub_pid: int
    gate: Gate
    from_request: int = field(init=False)

    def __post_init__(self) -> None:
        self.from_request = len(self.gate.asked)

    async def run(
        self, contender: Contender, cycles: int, cycle_ended: Callable[[], Awaitable[bool]], *, first_counts: bool
    ) -> Idle:
        """``first_counts``: what the first cycle costs beyond the others comes again every WHOLE_EVERY_S."""
        own = psutil.Process(contender.process.pid)
        rss = 0
        marks = [self._mark(own)]
        limit_s = time.monotonic() + 120 + cycles * (EVERY_S + 10)
        while len(marks) < cycles + 2:
            if contender.process.returncode is not None or time.monotonic() > limit_s:
                raise BenchError(
                    f"{self.who} had {len(marks) - 1} of {cycles + 1} cycles, then no more:\n{contender.text}"
                )
            rss = max(rss, own.memory_info().rss)
            if await cycle_ended():
                marks.append(self._mark(own))
            await asyncio.sleep(0.05)
        began, first, last = marks[0], marks[1], marks[-1]
        first_ms, later_ms = self._hub_ms(began, first), self._hub_ms(first, last) / cycles
        extra_ms = max(0.0, first_ms - later_ms) if first_counts else 0.0
        later = self.gate.asked[first.requests : last.requests]
        return Idle(
            who=self.who,
            users=self.users,
            running=self.running,
            cycles=cycles,
            first_ms=first_ms,
            later_ms=later_ms,
            hub_ms=later_ms + extra_ms * CYCLE_APART_S / WHOLE_EVERY_S,
            background_ms_per_s=1000 * self.background,
            own_ms=1000 * (last.own_s - first.own_s) / cycles,
            rss_mb=rss / 2**20,
            requests_later=contenders.kinds([(asked.method, asked.path) for asked in later]),
        )

    def _mark(self, own: psutil.Process) -> _Mark:
        times = own.cpu_times()
        return _Mark(time.monotonic(), _cpu_s(self.hub_pid), times.user + times.system, len(self.gate.asked))

    def _hub_ms(self, begin: _Mark, end: _Mark) -> float:
        return 1000 * max(0.0, end.hub_s - begin.hub_s - self.background * (end.at_s - begin.at_s))


@dataclass(frozen=True)
class _Mark:
    at_s: float
    hub_s: float
    own_s: float
    requests: int


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


# -- running it -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _hub(population: Population) -> AsyncIterator[tuple[TestbedHub, dict[str, str]]]:
    """A hub with those people on it, and the tokens of its services."""
    tokens = {name: secrets.token_hex(16) for name in ("culler", contenders.SERVICE, "bystander")}
    lines = QUIET_HUB + contenders.services(tokens)
    async with TestbedHub(config=lines, population=population, start_timeout_s=HUB_UP_S) as hub:
        yield hub, tokens


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _stops_table(found: Sequence[Stops]) -> str:
    head = [
        "stop",
        "servers",
        "last stop s",
        "cycle s",
        "in flight",
        "requests",
        "hub CPU s",
        "budget used",
        "p50 ms",
        "p99 ms",
    ]
    return _table(
        [head]
        + [
            [
                one.who,
                str(one.servers),
                f"{one.gone_s:.1f}",
                f"{one.cycle_s:.1f}",
                str(one.in_flight),
                str(one.budget.requests),
                f"{one.hub_s:.1f}",
                # The peer has no budget to keep to.
                f"{one.budget.highest_share:.0%}" if one.who == "HubGuard" else "-",
                f"{one.p50_ms:.1f}",
                f"{one.p99_ms:.1f}",
            ]
            for one in found
        ]
    )


def _idle_table(found: Sequence[Idle]) -> str:
    head = ["idle cycle", "users", "running", "first, hub ms", "later, hub ms", "average, hub ms", "own ms", "RSS MB"]
    return _table(
        [head]
        + [
            [
                one.who,
                str(one.users),
                str(one.running),
                f"{one.first_ms:.0f}",
                f"{one.later_ms:.1f}",
                f"{one.hub_ms:.1f}",
                f"{one.own_ms:.0f}",
                f"{one.rss_mb:.0f}",
            ]
            for one in found
        ]
    )


async def bench(arguments: argparse.Namespace) -> int:
    """Run what is asked for and print it; 0, or 1 where a goal isn't met."""

    def say(text: str) -> None:
        print(f"# {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    quick, goals = arguments.quick, []
    told: dict[str, Any] = {}
    if "stop" in arguments.parts:
        stopped, promised = await stops(60 if quick else 300, arguments.peer, say)
        told["stop"], goals = [asdict(one) for one in stopped], goals + promised
        say("done\n\n" + _stops_table(stopped) + "\n")
    cycles = 5 if quick else 15
    if "idle" in arguments.parts:
        users, running = (1_000, 100) if quick else (10_000, 1_000)
        idle = await idle_cycles(users, running, cycles, arguments.peer, say)
        told["idle"], goals = [asdict(one) for one in idle], goals + idle_goals(idle)
        say("done\n\n" + _idle_table(idle) + "\n")
    if "growth" in arguments.parts:
        sizes = (
            [(500, 50), (2_000, 50), (2_000, 100)]
            if quick
            else [
                *((1_000, 1_000), (10_000, 1_000), (50_000, 1_000)),
                (10_000, 250),
            ]
        )
        grown: list[Idle] = []
        for size in sizes:
            grown += await idle_cycles(*size, 5, arguments.peer[:1], say)
            say("done\n\n" + _idle_table(grown[-3:]) + "\n")
        told["growth"] = [asdict(one) for one in grown]
    told["goals"] = [{**asdict(goal), "met": goal.met} for goal in goals]
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        rows = [[goal.what, f"{goal.value:.3f}", f"{goal.at_most:.3f}", "yes" if goal.met else "NO"] for goal in goals]
        if rows:
            print(_table([["goal", "found", "at most", "met"], *rows]))
    return 0 if all(goal.met for goal in goals) else 1


def main() -> int:
    """Exit code 0: all goals met; 1: not all, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(prog="python -m bench.cull", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=("stop", "idle", "growth", []), help="what to measure (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the size, to see that it works")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    parser.add_argument("--peer", action="append", metavar="VERSION", help="of jupyterhub-idle-culler (default: 2.0.0)")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or ["stop", "idle", "growth"]
    arguments.peer = arguments.peer or ["2.0.0"]
    try:
        return asyncio.run(_until_told_to_end(bench(arguments)))
    except (BenchError, HubGuardError) as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Ended; nothing is left running.", file=sys.stderr)
    return 1


async def _until_told_to_end(work: Awaitable[int]) -> int:
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


if __name__ == "__main__":
    sys.exit(main())
