"""Which sources of signals there are, by where the guard runs and what its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubguard.hub.api import HubAPI
from hubguard.hub.database import HubDB
from hubguard.pacing.clock import Clock
from hubguard.watch.decide.failed_starts import FailedStarts
from hubguard.watch.model import SignalSource
from hubguard.watch.observe.database import DatabaseReader
from hubguard.watch.observe.hub import HubReader
from hubguard.watch.observe.machine import FoldersReader, MachineReader
from hubguard.watch.observe.metrics import HubMetricsReader, HubScrapes, ProxyMetricsReader, StartsReader
from hubguard.watch.observe.port import Reader
from hubguard.watch.observe.process import ProcessReader, listener_of
from hubguard.watch.settings import HubGuardWatch


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the sources are found by. ``hub_pid`` is the process of the hub that runs this guard, None if it doesn't.

    ``hub_url`` and ``proxy_url`` are those of the APIs, the latter "" if unknown. ``check_routes_s`` is how often the hub
    checks its routes, ``failures_limit`` after how many failed starts in a row it exits; 0: not, or unknown. ``folders``
    are watched if the settings name none.
    """

    hub_url: str
    hub_pid: int | None = None
    proxy_url: str = ""
    check_routes_s: float = 0.0
    failures_limit: int = 0
    folders: Sequence[str] = ()


def open_readers(
    settings: HubGuardWatch,
    around: Surroundings,
    hub: HubAPI,
    database: HubDB | None,
    clock: Clock,
    failed_starts: FailedStarts,
) -> tuple[Reader, ...]:
    """A reader for each source outside of the guard. What can't be read here says so when it is read."""
    scrapes = HubScrapes(hub, clock)
    find_hub = listener_of(around.hub_url, "hub")
    return (
        HubReader(hub, clock),
        HubMetricsReader(scrapes, around.check_routes_s),
        StartsReader(scrapes, around.failures_limit, failed_starts),
        ProcessReader(SignalSource.HUB_PROCESS, "hub", lambda: around.hub_pid or find_hub(), clock),
        DatabaseReader(database, clock),
        ProxyMetricsReader(settings.proxy_metrics_url, clock, settings.proxy_heap_limit_bytes),
        ProcessReader(SignalSource.PROXY_PROCESS, "proxy", listener_of(around.proxy_url, "proxy"), clock),
        MachineReader(),
        FoldersReader(settings.folders or around.folders),
    )
