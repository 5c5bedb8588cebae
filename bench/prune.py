"""What removing stale users takes: `python -m bench.prune online|find [--users N] [--seconds S] [--json]`.

*online*: 5,000 users of which 4,700 are stale, deleted through real hubs that are copies of each other: by HubGuard as fast
as the hub goes, with the hub's database and over REST alone, by jupyterhub-idle-culler --cull-users, and by HubGuard at its
default pace. *find*: the stale among 50,000, by HubGuard's reading and by the scan that the peer does. See bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import aiohttp
import psutil

from bench import bystander, contenders
from bench.contenders import BenchError, Contender, Service
from bench.cull import Goal
from hubguard import config
from hubguard.errors import HubGuardError
from hubguard.hub.database import SQLHubDB
from hubguard.inhub.scopes import DELETE_USERS, SCOPES
from hubguard.prune.decide import stale as prune_stale
from hubguard.prune.model import Protection, StaleCriteria
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

PEER = "2.0.0"
STALE_SHARE = 0.94
LIMIT_S = 180 * DAY_S
ASKS_PER_S = 20.0
SECONDS = 60.0
READINGS = 5
QUIET_S = 10.0

# The peer is given the pages that it asks for least often; by default it takes 50 users at a time.
PEER_OPTIONS = ("--cull-users=True", "--concurrency=10", "--cull-every=3600", "--api-page-size=200")

FULL_PACE = """
c.HubGuardPrune.rate = 1000.0
c.HubGuardBudget.rate = 1000.0
c.HubGuardBudget.burst = 10
"""

# The hub's own polls and checks are the same whoever deletes; switched off, they don't blur what is measured.
QUIET_HUB = """
c.Spawner.poll_interval = 0
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.service_check_interval = 3600
"""
HUB_UP_S = 600.0

DELETED = re.compile(r"^\[\w (\S+ \S+) JupyterHub log:\d+\] (\d+) (\w+) (\S+) \((culler|hubguard)@", re.MULTILINE)


@dataclass(frozen=True)
class Deleted:
    """What deleting ``deleted`` users took: ``seconds``, from the first request until it was over, with listing and
    verifying.

    ``hub_ms`` is the hub's CPU for each of them, without what the independent client asked. ``p99_ms`` is what that client
    waited for an answer meanwhile, ``quiet_p99_ms`` before it began. ``requests`` reached the hub, by kind.
    """

    who: str
    users: int
    deleted: int
    seconds: float
    hub_ms: float
    quiet_p99_ms: float
    p50_ms: float
    p99_ms: float
    requests: dict[str, int]

    @property
    def per_s(self) -> float:
        return self.deleted / self.seconds


@dataclass(frozen=True)
class Found:
    """What finding the stale took, ``seconds`` and milliseconds of the hub's CPU beyond what it takes by itself."""

    who: str
    users: int
    stale: int
    seconds: float
    hub_ms: float


# -- online -----------------------------------------------------------------------------------------------------------------


async def online(users: int, seconds: float, say: Callable[[str], None]) -> tuple[list[Deleted], list[Goal]]:
    """Each on a hub of its own, the same people on it. Raises BenchError and HubGuardError."""
    paced = max(1, min(round(seconds * config.load(environ={}).prune.rate), round(users * STALE_SHARE)))
    peer = f"jupyterhub-idle-culler {PEER} --cull-users"
    say(f"{users} users, {peer}")
    found = [await _by_the_peer(peer, users)]
    say(_told(found[-1]))
    for who, with_database in (("HubGuard, hub's database", True), ("HubGuard, REST alone", False)):
        say(f"{users} users, {who}, at full pace")
        found.append(await _by_hubguard(f"{who}, full pace", users, FULL_PACE, with_database, None))
        say(_told(found[-1]))
    say(f"{users} users, HubGuard at its default pace: {paced} of them")
    found.append(await _by_hubguard("HubGuard, default pace", users, "", True, paced, quiet_s=seconds))
    say(_told(found[-1]))
    theirs, ours, _, at_pace = found
    goals = [
        Goal("seconds a user at full pace, HubGuard / the peer", theirs.per_s / ours.per_s, 1.0),
        Goal("p99 of an independent client at default pace / with nobody", at_pace.p99_ms / at_pace.quiet_p99_ms, 2.0),
    ]
    return found, goals


