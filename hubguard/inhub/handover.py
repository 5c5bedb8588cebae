"""What the handover from the idle cullers of a hub comes to: who is there, with which rights, and what HubGuard takes over.

Pure, except for the last part, which looks at a hub that runs.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hubguard.inhub.idle_culler import (
    API_URL,
    CULLERS,
    DEFAULT_CONFIG_FILE,
    PEER,
    Run,
    TakenOver,
    in_a_shell,
    names_a_culler,
    run_of,
    runs_a_culler,
    settings_from,
)
from hubguard.inhub.scopes import DELETE_USERS, SCOPES

NEEDED = ("list:users", "read:servers", "delete:servers")
"""The hub scopes without which no culler can find and stop servers. What a filter leaves of each is all it can reach."""

NEEDED_FOR_USERS = ("list:users", DELETE_USERS)

MORE_THAN_A_CULLER = ("servers", "admin:servers", "admin:users", "start:servers")
"""Scopes of services that manage servers or users altogether, which a culler's own role has no use for."""

LIKE_A_CULLER = ("cull", "idle", "reap")
"""Parts of names that suggest a culler, if the service may stop servers, too."""

LARGEST_SCRIPT = 65536
"""Bytes up to which a command's own file is searched for a culler."""

Filters = tuple[str, ...]
"""What one scope is limited to, such as ``group=students``; none of them: it isn't limited."""

Reach = tuple[Filters, ...]
"""What a culler's scopes are limited to, one for each scope that is limited: a server must be within all of them."""


class Kind(str, Enum):
    """How sure it is that a service is another culler."""

    LIKELY = "likely"  # it has a culler's rights and not much more, or such a name, or runs a script that names one
    POSSIBLE = "possible"  # it may stop servers among much else


