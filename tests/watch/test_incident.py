"""Incidents: when they open and close, their story, and the report after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from builders import NOW, minutes
from doubles.watch import alert_of

from hubguard.journal.entries import add_entry
from hubguard.journal.model import Event
from hubguard.journal.store import Journal, open_journal
from hubguard.model import OutcomeKind
from hubguard.watch.decide.story import impact, timeline
from hubguard.watch.incident import tell_incident
from hubguard.watch.model import IncidentNote, Sample, Severity
from hubguard.watch.report import write_report
from hubguard.watch.store.alerts import AlertStore
from hubguard.watch.store.incidents import IncidentStore, NoSuchIncident
from hubguard.watch.store.signals import SignalStore


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = open_journal("sqlite://")
    yield journal
    journal.close()


def stops(journal: Journal, number: int, outcome: OutcomeKind = OutcomeKind.DONE, actor: str = "hubguard") -> None:
    for i in range(number):
        at = NOW + timedelta(seconds=i)
        with journal.writing() as connection:
            of_server = {"user_name": f"u{i}", "server_name": "", "action": "stop-server", "reason": "idle"}
            intent = add_entry(connection, at, Event.INTENT, actor, 1, **of_server)
            add_entry(connection, at, Event.OUTCOME, actor, 1, outcome=outcome.value, refers_to=intent, **of_server)


def test_only_one_incident_is_open_at_a_time(journal: Journal) -> None:
    store = IncidentStore(journal)
    first = store.open_incident("proxy down", "hubguard", NOW, severity=Severity.NOW)
    assert store.open_incident("hub down", "ann", NOW) == first
    store.close_incident(first.id, "ann", NOW + minutes(5), "over")
    assert store.open_now() is None
    with pytest.raises(NoSuchIncident, match="No incident 1 is open"):
        store.close_incident(first.id, "ann", NOW, "")
    assert store.open_incident("hub down", "ann", NOW).id != first.id


def test_notes_are_kept_with_a_closed_incident_too(journal: Journal) -> None:
    store = IncidentStore(journal)
    incident = store.open_incident("proxy down", "ann", NOW)
    store.close_incident(incident.id, "ann", NOW, "")
    store.add_note(incident.id, "bob", "it was the memory limit", NOW + minutes(90))
    assert [note.text for note in store.notes(incident.id)] == ["it was the memory limit"]
    with pytest.raises(NoSuchIncident, match="There is no incident 99"):
        store.add_note(99, "bob", "lost", NOW)


def test_many_outcomes_of_a_kind_become_one_line_and_few_stay_apart(journal: Journal) -> None:
    stops(journal, 40)
    stops(journal, 3, OutcomeKind.FAILED)
    items = timeline(journal.entries(limit=1000), [])
    assert [item.text for item in items if item.until is not None] == ["40 stops of servers: done (40 users)"]
    assert len([item for item in items if "failed" in item.text]) == 3
    assert all(item.acted for item in items)


def test_an_intent_without_an_outcome_stays_in_the_timeline(journal: Journal) -> None:
    with journal.writing() as connection:
        add_entry(connection, NOW, Event.INTENT, "hubguard", 1, user_name="ada", server_name="", action="stop-server")
        add_entry(connection, NOW, Event.CYCLE, "hubguard", 1, detail="looked")
    notes = [IncidentNote(NOW + minutes(1), "ann", "called the vendor")]
    assert [item.text for item in timeline(journal.entries(), notes)] == [
        "going to stop ada",
        "note: called the vendor",
    ]


def samples(*means: float) -> tuple[Sample, ...]:
    return tuple(Sample(NOW.timestamp() + 60 * i, mean, mean, mean) for i, mean in enumerate(means))


def test_figures_say_how_long_how_many_and_by_what_it_shows() -> None:
    figures, unknown = impact(
        {
            "hub_up": samples(1, 0, 0, 0.5, 1),
            "proxy_errors_per_minute": samples(0, 100, 50),
            "failed_starts_per_minute:timeout": samples(2, 0),
            "failed_starts_per_minute:crash": samples(0, 1),
            "servers_running": samples(300, 40, 280),
            "hub_latency_seconds": samples(0.02, 3.2),
        },
        60,
    )
    texts = [figure.text for figure in figures]
    assert texts == [
        "The hub didn't answer for 2 min.",
        "About 150 requests at the proxy ended with 5xx.",
        "About 3 starts of servers failed.",
        "The hub took up to 3.2 s for a small request.",
        "Running servers fell from 300 to 40.",
    ]
    assert "signal hub_up, 2026-11-21 12:01:00 UTC to 2026-11-21 12:03:00 UTC" in figures[0].evidence
    assert "Proxy answers on both its ports: not measured in this time." in unknown


def test_what_was_fine_is_no_figure_and_what_was_not_measured_is_not_called_fine() -> None:
    figures, unknown = impact({"hub_up": samples(1, 1), "users_total": samples(100, 99)}, 60)
    assert figures == ()
    assert not any("Hub answers" in sentence for sentence in unknown)
    assert len(unknown) > 5


def test_a_report_has_all_its_sections_and_is_true_of_what_is_kept(journal: Journal) -> None:
    store = IncidentStore(journal)
    incident = store.open_incident("The proxy doesn't answer", "hubguard", NOW, severity=Severity.NOW)
    alert = alert_of("ProxyDown", raised_at=NOW, id=None)
    AlertStore(journal).raise_alert(alert, Severity.NOW, "The proxy doesn't answer.", 1, (), incident=incident.id)
    steps = {sample.at: {"proxy_up": sample} for sample in samples(0, 0, 0, 1, 1)}
    SignalStore(journal).keep_samples(10, {at: {"proxy_up": of["proxy_up"]} for at, of in steps.items()})
    stops(journal, 12)
    store.add_note(incident.id, "ann", "restarted the proxy", NOW + minutes(3))
    store.close_incident(incident.id, "hubguard", NOW + minutes(5), "recovered")
    text = write_report(tell_incident(journal, incident.id, NOW + minutes(6)), NOW + minutes(6))
    for section in (
        "Summary",
        "Impact",
        "Timeline",
        "What HubGuard did",
        "What went well",
        "Open questions",
        "Action items",
    ):
        assert f"\n## {section}\n" in text
    assert "after 5 min." in text
    assert "**ProxyDown** (now) from 2026-11-21 12:00:00 UTC" in text
    assert "The proxy was down, or without its routes, for 30 s." in text
    assert "restarted the proxy" in text
    assert text.count("12 stops of servers: done (12 users)") == 2  # in the timeline, and in what HubGuard did
    assert "What wasn't measured:" in text


def test_texts_from_outside_stay_texts_in_a_report(journal: Journal) -> None:
    store = IncidentStore(journal)
    incident = store.open_incident("# head\n[link](http://evil) <script>", "ann|bob", NOW)
    store.add_note(incident.id, "eve", "![x](http://evil)\n## Summary", NOW)
    text = write_report(tell_incident(journal, incident.id, NOW), NOW)
    assert "](http://evil)" not in text.replace("\\]", "")
    assert "<script>" not in text.replace("\\<", "")
    assert text.count("\n## Summary") == 1


def test_a_span_of_time_without_an_incident_has_a_report_too(journal: Journal) -> None:
    from hubguard.watch.incident import tell

    story = tell(journal, NOW - minutes(60), NOW, NOW)
    assert "No alert was raised in this time." in write_report(story, NOW)