def _told(one: Deleted) -> str:
    return f"{one.deleted} in {one.seconds:.1f} s, {one.per_s:.1f}/s, p99 {one.p99_ms:.0f} ms, {one.requests}"


async def _by_the_peer(who: str, users: int) -> Deleted:
    async with _hub(users) as (hub, tokens):
        command, environ = contenders.peer_once(PEER, (f"--timeout={int(LIMIT_S)}", *PEER_OPTIONS))
        quiet = await _quiet(hub, tokens["bystander"], QUIET_S)
        began = _Mark.now(hub)
        async with bystander.beside(hub.api_url, tokens["bystander"], ASKS_PER_S) as told:
            async with contenders.running(command, hub, hub, tokens["culler"], **environ) as contender:
                await contenders.over(contender, ends_by_itself=True, timeout_s=120 + users)
            ended = _Mark.now(hub)
        # Not from its start on: HubGuard has been there for long when a plan is made.
        asked = _asked(hub, "culler")
        took_s = (asked[-1][0] - asked[0][0]).total_seconds()
        await _all_gone(who, hub, users, contender)
        return _deleted(who, users, _stale(users), took_s, quiet, began, ended, told, asked)


async def _by_hubguard(
    who: str, users: int, settings: str, with_database: bool, only: int | None, *, quiet_s: float = QUIET_S
) -> Deleted:
    """``only``: the number of stale users to name; None: all of them."""
    async with _hub(users) as (hub, tokens):
        settings = (
            f"c.HubGuard.armed = True\nc.HubGuard.hub_db_url = {hub.db_url if with_database else ''!r}\n"
            f"c.HubGuardPrune.delete_users = True\nc.HubGuardPrune.undo_folder = {str(hub.folder / 'undo')!r}\n{settings}"
        )
        service = Service(hub, settings)
        async with (
            aiohttp.ClientSession(
                headers={"Authorization": f"token {hub.token}"}, timeout=aiohttp.ClientTimeout(total=300)
            ) as session,
            contenders.running(service.command, hub, hub, tokens[contenders.SERVICE]) as contender,
        ):
            guard = _Guard(session, service, contender)
            await guard.ready()
            quiet = await _quiet(hub, tokens["bystander"], quiet_s)
            asked_before = len(_asked(hub, "hubguard"))
            began = _Mark.now(hub)
            async with bystander.beside(hub.api_url, tokens["bystander"], ASKS_PER_S) as told:
                deleted = await guard.prune(None if only is None else _names(users)[:only], 300 + 2 * users)
                ended = _Mark.now(hub)
            asked = _asked(hub, "hubguard")[asked_before:]
        expected = _stale(users) if only is None else only
        if deleted != expected:
            raise BenchError(f"{who} deleted {deleted} of {expected} users:\n{contender.text}")
        if only is None:
            await _all_gone(who, hub, users, contender)
        return _deleted(who, users, deleted, ended.at_s - began.at_s, quiet, began, ended, told, asked)


