"""What outlived its server, as the hub reported: when a later look shows that it is gone, and what shows nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import NOW, server
from doubles.drift import PROVED, reading, world_of

from hubguard.drift.looks import _is_gone
from hubguard.drift.model import World
from hubguard.model import Source

REPORTED = NOW - timedelta(seconds=10)
KEY = ("ann", "")


def world(*, hub_s: float = 20, backends_s: float = 4, failed: str = "", **changes: Any) -> World:
    """A look whose answer of the hub was that many seconds old at NOW, and so on; nothing is there."""
    readings = (reading(Source.HUB_API, age_s=hub_s), reading(Source.BACKEND, failed, age_s=backends_s))
    return world_of((), readings=readings, **changes)


@pytest.mark.parametrize(
    ("seen", "gone"),
    [
        (world(), True),
        (world(backends_s=11), False),
        (world(backends_s=10), False),
        (world(failed="no answer"), False),
        (world(whole=False), False),
        (world(backends=(PROVED,)), False),
        (world(backends=(replace(PROVED, alive=None),)), False),
        (world(backends=(replace(PROVED, alive=False),)), True),
        (world(backends=(replace(PROVED, user="bob"),)), True),
    ],
)
def test_only_a_whole_and_later_look_at_the_backends_shows_that_it_is_gone(seen: World, gone: bool):
    assert _is_gone(seen, KEY, REPORTED) is gone


@pytest.mark.parametrize(
    ("hub_s", "changes", "over"),
    [
        (4, {}, True),
        (11, {}, False),
        (4, {"unsure": frozenset({KEY})}, False),
        (4, {"servers": None}, False),
        (4, {"servers": {KEY: server(pending="spawn")}}, False),
    ],
)
def test_it_is_that_server_again_where_the_hub_says_later_that_it_is_ready(
    hub_s: float, changes: dict[str, Any], over: bool
):
    given = {"servers": {KEY: server()}, "backends": (PROVED,), **changes}
    assert _is_gone(world(hub_s=hub_s, **given), KEY, REPORTED) is over
