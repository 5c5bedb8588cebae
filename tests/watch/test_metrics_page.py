"""The signals and alerts as Prometheus reads them."""

from __future__ import annotations

from typing import cast

from builders import NOW
from doubles.guard import PlacedGuard, guard_with, made_up
from doubles.watch import alert_of, readings_of_each_kind

from hubguard.dashboard.metrics import registry
from hubguard.dashboard.shapes import state_of
from hubguard.guard import Guard
from hubguard.status import Mode


def samples(guard: PlacedGuard) -> dict[str, list[tuple[dict[str, str], float]]]:
    made: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in registry(lambda: state_of(cast(Guard, guard)), guard.watch).collect():
        for sample in family.samples:
            made.setdefault(sample.name, []).append((sample.labels, sample.value))
    return made


def test_signals_have_their_names_and_subjects_and_what_is_old_has_no_sample() -> None:
    guard = guard_with(made_up(3))
    guard.watch.history.add(NOW.timestamp() - 600, {"hub_memory_bytes": 5.0})
    guard.watch.history.add(
        NOW.timestamp() - 5, {"hub_latency_seconds": 0.25, "disk_free_share:/srv": 0.5, "proxy_restarts": 2.0}
    )
    shown = samples(guard)
    assert shown["hubguard_hub_latency_seconds"] == [({}, 0.25)]
    assert shown["hubguard_disk_free_share"] == [({"folder": "/srv"}, 0.5)]
    assert shown["hubguard_proxy_restarts_total"] == [({}, 2.0)]
    assert "hubguard_hub_memory_bytes" not in shown


def test_alerts_that_fire_are_1_and_a_source_that_isnt_set_up_has_no_sample() -> None:
    guard = guard_with(made_up(3))
    guard.watch.place([alert_of("DiskLow", "/srv"), alert_of("HubSlow", raised=False)], readings_of_each_kind())
    shown = samples(guard)
    assert shown["hubguard_alert"] == [({"alertname": "DiskLow", "severity": "today", "subject": "/srv"}, 1.0)]
    assert shown["hubguard_signal_source_readable"] == [({"source": "hub"}, 1.0), ({"source": "hub-db"}, 0.0)]


def test_a_guard_on_standby_shows_none_of_it() -> None:
    guard = guard_with(made_up(3), Mode.STANDBY)
    guard.watch.history.add(NOW.timestamp(), {"hub_latency_seconds": 0.25})
    assert not {"hubguard_hub_latency_seconds", "hubguard_alert"} & set(samples(guard))
