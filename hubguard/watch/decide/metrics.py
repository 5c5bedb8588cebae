"""What the metrics of hub and proxy say: two scrapes become signals. Text in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from prometheus_client.parser import text_string_to_metric_families

LOOP_STEP_S = 0.05
"""Seconds between two ticks that a hub measures its event loop by: what a tick takes longer is lag (6.1)."""

Labels = Mapping[str, str]


class Malformed(ValueError):
    """What answered isn't metrics in Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one reading of metrics at ``at`` (unix time), by name: (labels, value) each.

    Names are as they were sent, except that counters end with ``_total`` if the format says that they are counters.
    """

    at: float
    samples: Mapping[str, tuple[tuple[Labels, float], ...]] = field(default_factory=dict, hash=False)

    def total(self, name: str, wanted: Callable[[Labels], bool] = lambda labels: True) -> float | None:
        """The sum of that metric's samples with the labels that are ``wanted``; None if it has none at all."""
        known = self.samples.get(name)
        if not known:
            return None
        return math.fsum(value for labels, value in known if wanted(labels) and math.isfinite(value))


def read_scrape(text: str, at: float, names: Callable[[str], bool] = lambda name: True) -> Scrape:
    """The metrics in ``text`` with the ``names`` that are wanted. Raises Malformed."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families(_lines_with(text, names)):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, float(sample.value)))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise Malformed(f"no metrics in Prometheus' text format: {error}") from None
    return Scrape(at, {name: tuple(known) for name, known in samples.items()})


def _lines_with(text: str, names: Callable[[str], bool]) -> str:
    """Parsing all of a hub's lines takes ten times as long as looking which are wanted."""
    return "\n".join(line for line in text.splitlines() if names(_name_in(line))) + "\n"


def _name_in(line: str) -> str:
    """The metric that a line of the format is about: a sample, or a comment with its help or type."""
    if line.startswith("# "):
        return line.split(" ", 3)[2] if line.count(" ") >= 2 else ""
    return line.split("{", 1)[0].split(" ", 1)[0]


def per_minute(
    now: Scrape, before: Scrape | None, name: str, wanted: Callable[[Labels], bool] = lambda labels: True
) -> float | None:
    """How much that counter has risen in a minute since the scrape ``before``; None if that is unknown.

    A counter that fell began again: whatever counts was started again, and how much it had counted meanwhile is unknown.
    """
    if before is None or now.at <= before.at:
        return None
    last, first = now.total(name, wanted), before.total(name, wanted)
    if last is None:
        return None
    # A counter with labels has no sample until it first counts.
    rise = last - (first or 0.0)
    return None if rise < 0 else rise * 60 / (now.at - before.at)


# -- the hub --------------------------------------------------------------------------------------------------------------

_OF_HUB = (
    "request_duration_seconds_count",
    "running_servers",
    "check_routes_duration_seconds",
    "event_loop_interval_seconds",
    "server_spawn_duration_seconds_count",
    "server_stop_seconds_count",
    "hub_startup_duration_seconds",
)
"""Ends of the names that are read; the beginning is the operator's prefix ($JUPYTERHUB_METRICS_PREFIX)."""


def is_of_hub(name: str) -> bool:
    """Whether that line of the hub's metrics is read."""
    return (
        name == "process_start_time_seconds"
        or any(part in name for part in _OF_HUB)
        or name.endswith("_duration_seconds")
    )


def prefix_of(scrape: Scrape) -> str | None:
    """The prefix of the hub's metrics, ``jupyterhub`` by default; None if these aren't a hub's."""
    end = "_running_servers"
    return next((name.removesuffix(end) for name in scrape.samples if name.endswith(end)), None)


