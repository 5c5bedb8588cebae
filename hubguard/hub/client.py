"""The hub's REST API: the one way in which HubGuard talks to the hub."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from typing_extensions import override

from hubguard.errors import (
    ConfigError,
    HubBusy,
    HubError,
    HubFailed,
    HubGarbled,
    HubRefused,
    HubUnreachable,
    NamedServersOff,
    UserNotDeleted,
)
from hubguard.hub.api import FOUND_AT_MOST, HubAPI
from hubguard.hub.http import (
    Answer,
    Failure,
    HTTPClient,
    NoAnswer,
    OverHTTP,
    checked_token,
    checked_url,
    printable,
    repeated,
    spend,
)
from hubguard.hub.models import (
    Page,
    read_group_roles,
    read_page,
    read_part,
    read_prefixes,
    read_retry_after,
    read_services,
    read_skew,
    read_startup,
    read_text,
    read_tokens,
    read_user,
    read_users,
    with_group_roles,
)
from hubguard.hub.names import addressable
from hubguard.hub.nouns import TokenOwner
from hubguard.hub.routes import read_hub_routes
from hubguard.inhub.scopes import DELETE_USERS
from hubguard.model import Route, Server, User
from hubguard.pacing.budget import Budget, Lane

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRIES = 2
"""Retries of a read when the hub is busy or the connection breaks. What changes something is never repeated."""

LARGEST_ANSWER = 64 * 1024 * 1024
"""Maximum bytes of an answer. 200 users with a few servers each take well under one of these 64 MiB."""

GROUP_ROLES_LAST_S = 300.0
"""Seconds for which the roles of groups are known. Listing groups makes the hub read all their members."""

GROUP_ROLES_FRESH_S = 10.0
"""Seconds for which they are known when one user or server is read, as before it is stopped or deleted."""

NAMED_SERVERS_OFF = "Named servers are not enabled"
"""What a hub with named servers switched off says (5.2 to 6.1) when it is asked to do anything to one, even to stop it."""

OVERLAP = 2
"""Users of a page that are read again with the next one, 1 % of 200: one may have left in between."""

STEPS_BACK = 10
"""Maximum steps back in a list of which more users have left than the overlap; each step is four times the last."""


class HTTPHubAPI(OverHTTP, HubAPI):
    """The hub behind ``api_url``.

    ``request_timeout_s`` is for one request, from connecting to the end of the answer; waiting for the budget doesn't
    count. The token is in no error, repr or log line of this class.

    ``through_groups``: roles that come through a group count as their users', which takes a list of the groups now and then.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        budget: Budget,
        *,
        request_timeout_s: float = 60.0,
        page_size: int = 200,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """``api_url`` is what the hub calls JUPYTERHUB_API_URL; ``page_size`` users are asked for at once.

        ``ssl_context`` is for hubs with internal SSL. Raises ConfigError for a URL or token that can't be one.
        """
        self._api_url = checked_url("JUPYTERHUB_API_URL", api_url, "http://127.0.0.1:8081/hub/api")
        token = checked_token("JUPYTERHUB_API_TOKEN", token, "the token of a service or user of the hub")
        self._budget = budget
        self._page_size = page_size
        self._timeout_s = request_timeout_s
        self._ssl = ssl_context
        self._http = HTTPClient(
            timeout_s=request_timeout_s,
            largest=LARGEST_ANSWER,
            token=token,
            headers={"Accept": "application/jupyterhub-pagination+json"},
            ssl_context=ssl_context,
        )
        self._skew_s: float | None = None
        self.through_groups = False
        self._group_roles: tuple[float, Mapping[str, tuple[str, ...]] | None] | None = None
        self._unlisted_groups: frozenset[str] = frozenset()

    @property
    @override
    def skew_s(self) -> float | None:
        return self._skew_s

    @override
    async def list_servers(self) -> tuple[Server, ...]:
        users = await self._all_pages(_listing("list its servers", state="active", sort="id"), read_users)
        users = await self._with_group_roles(users)
        return tuple(sorted((server for user in users.values() for server in user.servers), key=lambda s: s.key))

    @override
    async def find_users(self, part: str) -> tuple[str, ...]:
        listing = _listing("search its users", name_filter=part)
        return tuple((await self._page(listing, read_users, 0, limit=FOUND_AT_MOST)).items)

    @override
    async def count_users(self) -> int:
        return (await self._page(_listing("count its users"), read_users, 0, limit=1)).total

    @override
    async def first_user(self) -> User | None:
        page = await self._page(_listing("show its first user", sort="id"), _read_users_activity, 0, limit=1)
        return next(iter(page.items.values()), None)

    @override
    async def list_users(self, *, inactive_since: datetime | None) -> tuple[User, ...]:
        """Only as many pages are read as hold inactive users, if the hub lists them in a fixed order."""
        what = "list its users"
        users = None
        if inactive_since is not None:
            users = await self._least_active_users(_listing(what, sort="last_activity"), inactive_since)
        if users is None:
            users = await self._all_pages(_listing(what, sort="id"), _read_users_activity)
        users = await self._with_group_roles(users)
        wanted = (user for user in users.values() if inactive_since is None or _inactive(user, inactive_since))
        return tuple(sorted(wanted, key=lambda user: user.name))

    @override
    async def get_server(self, user: str, name: str) -> Server | None:
        call = _Call("GET", f"/users/{_quoted(user)}", f"read {_label(user, name)}", "read:servers", known=(200, 404))
        answer = await self._read(call)
        if answer.status == 404:
            return None
        read = _understood(lambda: read_user(answer.json, of=user))
        servers = (await self._with_group_roles({user: read}, GROUP_ROLES_FRESH_S))[user].servers
        return next((server for server in servers if server.name == name), None)

    @override
    async def get_user(self, name: str, *, stopped: bool = False) -> User | None:
        what, scope = f"read the user {printable(name)}", "read:servers and read:users"
        query = {"include_stopped_servers": "1"} if stopped else None
        answer = await self._read(_Call("GET", f"/users/{_quoted(name)}", what, scope, known=(200, 404), query=query))
        if answer.status == 404:
            return None
        read = _understood(lambda: read_user(answer.json, of=name, need_activity=True, stopped=stopped))
        return (await self._with_group_roles({name: read}, GROUP_ROLES_FRESH_S))[name]

    async def _with_group_roles(
        self, users: dict[str, User], known_for_s: float = GROUP_ROLES_LAST_S
    ) -> dict[str, User]:
        concerned = [user for user in users.values() if user.groups != () and user.roles is not None]
        if not self.through_groups or not concerned:
            return users
        read_s, by_group = self._group_roles or (float("-inf"), None)
        groups = frozenset(group for user in concerned for group in user.groups or ())
        # A group may be newer than the list, which is read for it once: the hub may not show that group to us.
        new = by_group is not None and not groups <= by_group.keys() | self._unlisted_groups
        if new or time.monotonic() - read_s > known_for_s:
            by_group = await self._read_group_roles()
            self._unlisted_groups = groups - (by_group or {}).keys()
        return {name: with_group_roles(user, by_group) for name, user in users.items()}

    async def _read_group_roles(self) -> Mapping[str, tuple[str, ...]] | None:
        """The roles of each group, by its name, as the hub has them now; None if it refuses to show them."""
        listing = _Call(
            "GET", "/groups", "list its groups", "list:groups and read:roles:groups", known=(200,), query={}
        )
        began_s, by_group = time.monotonic(), None
        try:
            by_group = await self._all_pages(listing, read_group_roles)
        except HubRefused as error:
            log.info("Roles that come through a group are unknown: %s", error)
        self._group_roles = began_s, by_group
        return by_group

    @override
    async def delete_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        what = f"delete the user {printable(name)}"
        await self._once(_Call("DELETE", f"/users/{_quoted(name)}", what, DELETE_USERS, known=(204, 404)), confirm)

    @override
    async def tokens_of(self, user: str) -> tuple[int, datetime | None]:
        what = f"list the tokens of {printable(user)}"
        answer = await self._read(_Call("GET", f"/users/{_quoted(user)}/tokens", what, "read:tokens", known=(200,)))
        return _understood(lambda: read_tokens(answer.json, of=user))

    @override
    async def create_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        # By way of POST /users, the hub would make its own kind of name of it, in lower case.
        what = f"make the user {printable(name)}"
        call = _Call("POST", f"/users/{_quoted(name)}", what, "admin:users", known=(201, 409))
        return (await self._once(call, confirm)).status == 201

    @override
    async def add_to_group(
        self, group: str, users: Sequence[str], *, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        what = f"put {printable(', '.join(users))} into the group {printable(group)}"
        path = f"/groups/{_quoted(group)}/users"
        call = _Call("POST", path, what, "groups", known=(200,), body={"users": list(users)})
        answer = await self._once(call, confirm)
        _understood(lambda: read_text(answer.json, "name"))

    @override
    async def create_server(
        self,
        user: str,
        name: str,
        options: Mapping[str, object] | None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        # Without a key "user_options", the hub would take the whole body for them.
        body = {"user_options": None if options is None else dict(options)}
        what = f"make {_label(user, name)}"
        await self._once(_Call("PUT", _server_path(user, name), what, "servers", known=(201, 409), body=body), confirm)

    @override
    async def startup_s(self) -> float | None:
        metrics = await self.metrics()
        return None if metrics is None else read_startup(metrics)

    @override
    async def metrics(self) -> str | None:
        call = _Call("GET", "/metrics", "show its metrics", "read:metrics", known=(200,), json=False)
        try:
            answer = await self._read(call)
        except HubRefused:
            return None
        return answer.body.decode("utf-8", "replace")

    @override
    def with_token(self, token: str) -> HTTPHubAPI:
        """It has connections of its own."""
        return HTTPHubAPI(
            self._api_url,
            token,
            self._budget,
            request_timeout_s=self._timeout_s,
            page_size=self._page_size,
            ssl_context=self._ssl,
        )

    @override
    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """``remove`` says nothing about a default server."""
        path = _server_path(user, name)
        body = {"remove": True} if remove and name else None
        call = _Call("DELETE", path, f"stop {_label(user, name)}", "delete:servers", known=(204, 202, 404), body=body)
        answer = await self._once(call, confirm)
        return answer.status != 202

    @override
    async def start_server(self, user: str, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        # A 6.x hub would be content with start:servers, which a 5.x hub doesn't know.
        call = _Call("POST", _server_path(user, name), f"start {_label(user, name)}", "servers", known=(201, 202))
        return (await self._once(call, confirm)).status == 201

    @override
    async def list_services(self) -> dict[str, tuple[str, ...]]:
        answer = await self._read(_SERVICES)
        return _understood(lambda: read_services(answer.json))

    @override
    async def service_prefixes(self) -> dict[str, str]:
        answer = await self._read(_SERVICES)
        return _understood(lambda: read_prefixes(answer.json))

    @override
    async def list_routes(self) -> dict[str, Route]:
        """The hub asks the proxy for the whole table for each page."""
        table = _Call("GET", "/proxy", "list the proxy's routes", "proxy", known=(200,))
        return await self._all_pages(table, read_hub_routes)

    @override
    async def check_routes(self, *, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        call = _Call("POST", "/proxy", "check the proxy's routes", "proxy", known=(200,), timeout_s=timeout_s)
        await self._once(call, confirm)

    @override
    async def version(self) -> str:
        answer = await self._read(_Call("GET", "/", "show its version", "", known=(200,)))
        return _understood(lambda: read_text(answer.json, "version"))

    @override
    async def spawner_class(self) -> str | None:
        try:
            answer = await self._read(_Call("GET", "/info", "show its spawner's class", "read:hub", known=(200,)))
        except HubRefused:
            return None
        return _understood(lambda: read_text(read_part(answer.json, "spawner"), "class"))

    @override
    async def whoami(self) -> TokenOwner:
        answer = await self._read(_Call("GET", "/user", "show whose token this is", "", known=(200,)))
        scopes = answer.json.get("scopes") if isinstance(answer.json, dict) else None
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            raise HubGarbled("The hub showed whose token this is, but not its scopes. Is the API's URL right?")
        kind = _understood(lambda: read_text(answer.json, "kind"))
        return TokenOwner(kind, _understood(lambda: read_text(answer.json, "name")), frozenset(scopes))

    async def _all_pages(self, listing: _Call, read_items: Callable[[Any], dict[str, T]]) -> dict[str, T]:
        """Every item of all pages, by name. Pages overlap, so that what comes and goes pushes nothing out of the list."""
        items: dict[str, T] = {}
        offset, overlap, again, steps_back, bound = 0, OVERLAP, 0, 0, 0
        while True:
            page = await self._page(listing, read_items, offset)
            bound = bound or 2 * page.total + 10_000
            if page.offset + page.limit > bound:
                raise HubGarbled(
                    f"The hub was asked to {listing.what}, and the list grows without end (now {page.total}), so it isn't"
                    " used. Is the API's URL right?"
                )
            if again and offset and not items.keys() & page.items.keys():
                # Too many have left for the pages to meet: something in between may not have been read.
                steps_back += 1
                if steps_back > STEPS_BACK:
                    raise HubGarbled(
                        f"The hub was asked to {listing.what}, and the list changes faster than it can be read; it is read"
                        " again later."
                    )
                overlap *= 4
                offset = max(0, offset - overlap)
                continue
            items.update(page.items)
            if page.next_offset is None:
                return items
            again = min(overlap, page.limit // 2)
            offset = page.next_offset - again

    async def _least_active_users(self, listing: _Call, inactive_since: datetime) -> dict[str, User] | None:
        """Those up to that time and some more, by name, from no more pages than that takes.

        None if the pages don't fit together: somebody came or left in between, or the database has its own ideas of the
        order of those who were never active, as PostgreSQL does.
        """
        users: dict[str, User] = {}
        offset, total = 0, None
        while True:
            page = await self._page(listing, _read_users_activity, offset)
            in_order = list(page.items.values())
            total = page.total if total is None else total
            users.update(page.items)
            # Each page begins with the last one of the page before. Where anybody has changed places meanwhile, there are
            # more or fewer different users than places, and somebody may not have been read.
            if page.total != total or len(users) != offset + len(in_order):
                return None
            if page.next_offset is None or (in_order and not _inactive(in_order[-1], inactive_since)):
                return users
            if len(in_order) < 2:
                return None
            offset = page.next_offset - 1

    async def _page(
        self, listing: _Call, read_items: Callable[[Any], dict[str, T]], offset: int, *, limit: int | None = None
    ) -> Page[T]:
        query = {**(listing.query or {}), "offset": str(offset), "limit": str(limit or self._page_size)}
        answer = await self._read(replace(listing, query=query))
        return _understood(lambda: read_page(answer.json, read_items, asked_offset=offset))

    async def _read(self, call: _Call) -> Answer:
        # Asking again doesn't help a hub that is too slow already.
        return await repeated(lambda: self._once(call), RETRIES, (HubBusy, _NoConnection))

    async def _once(self, call: _Call, confirm: Callable[[], Awaitable[None]] | None = None) -> Answer:
        lane = Lane.RESERVED if call.safe else Lane.ACT
        return await spend(
            self._budget.slot(lane, safe=call.safe, kind=call.kind), lambda: self._exchange(call), confirm
        )

    async def _exchange(self, call: _Call) -> Answer | HubError:
        url = self._api_url + call.path + _query(call.query)
        answer = await self._http.exchange(call.method, url, json=call.body, timeout_s=call.timeout_s)
        if isinstance(answer, NoAnswer):
            return self._unanswered(call, answer)
        skew_s = read_skew(answer.date, answer.sent_at)
        self._skew_s = self._skew_s if skew_s is None else skew_s
        return self._judged(call, answer)

    def _unanswered(self, call: _Call, nothing: NoAnswer) -> HubError:
        if nothing.why is Failure.TOO_LARGE:
            return HubGarbled(f"The hub was asked to {call.what}, and {nothing.detail}.")
        if nothing.why is Failure.TIMEOUT:
            return HubUnreachable(
                f"The hub didn't {call.what} within {nothing.timeout_s:g} s: it hangs or is overloaded, or the network is."
            )
        return _NoConnection(
            f"The hub didn't {call.what}: no answer from {self._api_url} ({nothing.detail})."
            " Is it running, and is this its API's URL?"
        )

    def _judged(self, call: _Call, answer: Answer) -> Answer | HubError:
        status, said = answer.status, self._said(answer)
        if status in (401, 403):
            missing = f"lacks the scope {call.scope}, or " if call.scope else ""
            return HubRefused(
                f"The hub refused to {call.what} ({status}{said}): the token {missing}isn't valid. Give HubGuard's role"
                " what is missing, or HubGuard a valid token."
            )
        if status in (429, 503):
            return HubBusy(
                f"The hub is too busy to {call.what} ({status}{said}). HubGuard slows down and tries again later.",
                retry_after_s=read_retry_after(answer.retry_after),
            )
        if status in (404, 409) and status in call.known:
            if _is_hubs(answer.json, status):
                return answer
            return HubGarbled(
                f"Asked to {call.what}, something that isn't a hub answered {status}{said}. Is {self._api_url} the API's URL?"
            )
        if 200 <= status < 300:
            if status not in call.known:
                return HubGarbled(f"Asked to {call.what}, the hub answered {status}, which its API never does.")
            if call.safe and call.json and answer.json is None:
                return HubGarbled(
                    f"The hub was asked to {call.what}, and its answer isn't JSON{said}. Is {self._api_url} the API's URL?"
                )
            return answer
        if status == 400 and NAMED_SERVERS_OFF in said:
            return NamedServersOff(
                f"The hub refused to {call.what}: named servers are switched off (JupyterHub.allow_named_servers).",
                status=status,
            )
        if status == 500 and call.scope == DELETE_USERS:
            return UserNotDeleted(
                f"The hub failed to {call.what} ({status}{said}). Its authenticator may refuse that: see the hub's log.",
                status=status,
            )
        hint = f" Redirects aren't followed. Is {self._api_url} the API's URL?" if 300 <= status < 400 else ""
        return HubFailed(f"The hub failed to {call.what} ({status}{said}).{hint}", status=status)

    def _said(self, answer: Answer) -> str:
        said = answer.json.get("message") if isinstance(answer.json, dict) else None
        if answer.json is None:
            said = answer.start()
        return f": {self._http.quotable(said)}" if isinstance(said, str) and said.strip() else ""


def internal_ssl_context(location: str) -> ssl.SSLContext:
    """For talking to a hub with internal SSL that keeps its certificates in ``location`` (its ``internal_certs_location``).

    The hub's certificate is checked, and ours is the hub's own. Raises ConfigError, naming the file that can't be used.
    """
    folder = Path(location)
    key, certificate = (folder / "hub-internal" / f"hub-internal.{end}" for end in ("key", "crt"))
    authority = folder / "hub-ca" / "hub-ca.crt"
    for file in (key, certificate, authority):
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(
                "internal_certs_location",
                f"{file} can't be read ({error.strerror}). Name the folder in which a hub with internal SSL keeps its"
                " certificates, and let HubGuard read it",
            ) from None
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(
            "internal_certs_location", f"the certificates in {folder} can't be used ({error.reason}): remake them"
        ) from None
    return context


@dataclass(frozen=True, slots=True)
class _Call:
    """One request; ``what`` completes "the hub was asked to"; ``known`` are the statuses that mean something.

    ``timeout_s`` None: the client's own. ``json``: what is read is JSON.
    """

    method: str
    path: str
    what: str
    scope: str
    known: tuple[int, ...]
    query: Mapping[str, str] | None = None
    body: Mapping[str, object] | None = None
    timeout_s: float | None = None
    json: bool = True

    @property
    def safe(self) -> bool:
        return self.method == "GET"

    @property
    def kind(self) -> str | None:
        # Reading one user takes equally long each time, unless the hub is in trouble. Lists and stops don't.
        return "user" if self.safe and self.path.startswith("/users/") and self.path.count("/") == 2 else None


_SERVICES = _Call("GET", "/services", "list its services", "list:services and read:services", known=(200,))


def _listing(what: str, **query: str) -> _Call:
    """The request for a list of users, without the page."""
    return _Call("GET", "/users", what, "list:users and read:servers", known=(200,), query=query)


def _read_users_activity(items: Any) -> dict[str, User]:
    return read_users(items, need_activity=True)


def _inactive(user: User, since: datetime) -> bool:
    return user.last_activity is None or user.last_activity <= since


def _understood(read: Callable[[], T]) -> T:
    """What ``read`` gives. Its errors lose their way here, on which lie answers that may echo our own headers."""
    try:
        return read()
    except (HubGarbled, HubRefused) as error:
        nonsense = error.with_traceback(None)
    raise nonsense


class _NoConnection(HubUnreachable):
    """There was no connection, or it broke before an answer."""


def _is_hubs(answer: Any, status: int) -> bool:
    """Whether the hub itself says so. A 404 from anything else would make every server look gone."""
    return isinstance(answer, dict) and answer.get("status") == status


def _quoted(name: str) -> str:
    if not addressable(name):
        # Whatever stands between us and the hub may take it for another path: /users/ann/servers/.. for /users/ann.
        raise HubFailed(
            f"Nothing was sent: a user or server named {name!r} has no path of its own, since proxies take that for another"
            " one. Rename or delete it on the hub.",
            status=400,
        )
    return quote(name, safe="")


def _server_path(user: str, name: str) -> str:
    return f"/users/{_quoted(user)}/" + (f"servers/{_quoted(name)}" if name else "server")


def _query(query: Mapping[str, str] | None) -> str:
    return "?" + "&".join(f"{name}={_quoted(value)}" for name, value in query.items()) if query else ""


def _label(user: str, name: str) -> str:
    return printable(f"the server {user}/{name}" if name else f"the server of {user}")
