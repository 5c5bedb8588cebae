"""What an operator can get wrong about receivers: one clear line, no secret in it, and everything else continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubguard import config, doctor
from hubguard.watch.decide.receivers import read_receivers
from hubguard.watch.model import Severity
from hubguard.watch.notify.choose import open_receivers, receivers_for
from hubguard.watch.notify.email import Email
from hubguard.watch.notify.slack import Slack

SLACK = "https://hooks.slack.com/services/T0/B0/s3cr3t"
RIGHT = {"kind": "slack", "url": SLACK}
MAIL = {"kind": "email", "host": "mail.example.edu", "from": "hub@example.edu", "to": ["ops@example.edu"]}


def settings_with(receivers: object) -> config.Settings:
    return config.load({"HubGuardWatch": {"receivers": receivers}}, environ={})


@pytest.mark.parametrize(
    ("given", "where", "why"),
    [
        ({"kind": "slak", "url": SLACK}, ".kind", "no such kind of receiver; did you mean slack?"),
        ({"url": SLACK}, ".kind", "is missing; choose from slack, pagerduty, alertmanager, webhook, email, apprise"),
        ({"kind": "slack", "url_envv": "SLACK_URL"}, ".url_envv", "no such option; did you mean url_env?"),
        ({"kind": "slack"}, ".url_env", "is missing; set it, or url_file"),
        (
            {"kind": "slack", "url": "hooks.slack.com/s3cr3t"},
            ".url",
            "has no scheme; write http:// or https:// in front",
        ),
        ({"kind": "slack", "url": "ftp://s3cr3t"}, ".url", "has another scheme than http or https"),
        ({"kind": "slack", "url": "https:///s3cr3t"}, ".url", "has no host"),
        ({"kind": "slack", "url": "http://[s3cr3t"}, ".url", "is no URL"),
        ({"kind": "slack", "url": SLACK, "url_env": "X"}, ".url_env", "is given as url, too; keep one of them"),
        ({"kind": "slack", "url_env": 5}, ".url_env", "is the name of an environment variable or a file"),
        ({**RIGHT, "severities": ["now", "soon"]}, ".severities", "is a list of these: now, today, this-week"),
        ({**RIGHT, "severities": "now"}, ".severities", "is a list of these: now, today, this-week"),
        ({"kind": "pagerduty"}, ".routing_key_env", "is missing; set it, or routing_key_file"),
        ({"kind": "alertmanager"}, ".url", "is missing"),
        ({**MAIL, "to": ["ops"]}, ".to", "is a list of e-mail addresses"),
        ({**MAIL, "to": ["a@b\r\nBcc: c@d"]}, ".to", "is a list of e-mail addresses"),
        ({**MAIL, "port": "25"}, ".port", "is a whole number, not '25'"),
        ({**MAIL, "port": 0}, ".port", "is a port from 1 to 65535, not 0"),
        ({**MAIL, "security": "ssl"}, ".security", "is one of starttls, tls, none, not 'ssl'"),
        ("https://s3cr3t", "", 'is a dict such as {"kind": "slack", "url_env": "SLACK_URL"}'),
        (None, "", 'is a dict such as {"kind": "slack", "url_env": "SLACK_URL"}'),
    ],
)
def test_a_wrong_receiver_is_named_and_all_else_goes_on(given: object, where: str, why: str) -> None:
    settings = settings_with({"ops": given, "other": RIGHT})
    assert settings.errors == ()
    assert settings.notes == (f"HubGuardWatch.receivers['ops']{where}: {why}. Nobody is notified through it.",)
    opened, problems = open_receivers(settings.watch.receivers, {})
    assert [named.name for named in opened] == ["other"]
    assert problems == ()
    for text in (*settings.notes, repr(settings.watch.receivers), str(settings.watch.receivers)):
        assert "s3cr3t" not in text


@pytest.mark.parametrize("value", ["https://s3cr3t", ["s3cr3t"], 5, None, {5: RIGHT}, {"": RIGHT}, {"x" * 65: RIGHT}])
def test_a_setting_that_is_no_dict_of_receivers_stops_nothing(value: object) -> None:
    settings = settings_with(value)
    assert settings.errors == ()
    (note,) = settings.notes
    assert note.startswith("HubGuardWatch.receivers")
    assert "s3cr3t" not in note + repr(settings.watch.receivers)
    assert open_receivers(settings.watch.receivers, {}) == ((), ())


def test_secrets_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    value = {
        "ops": {"kind": "slack", "url_env": "SLACK_URL"},
        "mail": {**MAIL, "user": "hub", "password_file": str(file)},
    }
    (ops, mail), problems = open_receivers(value, {"SLACK_URL": SLACK})
    assert problems == ()
    assert isinstance(ops.receiver, Slack)
    assert isinstance(mail.receiver, Email)
    assert mail.receiver._login == ("hub", "hunter2")
    assert "s3cr3t" not in repr((ops, mail))
    assert "hunter2" not in repr((ops, mail))


def test_a_secret_that_isnt_there_is_named_and_the_others_are_opened(tmp_path: Path) -> None:
    two, binary = tmp_path / "two", tmp_path / "binary"
    two.write_text("a\nb")
    binary.write_bytes(b"\xff\xfe")
    value: dict[str, Any] = {
        "env": {"kind": "slack", "url_env": "SLACK_URL"},
        "empty": {"kind": "slack", "url_env": "EMPTY"},
        "file": {"kind": "pagerduty", "routing_key_file": str(tmp_path / "none")},
        "two": {"kind": "pagerduty", "routing_key_file": str(two)},
        "binary": {"kind": "pagerduty", "routing_key_file": str(binary)},
        "folder": {"kind": "pagerduty", "routing_key_file": str(tmp_path)},
        "url": {"kind": "slack", "url_env": "NO_URL"},
        "fine": RIGHT,
    }
    opened, problems = open_receivers(value, {"EMPTY": " ", "NO_URL": "s3cr3t"})
    assert [named.name for named in opened] == ["fine"]
    assert [str(problem).replace(str(tmp_path), "…") for problem in problems] == [
        "HubGuardWatch.receivers['env'].url_env: the environment variable SLACK_URL isn't set where HubGuard runs",
        "HubGuardWatch.receivers['empty'].url_env: the environment variable EMPTY isn't set where HubGuard runs",
        "HubGuardWatch.receivers['file'].routing_key_file: …/none can't be read: No such file or directory",
        "HubGuardWatch.receivers['two'].routing_key_file: …/two must hold the secret on one line",
        "HubGuardWatch.receivers['binary'].routing_key_file: …/binary isn't text",
        "HubGuardWatch.receivers['folder'].routing_key_file: … can't be read: Is a directory",
        "HubGuardWatch.receivers['url'].url_env: the URL in NO_URL has no scheme; write http:// or https:// in front",
    ]


def test_severities_choose_who_is_notified() -> None:
    opened, _ = open_receivers({"a": {**RIGHT, "severities": ["now"]}, "b": RIGHT}, {})
    assert receivers_for(opened, Severity.NOW) == ("a", "b")
    assert receivers_for(opened, Severity.WEEK) == ("b",)


def test_every_kind_can_be_read() -> None:
    kinds = {
        "slack": RIGHT,
        "pagerduty": {"kind": "pagerduty", "routing_key": "k", "url": "https://events.eu.pagerduty.com/v2/enqueue"},
        "alertmanager": {"kind": "alertmanager", "url": "http://alertmanager:9093", "token_env": "T"},
        "webhook": {"kind": "webhook", "url": "http://x/y"},
        "email": {**MAIL, "to": "ops@example.edu", "port": 2525, "security": "none"},
        "apprise": {"kind": "apprise", "url": "json://127.0.0.1/x"},
    }
    read, problems = read_receivers(kinds)
    assert problems == ()
    assert [one.kind for one in read] == list(kinds)


async def test_the_doctor_names_who_is_notified_and_whose_secret_is_missing() -> None:
    settings = settings_with({"ops": {"kind": "slack", "url_env": "SLACK_URL"}, "other": RIGHT, "bad": {"kind": "x"}})
    checks = [check for check in await doctor.examine(settings, {}) if check.subject in ("receivers", "settings")]
    texts = doctor.as_text(checks)
    assert "HubGuardWatch.receivers['ops'].url_env: the environment variable SLACK_URL isn't set" in texts
    assert "HubGuardWatch.receivers['bad'].kind: no such kind" in texts
    assert "alerts are sent to other" in texts
    assert {check.finding for check in checks} == {doctor.Finding.FINE, doctor.Finding.WARNING}
    assert "s3cr3t" not in texts