def hub_signals(now: Scrape, before: Scrape | None) -> dict[str, float]:
    """The signals of the hub's metrics. Raises Malformed if they aren't a hub's."""
    prefix = prefix_of(now)
    if prefix is None:
        raise Malformed("what answers has no metric of a hub's")
    if before is not None and started(now) != started(before):
        before = None
    values: dict[str, float | None] = {
        "servers_running": now.total(f"{prefix}_running_servers"),
        "hub_requests_per_minute": per_minute(now, before, f"{prefix}_request_duration_seconds_count"),
        "hub_errors_per_minute": per_minute(
            now, before, f"{prefix}_request_duration_seconds_count", lambda labels: is_error(labels.get("code", ""))
        ),
        "starts_per_minute": per_minute(now, before, f"{prefix}_server_spawn_duration_seconds_count", succeeded),
        "stops_per_minute": per_minute(now, before, f"{prefix}_server_stop_seconds_count", succeeded),
        "failed_stops_per_minute": per_minute(
            now, before, f"{prefix}_server_stop_seconds_count", lambda labels: labels.get("status") == "failure"
        ),
        "hub_event_loop_lag_seconds": _lag_s(now, before, f"{prefix}_event_loop_interval_seconds_bucket"),
    }
    requests, errors = values["hub_requests_per_minute"], values["hub_errors_per_minute"]
    if requests is not None and errors is not None:
        values["hub_error_share"] = errors / requests if requests else 0.0
    if before is not None:
        name = f"{prefix}_check_routes_duration_seconds"
        took_s, checks = _rise(now, before, f"{name}_sum"), _rise(now, before, f"{name}_count")
        if took_s is not None and checks:
            values["check_routes_seconds"] = took_s / checks
    return {name: value for name, value in values.items() if value is not None}


def started(scrape: Scrape) -> float | None:
    """When the process that was scraped was started (unix time), None if it doesn't show that."""
    return scrape.total("process_start_time_seconds")


def is_error(code: str) -> bool:
    """Whether that status is one that users suffer: 400, or the server's own fault. 401, 403 and 404 are everyday."""
    return code == "400" or code.startswith("5")


def succeeded(labels: Labels) -> bool:
    """Whether these labels count what went well."""
    return labels.get("status") == "success"


def _rise(now: Scrape, before: Scrape, name: str) -> float | None:
    last, first = now.total(name), before.total(name)
    return None if last is None or first is None or last < first else last - first


def _lag_s(now: Scrape, before: Scrape | None, name: str) -> float | None:
    """What 99 of 100 ticks of the event loop since ``before`` were late by at most, as the upper bound of their bucket."""
    if before is None:
        return None
    counts: dict[float, float] = {}
    for sign, scrape in ((1, now), (-1, before)):
        for labels, value in scrape.samples.get(name, ()):
            bound = float(labels.get("le", "nan"))
            counts[bound] = counts.get(bound, 0.0) + sign * value
    ticks = counts.get(math.inf, 0.0)
    if ticks <= 0:
        return None
    bounds = sorted(bound for bound in counts if math.isfinite(bound))
    reached = [bound for bound in bounds if counts[bound] >= 0.99 * ticks] or bounds[-1:]
    return max(0.0, reached[0] - LOOP_STEP_S) if reached else None


# -- starts that fail -----------------------------------------------------------------------------------------------------

THROTTLED, LIMIT, FAILED = "throttled", "limit", "failed"

PASSING = frozenset({THROTTLED})
"""Causes that pass by themselves: whoever starts with many others is asked to try again, and nobody is woken for it."""

_CAUSES: Mapping[str, str] = {"throttled": THROTTLED, "too-many-users": LIMIT}


def cause_of(labels: Labels) -> str | None:
    """Why that start failed, by the labels that the hub counts it with; None if it didn't.

    5.5 has throttled, too-many-users and already-pending as statuses, and ``failure`` for what was tried; 6.x has ``error``
    for what was tried, and ``failure`` with a reason for what was refused.
    """
    status, reason = labels.get("status", ""), labels.get("reason", "")
    if status in {"success", "already-pending", ""} or reason == "already-pending":
        return None
    if cause := _CAUSES.get(status) or _CAUSES.get(reason):
        return cause
    return "refused" if status == "failure" and reason else FAILED


REFUSALS = frozenset({THROTTLED, LIMIT, "refused"})
"""Causes of starts that were refused before they began: the hub doesn't count those in a row."""


def with_causes(starts: Starts, told: Mapping[str, int]) -> Starts:
    """``starts`` with these reported causes in place of as many unknown ones: no failure is added."""
    failed, unknown = dict(starts.failed), starts.failed.get(FAILED, 0.0)
    for cause, count in told.items():
        known = min(float(count), unknown)
        unknown -= known
        failed[cause] = failed.get(cause, 0.0) + known
    failed[FAILED] = unknown
    return replace(starts, failed={cause: n for cause, n in failed.items() if n > 0})


