"""What every test may use: real hubs that leave nothing running."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
from real_hub import RealHub

from hubguard.staging.hub import TestbedHub

pytest_plugins = ["databases", "browsing"]

# How long it takes to make up an example depends on what else the machine does.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

# The interpreter that runs the hubs under test, so that the same suite runs against another JupyterHub.
HUB_PYTHON = os.environ.get("HUBGUARD_TEST_HUB_PYTHON") or sys.executable


def pytest_report_header() -> str:
    ask = "import jupyterhub; print(jupyterhub.__version__)"
    asked = subprocess.run([HUB_PYTHON, "-c", ask], capture_output=True, text=True, check=False)
    return f"hub under test: JupyterHub {asked.stdout.strip() or 'missing'} ({HUB_PYTHON})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts a hub is tried on every version of it, unless it says that any will do."""
    for item in items:
        if {"testbed_hub", "shared_hub"} & set(getattr(item, "fixturenames", ())) and not item.get_closest_marker(
            "any_hub"
        ):
            item.add_marker("hub")
        if "memory" in getattr(getattr(item, "callspec", None), "params", {}).values():
            item.add_marker("double")


@asynccontextmanager
async def hubs() -> AsyncIterator[Callable[..., Awaitable[TestbedHub]]]:
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> TestbedHub:
            return await stack.enter_async_context(RealHub(**{"python": HUB_PYTHON, **settings}))

        yield make


@pytest.fixture
async def testbed_hub() -> AsyncIterator[Callable[..., Awaitable[TestbedHub]]]:
    """Makes running hubs: ``hub = await testbed_hub(config=…)`` takes what TestbedHub takes; all are ended afterwards."""
    async with hubs() as make:
        yield make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_hub() -> AsyncIterator[Callable[..., Awaitable[TestbedHub]]]:
    """The same for a fixture whose hub serves a whole module: its tests have users of their own, and put back the rest."""
    async with hubs() as make:
        yield make
