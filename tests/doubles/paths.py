"""Where routes stand in the table of a proxy."""

from __future__ import annotations

from urllib.parse import unquote


def route_path(base_url: str, user: str, name: str) -> str:
    """Where the route of that server stands in the table of a hub without subdomains; ``base_url`` is the hub's, quoted."""
    path = "/".join([*unquote(base_url).rstrip("/").split("/"), "user", user, *([name] if name else [])])
    return path.rstrip("/")
