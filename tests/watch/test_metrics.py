"""What two scrapes of a hub's or a proxy's metrics say."""

from __future__ import annotations

import pytest

from hubguard.watch.decide.metrics import (
    Malformed,
    Starts,
    cause_of,
    hub_signals,
    is_of_hub,
    per_minute,
    prefix_of,
    proxy_signals,
    read_scrape,
    start_signals,
    starts_since,
)

HUB = """# HELP jupyterhub_request_duration_seconds Request duration for all HTTP requests
# TYPE jupyterhub_request_duration_seconds histogram
jupyterhub_request_duration_seconds_bucket{{code="200",handler="a.B",le="+Inf",method="GET"}} {ok}.0
jupyterhub_request_duration_seconds_count{{code="200",handler="a.B",method="GET"}} {ok}.0
jupyterhub_request_duration_seconds_count{{code="404",handler="a.B",method="GET"}} 50.0
jupyterhub_request_duration_seconds_count{{code="400",handler="a.B",method="GET"}} {bad}.0
jupyterhub_request_duration_seconds_count{{code="503",handler="a.B",method="GET"}} {bad}.0
# TYPE jupyterhub_running_servers gauge
jupyterhub_running_servers 12.0
# TYPE jupyterhub_check_routes_duration_seconds histogram
jupyterhub_check_routes_duration_seconds_count {checks}.0
jupyterhub_check_routes_duration_seconds_sum {checks_s}
# TYPE jupyterhub_event_loop_interval_seconds histogram
jupyterhub_event_loop_interval_seconds_bucket{{le="0.05"}} {ticks}.0
jupyterhub_event_loop_interval_seconds_bucket{{le="0.1"}} {ticks}.0
jupyterhub_event_loop_interval_seconds_bucket{{le="1.0"}} {all_ticks}.0
jupyterhub_event_loop_interval_seconds_bucket{{le="+Inf"}} {all_ticks}.0
# TYPE jupyterhub_server_spawn_duration_seconds histogram
jupyterhub_server_spawn_duration_seconds_count{{status="success"}} {ok}.0
{spawns}
# TYPE process_start_time_seconds gauge
process_start_time_seconds {start}
"""


def hub(at: float, *, spawns: str = "", **changed: object):
    made = {"ok": 100, "bad": 0, "checks": 1, "checks_s": 0.5, "ticks": 1000, "all_ticks": 1000, "start": 17.0}
    return read_scrape(HUB.format(**{**made, "spawns": spawns, **changed}), at, is_of_hub)


def test_counters_become_what_happens_in_a_minute() -> None:
    signals = hub_signals(hub(90, ok=160, bad=15, checks=3, checks_s=4.5), hub(60))
    assert signals["hub_requests_per_minute"] == (60 + 30) * 2
    assert signals["hub_errors_per_minute"] == 60
    assert signals["hub_error_share"] == pytest.approx(1 / 3)
    assert signals["check_routes_seconds"] == 2.0
    assert (signals["servers_running"], signals["starts_per_minute"]) == (12.0, 120.0)


def test_the_first_scrape_gives_no_rate_and_none_is_0() -> None:
    assert set(hub_signals(hub(60), None)) == {"servers_running"}


def test_a_hub_that_was_started_again_gives_no_rate() -> None:
    assert set(hub_signals(hub(120, start=99.0, ok=3), hub(60))) == {"servers_running"}
    assert starts_since(hub(120, start=99.0), hub(60)) is None


def test_a_counter_that_fell_is_unknown() -> None:
    assert per_minute(hub(120, ok=3), hub(60), "jupyterhub_server_spawn_duration_seconds_count") is None


@pytest.mark.parametrize(("slow", "lag_s"), [(0, 0.0), (5, 0.0), (20, 0.95)])
def test_the_lag_is_what_99_of_100_ticks_stay_below(slow: int, lag_s: float) -> None:
    signals = hub_signals(hub(120, ticks=2000 - slow, all_ticks=2000), hub(60))
    assert signals["hub_event_loop_lag_seconds"] == pytest.approx(lag_s)


def test_the_prefix_is_the_operators() -> None:
    renamed = HUB.replace("jupyterhub_", "campus_hub_").format(
        ok=1, bad=0, checks=1, checks_s=1, ticks=1, all_ticks=1, start=1, spawns=""
    )
    scrape = read_scrape(renamed, 60, is_of_hub)
    assert prefix_of(scrape) == "campus_hub"
    assert hub_signals(scrape, None)["servers_running"] == 12.0


