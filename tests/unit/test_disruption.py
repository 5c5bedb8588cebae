from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hubguard.decide.disruption import Caution, Look, look
from hubguard.decide.watch import Watch
from hubguard.model import BrakeReason, Reading, Snapshot, Source

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


def test_a_sane_first_look_objects_to_nothing():
    reading = Reading(Source.HUB_API, NOW, complete=True, took_s=0.1)
    judged = look(Watch(), Look(NOW, Snapshot(NOW, (), (reading,), users_total=100), hub_answered=True), Caution())
    assert judged.brake is None
    assert judged.findings == ()


def test_an_incomplete_list_brakes():
    reading = Reading(Source.HUB_API, NOW, complete=False, took_s=0.1, detail="page 3 is missing")
    judged = look(Watch(), Look(NOW, Snapshot(NOW, (), (reading,)), hub_answered=True), Caution())
    assert judged.brake is not None
    assert judged.brake.reason is BrakeReason.INCOMPLETE
    assert "page 3 is missing" in judged.brake.why
    later = look(
        judged.watch, Look(NOW + timedelta(seconds=60), Snapshot(NOW, (), (reading,)), hub_answered=False), Caution()
    )
    assert later.brake is not None
    assert later.brake.since == NOW
