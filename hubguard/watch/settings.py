"""The settings of watching."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from traitlets import Any, Dict, Float, Int, List, Unicode, validate

from hubguard.settings import Section
from hubguard.watch.decide.adjust import problems_of
from hubguard.watch.decide.receivers import hide_secrets, read_receivers


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
    receivers = Any(
        {},
        help="""Who is notified of alerts, by a name of your choice, for example {"ops": {"kind": "slack", "url_env":
        "SLACK_URL", "severities": ["now", "today"]}}. Kinds: slack, pagerduty, alertmanager, webhook, email and
        apprise. Secrets come from an environment variable (`url_env`) or a file (`url_file`). A wrong receiver is shown
        on the Overview, and everything else continues.""",
    ).tag(config=True)
    keep_days = Int(
        400,
        help="""Days for which signals are kept, in steps of one hour from the second month on. Range: 1 to 3,660. The
        default lets you compare a semester with the one a year before.""",
    ).tag(config=True, low=1, high=3660)

    @validate("receivers")
    def _hide_secrets(self, proposal: Mapping[str, object]) -> object:
        return hide_secrets(proposal["value"])

    def notes(self) -> list[str]:
        """What is wrong here: receivers, alerts and a URL that can't be used. Everything else goes on, culling above all."""
        notes = [problem.note for problem in read_receivers(self.receivers)[1]]
        for name, why in problems_of(self.alerts):
            notes.append(f"HubGuardWatch.alerts[{name!r}]: {why}. This line changes nothing.")
        url = self.proxy_metrics_url
        if url and not _is_url(url):
            notes.append(
                f"HubGuardWatch.proxy_metrics_url: {url!r} is no URL such as http://127.0.0.1:8002/metrics. The proxy's"
                " metrics aren't read."
            )
        return notes


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
