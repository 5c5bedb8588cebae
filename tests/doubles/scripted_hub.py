"""A hub that says what a test has written down, and keeps a list of what it was asked to stop and delete.

It speaks as much of the REST API as cullers use: the list of users with pages, filters and order, single users, and DELETE.
Like the real one (6.1) it filters by ``ready`` after paging, and answers 403 to what the token has no scope for.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

from aiohttp import web

TOKEN = "the-cullers-token"
PAGE = 200


def ago(seconds: float | None, *, naive: bool = False) -> str | None:
    """A time so many seconds ago as the hub writes it; None stays None."""
    if seconds is None:
        return None
    at = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return at.replace(tzinfo=None).isoformat() if naive else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Srv:
    """A server: idle and running for so many seconds (None: the hub doesn't know).

    ``answer`` is how it takes being stopped: 204, 202 (gone ``slow_s`` later) or 500. ``by_then_idle`` and ``by_then_age``
    are what the hub says when asked about this user alone: somebody came back, or it was restarted, after the list was read.
    """

    idle: float | None = 3600.0
    age: float | None = 7000.0
    ready: bool = True
    pending: str | None = None
    answer: int = 204
    slow_s: float = 0.3
    naive: bool = False
    by_then_idle: float | None = None
    by_then_age: float | None = None
    profile: str = ""

    def model(self, user: str, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "last_activity": ago(self.idle, naive=self.naive),
            "started": ago(self.age, naive=self.naive),
            "pending": self.pending,
            "ready": self.ready,
            "stopped": False,
            "url": f"/user/{user}/{name}",
            "user_options": {"profile": self.profile},
            "state": {"profile_name": self.profile},
        }

    def by_then(self) -> dict[str, Any]:
        changed = {"last_activity": self.by_then_idle, "started": self.by_then_age}
        return {key: ago(seconds) for key, seconds in changed.items() if seconds is not None}


@dataclass
class Person:
    """A user with servers by name, inactive and created so many seconds ago."""

    name: str
    servers: dict[str, Srv] = field(default_factory=dict)
    idle: float | None = 3600.0
    age: float | None = 100_000.0
    admin: bool = False
    by_then_idle: float | None = None
    answer: int = 204


class ScriptedHub:
    """Serves ``people``; ``async with`` gives it with its ``api_url``. ``asked`` has each DELETE, in order, as text.

    ``stop ann``, ``stop ann/gpu``, ``remove ann/gpu``, ``delete ann``, and ``lost <path>`` for what leads nowhere.
    """

    def __init__(self, people: list[Person], *, may_delete_users: bool = False, refuses: bool = False) -> None:
        self._people = {person.name: person for person in people}
        self._may_delete_users = may_delete_users
        self._refuses = refuses
        self._said: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.api_url = ""

    async def __aenter__(self) -> ScriptedHub:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.api_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hub/api"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def asked_for(self, what: str) -> None:
        """Returns when it was asked for ``what``."""
        while what not in self.asked:
            await asyncio.sleep(0.02)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.add(request.headers.get("Authorization", ""))
        if self._refuses:
            return _error(403, "Forbidden")
        raw = request.raw_path.partition("?")[0]
        parts = [unquote(part) for part in raw.removeprefix("/hub/api").strip("/").split("/")]
        match request.method, parts:
            case "GET", [""]:
                return web.json_response({"version": "6.1.1"})
            case "GET", ["user"]:
                scopes = ["list:users", "read:users:activity", "read:servers", "delete:servers"]
                scopes += ["admin:users", "delete:users"] if self._may_delete_users else []
                return web.json_response({"name": "culler", "kind": "service", "scopes": scopes})
            case "GET", ["users"]:
                return self._list(request)
            case "GET", ["users", name] if name in self._people:
                return web.json_response(self._model(self._people[name], alone=True))
            case "DELETE", ["users", name] if name in self._people:
                return self._delete(self._people[name])
            case "DELETE", ["users", name, "server"] if name in self._people:
                return await self._stop(self._people[name], "", request)
            case "DELETE", ["users", name, "servers", server] if name in self._people:
                return await self._stop(self._people[name], server, request)
            case "DELETE", _:
                self.asked.append(f"lost {raw}")
            case _, [("services" | "proxy" | "info" | "groups"), *_]:
                return _error(403, "Action is not authorized with current scopes")
        return _error(404, "Not Found")

    def _list(self, request: web.Request) -> web.Response:
        query = request.query
        people = list(self._people.values())
        if "last_activity" in query.get("sort", ""):
            people.sort(key=lambda person: -(person.idle if person.idle is not None else 1e12))
        if query.get("sort", "").startswith("-"):
            people.reverse()
        if query.get("state") == "active":
            people = [person for person in people if _active(person)]
        if query.get("state") == "inactive":
            people = [person for person in people if not _active(person)]
        offset, limit = int(query.get("offset", 0)), min(int(query.get("limit", 50)), PAGE)
        items = people[offset : offset + limit]
        if query.get("state") == "ready":
            items = [person for person in items if any(server.ready for server in person.servers.values())]
        following = None
        if offset + limit < len(people):
            url = request.url.update_query(offset=offset + limit, limit=limit)
            following = {"offset": offset + limit, "limit": limit, "url": str(url)}
        pages = {"offset": offset, "limit": limit, "total": len(people), "next": following}
        models = [self._model(person) for person in items]
        if "pagination" not in request.headers.get("Accept", ""):
            return web.json_response(models[:PAGE])
        return web.json_response({"items": models, "_pagination": pages})

    def _model(self, person: Person, *, alone: bool = False) -> dict[str, Any]:
        """What is said of someone once is said again: a server that nobody uses stays as it is."""
        if person.name not in self._said:
            self._said[person.name] = {"last_activity": ago(person.idle), "created": ago(person.age)}
        servers = {}
        for name, server in person.servers.items():
            listed = self._said.setdefault(f"{person.name}/{name}", server.model(person.name, name))
            servers[name] = {**listed, **server.by_then()} if alone else listed
        came_back = {"last_activity": ago(person.by_then_idle)} if alone and person.by_then_idle is not None else {}
        return {
            "name": person.name,
            "kind": "user",
            "admin": person.admin,
            "server": None,
            "pending": None,
            **self._said[person.name],
            **came_back,
            "servers": servers,
        }

    async def _stop(self, person: Person, name: str, request: web.Request) -> web.Response:
        body = await request.text()
        remove = bool(body and json.loads(body).get("remove"))
        self.asked.append(f"{'remove' if remove else 'stop'} {person.name}" + (f"/{name}" if name else ""))
        server = person.servers.get(name)
        if server is None:
            return web.Response(status=204) if not name else _error(404, "no such server")
        if server.answer == 500:
            return _error(500, "Failed to stop it")
        self._said[person.name]["last_activity"] = ago(0.0)
        if server.answer == 202:
            asyncio.get_running_loop().call_later(server.slow_s, person.servers.pop, name, None)
            return web.Response(status=202)
        del person.servers[name]
        return web.Response(status=204)

    def _delete(self, person: Person) -> web.Response:
        self.asked.append(f"delete {person.name}")
        if person.servers or person.answer == 500:
            return _error(500, "a server still runs")
        if not self._may_delete_users:
            return _error(403, "Action is not authorized with current scopes")
        del self._people[person.name]
        return web.Response(status=204)


def _active(person: Person) -> bool:
    return any(server.ready or server.pending for server in person.servers.values())


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"status": status, "message": message}, status=status)
