"""Adds HubGuard to the hub's config, without touching what is there."""

from __future__ import annotations

import copy
import ipaddress
import logging
import os
import re
import secrets
import socket
import sys
import time
import types
from typing import Any
from urllib.parse import urlsplit

from jupyterhub import version_info
from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue, PyFileConfigLoader

from hubguard.inhub import handover
from hubguard.inhub.foresee import service_in_config
from hubguard.inhub.late import LateRegistration, Members, Problem, hub_for_handover
from hubguard.inhub.scopes import CUSTOM_SCOPES, DELETE_USERS, LOGIN_SCOPES, SCOPES, SERVICE

PROCESS = "hubguard-process"
ROLE = "hubguard"

ANSWER_WITHIN_S = 5
"""Seconds that a 6.x hub gives our page in its regular look at the services. A 5.x hub gives it one at its start."""

SHORTEST_TOKEN = 8
"""Minimum characters of a token in the hub's config: with a shorter one, the hub doesn't start."""

log = logging.getLogger("hubguard.inhub")


def register(c: Config) -> None:
    """HubGuard is one of the hub's services, with its role and its custom scopes; a second call changes nothing.

    Two entries, tried on 5.5 and 6.1: a managed service *with* a url that doesn't answer in time makes the hub exit. So
    the managed entry, which runs the process, has none, and the entry with the url is an external one, which the hub
    doesn't wait for: see LateRegistration. Both share one token. Both come first in the list, so that the process learns of
    an idle culler, and puts it out of work, before the hub starts that.

    Never raises: what goes wrong is logged, and the hub starts without HubGuard.
    """
    try:
        _register(_levels(c))
    except Exception:
        log.exception("HubGuard couldn't be registered. The hub starts without it")


def _register(levels: list[Config]) -> None:
    if SERVICE in _names(levels, "services"):
        log.info("HubGuard is registered already.")
        return
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        # A managed service whose command can't be run makes the hub exit.
        log.error("HubGuard can't tell which Python runs the hub, so it isn't started.")
        return
    token, token_problem = _token(os.environ.get("HUBGUARD_API_TOKEN", ""))
    url, url_problem = _url(_effective(levels, "HubGuard", "url", ""))
    command = [sys.executable]
    if sys.version_info >= (3, 11):
        command.append("-P")  # a file hubguard.py in the hub's folder, say a copy of the include, isn't us
    command += ["-m", "hubguard", "serve", "--url", url]
    command += ["--generation", f"{time.time():.3f}", "--hub-pid", str(os.getpid())]
    process = {
        "name": PROCESS,
        "command": command,
        "api_token": token,
        "display": False,
        "environment": {
            "HUBGUARD_REGISTRATION": LateRegistration(*(problem for problem in (token_problem, url_problem) if problem))
        },
    }
    page: dict[str, Any] = {
        "name": SERVICE,
        "url": url,
        "api_token": token,
        "display": True,
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": list(LOGIN_SCOPES),
    }
    if version_info >= (6,):
        page["timeout"] = ANSWER_WITHIN_S
    role = {
        "name": ROLE,
        "description": "What HubGuard needs: see hubguard.inhub.SCOPES",
        "scopes": [*SCOPES, *([DELETE_USERS] if _deletes_users(levels) else [])],
        "services": Members([SERVICE]),
    }
    taken = ROLE in _names(levels, "load_roles")
    _add_scopes(levels)
    if not taken:
        _add(levels, "load_roles", [role], first=False)
    _add(levels, "services", [process, page], first=True)


def _deletes_users(levels: list[Config]) -> bool:
    """Whether users are to be deleted: by our settings, or in the place of a culler that deletes them."""
    by_culling = _effective(levels, "HubGuardCull", "users", None)
    if by_culling is True or _effective(levels, "HubGuardPrune", "delete_users", False) is True:
        return True
    if by_culling is False or _effective(levels, "HubGuard", "on_idle_culler", "take over") != "take over":
        return False
    roles = [role for role in _effective(levels, "JupyterHub", "load_roles", []) if isinstance(role, dict)]
    services = [spec for spec in _effective(levels, "JupyterHub", "services", []) if isinstance(spec, dict)]
    sections = {
        "HubGuard": {"act_beside": _effective(levels, "HubGuard", "act_beside", ())},
        "HubGuardCull": {"rules": _effective(levels, "HubGuardCull", "rules", ())},
    }
    hub = hub_for_handover(
        sections,
        str(_effective(levels, "JupyterHub", "hub_bind_url", "") or "http://127.0.0.1"),
        frozenset((*SCOPES, DELETE_USERS)),
        bool(_effective(levels, "JupyterHub", "internal_ssl", False)),
    )
    return handover.decide([service_in_config(spec, roles) for spec in services], hub).deletes_users


