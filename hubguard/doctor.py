"""Checks what HubGuard needs, one thing after another, and says what to do about each that is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import aiohttp
from traitlets.config.loader import LazyConfigValue

from hubguard import words
from hubguard.app import make_budget
from hubguard.config import Settings, load, read_file, sections_of
from hubguard.cull.decide import rules
from hubguard.cull.settings import HubGuardCull
from hubguard.errors import ConfigError, HubGuardError, HubRefused, JournalError
from hubguard.hub.api import HubAPI
from hubguard.hub.client import HTTPHubAPI
from hubguard.inhub import SCOPES, runs_a_culler
from hubguard.inhub.scopes import DELETE_USERS, Need
from hubguard.journal.migrate import revisions
from hubguard.place import place_from
from hubguard.prune.settings import HubGuardPrune

OLDEST_HUB = (5, 2)

HUB_PATIENCE_S = 10.0
"""A person waits: what takes longer than this is told as not answering."""


class Finding(str, Enum):
    """How a check came out."""

    FINE = "fine"
    WARNING = "warning"  # HubGuard works, with something less than it could
    WRONG = "wrong"  # HubGuard can't do its work


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: ``what`` was found, in one line, and what to ``do`` about it ("" where it is fine)."""

    subject: str
    finding: Finding
    what: str
    do: str = ""


async def examine(settings: Settings, environ: Mapping[str, str]) -> tuple[Check, ...]:
    """Every check, in the order in which a failure of one explains those after it.

    Never raises for what it finds, and changes nothing anywhere.
    """
    checks = _settings(settings)
    try:
        place = place_from(environ)
        hub = HTTPHubAPI(place.api_url, place.token, make_budget(settings), request_timeout_s=HUB_PATIENCE_S)
    except ConfigError as error:
        checks.append(Check("hub", Finding.WRONG, str(error), "Set it as the hub does for its services."))
    else:
        async with hub:
            for look in (_version, partial(_scopes, settings), _servers, _cullers):
                found = await _unless_unreachable(look, hub)
                checks += found
                if any(check.subject == "hub" and check.finding is Finding.WRONG for check in found):
                    break
    checks.append(await _proxy(environ))
    checks += await asyncio.to_thread(_journal, settings)
    return tuple(checks)


def examine_config(path: Path) -> tuple[Check, ...]:
    """What a config file, the hub's or our own, would do, before it is deployed. It is executed; no hub is asked."""
    try:
        config = read_file(path)
    except ConfigError as error:
        return (Check("file", Finding.WRONG, str(error), "Mend the file."),)
    checks = _settings(load(sections_of(config)))
    if "JupyterHub" not in config:
        return tuple(checks)
    services = config.JupyterHub.get("services", [])
    services = services.get_value([]) if isinstance(services, LazyConfigValue) else services
    names = [spec.get("name") for spec in services if isinstance(spec, Mapping)]
    if "hubguard" not in names:
        what = "HubGuard isn't among the services in the end: there is no include, or a later line overwrites them"
        checks.append(
            Check("service", Finding.WRONG, what, "Include it last, or add to c.JupyterHub.services with extend().")
        )
    elif names[0] != "hubguard-process":
        what = "another service comes before HubGuard, so that an idle culler among those couldn't be taken over"
        checks.append(Check("service", Finding.WARNING, what, "Include HubGuard after the other services are set."))
    else:
        checks.append(Check("service", Finding.FINE, "HubGuard is registered as a service"))
    return tuple(checks)


def as_json(check: Check) -> dict[str, str]:
    """One check as JSON has it."""
    return {"subject": check.subject, "finding": check.finding.value, "what": check.what, "do": check.do}


def as_text(checks: Sequence[Check]) -> str:
    """All checks for a terminal: a line each, and what to do below those that aren't fine."""
    lines = []
    for check in checks:
        lines.append(f"{check.finding.value:8}{check.subject:10}{check.what}")
        if check.do:
            lines.append(f"{'':18}→ {check.do}")
    return "\n".join(lines)