@dataclass(frozen=True, slots=True)
class Starts:
    """What became of the starts of servers in one step of time: how many went well, and how many failed by cause."""

    at: float
    succeeded: float
    failed: Mapping[str, float] = field(default_factory=dict, hash=False)


def starts_since(now: Scrape, before: Scrape) -> Starts | None:
    """The starts between two scrapes; None if the hub was started again in between."""
    prefix = prefix_of(now)
    if prefix is None or started(now) != started(before):
        return None
    name = f"{prefix}_server_spawn_duration_seconds_count"
    rises: dict[str | None, float] = {}
    ok = 0.0
    for sign, scrape in ((1, now), (-1, before)):
        for labels, value in scrape.samples.get(name, ()):
            if succeeded(labels):
                ok += sign * value
            elif (cause := cause_of(labels)) is not None:
                rises[cause] = rises.get(cause, 0.0) + sign * value
    return Starts(now.at, max(0.0, ok), {str(cause): rise for cause, rise in rises.items() if rise > 0})


RECENT_S = 1800.0
"""Seconds over which failed starts are counted: two or more in half an hour is what operators act on."""


def start_signals(steps: Iterable[Starts], step_s: float, limit: int) -> dict[str, float]:
    """The signals of ``steps``, the newest last, which are those of the last half hour; ``limit`` 0: the hub has none.

    ``failed_starts_in_a_row`` counts like the hub: what was tried and failed, until one went well. Within a step of a
    minute the order is unknown; one that went well counts as the last.
    """
    known = list(steps)
    failed = sum(n for one in known for cause, n in one.failed.items() if cause not in PASSING)
    whole = failed + sum(one.succeeded for one in known)
    row = 0.0
    for one in known:
        row = 0.0 if one.succeeded else row + sum(n for cause, n in one.failed.items() if cause not in REFUSALS)
    values = {
        "failed_starts_recent": failed,
        "failed_starts_share": failed / whole if whole else 0.0,
        "failed_starts_in_a_row": row,
    }
    if limit:
        values["failed_starts_limit"] = float(limit)
    if known:
        values |= {f"failed_starts_per_minute:{cause}": n * 60 / step_s for cause, n in known[-1].failed.items()}
        values.setdefault("failed_starts_per_minute", sum(known[-1].failed.values()) * 60 / step_s)
    return values


# -- the proxy ------------------------------------------------------------------------------------------------------------


_OF_PROXY = (
    "requests_proxy",
    "nodejs_heap_size_used",
    "nodejs_gc_duration",
    "nodejs_active_handles",
    "process_start_time",
)


def is_of_proxy(name: str) -> bool:
    """Whether that line of configurable-http-proxy's metrics is read."""
    return name.startswith(_OF_PROXY)


def proxy_signals(now: Scrape, before: Scrape | None) -> dict[str, float]:
    """The signals of configurable-http-proxy's metrics (5.x). Raises Malformed if they aren't a proxy's."""
    heap = now.total("nodejs_heap_size_used_bytes")
    if heap is None:
        raise Malformed("what answers has no metric of a configurable-http-proxy's")
    if before is not None and started(now) != started(before):
        before = None
    # prometheus_client gives counters the end _total, which this proxy leaves out.
    name = next(
        (name for name in ("requests_proxy_total", "requests_proxy") if name in now.samples), "requests_proxy_total"
    )
    values: dict[str, float | None] = {
        "proxy_heap_bytes": heap,
        "proxy_sockets": now.total("nodejs_active_handles", lambda labels: labels.get("type") == "Socket"),
        "proxy_requests_per_minute": per_minute(now, before, name),
        "proxy_errors_per_minute": per_minute(
            now, before, name, lambda labels: labels.get("status", "").startswith("5")
        ),
    }
    if before is not None and now.at > before.at:
        major = [
            scrape.total("nodejs_gc_duration_seconds_sum", lambda labels: labels.get("kind") == "major")
            for scrape in (now, before)
        ]
        if major[0] is not None and major[0] >= (major[1] or 0.0):
            values["proxy_gc_share"] = min(1.0, (major[0] - (major[1] or 0.0)) / (now.at - before.at))
    requests, errors = values["proxy_requests_per_minute"], values["proxy_errors_per_minute"]
    if requests is not None and errors is not None:
        values["proxy_error_share"] = errors / requests if requests else 0.0
    return {name: value for name, value in values.items() if value is not None}
