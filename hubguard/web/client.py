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

CONNECT_S = 10.0
"""It listens on this machine, or near it: what takes longer to be reached is gone."""

ANSWER_S = 300.0
"""The longest that a look at all sources may take; all else it tells from memory."""


class Refused(HubGuardError):
    """The guard was asked and said no, in its own words. ``status`` is the HTTP status, from 400 to 499."""

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
        """The JSON of its answer, whichever success that was.

        Raises Refused where it says no, HubGuardError for any other answer and for none within ``within_s`` seconds.
        """
        return await self._answer(method, path, body, within_s, lambda response: response.json(content_type=None))

    async def read(self, path: str, *, within_s: float = ANSWER_S) -> str:
        """The text of its answer to GET, such as a table's. Raises as :meth:`ask` does."""
        told: str = await self._answer("GET", path, None, within_s, lambda response: response.text())
        return told

    async def _answer(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        within_s: float,
        parse: Callable[[aiohttp.ClientResponse], Awaitable[Any]],
    ) -> Any:
        guard = f"the guard that holds the lease ({self._lease.holder})"
        if not self._lease.address:
            raise HubGuardError(
                f"Another command is at work: {guard} has no address to ask. Try again when it is done."
            )
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
            failed = f"gave no answer that makes sense at {url} ({type(error).__name__}){doubt}"
        # Raised out here: aiohttp's errors carry the request, and with it the token.
        raise HubGuardError(f"{guard[0].upper()}{guard[1:]} {failed}")


def running_lease(url: str) -> Lease | None:
    """The lease in the journal at ``url``, None where nobody holds it now. Raises JournalError."""
    journal = open_journal(url)
    try:
        lease = journal.lease(HUB)
    finally:
        journal.close()
    return lease if lease is not None and lease.holder and lease.expires_at > SystemClock().now() else None


def running_guard(url: str, token: str, *, instead: str) -> RunningGuard:
    """The guard that runs, by the journal at ``url``.

    Raises HubGuardError where none does; ``instead`` ends its sentence, and says why that is needed or what else to do.
    """
    lease = running_lease(url)
    if lease is None:
        raise HubGuardError(f"No guard runs for this hub, {instead}")
    return RunningGuard(lease, token)
