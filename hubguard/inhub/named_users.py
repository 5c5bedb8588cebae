"""The users that the hub's config names: whoever deletes them, the hub creates them again, or its services miss them."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from traitlets.config import Config

from hubguard.inhub.spawner_settings import setting

LONGEST = 50_000
"""Maximum bytes of the names: half of an environment variable (``late.LONGEST``), because the settings need room, too."""


def named_users(app: Any) -> list[str] | None:
    """The users that the config of the hub ``app`` names, as the hub calls them, in order; None if that is unknown.

    By the config: a hub that runs adds everybody in its database to ``authenticator.allowed_users`` (5.5 and 6.1). Blocked
    users aren't among them, since no hub makes those. Never raises.
    """
    try:
        authenticator = app.authenticator
        names = [
            *_of_authenticator(app.config, type(authenticator)),
            # As the hub reads them, class-level defaults and lazy values among them.
            *app.admin_users,
            *app.api_tokens.values(),
            *in_groups(app.load_groups),
            *in_roles(app.load_roles),
            *(service.get("user") for service in getattr(app, "services", ()) if service.get("user")),
        ]
        if getattr(authenticator, "manage_roles", False) and _brings_roles(type(authenticator)):
            return None
        return sorted({authenticator.normalize_username(_text(name)) for name in names})
    except Exception:
        return None


def in_groups(groups: Mapping[str, Any]) -> Iterator[str]:
    """The users in ``JupyterHub.load_groups``, each group a list of them or a mapping with ``users``."""
    for members in groups.values():
        yield from members.get("users", ()) if isinstance(members, Mapping) else members


def in_roles(roles: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The users in ``JupyterHub.load_roles``."""
    for role in roles:
        yield from role.get("users", ())


def packed(names: list[str] | None) -> dict[str, Any]:
    """``named``, the names or None; or, if they are many, ``named`` None and ``named_packed``, a text of them all.

    If even that is too long for an environment variable, both are None: then it is unknown who is named.
    """
    if names is None or len(text := json.dumps(names)) <= LONGEST:
        return {"named": names}
    # An ASCII text, since JSON would write each other character as six.
    short = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return {"named": None, "named_packed": short if len(short) <= LONGEST else None}


def unpacked(facts: Mapping[str, Any]) -> frozenset[str] | None:
    """The users that the hub's config names, by what :func:`packed` made of them; None if unknown."""
    names = facts.get("named")
    if names is None and facts.get("named_packed"):
        names = json.loads(zlib.decompress(base64.b64decode(facts["named_packed"])))
    return None if names is None else frozenset(map(str, names))


def _of_authenticator(config: Config, kind: type) -> Iterator[Any]:
    # "whitelist" is what allowed_users was called before 1.2; both hubs still read it.
    for name in ("allowed_users", "admin_users", "whitelist"):
        if name in kind.class_traits():  # type: ignore[attr-defined]
            value = setting(config, kind, name)
            if value is None:
                raise LookupError(f"{name} is found out by the authenticator itself")
            yield from value


def _brings_roles(kind: type) -> bool:
    """Whether the authenticator may name users in roles of its own making, of which a hub keeps nothing (5.5 and 6.1)."""
    maker = next(base for base in kind.__mro__ if "load_managed_roles" in vars(base))
    return maker.__module__ != "jupyterhub.auth"


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name of a user")
    return name


def add_names_of_the_hub(sections: dict[str, dict[str, Any]], normalize: Callable[[str], str]) -> None:
    """Beside each user that a rule or a protection names stands, from now on, the name that the authenticator makes of it.

    Globs stay as they are. Raises what ``normalize`` raises.
    """

    def more(names: object) -> object:
        given = [names] if isinstance(names, str) else names
        if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
            return names
        literal = (name for name in given if name and not set(name) & set("*?["))
        added = [made for name in literal if isinstance(made := normalize(name), str) and made not in given]
        return [*given, *dict.fromkeys(added)] if added else names

    if isinstance(rules := sections.get("HubGuardCull", {}).get("rules"), list):
        sections["HubGuardCull"]["rules"] = [
            {key: more(value) if key in {"users", "not_users"} else value for key, value in rule.items()}
            if isinstance(rule, Mapping)
            else rule
            for rule in rules
        ]
    if "protected_names" in (prune := sections.get("HubGuardPrune", {})):
        prune["protected_names"] = more(prune["protected_names"])