def _levels(c: Config) -> list[Config]:
    """``c`` and the configs that it will be merged into, from the inside out.

    Within load_subconfig, ``c`` is a new Config that knows nothing of what the including file has set, and a list assigned
    in it replaces the list there. The loaders up the call stack have the outer ones.
    """
    levels = [c]
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        loader = frame.f_locals.get("self") if frame.f_code.co_name == "load_subconfig" else None
        if isinstance(loader, PyFileConfigLoader) and all(loader.config is not level for level in levels):
            levels.append(loader.config)
        frame = frame.f_back
    return levels


def _effective(levels: list[Config], section: str, name: str, default: Any) -> Any:
    """What a setting is by now, seen over all levels: a value, or lazy additions to the value of a level further out."""
    value = default
    for level in reversed(levels):
        if name in level.get(section, {}):
            there = level[section][name]
            # On a copy: a lazy value keeps the first answer it gives.
            value = copy.deepcopy(there).get_value(value) if isinstance(there, LazyConfigValue) else there
    return value


def _names(levels: list[Config], name: str) -> set[object]:
    return {spec.get("name") for spec in _effective(levels, "JupyterHub", name, []) if isinstance(spec, dict)}


def _home(levels: list[Config], name: str) -> Config:
    """The hub's section where an addition lasts: the innermost that sets ``name`` outright, since that replaces what is
    further out, else the outermost.
    """
    for level in levels:
        section: Config = level.JupyterHub
        if name in section and not isinstance(section[name], LazyConfigValue):
            return section
    outermost: Config = levels[-1].JupyterHub
    return outermost


def _add(levels: list[Config], name: str, items: list[Any], *, first: bool) -> None:
    section = _home(levels, name)
    there = section[name]
    if not isinstance(there, LazyConfigValue):
        section[name] = [*items, *there] if first else [*there, *items]
    elif first:
        there.prepend(items)
    else:
        there.extend(items)


def _add_scopes(levels: list[Config]) -> None:
    """Our custom scopes are defined, except if there are such already: those stay as they are."""
    theirs = _effective(levels, "JupyterHub", "custom_scopes", {}) or {}
    ours = {name: dict(scope) for name, scope in CUSTOM_SCOPES.items() if name not in theirs}
    section = _home(levels, "custom_scopes")
    there = section.custom_scopes
    if isinstance(there, LazyConfigValue):
        there.update(ours)
    else:
        section.custom_scopes = {**(there or {}), **ours}


def _token(wanted: str) -> tuple[str, Problem | None]:
    """The token that both entries share, and what is wrong with the one wanted, if anything."""
    wanted = wanted.strip()  # what was read from a file often ends with a line break
    random = secrets.token_hex(32)
    if not wanted:
        return random, None
    if len(wanted) < SHORTEST_TOKEN:
        return random, ("HUBGUARD_API_TOKEN", f"has fewer than {SHORTEST_TOKEN} characters, which no hub accepts.")
    if not re.fullmatch("[!-~]+", wanted):
        return random, ("HUBGUARD_API_TOKEN", "has characters that no HTTP header can hold.")
    return wanted, None


def _url(wanted: object) -> tuple[str, Problem | None]:
    """The URL of our pages, with a port, and what is wrong with the one wanted, if anything."""
    if not wanted:
        return f"http://127.0.0.1:{_free_port()}", None
    try:
        parts = urlsplit(str(wanted))
        port = parts.port
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{ipaddress.IPv6Address(host)}]"
        elif not re.fullmatch(r"[a-z0-9._-]{1,253}", host):
            raise ValueError(host)
        if parts.scheme not in {"http", "https"} or parts.username is not None or not isinstance(wanted, str):
            raise ValueError(wanted)
    except ValueError:
        # It isn't repeated: a URL with a password must get into no log.
        problem = "is no URL such as http://127.0.0.1:10101, with a scheme, a host and a port."
        return f"http://127.0.0.1:{_free_port()}", ("HubGuard.url", problem)
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}:{port or _free_port()}", None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
