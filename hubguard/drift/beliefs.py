"""What each source says of one server, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hubguard import words
from hubguard.drift import shapes as drift_shapes
from hubguard.drift import words as drift_words
from hubguard.drift.model import DriftReport, World
from hubguard.hub.names import resolved
from hubguard.journal import words as journal_words
from hubguard.journal.model import Entry
from hubguard.model import Key, Source
from hubguard.status import Status


@dataclass(frozen=True, slots=True)
class BeliefShape:
    """What one source says of a server. ``at`` is when it was read, null for never. If ``complete`` is false, what the source
    leaves out means nothing; it is null if that doesn't apply.
    """

    source: str
    says: str
    at: datetime | None
    complete: bool | None


@dataclass(frozen=True, slots=True)
class BeliefsShape:
    """One server across all sources. ``drifts`` are its known differences."""

    user: str
    name: str
    beliefs: tuple[BeliefShape, ...]
    drifts: tuple[drift_shapes.DriftShape, ...]


def compare_beliefs(
    report: DriftReport, user: str, name: str, entries: Sequence[Entry], status: Status
) -> BeliefsShape:
    """What each source says of one server, known to the hub or not. ``entries`` are the journal's on it, newest first."""
    world = report.world
    user = resolved(user, _known(world)) or user
    key = (user, name)
    repairs, policy = drift_shapes.latest_repairs(report.repaired), drift_words.policy_sentences(report, status)
    rows = [_hub_belief(world, key), _database_belief(world, key), _proxy_belief(world, key)]
    rows += _backend_beliefs(world, key)
    rows.append(_own_belief(report, key, entries))
    about = tuple(
        drift_shapes.describe_drift(drift, repairs, policy)
        for drift in report.drifts
        if (drift.user, drift.server or "") == key
    )
    return BeliefsShape(user, name, tuple(rows), about)


def _known(world: World) -> set[str]:
    """Every user with a server in any source."""
    keys = {*(world.servers or ()), *(world.targets or ())}
    keys |= {route.key for route in (world.routes or {}).values() if route.key is not None}
    keys |= {backend.key for backend in world.backends or () if backend.key is not None}
    return {user for user, _ in keys}


def _belief(world: World, source: Source, says: str) -> BeliefShape:
    reading = world.reading(source)
    if reading is None:
        return BeliefShape(words.SOURCE_WORDS[source], "isn't read", None, None)
    if not reading.complete and reading.detail:
        says = f"{says} (incomplete: {reading.detail.rstrip('. ')})"
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
        says += "; read before this look: the hub is asked again only about what seems to differ"
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
    backends = [backend for backend in world.backends or () if backend.key == key]
    if world.backends is None:
        return [_belief(world, Source.BACKEND, "gave no answer")]
    if not backends:
        says = (
            "nothing runs for it"
            if world.whole
            else "unknown: only backends of servers that the hub knows are looked at"
        )
        return [_belief(world, Source.BACKEND, says)]
    rows = []
    for backend in backends:
        alive = {True: "alive", False: "gone", None: "state unknown"}[backend.alive]
        # Some details begin with its name, which stands before them already.
        more = [
            backend.detail.removeprefix(f"{backend.name} "),
            f"started {words.stamp(backend.started)}" if backend.started else "",
        ]
        if backend.alive is not False:
            more.append(
                f"belongs to this hub: {backend.proof}" if backend.proof else "not confirmed to belong to this hub"
            )
        row = _belief(world, Source.BACKEND, "; ".join([f"{backend.name}: {alive}", *filter(None, more)]))
        rows.append(BeliefShape(f"Backend ({backend.kind})", row.says, row.at, row.complete))
    return rows


def _own_belief(report: DriftReport, key: Key, entries: Sequence[Entry]) -> BeliefShape:
    world, says, at = report.world, [], None
    if any((user, name) == key for user, name, _ in world.ghosts):
        says.append("a stop that the hub accepted didn't end it")
    if key in world.outlived:
        reported_at, detail = world.outlived[key]
        says.append(
            f"the hub's spawner reported at {words.stamp(reported_at)} that its backend outlived a stop: {detail}"
        )
    if key in report.used_at:
        says.append(f"last real use {words.stamp(report.used_at[key])}")
    if entries:
        at = entries[0].at
        says.append(f"last in the journal: {journal_words.entry_sentence(entries[0])}")
    return BeliefShape("HubGuard's own record", "; ".join(says) or "HubGuard did nothing with it", at, None)


def beliefs_text(across: Mapping[str, Any]) -> str:
    """What each source says of one server, as the API returns it, as lines for a terminal."""
    lines = [words.kept_label(across["user"], across["name"])]
    width = max(len(row["source"]) for row in across["beliefs"])
    for row in across["beliefs"]:
        whole = ", not complete" if row["complete"] is False else ""
        lines.append(f"  {row['source']:<{width}}  {row['says']}" + (f"  [{row['at']}{whole}]" if row["at"] else ""))
    lines += [drift_words.drift_text(drift) for drift in across["drifts"]]
    return "\n".join(lines)
