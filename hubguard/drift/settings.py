"""The settings of drift and its repair."""

from __future__ import annotations

from traitlets import Bool, Enum, Float, Int, List, Unicode
from traitlets.config import Configurable


class HubGuardDrift(Configurable):
    """How HubGuard finds out where hub, database, proxy and backends disagree, and what it mends by itself."""

    every_s = Float(
        30.0,
        help="""Seconds from one look at all sources to the next, give or take 10 %. While something is suspected, it looks
        again after a sixth of that, and after 5 s at the earliest. Range: 5 to an hour.""",
    ).tag(config=True, low=5.0, high=3600.0)
    sightings = Int(
        3,
        help="""A difference is drift when so many complete looks in a row have shown it; until then it is suspected. Range: 2
        to 100.""",
    ).tag(config=True, low=2, high=100)
    for_s = Float(
        15.0,
        help="""Seconds for which it must have been seen, too. Longer than a server is between two states on a busy hub.
        Range: 0 to an hour.""",
    ).tag(config=True, low=0.0, high=3600.0)
    clear_after = Int(
        2, help="So many complete looks in a row without it end a drift that was raised. Range: 1 to 100."
    ).tag(config=True, low=1, high=100)
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
    watch_proxy = Bool(
        True,
        help="""Whether HubGuard keeps a route of its own at the proxy, where that is configurable-http-proxy, and looks for
        it every second or two: a proxy that has lost its table, hangs or is gone shows within seconds.""",
    ).tag(config=True)
