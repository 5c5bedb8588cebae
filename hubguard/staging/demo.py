"""``hubguard demo``: a real hub with a few dozen little servers and HubGuard at work on it, to be watched or checked."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import aiohttp

from hubguard.errors import HubGuardError
from hubguard.staging.hub import TestbedHub
from hubguard.staging.population import Population, SeededServer, SeededUser

IDLE = tuple(f"idle-{i:02}" for i in range(1, 25))
WORKING = tuple(f"working-{i:02}" for i in range(1, 9))
STUCK = "stuck"
NAMED = ("nadia", "experiment")

CHECK_S = 90.0
# Seconds of idleness, requests per second: long enough to log in and watch, and short for a check.
WATCHED = (60.0, 3.0)
CHECKED = (20.0, 8.0)

CONFIG = """
c.JupyterHub.last_activity_interval = 2
c.HubGuard.armed = True
c.HubGuardCull.idle_timeout_s = {idle_timeout_s}
c.HubGuardCull.every_s = 3
c.HubGuardBudget.rate = {rate}
c.HubGuardBudget.burst = 3
c.HubGuardBudget.concurrency = 3

from hubguard.inhub import register
register(c)
"""


def population() -> Population:
    """The demo's people: idle ones, working ones, one whose server can't be stopped, one with a named server too."""
    servers = [SeededServer(user, shared=False) for user in (*IDLE, *WORKING, NAMED[0])]
    servers.append(SeededServer(STUCK, shared=False, on_stop="poll-raises"))
    servers.append(SeededServer(*NAMED, shared=False))
    users = [SeededUser(user, groups=("idle",)) for user in IDLE] + [
        SeededUser(user, groups=("busy",)) for user in WORKING
    ]
    return Population(tuple(users), tuple(servers))


async def run_demo(check: bool) -> int:
    """Run the demo until Ctrl-C; with ``check``, until it has been seen to work. 0, or 1 where something isn't right.

    Nothing is left running, however it ends.
    """
    demo = asyncio.ensure_future(_checked() if check else _watched())
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


def _hub(idle_timeout_s: float, rate: float) -> TestbedHub:
    people = population()
    print(f"Starting a hub for {len(people.servers)} little servers; this takes some seconds …", flush=True)
    return TestbedHub(population=people, config=CONFIG.format(idle_timeout_s=idle_timeout_s, rate=rate))


async def _watched() -> int:
    idle_timeout_s, rate = WATCHED
    async with _hub(idle_timeout_s, rate) as hub:
        working = asyncio.ensure_future(_work(hub))
        try:
            await hub.wait_for(_serves(hub), "HubGuard to answer")
            print(
                f"HubGuard:  {hub.url}services/hubguard/\n"
                f"The hub:   {hub.url}hub/admin\n"
                f"Log in as  {hub.admin}  with password  {hub.password}\n\n"
                f"{len(IDLE)} servers are idle, and stopped one by one once they have been so for {idle_timeout_s:.0f} s. "
                f"{len(WORKING) + 1} are at work and stay. The one of {STUCK} can't be stopped: the hub answers 500. "
                f"{NAMED[0]} has an idle named server, too.\nCtrl-C ends everything.",
                flush=True,
            )
            await working  # until Ctrl-C
        finally:
            working.cancel()
    return 0


async def _checked() -> int:
    async with _hub(*CHECKED) as hub:
        working = asyncio.ensure_future(_work(hub))
        try:
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
            async with aiohttp.ClientSession() as session, session.get(f"{hub.url}services/hubguard/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    return serves


class Check:
    """Looks at a running demo from outside, as a person would, and prints what it sees."""

    def __init__(self, hub: TestbedHub) -> None:
        self.hub = hub
        self.fine = True

    def saw(self, right: bool, what: str) -> None:
        """Print one line: what was seen, and whether that is how it should be."""
        self.fine &= right
        print(f"  {'ok    ' if right else 'WRONG '} {what}", flush=True)

    async def everything(self) -> bool:
        """All checks, one after the other; True where all is as it should be."""
        stopped = {(user, "") for user in IDLE} | {NAMED}
        await self._wait_until_gone(stopped)
        await self._left(stopped)
        await self._api()
        await self._journal(stopped)
        await self._drift()
        await self._pages()
        print("All is as it should be." if self.fine else "Something isn't as it should be; see above.", flush=True)
        return self.fine

    async def _wait_until_gone(self, expected: set[tuple[str, str]]) -> None:
        began, left, shown = time.monotonic(), expected, -1
        while left and time.monotonic() - began < CHECK_S:
            left = expected & set(await self.hub.servers())
            if len(left) != shown:
                shown = len(left)
                print(f"  {time.monotonic() - began:5.1f} s  {shown} idle servers left", flush=True)
            await asyncio.sleep(0.5)
        self.saw(
            not left,
            f"{len(expected) - len(left)} of {len(expected)} idle servers were stopped, a named one among them",
        )

    async def _left(self, stopped: set[tuple[str, str]]) -> None:
        # Working servers are looked at again a while after the last idle one: they, too, are older than the timeout now.
        await asyncio.sleep(5.0)
        servers = await self.hub.servers()
        working = {(user, "") for user in (*WORKING, NAMED[0])}
        ready = {key for key, server in servers.items() if server["ready"]}
        self.saw(working <= ready, f"{len(working & ready)} of {len(working)} working servers were left alone")
        self.saw((STUCK, "") in ready, f"the server of {STUCK}, which can't be stopped, is still there")
        running = stopped & set(servers)
        self.saw(not running, f"{len(stopped - running)} of {len(stopped)} idle ones are stopped, and have stayed so")

    async def _get(self, path: str) -> Any:
        headers = {
            "Authorization": f"token {self.hub.token}",
            "Accept": "application/jupyterhub-pagination+json, application/json",
        }
        url = f"{self.hub.url}services/hubguard/{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                self.saw(False, f"/services/hubguard/{path} answered {answer.status}: {(await answer.text())[:200]}")
                return None
            return await answer.json()

    async def _api(self) -> None:
        status = await self._get("api/v1/status")
        if status is not None:
            self.saw(status["mode"] == "acting", f"the API says that HubGuard is {status['mode']}: {status['why']}")
        shown = await self._get("api/v1/servers")
        if shown is not None:
            names = _server_names(_items(shown))
            expected = {*WORKING, NAMED[0], STUCK}
            self.saw(
                names == expected, f"the API lists {len(names)} servers, {len(names & expected)} of which it should"
            )

    async def _journal(self, stopped: set[tuple[str, str]]) -> None:
        answer = await self._get("api/v1/journal?limit=1000")
        if answer is None:
            return
        entries = _items(answer)
        intents = [entry for entry in entries if entry["event"] == "intent"]
        outcomes = [entry for entry in entries if entry["event"] == "outcome"]
        done = {(entry["user"], entry["server"] or "") for entry in outcomes if entry["outcome"] == "done"}
        self.saw(stopped <= done, f"the journal has {len(done & stopped)} verified stops")
        tried = {(entry["user"], entry["server"] or "") for entry in intents}
        self.saw(
            tried <= stopped | {(STUCK, "")}, f"it has no attempt to stop a working server, in {len(intents)} intents"
        )
        failed = [entry for entry in outcomes if entry["user"] == STUCK]
        self.saw(
            bool(failed) and all(entry["outcome"] != "done" for entry in failed),
            f"it has {len(failed)} stops of {STUCK}'s server, none of which worked",
        )
        answered = {entry["refers_to"] for entry in outcomes}
        self.saw(all(entry["id"] in answered for entry in intents), "every intent in it has an outcome")

    async def _drift(self) -> None:
        shown = await self._get("api/v1/drift?state=raised")
        if shown is not None:
            kinds = ", ".join(sorted({str(drift["kind"]) for drift in _items(shown)})) or "no drift"
            self.saw(not _items(shown), f"hub, proxy and backends agree: HubGuard has raised {kinds}")

    async def _pages(self) -> None:
        async with aiohttp.ClientSession() as session:
            await self.hub.login(session)
            for page, words in (("", "HubGuard"), ("servers", WORKING[0]), ("drift", "agree"), ("journal", IDLE[0])):
                async with session.get(f"{self.hub.url}services/hubguard/{page}") as answer:
                    text = await answer.text()
                    self.saw(
                        answer.status == 200 and words in text,
                        f"the page /services/hubguard/{page} answered {answer.status} and "
                        f"{'shows' if words in text else 'lacks'} {quote(words)}",
                    )


def _items(answer: Any) -> list[dict[str, Any]]:
    return list(answer["items"]) if isinstance(answer, dict) else list(answer)


def _server_names(shown: Iterable[dict[str, Any]]) -> set[str]:
    return {str(server.get("user") or server["server"]["user"]) for server in shown}
