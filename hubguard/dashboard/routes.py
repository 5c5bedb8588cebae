"""The whole route table, and the application that serves it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tornado.web import Application, RedirectHandler, StaticFileHandler

from hubguard import words
from hubguard.cull import api as cull_api
from hubguard.cull import pages as cull_pages
from hubguard.cull import words as cull_words
from hubguard.dashboard import api, metrics, pages
from hubguard.dashboard import words as dashboard_words
from hubguard.dashboard.status import state_of
from hubguard.drift import api as drift_api
from hubguard.drift import pages as drift_pages
from hubguard.guard import Guard
from hubguard.journal import words as journal_words
from hubguard.prune import api as prune_api
from hubguard.prune import pages as prune_pages
from hubguard.prune import plan_pages as prune_plan_pages
from hubguard.web import endpoint as web_endpoint
from hubguard.web.auth import AuthPort
from hubguard.web.base import Base, NotFound, Site, log_request
from hubguard.web.harden import harden

HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Room:
    """What one feature shows, by path: pages, the live parts of pages, and endpoints of the API."""

    pages: Mapping[str, type[Base]]
    fragments: Mapping[str, type[Base]]
    api: Mapping[str, type[web_endpoint.Api]]

    def handlers(self) -> Iterator[tuple[str, type[Base]]]:
        """Every path with its handler."""
        yield from self.pages.items()
        yield from self.fragments.items()
        yield from self.api.items()


DASHBOARD = Room(
    pages={
        "": pages.Overview,
        "journal": pages.JournalPage,
        "actions/{word}": pages.Change,
    },
    fragments={
        "fragments/overview": pages.Overview,
        "fragments/journal": pages.JournalPage,
    },
    api={
        "api/v1/status": api.StatusApi,
        "api/v1/journal": api.JournalApi,
        "api/v1/arm": api.stance_api("arm"),
        "api/v1/observe": api.stance_api("observe"),
        "api/v1/hold": api.stance_api("hold"),
        "api/v1/resume": api.stance_api("resume"),
        "openapi.json": api.OpenApi,
        "metrics": api.MetricsApi,
        "health": api.HealthApi,
    },
)

CULL = Room(
    pages={
        "servers": cull_pages.Servers,
        "servers/{user}/{name}": cull_pages.ServerPage,
        "exemptions": cull_pages.Exemptions,
        "exemptions/new": cull_pages.Keep,
        "exemptions/{id}": cull_pages.EndExemption,
    },
    fragments={
        "fragments/servers": cull_pages.Servers,
        "fragments/servers/{user}/{name}": cull_pages.ServerPage,
        "fragments/exemptions": cull_pages.Exemptions,
    },
    api={
        "api/v1/servers": cull_api.ServersApi,
        "api/v1/servers/{user}/{name}": cull_api.ServerApi,
        "api/v1/exemptions": cull_api.ExemptionsApi,
        "api/v1/exemptions/{id}": cull_api.ExemptionApi,
        "api/v1/cycles": cull_api.CyclesApi,
    },
)

DRIFT = Room(
    pages={
        "drift": drift_pages.DriftPage,
        "beliefs/{user}/{name}": drift_pages.BeliefsPage,
        "repairs": drift_pages.RepairsPage,
    },
    fragments={
        "fragments/drift": drift_pages.DriftPage,
        "fragments/beliefs/{user}/{name}": drift_pages.BeliefsPage,
    },
    api={
        "api/v1/drift": drift_api.DriftApi,
        "api/v1/drift/report": drift_api.ReportApi,
        "api/v1/drift/looks": drift_api.LooksApi,
        "api/v1/routes": drift_api.RoutesApi,
        "api/v1/repairs": drift_api.RepairsApi,
        "api/v1/beliefs/{user}/{name}": drift_api.BeliefsApi,
        "api/v1/outlived": drift_api.OutlivedApi,
    },
)

PRUNE = Room(
    pages={
        "users": prune_pages.UsersPage,
        "users/{user}": prune_pages.UserPage,
        "plans": prune_plan_pages.PlansPage,
        "plans/new": prune_plan_pages.MakePlan,
        "plans/{digest}": prune_plan_pages.PlanPage,
        "plans/{digest}/apply": prune_plan_pages.ApplyPlan,
        "plans/{digest}/{turn}": prune_plan_pages.TurnPlan,
    },
    fragments={
        "fragments/users": prune_pages.UsersPage,
        "fragments/plans": prune_plan_pages.PlansPage,
        "fragments/plans/{digest}": prune_plan_pages.PlanPage,
    },
    api={
        "api/v1/users": prune_api.UsersApi,
        "api/v1/users/{user}": prune_api.UserApi,
        "api/v1/plans": prune_api.PlansApi,
        "api/v1/plans/{digest}": prune_api.OnePlanApi,
        "api/v1/plans/{digest}.csv": prune_api.CsvApi,
        "api/v1/plans/{digest}/items": prune_api.ItemsApi,
        "api/v1/plans/{digest}/apply": prune_api.ApplyApi,
        "api/v1/plans/{digest}/pause": prune_api.turn_api("pause"),
        "api/v1/plans/{digest}/resume": prune_api.turn_api("resume"),
        "api/v1/plans/{digest}/cancel": prune_api.turn_api("cancel"),
        "api/v1/plans/{digest}/restore": prune_api.RestoreApi,
    },
)

ROOMS = (DASHBOARD, CULL, DRIFT, PRUNE)

PAGES = {path: handler for room in ROOMS for path, handler in room.pages.items()}
FRAGMENTS = {path: handler for room in ROOMS for path, handler in room.fragments.items()}
API = {path: handler for room in ROOMS for path, handler in room.api.items()}


def _bound(guard: Guard) -> Iterator[tuple[Room, dict[str, Any]]]:
    """Each room with the parts that its handlers get."""
    journal = guard.mandate.journal
    yield DASHBOARD, {"guard": guard, "journal": journal, "metrics": metrics.registry(partial(state_of, guard))}
    yield CULL, {"culling": guard.culling, "journal": journal}
    if guard.drifts is not None:
        yield DRIFT, {"drifts": guard.drifts, "journal": journal}
    yield PRUNE, {"pruning": guard.pruning, "journal": journal}


_PATTERNS = {
    "{user}": "([^/]+)",
    "{name}": "([^/]*)",
    "{id}": "([0-9]+)",
    "{word}": f"({'|'.join(pages.Change.words)})",
    "{digest}": "([0-9a-f]{64})",
    "{turn}": f"({'|'.join(prune_plan_pages.TurnPlan.words)})",
}


class Static(StaticFileHandler):
    """The scripts and the style sheet. They hold nothing secret, and are open."""

    def set_default_headers(self) -> None:
        """As any answer of ours; the cache header is set by what the address says of the version."""
        harden(self)
        self.clear_header("Cache-Control")


def make_application(
    guard: Guard,
    auth: AuthPort,
    *,
    prefix: str,
    hub_prefix: str,
    cookie_secret: bytes | None = None,
    service_token: str = "",
) -> Application:
    """The pages and the API over ``guard``, below ``prefix`` (with a slash at both ends).

    ``hub_prefix`` is where the hub is, for links: its path, or a URL if it is at another host. ``cookie_secret`` None: a new
    one, so that everyone logs in again after a restart. ``service_token`` is that of our service at the hub, with which
    the hub reports what its spawner saw; "": nobody may.
    """
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    secret = cookie_secret or secrets.token_bytes(32)
    operations = {path: handler.operations for path, handler in API.items()}
    site = Site(guard.status, auth, prefix, hub_prefix, env, operations, secret, service_token)
    handlers: list[Any] = [
        (prefix + _pattern(path), handler, {"site": site, **parts})
        for room, parts in _bound(guard)
        for path, handler in room.handlers()
    ]
    if (callback := auth.callback()) is not None:
        handlers.append((f"{prefix}oauth_callback", *callback))
    if prefix != "/":
        handlers.append((prefix.rstrip("/"), RedirectHandler, {"url": prefix, "permanent": False}))
    settings: dict[str, Any] = {
        "static_path": str(HERE / "static"),
        "static_url_prefix": f"{prefix}static/",
        "static_handler_class": Static,
        "cookie_secret": secret,
        "default_handler_class": NotFound,
        "default_handler_args": {"site": site},
        "log_function": log_request,
    }
    env.globals["p"] = _words()
    env.globals["static"] = lambda name: Static.make_static_url(settings, name)
    return Application(handlers, **settings)


def _words() -> SimpleNamespace:
    """What templates call by ``p.``: the words of all rooms in one place."""
    rooms = (words, journal_words, cull_words, dashboard_words)
    return SimpleNamespace(**{name: value for room in rooms for name, value in vars(room).items() if name[0] != "_"})


def _pattern(path: str) -> str:
    path = path.replace(".", r"\.")
    for placeholder, pattern in _PATTERNS.items():
        path = path.replace(placeholder, pattern)
    return path
