"""A hub in memory, with the semantics of the real one, for tests and simulations."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from types import TracebackType
from urllib.parse import unquote

from doubles.paths import route_path

from hubguard.errors import HubError, HubFailed, HubRefused, HubUnreachable, NamedServersOff, UserNotDeleted
from hubguard.hub.api import FOUND_AT_MOST
from hubguard.hub.http import tell
from hubguard.hub.nouns import TokenOwner
from hubguard.model import Route, Server, User
from hubguard.pacing.budget import Budget, Lane
from hubguard.pacing.clock import Clock, SystemClock

HUB_AT, SERVED_AT = "http://127.0.0.1:8081", "http://127.0.0.1:1"
"""Where the hub is, and every server of it."""

COMES_BACK_S = 30.0
"""How long a hub whose proxy is down tries before the server is ready again."""

SERVER_NAME = re.compile(r"(?=.{1,30}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""What a hub from 6.0 on takes for the name of a new server."""

ACTS = frozenset({"stop", "start", "delete", "create", "group", "create-server", "check-routes"})
"""The calls that change something."""


class Stops(str, Enum):
    """How a server takes being stopped."""

    WORKS = "works"
    RAISES = "raises"  # the spawner's stop() raises: answered 204, the hub forgets it, its backend lives on
    POLL_RAISES = "poll-raises"  # answered 500, and it stays ready
    GHOST = "ghost"  # answered 204, and nothing happens
    COMES_BACK = "comes-back"  # answered 202, and ready again half a minute later, as with the proxy down
    ANSWER_LOST = "answer-lost"  # it works, but the connection breaks before the answer


@dataclass(frozen=True, slots=True)
class Request:
    """What the hub was asked, and when.

    ``call`` is list, get, stop, start, count, first, users, get-user, delete, tokens, create, group, create-server, startup,
    services, prefixes, routes, check-routes, version, spawner or whoami; of "group", ``name`` is the group, and ``user``
    the users, one a line. ``token`` is what with_token was given, or "".
    """

    at: datetime
    at_s: float
    call: str
    user: str = ""
    name: str = ""
    remove: bool = False
    token: str = ""


@dataclass(slots=True)
class _Record:
    server: Server
    stops: Stops
    stop_s: float
    active: bool = True
    ends_at_s: float | None = None
    ready_at_s: float | None = None
    removed_then: bool = False


