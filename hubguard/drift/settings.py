"""The settings of drift and its repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from traitlets import Enum, Float, List, Unicode

from hubguard.drift.model import REMEDIES
from hubguard.errors import ConfigError
from hubguard.settings import Section, closest


class HubGuardDrift(Section):
    """How HubGuard finds out where hub, database, proxy and backends disagree, and what it mends by itself."""

    every_s = Float(
        30.0,
        help="""Seconds from one look at all sources to the next, give or take 10 %. While something is suspected, it looks
        again after a sixth of that, and after 5 s at the earliest. Range: 5 to an hour.""",
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
        help="""The kinds of drift that HubGuard repairs by itself, once it is armed; the others it repairs when asked. For
        routes, it has the hub check them; it writes none itself. Of the others there are "server-dead" (stop it),
        "server-ghost" (start it, then stop it), "server-orphan" (end the backend, where it is proved to be this hub's) and
        "pending-stuck" (interrupt the start).""",
    ).tag(config=True)
    backend = Enum(
        ["auto", "process", "systemd", "docker", "kubernetes", "http", ""],
        default_value="auto",
        help="""Where to see what really runs: "process", "systemd", "docker", "kubernetes"; "http" only asks each server
        whether it answers, without anybody's credentials; "" is nowhere. "auto": by the hub's spawner, and "http" where
        that is none of these.""",
    ).tag(config=True)

    constants = ("sightings", "for_s", "clear_after")
    replaced: ClassVar[Mapping[str, str]] = {
        "watch_proxy": "HubGuard.read_proxy = False turns off all that HubGuard does at the proxy.",
    }

    sightings = 3
    """Complete looks in a row that must show a difference before it is drift; until then it is suspected."""
    for_s = 15.0
    """Seconds for which it must have been seen, too. Longer than a server is between two states on a busy hub."""
    clear_after = 2
    """Complete looks in a row without a raised drift that end it."""

    def problems(self) -> list[ConfigError]:
        """Every kind in ``repair`` that can't be repaired."""
        reparable = [kind.value for kind in REMEDIES]
        return [
            ConfigError(f"{type(self).__name__}.repair", f"{kind!r} can't be repaired{closest(kind, reparable)}")
            for kind in self.repair
            if kind not in reparable
        ]
