"""What a look can't show, and why, in sentences for an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hubguard.drift.decide.compare import has_subdomains, user_prefix
from hubguard.drift.decide.evidence import SOURCES
from hubguard.drift.model import World
from hubguard.model import Reading, Source


def narrowed(world: World) -> tuple[str, ...]:
    """What can't be told by this look, and why: one sentence each, for an operator; () where all can."""
    if (why := _lack(world, (Source.HUB_API,), world.servers is not None)) is not None:
        return (f"Nothing can be told of servers and routes: {why}.", *_of_database(world))
    return (*_of_routes(world), *_of_backends(world), *_of_database(world))


def _of_routes(world: World) -> Iterable[str]:
    why = _lack(world, (Source.PROXY, Source.HUB_ROUTES), world.routes is not None)
    if why is not None:
        yield f"Routes that are missing, stale or wrong can't be told: {why}."
        return
    proxy = world.reading(Source.PROXY)
    if proxy is None or not proxy.complete:
        yield (
            "Routes are judged by what the hub tells of the proxy's table, which leaves out routes that aren't the hub's"
            " and, with a proxy such as Traefik, is the hub's own copy."
        )
    if (why := _lack(world, (Source.HUB_DB,), world.targets is not None)) is not None:
        yield f"Whether routes lead to the right place can't be told: {why}."
    if world.prefixes is None:
        yield "Missing routes of services can't be told: the hub doesn't say which services have one."
    if has_subdomains(world.routes or {}, user_prefix(world.base_url)):
        yield "Missing routes of the hub and its services can't be told: this hub gives users subdomains."


def _of_backends(world: World) -> Iterable[str]:
    if (why := _lack(world, (Source.BACKEND,), world.backends is not None)) is not None:
        yield f"Servers that are dead, and backends that outlived theirs, can't be told: {why}."
        return
    backends = world.backends or ()
    if not world.whole:
        yield (
            "Backends that nobody expects can't be told: only those of servers that the hub calls ready are looked at, and"
            " what its spawner reports after a stop."
        )
    if count := sum(one.alive is None for one in backends):
        yield f"Whether they live can't be told of {_count(count, 'backend')}: their evidence is unclear."
    if count := sum(bool(one.alive) and not one.proof and one.kind != "http" for one in backends):
        yield f"{_count(count, 'live backend')} can't be proved to be this hub's, and HubGuard never ends such."


def _of_database(world: World) -> Iterable[str]:
    if (why := _lack(world, (Source.HUB_DB,), world.orm is not None)) is not None:
        yield f"Rows of the hub's database that lead nowhere can't be told: {why}."


def _lack(world: World, sources: Sequence[Source], told: bool) -> str | None:
    """Why none of ``sources`` can be used, one clause; None where one can."""
    readings: list[Reading] = [one for one in map(world.reading, sources) if one is not None]
    if told and any(one.complete for one in readings):
        return None
    wrong = [f"{SOURCES[one.source]}: {one.detail.rstrip('.') or 'incomplete'}" for one in readings if not one.complete]
    if wrong:
        return "; ".join(wrong)
    name = SOURCES[sources[0]]
    verb = "tell" if sources[0] is Source.BACKEND else "tells"
    return f"{name} {verb} nothing of that" if readings else f"nothing reads {name}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