@pytest.mark.parametrize("text", ["<html>login</html>", "", "nothing 1\n"])
def test_what_isnt_a_hubs_metrics_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        hub_signals(read_scrape(text, 60), None)


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ({"status": "success"}, None),
        ({"status": "failure"}, "failed"),  # 5.5: a timeout, a crash, a 5xx
        ({"status": "throttled"}, "throttled"),  # 5.5
        ({"status": "too-many-users"}, "limit"),  # 5.5
        ({"status": "already-pending"}, None),  # 5.5
        ({"status": "error", "reason": ""}, "failed"),  # 6.x
        ({"status": "failure", "reason": "throttled"}, "throttled"),  # 6.x
        ({"status": "failure", "reason": "too-many-users"}, "limit"),  # 6.x
        ({"status": "failure", "reason": "already-pending"}, None),  # 6.x
        ({"status": "failure", "reason": "no GPU left"}, "refused"),  # 6.x
    ],
)
def test_5_5_and_6_count_failed_starts_differently(labels: dict[str, str], cause: str | None) -> None:
    assert cause_of(labels) == cause


def spawned(failed: int, throttled: int) -> str:
    name = "jupyterhub_server_spawn_duration_seconds_count"
    return f'{name}{{status="error"}} {failed}.0\n{name}{{reason="throttled",status="failure"}} {throttled}.0'


def test_failed_starts_are_counted_by_cause_between_two_scrapes() -> None:
    step = starts_since(hub(120, ok=103, spawns=spawned(4, 2)), hub(60, spawns=spawned(1, 2)))
    assert step == Starts(120, 3.0, {"failed": 3.0})


def test_a_cause_that_was_never_counted_before_counts_from_0() -> None:
    assert starts_since(hub(120, spawns=spawned(2, 1)), hub(60)) == Starts(120, 0.0, {"failed": 2.0, "throttled": 1.0})


def test_a_row_of_failures_ends_with_a_start_that_went_well_and_refusals_are_none() -> None:
    failing = [Starts(60, 0, {"failed": 2.0}), Starts(120, 0, {"throttled": 9.0}), Starts(180, 0, {"failed": 1.0})]
    signals = start_signals(failing, 60, 5)
    assert (signals["failed_starts_in_a_row"], signals["failed_starts_limit"]) == (3.0, 5.0)
    assert (signals["failed_starts_recent"], signals["failed_starts_share"]) == (3.0, 1.0)
    assert signals["failed_starts_per_minute:failed"] == 1.0
    assert start_signals([*failing, Starts(240, 1, {})], 60, 0)["failed_starts_in_a_row"] == 0.0
    assert "failed_starts_limit" not in start_signals(failing, 60, 0)


def test_a_class_that_is_asked_to_try_again_is_no_failure_but_is_counted_as_a_cause() -> None:
    signals = start_signals([Starts(60, 100, {"throttled": 200.0})], 60, 5)
    assert (signals["failed_starts_recent"], signals["failed_starts_share"]) == (0.0, 0.0)
    assert signals["failed_starts_per_minute:throttled"] == 200.0


def test_without_any_start_nothing_failed() -> None:
    assert start_signals([Starts(60, 0, {})], 60, 0)["failed_starts_share"] == 0.0


PROXY = """# TYPE requests_proxy counter
requests_proxy{{status="200"}} {ok}
requests_proxy{{status="503"}} {bad}
# TYPE nodejs_heap_size_used_bytes gauge
nodejs_heap_size_used_bytes 50000000
# TYPE nodejs_active_handles gauge
nodejs_active_handles{{type="Socket"}} 41
nodejs_active_handles{{type="Server"}} 3
# TYPE nodejs_gc_duration_seconds histogram
nodejs_gc_duration_seconds_sum{{kind="major"}} {gc}
nodejs_gc_duration_seconds_count{{kind="major"}} 3
nodejs_gc_duration_seconds_sum{{kind="minor"}} 100
process_start_time_seconds {start}
"""


def proxy(at: float, ok: int = 0, bad: int = 0, gc: float = 1.0, start: float = 5.0):
    return read_scrape(PROXY.format(ok=ok, bad=bad, gc=gc, start=start), at)


def test_the_proxys_errors_heap_sockets_and_collections() -> None:
    signals = proxy_signals(proxy(20, ok=90, bad=10, gc=3.0), proxy(10))
    assert signals == {
        "proxy_heap_bytes": 5e7,
        "proxy_sockets": 41.0,
        "proxy_requests_per_minute": 600.0,
        "proxy_errors_per_minute": 60.0,
        "proxy_error_share": 0.1,
        "proxy_gc_share": pytest.approx(0.2),
    }


def test_a_proxy_that_was_started_again_has_no_rate() -> None:
    assert set(proxy_signals(proxy(20, ok=5, start=9.0), proxy(10, ok=900))) == {"proxy_heap_bytes", "proxy_sockets"}
