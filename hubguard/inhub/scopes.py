"""The hub scopes that HubGuard's service is given, each with the feature that needs it, and the scopes that it brings."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

SERVICE = "hubguard"
"""The service at the hub: its page, its token, its role."""


class Need(NamedTuple):
    """Why a scope is asked for. Without a ``required`` one HubGuard can't do its work, without another one less of it."""

    feature: str
    required: bool


SCOPES: dict[str, Need] = {
    "list:users": Need("finding the servers that run", True),
    "read:users": Need("telling admins' servers from others", True),
    "read:servers": Need("seeing since when a server runs and when it was last used", True),
    "delete:servers": Need("stopping servers", True),
    "read:roles:users": Need("rules that match on roles", False),
    "list:groups": Need("seeing roles that come through a group", False),
    "read:roles:groups": Need("seeing roles that come through a group", False),
    "list:services": Need("noticing another culler at work", False),
    "read:services": Need("noticing another culler at work", False),
    "proxy": Need("having the hub check its routes", False),
    "servers": Need("curing servers that the hub only believes in", False),
    "read:hub": Need("telling which kind of spawner the hub has", False),
    "read:tokens": Need("sparing users whose tokens are in use, if the hub's database isn't read", False),
    "read:metrics": Need("telling how long the hub takes to start, which pruning shortens", False),
    "access:services!service=hubguard": Need("`hubguard cull --once` through the running guard", False),
}
"""In the order in which `hubguard doctor` lists what is missing.

None is a custom one: with a line after the include that overwrites the custom scopes, the hub wouldn't start for a role that
names one. ``delete:servers`` allows the same. ``servers`` allows starting them, on a 6.x hub as on a 5.x hub, which doesn't
know ``start:servers`` and wouldn't start for a role that names it.
"""


def allows(held: Collection[str], scope: str) -> bool:
    """Whether the expanded scopes that somebody holds allow what ``scope`` does; one without its filter does, too."""
    return scope in held or scope.partition("!")[0] in held


DELETE_USERS = "delete:users"
"""Requested only if users are to be deleted.

By ``HubGuardPrune.delete_users``, ``HubGuardCull.users``, or a culler with --cull-users that is taken over from.
"""

CUSTOM_SCOPES: dict[str, dict[str, object]] = {
    "custom:hubguard:read": {
        "description": "See HubGuard's pages: servers, what it would do to them, and its journal."
    },
    "custom:hubguard:act": {
        "description": "Let HubGuard act: cull, repair, hold, resume, arm.",
        "subscopes": ["custom:hubguard:read"],
    },
    "custom:hubguard:prune": {
        "description": "Let HubGuard remove users.",
        "subscopes": ["custom:hubguard:read"],
    },
}

LOGIN_SCOPES: tuple[str, ...] = (
    *CUSTOM_SCOPES,
    "list:users",
    "read:users",
    "read:servers",
    "delete:servers",
    "delete:users",
    "admin-ui",
)
"""What a login at HubGuard's pages may carry of what that user holds anyway: enough to judge by, and no more.

Tried on 5.5 and 6.1: a login holds of these what the user holds, so a filter stays a filter. ``admin:servers`` and
``admin:users`` include what is listed. ``admin-ui`` is for the link to the hub's admin page.
"""