def _settings(settings: Settings) -> list[Check]:
    checks = [
        Check(
            "settings", Finding.WRONG, str(error), "Correct it in the config file; HubGuard acts on nothing until then."
        )
        for error in settings.errors
    ] or [Check("settings", Finding.FINE, "all settings are right")]
    checks += [Check("settings", Finding.WARNING, note) for note in settings.notes]
    # What load() takes the rules for; with errors in them there are none.
    checks += [
        Check("rules", Finding.WARNING, sentence, "Change it or its place in HubGuardCull.rules, or leave it out.")
        for sentence in rules.analyse(rules.parse(settings.cull.rules)[0])
    ]
    return checks + _deleting_users(settings.cull) + _pruning(settings.prune)


def _deleting_users(cull: HubGuardCull) -> list[Check]:
    """What the settings say of deleting users, where they do."""
    if not cull.users:
        return []
    who = "users, admins too," if cull.admin_users else "users who aren't admins"
    idle, old = words.limit(cull.user_idle_timeout_s), words.limit(cull.user_max_age_s)
    when = [f"haven't been active for {idle}"] if cull.user_idle_timeout_s > 0 else []
    when += [f"were created {old} ago, active or not"] if cull.user_max_age_s > 0 else []
    if not when:
        what = "users would be deleted (HubGuardCull.users), but with both of their limits at 0 nobody ever is"
        return [Check("users", Finding.WARNING, what, "Set HubGuardCull.user_idle_timeout_s, or users to False.")]
    what = f"{who} are deleted from the hub, with all they have there, when no server of theirs runs and they "
    what += " or ".join(when)
    do = (
        "Set HubGuardCull.users to False unless this hub's users are temporary. Where the spawner deletes storage with the"
        " user, that is gone, too (KubeSpawner: by default)."
    )
    return [Check("users", Finding.WARNING, what, do)]


def _pruning(prune: HubGuardPrune) -> list[Check]:
    """What the settings say of pruning, where it may delete users: by schedule, or when a person applies a plan."""
    if not prune.delete_users:
        return []
    if not prune.every_s:
        what = (
            "users may be deleted from the hub (HubGuardPrune.delete_users), each time by a plan that a person applies"
        )
        return [Check("users", Finding.FINE, what)]
    when = [f"inactive for {words.limit(prune.inactive_for_s)}"] if prune.inactive_for_s > 0 else []
    if prune.never_active_for_s > 0:
        when.append(f"never active and made {words.limit(prune.never_active_for_s)} ago")
    every = words.limit(prune.every_s)
    if not when:
        what = f"users would be deleted every {every} (HubGuardPrune.every_s), but with both limits at 0 nobody ever is"
        do = "Set HubGuardPrune.inactive_for_s or never_active_for_s, or every_s to 0."
        return [Check("users", Finding.WARNING, what, do)]
    what = (
        f"this deletes users by itself, every {every} up to {prune.run_cap:,} (HubGuardPrune.every_s): whoever is"
        f" {' or '.join(when)}, except protected users"
    )
    do = (
        "Set HubGuardPrune.every_s to 0 unless that is wanted; plans can be made and applied by hand. Where the spawner"
        " deletes storage with the user, that is gone, too, once HubGuardPrune.acknowledged names it."
    )
    return [Check("users", Finding.WARNING, what, do)]


async def _unless_unreachable(look: Callable[[HubAPI], Awaitable[list[Check]]], hub: HubAPI) -> list[Check]:
    try:
        return await look(hub)
    except HubRefused as error:
        return [Check("token", Finding.WRONG, str(error), "Give HubGuard's service its role: see the include.")]
    except HubGuardError as error:
        return [
            Check(
                "hub",
                Finding.WRONG,
                str(error),
                "Check JUPYTERHUB_API_URL, and that the hub is up and reached from here.",
            )
        ]


async def _version(hub: HubAPI) -> list[Check]:
    version = await hub.version()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_HUB:
        return [
            Check("hub", Finding.WRONG, f"the hub is JupyterHub {version}", "HubGuard needs JupyterHub 5.2 or newer.")
        ]
    return [Check("hub", Finding.FINE, f"the hub answers; it is JupyterHub {version}")]


