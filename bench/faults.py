"""``python -m bench.faults``: how long each kind of drift is there until HubGuard suspects it, and until it is raised.

A real hub (SQLite, an external configurable-http-proxy, little servers) with HubGuard's service and its default settings,
which has been told to repair nothing. In each round every fault is made once, at a random moment between two looks; times
count from the fault until ``GET api/v1/drift``, asked five times a second, has it. What is raised has been seen in three
looks and for 15 s; an orphan that the hub's own spawner reports is raised a minute and a half later. A start counts as
stuck after ``pending_limit_s``, here 60 s: that is taken off. ``orm-dangling`` is made once, at the end: the database's rows
are counted through every ten minutes only.

Not among them: ``server-ghost``, which a stop that changed nothing makes of a ``server-dead``, and ``activity-frozen``, which
is told from how long nobody's activity has advanced.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from hubguard import config
from hubguard.drift.model import DriftKind
from hubguard.errors import HubGuardError
from hubguard.staging.hub import TestbedHub

ROUNDS = 3
ASK_EVERY_S = 0.2
PENDING_LIMIT_S = 60.0
PATIENCE_S = 240.0
COUNTED_S = 900.0
SETTINGS = config.load(environ={}).drift

# The hub's own polls and checks are off: they would mend what is to be found.
CONFIG = f"""
import os
from hubguard.inhub import register
register(c)
c.HubGuard.armed = True
c.HubGuard.hub_db_url = "sqlite:///" + os.path.abspath("jupyterhub.sqlite")
c.HubGuardCull.idle_timeout_s = 0.0
c.HubGuardCull.pending_limit_s = {PENDING_LIMIT_S}
c.HubGuardDrift.repair = []
c.Spawner.poll_interval = 3600
c.Spawner.start_timeout = 3600
c.JupyterHub.last_activity_interval = 0
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0.5}}
c.JupyterHub.services.append({{"name": "other", "url": "http://127.0.0.1:9"}})
"""


@dataclass(frozen=True)
class Found:
    """One fault that was found. Seconds from the fault until it was first suspected, and until it was raised."""

    kind: str
    suspected_s: float
    raised_s: float


@dataclass
class Fault:
    """One that was made at ``at_s``, about that user (None: nobody's)."""

    kind: DriftKind
    user: str | None
    at_s: float = 0.0
    suspected_s: float | None = None
    raised_s: float | None = None


class World:
    """A guarded hub, and the faults that are made there."""

    def __init__(self, hub: TestbedHub, session: aiohttp.ClientSession) -> None:
        self.hub = hub
        self._session = session
        self._starting: list[asyncio.Task[Any]] = []

    async def proxy(self, method: str, path: str, route: dict[str, Any] | None = None) -> None:
        """Change the proxy's table past the hub."""
        headers = {"Authorization": f"token {self.hub.proxy_token}"}
        url = f"{self.hub.proxy_api_url}/api/routes{self.hub.hub_prefix}{path}"
        async with self._session.request(method, url, json=route, headers=headers) as answer:
            if answer.status not in (201, 204):
                raise HubGuardError(f"The proxy answered {answer.status} to {method} {path}.")

    async def drift(self) -> list[dict[str, Any]]:
        """All drift that HubGuard reports now; [] while it doesn't answer, or hasn't looked yet."""
        url = f"{self.hub.url}services/hubguard/api/v1/drift"
        headers = {"Authorization": f"token {self.hub.token}"}
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
            async with self._session.get(url, params={"limit": "200"}, headers=headers) as answer:
                if answer.status == 200:
                    found = await answer.json()
                    return list(found["items"] if isinstance(found, dict) else found)
        return []

    async def make_faults(self, number: int) -> list[Fault]:
        """Every fault once, about users of this round, each as soon as the last is made."""
        hub = self.hub
        users = {kind: f"{kind.value}-{number}" for kind in DriftKind}
        for kind in (DriftKind.ROUTE_MISSING, DriftKind.ROUTE_WRONG_TARGET, DriftKind.SERVER_DEAD):
            await hub.start_server(users[kind])
        await hub.start_server(users[DriftKind.SERVER_ORPHAN], on_stop="raises")
        await hub.api("POST", f"users/{users[DriftKind.PENDING_STUCK]}")
        # What has just started may still be read as it was; and the fault is to come at any moment between two looks.
        await asyncio.sleep(random.uniform(5.0, 5.0 + SETTINGS.every_s))
        wrong = {"target": "http://127.0.0.1:9", "jupyterhub": True, "server_name": ""}
        of_wrong, of_stale = users[DriftKind.ROUTE_WRONG_TARGET], users[DriftKind.ROUTE_STALE]
        makers: dict[DriftKind, Callable[[], Awaitable[object]]] = {
            DriftKind.ROUTE_MISSING: lambda: self.proxy("DELETE", f"user/{users[DriftKind.ROUTE_MISSING]}"),
            DriftKind.ROUTE_WRONG_TARGET: lambda: self.proxy("POST", f"user/{of_wrong}", {**wrong, "user": of_wrong}),
            DriftKind.ROUTE_STALE: lambda: self.proxy("POST", f"user/{of_stale}", {**wrong, "user": of_stale}),
            DriftKind.SERVICE_ROUTE_MISSING: lambda: self.proxy("DELETE", "services/other"),
            DriftKind.HUB_ROUTE_MISSING: lambda: self.proxy("DELETE", ""),
            DriftKind.SERVER_DEAD: lambda: hub.kill_server(users[DriftKind.SERVER_DEAD]),
            DriftKind.SERVER_ORPHAN: lambda: hub.api("DELETE", f"users/{users[DriftKind.SERVER_ORPHAN]}/server"),
            DriftKind.PENDING_STUCK: lambda: self._start_for_ever(users[DriftKind.PENDING_STUCK]),
        }
        shared = {DriftKind.SERVICE_ROUTE_MISSING, DriftKind.HUB_ROUTE_MISSING}
        faults = []
        for kind, make in makers.items():
            await make()
            at_s = time.monotonic() + (PENDING_LIMIT_S if kind is DriftKind.PENDING_STUCK else 0.0)
            faults.append(Fault(kind, None if kind in shared else users[kind], at_s))
        return faults

    async def expire_a_token(self) -> Fault:
        """A row that is of no use any more. The hub's database is counted through every ten minutes only."""
        await asyncio.to_thread(self._expire_a_token)
        return Fault(DriftKind.ORM_DANGLING, None, time.monotonic())

    async def find(self, faults: Sequence[Fault], within_s: float = PENDING_LIMIT_S + PATIENCE_S) -> None:
        """Returns when all are raised. Raises HubGuardError, naming those that aren't in time."""
        until_s = time.monotonic() + within_s
        while waiting := [fault for fault in faults if fault.raised_s is None]:
            seen = await self.drift()
            now_s = time.monotonic()
            for fault in waiting:
                row = next((row for row in seen if (row["kind"], row["user"]) == (fault.kind.value, fault.user)), None)
                if row is None:
                    continue
                # Half of a pending start's limit is over when it is first spoken of.
                fault.suspected_s = fault.suspected_s or max(0.0, now_s - fault.at_s) or ASK_EVERY_S
                if row["raised_at"] is not None:
                    fault.raised_s = max(0.0, now_s - fault.at_s)
            if now_s > until_s:
                names = ", ".join(fault.kind.value for fault in waiting)
                raise HubGuardError(f"HubGuard hasn't found within {within_s:g} s: {names}. See {self.hub.log_file}.")
            await asyncio.sleep(ASK_EVERY_S)

    async def mend(self, number: int) -> None:
        """What the next round needs is as it should be; its people are others."""
        await self.hub.api("DELETE", f"users/{DriftKind.PENDING_STUCK.value}-{number}/server")
        await self.hub.api("POST", "proxy")
        shared = {DriftKind.SERVICE_ROUTE_MISSING, DriftKind.HUB_ROUTE_MISSING}

        async def over() -> bool:
            return not {row["kind"] for row in await self.drift()} & {kind.value for kind in shared}

        await self.hub.wait_for(over, "what the hub mended to be found mended", PATIENCE_S)
        await asyncio.gather(*self._starting, return_exceptions=True)

    async def _start_for_ever(self, user: str) -> None:
        self._starting.append(
            asyncio.ensure_future(self.hub.api("POST", f"users/{user}/server", json={"start_s": 3000}))
        )
        await asyncio.sleep(0.5)

    def _expire_a_token(self) -> None:
        with contextlib.closing(sqlite3.connect(self.hub.folder / "jupyterhub.sqlite", timeout=10)) as database:
            database.execute(
                "INSERT INTO api_tokens (client_id, user_id, hashed, prefix, created, expires_at, note, scopes)"
                " SELECT 'jupyterhub', id, 'bench', 'bench', created, '2020-01-01 00:00:00', 'bench', '[]'"
                " FROM users WHERE name = 'admin'"
            )
            database.commit()


def told(fault: Fault) -> Found:
    """One that was raised."""
    assert fault.raised_s is not None
    return Found(fault.kind.value, fault.suspected_s or 0.0, fault.raised_s)


async def bench(arguments: argparse.Namespace) -> int:
    """Exit code 0: all was found."""
    found: list[Found] = []
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        TestbedHub(config=CONFIG, external_proxy=True, hub_prefix="/hubs/") as hub,
    ):
        world = World(hub, session)
        for number in range(arguments.rounds):
            faults = await world.make_faults(number)
            await world.find(faults)
            found += [told(fault) for fault in faults]
            await world.mend(number)
        expired = await world.expire_a_token()
        await world.find([expired], COUNTED_S)
        found.append(told(expired))
    print(table(found), file=sys.stderr)
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    return 0


def table(found: Sequence[Found]) -> str:
    """As Markdown: a line for each kind, in the order of the kinds, with median and worst."""
    lines = ["| kind | times | suspected s | raised s | worst s |", "| --- | --- | --- | --- | --- |"]
    for kind in dict.fromkeys(one.kind for one in found):
        of_kind = [one for one in found if one.kind == kind]
        suspected = statistics.median(one.suspected_s for one in of_kind)
        raised = [one.raised_s for one in of_kind]
        lines.append(
            f"| {kind} | {len(of_kind)} | {suspected:.1f} | {statistics.median(raised):.1f} | {max(raised):.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit code 0: all was found; 1: it wasn't, or it couldn't be run to its end."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each fault is made")
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON")
    try:
        return asyncio.run(bench(parser.parse_args()))
    except HubGuardError as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Ended; nothing is left running.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
