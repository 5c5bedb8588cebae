"""The demo shows what HubGuard is for, and says where to look."""

from __future__ import annotations

import socket

import pytest

from hubguard.staging import demo
from hubguard.staging.hub import TestbedHub

pytestmark = pytest.mark.any_hub


async def test_a_port_that_is_taken_is_named_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert await demo.run_demo(check=False, port=port) == 1
    assert f"Port {port} is taken. Choose another one." in capsys.readouterr().out


async def test_the_tour_names_everything_that_goes_wrong() -> None:
    hub = TestbedHub(port=18000)
    text = demo.tour(hub, 60.0)
    await hub.aclose()
    for name in (demo.STUCK, demo.KEPT, demo.DEAD, demo.ORPHAN, *demo.PROTECTED, hub.password):
        assert name in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.long
async def test_the_demo_is_as_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert await demo.run_demo(check=True) == 0, capsys.readouterr().out