class _Guard:
    """A guard that runs as a service, asked through its API."""

    def __init__(self, session: aiohttp.ClientSession, service: Service, contender: Contender) -> None:
        self._session = session
        self._service = service
        self._contender = contender
        self._url = service.command[service.command.index("--url") + 1] + "/services/hubguard/api/v1/"

    async def ready(self) -> None:
        """It has had a cycle, and its first look at everything is over. Raises BenchError."""
        until_s = time.monotonic() + 120
        while not await self._service.had_a_cycle(self._session):
            self._check_alive(until_s)
            await asyncio.sleep(0.2)
        await asyncio.sleep(8.0)

    async def prune(self, names: Sequence[str] | None, timeout_s: float) -> int:
        """Plan, have it carried out, and wait for its end; how many are gone. Raises BenchError."""
        until_s = time.monotonic() + timeout_s
        asked: dict[str, Any] = {"inactive_for_s": LIMIT_S, "never_active_for_s": 0}
        plan = await self._ask("POST", "plans", asked if names is None else {**asked, "listed": list(names)})
        order = {
            "count": len(plan["deletions"]),
            "why": "a benchmark",
            "acknowledged": [caution["name"] for caution in plan["cautions"]],
        }
        await self._ask("POST", f"plans/{plan['digest']}/apply", order)
        while True:
            runs = await self._ask("GET", "plans")
            run = next(one for one in runs if one["digest"] == plan["digest"])
            if run["state"] == "done":
                return int(run["done"])
            if run["state"] != "running":
                raise BenchError(f"The plan is {run['state']}: {run['why']}")
            self._check_alive(until_s)
            await asyncio.sleep(0.25)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._session.request(method, self._url + path, json=body) as answer:
            told = await answer.json(content_type=None)
        if answer.status >= 400:
            raise BenchError(f"HubGuard answered {answer.status} to {method} {path}: {str(told)[:500]}")
        return told

    def _check_alive(self, until_s: float) -> None:
        if self._contender.process.returncode is not None or time.monotonic() > until_s:
            raise BenchError(f"HubGuard has ended, or isn't ready in time:\n{self._contender.text}")


@dataclass(frozen=True)
class _Quiet:
    """A hub that only the independent client uses: CPU seconds per second, and what that client waits."""

    hub_share: float
    p99_ms: float


async def _quiet(hub: TestbedHub, token: str, seconds: float) -> _Quiet:
    async with bystander.beside(hub.api_url, token, ASKS_PER_S) as told:
        # Whoever starts the client's process pays for it, in time as the client sees it.
        await asyncio.sleep(2.0)
        began = _Mark.now(hub)
        await asyncio.sleep(seconds)
        ended = _Mark.now(hub)
    share = (ended.hub_s - began.hub_s) / (ended.at_s - began.at_s)
    return _Quiet(share, 1000 * bystander.quantile(told["latencies_s"][int(2 * ASKS_PER_S) :], 0.99))


def _deleted(
    who: str,
    users: int,
    deleted: int,
    took_s: float,
    quiet: _Quiet,
    began: _Mark,
    ended: _Mark,
    told: Mapping[str, Any],
    asked: Sequence[tuple[datetime, str, str]],
) -> Deleted:
    if told["failed"]:
        raise BenchError(f"{told['failed']} requests of the independent client failed while {who} was at work.")
    hub_s = ended.hub_s - began.hub_s - quiet.hub_share * (ended.at_s - began.at_s)
    return Deleted(
        who=who,
        users=users,
        deleted=deleted,
        seconds=took_s,
        hub_ms=1000 * hub_s / deleted,
        quiet_p99_ms=quiet.p99_ms,
        p50_ms=1000 * bystander.quantile(told["latencies_s"], 0.5),
        p99_ms=1000 * bystander.quantile(told["latencies_s"], 0.99),
        requests=contenders.kinds([(method, path) for _, method, path in asked]),
    )


def _asked(hub: TestbedHub, service: str) -> list[tuple[datetime, str, str]]:
    """(when it was answered, method, path) of all that this service has asked so far, by the hub's log."""
    return [
        (datetime.strptime(at, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc), method, path)
        for at, _, method, path, who in DELETED.findall(hub.log_text())
        if who == service
    ]


async def _all_gone(who: str, hub: TestbedHub, users: int, contender: Contender) -> None:
    """Raises BenchError where not exactly the stale are gone."""
    left = await _everybody(hub)
    expected = {hub.admin, *_names(users)[_stale(users) :]}
    if left != expected:
        raise BenchError(
            f"{who} left {len(left - expected)} stale users and deleted {len(expected - left)} others. Its log ends with:\n"
            f"{contender.text}"
        )