async def _scopes(settings: Settings, hub: HubAPI) -> list[Check]:
    name, held = await hub.whoami()
    checks = []
    needs = SCOPES | _deleting(settings)
    for scope, need in needs.items():
        if scope in held:
            continue
        finding = Finding.WRONG if need.required else Finding.WARNING
        checks.append(
            Check(
                "scopes",
                finding,
                f"{scope} is missing: no {need.feature}",
                f"Add it to the role of the service {name!r}.",
            )
        )
    return checks or [Check("scopes", Finding.FINE, f"the service {name!r} has every scope it can use")]


def _deleting(settings: Settings) -> dict[str, Need]:
    """The scope to delete users, where they are to be deleted, by what names the settings that want it."""
    wanted = ["HubGuardCull.users"] if settings.cull.users else []
    wanted += ["HubGuardPrune.delete_users"] if settings.prune.delete_users else []
    return (
        {DELETE_USERS: Need(f"deleting users ({' and '.join(wanted)}, set before the include)", True)} if wanted else {}
    )


async def _servers(hub: HubAPI) -> list[Check]:
    servers = await hub.list_servers()
    return [Check("servers", Finding.FINE, f"{len(servers)} servers are active")]


async def _cullers(hub: HubAPI) -> list[Check]:
    try:
        services = await hub.list_services()
    except HubRefused:
        what = "whether another culler is at work can't be seen: list:services and read:services are missing"
        return [Check("cullers", Finding.WARNING, what, "Add them to the role of HubGuard's service.")]
    return [
        Check(
            "cullers",
            Finding.WRONG,
            f"the service {name} is an idle culler, too"
            + (", and it deletes users" if _deletes_users(command) else ""),
            "Only one may act. Remove it from c.JupyterHub.services, or let HubGuard's include take over from it.",
        )
        for name, command in services.items()
        if runs_a_culler(command)
    ] or [Check("cullers", Finding.FINE, "no other culler is run by the hub")]


def _deletes_users(command: Sequence[str]) -> bool:
    return any(
        word.replace("_", "-").startswith("--cull-users") and not word.lower().endswith("false") for word in command
    )


async def _proxy(environ: Mapping[str, str]) -> Check:
    url, token = environ.get("CONFIGPROXY_API_URL"), environ.get("CONFIGPROXY_AUTH_TOKEN")
    if not url or not token:
        what = "the proxy isn't asked: CONFIGPROXY_API_URL and CONFIGPROXY_AUTH_TOKEN aren't both set here"
        return Check(
            "proxy", Finding.WARNING, what, "Set them to check it, too; the include passes them to the service."
        )
    timeout = aiohttp.ClientTimeout(total=HUB_PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"token {token}"}) as session,
            session.get(f"{url.rstrip('/')}/api/routes", allow_redirects=False) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
        what = f"the proxy's API doesn't answer at {url} ({type(error).__name__})"
        return Check("proxy", Finding.WRONG, what, "Check CONFIGPROXY_API_URL, and that the proxy runs.")
    if status == 403:
        return Check(
            "proxy", Finding.WRONG, "the proxy refuses its token", "Make CONFIGPROXY_AUTH_TOKEN the proxy's own."
        )
    if status != 200:
        return Check("proxy", Finding.WRONG, f"the proxy's API answers {status}", "Check CONFIGPROXY_API_URL.")
    return Check("proxy", Finding.FINE, "the proxy's API answers, and takes the token")


def _journal(settings: Settings) -> list[Check]:
    try:
        found, newest = revisions(settings.guard.db_url)
    except JournalError as error:
        return [Check("journal", Finding.WRONG, str(error), error.detail or "Mend HubGuard.db_url or the database.")]
    if found is None:
        return [Check("journal", Finding.FINE, "HubGuard's database is empty; the service makes its tables")]
    if found != newest:
        what = f"HubGuard's database is at revision {found}, this version needs {newest}"
        return [
            Check(
                "journal", Finding.WARNING, what, "Start the service, which upgrades it, or run `hubguard db upgrade`."
            )
        ]
    return [Check("journal", Finding.FINE, f"HubGuard's database is at the newest revision, {newest}")]
