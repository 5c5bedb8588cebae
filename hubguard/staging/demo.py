"""``hubguard demo``: a real hub with some of everything that goes wrong, and HubGuard at work, to be watched or checked."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from typing import Any

import aiohttp

from hubguard.errors import HubGuardError
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import DAY_S, Population, SeededServer, SeededUser

IDLE = tuple(f"idle-{i:02}" for i in range(1, 25))
WORKING = tuple(f"working-{i:02}" for i in range(1, 9))
STUCK = "stuck"  # can't be stopped
NAMED = ("nadia", "experiment")
KEPT = "exam-01"  # idle, and kept by an exemption
DEAD = "dora"  # the server's process is killed; a rule gives her server longer than the others
ORPHAN = "olga"  # the process survives its stop
STALE = tuple(f"left-{i:02}" for i in range(1, 13))
PROTECTED = {"scripted": "a token of theirs is in use", "teacher": "the group staff is protected"}

# Seconds of idleness, requests per second: long enough to log in and watch, and short for a check.
WATCHED = (60.0, 3.0)
CHECKED = (20.0, 8.0)

WIPE_FIRST_S = 120.0
WIPE_AGAIN_S = 240.0
"""Seconds until the proxy loses its table for the first time, and between the times after that."""

CONFIG = """
# So that what HubGuard repairs isn't repaired by the hub first.
c.JupyterHub.last_activity_interval = 10
c.Spawner.poll_interval = 3600
c.HubGuard.armed = True
# The demo's own service, which may stop servers and isn't a culler.
c.HubGuard.act_beside = ["tester"]
c.HubGuard.hub_db_url = "hub"
c.HubGuardCull.idle_timeout_s = {idle_timeout_s}
c.HubGuardCull.rules = [{{"name": "long experiments", "users": "dora", "idle_timeout_s": 86400}}]
c.HubGuardCull.every_s = 3
c.HubGuardDrift.backend = "process"
c.HubGuardDrift.every_s = 5
c.HubGuardPrune.delete_users = True
c.HubGuardPrune.protected_groups = ["staff"]
c.HubGuardBudget.rate = {rate}
c.HubGuardBudget.burst = 3
c.HubGuardBudget.concurrency = 3

from hubguard.inhub import register
register(c)
"""


def population() -> Population:
    """The demo's people: a server for each kind of trouble, and users who left long ago."""
    servers = [SeededServer(user, shared=False) for user in (*IDLE, *WORKING, NAMED[0], KEPT, DEAD)]
    servers.append(SeededServer(STUCK, shared=False, on_stop="poll-raises"))
    servers.append(SeededServer(ORPHAN, shared=False, on_stop="raises"))
    servers.append(SeededServer(*NAMED, shared=False))
    users = [SeededUser(user, groups=("idle",)) for user in IDLE]
    users += [SeededUser(user, groups=("busy",)) for user in WORKING]
    gone = [SeededUser(user, groups=("class-2025",)) for user in STALE]
    gone.append(SeededUser("scripted", tokens=1, token_used_s=DAY_S))
    gone.append(SeededUser("teacher", groups=("staff",)))
    users += [replace(user, idle_for_s=400 * DAY_S, created_s=700 * DAY_S) for user in gone]
    return Population(tuple(users), tuple(servers))


async def run_demo(check: bool, port: int | None = None) -> int:
    """Run the demo until Ctrl-C; with ``check``, until it has been seen to work. 0, or 1 where something isn't right.

    ``port`` is where the hub's pages are to be; None: a free port. The other ports are free ones, too.
    Nothing is left running, however it ends.
    """
    demo = asyncio.ensure_future(_checked(port) if check else _watched(port))
    asked_to_end = False

    def end() -> None:
        # Once only: a second Ctrl-C must not interrupt the cleaning up.
        nonlocal asked_to_end
        if not asked_to_end:
            asked_to_end = True
            print("\nEnding everything …", flush=True)
            demo.cancel()

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(sig, end)
    try:
        return await demo
    except asyncio.CancelledError:
        print("Nothing is left running.")
        return 1 if check else 0
    except HubGuardError as error:
        print(f"The demo failed. {error}")
        return 1
    finally:
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(sig)


def _hub(idle_timeout_s: float, rate: float, port: int | None) -> TestbedHub:
    people = population()
    print(f"Starting a hub for {len(people.servers)} little servers; this takes some seconds …", flush=True)
    config = CONFIG.format(idle_timeout_s=idle_timeout_s, rate=rate)
    return TestbedHub(population=people, config=config, external_proxy=True, port=port)


