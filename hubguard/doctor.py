"""Checks everything that HubGuard needs, and says what to do about each problem."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue

from hubguard import understudy, words
from hubguard.app import make_budget
from hubguard.config import Settings, load, read_file, sections_of
from hubguard.cull.decide import rules
from hubguard.cull.settings import HubGuardCull
from hubguard.errors import ConfigError, HubGuardError, HubRefused, JournalError
from hubguard.hub.api import HubAPI
from hubguard.hub.client import HTTPHubAPI
from hubguard.inhub import SCOPES, handover, runs_a_culler
from hubguard.inhub.foresee import foresee
from hubguard.inhub.idle_culler import names_a_culler, settings_from
from hubguard.inhub.scopes import CUSTOM_SCOPES, DELETE_USERS, SERVICE, Need, allows
from hubguard.journal.migrate import revisions
from hubguard.place import place_from
from hubguard.prune.settings import HubGuardPrune
from hubguard.watch.notify.choose import open_receivers

OLDEST_HUB = (5, 2)

HUB_PATIENCE_S = 10.0
"""Maximum seconds for an answer, because a person is waiting."""


class Finding(str, Enum):
    """The outcome of a check."""

    FINE = "fine"
    WARNING = "warning"  # HubGuard works, with a feature less
    WRONG = "wrong"  # HubGuard can't do its work


@dataclass(frozen=True, slots=True)
class Check:
    """One check: ``what`` it shows, in one line, and what to ``do`` about it ("" if all is well)."""

    subject: str
    finding: Finding
    what: str
    do: str = ""


async def examine(settings: Settings, environ: Mapping[str, str]) -> tuple[Check, ...]:
    """All checks, ordered so that a failure explains those that follow it.

    Raises nothing for a failed check, and changes nothing.
    """
    checks = _settings(settings)
    try:
        place = place_from(environ)
        hub = HTTPHubAPI(place.api_url, place.token, make_budget(settings), request_timeout_s=HUB_PATIENCE_S)
    except ConfigError as error:
        checks.append(Check("hub", Finding.WRONG, str(error), "Set it to what the hub sets for its services."))
    else:
        async with hub:
            for look in (_version, partial(_scopes, settings), _servers, partial(_cullers, place.registration)):
                answers = await _unless_unreachable(look, hub)
                checks += answers
                if any(check.subject == "hub" and check.finding is Finding.WRONG for check in answers):
                    break
    checks += _receivers(settings, environ)
    checks.append(await _proxy(environ))
    checks += await asyncio.to_thread(_journal, settings)
    return tuple(checks)


def examine_config(path: Path) -> tuple[Check, ...]:
    """The checks of a config file, the hub's or HubGuard's, before it is deployed. Executes the file; reads no hub."""
    try:
        config = read_file(path)
    except ConfigError as error:
        return (Check("file", Finding.WRONG, str(error), "Correct the file."),)
    ours = sections_of(config)
    checks = _settings(load(ours))
    if "JupyterHub" not in config:
        return tuple(checks)
    services = config.JupyterHub.get("services", [])
    services = services.get_value([]) if isinstance(services, LazyConfigValue) else services
    names = [spec.get("name") for spec in services if isinstance(spec, Mapping)]
    if "hubguard" not in names:
        what = "HubGuard isn't registered as a service: the include is missing, or a later line overwrites the services"
        checks.append(
            Check(
                "service",
                Finding.WRONG,
                what,
                "Include HubGuard last, or add services with c.JupyterHub.services.extend().",
            )
        )
    elif names[0] != "hubguard-process":
        what = "another service comes before HubGuard. If it is an idle culler, HubGuard can't replace it"
        checks.append(
            Check("service", Finding.WARNING, what, "Include HubGuard after the lines that set other services.")
        )
    else:
        checks.append(Check("service", Finding.FINE, "HubGuard is registered as a service"))
    checks += _scopes_defined(config) if "hubguard" in names else []
    return (*checks, *_foreseen(config, ours), *_pages(config))


def _scopes_defined(config: Config) -> list[Check]:
    """The check of our custom scopes; none if they are defined."""
    scopes = config.JupyterHub.get("custom_scopes", {})
    scopes = scopes.get_value({}) if isinstance(scopes, LazyConfigValue) else scopes
    if scopes.keys() >= CUSTOM_SCOPES.keys():
        return []
    what = "a line after the include overwrites c.JupyterHub.custom_scopes: a role that names HubGuard's keeps the hub from"
    do = "Include HubGuard last, or add scopes with c.JupyterHub.custom_scopes.update()."
    return [Check("scopes", Finding.WARNING, f"{what} starting", do)]


def _foreseen(config: Config, ours: Mapping[str, Mapping[str, object]]) -> list[Check]:
    """What becomes of other cullers at a hub with this ``config``, whose settings for HubGuard are ``ours``."""
    try:
        told, unreachable, _ = foresee(config)
    except ConfigError as error:
        return [Check("hub", Finding.WRONG, str(error), "Correct it. The hub won't start with this.")]
    if unreachable:
        do = "HubGuard stops nothing there. The hub starts all the same, and an idle culler keeps running."
        return [Check("hub", Finding.WRONG, unreachable, do)]
    checks = _suspects(told)
    if told.replaced:
        what = (
            f"HubGuard replaces the idle culler {told.name} once it has shown that it can, and stops servers by the right of"
            f" that culler's role, without being armed. Taken over: {_taken(told, ours)}"
        )
        do = "If you agree, write the settings down and remove the culler. To keep it: c.HubGuard.on_idle_culler = 'refuse'."
        checks.append(Check("cullers", Finding.WARNING, what, do))
        checks += [Check("cullers", Finding.WARNING, note) for note in told.notes]
    elif told.cullers:
        what = f"the idle culler {told.name} keeps running, and HubGuard only observes. {told.why}"
        checks.append(Check("cullers", Finding.WARNING, what, "Correct that if HubGuard is to replace it."))
    return checks


def _taken(told: handover.Handover, ours: Mapping[str, Mapping[str, object]]) -> str:
    """The settings taken over from a culler, with a word on those that ``ours`` overrule."""
    return ", ".join(
        f"{section}.{name} = {value!r}"
        + (f" (overruled: {ours[section][name]!r})" if name in ours.get(section, {}) else "")
        for section, values in told.settings.items()
        for name, value in values.items()
    )


def _pages(config: Config) -> list[Check]:
    """The check whether a proxy that runs elsewhere can reach our pages; none if nothing speaks against it."""
    proxy = config.get("ConfigurableHTTPProxy", {})
    api_url, url = proxy.get("api_url", ""), config.get("HubGuard", {}).get("url", "")
    where = urlsplit(api_url).hostname if isinstance(api_url, str) else None
    ours = urlsplit(url).hostname if isinstance(url, str) and url else LOOPBACK[0]
    if proxy.get("should_start", True) is not False or where in (None, *LOOPBACK) or ours not in LOOPBACK:
        return []
    what = (
        f"the proxy is at {where}, and HubGuard's pages would be at {ours}, which no other machine or container reaches"
    )
    do = 'Set HubGuard.url to an address of the hub\'s machine that the proxy reaches, such as "http://hub:10101".'
    return [Check("pages", Finding.WARNING, what, do)]


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def as_json(check: Check) -> dict[str, str]:
    """One check, for JSON."""
    return {"subject": check.subject, "finding": check.finding.value, "what": check.what, "do": check.do}


def as_text(checks: Sequence[Check]) -> str:
    """All checks for a terminal: a line each, followed by what to do."""
    lines = []
    for check in checks:
        lines.append(f"{check.finding.value:8}{check.subject:10}{check.what}")
        if check.do:
            lines.append(f"{'':18}→ {check.do}")
    return "\n".join(lines)


def _settings(settings: Settings) -> list[Check]:
    checks = [
        Check(
            "settings", Finding.WRONG, str(error), "Correct it in the config file. HubGuard takes no action until then."
        )
        for error in settings.errors
    ] or [Check("settings", Finding.FINE, "all settings are valid")]
    checks += [Check("settings", Finding.WARNING, note) for note in settings.notes]
    # If a rule has an error, load() drops them all.
    read = rules.parse(settings.cull.rules)[0]
    checks += [
        Check("rules", Finding.WARNING, sentence, "Change, move or remove the rule in HubGuardCull.rules.")
        for sentence in (*rules.analyse(read), *rules.doubts(read, datetime.now(timezone.utc)))
    ]
    return checks + _deleting_users(settings.cull) + _pruning(settings.prune)


def _receivers(settings: Settings, environ: Mapping[str, str]) -> list[Check]:
    """The check of who is notified; none if nobody is to be. Sends nothing."""
    receivers, problems = open_receivers(settings.watch.receivers, environ)
    do = "Correct it. `hubguard alerts test NAME` then shows whether notices arrive."
    checks = [Check("receivers", Finding.WARNING, str(problem), do) for problem in problems]
    if receivers:
        names = ", ".join(named.name for named in receivers)
        checks.append(Check("receivers", Finding.FINE, f"alerts are sent to {names}"))
    return checks


def _deleting_users(cull: HubGuardCull) -> list[Check]:
    """The check of HubGuardCull.users; none if culling deletes no users."""
    if not cull.users:
        return []
    who = "users, including admins," if cull.admin_users else "users who aren't admins"
    idle, old = words.limit(cull.user_idle_timeout_s), words.limit(cull.user_max_age_s)
    when = [f"have been inactive for {idle}"] if cull.user_idle_timeout_s > 0 else []
    when += [f"were created {old} ago, active or not"] if cull.user_max_age_s > 0 else []
    if not when:
        what = "HubGuardCull.users is set, but nobody is ever deleted: both limits are 0"
        return [
            Check(
                "users",
                Finding.WARNING,
                what,
                "Set HubGuardCull.user_idle_timeout_s, or set HubGuardCull.users to False.",
            )
        ]
    what = f"HubGuard deletes {who} with everything the hub keeps of them, once none of their servers runs and they "
    what += " or ".join(when)
    do = (
        "Set HubGuardCull.users to False unless this hub's users are temporary. If the spawner deletes storage with the user"
        " (KubeSpawner: by default), HubGuard deletes nobody until HubGuardPrune.acknowledged names the spawner."
    )
    return [Check("users", Finding.WARNING, what, do)]


def _pruning(prune: HubGuardPrune) -> list[Check]:
    """The check of the settings of pruning; none if pruning deletes no users."""
    if not prune.delete_users:
        return []
    if not prune.every_s:
        what = "HubGuard deletes users only when a person applies a plan (HubGuardPrune.delete_users)"
        return [Check("users", Finding.FINE, what)]
    when = [f"inactive for {words.limit(prune.inactive_for_s)}"] if prune.inactive_for_s > 0 else []
    if prune.never_active_for_s > 0:
        when.append(f"never active and created {words.limit(prune.never_active_for_s)} ago")
    every = words.limit(prune.every_s)
    if not when:
        what = f"HubGuardPrune.every_s is {every}, but nobody is ever deleted: both limits are 0"
        do = "Set HubGuardPrune.inactive_for_s or never_active_for_s, or set every_s to 0."
        return [Check("users", Finding.WARNING, what, do)]
    what = (
        f"HubGuard deletes users automatically, every {every} up to {prune.run_cap:,} (HubGuardPrune.every_s): everyone"
        f" {' or '.join(when)}, except protected users"
    )
    do = (
        "Set HubGuardPrune.every_s to 0 unless you want that. You can make and apply plans by hand. If the spawner deletes"
        " storage with the user, HubGuard deletes nobody until HubGuardPrune.acknowledged names the spawner."
    )
    return [Check("users", Finding.WARNING, what, do)]


async def _unless_unreachable(look: Callable[[HubAPI], Awaitable[list[Check]]], hub: HubAPI) -> list[Check]:
    try:
        return await look(hub)
    except HubRefused as error:
        return [Check("token", Finding.WRONG, str(error), "Give HubGuard's service its role. The include does that.")]
    except HubGuardError as error:
        return [
            Check(
                "hub",
                Finding.WRONG,
                str(error),
                "Check JUPYTERHUB_API_URL, and that the hub runs and can be reached from here.",
            )
        ]


async def _version(hub: HubAPI) -> list[Check]:
    version = await hub.version()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_HUB:
        return [
            Check(
                "hub",
                Finding.WRONG,
                f"the hub is JupyterHub {version}",
                "Upgrade the hub. HubGuard needs JupyterHub 5.2 or newer.",
            )
        ]
    return [Check("hub", Finding.FINE, f"the hub answers; it is JupyterHub {version}")]


async def _scopes(settings: Settings, hub: HubAPI) -> list[Check]:
    owner = await hub.whoami()
    whose = f"the {owner.kind} {owner.name!r}"
    checks = []
    needs = SCOPES | _deleting(settings)
    for scope, need in needs.items():
        if allows(owner.scopes, scope):
            continue
        finding = Finding.WRONG if need.required else Finding.WARNING
        checks.append(
            Check(
                "scopes",
                finding,
                f"{scope} is missing: no {need.feature}",
                f"Add it to the role of {whose}.",
            )
        )
    checks = checks or [Check("scopes", Finding.FINE, f"{whose} has all scopes that HubGuard uses")]
    if owner.kind != "service":
        what = f"JUPYTERHUB_API_TOKEN belongs to {whose}. What HubGuard's own service may do wasn't checked"
        checks.append(Check("token", Finding.FINE, what))
    return checks


def _deleting(settings: Settings) -> dict[str, Need]:
    """The scope that deletes users, with the settings that need it; none if nothing deletes users."""
    settings_that_delete = ["HubGuardCull.users"] if settings.cull.users else []
    settings_that_delete += ["HubGuardPrune.delete_users"] if settings.prune.delete_users else []
    return (
        {DELETE_USERS: Need(f"deleting users ({' and '.join(settings_that_delete)}, set before the include)", True)}
        if settings_that_delete
        else {}
    )


async def _servers(hub: HubAPI) -> list[Check]:
    servers = await hub.list_servers()
    return [Check("servers", Finding.FINE, f"{len(servers)} servers are active")]


async def _cullers(registration: Mapping[str, Any], hub: HubAPI) -> list[Check]:
    """Who else culls, or may. ``registration`` is what the include passed to the service, empty for a command."""
    try:
        services = await hub.list_services()
    except HubRefused:
        what = "other cullers aren't detected: the scopes list:services and read:services are missing"
        return [Check("cullers", Finding.WARNING, what, "Add them to the role of HubGuard's service.")]
    told = handover.from_dict(registration.get("handover"))
    # The include's suspects hold what only names a culler.
    is_culler = runs_a_culler if registration else names_a_culler
    checks = [
        _culler(name, command, told)
        for name, command in services.items()
        if understudy.part_of(command) or is_culler(command)
    ]
    checks += _suspects(told)
    ours = {SERVICE, f"{SERVICE}-process"}
    unseen = sorted(name for name, command in services.items() if not command and name not in ours)
    if unseen and not registration:
        what = f"these services run elsewhere and may cull, which is unknown here: {', '.join(unseen)}"
        do = "If one of them stops idle servers, let only one of the two do that."
        checks.append(Check("cullers", Finding.FINE, what, do))
    return checks or [Check("cullers", Finding.FINE, "no other service's command or rights look like a culler's")]


def _suspects(told: handover.Handover) -> list[Check]:
    finding = {handover.Kind.LIKELY: Finding.WARNING, handover.Kind.POSSIBLE: Finding.FINE}
    return [Check("cullers", finding[suspect.kind], suspect.why, suspect.advice) for suspect in told.suspects]


def _culler(name: str, command: Sequence[str], told: handover.Handover) -> Check:
    part = understudy.part_of(command)
    if part is None:
        deletes = ", and it deletes users" if settings_from(command).values.get("cull_users") else ""
        what = "is" if runs_a_culler(command) else "names"
        do = "Only one culler may act. Remove it from c.JupyterHub.services, or let HubGuard's include replace it."
        return Check(
            "cullers", Finding.WRONG, f"the service {name} {what} an idle culler{deletes}. {told.why}".rstrip(" ."), do
        )
    report = understudy.read_report(Path(part.folder), part.number)
    if report is None:
        what = f"HubGuard takes the place of {name}, and whether that waits is unknown here"
        return Check("cullers", Finding.WARNING, what, "Run the doctor where the hub runs, as the hub's user.")
    if report.runs:
        do = "Correct that, or keep the culler: c.HubGuard.on_idle_culler = 'refuse'."
        return Check("cullers", Finding.WARNING, f"{name} culls, and HubGuard doesn't: {report.why}", do)
    taken = f". Taken over: {_taken(told, {})}" if told.settings else ""
    return Check("cullers", Finding.FINE, f"{name} waits: {report.why}{taken}")


async def _proxy(environ: Mapping[str, str]) -> Check:
    url, token = environ.get("CONFIGPROXY_API_URL"), environ.get("CONFIGPROXY_AUTH_TOKEN")
    if not url or not token:
        what = "the proxy wasn't checked: CONFIGPROXY_API_URL or CONFIGPROXY_AUTH_TOKEN isn't set here"
        return Check(
            "proxy", Finding.WARNING, what, "Set both to check the proxy. The include passes them to the service."
        )
    timeout = aiohttp.ClientTimeout(total=HUB_PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"token {token}"}) as session,
            session.get(f"{url.rstrip('/')}/api/routes", allow_redirects=False) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
        what = f"the proxy's API at {url} doesn't answer ({type(error).__name__})"
        return Check("proxy", Finding.WRONG, what, "Check CONFIGPROXY_API_URL, and that the proxy runs.")
    if status == 403:
        return Check(
            "proxy", Finding.WRONG, "the proxy refuses the token", "Set CONFIGPROXY_AUTH_TOKEN to the proxy's own."
        )
    if status != 200:
        return Check("proxy", Finding.WRONG, f"the proxy's API answers {status}", "Check CONFIGPROXY_API_URL.")
    return Check("proxy", Finding.FINE, "the proxy's API answers and accepts the token")


def _journal(settings: Settings) -> list[Check]:
    try:
        revision, newest = revisions(settings.guard.db_url)
    except JournalError as error:
        return [
            Check(
                "journal", Finding.WRONG, str(error), error.detail or "Correct HubGuard.db_url, or repair the database."
            )
        ]
    if revision is None:
        return [Check("journal", Finding.FINE, "HubGuard's database is empty. The service creates its tables")]
    if revision != newest:
        what = f"HubGuard's database is at revision {revision}, but this version needs {newest}"
        return [
            Check(
                "journal",
                Finding.WARNING,
                what,
                "Start the service, which upgrades the database, or run `hubguard db upgrade`.",
            )
        ]
    return [Check("journal", Finding.FINE, f"HubGuard's database is at the newest revision, {newest}")]
