"""What commands ask of the guard that runs: ``hubguard explain``, and ``cull --once``, which does without one, too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from hubguard.act.lease import HUB
from hubguard.app import Place, make_budget, make_guard, place_from, sources
from hubguard.clients.clock import SystemClock
from hubguard.clients.hub_api import HTTPHubAPI
from hubguard.config import Settings
from hubguard.errors import ConfigError, HubGuardError
from hubguard.journal.store import open_journal
from hubguard.model import NOT_TRIED, Lease
from hubguard.web import present, shapes

ANSWER_LIMIT_S = 3600.0
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
    lease = await asyncio.to_thread(_lease, settings.guard.db_url)
    if lease is not None and lease.holder and lease.expires_at > SystemClock().now():
        return await _through_the_guard(lease, place, "POST", "api/v1/cycles", wish)
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
    told: dict[str, Any] = present.as_json(shapes.cycle(report))
    return told


async def explain(settings: Settings, environ: Mapping[str, str], *, user: str, server: str) -> dict[str, Any]:
    """Why that server is stopped or not, by the guard that runs, as its API tells it; ``server`` "" is the default one.

    Raises HubGuardError where no guard runs, or the server doesn't as of its last look.
    """
    place = place_from(environ)
    lease = await asyncio.to_thread(_lease, settings.guard.db_url)
    if lease is None or not lease.holder or lease.expires_at <= SystemClock().now():
        raise HubGuardError(
            "No guard runs for this hub, and it is the guard that knows. `hubguard cull --once --dry-run` says what would be"
            " stopped"
        )
    path = f"api/v1/servers/{quote(user, safe='')}/{quote(server, safe='')}"
    return await _through_the_guard(lease, place, "GET", path)


def exit_code(report: Mapping[str, Any], *, dry_run: bool) -> int:
    """0: all that was due is done (or a dry run told it); 1: something failed, or wasn't tried; 3: held, or braked."""
    if not all(source["complete"] for source in report["sources"]):
        return 1
    if report["skipped_why"] and not dry_run:
        return 3
    return 1 if any(map(_came_to_nothing, report["actions"])) else 0


def _came_to_nothing(action: Mapping[str, Any]) -> bool:
    if action["outcome"] == "skipped":
        return str(action["detail"]).startswith(NOT_TRIED)
    return action["outcome"] in {"failed", "unverified"}


def _lease(url: str) -> Lease | None:
    journal = open_journal(url)
    try:
        return journal.lease(HUB)
    finally:
        journal.close()


async def _through_the_guard(
    lease: Lease, place: Place, method: str, path: str, wish: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    guard = f"the guard that holds the lease ({lease.holder})"
    if not lease.address:
        raise HubGuardError(f"Another command is at work: {guard} has no address to ask. Try again when it is done.")
    # Encoded by us: a name may hold what looks like a part of the address.
    url = URL(lease.address + path, encoded=True)
    body = None if wish is None else {key: value for key, value in wish.items() if value is not None}
    timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S, connect=10)
    headers = {"Authorization": f"token {place.token}"}
    failed = ""
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.request(method, url, json=body) as response,
        ):
            answer = await response.json(content_type=None)
            if response.status == 200 and isinstance(answer, dict):
                return answer
            said = answer.get("message", "") if isinstance(answer, dict) else ""
            if response.status == 404 and said:
                raise HubGuardError(said)
            failed = f"answered {response.status} at {url}: {said}"
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
        failed = (
            f"doesn't answer at {url} ({type(error).__name__})."
            f" If it is gone, its lease ends at {lease.expires_at:%H:%M:%S} UTC"
        )
    # Raised out here: aiohttp's errors carry the request, and with it the token.
    raise HubGuardError(f"Nothing was done: {guard} {failed}")
