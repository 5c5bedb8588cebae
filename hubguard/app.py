"""The service: binds first, then works. Wires settings, hub, journal, guard and pages together, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from hubguard.backends.choose import ByTheHub, open_backends
from hubguard.backends.port import Backends
from hubguard.backends.port import Place as BackendPlace
from hubguard.config import Settings, load, read_file, sections_of
from hubguard.cull.decide import rules
from hubguard.cull.hook import load_hook
from hubguard.cull.model import CycleReport, Wish
from hubguard.dashboard.routes import make_application
from hubguard.drift.observe import WorldObserver
from hubguard.errors import ConfigError, HubGuardError
from hubguard.guard import Guard
from hubguard.hub.api import HubAPI
from hubguard.hub.client import HTTPHubAPI
from hubguard.hub.database import SQLHubDB
from hubguard.hub.read_only import arguments_of
from hubguard.inhub.handover import Handover
from hubguard.inhub.handover import from_dict as handover_from
from hubguard.inhub.scopes import DELETE_USERS, SCOPES
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.database import Database
from hubguard.pacing.budget import Budget, Lane
from hubguard.pacing.clock import SystemClock
from hubguard.place import Place
from hubguard.proxy.canary import HTTPCanary
from hubguard.proxy.client import HTTPProxyAPI
from hubguard.prune.review import HubConfigFacts
from hubguard.times import DAY_S
from hubguard.watch.notify.choose import open_receivers
from hubguard.watch.observe.choose import Surroundings, open_readers
from hubguard.web.auth import HubLogin
from hubguard.web.door import Door
from hubguard.wiring import Circumstances, Ways, assemble

log = logging.getLogger(__name__)


REBIND_S = 2.0
"""Seconds between two tries to listen on a port that is taken: after kill -9 of a hub, by the guard of the former hub."""

PARENT_CHECK_S = 1.0
"""Seconds between checks whether the hub that started this process still runs."""


def settings_for(place: Place, config_file: Path | None) -> tuple[Settings, Circumstances]:
    """The settings from a former culler, the hub's config and our own file, the later over the earlier. Never raises."""
    registration = place.registration
    circumstances = Circumstances()
    layers: list[Mapping[str, Mapping[str, object]]] = []
    errors = [ConfigError(setting, text) for setting, text in registration.get("errors", ())]
    try:
        handover = handover_from(registration.get("handover"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        handover = Handover(why=f"What the include found of other cullers can't be read ({type(error).__name__}).")
    circumstances = _beside_cullers(handover)
    if handover.replaced:
        layers.append(handover.settings)
    interval_s = registration.get("hub", {}).get("activity_interval")
    if interval_s is not None:
        layers.append({"HubGuardCull": {"hub_activity_interval_s": float(interval_s)}})
    layers.append(registration.get("sections", {}))
    environ = {**os.environ, **registration.get("environ", {})}
    if config_file is None and environ.get("HUBGUARD_CONFIG"):
        # Set for the hub's process: a managed service doesn't inherit it, and learns of it by the include alone.
        config_file = Path(environ["HUBGUARD_CONFIG"])
    if config_file is not None:
        try:
            layers.append(sections_of(read_file(config_file)))
        except ConfigError as error:
            errors.append(error)
    settings = load(*layers, environ=environ)
    start_s = registration.get("spawner", {}).get("start_s") or 0.0
    settings.cull.pending_limit_s = max(settings.cull.pending_limit_s, min(float(start_s), DAY_S))
    may_delete_users = _may_delete_users(registration.get("scopes"))
    notes = [*circumstances.notes, *settings.notes]
    if settings.cull.users and not may_delete_users:
        notes.append(
            "Inactive users aren't deleted: the role of HubGuard's service lacks delete:users. Set HubGuardCull.users before"
            " the include."
        )
    if pages := registration.get("proxy", {}).get("pages"):
        notes.append(pages)
    if missing := registration.get("custom_scopes"):
        notes.append(
            f"A line after HubGuard's include overwrites c.JupyterHub.custom_scopes, without {', '.join(missing)}. The"
            " include has added them again, but a role that names one keeps the hub from starting. Include HubGuard last, or"
            " add scopes with c.JupyterHub.custom_scopes.update()."
        )
    circumstances = replace(
        circumstances, notes=tuple(notes), may_delete_users=may_delete_users, without_include=not registration
    )
    return replace(settings, errors=(*errors, *settings.errors)), circumstances


def _may_delete_users(scopes: Sequence[str] | None) -> bool:
    """Whether the hub allows it, to some of its users at least; True if that is unknown."""
    return scopes is None or any(scope.partition("!")[0] == DELETE_USERS for scope in scopes)


def _beside_cullers(handover: Handover) -> Circumstances:
    """What other cullers mean for us, by what the include found out about them."""
    if handover.replaced:
        note = (
            f"HubGuard replaces the idle culler {handover.name}, with its settings. Whenever HubGuard can't do its work, that"
            " culler runs again."
        )
        return Circumstances(handover=handover, notes=(note, *handover.notes))
    if not handover.why:
        return Circumstances(handover=handover)
    why = handover.why
    if handover.cullers:
        why = f"{handover.name} culls, and only one of the two may act. {why}"
    return Circumstances(observe_only=why.strip(" ."), handover=handover)


def make_guard(
    settings: Settings,
    place: Place,
    ways: Ways,
    circumstances: Circumstances | None = None,
    *,
    drift: bool = False,
) -> Guard:
    """The guard of the hub at ``place``, not yet running. The hook of ``ways`` takes the place of the one in the settings.

    ``drift``: it looks for drift, too.
    """
    clock, hub = SystemClock(), place.registration.get("hub", {})
    if ways.hook is None and settings.cull.hook:
        try:
            ways = replace(ways, hook=load_hook(settings.cull.hook))
        except ConfigError as error:
            settings = replace(settings, errors=(*settings.errors, error))
    if drift:
        world = WorldObserver(
            ways.hub,
            clock,
            database=ways.database,
            proxy=ways.proxy,
            backends=ways.backends,
            base_url=place.base_url,
            subdomains=bool(hub.get("subdomain_host")),
        )
        ways = replace(ways, world=world)
    circumstances = replace(
        circumstances or Circumstances(),
        holder=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
        address=place.url.rstrip("/") + place.prefix if place.url else "",
        generation=place.generation,
        hub_checks_at_s=hub.get("checks_at"),
        features=_features(settings),
        config_facts=HubConfigFacts.from_dict(place.registration.get("prune")),
    )
    return assemble(settings, ways, AsyncJournal(settings.guard.db_url), clock, random.random, circumstances)


def _roles_matter(settings: Settings) -> bool:
    """Whether anything asks for the roles of users, so that those of their groups have to be known."""
    read = rules.parse(settings.cull.rules)[0]
    by_rule = any(rule.roles is not None or "roles" in dict(rule.without) for rule in read)
    return by_rule or bool(settings.prune.protected_roles or settings.prune.roles)


def _features(settings: Settings) -> dict[str, str]:
    """By hub scope, what needs it."""
    features = {scope: need.feature for scope, need in SCOPES.items()}
    wanted_by = {
        "HubGuardPrune.delete_users": settings.prune.delete_users,
        "HubGuardCull.users": settings.cull.users,
    }
    if setting := " or ".join(name for name, wanted in wanted_by.items() if wanted):
        features[DELETE_USERS] = f"deleting users (set {setting} before the include)"
    return features


@contextlib.asynccontextmanager
async def ways_out(settings: Settings, place: Place, budget: Budget) -> AsyncIterator[Ways]:
    """The hub, its database and the proxy, the latter two None if there is no way to them; closed at the end.

    The proxy is the one that the hub names, or that CONFIGPROXY_API_URL and CONFIGPROXY_AUTH_TOKEN name.
    """
    hub = HTTPHubAPI(place.api_url, place.token, budget, request_timeout_s=settings.budget.request_timeout_s)
    hub.through_groups = _roles_matter(settings)
    registration, environ = place.registration, _environ(place)
    url = settings.guard.hub_db_url
    arguments: Mapping[str, Any] = {}
    if url == "hub":
        of_hub = registration.get("hub", {})
        url = str(of_hub.get("db_url") or "")
        arguments = {**arguments_of(url, of_hub.get("db_environ", {})), **of_hub.get("db_arguments", {})}
    database = None
    if url:
        try:
            database = SQLHubDB(url, arguments=arguments)
        except HubGuardError as error:
            log.warning("The hub's database isn't read: %s", error)
    api_url = registration.get("proxy", {}).get("api_url") or environ.get("CONFIGPROXY_API_URL")
    token = registration.get("proxy", {}).get("auth_token") or environ.get("CONFIGPROXY_AUTH_TOKEN")
    proxy = canary = None
    if api_url and token and settings.guard.read_proxy:
        try:
            proxy = HTTPProxyAPI(api_url, token, budget)
            # The same after a restart, so that one that was left behind isn't joined by another each time.
            name = hashlib.sha256(place.api_url.encode()).hexdigest()[:12]
            public_url = registration.get("proxy", {}).get("public_url")
            hosts = bool(registration.get("hub", {}).get("subdomain_host"))
            canary = HTTPCanary(api_url, token, budget, name=name, public_url=public_url or None, hosts=hosts)
        except ConfigError as error:
            log.warning("The proxy isn't read: %s", error)
    try:
        async with hub:
            yield Ways(hub, budget, database, proxy, canary)
    finally:
        if proxy is not None:
            await proxy.close()
        if database is not None:
            database.close()


def make_budget(settings: Settings) -> Budget:
    """The one budget of a guard, as the settings have it."""
    budget = settings.budget
    return Budget(
        rate=budget.rate,
        burst=budget.burst,
        concurrency=budget.concurrency,
        breaker_failures=budget.breaker_failures,
        breaker_open_s=budget.breaker_open_s,
    )


async def serve(place: Place, config_file: Path | None) -> int:
    """Run the service until it is told to end, is superseded by the guard of a newer hub, or loses the hub that runs it.

    The exit code. Nothing that goes wrong in here ends it: a port that is taken is tried again, a database that can't be
    reached is tried again, a wrong setting is shown on the page.
    """
    settings, circumstances = settings_for(place, config_file)
    if circumstances.handover.api_url:
        # Where the culler reached the hub, HubGuard does: a pod may not reach its own Service.
        place = replace(place, api_url=circumstances.handover.api_url)
    for error in settings.errors:
        log.error("HubGuard takes no action until a setting is corrected. %s", error)
    for note in settings.notes:
        log.warning("%s", note)
    budget = make_budget(settings)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ends in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(ends, ending.set)
    for means_nothing in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(
            means_nothing, log.warning, "%s changes nothing. Restart HubGuard to read its settings.", means_nothing.name
        )
    async with ways_out(settings, place, budget) as ways:
        settings, backends = _backends(settings, place, ways.hub)
        around = _surroundings(settings, place)
        readers = open_readers(settings.watch, around, ways.hub, ways.database, SystemClock(), ways.failed_starts)
        receivers, unusable = open_receivers(settings.watch.receivers, _environ(place))
        for problem in unusable:
            log.warning("%s", problem.note)
        circumstances = replace(
            circumstances,
            notes=(*circumstances.notes, *(problem.note for problem in unusable)),
            public_url=_public_url(place),
        )
        ways_to_all = replace(ways, backends=backends, readers=readers, receivers=receivers)
        guard = make_guard(settings, place, ways_to_all, circumstances, drift=True)
        server = Door(_application(guard, place, budget), xheaders=True)
        tasks = [asyncio.create_task(_bind(server, place, settings.guard.bind_ip))] if place.url else []
        await asyncio.sleep(0)  # the first try to bind comes before any work
        tasks += [asyncio.create_task(guard.run()), asyncio.create_task(_until_over(place, guard, ending))]
        await asyncio.wait(tasks[-2:], return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await server.close_all_connections()
        if backends is not None:
            await backends.close()
    for result in results:
        if isinstance(result, Exception):
            log.error("HubGuard ends: unexpected error (a bug in HubGuard)", exc_info=result)
            return 1
    return 0


def _environ(place: Place) -> Mapping[str, str]:
    """Our environment, and what the include passed on of the hub's."""
    return {**os.environ, **place.registration.get("environ", {})}


def _public_url(place: Place) -> str:
    """Where people find our pages; "" if neither the hub nor its config says."""
    if url := os.environ.get("JUPYTERHUB_PUBLIC_URL"):
        return url.rstrip("/") + "/"
    host = place.hub_host or place.registration.get("proxy", {}).get("public_url") or ""
    return host and host.rstrip("/") + place.prefix


def _backends(settings: Settings, place: Place, hub: HubAPI) -> tuple[Settings, Backends | None]:
    """What really runs the servers, and the settings, with an error more if that can't be had as they want it."""
    registration = place.registration
    spawner = registration.get("spawner", {})
    where = BackendPlace(
        api_url=str(registration.get("hub", {}).get("api_url") or place.api_url).rstrip("/"),
        base_url=place.base_url,
        spawner=tuple(str(name) for name in spawner.get("classes", ())),
        settings=spawner.get("settings", {}),
        environ=_environ(place),
    )
    if settings.drift.backend == "auto" and not where.spawner:
        return settings, ByTheHub(where, hub.spawner_class)
    try:
        return settings, open_backends(settings.drift.backend, where)
    except HubGuardError as error:
        wrong = error if isinstance(error, ConfigError) else ConfigError("HubGuardDrift.backend", str(error))
        return replace(settings, errors=(*settings.errors, wrong)), None


def _surroundings(settings: Settings, place: Place) -> Surroundings:
    registration = place.registration
    proxy_url = registration.get("proxy", {}).get("api_url") or os.environ.get("CONFIGPROXY_API_URL") or ""
    journal = Database(settings.guard.db_url).file
    folders = [str(folder) for folder in (journal and journal.absolute().parent, Path.cwd()) if folder]
    return Surroundings(
        hub_url=place.api_url,
        hub_pid=place.hub_pid,
        proxy_url=str(proxy_url),
        check_routes_s=settings.cull.hub_activity_interval_s,
        failures_limit=int(registration.get("spawner", {}).get("failures_limit") or 0),
        folders=folders,
    )


def _application(guard: Guard, place: Place, budget: Budget) -> Application:
    login = HubLogin(
        api_url=place.api_url,
        token=place.token,
        prefix=place.prefix,
        hub_prefix=place.hub_prefix,
        hub_host=place.hub_host,
        redirect_uri=str(place.registration.get("redirect_uri") or ""),
        lane=lambda: budget.slot(Lane.RESERVED, safe=True),
    )
    hub_pages = place.hub_host + place.hub_prefix
    # From the token, so that a guard that is started again doesn't send every open page to the login.
    secret = hashlib.sha256(f"HubGuard's cookies {place.token}".encode()).digest()
    return make_application(
        guard,
        login,
        prefix=place.prefix,
        hub_prefix=hub_pages,
        cookie_secret=secret,
        service_token=place.token,
    )


async def _bind(server: HTTPServer, place: Place, bind_ip: str) -> None:
    """The port is ours, at once or as soon as whoever has it lets go."""
    parts = urlsplit(place.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = bind_ip or parts.hostname or "127.0.0.1"
    said = False
    while True:
        try:
            server.add_sockets(bind_sockets(port, address))
        except OSError as error:
            if not said:
                log.error(
                    "Can't listen on %s port %d (%s). Until it can, HubGuard's pages aren't available. All else continues.",
                    address,
                    port,
                    error.strerror,
                )
            said = True
            await asyncio.sleep(REBIND_S)
        else:
            log.info("Listening on %s port %d, pages at %s", address, port, place.prefix)
            return


async def stand_still(error: ConfigError, hub_pid: int) -> int:
    """Do nothing but say why, until told to end or the hub is gone; the exit code."""
    log.error("HubGuard can't work here: %s. Correct that, and restart the hub.", str(error).rstrip("."))
    ending = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, ending.set)
    while os.getppid() == hub_pid:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.wait(), PARENT_CHECK_S)
            break
    return 0


async def _until_over(place: Place, guard: Guard, ending: asyncio.Event) -> None:
    """Returns when this process is to end, with the reason in the log."""
    waiting = [asyncio.create_task(ending.wait()), asyncio.create_task(guard.mandate.superseded.wait())]
    try:
        while True:
            await asyncio.wait(waiting, timeout=PARENT_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            if ending.is_set():
                log.info("Told to end.")
                return
            if guard.mandate.superseded.is_set():
                log.warning("The guard of a newer hub has taken over. This one ends.")
                return
            if place.hub_pid is not None and os.getppid() != place.hub_pid:
                # After kill -9 of a hub its services live on (tried on 5.5 and 6.1), with tokens that still work.
                log.warning("The hub that ran this guard is gone. This guard ends; the next hub brings its own.")
                return
    finally:
        for task in waiting:
            task.cancel()


async def cycle_once(settings: Settings, place: Place, actor: str, wish: Wish) -> CycleReport:
    """One cycle by a guard of its own. Raises HubGuardError."""
    async with ways_out(settings, place, make_budget(settings)) as ways:
        return await make_guard(settings, place, ways).once(actor, wish)
