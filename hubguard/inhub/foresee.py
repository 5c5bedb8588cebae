"""What becomes of the idle cullers when a hub starts with a config, as far as the config alone shows it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from hubguard.errors import ConfigError
from hubguard.inhub import handover
from hubguard.inhub.late import hub_for_handover
from hubguard.inhub.scopes import SERVICE

if TYPE_CHECKING:
    from traitlets.config import Config


class Foreseen(NamedTuple):
    """``unreachable`` says in a sentence why HubGuard's service can't reach such a hub ("": nothing is known against it)."""

    handover: handover.Handover
    unreachable: str = ""
    activity_interval_s: float | None = None


def foresee(config: Config) -> Foreseen:
    """What the include will find with this config, of a hub that hasn't started.

    Without HubGuard among its services there is nothing to hand over. Raises ConfigError if the hub refuses the config.
    """
    from jupyterhub.app import JupyterHub
    from traitlets import TraitError

    try:
        app = JupyterHub(config=config)
        services = {str(spec["name"]): spec for spec in app.services}
    except (TraitError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("c.JupyterHub", f"can't be used: {' '.join(str(error).split())}") from error
    if SERVICE not in services:
        return Foreseen(handover.Handover())
    api_url = app.hub_bind_url or "http://127.0.0.1"
    others = [spec for name, spec in services.items() if name not in (SERVICE, f"{SERVICE}-process")]
    found = handover.decide(
        [service_in_config(spec, app.load_roles) for spec in others],
        hub_for_handover(app.config, api_url, _scopes(services[SERVICE], app.load_roles), bool(app.internal_ssl)),
    )
    return Foreseen(found, handover.why_unreachable(api_url, app.internal_ssl), float(app.last_activity_interval))


def service_in_config(spec: Mapping[str, Any], roles: Iterable[Mapping[str, Any]]) -> handover.Service:
    """The service that the hub will make of its config's ``spec`` and ``roles``."""
    service = handover.service_of(SimpleNamespace(**{"name": "", "command": (), **spec}))
    return replace(service, scopes=_scopes(spec, roles))


def _scopes(spec: Mapping[str, Any], roles: Iterable[Mapping[str, Any]]) -> frozenset[str] | None:
    """The effective scopes that ``roles`` give to the service; None if they can't be found out."""
    from jupyterhub.roles import get_default_roles
    from jupyterhub.scopes import expand_scopes

    usual = {role["name"]: role["scopes"] for role in get_default_roles()}  # type: ignore[no-untyped-call]
    try:
        raw = list(usual["admin"]) if spec.get("admin") else []
        for role in roles:
            if spec["name"] in role.get("services", ()):
                raw += role.get("scopes") or usual.get(role["name"], [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "!user" and the like mean nobody for a service
            # Custom ones are defined in a hub that runs. They allow nothing at the hub.
            found: frozenset[str] = expand_scopes([scope for scope in raw if not scope.startswith("custom:")])
    except Exception:
        return None
    return found