@dataclass(frozen=True, slots=True)
class Suspect:
    """A service that may stop servers, and whose command isn't an idle culler's. ``why`` is one clause."""

    name: str
    kind: Kind
    why: str

    @property
    def advice(self) -> str:
        """What a person does about it, in sentences."""
        if self.kind is Kind.LIKELY:
            return f"If it isn't a culler, add {self.name!r} to c.HubGuard.act_beside. Otherwise remove one of the two."
        return "If it stops idle servers, let only one of the two do that: end it, or have HubGuard observe."


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the hub, as far as culling is concerned.

    ``scopes`` are the effective ones, None if they can't be seen. ``running``: the hub has started it. ``version`` is that of
    the culler it would run, None if unknown. ``script`` is a file of its command that names a culler, or "".
    """

    name: str
    command: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    api_url: str = ""
    scopes: frozenset[str] | None = None
    running: bool = False
    admin: bool = False
    version: str | None = None
    script: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """What else of the hub decides. ``ours`` are the effective scopes of HubGuard's service, None if they can't be seen.

    ``wanted`` is HubGuard.on_idle_culler, ``beside`` HubGuard.act_beside, ``users`` HubGuardCull.users or None if it isn't
    set, ``has_rules`` whether HubGuardCull.rules is.
    """

    api_url: str
    ours: frozenset[str] | None
    internal_ssl: bool = False
    wanted: str = "take over"
    beside: tuple[str, ...] = ()
    users: bool | None = None
    has_rules: bool = False


@dataclass(frozen=True, slots=True)
class Culler:
    """An idle culler among the services. ``reach`` is what it may stop, ``user_reach`` who it may delete (None: nobody)."""

    name: str
    command: tuple[str, ...]
    reach: Reach = ()
    user_reach: Reach | None = None


@dataclass(frozen=True, slots=True)
class Handover:
    """What becomes of the idle cullers of a hub.

    ``replaced``: HubGuard takes their place, with an understudy for each in their order, which share ``folder`` with it, and
    with ``settings`` (section → name → value) and ``api_url`` ("": the usual one). Otherwise they work on, and ``why`` says
    in one sentence why HubGuard doesn't act ("": nothing keeps it from that). ``notes`` are sentences for an operator.
    """

    cullers: tuple[Culler, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    replaced: bool = False
    why: str = ""
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    api_url: str = ""
    notes: tuple[str, ...] = ()
    folder: str = ""

    @property
    def name(self) -> str:
        """The names of the cullers, for people."""
        return " and ".join(culler.name for culler in self.cullers)

    @property
    def deletes_users(self) -> bool:
        """Whether deleting users was taken over."""
        return self.replaced and bool(self.settings.get("HubGuardCull", {}).get("users"))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def from_dict(data: Mapping[str, Any] | None) -> Handover:
    """What :meth:`Handover.to_dict` returned; None: there is nothing to hand over. Raises KeyError or TypeError."""
    if not data:
        return Handover()
    cullers = tuple(
        Culler(culler["name"], tuple(culler["command"]), _reach(culler["reach"]) or (), _reach(culler["user_reach"]))
        for culler in data["cullers"]
    )
    suspects = tuple(Suspect(suspect["name"], Kind(suspect["kind"]), suspect["why"]) for suspect in data["suspects"])
    return Handover(
        cullers,
        suspects,
        bool(data["replaced"]),
        str(data["why"]),
        data["settings"],
        str(data["api_url"]),
        tuple(data["notes"]),
        str(data["folder"]),
    )


def _reach(data: Iterable[Iterable[str]] | None) -> Reach | None:
    return None if data is None else tuple(tuple(filters) for filters in data)


# -- deciding -----------------------------------------------------------------------------------------------------------


def decide(services: Sequence[Service], hub: Hub) -> Handover:
    """What becomes of the cullers among ``services``, which are all but HubGuard's own. ``folder`` isn't filled in yet."""
    culling = [service for service in services if runs_a_culler(service.command) and service.name not in hub.beside]
    suspects = tuple(
        suspect for service in services if service not in culling and (suspect := _suspect(service)) is not None
    )
    cullers = tuple(_culler(service) for service in culling)
    seen = Handover(cullers, suspects)
    others = [suspect for suspect in suspects if suspect.kind is Kind.LIKELY and suspect.name not in hub.beside]
    if others:
        beside = ", ".join(repr(suspect.name) for suspect in others)
        why = " ".join(f"{_capital(suspect.why)}." for suspect in others)
        return replace(seen, why=f"{why} If that isn't a culler, name it in c.HubGuard.act_beside = [{beside}].")
    if not culling:
        return seen
    if why := _why_it_stays(culling, hub):
        return replace(seen, why=why)
    taken = [_without_users(service, hub) for service in culling]
    settings = taken[0].settings if len(culling) == 1 else _together(culling, taken)
    notes = [note for takeover in taken for note in takeover.notes]
    for culler in cullers:
        if culler.reach:
            notes.append(
                f"HubGuard stops only what the role of {culler.name} allows:"
                f" {', and '.join(' or '.join(filters) for filters in culler.reach)}."
            )
    (api_url,) = {_api_url(service) for service in culling}
    return replace(seen, replaced=True, settings=settings, api_url=api_url, notes=tuple(notes))


def reach_of(scopes: Iterable[str], needed: Sequence[str] = NEEDED) -> Reach | None:
    """What is left to a holder of ``scopes`` who needs all of ``needed``; None if one of them is missing."""
    held = set(scopes)
    reach: list[Filters] = []
    for name in needed:
        if name in held:
            continue
        filters = sorted(scope.removeprefix(f"{name}!") for scope in held if scope.startswith(f"{name}!"))
        filters = [filter_ for filter_ in filters if filter_.startswith(("user=", "group=", "server="))]
        if not filters:
            return None
        if tuple(filters) not in reach:
            reach.append(tuple(filters))
    return tuple(reach)


def why_unreachable(api_url: str, internal_ssl: bool) -> str:
    """Why HubGuard's service can't reach the hub at ``api_url``, as a sentence; "" if nothing is known to be against it."""
    if internal_ssl:
        return (
            "HubGuard's service can't reach a hub with internal SSL (c.JupyterHub.internal_ssl). The drop-in,"
            " python -m hubguard.culler, can."
        )
    if urlsplit(api_url).scheme not in {"http", "https"}:
        return (
            "HubGuard's service can't reach a hub at a unix socket. Let the hub listen at a port"
            " (c.JupyterHub.hub_bind_url)."
        )
    return ""


def _culler(service: Service) -> Culler:
    scopes = service.scopes or frozenset()
    return Culler(service.name, service.command, reach_of(scopes) or (), reach_of(scopes, NEEDED_FOR_USERS))


def _suspect(service: Service) -> Suspect | None:
    """What ``service``, whose command is unknown, looks like; None if it can't stop anybody's servers."""
    if service.script:
        why = f"the service {service.name} runs {service.script}, which names an idle culler"
        return Suspect(service.name, Kind.LIKELY, why)
    harmless = service.scopes is not None and reach_of(service.scopes, ("list:users", "delete:servers")) is None
    # A shell may give what it starts another token.
    if (culler := names_a_culler(service.command)) and not (harmless and not in_a_shell(service.command)):
        run = run_of(service.command)
        why = f"may run {culler}: HubGuard can't tell what {run.program!r} does"
        return Suspect(service.name, Kind.LIKELY, f"the service {service.name} {f'runs {culler}' if run.name else why}")
    if service.scopes is None or harmless:
        return None
    rights = f"the service {service.name} may list users and stop their servers"
    named = " ".join((service.name, *service.command)).lower()
    if any(part in named for part in LIKE_A_CULLER):
        return Suspect(service.name, Kind.LIKELY, f"{rights}, and is named like a culler")
    if service.admin or any(scope in service.scopes for scope in MORE_THAN_A_CULLER):
        return Suspect(service.name, Kind.POSSIBLE, f"{rights}, among much else")
    return Suspect(service.name, Kind.LIKELY, f"{rights}, and little else: it may be a culler")


def _why_it_stays(culling: Sequence[Service], hub: Hub) -> str:
    """Why these cullers keep running themselves, as a sentence; "" if HubGuard can take their place."""
    if hub.wanted != "take over":
        return f"HubGuard.on_idle_culler is {hub.wanted!r}."
    if why := why_unreachable(hub.api_url, hub.internal_ssl):
        return why
    for service in culling:
        if why := _why_one_stays(service, hub):
            return f"{service.name}: {why}" if len(culling) > 1 else _capital(why)
    if len({_api_url(service) for service in culling}) > 1:
        return "The cullers reach the hub by different URLs (--url)."
    if len(culling) > 1:
        return _why_not_together(culling, hub)
    return ""


def _why_one_stays(service: Service, hub: Hub) -> str:
    if service.running:
        return "the hub started it before HubGuard. Include HubGuard last; it then registers first."
    if service.user:
        return f"it runs as the system user {service.user}, and HubGuard doesn't."
    taken = settings_from(service.command, service.version)
    if not taken.understood:
        return f"HubGuard can't take over its settings: {' '.join(taken.notes)}"
    if taken.works is None and hub.users is None:
        return (
            f"some versions of it exit with its command line ({taken.refusal}), and HubGuard can't tell which is installed."
            " Write each option as --name=value, which all versions read alike"
            + (", or set c.HubGuardCull.users to True or False before the include." if _deletes_users(taken) else ".")
        )
    if Path(service.cwd or ".", DEFAULT_CONFIG_FILE).exists():
        return f"HubGuard can't take over its settings: some are in {DEFAULT_CONFIG_FILE}, which the culler reads."
    url = _api_url(service)
    if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname):
        return "HubGuard can't use the URL by which it reaches the hub."
    if service.scopes is None:
        return "its rights can't be seen."
    theirs = reach_of(service.scopes)
    if theirs is None:
        return "its role doesn't allow it to find and stop servers, so there is nothing to take over."
    if hub.ours is None:
        return "HubGuard's own rights can't be seen."
    missing = [scope for scope, need in SCOPES.items() if need.required and not _covers(hub.ours, scope, theirs)]
    if missing:
        return (
            f"HubGuard's role lacks {', '.join(missing)}. Does a line after the include overwrite c.JupyterHub.load_roles?"
            " Add to what is there instead, or include HubGuard last."
        )
    return _why_users_stay(service, taken, hub)


def _why_users_stay(service: Service, taken: TakenOver, hub: Hub) -> str:
    """Why a culler with --cull-users works on although HubGuard could stop the servers; "" if nothing is against it."""
    if not _deletes_users(taken) or hub.users is False:
        return ""
    if hub.users is None and not _users_work(service, taken):
        return ""
    if hub.ours is None or reach_of(hub.ours, NEEDED_FOR_USERS) != ():
        return (
            "it deletes users (--cull-users), and HubGuard's role lacks delete:users. Include HubGuard after the culler, or"
            " set c.HubGuardCull.users before the include."
        )
    return ""


def _deletes_users(taken: TakenOver) -> bool:
    return bool(taken.values.get("cull_users"))


def _users_work(service: Service, taken: TakenOver) -> bool:
    """Whether a culler with --cull-users can have deleted anybody, as far as is known."""
    return taken.works is True and reach_of(service.scopes or (), NEEDED_FOR_USERS) is not None


def _without_users(service: Service, hub: Hub) -> TakenOver:
    """What is taken over from ``service``. Users are only deleted if the culler did that, or somebody says so."""
    taken = settings_from(service.command, service.version)
    notes = []
    if taken.works is False:
        notes.append(
            f"{service.name} has culled nobody: its version exits with its command line ({taken.refusal})."
            " HubGuard stops servers as that line says."
        )
    if not _deletes_users(taken):
        return replace(taken, notes=tuple(notes))
    if hub.users or (hub.users is None and _users_work(service, taken)):
        notes.append("--cull-users is taken over: HubGuard deletes users, which needs the scope delete:users.")
        return replace(taken, notes=tuple(notes))
    if hub.users is False:
        notes.append(f"{service.name} has --cull-users. HubGuard deletes no users, as HubGuardCull.users says.")
    else:
        why = "its role lacks delete:users" if taken.works else "it exits"
        notes.append(
            f"{service.name} has --cull-users, but {why}: it deleted nobody, and neither does HubGuard. To delete users, set"
            " c.HubGuardCull.users to True before the include."
        )
    return replace(taken, values={**taken.values, "cull_users": False}, notes=tuple(notes))


def _covers(ours: frozenset[str], scope: str, theirs: Reach) -> bool:
    """Whether our ``scope`` reaches all that a culler with that reach can."""
    reach = reach_of(ours, (scope,))
    if reach is None:
        return False
    return not reach or any(set(filters) <= set(reach[0]) for filters in theirs)


# -- several cullers become rules -----------------------------------------------------------------------------------------


def _why_not_together(culling: Sequence[Service], hub: Hub) -> str:
    """Why these cullers can't become rules, of which each server has the first that matches it; "" if they can."""
    name = " and ".join(service.name for service in culling)
    cannot = f"{name} can't be replaced together:"
    if hub.has_rules:
        return f"{cannot} HubGuardCull.rules is set, which would come on top of theirs."
    values = [settings_from(service.command, service.version).settings["HubGuardCull"] for service in culling]
    if any(cull.get("users") for cull in values):
        return f"{cannot} one has --cull-users."
    if len({cull["remove_named_servers"] for cull in values if cull["named_servers"]}) > 1:
        return f"{cannot} --remove-named-servers differs."
    if any(len(reach_of(service.scopes or ()) or ()) > 1 for service in culling):
        return f"{cannot} the filters of one role's scopes differ."
    in_order = sorted(values, key=_limits)
    if sorted(map(_age, values)) != [_age(cull) for cull in in_order]:
        return f"{cannot} one stops servers earlier when idle, another earlier by age."
    return ""


