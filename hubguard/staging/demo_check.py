"""Looks at a running demo from outside, as a person would, and says whether all is as it should be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import aiohttp

from hubguard.errors import HubGuardError
from hubguard.staging.demo import DEAD, IDLE, KEPT, NAMED, ORPHAN, PROTECTED, STALE, STUCK, WORKING, wipe
from hubguard.staging.hub import TestbedHub

CHECK_S = 90.0
"""Maximum seconds for each thing that the check waits for."""


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
        stopped = {(user, "") for user in (*IDLE, ORPHAN)} | {NAMED}
        await self._wait_until_gone(stopped)
        await self._left(stopped)
        await self._api()
        await self._journal(stopped)
        await self._drift()
        await self._proxy()
        await self._prune()
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
        self.saw((KEPT, "") in ready, f"the server of {KEPT}, which is kept by an exemption, was left alone")
        running = stopped & set(servers)
        self.saw(not running, f"{len(stopped - running)} of {len(stopped)} idle ones are stopped, and have stayed so")

    async def _get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What HubGuard answers; with a ``body``, to a POST. None, and a line, if it doesn't answer well."""
        headers = {
            "Authorization": f"token {self.hub.token}",
            "Accept": "application/jupyterhub-pagination+json, application/json",
        }
        url = f"{self.hub.url}services/hubguard/{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                "GET" if body is None else "POST", url, json=body, headers=headers, allow_redirects=False
            ) as answer,
        ):
            if answer.status >= 300:
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
            expected = {*WORKING, NAMED[0], STUCK, KEPT, DEAD}
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

    async def _raised(self) -> list[dict[str, Any]]:
        return _items(await self._get("api/v1/drift?state=raised") or [])

    async def _drift(self) -> None:
        expected = {("server-dead", DEAD), ("server-orphan", ORPHAN)}

        async def both() -> bool:
            return {(one["kind"], one["user"]) for one in await self._raised()} == expected

        await self._wait(both, f"HubGuard shows {DEAD}'s server as dead and {ORPHAN}'s as an orphan, and nothing else")
        await asyncio.sleep(10.0)
        self.saw(await both(), "both are still there two looks later, since nobody has asked for a repair")
        plan = await self._get("api/v1/repairs", {"kinds": ["server-dead", "server-orphan"]})
        if plan is not None:
            body = {"digest": plan["digest"], "count": len(plan["repairs"]), "why": "the check"}
            await self._get("api/v1/repairs", body)

        async def none() -> bool:
            return not await self._raised()

        await self._wait(none, "both are repaired once somebody asks for it")

    async def _proxy(self) -> None:
        took_s = await wipe(self.hub)
        entries = _items(await self._get("api/v1/journal?limit=50&event=intent") or [])
        asked = any(entry["action"] == "check-routes" for entry in entries)
        self.saw(asked, f"HubGuard had the table of a new proxy filled, within {took_s:.1f} s")

    async def _prune(self) -> None:
        plan = await self._get("api/v1/plans", {})
        if plan is None:
            return
        found = {deletion["user"] for deletion in plan["deletions"]}
        self.saw(found == set(STALE), f"a plan has {len(found)} stale users, and not {' or '.join(PROTECTED)}")
        body = {"count": len(found), "acknowledged": [one["name"] for one in plan["cautions"]]}
        await self._get(f"api/v1/plans/{plan['digest']}/apply", body)

        async def gone() -> bool:
            statuses = [(await self.hub.api("GET", f"users/{user}")).status for user in (*STALE, *PROTECTED)]
            return statuses == [404] * len(STALE) + [200] * len(PROTECTED)

        await self._wait(gone, "it deleted them, and nobody else")

    async def _wait(self, check: Any, what: str) -> None:
        try:
            await self.hub.wait_for(check, what, CHECK_S)
        except HubGuardError:
            self.saw(False, what)
        else:
            self.saw(True, what)

    async def _pages(self) -> None:
        async with aiohttp.ClientSession() as session:
            await self.hub.login(session)
            for page, words in (
                ("", "HubGuard"),
                ("servers", WORKING[0]),
                ("drift", DEAD),
                ("users", "stale"),
                ("journal", IDLE[0]),
            ):
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
