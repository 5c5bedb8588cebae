"""What the hub passes to HubGuard's process when it starts it, after the include has run."""

from __future__ import annotations

import ast
import asyncio
import atexit
import contextlib
import ipaddress
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from traitlets.config.loader import DeferredConfigString, LazyConfigValue

from hubguard import understudy
from hubguard.inhub import handover
from hubguard.inhub.named_users import add_names_of_the_hub, named_users, packed
from hubguard.inhub.scopes import CUSTOM_SCOPES, SERVICE
from hubguard.inhub.spawner_settings import CLAIMING, STORING, classes_of, deleter_of, setting, settings_of
from hubguard.inhub.spawner_settings import HUBS_OWN as NO_DELETER
from hubguard.inhub.start_hook import watch_starts
from hubguard.inhub.stop_hook import watch_stops

PASSED_ON = (
    *("HUBGUARD_", "CONFIGPROXY_", "JUPYTERHUB_REQUEST_TIMEOUT"),
    *("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "KUBERNETES_SERVICE_"),
)

DATABASES_OWN = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGPASSFILE", "PGSSL", "MYSQL_PWD")
"""The beginnings of the variables by which a database's driver finds what its URL leaves out."""

HUBS_OWN = "hub"
"""What HubGuard.hub_db_url says for the database that the hub's own config names."""

log = logging.getLogger("hubguard.inhub")

ALL_ADDRESSES = (None, "0.0.0.0", "::")  # noqa: S104  # nothing is bound to them here
"""The hosts of a bind_url that stand for all addresses of a machine."""

INCLUDE = "HubGuard's include"

Problem = tuple[str, str]
"""The setting that is wrong, and what is wrong with it."""

LONGEST = 100_000
"""Maximum bytes of our environment variable. Linux allows 131,072; a longer one keeps the process, and so the hub, from
starting."""


class LateRegistration(str):
    """The value of HUBGUARD_REGISTRATION: a text for the hub's database, and the real value when the process is started.

    The hub stores the environment of its services as JSON, so what is there must be a text, and no secret. A value that can
    be called is called with the spawner whenever the process is started (documented for Spawner.environment, and so with
    5.5 and 6.1). By then all of the config is read, whatever the order of its lines, and the proxy has its token.

    That moment is also the last one before the hub waits for our page, and keeps it from that.
    """

    problems: tuple[Problem, ...]
    handed_over: handover.Handover | None
    first_started_at: float
    page_url: str

    def __new__(cls, *problems: Problem) -> LateRegistration:
        """``problems`` come first in the ``errors`` of the registration."""
        made = super().__new__(cls, "(set when the process is started)")
        made.problems = problems
        made.handed_over = None
        made.first_started_at = 0.0
        made.page_url = ""
        return made

    def __deepcopy__(self, memo: object) -> LateRegistration:
        return (
            self  # a copy would neither know which cullers it replaced, nor be callable if it were made by way of str
        )

    def __call__(self, spawner: Any) -> str:
        """The registration as JSON. Never raises: failures are in ``errors``."""
        facts: dict[str, Any] = {"errors": list(self.problems)}
        try:
            app = spawner.user.service.app
        except AttributeError as error:
            facts["errors"].append((INCLUDE, f"can't see the hub that it runs in ({error})"))
            return json.dumps(facts)
        with contextlib.suppress(Exception):
            self.page_url = app._service_map[SERVICE].url or self.page_url
        with contextlib.suppress(Exception):  # a hub that waits a while is still a hub
            _do_not_wait(app)
        with contextlib.suppress(Exception):  # an orphan that nobody reports is found by looking
            watch_stops(app)
        with contextlib.suppress(Exception):  # the hub's metrics count failed starts all the same
            watch_starts(app)
        for name, find in (
            ("sections", _sections),
            ("proxy", self._proxy),
            ("hub", self._hub),
            ("spawner", _spawner),
            ("prune", _prune),
            ("redirect_uri", _redirect_uri),
            ("environ", _environ),
            ("handover", self._handover),
            ("scopes", _scopes),
            ("custom_scopes", _custom_scopes),
        ):
            try:
                facts[name] = find(app, facts["errors"])
            except Exception as error:
                facts["errors"].append((INCLUDE, f"can't read {name} ({type(error).__name__}: {error})"))
        text = json.dumps(facts)
        if len(text) > LONGEST and "prune" in facts:
            facts["prune"].update(named=None, named_packed=None)
            log.warning(
                "HubGuard doesn't know which users the hub's config names: the list is too long to be passed on."
            )
            text = json.dumps(facts)
        if len(text) > LONGEST:
            facts["errors"].append(("HubGuard's settings in the hub's config", "they are too long to be passed on."))
            text = json.dumps({"errors": facts["errors"]})
        return text

    def _proxy(self, app: Any, errors: list[Problem]) -> dict[str, str]:
        """Where the proxy is, and as ``pages`` why it can't reach ours, if it can't."""
        facts = _proxy(app, errors)
        if pages := _out_of_reach(self.page_url, facts.get("api_url", "")):
            facts["pages"] = pages
            log.warning("%s", pages)
        return facts

    def _hub(self, app: Any, errors: list[Problem]) -> dict[str, Any]:
        """How often, and when, the hub takes over activity from the proxy, its database if that is to be read, and its URLs.

        A hub begins with taking over activity right after it has started its services (5.5 and 6.1). ``api_url`` is the URL
        of the API as servers get it, ``base_url`` the hub's, and ``subdomain_host`` is "" for a hub without subdomains.
        """
        self.first_started_at = self.first_started_at or time.time()
        interval_s = getattr(app, "last_activity_interval", None)
        facts: dict[str, Any] = {"activity_interval": interval_s, "checks_at": self.first_started_at}
        try:
            facts.update(api_url=_api_url(app), base_url=app.base_url, subdomain_host=app.subdomain_host)
        except Exception as error:
            errors.append((INCLUDE, f"can't read the hub's URLs ({type(error).__name__}: {error})"))
        unreachable = handover.why_unreachable(str(app.hub.api_url), bool(getattr(app, "internal_ssl", False)))
        if unreachable:
            errors.append((INCLUDE, unreachable))
        if app.config.get("HubGuard", {}).get("hub_db_url") == HUBS_OWN:
            facts["db_url"] = _absolute(app.db_url)
            facts["db_arguments"] = _database_arguments(app, errors)
            facts["db_environ"] = {name: value for name, value in os.environ.items() if name.startswith(DATABASES_OWN)}
        return facts

    def _handover(self, app: Any, errors: list[Problem]) -> dict[str, Any]:
        """What becomes of the idle cullers among the services; see :class:`hubguard.inhub.handover.Handover`."""
        if self.handed_over is None:
            # The hub starts our process again when it has ended. By then the cullers' commands are our own.
            self.handed_over = _hand_over(app)
        return self.handed_over.to_dict()


def _hand_over(app: Any) -> handover.Handover:
    """The cullers' commands become understudies if HubGuard can take their place; otherwise nothing is changed."""
    ours = {SERVICE, f"{SERVICE}-process"}
    there = {name: service for name, service in app._service_map.items() if name not in ours}
    hub = hub_for_handover(
        app.config,
        str(app.hub.api_url),
        handover.scopes_of(app._service_map.get(SERVICE)),
        bool(getattr(app, "internal_ssl", False)),
    )
    takeover = handover.decide([handover.service_of(service) for service in there.values()], hub)
    if takeover.replaced:
        try:
            folder = tempfile.mkdtemp(prefix="hubguard-")
        except OSError as error:
            why = f"No folder for temporary files can be written ({error.strerror})."
            takeover = replace(takeover, replaced=False, settings={}, api_url="", notes=(), why=why)
        else:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            takeover = replace(takeover, folder=folder)
    if takeover.replaced:
        for number, culler in enumerate(takeover.cullers):
            part = understudy.Part(takeover.folder, number, os.getpid(), understudy.Terms(), culler.command)
            # Its entry stays as it is: its role names it, and its token and environment are what the original needs.
            there[culler.name].command = understudy.command_for(part, sys.executable)
        app.log.warning(
            "HubGuard replaces the idle culler %s once it has shown that it can do its work. Until then, and whenever"
            " HubGuard fails, the culler runs.",
            takeover.name,
        )
    elif takeover.why:
        app.log.warning(
            "HubGuard only observes. %s", f"{takeover.name} culls. {takeover.why}" if takeover.cullers else takeover.why
        )
    return takeover


def hub_for_handover(
    config: Mapping[str, Any], api_url: str, ours: frozenset[str] | None, internal_ssl: bool
) -> handover.Hub:
    """What decides about the handover at a hub with that ``config``, where HubGuard's service has the scopes ``ours``."""

    def value(section: str, name: str, default: Any) -> Any:
        setting = config.get(section, {}).get(name, default)
        if isinstance(setting, DeferredConfigString):
            setting = _from_command_line(setting)
        return default if isinstance(setting, LazyConfigValue) else setting

    users = value("HubGuardCull", "users", None)
    beside = value("HubGuard", "act_beside", ())
    return handover.Hub(
        api_url=api_url,
        ours=ours,
        internal_ssl=internal_ssl,
        wanted=str(value("HubGuard", "on_idle_culler", "take over")),
        beside=tuple(map(str, beside)) if isinstance(beside, (list, tuple, set)) else (),
        users=users if isinstance(users, bool) else None,
        has_rules=bool(value("HubGuardCull", "rules", ())),
    )


class Members(list[str]):
    """The services that a role is for, as far as the hub has them in the end.

    A line after the include may overwrite the hub's services. A role for a service that isn't there would keep the hub from
    starting; this list is empty then, and says so in the log.
    """

    def __iter__(self) -> Iterator[str]:
        try:
            services = _running_hub().services
            there = {spec.get("name") for spec in services}
        except Exception:  # no hub runs here, or not one that we know: then this is a list like any other
            there = set(super().__iter__())
        for name in super().__iter__():
            if name in there:
                yield name
            else:
                log.error(
                    "HubGuard isn't started: a line after its include overwrites c.JupyterHub.services. Add to what is there"
                    " instead, or include HubGuard last."
                )

    def __deepcopy__(self, memo: object) -> Members:
        return self  # copying asks for the members, at a time when nobody can tell yet


def _running_hub() -> Any:
    # Where a hub runs, its module is loaded; importing it to find that none does would take a second.
    return sys.modules["jupyterhub.app"].JupyterHub._instance


def _sections(app: Any, errors: list[Problem]) -> dict[str, dict[str, Any]]:
    """All ``c.HubGuard*`` settings as they stand in the end, the command line's among them."""
    sections: dict[str, dict[str, Any]] = {}
    for section, values in app.config.items():
        if not section.startswith("HubGuard") or not isinstance(values, Mapping):
            continue
        sections[section] = {}
        for name, value in values.items():
            if isinstance(value, LazyConfigValue) and not value.to_dict():
                continue  # what comes of merely reading a setting that isn't set
            if isinstance(value, DeferredConfigString):
                value = _from_command_line(value)  # noqa: PLW2901
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                what, do = f"a value of type {type(value).__name__}", "Set it in a config file of HubGuard's own"
                do += " (HUBGUARD_CONFIG)."
                if callable(value):
                    # No setting takes a function itself, in whichever file.
                    name_of = getattr(value, "__name__", "")
                    example = f"my_module:{name_of if name_of.isidentifier() else 'may_stop'}"
                    what, do = "a function", f"Put it into a module in HubGuard's environment, and write '{example}'."
                text = f"{what} can't be passed on to the service's process. {do}"
                errors.append((f"{section}.{name}", text))
            else:
                sections[section][name] = value
    with contextlib.suppress(Exception):  # an authenticator of the site's own may do anything
        add_names_of_the_hub(sections, app.authenticator.normalize_username)
    return sections


def _proxy(app: Any, errors: list[Problem]) -> dict[str, str]:
    """Where the proxy's API is and its token, for as much as this kind of proxy has them, and where users reach the proxy.

    ``public_url`` has no path. It is left out if the hub doesn't know either: bind_url says where a proxy that the hub
    starts itself listens, and nothing of one that others start, unless it names a host.
    """
    names = ("api_url", "auth_token")
    facts = {name: value for name in names if isinstance(value := getattr(app.proxy, name, None), str) and value}
    bind = urlsplit(app.bind_url)
    host = f"[{bind.hostname}]" if ":" in (bind.hostname or "") else bind.hostname
    if bind.hostname in ALL_ADDRESSES and getattr(app.proxy, "should_start", False):
        host = "[::1]" if bind.hostname == "::" else "127.0.0.1"
    elif bind.hostname in ALL_ADDRESSES:
        host = None
    if host:
        facts["public_url"] = f"{bind.scheme}://{host}:{bind.port or (443 if bind.scheme == 'https' else 80)}"
    return facts


def _out_of_reach(page_url: str, proxy_url: str) -> str:
    """Why the proxy can't reach HubGuard's pages, and what to set, as sentences; "" if nothing speaks against it."""
    page = urlsplit(page_url)
    at = urlsplit(proxy_url)
    proxy = (at.hostname or "") if at.scheme in ("http", "https") else ""
    if proxy in ("", "localhost", socket.gethostname()) or not _is_loopback(page.hostname or "") or _is_ours(proxy):
        return ""
    port = page.port or 10101
    return (
        f"The proxy runs elsewhere (its API is at {proxy}), so it can't reach HubGuard's pages at {page.hostname}. Set"
        f' c.HubGuard.url to an address of this machine as the proxy knows it, for example "http://hub:{port}", and'
        " c.HubGuard.bind_ip to \"0.0.0.0\" if that name isn't one of this machine's own."
    )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_ours(host: str) -> bool:
    """Whether that IP address is this machine's own; False for a name, which isn't looked up."""
    try:
        address = ipaddress.ip_address(host)
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def _api_url(app: Any) -> str:
    """As Spawner.get_env has it (5.5 and 6.1), without a slash at the end."""
    url = str(app.hub.api_url)
    if other := setting(app.config, app.spawner_class, "hub_connect_url"):
        url = other.rstrip("/") + urlsplit(url).path
    return url.rstrip("/")


def _spawner(app: Any, errors: list[Problem]) -> dict[str, Any]:
    """The spawner's class with those that it is derived from, nearest first, what tells its backends apart, and ``start_s``:
    the seconds that the hub gives a start, None if only an instance knows. ``failures_limit`` is after how many failed starts
    in a row the hub exits, 0 for never.
    """
    kind = app.spawner_class
    parts = [setting(app.config, kind, name) for name in ("start_timeout", "http_timeout")]
    start_s = sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None
    limit = setting(app.config, kind, "consecutive_failure_limit")
    return {
        "classes": classes_of(kind),
        "settings": settings_of(app.config, kind),
        "start_s": start_s,
        "failures_limit": limit if isinstance(limit, int) else 0,
    }


def _prune(app: Any, errors: list[Problem]) -> dict[str, Any]:
    """The users that the config names (see :func:`packed`), and what the spawner does with a deleted user's storage.
    What is unknown is left out, or None, and in no ``errors``: it costs pruning a caution, and culling nothing.
    """
    facts = packed(named_users(app))
    if facts["named"] is None and not facts.get("named_packed"):
        log.warning(
            "HubGuard doesn't know which users the hub's config names; they would come back if they were deleted."
        )
    with contextlib.suppress(Exception):
        kind = app.spawner_class
        storing = settings_of(app.config, kind, STORING)
        deleter = deleter_of(kind)
        facts.update(classes=classes_of(kind), settings=storing, overrides=deleter != NO_DELETER, deleter=deleter)
    with contextlib.suppress(Exception):
        kind = type(app.authenticator)
        names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
        facts.update(authenticator=names, claims=settings_of(app.config, kind, CLAIMING))
    return facts


def _database_arguments(app: Any, errors: list[Problem]) -> dict[str, Any]:
    """What the driver of the hub's database is given beside the URL; it may hold a password."""
    given: dict[str, Any] = getattr(app, "db_kwargs", {}).get("connect_args", {})
    try:
        json.dumps(given)
    except (TypeError, ValueError):
        what = "has connect_args that can't be passed on to HubGuard's process. Put them into HubGuard.hub_db_url."
        errors.append(("JupyterHub.db_kwargs", what))
        given = {}
    return given


def _absolute(url: str) -> str:
    """A SQLite file by its full path: our process may run in another folder than the hub."""
    scheme, slashes, path = url.partition(":///")
    if scheme != "sqlite" or not path or path.startswith(":memory:") or os.path.isabs(path):
        return url
    return f"{scheme}{slashes}{os.path.abspath(path)}"


def _scopes(app: Any, errors: list[Problem]) -> list[str] | None:
    """What HubGuard's service may really do, since a later line may have set the roles again; None if it can't be seen."""
    scopes = handover.scopes_of(app._service_map.get(SERVICE))
    return None if scopes is None else sorted(scopes)


def _custom_scopes(app: Any, errors: list[Problem]) -> list[str]:
    """Those of our custom scopes that a line after the include has taken out of the hub's config.

    The hub knows them again. Without them, it answers every login at our pages with 400: it looks up all that our service
    may ask for (tried on 5.5 and 6.1).
    """
    defined = getattr(app, "custom_scopes", CUSTOM_SCOPES)
    missing = {name: scope for name, scope in CUSTOM_SCOPES.items() if name not in defined}
    if missing:
        # Where a hub runs, its module is loaded; commands import this one without a hub.
        sys.modules["jupyterhub.scopes"].define_custom_scopes(missing)
    return sorted(missing)


def _redirect_uri(app: Any, errors: list[Problem]) -> str:
    """Where the hub sends logins at our pages back to: with subdomains, only the hub knows the host."""
    page = app._service_map.get("hubguard")
    return str(page.oauth_redirect_uri) if page is not None else ""


def _environ(app: Any, errors: list[Problem]) -> dict[str, str]:
    """Managed services inherit next to nothing of the hub's environment."""
    wanted = _named_by_receivers(app)
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) or name in wanted}


def _named_by_receivers(app: Any) -> set[str]:
    """The variables in which ``c.HubGuardWatch.receivers`` says that secrets are."""
    receivers = app.config.get("HubGuardWatch", {}).get("receivers")
    options = (
        [given for given in receivers.values() if isinstance(given, Mapping)] if isinstance(receivers, Mapping) else []
    )
    return {
        variable
        for given in options
        for option, variable in given.items()
        if str(option).endswith("_env") and isinstance(variable, str)
    }


def _do_not_wait(app: Any) -> None:
    """The hub continues its start without waiting for our page.

    A 6.1 hub waits five minutes, without a route to itself, for a page that takes connections and doesn't answer, whatever
    the service's ``timeout``; 5.5 waits for 20 s. It waits for services with a url, next for ours. So ours has none until
    the hub's event loop comes around: by then it is past that, and nothing else has looked.
    """
    page = app._service_map[SERVICE]
    if page.url:
        asyncio.get_running_loop().call_soon(setattr, page, "url", page.url)
        page.url = ""


def _from_command_line(text: str) -> Any:
    """The value that a setting on the hub's command line stands for: the hub doesn't know our settings' types."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(text)
