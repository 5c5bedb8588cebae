"""A receiver that fails shows on the Overview and in the metrics, until it works again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from asked_site import Site, sites
from builders import NOW
from doubles.guard import guard_with, made_up

from hubguard.model import Finding, FindingKind
from hubguard.watch.notify.queue import NoticesStatus


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with sites() as make:
        yield make(guard_with(made_up(3)))


async def test_a_failing_receiver_is_seen_and_counted_until_it_works_again(site: Site) -> None:
    failing = Finding(FindingKind.RECEIVER, NOW, "Notices don't reach <ops>: answered 500.")
    status = NoticesStatus({("<ops>", "sent"): 3, ("<ops>", "failed"): 2}, (failing,))
    parts: Any = site.guard.parts
    parts.notices = SimpleNamespace(status=lambda: status)
    overview = await site.ask("", login="reader")
    assert "Notices don't arrive: Notices don't reach <ops>: answered 500." in overview.says
    assert "&lt;ops&gt;" in overview.text
    metrics = (await site.ask("metrics", "reader")).text
    assert 'hubguard_notices_total{outcome="failed",receiver="<ops>"} 2.0' in metrics
    assert 'hubguard_findings{kind="receiver"} 1.0' in metrics
    status = NoticesStatus({("<ops>", "sent"): 4, ("<ops>", "failed"): 2})
    assert "Notices don't" not in (await site.ask("", login="reader")).says
