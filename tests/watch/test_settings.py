"""What operators may set wrong: it is named in one line, and everything else goes on."""

from __future__ import annotations

from typing import Any

import pytest

from hubguard import config
from hubguard.watch.decide.adjust import adjust
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import Severity


@pytest.mark.parametrize(
    ("alerts", "says"),
    [
        ({"DiskLo": False}, "HubGuardWatch.alerts['DiskLo']: no such alert; did you mean DiskLow?"),
        ({"DiskLow": {"raise": 1}}, "has no 'raise'; choose from raise_at, clear_at"),
        ({"DiskLow": {"raise_at": 0.2, "clear_at": 0.1}}, "clears below where it raises"),
        ({"HubSlow": {"clear_at": 9}}, "clears above where it raises"),
        ({"HubSlow": {"severity": "urgent"}}, "severity: one of now, today, this-week, not 'urgent'"),
        ({"HubSlow": {"looks": 0}}, "looks: a whole number from 1 to 1000"),
        ({"HubSlow": {"for_s": -1}}, "for_s: from 0 to 604800 seconds"),
        ({"HubSlow": {"raise_at": float("nan")}}, "raise_at: is a number"),
        ({"HubSlow": {"raise_at": True}}, "raise_at: is a number, not True"),
        ({"HubSlow": "off"}, "is False or a dict of changes, not 'off'"),
    ],
)
def test_a_wrong_change_of_an_alert_is_a_note_and_changes_nothing(alerts: dict[str, Any], says: str) -> None:
    settings = config.load({"HubGuardWatch": {"alerts": alerts}}, environ={})
    assert settings.errors == ()
    (note,) = settings.notes
    assert says in note
    assert adjust(settings.watch.alerts) == RULES


def test_a_url_that_is_none_is_a_note() -> None:
    for url in ("localhost:8002", "ftp://x/metrics", "http://", "http://[::1", "http://x:99999999/"):
        settings = config.load({"HubGuardWatch": {"proxy_metrics_url": url}}, environ={})
        assert settings.errors == ()
        (note,) = settings.notes
        assert note.startswith("HubGuardWatch.proxy_metrics_url:")


def test_an_alert_is_changed_or_switched_off_and_the_others_stay() -> None:
    changes = {"DiskLow": {"raise_at": 0.05, "clear_at": 0.08, "severity": "now", "looks": 5}, "HubBusy": False}
    settings = config.load({"HubGuardWatch": {"alerts": changes}}, environ={})
    assert settings.notes == ()
    rules = {rule.name: rule for rule in adjust(settings.watch.alerts)}
    assert "HubBusy" not in rules
    assert len(rules) == len(RULES) - 1
    low: Any = rules["DiskLow"]
    assert (low.severity, low.looks, low.condition.raise_at) == (Severity.NOW, 5, 0.05)
    others = {rule.name: rule for rule in RULES if rule.name not in changes}
    assert {name: rule for name, rule in rules.items() if name not in changes} == others
