"""The settings of drift and its repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from traitlets import Enum, Float, List, Unicode

from hubguard.drift.model import REMEDIES
from hubguard.errors import ConfigError
from hubguard.settings import Section, closest


class HubGuardDrift(Section):
    """How HubGuard finds where hub, database, proxy and backends disagree, and what it repairs by itself."""

    every_s = Float(
        30.0,
        help="""Seconds between two looks at all sources, plus or minus 10 %. While something is suspected, HubGuard
        looks again after a sixth of that, but not before 5 s. Range: 5 to an hour.""",
    ).tag(config=True, low=5.0, high=3600.0)
    repair = List(
        Unicode(),
        default_value=[
            "route-missing",
            "route-wrong-target",
            "route-stale",
            "service-route-missing",
            "hub-route-missing",
        ],
        help="""Kinds of drift that HubGuard repairs by itself once it is armed; it repairs the others when you ask. For
        routes, it has the hub check them, and writes none itself. You can add "server-dead" (stop it), "server-ghost"
        (start it, then stop it), "server-orphan" (end the backend, if it is proved to be this hub's) and
        "pending-stuck" (interrupt the start).""",
    ).tag(config=True)
    backend = Enum(
        ["auto", "process", "systemd", "docker", "kubernetes", "http", ""],
        default_value="auto",
        help="""How HubGuard sees what really runs: "process", "systemd", "docker" or "kubernetes"; "http" only checks
        whether each server answers, without credentials; "" doesn't look. "auto": by the hub's spawner, and "http" if
        that is none of these.""",
    ).tag(config=True)

    constants = ("sightings", "for_s", "clear_after")
    replaced: ClassVar[Mapping[str, str]] = {
        "watch_proxy": "HubGuard.read_proxy = False turns off all that HubGuard does at the proxy.",
    }

    sightings = 3
    """Complete looks in a row that must show a difference before it is drift; until then it is suspected."""
    for_s = 15.0
    """Seconds for which a difference must have been seen, too. Longer than a server is between two states on a busy hub."""
    clear_after = 2
    """Complete looks in a row that must not show raised drift before it is resolved."""

    def problems(self) -> list[ConfigError]:
        """Every kind in ``repair`` that can't be repaired."""
        reparable = [kind.value for kind in REMEDIES]
        return [
            ConfigError(f"{type(self).__name__}.repair", f"{kind!r} can't be repaired{closest(kind, reparable)}")
            for kind in self.repair
            if kind not in reparable
        ]
