"""Every signal that is measured. Those of 10 seconds are read where that is free, the others once a minute."""

from __future__ import annotations

from hubguard.watch.model import Signal, SignalSource, Unit

OFTEN_S = 10.0
"""Seconds between two readings of a source that costs next to nothing."""

SELDOM_S = 60.0
"""Seconds between two readings of a source that costs the hub or the machine something."""

_SIGNALS = (
    # The hub, as its users meet it.
    Signal("hub_up", "Hub answers", Unit.SHARE, SignalSource.HUB, OFTEN_S),
    Signal(
        "hub_latency_seconds",
        "Hub's answer to a request that reads its database",
        Unit.SECONDS,
        SignalSource.HUB,
        OFTEN_S,
    ),
    Signal("hub_restarts", "Starts of the hub", Unit.COUNT, SignalSource.HUB_METRICS, SELDOM_S, counter=True),
    # The hub's own metrics.
    Signal(
        "hub_event_loop_lag_seconds",
        "Lag of the hub's event loop, 99th percentile",
        Unit.SECONDS,
        SignalSource.HUB_METRICS,
        SELDOM_S,
    ),
    Signal("hub_requests_per_minute", "Requests to the hub", Unit.PER_MINUTE, SignalSource.HUB_METRICS, SELDOM_S),
    Signal(
        "hub_errors_per_minute",
        "Requests that the hub answered with 400 or 5xx",
        Unit.PER_MINUTE,
        SignalSource.HUB_METRICS,
        SELDOM_S,
    ),
    Signal(
        "hub_error_share",
        "Share of requests that the hub answered with 400 or 5xx",
        Unit.SHARE,
        SignalSource.HUB_METRICS,
        SELDOM_S,
    ),
    Signal(
        "check_routes_seconds",
        "Duration of the hub's check of routes",
        Unit.SECONDS,
        SignalSource.HUB_METRICS,
        SELDOM_S,
    ),
    Signal(
        "check_routes_share",
        "Share of its interval that the check of routes takes",
        Unit.SHARE,
        SignalSource.HUB_METRICS,
        SELDOM_S,
    ),
    Signal("servers_running", "Running servers", Unit.COUNT, SignalSource.HUB_METRICS, SELDOM_S),
    Signal("users_total", "Users of the hub", Unit.COUNT, SignalSource.HUB, SELDOM_S),
    Signal("starts_per_minute", "Servers started", Unit.PER_MINUTE, SignalSource.HUB_METRICS, SELDOM_S),
    Signal("stops_per_minute", "Servers stopped", Unit.PER_MINUTE, SignalSource.HUB_METRICS, SELDOM_S),
    Signal("failed_stops_per_minute", "Stops that failed", Unit.PER_MINUTE, SignalSource.HUB_METRICS, SELDOM_S),
    # Starts that fail.
    Signal(
        "failed_starts_per_minute", "Starts that failed", Unit.PER_MINUTE, SignalSource.STARTS, SELDOM_S, per="cause"
    ),
    Signal("failed_starts_recent", "Starts that failed within half an hour", Unit.COUNT, SignalSource.STARTS, SELDOM_S),
    Signal(
        "failed_starts_share",
        "Share of starts within half an hour that failed",
        Unit.SHARE,
        SignalSource.STARTS,
        SELDOM_S,
    ),
    Signal(
        "failed_starts_in_a_row",
        "Failed starts in a row, as the hub counts them",
        Unit.COUNT,
        SignalSource.STARTS,
        SELDOM_S,
    ),
    Signal(
        "failed_starts_limit",
        "Failed starts in a row after which the hub exits",
        Unit.COUNT,
        SignalSource.STARTS,
        SELDOM_S,
    ),
    # The hub's process and database.
    Signal("hub_memory_bytes", "Hub's memory", Unit.BYTES, SignalSource.HUB_PROCESS, OFTEN_S),
    Signal("hub_memory_limit_bytes", "Limit of the hub's memory", Unit.BYTES, SignalSource.HUB_PROCESS, SELDOM_S),
    Signal("hub_cpu_cores", "Hub's CPU", Unit.CORES, SignalSource.HUB_PROCESS, OFTEN_S),
    Signal("database_up", "Hub's database answers", Unit.SHARE, SignalSource.HUB_DB, OFTEN_S),
    Signal("database_latency_seconds", "Hub's database, one small query", Unit.SECONDS, SignalSource.HUB_DB, OFTEN_S),
    Signal("tokens", "API tokens", Unit.COUNT, SignalSource.HUB_DB, SELDOM_S),
    Signal("oauth_codes", "OAuth codes", Unit.COUNT, SignalSource.HUB_DB, SELDOM_S),
    # The proxy.
    Signal("proxy_up", "Proxy answers on both its ports", Unit.SHARE, SignalSource.PROXY, OFTEN_S),
    Signal("routes_missing", "Ready servers without a route", Unit.COUNT, SignalSource.PROXY, SELDOM_S),
    Signal("routes_missing_share", "Share of ready servers without a route", Unit.SHARE, SignalSource.PROXY, SELDOM_S),
    Signal("proxy_restarts", "Starts of the proxy", Unit.COUNT, SignalSource.PROXY, OFTEN_S, counter=True),
    Signal("proxy_memory_bytes", "Proxy's memory", Unit.BYTES, SignalSource.PROXY_PROCESS, OFTEN_S),
    Signal("proxy_memory_limit_bytes", "Limit of the proxy's memory", Unit.BYTES, SignalSource.PROXY_PROCESS, SELDOM_S),
    Signal("proxy_cpu_cores", "Proxy's CPU", Unit.CORES, SignalSource.PROXY_PROCESS, OFTEN_S),
    Signal("proxy_files_share", "Share of the proxy's open files", Unit.SHARE, SignalSource.PROXY_PROCESS, OFTEN_S),
    Signal("proxy_heap_bytes", "Proxy's heap", Unit.BYTES, SignalSource.PROXY_METRICS, OFTEN_S),
    Signal("proxy_heap_limit_bytes", "Limit of the proxy's heap", Unit.BYTES, SignalSource.PROXY_METRICS, OFTEN_S),
    Signal(
        "proxy_gc_share",
        "Share of time that the proxy spends in major garbage collections",
        Unit.SHARE,
        SignalSource.PROXY_METRICS,
        OFTEN_S,
    ),
    Signal("proxy_sockets", "Proxy's open sockets", Unit.COUNT, SignalSource.PROXY_METRICS, OFTEN_S),
    Signal(
        "proxy_requests_per_minute",
        "Requests that the proxy passed on",
        Unit.PER_MINUTE,
        SignalSource.PROXY_METRICS,
        OFTEN_S,
    ),
    Signal(
        "proxy_errors_per_minute",
        "Requests that the proxy answered with 5xx",
        Unit.PER_MINUTE,
        SignalSource.PROXY_METRICS,
        OFTEN_S,
    ),
    Signal(
        "proxy_error_share",
        "Share of requests that the proxy answered with 5xx",
        Unit.SHARE,
        SignalSource.PROXY_METRICS,
        OFTEN_S,
    ),
    # What really runs.
    Signal("backends_alive", "Backends that run", Unit.COUNT, SignalSource.BACKENDS, SELDOM_S),
    Signal("backends_extra", "Backends that run beyond the hub's count", Unit.COUNT, SignalSource.BACKENDS, SELDOM_S),
    Signal(
        "backends_extra_share", "Share of backends beyond the hub's count", Unit.SHARE, SignalSource.BACKENDS, SELDOM_S
    ),
    # The machine.
    Signal("ports_used_share", "Share of ephemeral ports in use", Unit.SHARE, SignalSource.MACHINE, OFTEN_S),
    Signal("ports_used", "Ephemeral ports in use", Unit.COUNT, SignalSource.MACHINE, OFTEN_S),
    Signal("disk_free_share", "Free share of the disk", Unit.SHARE, SignalSource.FOLDERS, SELDOM_S, per="folder"),
    Signal("disk_free_bytes", "Free disk", Unit.BYTES, SignalSource.FOLDERS, SELDOM_S, per="folder"),
    Signal("inodes_free_share", "Free share of inodes", Unit.SHARE, SignalSource.FOLDERS, SELDOM_S, per="folder"),
    # HubGuard itself.
    Signal(
        "last_good_cycle_age_seconds", "Age of HubGuard's last good cycle", Unit.SECONDS, SignalSource.HUBGUARD, OFTEN_S
    ),
    Signal(
        "error_share",
        "Share of HubGuard's actions that failed in the last hour",
        Unit.SHARE,
        SignalSource.HUBGUARD,
        SELDOM_S,
    ),
    Signal(
        "budget_wait_seconds",
        "Seconds a minute that requests wait for the budget",
        Unit.SECONDS,
        SignalSource.HUBGUARD,
        SELDOM_S,
    ),
    Signal("drift_raised", "Differences between the sources", Unit.COUNT, SignalSource.HUBGUARD, OFTEN_S),
)

SIGNALS = {signal.name: signal for signal in _SIGNALS}
"""Every signal by its name, in the order of the pages."""
