"""Each receiver against a real HTTP server that answers well, badly or not at all; and what the settings may say."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from builders import NOW

from hubguard.watch.decide.message import Message, message_of
from hubguard.watch.decide.receivers import read_receivers
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import AlertRow, Change, Severity
from hubguard.watch.notify import http, pagerduty, slack
from hubguard.watch.notify.alertmanager import Alertmanager
from hubguard.watch.notify.choose import open_receivers
from hubguard.watch.notify.email import mail_of
from hubguard.watch.notify.pagerduty import PagerDuty
from hubguard.watch.notify.port import Receiver
from hubguard.watch.notify.slack import Slack
from hubguard.watch.notify.webhook import Webhook

BY_NAME = {rule.name: rule for rule in RULES}
SECRET = "T000/B000/a-secret-of-the-channel"
HOSTILE = "<!channel> *bold* [x](http://evil)\r\nBcc: all@example.org\x00\x1b[31m \u202e" + "x" * 10_000


def message(change: Change = Change.RAISED, sentence: str = "The hub doesn't answer.", subject: str = "") -> Message:
    row = AlertRow(7, "HubDown", subject, Severity.NOW, NOW, NOW, 0.0, 0.0, sentence)
    return message_of(row, change, BY_NAME, "https://hub.example/services/hubguard/alerts", "hub.example")


class Server:
    """Takes posts, and answers as it is set to."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.answer: Callable[[], web.Response] = lambda: web.Response(text="ok")
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(await request.json())
        return self.answer()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/{path:.*}", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/{SECRET}"
    yield made
    await runner.cleanup()


KINDS: dict[str, tuple[Callable[[str], Receiver], Callable[[], web.Response]]] = {
    "slack": (Slack, lambda: web.Response(text="ok")),
    "pagerduty": (lambda url: PagerDuty("r" * 32, url), lambda: web.json_response({"status": "success"}, status=202)),
    "alertmanager": (Alertmanager, web.Response),
    "webhook": (lambda url: Webhook(url, "hook"), lambda: web.Response(status=204)),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_receiver_takes_an_alert_and_its_end(server: Server, kind: str) -> None:
    make, well = KINDS[kind]
    server.answer = well
    receiver = make(server.url)
    for change in (Change.RAISED, Change.RESOLVED):
        assert (await receiver.send([message(change)])).delivered
    await receiver.close()
    assert len(server.got) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "again"), [(500, True), (503, True), (429, True), (404, True), (400, False)])
