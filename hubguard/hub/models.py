"""What the hub's JSON says, as nouns. Anything that its API doesn't promise raises HubGarbled and says what was wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from hubguard.errors import HubGarbled, HubRefused
from hubguard.model import Server, User, server_label

T = TypeVar("T")

TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)

# An operator may give the hub's metrics another prefix than "jupyterhub".
_STARTUP = re.compile(r"^\w+_hub_startup_duration_seconds_(sum|count) (\S+)$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, its items by name, in the order that was asked for. ``next_offset`` is None on the last one."""

    items: dict[str, T]
    offset: int
    limit: int
    total: int
    next_offset: int | None


def read_page(answer: Any, read_items: Callable[[Any], dict[str, T]], *, asked_offset: int) -> Page[T]:
    """A page of a list, its items as ``read_items`` returns them.

    Raises HubGarbled also if the numbers on it would skip or repeat items.
    """
    pagination = answer.get("_pagination") if isinstance(answer, dict) else None
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(pagination, dict) or not isinstance(items, (list, dict)):
        raise _garbled("the list has no pagination, so it is unknown whether it is whole")
    offset, limit, total = (_count(pagination, key) for key in ("offset", "limit", "total"))
    next_page = pagination.get("next")
    next_offset = None
    if offset != asked_offset or limit < 1 or len(items) > limit:
        raise _garbled(
            f"asked for a list from {asked_offset} on, it returned {len(items)} from {offset} on, {limit} at most"
        )
    if next_page is not None:
        if not isinstance(next_page, dict):
            raise _garbled(f"the next page is {_short(next_page)}")
        next_offset = _count(next_page, "offset")
        if not offset < next_offset <= offset + limit or next_offset >= total:
            raise _garbled(f"after {offset} to {offset + limit} of {total}, the next page is at {next_offset}")
    elif offset + limit < total:
        raise _garbled(f"the list ends at {offset + limit} of {total}")
    return Page(read_items(items), offset, limit, total, next_offset)


def read_users(items: Any, *, need_activity: bool = False) -> dict[str, User]:
    """The users of a page by name. ``need_activity`` and what is raised are read_user's."""
    if not isinstance(items, list):
        raise _garbled(f"it returned {_short(items)} instead of a list of users")
    # The hub's tables allow a user without a name, who can't be asked about and must not hide all others.
    there = (item for item in items if not (isinstance(item, dict) and "name" in item and not item["name"]))
    named = ((read_text(item, "name"), item) for item in there)
    return {name: read_user(item, of=name, need_activity=need_activity) for name, item in named}


def read_user(user: Any, *, of: str, need_activity: bool = False, stopped: bool = False) -> User:
    """The model of the user ``of``, with the active servers, and with ``stopped`` with all others in it.

    Raises HubRefused if the hub leaves the servers out, as it does without the scope read:servers, and with
    ``need_activity`` also if it leaves out the last activity, which would make everybody look as if never active.
    """
    if not isinstance(user, dict) or user.get("name") != of:
        raise _garbled(f"asked for the user {of!r}, it returned {_short(user)} without that name")
    if "servers" not in user:
        raise HubRefused(
            f"The hub doesn't show the servers of {of}: the token lacks the scope read:servers."
            " Give it to HubGuard's role; without it, nothing can be known or done."
        )
    if need_activity and "last_activity" not in user:
        raise HubRefused(
            f"The hub doesn't show the last activity of {of}: the token lacks the scope read:users:activity."
            " Give it to HubGuard's role; without it, HubGuard can't know who is inactive."
        )
    servers, admin = user["servers"], user.get("admin")
    if admin is None and "admin" in user:
        admin = False  # the hub passes on a NULL of its database, and takes it for no admin
    if not isinstance(servers, dict) or not isinstance(admin, bool):
        raise _garbled(f"the user {of!r} has the servers {_short(servers)} and admin {_short(admin)}")
    groups, roles = (_read_names(user, key, of) for key in ("groups", "roles"))
    read = (
        _read_server(of, name, server, admin=admin, groups=groups, roles=roles)
        for name, server in sorted(servers.items())
        if not _is_nameless(name, server)
    )
    return User(
        name=of,
        admin=admin,
        groups=groups,
        roles=roles,
        created=read_time(user.get("created"), f"the creation of {of!r}"),
        last_activity=read_time(user.get("last_activity"), f"the last activity of {of!r}"),
        servers=tuple(server for server in read if stopped or server.ready or server.pending is not None),
    )


