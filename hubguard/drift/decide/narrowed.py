"""What a look can't show, and why, in sentences for an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hubguard.drift.decide.compare import has_subdomains, user_prefix
from hubguard.drift.model import World
from hubguard.model import Reading, Source
from hubguard.words import SOURCE_WORDS, count

NAMED = 5
"""Maximum backends that a sentence names."""


def narrowed(world: World) -> tuple[str, ...]:
    """What is unknown after this look, and why: one sentence each, for an operator; () if nothing is."""
    if (why := _lack(world, (Source.HUB_API,), world.servers is not None)) is not None:
        return (f"Drift of servers and routes is unknown ({why}).", *_of_database(world))
    return (*_of_routes(world), *_of_backends(world), *_of_database(world))


def _of_routes(world: World) -> Iterable[str]:
    why = _lack(world, (Source.PROXY, Source.HUB_ROUTES), world.routes is not None)
    if why is not None:
        yield f"Missing, stale or wrong routes are unknown ({why})."
        return
    proxy = world.reading(Source.PROXY)
    if proxy is None or not proxy.complete:
        yield (
            "Routes are read through the hub, which leaves out routes that aren't its own. With a proxy such as Traefik, it"
            " returns its own copy of the table."
        )
    if (why := _lack(world, (Source.HUB_DB,), world.targets is not None)) is not None:
        yield f"Whether routes lead to the right place is unknown ({why})."
    if world.prefixes is None:
        yield "Missing routes of services are unknown: the hub doesn't list the services that need one."
    if has_subdomains(world.routes or {}, user_prefix(world.base_url)):
        yield "Missing routes of the hub and its services are unknown: this hub gives users subdomains."


def _of_backends(world: World) -> Iterable[str]:
    if (why := _lack(world, (Source.BACKEND,), world.backends is not None)) is not None:
        yield f"Dead servers, and backends that outlived theirs, are unknown ({why})."
        return
    backends = world.backends or ()
    if not world.whole:
        yield (
            "Leftover backends can't be seen: HubGuard looks only at those of servers that the hub calls ready, and at what"
            " its spawner reports after a stop."
        )
    if unclear := [backend.name for backend in backends if backend.alive is None]:
        yield f"{count(len(unclear), 'backend')}: can't tell whether {_they(unclear)} still {_run(unclear)}{_names(unclear)}."
    strange = [backend.name for backend in backends if backend.alive and not backend.proof and backend.kind != "http"]
    if strange:
        yield (
            f"HubGuard won't end {count(len(strange), 'backend')}: it can't confirm that {_they(strange)}"
            f" belong{'s' if len(strange) == 1 else ''} to this hub{_names(strange)}."
        )


def _of_database(world: World) -> Iterable[str]:
    if (why := _lack(world, (Source.HUB_DB,), world.orm is not None)) is not None:
        yield f"Dangling rows in the hub's database are unknown ({why})."


def _they(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "they"


def _run(names: Sequence[str]) -> str:
    return "runs" if len(names) == 1 else "run"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f" ({', '.join(sorted(names)[:NAMED])}{more})"


def _lack(world: World, sources: Sequence[Source], usable: bool) -> str | None:
    """Why none of ``sources`` is usable, one clause; None if one is."""
    readings: list[Reading] = [reading for reading in map(world.reading, sources) if reading is not None]
    if usable and any(reading.complete for reading in readings):
        return None
    wrong = [
        f"{SOURCE_WORDS[reading.source]}: {reading.detail.rstrip('.') or 'incomplete'}"
        for reading in readings
        if not reading.complete
    ]
    if wrong:
        return "; ".join(wrong)
    return f"{SOURCE_WORDS[sources[0]]}: {'no answer to that' if readings else 'not read'}"
