"""Reports from inside the hub to HubGuard's own service."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from hubguard.inhub.scopes import SERVICE

TELL_S = 2.0
"""Maximum seconds for HubGuard to take a report; nothing waits for that."""

TELLINGS_AT_ONCE = 4
"""Maximum reports on their way at a time. Others queue, and are dropped after TELL_S, too."""

log = logging.getLogger("hubguard.inhub")


class Teller:
    """Reports for one hub, and holds nobody up."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._client: SimpleAsyncHTTPClient | None = None
        self._tellings: set[asyncio.Future[None]] = set()

    def begin(self, path: str, report: Mapping[str, object]) -> None:
        """Begin to send ``report`` to that path of our API. One that can't be delivered is dropped."""
        telling = asyncio.ensure_future(self._tell(path, report))
        self._tellings.add(telling)  # the event loop itself doesn't keep it
        telling.add_done_callback(self._tellings.discard)

    async def _tell(self, path: str, report: Mapping[str, object]) -> None:
        try:
            page = self._app._service_map[SERVICE]
            request = HTTPRequest(
                f"{page.url.rstrip('/')}{page.prefix}{path}",
                method="POST",
                headers={"Authorization": f"token {page.api_token}", "Content-Type": "application/json"},
                body=json.dumps(report),
                connect_timeout=TELL_S,
                request_timeout=TELL_S,
                follow_redirects=False,
            )
            if self._client is None:
                # Its own: the hub's takes ten at a time of all that the hub asks of proxy and services.
                self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=TELLINGS_AT_ONCE)
            await self._client.fetch(request)
        except Exception as error:
            log.debug("HubGuard got no report for %s: %s", path, type(error).__name__)