async def _watched(port: int | None) -> int:
    idle_timeout_s, rate = WATCHED
    async with _hub(idle_timeout_s, rate, port) as hub:
        await break_things(hub)
        print(tour(hub, idle_timeout_s), flush=True)
        await asyncio.gather(_work(hub), _wipe_again_and_again(hub))  # until Ctrl-C
    return 0


def tour(hub: TestbedHub, idle_timeout_s: float) -> str:
    """Where to look, and for what."""
    first, again = f"{WIPE_FIRST_S / 60:.0f} minutes", f"{WIPE_AGAIN_S / 60:.0f} minutes"
    kept, after = " and ".join(PROTECTED), f"{idle_timeout_s:.0f} s"
    lines = [
        "",
        f"HubGuard:  {hub.url}services/hubguard/",
        f"The hub:   {hub.url}hub/admin",
        f"Log in as  {hub.admin}  with password  {hub.password}",
        "",
        f"  Servers   {len(IDLE)} are idle, and stopped one by one after {after}. Those that are in use stay.",
        f"            {STUCK}'s can't be stopped: the hub answers 500. {KEPT}'s is kept for an exam by an exemption.",
        f"  Drift     {DEAD}'s process was killed, and the hub doesn't know: select that difference, and repair it.",
        f"            {ORPHAN}'s will survive its stop: an orphan. Both stay until you repair them.",
        f"  Overview  In {first} the proxy loses its table, and every {again} after that. HubGuard has the hub fill it",
        "            within seconds. A line here says when.",
        f"  Users     {len(STALE)} users left over a year ago. Make a plan, and apply it. Its undo file brings them back.",
        f"            {kept} left, too, and are kept.",
        "",
        "Ctrl-C ends everything.",
    ]
    return "\n".join(lines)


async def break_things(hub: TestbedHub) -> None:
    """Once HubGuard answers: keep one server by an exemption, and kill the process of another."""
    await hub.wait_for(_serves(hub), "HubGuard to answer")
    body = {"user": KEPT, "server": "", "for_s": 3600.0, "why": "an exam"}
    headers = {"Authorization": f"token {hub.token}"}

    async def kept() -> bool:
        url = f"{hub.url}services/hubguard/api/v1/exemptions"
        async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=body) as answer:
            return answer.status < 300

    await hub.wait_for(kept, "HubGuard to take an exemption")
    await hub.kill_server(DEAD)


async def _wipe_again_and_again(hub: TestbedHub) -> None:
    wait_s = WIPE_FIRST_S
    while True:
        await asyncio.sleep(wait_s)
        took_s = await wipe(hub)
        print(
            f"{time.strftime('%H:%M:%S')}  The proxy was killed and started with an empty table. {took_s:.1f} s later every"
            " server had its route again.",
            flush=True,
        )
        wait_s = WIPE_AGAIN_S


async def wipe(hub: TestbedHub) -> float:
    """Kill the proxy and start it, so that it knows no server; the seconds until it knew all of them again."""
    await hub.kill_proxy()
    await hub.start_proxy()
    began = time.monotonic()

    async def filled() -> bool:
        headers = {"Authorization": f"token {hub.proxy_token}"}
        try:
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.get(f"{hub.proxy_api_url}/api/routes") as answer,
            ):
                there = {path.rstrip("/") for path in await answer.json()}
        except aiohttp.ClientError:
            return False
        return {f"/user/{user}" + (f"/{name}" if name else "") for user, name in await hub.servers()} <= there

    await hub.wait_for(filled, "the proxy to have its routes again")
    return time.monotonic() - began


async def _checked(port: int | None) -> int:
    from hubguard.staging.demo_check import Check

    async with _hub(*CHECKED, port) as hub:
        working = asyncio.ensure_future(_work(hub))
        try:
            await break_things(hub)
            return 0 if await Check(hub).everything() else 1
        finally:
            working.cancel()


async def _work(hub: TestbedHub) -> None:
    """What the people at work do: a small request each, through the proxy, every two seconds."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while True:
            for user in (*WORKING, NAMED[0]):
                try:
                    async with session.get(f"{hub.url}user/{user}/api/status") as answer:
                        await answer.read()
                except (aiohttp.ClientError, asyncio.TimeoutError):
                    pass  # stopped by hand, perhaps; the hub's pages tell
            await asyncio.sleep(2.0)


def _serves(hub: TestbedHub) -> Any:
    async def serves() -> bool:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{hub.url}services/hubguard/health/live") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    return serves