class MemoryHub:
    """Implements HubAPI. What was asked stands in ``requests``, in order.

    ``fault`` may be set to a function that is given each request and returns the HubError to raise, or None; the request
    has no effect then. ``routes`` is the proxy's table by path: the route of a server comes when it is ready and goes
    when it is stopped, and the rest is the test's to change. ``backends`` holds (user, name) of every process that is
    alive, whatever the hub believes. ``prefixes`` has the path of each service's route, by name. ``takes_s`` is how long each
    answer takes, ``start_s`` how long a start, ``skew_s`` how far its clock is ahead. ``tokens`` has what tokens_of tells,
    by user, ``named_servers`` False: they are switched off. ``undeletable`` are those whom its authenticator fails to delete.
    ``groups`` are those that have no member, too, and ``started_in_s`` is how long its own start took.
    ``shown`` is text in its metrics.
    """

    slow_stop_timeout_s = 10.0
    slow_spawn_timeout_s = 10.0

    def __init__(self, *, clock: Clock | None = None, budget: Budget | None = None, takes_s: float = 0.0) -> None:
        self._clock = clock or SystemClock()
        self._budget = budget
        self._records: dict[tuple[str, str], _Record] = {}
        self._users: dict[str, User] = {}
        self.takes_s = takes_s
        self.skew_s: float | None = None
        self.requests: list[Request] = []
        self.fault: Callable[[Request], HubError | None] | None = None
        self.routes = {"/": Route("/", HUB_AT)}
        self.backends: set[tuple[str, str]] = set()
        self.owner = "hubguard"
        self.services: dict[str, tuple[str, ...]] = {"hubguard": ()}
        self.prefixes: dict[str, str] = {}
        self.spawner: str | None = None
        self.start_s = 0.0
        self.tokens: dict[str, tuple[int, datetime | None]] = {}
        self.groups: set[str] = set()
        self.named_servers = True
        self.undeletable: set[str] = set()
        self.started_in_s: float | None = None
        self.shown = ""
        self.hub_version = "6.1.1"
        self._token = ""
        self.scopes = frozenset({"list:users", "read:servers", "delete:servers"})

    def add(self, server: Server, *, stops: Stops = Stops.WORKS, stop_s: float = 0.0) -> None:
        """Have that server, in place of any by that name; stopping it takes ``stop_s`` seconds.

        Its user comes with it, where there is none yet; else the server is shown with what that user is.
        """
        if server.user not in self._users:
            self._users[server.user] = User(server.user, server.admin, server.groups, server.roles, server.started)
        self._records[server.key] = _Record(server, stops, stop_s)
        self._seen_active(server.user, server.last_activity)
        self._route(server)
        self.backends.add(server.key)

    def add_user(self, user: User) -> None:
        """Have that user, in place of any by that name, who keeps their servers; those of ``user`` are added."""
        self._users[user.name] = replace(user, servers=())
        for server in user.servers:
            self.add(server)

    def change(
        self,
        user: str,
        name: str = "",
        *,
        last_activity: datetime | None = None,
        started: datetime | None = None,
        ready: bool | None = None,
        pending: str | None = None,
        stops: Stops | None = None,
    ) -> None:
        """Something happened to that server; None leaves a thing as it is. ``ready`` True also ends what is pending."""
        record = self._records[(user, name)]
        server = record.server
        record.stops = stops or record.stops
        record.server = replace(
            server,
            last_activity=last_activity or server.last_activity,
            started=started or server.started,
            ready=pending is None and (server.ready if ready is None else ready),
            pending=pending or (None if ready else server.pending),
        )
        self._seen_active(user, last_activity)
        if not server.ready:
            self._route(record.server)

    async def list_servers(self) -> tuple[Server, ...]:
        """See HubAPI."""
        async with self._asked("list"):
            records = sorted(self._settled().items())
            return tuple(self._shown_server(record) for _, record in records if record.active)

    async def get_server(self, user: str, name: str) -> Server | None:
        """See HubAPI."""
        async with self._asked("get", user, name):
            record = self._settled().get((user, name))
            return self._shown_server(record) if record is not None and record.active else None

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """See HubAPI."""
        async with self._asked("stop", user, name, remove=remove, confirm=confirm):
            if name and not self.named_servers:
                raise NamedServersOff(f"The hub refused to stop {user}/{name}: named servers are off.", status=400)
            record = self._settled().get((user, name))
            if record is None:
                return True
            removed_then = remove and bool(name)
            if record.server.pending == "stop":
                record.removed_then = record.removed_then or removed_then
                return False
            self._refuse_what_cannot_stop(record)
            if not record.active:
                if removed_then:
                    del self._records[(user, name)]
                return True
            if record.stops is Stops.GHOST:
                return True
            record.removed_then = removed_then
            await self._stop(record)
            if record.stops is Stops.ANSWER_LOST:
                raise HubUnreachable(f"The hub didn't stop {user}: the connection broke before an answer came.")
            return record.server.pending != "stop"

    async def start_server(self, user: str, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        """See HubAPI. It starts anew one that is ready and isn't in ``backends``, and a ghost can be stopped from then on."""
        async with self._asked("start", user, name, confirm=confirm):
            there = self._settled().get((user, name))
            if user not in self._users:
                raise HubFailed(f"The hub failed to start a server of {user} (404).", status=404)
            pending = there.server.pending if there is not None and there.active else None
            if pending == "spawn":
                return False
            if pending is not None:
                raise HubFailed(f"The hub failed to start a server of {user} (400): pending {pending}.", status=400)
            if there is not None and there.active and (user, name) in self.backends:
                raise HubFailed(f"The hub failed to start a server of {user} (400): already running.", status=400)
            began, owner = self._clock.now(), self._users[user]
            options = there.server.options if there is not None else {}
            server = Server(user, name, False, "spawn", began, began, owner.admin, owner.groups, owner.roles, options)
            record = _Record(server, Stops.WORKS, 0.0)
            if there is not None:
                record.stops = Stops.WORKS if there.stops is Stops.GHOST else there.stops
                record.stop_s = there.stop_s
            record.ready_at_s = self._clock.monotonic_s() + self.start_s
            self._records[server.key] = record
            self.backends.add(server.key)
            self._seen_active(user, began)
            if self.start_s > 0:
                await self._clock.sleep(min(self.start_s, self.slow_spawn_timeout_s))
            self._settled()
            return record.server.ready

    async def find_users(self, part: str) -> tuple[str, ...]:
        """See HubAPI."""
        async with self._asked("find", part):
            return tuple(name for name in self._users if part.lower() in name.lower())[:FOUND_AT_MOST]

    async def count_users(self) -> int:
        """See HubAPI."""
        async with self._asked("count"):
            return len(self._users)

    async def first_user(self) -> User | None:
        """See HubAPI."""
        async with self._asked("first"):
            return next(iter(self._users.values()), None)

    async def list_users(self, *, inactive_since: datetime | None) -> tuple[User, ...]:
        """See HubAPI."""
        async with self._asked("users"):
            return tuple(
                user
                for user in self._shown_users().values()
                if inactive_since is None or user.last_activity is None or user.last_activity <= inactive_since
            )

    async def get_user(self, name: str, *, stopped: bool = False) -> User | None:
        """See HubAPI."""
        async with self._asked("get-user", name):
            user = self._shown_users().get(name)
            if user is None or not stopped:
                return user
            records = sorted(self._settled().items())
            return replace(user, servers=tuple(self._shown_server(record) for key, record in records if key[0] == name))

    async def delete_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        """See HubAPI."""
        async with self._asked("delete", name, confirm=confirm):
            self._settled()
            if name not in self._users:
                return
            if name == self.owner:
                raise HubFailed(f"The hub failed to delete the user {name} (400): it is our own.", status=400)
            default = self._records.get((name, ""))
            if default is not None and default.active and default.server.ready:
                await self._stop(default)
            if default is not None and default.server.pending == "stop":
                raise HubFailed(f"The hub failed to delete the user {name} (400): a server is stopping.", status=400)
            if name in self.undeletable:
                raise UserNotDeleted(f"The hub failed to delete the user {name} (500).", status=500)
            user = self._shown_users().get(name)
            if user is None:
                return
            if user.servers:
                raise UserNotDeleted(f"The hub failed to delete the user {name} (500).", status=500)
            del self._users[name]
            self.tokens.pop(name, None)
            for key in [key for key in self._records if key[0] == name]:
                del self._records[key]

    async def tokens_of(self, user: str) -> tuple[int, datetime | None]:
        """See HubAPI."""
        async with self._asked("tokens", user):
            if user not in self._users:
                raise HubFailed(f"The hub failed to list the tokens of {user} (404).", status=404)
            return self.tokens.get(user, (0, None))

    async def create_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        """See HubAPI."""
        async with self._asked("create", name, confirm=confirm):
            if name in self._users:
                return False
            if "/" in name or name != name.strip() or not unquote(name).strip("."):
                raise HubFailed(f"The hub failed to make the user {name} (400).", status=400)
            self._users[name] = User(name, False, (), ("user",), self._clock.now(), None)
            return True

    async def add_to_group(
        self, group: str, users: Sequence[str], *, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """See HubAPI."""
        async with self._asked("group", "\n".join(users), group, confirm=confirm):
            if group not in self.groups.union(*(user.groups or () for user in self._users.values())):
                raise HubFailed(f"The hub failed to put users into {group} (404): no such group.", status=404)
            names = [name.lower() for name in users]
            if missing := [name for name in names if name not in self._users]:
                raise HubFailed(f"The hub failed to put users into {group} (400): no user {missing[0]}.", status=400)
            for name in names:
                user = self._users[name]
                self._users[name] = replace(user, groups=tuple(sorted({*(user.groups or ()), group})))

    async def create_server(
        self,
        user: str,
        name: str,
        options: Mapping[str, object] | None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """See HubAPI."""
        async with self._asked("create-server", user, name, confirm=confirm):
            if int(self.hub_version.partition(".")[0]) < 6:
                raise HubFailed(f"The hub failed to make the server {user}/{name} (405).", status=405)
            if user not in self._users:
                raise HubFailed(f"The hub failed to make the server {user}/{name} (404).", status=404)
            if name and (user, name) not in self._settled():
                if not SERVER_NAME.fullmatch(name):
                    raise HubFailed(f"The hub failed to make the server {user}/{name} (400): its name.", status=400)
                server = Server(user, name, False, None, None, None, options=dict(options or {}))
                self._records[server.key] = _Record(server, Stops.WORKS, 0.0, active=False)

    async def startup_s(self) -> float | None:
        """See HubAPI. It may raise HubRefused in ``fault``, too, as one that may not ask."""
        try:
            async with self._asked("startup"):
                return self.started_in_s
        except HubRefused:
            return None

    async def metrics(self) -> str | None:
        """See HubAPI: its running servers, and what ``shown`` has."""
        try:
            async with self._asked("metrics"):
                running = sum(record.active for record in self._records.values())
                return f"jupyterhub_running_servers {running}\n{self.shown}"
        except HubRefused:
            return None

    def with_token(self, token: str) -> MemoryHub:
        """See HubAPI. It shares everything that there is, but ``fault`` and the like are as they are now."""
        other = copy.copy(self)
        other._token = token
        return other

    async def close(self) -> None:
        """See HubAPI."""

    async def __aenter__(self) -> MemoryHub:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stopped_servers(self) -> dict[tuple[str, str], Mapping[str, object] | None]:
        """The options of every server that is there and isn't active, by (user, name)."""
        return {key: record.server.options for key, record in sorted(self._settled().items()) if not record.active}

    async def list_services(self) -> dict[str, tuple[str, ...]]:
        """See HubAPI."""
        async with self._asked("services"):
            return dict(self.services)

    async def service_prefixes(self) -> dict[str, str]:
        """See HubAPI."""
        async with self._asked("prefixes"):
            return dict(self.prefixes)

    async def list_routes(self) -> dict[str, Route]:
        """See HubAPI."""
        async with self._asked("routes"):
            return dict(self.routes)

    async def check_routes(self, *, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        """See HubAPI. What is right in ``routes`` stays as it is, with its time."""
        async with self._asked("check-routes", confirm=confirm):
            if self.takes_s > timeout_s:
                raise HubUnreachable(f"The hub didn't check the proxy's routes within {timeout_s:g} s.")
            records = self._settled()
            kept = {key for key, record in records.items() if record.active and record.server.pending}
            ready = {key for key, record in records.items() if record.active and record.server.ready}
            for path, route in list(self.routes.items()):
                wrong = route.key in ready and route.target != SERVED_AT
                if route.key is not None and (wrong or route.key not in kept | ready):
                    del self.routes[path]
            for key in sorted(ready):
                self._route(records[key].server)
            self.routes.setdefault("/", Route("/", HUB_AT))

    async def version(self) -> str:
        """See HubAPI."""
        async with self._asked("version"):
            return self.hub_version

    async def spawner_class(self) -> str | None:
        """See HubAPI."""
        async with self._asked("spawner"):
            return self.spawner

    async def whoami(self) -> TokenOwner:
        """See HubAPI."""
        async with self._asked("whoami"):
            return TokenOwner("service", self.owner, self.scopes)

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        call: str,
        user: str = "",
        name: str = "",
        *,
        remove: bool = False,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            slot = None
            if self._budget is not None:
                acts = call in ACTS
                kind = "user" if call.startswith("get") else None
                slot = await stack.enter_async_context(
                    self._budget.slot(Lane.ACT if acts else Lane.RESERVED, safe=not acts, kind=kind)
                )
            if confirm is not None:
                await confirm()
            if slot is not None:
                slot.begins()
            request = Request(self._clock.now(), self._clock.monotonic_s(), call, user, name, remove, self._token)
            self.requests.append(request)
            try:
                if self.takes_s > 0:
                    await self._clock.sleep(self.takes_s)
                error = self.fault(request) if self.fault else None
                if error is not None:
                    raise error
                yield
            except HubError as error:
                if slot is not None:
                    tell(slot, error)
                raise
            if slot is not None:
                tell(slot, None)

    async def _stop(self, record: _Record) -> None:
        """Begin to stop it, and return when that is over, or slow."""
        takes_s = COMES_BACK_S if record.stops is Stops.COMES_BACK else record.stop_s
        if record.stops is not Stops.COMES_BACK:
            self.routes.pop(route_path("/", *record.server.key), None)
        record.server = replace(record.server, ready=False, pending="stop")
        record.ready_at_s = None
        record.ends_at_s = self._clock.monotonic_s() + takes_s
        if takes_s > 0:
            await self._clock.sleep(min(takes_s, self.slow_stop_timeout_s))
        self._settled()

    def _route(self, server: Server) -> None:
        path = route_path("/", *server.key)
        if server.ready and path not in self.routes:
            self.routes[path] = Route(path, SERVED_AT, server.user, server.name, self._clock.now())

    def _shown_users(self) -> dict[str, User]:
        """All users by name, in that order, with what the hub calls active."""
        servers: dict[str, list[Server]] = {name: [] for name in sorted(self._users)}
        for (name, _), record in sorted(self._settled().items()):
            if record.active:
                servers[name].append(self._shown_server(record))
        return {name: replace(self._users[name], servers=tuple(shown)) for name, shown in servers.items()}

    def _shown_server(self, record: _Record) -> Server:
        user = self._users[record.server.user]
        return replace(record.server, admin=user.admin, groups=user.groups, roles=user.roles)

    def _seen_active(self, name: str, at: datetime | None) -> None:
        user = self._users[name]
        if at is not None and (user.last_activity is None or user.last_activity < at):
            self._users[name] = replace(user, last_activity=at)

    def _refuse_what_cannot_stop(self, record: _Record) -> None:
        label = record.server.label
        if record.server.pending == "rename":
            raise HubFailed(f"The hub failed to stop {label} (400): it is being renamed.", status=400)
        poll_raises = record.active and record.server.pending is None and record.stops is Stops.POLL_RAISES
        if record.server.pending == "check" or poll_raises:
            raise HubFailed(f"The hub failed to stop {label} (500).", status=500)

    def _settled(self) -> dict[tuple[str, str], _Record]:
        """The records, with every start and stop that is over by now carried out."""
        for key, record in list(self._records.items()):
            if record.ready_at_s is not None and self._clock.monotonic_s() >= record.ready_at_s:
                record.ready_at_s = None
                record.server = replace(record.server, ready=True, pending=None)
                self._route(record.server)
            if record.ends_at_s is None or self._clock.monotonic_s() < record.ends_at_s:
                continue
            record.ends_at_s = None
            if record.stops is Stops.COMES_BACK:
                record.server = replace(record.server, ready=True, pending=None)
                continue
            record.server = replace(record.server, pending=None)
            record.active = False
            if record.stops not in (Stops.RAISES, Stops.POLL_RAISES):
                self.backends.discard(key)
                record.server = replace(record.server, last_activity=self._clock.now())
                self._seen_active(key[0], self._clock.now())
            if record.removed_then:
                del self._records[key]
        return self._records
