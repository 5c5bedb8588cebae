"""Tables of routes, as the proxy's JSON and the hub's have them, as nouns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from hubguard.errors import HubGarbled, HubGuardError, ProxyGarbled
from hubguard.hub.models import read_time
from hubguard.model import Route


def read_routes(answer: Any) -> dict[str, Route]:
    """The proxy's whole table by path. Raises ProxyGarbled."""
    if not isinstance(answer, dict):
        raise _proxy_garbled(f"it returned {_kind(answer)} instead of its table")
    return {path: read_route(model, path) for path, model in answer.items()}


def read_route(model: Any, path: str) -> Route:
    """One route of the proxy's. Raises ProxyGarbled."""
    if not isinstance(model, dict):
        raise _proxy_garbled(f"the route {path!r} is {_kind(model)}")
    return _read(path, model.get("target"), model, _proxy_garbled)


def read_hub_routes(items: Any) -> dict[str, Route]:
    """The hub's view of the table, a page or all of it, by path as in the proxy's own table. Raises HubGarbled.

    It leaves out what isn't the hub's. With a proxy that keeps no times, ``last_activity`` is None.
    """
    if not isinstance(items, dict):
        raise _hub_garbled(f"it returned {_kind(items)} instead of the table of routes")
    routes = {}
    for spec, model in items.items():
        data = model.get("data") if isinstance(model, dict) else None
        if not isinstance(data, dict):
            raise _hub_garbled(f"the route {spec!r} is {_kind(model)} without data")
        path = "/" + unquote(spec).strip("/")
        routes[path] = _read(path, model.get("target"), {**data, "jupyterhub": True}, _hub_garbled)
    return routes


def _read(path: str, target: Any, data: dict[str, Any], garbled: Callable[[str], HubGuardError]) -> Route:
    if not path.startswith("/") or not isinstance(target, str) or not target:
        raise garbled(f"the route {path!r} leads to {_kind(target)}")
    user = server = None
    # Whoever may write to the proxy can put anything into a route; only the hub's own word names a server.
    if data.get("jupyterhub") and "user" in data:
        user, server = data["user"], data.get("server_name", "")
        if not isinstance(user, str) or not user or not isinstance(server, str):
            raise garbled(f"the route {path!r} is for the user {_kind(user)} and the server {_kind(server)}")
    hub = data.get("jupyterhub") is True and data.get("hub") is True
    return Route(path, target, user, server, _time(data.get("last_activity"), path, garbled), hub)


def _time(text: Any, path: str, garbled: Callable[[str], HubGuardError]) -> datetime | None:
    try:
        return read_time(text, "it")
    except HubGarbled:
        pass
    raise garbled(f"the last activity of the route {path!r} is {_kind(text)}, which is no time")


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        # Not what is in it: if something else answers, that may be our own request, with its headers.
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _proxy_garbled(what: str) -> ProxyGarbled:
    return ProxyGarbled(
        f"The proxy's answer makes no sense: {what}. Nothing is concluded from it. Is its API's URL right?"
    )


def _hub_garbled(what: str) -> HubGarbled:
    return HubGarbled(f"The hub's answer makes no sense: {what}. Nothing is concluded from it. Is the API's URL right?")
