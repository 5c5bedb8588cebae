"""``hubguard explain``, and ``cull --once``: through the guard that runs, where one does; culling does without one, too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hubguard import words
from hubguard.app import make_budget, make_guard, sources
from hubguard.config import Settings
from hubguard.cull import shapes as cull_shapes
from hubguard.errors import ConfigError
from hubguard.hub.client import HTTPHubAPI
from hubguard.model import Cause
from hubguard.place import place_from
from hubguard.web.client import RunningGuard, running_lease

CYCLE_S = 3600.0
"""A cycle with a thousand slow stops takes long; after an hour without an answer something else is wrong."""


async def cull(
    settings: Settings, environ: Mapping[str, str], *, actor: str, policy_known: bool, **wish: Any
) -> dict[str, Any]:
    """The report of one cycle, as the API gives it. ``wish`` holds the keywords of ``Guard.cycle``.

    A guard that runs already does it, at its own pace and with its own rights check on our token; only when there is none
    is its lease taken for this one cycle. Without a guard there is nobody who knows the hub's policy: ``policy_known`` says
    that the caller has given one, and without it nothing is done. Raises HubGuardError.
    """
    place = place_from(environ)
    lease = await asyncio.to_thread(running_lease, settings.guard.db_url)
    if lease is not None:
        given = {key: value for key, value in wish.items() if value is not None}
        running = RunningGuard(lease, place.token)
        answer: dict[str, Any] = await running.ask("POST", "api/v1/cycles", given, within_s=CYCLE_S)
        return answer
    if not policy_known:
        raise ConfigError(
            "--config",
            "is needed, or --timeout: no guard runs, and this command alone doesn't know after how long this hub's servers"
            " are to be stopped. jupyterhub_config.py will do",
        )
    budget = make_budget(settings)
    async with (
        HTTPHubAPI(place.api_url, place.token, budget, request_timeout_s=settings.budget.request_timeout_s) as hub,
        sources(settings, place, budget) as others,
    ):
        guard = make_guard(settings, place, hub, budget, database=others.database, proxy=others.proxy)
        report = await guard.once(actor, **wish)
    told: dict[str, Any] = words.as_json(cull_shapes.cycle(report))
    return told


def exit_code(report: Mapping[str, Any], *, dry_run: bool) -> int:
    """0: all that was due is done (or a dry run told it); 1: something failed, or wasn't tried; 3: held, or braked."""
    if not all(source["complete"] for source in report["sources"]):
        return 1
    if report["skipped_why"] and not dry_run:
        return 3
    return 1 if any(map(_came_to_nothing, report["actions"])) else 0


def _came_to_nothing(action: Mapping[str, Any]) -> bool:
    if action["outcome"] == "skipped":
        return bool(action["cause"] == Cause.NOT_TRIED.value)
    return action["outcome"] in {"failed", "unverified"}