def _together(culling: Sequence[Service], taken: Sequence[TakenOver]) -> dict[str, dict[str, object]]:
    """One rule for each kind of filter of each culler, strictest limits first. No server without a rule is stopped."""
    values = [takeover.settings["HubGuardCull"] for takeover in taken]
    rules: list[dict[str, object]] = []
    for service, cull in sorted(zip(culling, values, strict=True), key=lambda pair: _limits(pair[1])):
        if not (cull["default_servers"] or cull["named_servers"]):
            continue
        limits: dict[str, object] = {"idle_timeout_s": cull["idle_timeout_s"], "max_age_s": cull["max_age_s"]}
        if not (cull["default_servers"] and cull["named_servers"]):
            limits["named"] = cull["named_servers"]
        for matches in _matches(reach_of(service.scopes or ()) or ()):
            number = sum(str(rule["name"]).startswith(service.name) for rule in rules)
            rules.append({"name": f"{service.name} ({number + 1})" if number else service.name, **matches, **limits})
    concurrency = [takeover.settings.get("HubGuardBudget", {}).get("concurrency") for takeover in taken]
    settings: dict[str, dict[str, object]] = {
        "HubGuardCull": {
            "idle_timeout_s": 0.0,
            "max_age_s": 0.0,
            "rules": rules,
            "every_s": min(float(str(cull["every_s"])) for cull in values),
            "remove_named_servers": any(cull["remove_named_servers"] for cull in values if cull["named_servers"]),
        }
    }
    if None not in concurrency:
        settings["HubGuardBudget"] = {"concurrency": max(int(str(count)) for count in concurrency)}
    return settings


