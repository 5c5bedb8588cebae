"""``hubguard alerts test`` against a real server, and silences from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cli import alone, journal, run


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone(monkeypatch, hub=False)
    journal()


class Slack(BaseHTTPRequestHandler):
    """Answers ``answer`` to all; ``got`` are the titles of what came."""

    answer = (200, b"ok")
    got: list[str] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"].splitlines()[0])
        status, text = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Slack]]:
    monkeypatch.setattr(Slack, "answer", (200, b"ok"))
    monkeypatch.setattr(Slack, "got", [])
    server = HTTPServer(("127.0.0.1", 0), Slack)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("SLACK_URL", f"http://127.0.0.1:{server.server_port}/s3cr3t")
    yield Slack
    server.shutdown()
    thread.join()
    server.server_close()


def config(receivers: object) -> str:
    Path("hubguard_config.py").write_text(f"c.HubGuardWatch.receivers = {receivers!r}\n")
    return "hubguard_config.py"


OPS = {"ops": {"kind": "slack", "url_env": "SLACK_URL"}}


def test_a_receiver_that_works_gets_an_alert_and_its_resolution(
    slack: type[Slack], capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "alerts", "test", "ops", "--config", config(OPS))
    assert (said.code, said.err) == (0, "")
    assert said.out == "alert: taken (answered 200: ok)\nresolution: taken (answered 200: ok)\n"
    assert [title.split(":")[0] for title in slack.got] == ["HubGuardTest (act this week)", "HubGuardTest (resolved)"]


def test_a_receiver_that_refuses_fails_the_command_in_its_own_words(
    slack: type[Slack], capsys: pytest.CaptureFixture[str]
) -> None:
    slack.answer = (404, b"no_service at /s3cr3t")
    said = run(capsys, "alerts", "test", "ops", "--config", config(OPS))
    assert said.code == 1
    assert said.out == "".join(
        f"{what}: not taken (answered 404: no_service at [secret])\n" for what in ("alert", "resolution")
    )


@pytest.mark.parametrize(
    ("receivers", "says"),
    [
        ({}, "HubGuardWatch.receivers: no receiver 'ops'; it is empty"),
        ({"opps": {"kind": "slack", "url": "http://127.0.0.1:9/"}}, "no receiver 'ops'; did you mean opps?"),
        (OPS, "HubGuardWatch.receivers['ops'].url_env: the environment variable SLACK_URL isn't set"),
        (
            {"ops": {"kind": "slak"}},
            "HubGuardWatch.receivers['ops'].kind: no such kind of receiver; did you mean slack?",
        ),
        ("https://s3cr3t", "HubGuardWatch.receivers: is a dict such as"),
    ],
)
def test_a_receiver_that_cant_be_used_is_wrong_usage(
    receivers: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "alerts", "test", "ops", "--config", config(receivers))
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert "s3cr3t" not in said.err


def test_config_show_and_check_show_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    file = config(
        {"ops": {"kind": "slack", "url": "https://hooks.example/s3cr3t"}, "x": {"kind": "y", "token": "s3cr3t"}}
    )
    shown, checked = run(capsys, "config", "show", "--config", file), run(capsys, "config", "check", file)
    assert (shown.code, checked.code) == (0, 0)
    assert "'url': [secret]" in shown.out
    assert "HubGuardWatch.receivers['x'].kind: no such kind" in checked.out
    assert "s3cr3t" not in shown.out + shown.err + checked.out + checked.err


def test_a_silence_is_made_listed_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    made = run(capsys, "alerts", "silence", "DiskLow", "--subject", "/srv", "--for", "2h", "being enlarged")
    assert made.code == 0
    assert made.out.startswith("1  DiskLow of /srv until ")
    assert made.out.endswith(": being enlarged\n")
    assert made.out.count("UTC") == 1
    assert run(capsys, "alerts", "silences").out == made.out
    (row,) = json.loads(run(capsys, "alerts", "silences", "--json").out)
    assert (row["id"], row["rule"], row["subject"], row["why"]) == (1, "DiskLow", "/srv", "being enlarged")
    assert run(capsys, "alerts", "end-silence", "1").code == 0
    assert run(capsys, "alerts", "silences").out == "Nothing is silenced.\n"
    again = run(capsys, "alerts", "end-silence", "1")
    assert (again.code, again.err) == (1, "hubguard: No silence 1 is in force. Nothing was changed.\n")


def test_all_alerts_can_be_silenced_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "alerts", "silence", "all", "--for", "1h").out.startswith("1  all alerts until ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("DiskLo", "--for", "2h"), 1, "Nothing silenced: no alert 'DiskLo'. Did you mean DiskLow?"),
        (("DiskLow",), 2, "--for"),
        (("DiskLow", "--for", "forever"), 2, "'forever' is not a span"),
        (("DiskLow", "--for", "53w"), 2, "'53w' is not a span"),
    ],
)
def test_a_silence_that_makes_no_sense_is_refused(
    words: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "alerts", "silence", *words)
    assert (said.code, said.out) == (code, "")
    assert says in said.err
    assert run(capsys, "alerts", "silences").out == "Nothing is silenced.\n"
