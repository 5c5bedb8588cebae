"""Incidents that people suffered, as the series that HubGuard would have read: each raises its alert before they called."""

from __future__ import annotations

import sys

import pytest
from signal_series import raised, ramp

MINUTE = 60.0
GiB = 2.0**30
MiB = 2.0**20


def gained(capsys: pytest.CaptureFixture[str], name: str, at_s: float, noticed_s: float) -> None:
    """Print by how much the alert came before people noticed, and hold it to that."""
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: raised {(noticed_s - at_s) / 60:.1f} min before it was noticed")
    assert at_s < noticed_s


def test_incident_proxy_memory_first_spike(capsys: pytest.CaptureFixture[str]) -> None:
    """2024-03-05: 800 MiB with 280 users, 1.06 to 1.86 GiB within a minute, readiness failing 53 s after the spike."""
    spike = 3600.0
    at = raised(
        {
            "proxy_memory_bytes": ramp((spike - 60, 800 * MiB), (spike, 1.06 * GiB), (spike + 60, 1.86 * GiB)),
            "proxy_memory_limit_bytes": lambda _: 2 * GiB,
            "proxy_cpu_cores": ramp((0, 0.3), (spike, 0.3), (spike + 60, 1.81)),
        },
        spike + 300,
    )
    first = min(at[name] for name in ("ProxyMemory", "ProxyMemoryJump") if name in at)
    # Readiness failed 53 s after the spike; users called minutes later.
    gained(capsys, "2024-03-05, first spike", first, spike + 60 + 53)


def test_incident_proxy_memory_second_spike(capsys: pytest.CaptureFixture[str]) -> None:
    """2024-03-05, again: 814 MiB to 2.45 GiB, killed 40 s later."""
    spike = 3600.0
    at = raised(
        {
            "proxy_memory_bytes": ramp((0, 814 * MiB), (spike, 814 * MiB), (spike + 90, 2.45 * GiB)),
            "proxy_memory_limit_bytes": lambda _: 2.5 * GiB,
        },
        spike + 130,
    )
    first = min(at[name] for name in ("ProxyMemory", "ProxyMemoryJump") if name in at)
    gained(capsys, "2024-03-05, second spike", first, spike + 130)


def test_incident_503_in_spikes(capsys: pytest.CaptureFixture[str]) -> None:
    """2024-03-05: 503s in spikes of 30 to 150, among some 1,500 requests a minute; people called after about ten minutes."""
    begin = 1800.0

    def errors(at_s: float) -> float:
        return 0.0 if at_s < begin else 150.0 if at_s % 120 < 60 else 30.0

    at = raised(
        {
            "proxy_errors_per_minute": errors,
            "proxy_error_share": lambda at_s: errors(at_s) / 1500,
            "proxy_requests_per_minute": lambda _: 1500.0,
        },
        begin + 900,
    )
    gained(capsys, "2024-03-05, 503s", at["ProxyErrors"], begin + 600)


def test_incident_all_ephemeral_ports_used_up(capsys: pytest.CaptureFixture[str]) -> None:
    """28,231 ports: a leak of some hours used them up, and every new connection failed for 15 to 45 minutes."""
    full = 6 * 3600.0
    at = raised({"ports_used_share": ramp((0, 0.1), (3600, 0.1), (full, 1.0))}, full)
    gained(capsys, "28,231 ports", at["PortsUsed"], full)
    assert full - at["PortsUsed"] > 30 * MINUTE


def test_incident_a_culler_that_asked_for_what_wasnt_there(capsys: pytest.CaptureFixture[str]) -> None:
    """2018-04-18: a culler's stops of servers that didn't run were answered 400, more and more, and filled the hub's CPU.

    It was noticed after about an hour.
    """
    share = ramp((0, 0.01), (1800, 0.01), (5400, 0.6))
    at = raised(
        {
            "hub_error_share": share,
            "hub_errors_per_minute": lambda at_s: 600 * share(at_s),
            "hub_cpu_cores": ramp((0, 0.2), (1800, 0.2), (4000, 1.0)),
            "hub_latency_seconds": ramp((0, 0.05), (3600, 0.05), (5400, 2.5)),
        },
        5400,
    )
    gained(capsys, "2018-04-18, rising 400s", at["HubErrors"], 1800 + 3600)
    assert at["HubBusy"] < 5400


def test_incident_pods_up_and_the_hubs_count_flat(capsys: pytest.CaptureFixture[str]) -> None:
    """2018-07-08: the hub's reflector had stopped; some 1,000 pods ran that it didn't count. Noticed after 4 h 18 min."""
    extra = ramp((0, 0), (1800, 0), (1800 + 4.3 * 3600, 1000))
    at = raised(
        {
            "backends_extra": extra,
            "backends_extra_share": lambda at_s: extra(at_s) / (200 + extra(at_s)),
            "servers_running": lambda _: 200.0,
        },
        1800 + 4.3 * 3600,
    )
    gained(capsys, "2018-07-08, orphaned pods", at["BackendsExtra"], 1800 + 4.3 * 3600)
    assert at["BackendsExtra"] < 1800 + 3600


def test_incident_a_database_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """2017-02-09: of about 1,000 users 50 were left after a deploy; mending it took 10.8 hours."""
    at = raised({"users_total": lambda at_s: 1000.0 if at_s < 1800 else 50.0}, 3600)
    gained(capsys, "2017-02-09, users gone", at["UsersGone"], 1800 + 3600)
    assert at["UsersGone"] <= 1800 + 5 * MINUTE


def test_incident_no_inode_left(capsys: pytest.CaptureFixture[str]) -> None:
    """2017-02-24: the disk had space, and no inode. They had been used up over some days."""
    none_left = 40 * 3600.0
    at = raised(
        {
            "inodes_free_share:/srv": ramp((0, 0.5), (none_left, 0.0)),
            "disk_free_share:/srv": lambda _: 0.6,
        },
        none_left,
    )
    gained(capsys, "2017-02-24, inodes", at["InodesLow"], none_left)
    assert none_left - at["InodesLow"] > 3600
    assert "DiskLow" not in at


def test_incident_the_proxy_lost_its_routes(capsys: pytest.CaptureFixture[str]) -> None:
    """2017-02-24: the proxy was evicted, its routes were gone; users noticed after some 3 minutes, it took 52 to mend."""
    gone = 600.0
    at = raised(
        {
            "proxy_up": lambda at_s: 0.0 if gone <= at_s else 1.0,
            "routes_missing_share": lambda at_s: 0.4 if gone <= at_s else 0.0,
            "routes_missing": lambda at_s: 80.0 if gone <= at_s else 0.0,
        },
        1200,
    )
    gained(capsys, "2017-02-24, lost routes", at["ProxyDown"], gone + 180)
    assert "RoutesMissing" in at


def test_incident_gpu_servers_idle_for_29_hours(capsys: pytest.CaptureFixture[str]) -> None:
    """A culler that had stopped culling: nobody noticed for 29 hours."""
    at = raised({"last_good_cycle_age_seconds": lambda at_s: max(0.0, at_s - 600)}, 7200)
    gained(capsys, "a culler that doesn't cull", at["GuardNotWorking"], 29 * 3600)
    assert at["GuardNotWorking"] < 1800