def _matches(reach: Reach) -> list[dict[str, object]]:
    if not reach:
        return [{}]
    matches: list[dict[str, object]] = []
    (filters,) = reach
    for kind in ("user", "group"):
        names = [glob.escape(filter_.partition("=")[2]) for filter_ in filters if filter_.startswith(f"{kind}=")]
        if names:
            matches.append({f"{kind}s": names})
    for filter_ in filters:
        if filter_.startswith("server="):
            user, _, server = filter_.partition("=")[2].partition("/")
            matches.append({"users": [glob.escape(user)], "servers": [glob.escape(server)]})
    return matches


def _limits(cull: Mapping[str, object]) -> tuple[float, float]:
    return float(str(cull["idle_timeout_s"])) or float("inf"), _age(cull)


def _age(cull: Mapping[str, object]) -> float:
    return float(str(cull["max_age_s"])) or float("inf")


def _api_url(service: Service) -> str:
    return (settings_from(service.command).api_url or service.api_url).rstrip("/")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- a hub that runs ------------------------------------------------------------------------------------------------------


def service_of(service: Any) -> Service:
    """What matters of one of the hub's own service objects (5.2 to 6.1). Never raises."""
    command = tuple(str(word) for word in service.command or ())
    environment = getattr(service, "environment", None) or {}
    url = environment.get(API_URL, "")
    run = run_of(command)
    return Service(
        name=str(service.name),
        command=command,
        cwd=str(getattr(service, "cwd", "") or ""),
        user=str(getattr(service, "user", "") or ""),
        api_url=url if isinstance(url, str) else "",
        scopes=scopes_of(service),
        running=getattr(service, "spawner", None) is not None,
        admin=bool(getattr(service, "admin", False)),
        version=_version(run, environment),
        script="" if run.name else _script(command, str(getattr(service, "cwd", "") or "")),
    )


