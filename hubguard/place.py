"""Where this guard runs: the hub's URLs and token, as the environment gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hubguard.errors import ConfigError

DEFAULT_API_URL = "http://127.0.0.1:8081/hub/api"
"""Where a hub on this machine answers unless it is told otherwise (JupyterHub's own default)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service finds itself: what the hub that runs it, or its environment, has told it.

    ``url`` is where the proxy reaches us, "" for a command that serves nothing. ``generation`` is the start time of the hub
    that manages us (unix, seconds), 0 for an external service; ``hub_pid`` is that hub's process, or None. ``base_url``
    begins and ends with a slash. ``registration`` is what the include passed on.
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
        """The path of our pages, with a slash at both ends."""
        return f"{self.base_url}services/hubguard/"

    @property
    def hub_prefix(self) -> str:
        """The path of the hub's own pages, with a slash at both ends."""
        return f"{self.base_url}hub/"


def place_from(environ: Mapping[str, str]) -> Place:
    """What the environment tells, as every JupyterHub service gets it. Raises ConfigError where the token is missing."""
    token = environ.get("JUPYTERHUB_API_TOKEN", "")
    if not token:
        raise ConfigError(
            "JUPYTERHUB_API_TOKEN",
            "is not set. Run HubGuard through the include, or give it the token of a service that has the role it needs.",
        )
    api_url = environ.get("JUPYTERHUB_API_URL") or DEFAULT_API_URL
    if urlsplit(api_url).scheme not in {"http", "https"} or not urlsplit(api_url).hostname:
        raise ConfigError("JUPYTERHUB_API_URL", f"{api_url!r} is no URL such as {DEFAULT_API_URL}")
    try:
        told = json.loads(environ.get("HUBGUARD_REGISTRATION") or "{}")
    except ValueError:
        told = {"errors": [("HUBGUARD_REGISTRATION", "what the include passed on can't be read")]}
    return Place(
        api_url=api_url,
        token=token,
        base_url=environ.get("JUPYTERHUB_BASE_URL") or _base_url(api_url),
        hub_host=environ.get("JUPYTERHUB_HOST", ""),
        registration=told if isinstance(told, dict) else {},
    )


def _base_url(api_url: str) -> str:
    """The hub's base_url by where its API is, for a service of its own that wasn't told."""
    path = urlsplit(api_url).path.rstrip("/")
    return path.removesuffix("hub/api") if path.endswith("/hub/api") else "/"
