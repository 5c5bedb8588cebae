"""Receivers against real servers on this machine: those that answer as documented, and those that don't."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from builders import NOW, minutes

from hubguard.watch.decide.message import Message, message_of
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import AlertRow, Change, Severity
from hubguard.watch.notify import email, http
from hubguard.watch.notify.alertmanager import Alertmanager
from hubguard.watch.notify.apprise import Apprise
from hubguard.watch.notify.email import Email
from hubguard.watch.notify.http import seconds_of
from hubguard.watch.notify.pagerduty import PagerDuty
from hubguard.watch.notify.port import Receiver
from hubguard.watch.notify.slack import Slack
from hubguard.watch.notify.webhook import Webhook

SECRET = "s3cr3t-s3cr3t"
KEY = "k3y" * 10


def message(change: Change = Change.RAISED, rule: str = "HubDown", at: datetime = NOW) -> Message:
    ended = at if change is Change.RESOLVED else None
    row = AlertRow(1, rule, "", Severity.NOW, at - minutes(5), ended, 0.0, 0.0, "The hub doesn't answer.")
    return message_of(row, change, {one.name: one for one in RULES}, "https://hub.example/alerts", "hub.example")


class Server:
    """Answers what a test sets, and keeps what it got."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[Any] = []
        self.headers: list[Any] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.says(200, "ok")

    def says(
        self, status: int, text: str = "", **headers: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.got.append(await request.json())
        self.headers.append(request.headers)
        return await self.answer(request)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/services/{SECRET}"
    yield made
    await runner.cleanup()


TAKEN = {
    "slack": (200, "ok"),
    "pagerduty": (202, '{"status": "success"}'),
    "alertmanager": (200, ""),
    "webhook": (204, ""),
}


@asynccontextmanager
async def opened(kind: str, url: str) -> AsyncIterator[Receiver]:
    makes: dict[str, Callable[[], Receiver]] = {
        "slack": lambda: Slack(url),
        "pagerduty": lambda: PagerDuty(KEY, url),
        "alertmanager": lambda: Alertmanager(url, SECRET),
        "webhook": lambda: Webhook(url, "ops", SECRET),
    }
    receiver = makes[kind]()
    try:
        yield receiver
    finally:
        await receiver.close()


kinds = pytest.mark.parametrize("kind", TAKEN)


@kinds
async def test_what_is_answered_as_documented_is_delivered(server: Server, kind: str) -> None:
    server.answer = server.says(*TAKEN[kind])
    async with opened(kind, server.url) as receiver:
        for change in (Change.RAISED, Change.RESOLVED):
            assert (await receiver.send([message(change)])).delivered
    assert len(server.got) == 2


@kinds
@pytest.mark.parametrize(
    ("status", "again", "reached"),
    [
        (400, False, False),
        (302, False, False),
        (401, True, False),
        (404, True, False),
        (500, True, True),
        (503, True, True),
    ],
)
async def test_an_error_says_whether_another_try_is_worth_it(
    server: Server, kind: str, status: int, again: bool, reached: bool
) -> None:
    server.answer = server.says(status, f"no {SECRET} {server.url} {KEY}", Location="http://127.0.0.1:1/")
    async with opened(kind, server.url) as receiver:
        result = await receiver.send([message()])
    assert (result.delivered, result.again, result.reached) == (False, again, reached)
    assert result.said.startswith(f"answered {status}: no ")
    assert len(server.got) == 1
    hidden = {"slack": (server.url,), "pagerduty": (server.url, KEY)}.get(kind, (SECRET,))
    assert not [secret for secret in hidden if secret in result.said]


@kinds
async def test_a_429_is_tried_again_when_the_receiver_says_so(server: Server, kind: str) -> None:
    server.answer = server.says(429, "slow down", Retry_After="120")
    async with opened(kind, server.url) as receiver:
        result = await receiver.send([message()])
    assert (result.delivered, result.again, result.retry_after_s, result.reached) == (False, True, 120.0, False)


@pytest.mark.parametrize("kind", ["slack", "pagerduty"])
async def test_garbage_with_a_good_status_isnt_delivered(server: Server, kind: str) -> None:
    for text in ("<html>log in</html>", "[1", "\x00\xff", "[" * 100_000, ""):
        server.answer = server.says(TAKEN[kind][0], text)
        async with opened(kind, server.url) as receiver:
            result = await receiver.send([message()])
        assert (result.delivered, result.again) == (False, True), text
        assert "\x00" not in result.said
        assert len(result.said) < 500


@kinds
async def test_a_server_that_doesnt_answer_is_left_in_time(
    server: Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.2)

    async def hangs(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    server.answer = hangs
    async with opened(kind, server.url) as receiver:
        result = await asyncio.wait_for(receiver.send([message()]), 5)
    assert (result.said, result.again, result.reached) == ("no answer within 0.2 s", True, True)


@kinds
async def test_a_connection_that_breaks_may_have_brought_it(server: Server, kind: str) -> None:
    async def closes(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    server.answer = closes
    async with opened(kind, server.url) as receiver:
        result = await receiver.send([message()])
    assert (result.delivered, result.again, result.reached) == (False, True, True)


@kinds
async def test_nobody_there_is_said_without_the_secret(kind: str) -> None:
    with socket.socket() as bound:  # bound and not listening: whoever connects is refused
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/{SECRET}"
        async with opened(kind, url) as receiver:
            result = await receiver.send([message()])
    assert (result.delivered, result.again, result.reached) == (False, True, False)
    assert result.said.startswith("can't be reached")
    assert SECRET not in result.said


async def test_an_endless_answer_is_cut_off(server: Server) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(10_000):
                await response.write(b"x" * 65536)
        return response

    server.answer = endless
    async with opened("webhook", server.url) as receiver:
        result = await receiver.send([message()])
    assert (result.delivered, result.said) == (False, "the answer is too large")


async def test_a_token_is_sent_as_a_bearers(server: Server) -> None:
    for kind in ("alertmanager", "webhook"):
        async with opened(kind, server.url) as receiver:
            await receiver.send([message()])
    assert [one["Authorization"] for one in server.headers] == [f"Bearer {SECRET}"] * 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text, datetime(2026, 11, 21, 12, tzinfo=timezone.utc)) == seconds


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # by a module that apprise imports
async def test_apprise_sends_to_its_own_urls(server: Server) -> None:
    pytest.importorskip("apprise", reason="apprise isn't installed")
    receiver = Apprise(server.url.replace("http://", "json://"))
    assert (await receiver.send([message()])).delivered
    assert server.got[0]["title"] == message().title
    server.answer = server.says(500)
    result = await receiver.send([message()])
    assert (result.delivered, result.again) == (False, True)
    with pytest.raises(ValueError, match="doesn't know"):
        Apprise("nonsense://")


# -- mail -----------------------------------------------------------------------------------------------------------


class MailServer:
    """Speaks SMTP as far as a client needs. ``says`` replaces the answer to a command; None: no answer at all."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.port = 0
        self.mails: list[str] = []
        self.commands: list[str] = []
        self.secured: list[bool] = []
        self.says: dict[str, str | None] = {}
        self.tls = tls
        self.over = asyncio.Event()
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        try:
            await self._talk(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._say(writer, "CONNECT", "220 mail.example"):
            return
        while line := (await reader.readline()).decode().strip():
            command = line.split()[0].upper()
            self.commands.append(command)
            answers = {
                "EHLO": "250-mail.example\r\n250-AUTH PLAIN\r\n250 STARTTLS" if self.tls else "250 mail.example",
                "STARTTLS": "220 go",
                "AUTH": "235 welcome",
                "DATA": "354 go",
                "QUIT": "221 bye",
            }
            if not await self._say(writer, command, answers.get(command, "250 ok")):
                return
            if command == "STARTTLS":
                assert self.tls is not None
                await writer.start_tls(self.tls)
            if command == "DATA" and "DATA" not in self.says:
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                self.secured.append(writer.get_extra_info("ssl_object") is not None)
                if not await self._say(writer, "END", "250 queued"):
                    return
            if command == "QUIT":
                break

    async def _say(self, writer: asyncio.StreamWriter, command: str, answer: str) -> bool:
        said = self.says.get(command, answer)
        if said is None:
            await self.over.wait()
            return False
        if said == "close":
            writer.transport.abort()
            return False
        writer.write(said.encode() + b"\r\n")
        await writer.drain()
        return True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl isn't there to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    key = file.with_name("key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", file],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(key.read_bytes() + file.read_bytes())
    return file


@pytest.fixture
async def mail_server(certificate: Path) -> AsyncIterator[MailServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    made = MailServer(context)
    server = await asyncio.start_server(made.serve, "localhost", 0, family=socket.AF_INET)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    made.over.set()
    await asyncio.gather(*filter(None, made.serving))


def mail_to(server: MailServer, certificate: Path | None = None, **given: Any) -> Email:
    trust = ssl.create_default_context(cafile=str(certificate)) if certificate is not None else None
    to = ["ops@example.edu", "dean@example.edu"]
    return Email("localhost", "hub@example.edu", to, port=server.port, trust=trust, **given)


async def test_a_mail_goes_out_encrypted_with_who_sends_it_and_what_is_wrong(
    mail_server: MailServer, certificate: Path
) -> None:
    result = await mail_to(mail_server, certificate, user="hub", password=SECRET).send([message()])
    assert (result.delivered, result.said) == (True, "sent")
    assert mail_server.secured == [True]
    assert mail_server.commands.index("STARTTLS") < mail_server.commands.index("AUTH")
    (mail,) = mail_server.mails
    assert "Subject: HubDown (act now): The hub doesn't answer." in mail
    assert "To: ops@example.edu, dean@example.edu" in mail
    assert "https://hub.example/alerts" in mail


async def test_a_mail_server_whose_certificate_isnt_trusted_gets_no_password(mail_server: MailServer) -> None:
    result = await mail_to(mail_server, user="hub", password=SECRET).send([message()])
    assert (result.delivered, result.again, result.reached) == (False, True, False)
    assert "AUTH" not in mail_server.commands
    assert mail_server.mails == []


async def test_without_starttls_nothing_is_sent_unless_that_is_wanted(mail_server: MailServer) -> None:
    mail_server.tls = None
    result = await mail_to(mail_server).send([message()])
    assert (result.delivered, result.said) == (False, "the server doesn't offer STARTTLS")
    assert mail_server.mails == []
    assert (await mail_to(mail_server, security="none").send([message()])).delivered


@pytest.mark.parametrize(
    ("command", "answer", "again", "says"),
    [
        ("CONNECT", "554 no", False, "answered 554"),
        ("CONNECT", "421 busy", True, "answered 421"),
        ("CONNECT", "rubbish", True, ""),
        ("CONNECT", "close", True, ""),
        ("AUTH", f"535 not {SECRET}", True, "login refused (535)"),
        ("MAIL", "550 not you", False, "answered 550: not you"),
        ("RCPT", "550 nobody", False, "every recipient was refused (550)"),
        ("RCPT", "450 later", True, "every recipient was refused (450)"),
        ("DATA", "554 spam", False, "answered 554: spam"),
        ("END", "451 later", True, "answered 451: later"),
        ("END", "close", True, ""),
    ],
)
async def test_what_a_mail_server_refuses_says_whether_to_try_again(
    mail_server: MailServer, certificate: Path, command: str, answer: str, again: bool, says: str
) -> None:
    mail_server.says[command] = answer
    result = await mail_to(mail_server, certificate, user="hub", password=SECRET).send([message()])
    assert (result.delivered, result.again) == (False, again), result
    assert result.said.startswith(says), result
    assert SECRET not in result.said


@pytest.mark.parametrize("answer", ["500 what?", "close"])
async def test_a_mail_that_was_taken_isnt_sent_again_for_what_comes_after(
    mail_server: MailServer, certificate: Path, answer: str
) -> None:
    mail_server.says["QUIT"] = answer
    assert (await mail_to(mail_server, certificate).send([message()])).delivered
    assert len(mail_server.mails) == 1


@pytest.mark.parametrize("command", ["CONNECT", "EHLO", "STARTTLS", "END"])
async def test_a_mail_server_that_hangs_is_left_in_time(
    mail_server: MailServer, certificate: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email, "STEP_S", 0.3)
    mail_server.says[command] = None
    result = await asyncio.wait_for(mail_to(mail_server, certificate).send([message()]), 5)
    assert (result.delivered, result.again) == (False, True)
    assert result.reached == (command == "END")


async def test_a_mail_server_that_answers_drop_by_drop_is_left_in_time(
    mail_server: MailServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email, "WHOLE_S", 0.5)
    mail_server.says["EHLO"] = None
    result = await asyncio.wait_for(mail_to(mail_server, certificate).send([message()]), 5)
    assert (result.delivered, result.said) == (False, "no end of the exchange within 0.5 s")


# -- Alertmanager itself ----------------------------------------------------------------------------------------------


@pytest.fixture
async def alertmanager(tmp_path: Path) -> AsyncIterator[str]:
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("Alertmanager isn't installed (Debian: prometheus-alertmanager)")
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(200):
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/-/ready") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.1)
            else:
                pytest.fail((tmp_path / "log").read_text()[-2000:])
        yield url
    finally:
        process.terminate()
        await process.wait()


async def alerts_at(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v2/alerts") as answer:
        alerts: list[dict[str, Any]] = json.loads(await answer.text())
        return alerts


async def test_alertmanager_itself_takes_resolves_and_reopens_our_alerts(alertmanager: str) -> None:
    now = datetime.now(timezone.utc)
    receiver = Alertmanager(alertmanager)
    try:
        for change, there in ((Change.RAISED, 1), (Change.RAISED, 1), (Change.RESOLVED, 0), (Change.RAISED, 1)):
            assert (await receiver.send([message(change, at=now)])).delivered
            alerts = await alerts_at(alertmanager)
            assert len(alerts) == there
        (alert,) = alerts
        assert alert["labels"]["alertname"] == "HubDown"
        assert alert["annotations"]["summary"] == "The hub doesn't answer."
        ends = datetime.fromisoformat(alert["endsAt"].replace("Z", "+00:00"))
        assert timedelta(minutes=3) < ends - now < timedelta(minutes=6)
        hostile = message(rule="Disk\u202eLow <!channel> {{.}}", at=now)
        assert (await receiver.send([hostile] * 2)).delivered
    finally:
        await receiver.close()