def read_group_roles(items: Any) -> dict[str, tuple[str, ...]]:
    """The roles of each group of a page, by the group's name. Raises HubRefused if the hub leaves them out."""
    if not isinstance(items, list):
        raise _garbled(f"it returned {_short(items)} instead of a list of groups")
    by_group = {}
    for item in items:
        name = read_text(item, "name")
        roles = _read_names(item, "roles", f"group {name}")
        if roles is None:
            raise HubRefused(
                f"The hub doesn't show the roles of the group {name}: the token lacks the scope read:roles:groups. Give it to"
                " HubGuard's role; without it, roles that come through a group are unknown."
            )
        by_group[name] = roles
    return by_group


def with_group_roles(user: User, by_group: Mapping[str, tuple[str, ...]] | None) -> User:
    """``user`` with the roles of their groups, too; None if a group isn't in ``by_group``, which None leaves all out of."""
    roles = user.roles
    if user.groups is None or not set(user.groups) <= (by_group or {}).keys():
        roles = None
    elif roles is not None:
        roles = tuple(sorted({*roles, *(role for group in user.groups for role in (by_group or {})[group])}))
    if roles == user.roles:
        return user
    return replace(user, roles=roles, servers=tuple(replace(server, roles=roles) for server in user.servers))


def read_tokens(answer: Any, *, of: str) -> tuple[int, datetime | None]:
    """How many tokens the user ``of`` has, and the last use of any; None if none was used."""
    tokens = read_part(answer, "api_tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise _garbled(f"the tokens of {of!r} are {_short(tokens)}")
    if any("last_activity" not in token for token in tokens):
        raise _garbled(f"it doesn't show when the tokens of {of!r} were used")
    used = (read_time(token["last_activity"], f"the last use of a token of {of!r}") for token in tokens)
    return len(tokens), max((at for at in used if at is not None), default=None)


def read_startup(metrics: str) -> float | None:
    """Of the hub's metrics, in Prometheus' text format: how many seconds its start took; None if they don't show it."""
    values = dict(_STARTUP.findall(metrics))
    try:
        sum_s, count = float(values["sum"]), float(values["count"])
    except (KeyError, ValueError):
        return None
    # Each start is measured by a process of its own. Before the end of it there is nothing yet.
    return sum_s if count == 1 and math.isfinite(sum_s) and sum_s >= 0 else None


def read_services(answer: Any) -> dict[str, tuple[str, ...]]:
    """The command of each service, by its name."""
    return {name: tuple(map(str, model.get("command") or ())) for name, model in _services(answer).items()}


def read_prefixes(answer: Any) -> dict[str, str]:
    """The path of each service's route, unquoted and without a slash at its end, by its name, if it has one.

    Raises HubRefused if the hub leaves it out, as it does without the scope read:services.
    """
    prefixes = {}
    for name, model in _services(answer).items():
        prefix = model.get("prefix")
        if "prefix" not in model and model.get("name") == name:
            raise HubRefused(
                f"The hub doesn't show where the service {name} is: the token lacks the scope read:services. Give it to"
                " HubGuard's role; without it, HubGuard can't see a service's missing route."
            )
        if not isinstance(prefix, str) or (prefix and not prefix.startswith("/")):
            raise _garbled(f"the service {name!r} has the prefix {_short(prefix)}")
        if prefix:
            prefixes[name] = "/" + unquote(prefix).strip("/")
    return prefixes


def read_part(answer: Any, key: str) -> Any:
    """What stands under ``key``; it may be anything, but isn't missing."""
    if not isinstance(answer, dict) or key not in answer:
        raise _garbled(f"it returned {_short(answer)} without a usable {key}")
    return answer[key]


def read_text(answer: Any, key: str) -> str:
    """The text under ``key``, never empty."""
    text = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text:
        raise _garbled(f"it returned {_short(answer)} without a usable {key}")
    return text


def read_time(text: Any, what: str) -> datetime | None:
    """A time, UTC-aware. Without a zone it is UTC, as the hub means it; None stays None."""
    if text is None:
        return None
    match = TIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if match is not None:
            *parts, fraction, _, sign, hours, minutes = match.groups()
            ahead = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
            year, month, day, hour, minute, second = (int(part) for part in parts)
            micros = int((fraction or "0").ljust(6, "0")[:6])
            return datetime(year, month, day, hour, minute, second, micros, tzinfo=timezone.utc) - ahead
    except (ValueError, OverflowError):
        pass
    raise _garbled(f"{what} is {_short(text)}, which is no time")


def read_retry_after(header: str | None) -> float | None:
    """The header Retry-After, a number of seconds or an HTTP date, in seconds from now; None if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        until = _read_date(header)
        if until is None:
            return None
        seconds = (until - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def read_skew(header: str | None, sent_at: datetime) -> float | None:
    """By the header Date of an answer, how far the hub's clock is ahead of ours, in seconds; None without a date.

    ``sent_at`` is when it was asked: the hub notes the date, in whole seconds, when the request comes in.
    """
    date = None if header is None else _read_date(header)
    return None if date is None else (date - sent_at).total_seconds() + 0.5


def _services(answer: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(answer, dict) or not all(isinstance(model, dict) for model in answer.values()):
        raise _garbled(f"it returned {_short(answer)} instead of its services")
    return answer


def _read_date(header: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def _read_names(user: dict[str, Any], key: str, of: str) -> tuple[str, ...] | None:
    """The names of the groups or roles of a user, in order; None if the hub leaves them out."""
    if key not in user:
        return None
    names = user[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _garbled(f"the user {of!r} has the {key} {_short(names)}")
    return tuple(sorted(names))


def _read_server(
    user: str,
    name: str,
    model: Any,
    *,
    admin: bool,
    groups: tuple[str, ...] | None,
    roles: tuple[str, ...] | None,
) -> Server:
    label = server_label(user, name)
    if not isinstance(model, dict) or model.get("name", name) != name:
        raise _garbled(f"the server {label!r} is {_short(model)}")
    ready, pending = model.get("ready"), model.get("pending")
    if not isinstance(ready, bool) or not (pending is None or (isinstance(pending, str) and pending)):
        raise _garbled(f"the server {label!r} has ready {_short(ready)} and pending {_short(pending)}")
    options = model.get("user_options")
    if options is not None and not isinstance(options, dict):
        raise _garbled(f"the server {label!r} has the options {_short(options)}")
    return Server(
        user=user,
        name=name,
        ready=ready,
        pending=pending,
        started=read_time(model.get("started"), f"the start of {label!r}"),
        last_activity=read_time(model.get("last_activity"), f"the last activity of {label!r}"),
        admin=admin,
        groups=groups,
        roles=roles,
        options=options,
    )


def _is_nameless(name: str, model: Any) -> bool:
    """Whether the hub's row of that server has no name: in JSON its key is "null". It can't be asked about."""
    return name == "null" and isinstance(model, dict) and model.get("name", "") is None


def _count(answer: dict[str, Any], key: str) -> int:
    number = answer.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise _garbled(f"{key} is {_short(number)}, which is no count")
    return number


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        # Not what is in it: if something else answers, that may be our own request, with its headers.
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _garbled(what: str) -> HubGarbled:
    return HubGarbled(f"The hub's answer makes no sense: {what}. Nothing is concluded from it. Is the API's URL right?")
