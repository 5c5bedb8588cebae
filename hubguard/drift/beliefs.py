"""One server across all sources: what each says of it, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hubguard import words
from hubguard.drift import words as drift_words
from hubguard.drift.model import DriftReport, World
from hubguard.journal import words as journal_words
from hubguard.journal.model import Entry
from hubguard.model import Key, Source
from hubguard.status import Status


@dataclass(frozen=True, slots=True)
class BeliefShape:
    """What one source says of a server. ``at`` is when it was read, null for never; ``complete`` false means that nothing
    may be concluded from what it doesn't say, and null that this makes no sense there.
    """

    source: str
    says: str
    at: datetime | None
    complete: bool | None


@dataclass(frozen=True, slots=True)
class BeliefsShape:
    """One server, across all sources. ``drifts`` are the differences that are known of it."""

    user: str
    name: str
    beliefs: tuple[BeliefShape, ...]
    drifts: tuple[drift_words.DriftShape, ...]


def beliefs(found: DriftReport, user: str, name: str, entries: Sequence[Entry], status: Status) -> BeliefsShape:
    """What each source says of one server, known to the hub or not. ``entries`` is the journal's on it, newest first."""
    world, key = found.world, (user, name)
    repairs, unasked = drift_words.last_repairs(found.repaired), drift_words.without_asking(found, status)
    rows = [_hub_belief(world, key), _database_belief(world, key), _proxy_belief(world, key)]
    rows += _backend_beliefs(world, key)
    rows.append(_own_belief(found, key, entries))
    about = tuple(
        drift_words.drift(one, repairs, unasked) for one in found.drifts if (one.user, one.server or "") == key
    )
    return BeliefsShape(user, name, tuple(rows), about)


def _belief(world: World, source: Source, says: str) -> BeliefShape:
    reading = world.reading(source)
    if reading is None:
        return BeliefShape(words.SOURCE_WORDS[source], "isn't read, so it says nothing", None, None)
    if not reading.complete and reading.detail:
        says = f"{says} (not all of it could be read: {reading.detail.rstrip('. ')})"
    return BeliefShape(words.SOURCE_WORDS[source], says, reading.at, reading.complete)


def _hub_belief(world: World, key: Key) -> BeliefShape:
    if world.servers is None:
        return _belief(world, Source.HUB_API, "gave no answer")
    server = world.servers.get(key)
    if server is None:
        says = "no server of this name runs"
    elif server.pending is not None:
        says = f"pending: {server.pending}"
    else:
        says = "ready" if server.ready else "neither ready nor pending"
    if server is not None and server.started is not None:
        says += f", started {words.stamp(server.started)}"
    if key in world.unsure:
        says += "; told before this look: it is asked anew only about what seems to differ"
    return _belief(world, Source.HUB_API, says)


def _database_belief(world: World, key: Key) -> BeliefShape:
    if world.targets is None:
        return _belief(world, Source.HUB_DB, "gave no answer")
    target = world.targets.get(key)
    return _belief(world, Source.HUB_DB, "has no address for it" if target is None else f"reached at {target}")


def _proxy_belief(world: World, key: Key) -> BeliefShape:
    first = world.reading(Source.PROXY)
    by_hub = world.reading(Source.HUB_ROUTES)
    source = Source.HUB_ROUTES if by_hub is not None and (first is None or not first.complete) else Source.PROXY
    if world.routes is None:
        return _belief(world, source, "gave no answer")
    leads = [f"{path} leads to {route.target}" for path, route in sorted(world.routes.items()) if route.key == key]
    return _belief(world, source, "; ".join(leads) or "no route for it")


def _backend_beliefs(world: World, key: Key) -> list[BeliefShape]:
    backends = [one for one in world.backends or () if one.key == key]
    if world.backends is None:
        return [_belief(world, Source.BACKEND, "gave no answer")]
    if not backends:
        says = (
            "nothing runs for it"
            if world.whole
            else "nothing is known of it: only servers that the hub knows are asked"
        )
        return [_belief(world, Source.BACKEND, says)]
    rows = []
    for one in backends:
        alive = {True: "alive", False: "gone", None: "can't be told"}[one.alive]
        # Some details begin with its name, which stands before them already.
        more = [one.detail.removeprefix(f"{one.name} "), f"started {words.stamp(one.started)}" if one.started else ""]
        if one.alive is not False:
            more.append(f"this hub's: {one.proof}" if one.proof else "not proved to be this hub's")
        row = _belief(world, Source.BACKEND, "; ".join([f"{one.name}: {alive}", *filter(None, more)]))
        rows.append(BeliefShape(f"Backend ({one.kind})", row.says, row.at, row.complete))
    return rows


def _own_belief(found: DriftReport, key: Key, entries: Sequence[Entry]) -> BeliefShape:
    world, says, at = found.world, [], None
    if any((user, name) == key for user, name, _ in world.ghosts):
        says.append("a stop that the hub took didn't end it")
    if key in world.outlived:
        told_at, detail = world.outlived[key]
        says.append(
            f"the hub's spawner said at {words.stamp(told_at)} that its backend lived on after a stop: {detail}"
        )
    if key in found.used_at:
        says.append(f"last real use {words.stamp(found.used_at[key])}")
    if entries:
        at = entries[0].at
        says.append(f"last in the journal: {journal_words.entry_sentence(entries[0])}")
    return BeliefShape("HubGuard's own record", "; ".join(says) or "nothing was done about it", at, None)


def beliefs_text(told: Mapping[str, Any]) -> str:
    """What each source says of one server, in the form in which the API gives it, as lines for a terminal."""
    lines = [words.kept_label(told["user"], told["name"])]
    width = max(len(row["source"]) for row in told["beliefs"])
    for row in told["beliefs"]:
        whole = ", not complete" if row["complete"] is False else ""
        lines.append(f"  {row['source']:<{width}}  {row['says']}" + (f"  [{row['at']}{whole}]" if row["at"] else ""))
    lines += [drift_words.drift_text(one) for one in told["drifts"]]
    return "\n".join(lines)
