"""What looking for drift costs a hub: `python -m bench.drift looking` and `questions`, see bench/README.md."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import psutil

from bench import contenders
from bench.contenders import BenchError, Service
from bench.gate import Gate
from hubguard import config
from hubguard.hub.client import HTTPHubAPI
from hubguard.pacing.budget import Budget
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer

SERVERS = 1000
SECONDS = 120.0
GOAL = 0.01
"""The share of a core that looking may take."""

SETTINGS = config.load(environ={})
CYCLES_APART_S = SETTINGS.cull.every_s
WHOLE_EVERY_S = 600.0
"""Seconds between HubGuard's readings of the whole list over REST, and of what it learns about the hub."""
SELDOM_S = 3600.0
SETTLED_S = 8.0
"""Seconds after its first cycle, by which HubGuard has had its first look, too, and everything else that comes with a
start."""

ALONE = "nobody"
RARELY = ", hardly looking"

# The hub's own polls and checks are the same whoever looks; switched off, they don't blur what is measured.
QUIET_HUB = """
c.Spawner.poll_interval = 0
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.service_check_interval = 3600
"""
HUB_UP_S = 600.0


@dataclass(frozen=True)
class Looked:
    """What one phase of ``seconds`` took; shares are of one core, so that 0.01 is 1 %.

    ``start_ms`` is the hub's CPU from HubGuard's start until the phase began, less what the hub takes alone. ``requests`` are
    those the hub got in the phase, by kind, its proxy's not among them.
    """

    who: str
    servers: int
    seconds: float
    cycles: int
    hub_share: float
    proxy_share: float
    start_ms: float
    requests: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """What is HubGuard's of the hub's CPU, as shares of one core, with the hub's database (``source``) or without.

    ``all`` is beyond what the hub takes alone. ``looking`` is what is less where it hardly looks; ``start`` is what a start
    takes, which comes again in parts, spread over the time until it does.
    """

    source: str
    all: float
    looking: float
    start: float

    @property
    def met(self) -> bool:
        """Whether looking costs no more than is promised, even with all that a start takes counted as looking."""
        return self.looking + self.start <= GOAL


@dataclass(frozen=True)
class Question:
    """What the hub's CPU spends on one question to its API, in milliseconds, the mean of ``times``."""

    what: str
    servers: int
    times: int
    cpu_ms: float


async def questions(servers: int) -> list[Question]:
    """Each question that a look may ask. Raises HubGuardError."""
    async with (
        _hub(servers) as (hub, token),
        HTTPHubAPI(hub.api_url, token, Budget(rate=1000, burst=1000, concurrency=10)) as api,
    ):
        await hub.servers()
        await asyncio.sleep(5.0)
        kinds: list[tuple[str, Callable[[], Awaitable[object]], int]] = [
            ("whether it is there", api.version, 500),
            ("its services", api.service_prefixes, 200),
            ("one server", lambda: api.get_server("user-00000", ""), 200),
            ("all servers", api.list_servers, 20),
            ("all routes", api.list_routes, 20),
        ]
        found = []
        for what, ask, times in kinds:
            await ask()
            assert hub.pid is not None
            began_s = _cpu_s(hub.pid)
            for _ in range(times):
                await ask()
            found.append(Question(what, servers, times, 1000 * (_cpu_s(hub.pid) - began_s) / times))
        return found


async def looking(servers: int, seconds: float, say: Callable[[str], None]) -> tuple[list[Looked], list[Cost]]:
    """All phases, one after the other on one hub, and what they come to. Raises BenchError and HubGuardError."""
    cycles = max(1, round(seconds / CYCLES_APART_S))
    async with _hub(servers) as (hub, token), Gate(hub.api_url) as gate:
        say(f"{servers} servers, {ALONE}")
        # Whoever comes first would pay for what the hub then keeps in memory.
        await hub.servers()
        await asyncio.sleep(5.0)
        alone = await _alone(hub, gate, servers, seconds)
        say(_told(alone))
        found, costs = [alone], []
        for source, db_url in (("the hub's database", hub.db_url), ("REST alone", "")):
            pair = []
            for rarely in (False, True):
                who = f"{source}{RARELY if rarely else ''}"
                say(f"{servers} servers, {who}")
                pair.append(await _guarded(hub, gate, token, who, db_url, rarely, alone, cycles))
                say(_told(pair[-1]))
            found += pair
            costs.append(_cost(source, alone, *pair))
        return found, costs


def _cost(source: str, alone: Looked, looks: Looked, rarely: Looked) -> Cost:
    return Cost(
        source,
        looks.hub_share - alone.hub_share,
        looks.hub_share - rarely.hub_share,
        looks.start_ms / 1000 / WHOLE_EVERY_S,
    )


async def _alone(hub: TestbedHub, gate: Gate, servers: int, seconds: float) -> Looked:
    began = _Mark.now(hub, gate)
    await asyncio.sleep(seconds)
    return _phase(ALONE, servers, 0, 0.0, gate, began, _Mark.now(hub, gate))


