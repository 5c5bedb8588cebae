"""Real hubs from a few lines of config: how the tests of the field start theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from guarded import INCLUDE, QUICK

from hubguard.staging.hub import TestbedHub

MakeHub = Callable[..., Awaitable[TestbedHub]]
"""The fixtures testbed_hub and shared_hub."""


async def hub_of(
    make: MakeHub, *lines: str, before: tuple[str, ...] = (), armed: bool = True, **more: Any
) -> TestbedHub:
    """A running hub with ``lines`` after HubGuard's include and the tests' quick settings, and ``before`` ahead of both.

    ``more`` is what TestbedHub takes: ``population``, ``external_proxy``, ``hub_prefix``, ``db_url``, …
    """
    arming = ["c.HubGuard.armed = True"] if armed else []
    return await make(config="\n".join([*before, INCLUDE + QUICK, *arming, *lines, ""]), **more)