async def _everybody(hub: TestbedHub) -> set[str]:
    found, following = set(), {"offset": 0, "limit": 200}
    while following is not None:
        page = await hub.api(
            "GET",
            "users",
            params={"offset": following["offset"], "limit": following["limit"]},
            headers={"Accept": "application/jupyterhub-pagination+json"},
        )
        found |= {user["name"] for user in page.data["items"]}
        following = page.data["_pagination"]["next"]
    return found


# -- find -------------------------------------------------------------------------------------------------------------------


async def find(users: int, say: Callable[[str], None]) -> tuple[list[Found], list[Goal]]:
    """Both on one hub, one after the other. Raises BenchError and HubGuardError."""
    async with _hub(users) as (hub, tokens):
        # Whoever comes first would pay for what the hub then keeps in memory.
        await _everybody(hub)
        await asyncio.sleep(5.0)
        began = _Mark.now(hub)
        await asyncio.sleep(QUIET_S)
        ended = _Mark.now(hub)
        share = (ended.hub_s - began.hub_s) / (ended.at_s - began.at_s)
        say(f"{users} users, HubGuard's reading of the hub's database")
        ours = await _read(hub, users, share)
        peer = f"jupyterhub-idle-culler {PEER} --cull-users"
        say(f"{users} users, {peer}, which finds nobody old enough")
        # Nobody is old enough, so that it only looks; it looks at everybody all the same.
        command, environ = contenders.peer_once(PEER, (f"--timeout={int(3660 * DAY_S)}", *PEER_OPTIONS))
        began = _Mark.now(hub)
        async with contenders.running(command, hub, hub, tokens["culler"], **environ) as contender:
            await contenders.over(contender, ends_by_itself=True, timeout_s=120 + users / 20)
        ended = _Mark.now(hub)
        asked = _asked(hub, "culler")
    theirs = Found(
        peer,
        users,
        _stale(users),
        (asked[-1][0] - asked[0][0]).total_seconds(),
        1000 * (ended.hub_s - began.hub_s - share * (ended.at_s - began.at_s)),
    )
    goals = [
        Goal("hub CPU to find the stale, HubGuard / the peer's scan", ours.hub_ms / theirs.hub_ms, 1 / 20),
        Goal("HubGuard's seconds to find the stale", ours.seconds, 2.0),
    ]
    return [theirs, ours], goals


async def _read(hub: TestbedHub, users: int, share: float) -> Found:
    """The median of some readings, and the hub's CPU for the mean of them."""
    criteria, took_s = StaleCriteria(inactive_for_s=LIMIT_S), []
    database = SQLHubDB(hub.db_url)
    try:
        began = _Mark.now(hub)
        for _ in range(READINGS):
            begun_s, now = time.perf_counter(), datetime.now(timezone.utc)
            accounts = (await database.accounts(prune_stale.since(criteria, now))).accounts
            verdicts = prune_stale.judge(accounts, criteria, Protection(), (), {}, now)
            took_s.append(time.perf_counter() - begun_s)
        ended = _Mark.now(hub)
    finally:
        database.close()
    stale = sum(verdict.stale for verdict in verdicts)
    if stale != _stale(users):
        raise BenchError(f"HubGuard found {stale} of {_stale(users)} users stale.")
    hub_s = ended.hub_s - began.hub_s - share * (ended.at_s - began.at_s)
    return Found("HubGuard, hub's database", users, stale, statistics.median(took_s), max(0.0, 1000 * hub_s / READINGS))


# -- both -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mark:
    at_s: float
    hub_s: float

    @classmethod
    def now(cls, hub: TestbedHub) -> _Mark:
        assert hub.pid is not None
        times = psutil.Process(hub.pid).cpu_times()
        return cls(time.monotonic(), times.user + times.system)


def _stale(users: int) -> int:
    return round(users * STALE_SHARE)


def _names(users: int) -> list[str]:
    """All of them, the stale ones first."""
    return [f"user-{number:05}" for number in range(users)]