async def _guarded(
    hub: TestbedHub, gate: Gate, token: str, who: str, db_url: str, rarely: bool, alone: Looked, cycles: int
) -> Looked:
    """A phase with HubGuard's service: from a while after one cycle until as long after the last of ``cycles`` more."""
    settings = f"c.HubGuard.armed = True\nc.HubGuard.hub_db_url = {db_url!r}\n"
    if rarely:
        settings += f"c.HubGuardDrift.every_s = {SELDOM_S}\n"
    service = Service(hub, settings)
    proxy = {"CONFIGPROXY_API_URL": hub.proxy_api_url, "CONFIGPROXY_AUTH_TOKEN": hub.proxy_token or ""}
    before = _Mark.now(hub, gate)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
        contenders.running(service.command, hub, gate, token, **proxy) as contender,
    ):

        async def cycle_over() -> None:
            until_s = time.monotonic() + 2 * CYCLES_APART_S + 60
            while not await service.had_a_cycle(session):
                if contender.process.returncode is not None or time.monotonic() > until_s:
                    raise BenchError(f"HubGuard had no cycle, or no more:\n{contender.text}")
                await asyncio.sleep(0.5)

        await cycle_over()
        await asyncio.sleep(SETTLED_S)
        began = _Mark.now(hub, gate)
        for _ in range(cycles):
            await cycle_over()
        await asyncio.sleep(SETTLED_S)
        ended = _Mark.now(hub, gate)
        await _nothing_found(service, session, hub)
    start_s = began.hub_s - before.hub_s - alone.hub_share * (began.at_s - before.at_s)
    return _phase(who, alone.servers, cycles, 1000 * start_s, gate, began, ended)


async def _nothing_found(service: Service, session: aiohttp.ClientSession, hub: TestbedHub) -> None:
    """Raises BenchError where HubGuard hasn't looked, or has found anything: then it looks more often."""
    headers = {"Authorization": f"token {hub.token}"}
    url = service.command[service.command.index("--url") + 1]
    async with session.get(f"{url}/services/hubguard/api/v1/drift", headers=headers) as answer:
        told = await answer.json(content_type=None)
    if answer.status != 200 or told != []:
        raise BenchError(f"HubGuard, asked for drift where there is none, answered {answer.status}: {str(told)[:500]}")


def _told(one: Looked) -> str:
    return f"{one.hub_share:.3%} of a core in {one.seconds:.0f} s, {one.start_ms:.0f} ms to start, {one.requests}"


def _phase(who: str, servers: int, cycles: int, start_ms: float, gate: Gate, began: _Mark, ended: _Mark) -> Looked:
    seconds = ended.at_s - began.at_s
    return Looked(
        who=who,
        servers=servers,
        seconds=seconds,
        cycles=cycles,
        hub_share=(ended.hub_s - began.hub_s) / seconds,
        proxy_share=(ended.proxy_s - began.proxy_s) / seconds,
        start_ms=start_ms,
        requests=contenders.kinds(
            [(asked.method, asked.path) for asked in gate.asked[began.requests : ended.requests]]
        ),
    )


@dataclass(frozen=True)
class _Mark:
    at_s: float
    hub_s: float
    proxy_s: float
    requests: int

    @classmethod
    def now(cls, hub: TestbedHub, gate: Gate) -> _Mark:
        assert hub.pid is not None
        assert hub.proxy_pid is not None
        return cls(time.monotonic(), _cpu_s(hub.pid), _cpu_s(hub.proxy_pid), len(gate.asked))


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@asynccontextmanager
async def _hub(servers: int) -> AsyncIterator[tuple[TestbedHub, str]]:
    """A hub with ``servers`` servers in use, and the token of HubGuard's service."""
    token = secrets.token_hex(16)
    lines = QUIET_HUB + contenders.services({contenders.SERVICE: token})
    population = Population(servers=tuple(SeededServer(f"user-{n:05}", idle_for_s=60.0) for n in range(servers)))
    async with TestbedHub(config=lines, population=population, external_proxy=True, start_timeout_s=HUB_UP_S) as hub:
        yield hub, token


def table(found: Sequence[Looked], costs: Sequence[Cost]) -> str:
    """Both as Markdown."""
    lines = [
        "| looking | servers | s | hub CPU | proxy CPU | requests to the hub | of these |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        requests = ", ".join(f"{count} {kind}" for kind, count in one.requests.items()) or "-"
        lines.append(
            f"| {one.who} | {one.servers:,} | {one.seconds:.0f} | {one.hub_share:.2%} | {one.proxy_share:.2%} "
            f"| {sum(one.requests.values())} | {requests} |"
        )
    lines += [
        "",
        "| HubGuard's part | all | looking | a start, spread | at most | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.source} | {cost.all:.2%} | {cost.looking:.2%} | {cost.start:.2%} | {GOAL:.0%} "
            f"| {'yes' if cost.met else 'NO'} |"
        )
    return "\n".join(lines)


def questions_table(found: Sequence[Question]) -> str:
    """As Markdown."""
    lines = ["| a question to the hub | servers | times | hub CPU ms |", "| --- | --- | --- | --- |"]
    lines += [f"| {one.what} | {one.servers:,} | {one.times} | {one.cpu_ms:.1f} |" for one in found]
    return "\n".join(lines)
