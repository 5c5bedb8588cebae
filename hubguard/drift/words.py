"""Drift in words, and its shapes filled: differences, repairs, the report."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any
from urllib.parse import unquote

from hubguard import words
from hubguard.backends.model import Backend
from hubguard.drift.decide.repair import remedy
from hubguard.drift.model import (
    REMEDIES,
    ROUTE_KINDS,
    Drift,
    DriftKind,
    DriftReport,
    Repair,
    World,
)
from hubguard.journal.model import ArmedBy
from hubguard.model import ActionKind, Reading
from hubguard.proxy.model import PREFIX, WatchState
from hubguard.status import Mode, Status

KIND_WORDS: dict[DriftKind, str] = {
    DriftKind.ROUTE_MISSING: "Route missing",
    DriftKind.ROUTE_WRONG_TARGET: "Route leads elsewhere",
    DriftKind.ROUTE_STALE: "Stale route",
    DriftKind.SERVICE_ROUTE_MISSING: "Service's route missing",
    DriftKind.HUB_ROUTE_MISSING: "Hub's route missing",
    DriftKind.SERVER_DEAD: "Dead server",
    DriftKind.SERVER_GHOST: "Ghost",
    DriftKind.SERVER_ORPHAN: "Orphan",
    DriftKind.PENDING_STUCK: "Stuck",
    DriftKind.ORM_DANGLING: "Dangling rows",
    DriftKind.ACTIVITY_FROZEN: "Activity frozen",
}

_REMEDY_WORDS: dict[ActionKind, str] = {
    ActionKind.CHECK_ROUTES: "have the hub check its routes, which repairs all of them at once",
    ActionKind.STOP_SERVER: "have the hub stop it, so that it can be started again",
    ActionKind.START_AND_STOP: "start it, then stop it, so that the hub lets go of it",
    ActionKind.INTERRUPT_SPAWN: "interrupt its start",
}

_NO_REMEDY: dict[DriftKind, str] = {
    DriftKind.ORM_DANGLING: ("Only counted here. Small numbers do no harm. Pruning with the hub stopped removes them."),
    DriftKind.ACTIVITY_FROZEN: (
        "HubGuard can't repair this. Check in the hub's log whether it still reads the proxy's routes"
        " (JupyterHub.last_activity_interval); if it doesn't, restart the hub. Until then, HubGuard stops no idle server."
    ),
    DriftKind.PENDING_STUCK: (
        "HubGuard can only interrupt a start, and this isn't one. The hub's log says what it waits for; restarting the hub"
        " ends the wait."
    ),
    DriftKind.SERVER_ORPHAN: "HubGuard can't confirm that it belongs to this hub. Check it, and end it yourself.",
}

_UNSEEN_ORPHAN = (
    "HubGuard can't see it (HubGuardDrift.backend), so it can't end it. Look where the hub starts its servers, and end it"
    " yourself."
)

WATCH_WORDS: dict[WatchState, tuple[str, str]] = {
    WatchState.OFF: ("standby", "Not watched"),
    WatchState.STARTING: ("starting", "Starting"),
    WatchState.FINE: ("done", "Fine"),
    WatchState.GONE: ("failed", "Gone"),
    WatchState.HANGS: ("failed", "Hangs"),
    WatchState.WIPED: ("failed", "Lost its table"),
    WatchState.DEAF: ("failed", "Public port doesn't answer"),
    WatchState.UNUSABLE: ("failed", "Can't be watched"),
}
"""The shape and the word for each state of the proxy."""


NAMED = 5
"""Maximum backends that a sentence names."""


# -- differences ----------------------------------------------------------------------------------------------------------


def advice_on(drift: Drift) -> str:
    """What can be done about it, in one sentence or two."""
    kind = remedy(drift)
    if kind is None:
        if drift.kind is DriftKind.SERVER_ORPHAN and drift.backend is None:
            return _UNSEEN_ORPHAN
        by_hand = f" Command: `{drift.backend.command}`" if drift.backend is not None and drift.backend.command else ""
        return _NO_REMEDY[drift.kind] + by_hand
    words = remedy_words(kind, drift.backend)
    return f"{words[0].upper()}{words[1:]}."


def remedy_words(kind: ActionKind, backend: Backend | None) -> str:
    """What the repair does, as a clause that begins with a verb."""
    if kind is ActionKind.END_BACKEND:
        name = backend.name if backend is not None else "the backend"
        return f"end {name}; unsaved work in it is lost"
    return _REMEDY_WORDS[kind]


def label(drift: Drift) -> str:
    """The server, route or table that it is about, as people name it."""
    if drift.user is not None:
        return words.kept_label(drift.user, drift.server or "")
    if drift.kind is DriftKind.ORM_DANGLING:
        return f"the hub's database: {drift.subject.replace('_', ' ')}"
    return drift.subject or "the hub"


def repair_words(repair: Repair) -> str:
    """What a repair does, as one clause: ``ann/gpu: interrupt its start``."""
    action = repair.action
    says = remedy_words(action.kind, repair.backend)
    return f"{action.label}: {says}" if action.user else says


# -- the report -----------------------------------------------------------------------------------------------------------


def why_no_look(status: Status) -> str:
    """Why no look has been taken yet, and what that means."""
    return {
        Mode.TROUBLED: "HubGuard isn't working and hasn't looked for drift. The Overview says what is wrong.",
        Mode.STANDBY: "Another guard is in charge of this hub and looks for drift. This one is standing by.",
    }.get(
        status.mode,
        "HubGuard hasn't looked at the sources yet, so drift is unknown. The first look comes soon after the start.",
    )


def down(report: DriftReport) -> tuple[Reading, ...]:
    """The readings of the last look that are missing or incomplete."""
    return tuple(reading for reading in report.world.readings if not reading.complete)


def blind(report: DriftReport) -> bool:
    """Whether the last look read too little of servers and routes to say that they agree."""
    return report.world.servers is None or report.world.routes is None or bool(down(report))


def headline(report: DriftReport) -> str:
    """The state in one sentence."""
    raised = sum(drift.raised_at is not None for drift in report.drifts)
    suspected = len(report.drifts) - raised
    if raised:
        more = f"; {suspected:,} more suspected" if suspected else ""
        return f"{words.count(raised, 'difference')} between what the hub believes and what runs{more}."
    if blind(report):
        return "Unknown: not every source could be read."
    if suspected:
        return f"{words.count(suspected, 'difference')} suspected, none confirmed yet."
    return _healthy(report.world)


def unclear(world: World) -> tuple[Backend, ...]:
    """The backends of which it is unknown whether they still run, in the order of the look."""
    return tuple(backend for backend in world.backends or () if backend.alive is None)


def _healthy(world: World) -> str:
    """What agrees. Routes that aren't the hub's were compared with nothing."""
    table = [route for route in (world.routes or {}).values() if not route.path.startswith(PREFIX)]
    routes, others = len(table), 0
    if world.prefixes is not None:
        shared = {world.hub_path, *map(_path, world.prefixes.values())}
        others = sum(route.user is None and route.path not in shared for route in table)
        routes -= others
    parts = [words.count(len(world.servers or ()), "server"), words.count(routes, "route")]
    doubtful = unclear(world)
    if world.backends is not None and not doubtful:
        parts.append(words.count(len(world.backends), "backend"))
    sentence = f"All agree: {', '.join(parts[:-1])} and {parts[-1]}."
    if doubtful:
        names = ", ".join(backend.name for backend in doubtful[:NAMED])
        more = f" and {len(doubtful) - NAMED:,} more" if len(doubtful) > NAMED else ""
        sentence = (
            f"No difference found, but HubGuard can't tell whether {len(doubtful):,} of"
            f" {words.count(len(world.backends or ()), 'backend')} still {'runs' if len(doubtful) == 1 else 'run'}:"
            f" {names}{more}."
        )
    if others:
        sentence += f" {words.count(others, 'route')} in the proxy {'is' if others == 1 else 'are'} not the hub's."
    return sentence


def _path(url_path: str) -> str:
    return "/" + unquote(url_path).strip("/")


class _Block(Enum):
    """What has to come before HubGuard repairs anything without being asked."""

    LEASE = "this guard is in charge"
    HOLD = "acting is resumed"
    ARMED = "HubGuard is armed"
    PROXY = "the proxy is well again"
    BRAKE = "the brake is released"  # which never keeps routes from being checked


def _blocked_by(report: DriftReport, status: Status) -> _Block | None:
    if not status.holds_lease:
        return _Block.LEASE
    if status.stance.held:
        return _Block.HOLD
    if not status.armed or status.handover.armed_by is ArmedBy.CULLER:
        return _Block.ARMED
    if report.watch.state in {WatchState.GONE, WatchState.HANGS, WatchState.WIPED}:
        return _Block.PROXY
    return _Block.BRAKE if status.brake is not None else None


def policy_sentences(report: DriftReport, status: Status) -> dict[DriftKind, str]:
    """By kind, whether HubGuard repairs it automatically and, if not now, why: a sentence each."""
    block = _blocked_by(report, status)
    sentences = {}
    for kind in REMEDIES:
        if kind not in report.by_itself:
            sentences[kind] = "Only when you ask."
        elif block is not None and not (block is _Block.BRAKE and kind in ROUTE_KINDS):
            sentences[kind] = f"Automatically, once {block.value}."
        elif kind in report.doubted:
            sentences[kind] = "Only when you ask: with this many at once, the source is probably wrong."
        else:
            sentences[kind] = "Automatically, soon."
    return sentences


def policy_words(report: DriftReport, status: Status) -> str:
    """What HubGuard repairs automatically and, if not now, why; one sentence or two."""
    if not report.by_itself:
        return "HubGuard repairs nothing automatically (HubGuardDrift.repair is empty)."
    routes = [kind for kind in report.by_itself if kind in ROUTE_KINDS]
    others = [kind for kind in report.by_itself if kind not in ROUTE_KINDS]
    kinds = [KIND_WORDS[kind].lower() for kind in (*routes, *others)]
    if len(routes) == len(ROUTE_KINDS):
        kinds[: len(routes)] = ["routes"]
    names, block = ", ".join(kinds), _blocked_by(report, status)
    if block is not None and not (block is _Block.BRAKE and routes):
        return f"Once {block.value}, HubGuard repairs {names} automatically, and the rest when you ask."
    only = " (only routes while braked)" if block is _Block.BRAKE and others else ""
    return f"HubGuard repairs {names} automatically{only}, and the rest when you ask."


# -- for a terminal -------------------------------------------------------------------------------------------------------


def drift_text(drift: Mapping[str, Any]) -> str:
    """A difference, as the API returns it, as lines for a terminal."""
    about = words.kept_label(drift["user"], drift["server"] or "") if drift["user"] is not None else drift["subject"]
    kind = DriftKind(drift["kind"])
    seen = f"seen in {drift['sightings']} of {drift['looks']} looks since {drift['since']}"
    latest = drift["repaired"]
    lines = [
        f"{drift['id']}  {kind.value}  {about or 'the hub'}  ({drift['state']}, {seen})",
        f"  expected: {drift['expected']}",
        f"  observed: {drift['observed']}",
        f"  {'repair' if drift['remedy'] else 'to do'}: {drift['advice']} {drift['by_itself']}".rstrip(),
    ]
    if latest is not None:
        outcome = latest["outcome"] or "under way"
        detail = f": {latest['detail']}" if latest["detail"] else ""
        lines.append(f"  last repair ({latest['actor']}): {outcome}{detail}")
    return "\n".join(lines)


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan, as the API returns it, as lines for a terminal."""
    lines = [f"{words.count(plan['count'], 'repair')}:"]
    for repair in plan["repairs"]:
        mends = f" ({words.count(len(repair['drifts']), 'difference')})" if len(repair["drifts"]) > 1 else ""
        lines.append(f"  {repair['reason']}: {repair['says']}{mends}")
    return "\n".join(lines)
