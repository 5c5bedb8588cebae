"""E-mail, by a mail server of the site's."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import format_datetime

from hubguard.hub.http import quotable
from hubguard.watch.decide.message import Message, lines_of, subject_of
from hubguard.watch.decide.notice import Result, Together

STEP_S = 10.0
"""Maximum seconds for one step of the exchange with the mail server."""

WHOLE_S = 45.0
"""Maximum seconds for all of it: a server that sends a byte now and then keeps to every step's limit."""

SUBJECT_MOST = 200
"""Maximum characters of a subject."""

PORTS = {"starttls": 587, "tls": 465, "none": 25}
"""The port by how the connection is secured, unless another is set."""


class Email:
    """Sends a mail. ``security`` is "starttls", "tls" or "none"; without STARTTLS where it is wanted, nothing is sent."""

    together = Together.DIGEST
    spacing_s = 1.0
    repeat_s = None

    def __init__(
        self,
        host: str,
        sender: str,
        to: Sequence[str],
        *,
        port: int | None = None,
        security: str = "starttls",
        user: str = "",
        password: str = "",
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """``trust`` None: the certificates that this machine trusts."""
        self._host, self._port = host, port or PORTS[security]
        self._sender, self._to = sender, tuple(to)
        self._security = security
        self._login = user, password
        self._trust = trust

    async def send(self, messages: Sequence[Message]) -> Result:
        """What came of it. The exchange has a thread of its own: a mail server that hangs keeps nobody else's."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Result] = loop.create_future()
        connections: list[smtplib.SMTP] = []
        mail = mail_of(messages, self._sender, self._to)

        def settle(result: Result) -> None:
            if not answered.done():
                answered.set_result(result)

        def exchange() -> None:
            result = self._exchange(mail, connections)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result)

        threading.Thread(target=exchange, name="hubguard-mail", daemon=True).start()
        try:
            return await asyncio.wait_for(answered, WHOLE_S)
        except asyncio.TimeoutError:
            return Result(delivered=False, said=f"no end of the exchange within {WHOLE_S:g} s", again=True)
        finally:
            for connection in connections:
                if (open_socket := getattr(connection, "sock", None)) is not None:
                    with contextlib.suppress(OSError):
                        open_socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Each mail has a connection of its own."""

    def _exchange(self, mail: EmailMessage, connections: list[smtplib.SMTP]) -> Result:
        reached = False
        try:
            smtp = self._connect()
            connections.append(smtp)
            try:
                if self._security == "starttls":
                    smtp.starttls(context=self._trust or ssl.create_default_context())
                if self._login[0]:
                    smtp.login(*self._login)
                reached = True
                refused = smtp.send_message(mail)
                # Whatever the server says from here on, it has the mail.
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    smtp.quit()
            finally:
                smtp.close()
            if refused:
                return Result(delivered=True, said=f"sent, but not to {self._hidden(', '.join(sorted(refused)))}")
            return Result(delivered=True, said="sent")
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            again = any(code < 500 for code in codes)
            said = f"every recipient was refused ({', '.join(map(str, sorted(codes)))})"
            return Result(delivered=False, said=said, again=again, reached=False)
        except smtplib.SMTPAuthenticationError as error:
            return Result(delivered=False, said=f"login refused ({error.smtp_code})", again=True, reached=False)
        except smtplib.SMTPResponseException as error:
            text = (
                error.smtp_error.decode(errors="replace")
                if isinstance(error.smtp_error, bytes)
                else str(error.smtp_error)
            )
            said = f"answered {error.smtp_code}: {self._hidden(text)}"
            return Result(delivered=False, said=said, again=error.smtp_code < 500, reached=False)
        except smtplib.SMTPNotSupportedError:
            what = "STARTTLS" if self._security == "starttls" and not reached else "what was asked of it"
            return Result(delivered=False, said=f"the server doesn't offer {what}", again=True, reached=False)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            said = f"{type(error).__name__}: {self._hidden(str(error))}"
            return Result(delivered=False, said=said, again=True, reached=reached)

    def _connect(self) -> smtplib.SMTP:
        if self._security == "tls":
            context = self._trust or ssl.create_default_context()
            return smtplib.SMTP_SSL(self._host, self._port, timeout=STEP_S, context=context)
        return smtplib.SMTP(self._host, self._port, timeout=STEP_S)

    def _hidden(self, text: str) -> str:
        return quotable(text, self._login[1])


def mail_of(messages: Sequence[Message], sender: str, to: Sequence[str]) -> EmailMessage:
    """The mail, as plain text. Those of one alert belong to one thread."""
    mail = EmailMessage()
    subject = subject_of(messages)
    mail["Subject"] = subject if len(subject) <= SUBJECT_MOST else subject[: SUBJECT_MOST - 1] + "…"
    mail["From"], mail["To"] = sender, ", ".join(to)
    last = max(message.ended_at or message.since for message in messages)
    mail["Date"] = format_datetime(last)
    mail["Auto-Submitted"] = "auto-generated"
    if len(messages) == 1:
        mail["References"] = f"<{messages[0].key}@hubguard>"
    link = (f"The alerts: {messages[0].link}",) if messages[0].link else ()
    mail.set_content("\n\n".join((subject, *lines_of(messages), *link)) + "\n")
    return mail