def _people(users: int) -> Population:
    """The stale were here over half a year ago, the others within a month; everybody had a server once, and has a token."""
    stale = _stale(users)
    idle = [
        LIMIT_S + DAY_S * (1 + number % 300) if number < stale else DAY_S * (number % 30) for number in range(users)
    ]
    return Population(
        users=tuple(
            SeededUser(
                name,
                groups=(f"class-{number % 40}",),
                idle_for_s=idle[number],
                created_s=idle[number] + DAY_S,
                tokens=1,
            )
            for number, name in enumerate(_names(users))
        ),
        servers=tuple(
            SeededServer(name, idle_for_s=idle[number], running=False, kept_state={"pvc_name": f"claim-{name}"})
            for number, name in enumerate(_names(users))
        ),
    )


@asynccontextmanager
async def _hub(users: int) -> AsyncIterator[tuple[TestbedHub, dict[str, str]]]:
    """A hub with those people on it, and the tokens of its services."""
    tokens = {name: secrets.token_hex(16) for name in ("culler", contenders.SERVICE, "bystander")}
    # The peer's documentation gives it these to cull users.
    scopes = {
        "culler": [*contenders.CULLER_SCOPES, "admin:users"],
        contenders.SERVICE: [*SCOPES, DELETE_USERS],
    }
    services = [{"name": name, "api_token": token} for name, token in tokens.items()]
    roles = [{"name": name, "services": [name], "scopes": held} for name, held in scopes.items()]
    lines = f"{QUIET_HUB}c.JupyterHub.services.extend({services!r})\nc.JupyterHub.load_roles.extend({roles!r})\n"
    async with TestbedHub(config=lines, population=_people(users), start_timeout_s=HUB_UP_S) as hub:
        yield hub, tokens


def table(found: Sequence[Deleted | Found], goals: Sequence[Goal]) -> str:
    """As Markdown."""
    lines = []
    if deleted := [one for one in found if isinstance(one, Deleted)]:
        lines = [
            "| prune online | users | deleted | s | per s | hub CPU ms each | p99 before ms | p50 ms | p99 ms | requests |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in deleted:
            lines.append(
                f"| {one.who} | {one.users:,} | {one.deleted:,} | {one.seconds:.1f} | {one.per_s:.1f} | {one.hub_ms:.1f} "
                f"| {one.quiet_p99_ms:.1f} | {one.p50_ms:.1f} | {one.p99_ms:.1f} | {sum(one.requests.values()):,} |"
            )
        lines.append("")
    if looked := [one for one in found if isinstance(one, Found)]:
        lines += ["| prune find | users | stale | s | hub CPU ms |", "| --- | --- | --- | --- | --- |"]
        for each in looked:
            lines.append(f"| {each.who} | {each.users:,} | {each.stale:,} | {each.seconds:.2f} | {each.hub_ms:.0f} |")
        lines.append("")
    lines += ["| goal | found | at most | met |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {goal.what} | {goal.value:.3f} | {goal.at_most:.3f} | {'yes' if goal.met else 'NO'} |" for goal in goals
    ]
    return "\n".join(lines)


async def bench(arguments: argparse.Namespace) -> int:
    """Run what is asked for and print it; 0, or 1 where a goal isn't met."""

    def say(text: str) -> None:
        print(f"# {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    found: Sequence[Deleted | Found]
    if arguments.part == "online":
        found, goals = await online(arguments.users or 5_000, arguments.seconds, say)
    else:
        found, goals = await find(arguments.users or 50_000, say)
    if arguments.json:
        measured = [{**asdict(one), **({"per_s": one.per_s} if isinstance(one, Deleted) else {})} for one in found]
        print(json.dumps({"found": measured, "goals": [{**asdict(goal), "met": goal.met} for goal in goals]}, indent=1))
    else:
        print(table(found, goals))
    return 0 if all(goal.met for goal in goals) else 1


def main() -> int:
    """Exit code 0: all goals met; 1: not all, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["online", "find"])
    parser.add_argument("--users", type=int, help="how many (default: 5,000 online, 50,000 to find)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at default pace, about, and before it")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    asked = parser.parse_args()
    # Told to end, it ends all that it has started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return asyncio.run(bench(asked))
    except (BenchError, HubGuardError) as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Ended; nothing is left running.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
