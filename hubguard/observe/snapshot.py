"""One look at the world: every source read once, each with its own age and completeness."""

from __future__ import annotations

from hubguard.clients.clock import Clock
from hubguard.clients.hub_api import HubAPI
from hubguard.errors import HubError, HubGuardError
from hubguard.model import Reading, Server, Snapshot, Source


async def observe(hub: HubAPI, clock: Clock) -> Snapshot:
    """A snapshot of the servers that the hub calls active.

    Never raises for a source that fails: its reading is then incomplete and says why, and its part of the snapshot is
    empty. ``readings[...].at`` is the time before the source was asked, so that an age is never understated.
    """
    at, began_s = clock.now(), clock.monotonic_s()
    servers: tuple[Server, ...] = ()
    complete, detail = True, ""
    try:
        servers = await hub.list_servers()
    except HubGuardError as error:
        complete, detail = False, str(error)
        if not isinstance(error, HubError):
            detail = f"the hub wasn't asked: {error}"
    reading = Reading(Source.HUB_API, at, complete, clock.monotonic_s() - began_s, detail)
    return Snapshot(taken_at=at, servers=servers, readings=(reading,))
