"""The settings of watching."""

from __future__ import annotations

from urllib.parse import urlsplit

from traitlets import Dict, Float, Int, List, Unicode

from hubguard.errors import ConfigError
from hubguard.settings import Section
from hubguard.watch.decide.adjust import problems_of


class HubGuardWatch(Section):
    """What HubGuard measures, when it raises an alert, and how long it remembers."""

    alerts = Dict(
        help="""Changes to the built-in alerts, by name: False switches one off, and a dict changes it, for example
        {"DiskLow": {"raise_at": 0.05, "clear_at": 0.08, "severity": "now"}, "HubBusy": False}. `hubguard alerts rules`
        lists them with what each can change.""",
    ).tag(config=True)
    folders = List(
        Unicode(),
        help="""Folders whose disks and inodes are watched, for example ["/", "/home"]. Empty: the folder of HubGuard's own
        database, if that is a file, and the hub's folder.""",
    ).tag(config=True)
    proxy_metrics_url = Unicode(
        "",
        help="""URL of the metrics of configurable-http-proxy, which it serves when started with `--metrics-port`, for example
        http://127.0.0.1:8002/metrics. Empty: they aren't read.""",
    ).tag(config=True)
    proxy_heap_limit_bytes = Float(
        0.0,
        help="""Bytes that the proxy's heap may take: its `--max-old-space-size` (in MiB) times 1,048,576. HubGuard finds it
        by itself if the proxy runs on this machine. 0: unknown; then its heap raises no alert.""",
    ).tag(config=True, low=0.0, high=1e15)
    keep_days = Int(
        400,
        help="""Days for which signals are kept, in steps of one hour from the second month on. Range: 1 to 3,660. The
        default lets you compare a semester with the one a year before.""",
    ).tag(config=True, low=1, high=3660)

    def problems(self) -> list[ConfigError]:
        """Every alert that isn't there, every change that it can't take, and a URL that is none."""
        url, problems = self.proxy_metrics_url, list[ConfigError]()
        if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname):
            text = f"{url!r} is no URL such as http://127.0.0.1:8002/metrics"
            problems.append(ConfigError("HubGuardWatch.proxy_metrics_url", text))
        return problems + [
            ConfigError(f"HubGuardWatch.alerts[{where!r}]", why) for where, why in problems_of(self.alerts)
        ]
