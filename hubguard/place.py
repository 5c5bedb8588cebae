"""Where this guard runs: the hub's URLs and token, as the environment has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hubguard.errors import ConfigError

DEFAULT_API_URL = "http://127.0.0.1:8081/hub/api"
"""The URL of a hub on this machine by default (JupyterHub's own)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this service runs, according to the hub that runs it or to its environment.

    ``url`` is where the proxy reaches this service, "" for a command that serves nothing. ``generation`` is the start time
    of the hub that runs it (unix, seconds), 0 for an external service; ``hub_pid`` is that hub's process, or None.
    ``base_url`` begins and ends with a slash. ``registration`` is what the include passed on.
    """

    api_url: str
    token: str = field(repr=False)
    url: str = ""
    base_url: str = "/"
    hub_host: str = ""
    generation: float = 0.0
    hub_pid: int | None = None
    registration: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def prefix(self) -> str:
        """The path of HubGuard's pages, with a slash at both ends."""
        return f"{self.base_url}services/hubguard/"

    @property
    def hub_prefix(self) -> str:
        """The path of the hub's own pages, with a slash at both ends."""
        return f"{self.base_url}hub/"


def place_from(environ: Mapping[str, str]) -> Place:
    """The place in the environment that JupyterHub gives its services. Raises ConfigError if the token is missing."""
    token = environ.get("JUPYTERHUB_API_TOKEN", "")
    if not token:
        raise ConfigError(
            "JUPYTERHUB_API_TOKEN",
            "is not set. Run HubGuard through the include, or set it to the token of a service with HubGuard's role.",
        )
    api_url = environ.get("JUPYTERHUB_API_URL") or DEFAULT_API_URL
    if urlsplit(api_url).scheme not in {"http", "https"} or not urlsplit(api_url).hostname:
        raise ConfigError("JUPYTERHUB_API_URL", f"{api_url!r} is no URL. Set it to one like {DEFAULT_API_URL}")
    try:
        registration = json.loads(environ.get("HUBGUARD_REGISTRATION") or "{}")
    except ValueError:
        registration = {"errors": [("HUBGUARD_REGISTRATION", "can't be read. It is set by HubGuard's include")]}
    return Place(
        api_url=api_url,
        token=token,
        base_url=environ.get("JUPYTERHUB_BASE_URL") or _base_url(api_url),
        hub_host=environ.get("JUPYTERHUB_HOST", ""),
        registration=registration if isinstance(registration, dict) else {},
    )


def _base_url(api_url: str) -> str:
    """The hub's base_url, from the URL of its API: for an external service, which doesn't get it."""
    path = urlsplit(api_url).path.rstrip("/")
    return path.removesuffix("hub/api") if path.endswith("/hub/api") else "/"