def scopes_of(service: Any) -> frozenset[str] | None:
    """The effective scopes of a service of the hub that runs here; None if they can't be seen."""
    try:
        # Where a hub runs, this is loaded.
        return frozenset(sys.modules["jupyterhub.scopes"].get_scopes_for(service.orm))
    except Exception:
        return None


def _version(run: Run, environment: Mapping[str, object]) -> str | None:
    """The version of the peer that is run, if it is installed beside the hub; None if that is unknown."""
    if run.name not in PEER or "PYTHONPATH" in environment:
        return None
    try:
        program = shutil.which(run.program, path=str(environment.get("PATH") or "") or None)
        if program is None or os.path.dirname(os.path.abspath(program)) != os.path.dirname(
            os.path.abspath(sys.executable)
        ):
            return None
        return importlib.metadata.version("jupyterhub-idle-culler")
    except Exception:
        return None


def _script(command: Sequence[str], cwd: str) -> str:
    """The first file that ``command`` names and that names a culler itself; "" if there is none."""
    for word in command:
        try:
            file = Path(cwd, shutil.which(word) or word)
            if not file.is_file() or file.stat().st_size > LARGEST_SCRIPT:
                continue
            text = file.read_text(errors="replace")
        except (OSError, ValueError):
            continue
        if "\0" not in text and any(name in text for name in CULLERS):
            return str(file)
    return ""
