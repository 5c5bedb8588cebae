"""Which notices are sent when, in what order and together with which; and what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import NOW, minutes
from hypothesis import given
from hypothesis import strategies as st

from hubguard.times import DAY_S, HOUR_S
from hubguard.watch.decide.message import LINE_MOST, Message, lines_of, message_of, plain, subject_of
from hubguard.watch.decide.notice import (
    AT_ONCE_MOST,
    LONGEST_BACK_OFF_S,
    TOGETHER_MOST,
    TRY_FOR_S,
    Notice,
    Result,
    Together,
    back_off_s,
    batches,
    heard_of,
    next_try_at,
)
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import AlertRow, Change, Severity, Silence
from hubguard.watch.notify import alertmanager, pagerduty, slack, webhook
from hubguard.watch.notify.email import mail_of

AGAIN = Result(delivered=False, said="answered 500", again=True)
BY_NAME = {rule.name: rule for rule in RULES}
LINK = "https://hub.example/services/hubguard/alerts"
HOSTILE = (
    "<!channel> @here *bold* <https://evil|click> &amp; \u202egnp.exe\r\nBcc: all@example.edu\x1b[31m </b>"
    + "x" * 10_000
)


def alert_row(id_: int = 1, rule: str = "HubDown", subject: str = "", **changed: Any) -> AlertRow:
    made = AlertRow(id_, rule, subject, Severity.NOW, NOW - minutes(5), None, 0.0, 0.0, "The hub doesn't answer.")
    return replace(made, **changed)


def notice(id_: int = 1, change: Change = Change.RAISED, **changed: Any) -> Notice:
    alert = changed.pop("alert", None) or alert_row(id_, "DiskLow", f"/{id_}")
    made = Notice(id_, "ops", change, alert, NOW - minutes(5), NOW - minutes(5))
    return replace(made, **changed)


def silence(rule: str = "", subject: str | None = None, **changed: Any) -> Silence:
    return replace(Silence(1, rule, subject, NOW + minutes(60), "ann", "", NOW - minutes(60)), **changed)


def ids(sent: tuple[tuple[Notice, ...], ...]) -> list[list[int]]:
    return [[one.id for one in batch] for batch in sent]


def message(change: Change = Change.RAISED, **changed: Any) -> Message:
    row = alert_row(**changed)
    if change is Change.RESOLVED:
        row = replace(row, resolved_at=NOW)
    return message_of(row, change, BY_NAME, LINK, "hub.example")


# -- what is due ----------------------------------------------------------------------------------------------------


def test_the_most_urgent_goes_first_then_the_oldest() -> None:
    waiting = [
        notice(1, alert=alert_row(1, "A", severity=Severity.WEEK)),
        notice(2, alert=alert_row(2, "B")),
        notice(3, alert=alert_row(3, "C", severity=Severity.TODAY)),
        notice(4, alert=alert_row(4, "D")),
    ]
    assert ids(batches(waiting, (), Together.ONE, NOW)) == [[2], [4], [3], [1]]


def test_what_is_put_off_waits_until_it_is_due() -> None:
    waiting = [notice(1, due_at=NOW + minutes(1)), notice(2, due_at=NOW)]
    assert ids(batches(waiting, (), Together.ONE, NOW)) == [[2]]
    assert ids(batches(waiting, (), Together.ONE, NOW + minutes(1))) == [[1], [2]]


def test_a_few_come_one_by_one_and_more_than_five_as_one_digest() -> None:
    waiting = [notice(i) for i in range(1, AT_ONCE_MOST + 2)]
    assert [len(batch) for batch in batches(waiting[:-1], (), Together.DIGEST, NOW)] == [1] * AT_ONCE_MOST
    assert [len(batch) for batch in batches(waiting, (), Together.DIGEST, NOW)] == [AT_ONCE_MOST + 1]


def test_what_opens_an_incident_each_is_never_put_together() -> None:
    waiting = [notice(i) for i in range(1, 31)]
    assert [len(batch) for batch in batches(waiting, (), Together.ONE, NOW)] == [1] * 30


def test_a_list_takes_all_of_them_up_to_a_limit() -> None:
    waiting = [notice(i) for i in range(1, TOGETHER_MOST + 3)]
    assert [len(batch) for batch in batches(waiting, (), Together.ALL, NOW)] == [TOGETHER_MOST, 2]


def test_the_end_of_one_alert_is_never_overtaken_by_the_next_of_its_kind() -> None:
    """Its resolution, sent late, would close what the newer one has opened."""
    ended, again = alert_row(1), alert_row(2)
    waiting = [
        notice(5, Change.RESOLVED, alert=ended, due_at=NOW + minutes(1), tries=2),
        notice(6, alert=again, due_at=NOW),
        notice(7, alert=alert_row(3, subject="other"), due_at=NOW),
    ]
    assert ids(batches(waiting, (), Together.ONE, NOW)) == [[7]]
    assert ids(batches(waiting, (), Together.ONE, NOW + minutes(1))) == [[5], [7]]


@pytest.mark.parametrize(
    ("silenced", "sent"),
    [
        (silence(), []),
        (silence("DiskLow"), []),
        (silence("DiskLow", "/1"), []),
        (silence("DiskLow", "/2"), [[1]]),
        (silence("HubDown"), [[1]]),
        (silence(ended_at=NOW - minutes(1)), [[1]]),
        (silence(until=NOW), [[1]]),
    ],
)
def test_a_silenced_alert_waits_for_the_end_of_the_silence(silenced: Silence, sent: list[list[int]]) -> None:
    assert ids(batches([notice(1)], [silenced], Together.ONE, NOW)) == sent
    assert [row.id for row in heard_of([notice(1).alert], [silenced], NOW)] == [one for batch in sent for one in batch]


def test_a_silence_doesnt_keep_an_incident_open_that_was_opened_before_it() -> None:
    assert ids(batches([notice(1, Change.RESOLVED)], [silence()], Together.ONE, NOW)) == [[1]]


@given(st.lists(st.tuples(st.sampled_from(list(Severity)), st.integers(-5, 5), st.booleans()), max_size=300))
def test_every_due_notice_is_sent_exactly_once(some: list[tuple[Severity, int, bool]]) -> None:
    waiting = [
        notice(i, alert=alert_row(i, "R", str(i), severity=severity), due_at=NOW + minutes(offset))
        for i, (severity, offset, _) in enumerate(some)
    ]
    due = sorted(one.id for one in waiting if one.due_at <= NOW)
    for together in Together:
        assert sorted(one.id for batch in batches(waiting, (), together, NOW) for one in batch) == due


# -- what follows from an answer --------------------------------------------------------------------------------------


def test_each_try_waits_twice_as_long_up_to_a_limit() -> None:
    assert [back_off_s(tries) for tries in (1, 2, 3, 4)] == [10, 20, 40, 80]
    assert back_off_s(8) == back_off_s(10_000) == LONGEST_BACK_OFF_S


def test_a_receiver_that_asks_for_more_time_gets_it_up_to_an_hour() -> None:
    def waits_s(asked_s: float | None) -> float:
        at = next_try_at(notice(tries=1), replace(AGAIN, retry_after_s=asked_s), (), NOW)
        assert at is not None
        return (at - NOW).total_seconds()

    assert [waits_s(one) for one in (None, 3.0, 120.0, 1e9)] == [10.0, 10.0, 120.0, HOUR_S]


def test_what_was_refused_as_wrong_is_never_sent_again() -> None:
    assert next_try_at(notice(tries=1), replace(AGAIN, again=False), (), NOW) is None


def test_it_is_given_up_after_a_day_and_not_before() -> None:
    made = notice(tries=90, made_at=NOW)
    assert next_try_at(made, AGAIN, (), NOW + timedelta(seconds=TRY_FOR_S - 1)) is not None
    assert next_try_at(made, AGAIN, (), NOW + timedelta(seconds=TRY_FOR_S)) is None


def test_the_day_begins_when_a_silence_ends() -> None:
    made = notice(tries=1, made_at=NOW - timedelta(days=3))
    ended = silence(until=NOW + timedelta(days=30), ended_at=NOW - minutes(1))
    assert next_try_at(made, AGAIN, [ended], NOW) is not None
    assert next_try_at(made, AGAIN, [replace(ended, rule="HubDown")], NOW) is None
    assert next_try_at(made, AGAIN, [ended], NOW + timedelta(seconds=DAY_S)) is None


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_message_says_what_when_to_act_the_first_thing_to_do_and_since_when() -> None:
    said = message()
    assert said.title == "HubDown (act now): The hub doesn't answer."
    assert said.lines[0].startswith("First: Look at the hub's log")
    assert said.lines[1] == f"Since {NOW - minutes(5):%Y-%m-%d %H:%M:%S} UTC."


def test_a_resolution_says_how_long_it_lasted() -> None:
    said = message(Change.RESOLVED)
    assert said.title == "HubDown (resolved): The hub doesn't answer."
    assert said.lines == (f"From {NOW - minutes(5):%Y-%m-%d %H:%M:%S} UTC for 5 min.",)


def test_an_alert_and_its_end_have_one_key_and_the_next_one_another() -> None:
    first, ended = message(), message(Change.RESOLVED)
    assert first.key == ended.key
    assert first.key != message(id_=2).key
    assert first.key != message(raised_at=NOW).key
    assert len(first.key) <= 255


def test_a_digest_counts_and_names_what_it_holds() -> None:
    several = [message(subject=str(i)) for i in range(25)] + [message(Change.RESOLVED)]
    assert subject_of(several) == "HubGuard: 25 alerts and 1 resolved at hub.example"
    assert len(lines_of(several)) == 21
    assert lines_of(several)[-1] == "And 6 more."


@given(st.text(max_size=3000))
def test_a_text_becomes_one_short_visible_line(text: str) -> None:
    line = plain(text)
    assert len(line) <= LINE_MOST
    assert line.splitlines() in ([], [line])
    assert "\u202e" not in line
    assert "\x1b" not in line


def hostile(change: Change = Change.RAISED) -> Message:
    return message(change, rule="DiskLow", subject=HOSTILE, sentence=HOSTILE)


def test_a_hostile_text_pings_nobody_and_breaks_nothing_in_slack() -> None:
    body = slack.body_of([hostile()])
    assert "<!" not in body["text"]
    assert "<https" not in body["text"]
    assert body["mrkdwn"] is False
    assert "@here" not in json.dumps(body, ensure_ascii=False)
    for block in body["blocks"][:-1]:
        assert block["text"]["type"] == "plain_text"
    assert body["blocks"][-1]["text"] == {"type": "mrkdwn", "text": f"<{LINK}|Open the alerts>"}
    assert 0 < len(body["blocks"][0]["text"]["text"]) <= 150
    assert 0 < len(body["blocks"][1]["text"]["text"]) <= 3000


def test_a_hostile_text_stays_within_one_header_of_a_mail() -> None:
    mail = mail_of([hostile()], "hub@example.edu", ["ops@example.edu"])
    text = mail.as_bytes().decode()
    head = text.split("\n\n", 1)[0]
    assert mail["Bcc"] is None
    assert [line for line in head.splitlines() if line.startswith("Bcc")] == []
    assert mail["To"] == "ops@example.edu"
    assert max(map(len, text.splitlines())) < 1000
    assert LINK in mail.get_content()


def test_an_event_for_pagerduty_has_the_documented_shape_and_limits() -> None:
    event = pagerduty.body_of(hostile(), "k" * 32)
    assert event["routing_key"] == "k" * 32
    assert event["event_action"] == "trigger"
    assert 1 <= len(event["dedup_key"]) <= 255
    payload = event["payload"]
    assert {"summary", "source", "severity"} <= set(payload)
    assert 1 <= len(payload["summary"]) <= 1024
    assert payload["severity"] in {"critical", "error", "warning", "info"}
    assert len(json.dumps(event)) < 512 * 1024
    ended = pagerduty.body_of(hostile(Change.RESOLVED), "k" * 32)
    assert (ended["event_action"], ended["dedup_key"]) == ("resolve", event["dedup_key"])
    assert "payload" not in ended


def test_alertmanager_gets_labels_that_stay_the_same_and_times_that_resolve() -> None:
    raised, ended = alertmanager.body_of([hostile(), hostile(Change.RESOLVED)], NOW)
    assert set(raised) == {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
    assert raised["labels"] == ended["labels"]
    assert raised["labels"]["alertname"] == "DiskLow"
    assert ended["endsAt"] == NOW.isoformat()
    ahead_s = alertmanager.AHEAD_S
    assert raised["endsAt"] == (NOW + timedelta(seconds=ahead_s)).isoformat()
    repeat_s = alertmanager.Alertmanager("http://127.0.0.1:1").repeat_s
    assert 30 <= repeat_s <= 180
    assert ahead_s / repeat_s >= 3


def test_a_webhook_has_the_shape_of_alertmanagers_version_4() -> None:
    body = webhook.body_of([hostile(), message(Change.RESOLVED)], "ops")
    assert set(body) == {
        *("version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels"),
        *("commonAnnotations", "externalURL", "alerts"),
    }
    assert (body["version"], body["status"]) == ("4", "firing")
    first, second = body["alerts"]
    assert set(first) == {
        *("status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"),
    }
    assert [first["status"], second["status"]] == ["firing", "resolved"]
    assert first["endsAt"] == "0001-01-01T00:00:00Z"
    assert body["commonLabels"] == {"service": "hubguard", "severity": "now", "hub": "hub.example"}
    assert webhook.body_of([message(Change.RESOLVED)], "ops")["status"] == "resolved"


def test_the_most_that_is_put_into_one_request_is_far_below_what_receivers_take() -> None:
    most = [message(id_=i, rule="DiskLow", subject="é" * 10_000, sentence="é" * 10_000) for i in range(TOGETHER_MOST)]
    for body in (webhook.body_of(most, "ops"), alertmanager.body_of(most, NOW), slack.body_of(most)):
        assert len(json.dumps(body).encode()) < 512 * 1024
