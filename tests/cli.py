"""The ``hubguard`` command in a test: run it, and see what it printed; a journal for it in the test's folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import pytest

from hubguard import cli
from hubguard.act.lease import HUB
from hubguard.journal.store import open_journal

TOKEN = "sikrit-token"
JOURNAL = "sqlite:///hubguard.sqlite"


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Said:
    """Run ``hubguard`` with these words. It shows neither a traceback nor the token."""
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert TOKEN not in out + err
    return Said(code, out, err)


def alone(monkeypatch: pytest.MonkeyPatch, *, hub: bool) -> None:
    """Nothing in the environment but, if ``hub``, a token and the URL of a hub that doesn't answer."""
    for name in (
        *("JUPYTERHUB_API_TOKEN", "JUPYTERHUB_API_URL", "CONFIGPROXY_API_URL"),
        *("HUBGUARD_DB_URL", "HUBGUARD_CONFIG", "HUBGUARD_HUB_DB_URL"),
    ):
        monkeypatch.delenv(name, raising=False)
    if hub:
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
        monkeypatch.setenv("JUPYTERHUB_API_URL", "http://127.0.0.1:9/hub/api")


def journal(address: str = "") -> None:
    """The guard's journal is in this folder; at ``address``, if given, a guard holds its lease."""
    books = open_journal(JOURNAL)
    if address:
        books.take_lease(HUB, "hub-1:4711", address, 0.0, datetime.now(timezone.utc), 600.0)
    books.close()
