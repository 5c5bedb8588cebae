"""Whether users and rows of an undo file are such as HubGuard writes: whoever changes one can make its checksum right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from hubguard.hub.accounts import NAMED
from hubguard.hub.nouns import UndoUser
from hubguard.prune.offline.database import HUB_TABLES
from hubguard.prune.offline.rows import MAPS, POINTERS

_WHOLE = 2**63
"""No database keeps whole numbers from this on."""

_NEEDED: Mapping[str, frozenset[str]] = {
    "users": frozenset({"name", "cookie_id"}),
    "spawners": frozenset({"name", "server_id", "oauth_client_id"}),
    "oauth_clients": frozenset({"identifier"}),
    "api_tokens": frozenset({"hashed", "client_id"}),
    "oauth_codes": frozenset({"client_id"}),
    "share_codes": frozenset({"hashed"}),
}
"""By table, the columns that a restoring uses, besides ids."""

_TIMES: Mapping[str, frozenset[str]] = {
    "users": frozenset({"created", "last_activity"}),
    "spawners": frozenset({"started", "last_activity"}),
}
"""By table, the times without which a hub can't read its users."""


def unlike_ours(users: Sequence[UndoUser]) -> str | None:
    """What in them no undo file of HubGuard's has, as a clause that holds no value; None: nothing.

    Rows of tables that the hub doesn't have aren't looked at.
    """
    return next(_unlike_ours(users), None)


def _unlike_ours(users: Sequence[UndoUser]) -> Iterator[str]:
    seen: set[str] = set()
    for number, user in enumerate(users, 1):
        rows = user.rows or {}
        own = rows.get("users", ())
        if user.name in seen:
            yield f"has its user {number} twice"
        if user.name:
            seen.add(user.name)
        if [row.get("name") for row in own] not in ([], [user.name]) or (own and not user.name):
            yield f"has with its user {number} rows of users that aren't theirs"
        for row in rows.get(NAMED, ()):
            if why := _unlike_a_name(row):
                yield f"has with its user {number} {why}"
        for table in rows.keys() & set(HUB_TABLES):
            for row in rows[table]:
                if why := _unlike_a_row(table, row):
                    yield f"has with its user {number} a row of {table} {why}"


def _unlike_a_name(row: Mapping[str, object]) -> str | None:
    table = row.get("table")
    ids = ("id", "user_id") if table == "spawners" else ("id",)
    if table not in POINTERS and table not in HUB_TABLES:
        return "the name of something that isn't in a table of the hub's"
    if "name" not in row or not all(_is_id(row.get(column)) for column in ids):
        return "a name without the id that it stands for"
    return None


def _unlike_a_row(table: str, row: Mapping[str, object]) -> str | None:
    pointers = [column for column, _ in POINTERS.get(table, ())]
    ids = pointers if table in MAPS else ["id"]
    if missing := sorted({*ids, *pointers, *_NEEDED.get(table, ())} - row.keys()):
        return f"without {', '.join(missing)}"
    for column, value in row.items():
        if column in ids and not _is_id(value):
            return f"whose {column} is no id"
        if column in {*pointers, "server_id"} and value is not None and not _is_id(value):
            return f"whose {column} is no id"
        if column in _TIMES.get(table, ()) and not _is_time(value):
            return f"whose {column} is no time"
        if not _can_be_kept(value):
            return f"whose {column} no database can keep"
    return None


def _is_id(value: object) -> bool:
    return type(value) is int and abs(value) < _WHOLE


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return False
    return value is None or isinstance(value, (str, datetime))


def _can_be_kept(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return not isinstance(value, int) or abs(value) < _WHOLE