async def test_what_failed_is_tried_again_unless_it_was_refused_for_good(
    server: Server, kind: str, status: int, again: bool
) -> None:
    server.answer = lambda: web.Response(status=status, text=f"no {SECRET}", headers={"Retry-After": "17"})
    receiver = KINDS[kind][0](server.url)
    result = await receiver.send([message()])
    await receiver.close()
    assert (result.delivered, result.again) == (False, again)
    assert str(status) in result.said
    assert result.retry_after_s == 17.0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_receiver_that_is_not_there_is_tried_again_and_its_secret_is_not_said(kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver = KINDS[kind][0](f"http://127.0.0.1:{port}/{SECRET}")
    result = await receiver.send([message()])
    await receiver.close()
    assert (result.delivered, result.again, result.reached) == (False, True, False)
    assert SECRET not in result.said


async def test_garbage_from_slack_and_pagerduty_is_no_success(server: Server) -> None:
    server.answer = lambda: web.Response(text="<html>Sign in</html>")
    for receiver in (Slack(server.url), PagerDuty("r" * 32, server.url)):
        assert not (await receiver.send([message()])).delivered
        await receiver.close()


async def test_a_receiver_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        receiver = Slack(f"http://127.0.0.1:{silent.getsockname()[1]}/{SECRET}")
        result = await receiver.send([message()])
    await receiver.close()
    assert (result.delivered, result.again) == (False, True)
    assert "no answer within" in result.said


def test_hostile_texts_ping_nobody_and_stay_within_the_limits() -> None:
    hostile = message(sentence=HOSTILE, subject=HOSTILE)
    text = json.dumps(slack.body_of([hostile]))
    assert len(text) < 40_000
    assert "<!channel>" not in slack.body_of([hostile])["text"]
    event = pagerduty.body_of(hostile, "r" * 32)
    assert len(event["payload"]["summary"]) <= 1024
    assert len(event["dedup_key"]) <= 255
    assert len(json.dumps(event)) < 512 * 1024
    mail = mail_of([hostile], "hubguard@example.org", ["ops@example.org"])
    assert mail["Bcc"] is None
    assert "\n" not in str(mail["Subject"])
    assert not any(not char.isprintable() for char in hostile.sentence)


def test_an_alert_and_its_end_share_a_key_and_the_next_alert_has_another() -> None:
    assert message().key == message(Change.RESOLVED).key
    again = AlertRow(8, "HubDown", "", Severity.NOW, NOW, None, 0.0, 0.0, "")
    assert message_of(again, Change.RAISED, BY_NAME, "", "").key != message().key


def test_a_message_says_the_first_thing_to_do_and_since_when() -> None:
    first, since = message().lines
    assert first == f"First: {BY_NAME['HubDown'].first}"
    assert since == "Since 2026-11-21 12:00:00 UTC."
    assert replace(message(), severity=Severity.WEEK).title.startswith("HubDown (act this week): ")


@pytest.mark.parametrize(
    ("receiver", "why"),
    [
        ({"kind": "slak", "url_env": "X"}, "slack"),
        ({"kind": "slack"}, "url"),
        ({"kind": "slack", "url": "hooks.slack.com/x"}, "http"),
        ({"kind": "slack", "url_env": "X", "sevrities": ["now"]}, "severities"),
        ({"kind": "slack", "url_env": "X", "severities": ["urgent"]}, "now"),
        ({"kind": "email", "from": "a@b.c"}, "host"),
        ("https://hooks.slack.com/x", "dict"),
    ],
)
def test_a_wrong_receiver_is_named_and_the_others_are_used(receiver: object, why: str) -> None:
    read, problems = read_receivers({"ops": receiver, "well": {"kind": "webhook", "url_env": "X"}})
    assert [settings.name for settings in read] == ["well"]
    (problem,) = problems
    assert "HubGuardWatch.receivers['ops']" in str(problem)
    assert why in str(problem)


def test_a_secret_that_isnt_there_is_named_and_one_that_is_there_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"https://hooks.slack.com/{SECRET}\n")
    value = {
        "gone": {"kind": "slack", "url_env": "NOT_SET"},
        "file": {"kind": "slack", "url_file": str(tmp_path / "url")},
        "given": {"kind": "slack", "url": f"https://hooks.slack.com/{SECRET}"},
    }
    opened, problems = open_receivers(value, {})
    assert [named.name for named in opened] == ["file", "given"]
    (problem,) = problems
    assert "HubGuardWatch.receivers['gone'].url_env" in str(problem)
    assert "NOT_SET" in str(problem)
    assert SECRET not in repr(read_receivers(value))


def test_alertmanager_itself_takes_and_ends_our_alerts(tmp_path: Path) -> None:
    command = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if command is None:
        pytest.skip("there is no Alertmanager on this machine (Debian: prometheus-alertmanager)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "config.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    options = [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", f"--storage.path={tmp_path}"]
    process = subprocess.Popen(
        [command, f"--config.file={tmp_path / 'config.yml'}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def alerts() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=5) as answer:
            return json.load(answer)

    async def send(change: Change) -> None:
        receiver = Alertmanager(url)
        try:
            result = await receiver.send([message(change)])
        finally:
            await receiver.close()
        assert result.delivered, result

    try:
        for _ in range(100):
            try:
                alerts()
                break
            except OSError:
                time.sleep(0.1)
        asyncio.run(send(Change.RAISED))
        (alert,) = alerts()
        assert alert["labels"]["alertname"] == "HubDown"
        assert alert["annotations"]["summary"] == "The hub doesn't answer."
        asyncio.run(send(Change.RESOLVED))
        for _ in range(50):
            if not alerts():
                break
            time.sleep(0.1)
        assert alerts() == []
    finally:
        process.terminate()
        process.wait(10)
