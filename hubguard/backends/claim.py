"""What a hub passes to a server in its environment, and what that proves."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from hubguard.hub.http import LONGEST_QUOTE, printable
from hubguard.model import Key


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose API a server has to speak to, and which server it is. ``api_url`` has no trailing slash; "" for none.

    ``port`` is where it has to listen; None: unknown. ``service``: this is the environment of a service, which a hub
    makes as it makes a server's (6.1), with the account that the service runs as for the user.
    """

    user: str
    server: str
    api_url: str
    port: int | None = None
    service: bool = False

    @property
    def key(self) -> Key:
        """(user, name) of the server."""
        return (self.user, self.server)

    def proof(self, api_url: str) -> str:
        """One clause on why it is the hub's with that API URL; "" if it isn't."""
        return f"its environment has this hub's API URL, {api_url}" if self.api_url == api_url else ""

    @property
    def whose(self) -> str:
        """One clause on which hub it is of, for one that isn't proved to be this hub's."""
        return f"its hub's API URL is {printable(self.api_url)[:LONGEST_QUOTE] or 'not set'}"


def claim_from(environ: Mapping[str, str]) -> Claim | None:
    """What a hub passed to the server with this environment; None if it names no user."""
    user = environ.get("JUPYTERHUB_USER")
    if not user:
        return None
    port = None
    with contextlib.suppress(ValueError):
        port = urlsplit(environ.get("JUPYTERHUB_SERVICE_URL", "")).port
    return Claim(
        user=user,
        server=environ.get("JUPYTERHUB_SERVER_NAME", ""),
        api_url=environ.get("JUPYTERHUB_API_URL", "").rstrip("/"),
        port=port,
        service=bool(environ.get("JUPYTERHUB_SERVICE_NAME")),
    )
