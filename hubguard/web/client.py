"""The guard that runs, as commands ask it: found by the lease in the journal, and asked through its API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from yarl import URL

from hubguard.act.lease import HUB
from hubguard.errors import HubGuardError
from hubguard.journal.model import Lease
from hubguard.journal.store import open_journal
from hubguard.pacing.clock import SystemClock
from hubguard.status import Mode

CONNECT_S = 10.0
"""Maximum seconds to reach it. It listens on this machine or near it."""

ANSWER_S = 300.0
"""Maximum seconds for an answer. A look at all sources takes long; all else is answered from memory."""

PAGE = 1000
"""Rows of a list read at a time."""


class Refused(HubGuardError):
    """The guard refused a request, in its own words. ``status`` is the HTTP status, from 400 to 499."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RunningGuard:
    """The guard that holds ``lease``. ``token`` is that of whoever runs the command."""

    def __init__(self, lease: Lease, token: str) -> None:
        self._lease = lease
        self._token = token

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, within_s: float = ANSWER_S
    ) -> Any:
        """The JSON of its answer.

        Raises Refused if it refuses, HubGuardError for any other error and if there is no answer within ``within_s`` seconds.
        """
        return await self._answer(method, path, body, within_s, lambda response: response.json(content_type=None))

    async def read(self, path: str, *, within_s: float = ANSWER_S) -> str:
        """The text of its answer to GET, such as a table's. Raises as :meth:`ask` does."""
        text: str = await self._answer("GET", path, None, within_s, lambda response: response.text())
        return text

    async def held_or_braked(self) -> bool:
        """Whether acting is on hold, or HubGuard is braked. Raises as :meth:`ask` does."""
        return (await self.ask("GET", "api/v1/status"))["mode"] in {Mode.HELD.value, Mode.BRAKED.value}

    async def _answer(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        within_s: float,
        parse: Callable[[aiohttp.ClientResponse], Awaitable[Any]],
    ) -> Any:
        guard = f"the guard in charge ({self._lease.holder})"
        if not self._lease.address:
            raise HubGuardError(f"Another command is running: {guard} has no address. Try again when it has ended.")
        # Encoded by us: a name may hold what looks like a part of the address.
        url = URL(self._lease.address + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=within_s, connect=CONNECT_S)
        headers = {"Authorization": f"token {self._token}"}
        # Until it is known to have said no, or not to have been reached, it may have done what it was asked.
        doubt = "" if method == "GET" else ". It may have done it; see the journal"
        failed = ""
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(method, url, json=body, allow_redirects=False) as response,
            ):
                if 200 <= response.status < 300:
                    return await parse(response)
                answer = await response.json(content_type=None)
                said = answer.get("message", "") if isinstance(answer, dict) else ""
                if said and 400 <= response.status < 500:
                    raise Refused(str(said), response.status)
                failed = f"answered {response.status} at {url}{said and f': {said}'}{doubt}"
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            ends = f"If it is gone, its lease ends at {self._lease.expires_at:%H:%M:%S} UTC"
            failed = f"doesn't answer at {url} ({type(error).__name__}), so nothing was done. {ends}"
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            failed = f"gave no usable answer at {url} ({type(error).__name__}){doubt}"
        # Raised out here: aiohttp's errors carry the request, and with it the token.
        raise HubGuardError(f"{guard[0].upper()}{guard[1:]} {failed}")


async def all_rows(guard: RunningGuard, path: str) -> list[dict[str, Any]]:
    """All rows of a list, whose ``path`` may have a query, in the guard's order. Raises as :meth:`RunningGuard.ask` does."""
    rows: list[dict[str, Any]] = []
    while True:
        page = await guard.ask("GET", f"{path}{'&' if '?' in path else '?'}offset={len(rows)}&limit={PAGE}")
        rows += page
        if len(page) < PAGE:
            return rows


def running_lease(url: str) -> Lease | None:
    """The lease in the journal at ``url``, None if nobody holds it now. Raises JournalError."""
    journal = open_journal(url)
    try:
        lease = journal.lease(HUB)
    finally:
        journal.close()
    return lease if lease is not None and lease.holder and lease.expires_at > SystemClock().now() else None


def running_guard(url: str, token: str, *, instead: str) -> RunningGuard:
    """The guard that runs, by the journal at ``url``.

    Raises HubGuardError if there is none; ``instead`` is the sentence that says why one is needed, or what else to do.
    """
    lease = running_lease(url)
    if lease is None:
        raise HubGuardError(f"No guard is running for this hub. {instead}")
    return RunningGuard(lease, token)
