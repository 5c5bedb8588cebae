"""Pruning in words and plain values, for pages, API and command: who is stale or kept and why, and what came of plans."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from hubguard import words
from hubguard.hub.nouns import Account, AccountServer, ORMCounts
from hubguard.model import OutcomeKind
from hubguard.prune.decide.plan import deletion_dict, to_dict
from hubguard.prune.model import (
    Caution,
    Deletion,
    Gain,
    PruneItem,
    PrunePlan,
    PruneReason,
    PruneRun,
    PruneState,
    PruneVerdict,
    StaleCriteria,
    StorageFate,
)

REASON_WORDS: Mapping[PruneReason, str] = {
    PruneReason.INACTIVE: "Inactive",
    PruneReason.NEVER_ACTIVE: "Never active",
    PruneReason.ACTIVE: "Active",
    PruneReason.NOT_ASKED_FOR: "Not asked for",
    PruneReason.ADMIN: "Admin",
    PruneReason.IN_CONFIG: "Named in the hub's config",
    PruneReason.PROTECTED_GROUP: "In a protected group",
    PruneReason.PROTECTED_ROLE: "Has a protected role",
    PruneReason.PROTECTED_NAME: "Protected name",
    PruneReason.EXEMPTION: "Exempt",
    PruneReason.SERVER_ACTIVE: "Server runs",
    PruneReason.TOKEN_USED: "Token used lately",
    PruneReason.CALLER: "Asks for it",
    PruneReason.NO_TIMES: "No times known",
    PruneReason.CANT_TELL: "Can't tell",
}

STATE_WORDS: Mapping[PruneState, str] = {
    PruneState.PLANNED: "Planned",
    PruneState.RUNNING: "Running",
    PruneState.PAUSED: "Paused",
    PruneState.CANCELLED: "Cancelled",
    PruneState.DONE: "Done",
}

FATE_WORDS: Mapping[StorageFate, str] = {
    StorageFate.DELETED: "Deleted with the user",
    StorageFate.MAY_BE_DELETED: "May be deleted with the user",
    StorageFate.KEPT: "Stays behind",
    StorageFate.UNKNOWN: "Unknown",
}

ITEM_WORDS: Mapping[str, str] = {
    "waiting": "Waiting",
    OutcomeKind.DONE.value: "Deleted",
    OutcomeKind.SKIPPED.value: "Kept",
    OutcomeKind.FAILED.value: "Failed",
    OutcomeKind.UNVERIFIED.value: "Not verified",
}
"""The words for what came of one user of a plan, by ``PruneItem.state``."""

_KEPT: Mapping[PruneReason, str] = {
    PruneReason.ADMIN: "they are an admin",
    PruneReason.IN_CONFIG: "the hub's config names them, so they would come back at its next start",
    PruneReason.PROTECTED_GROUP: "a group of theirs is protected",
    PruneReason.PROTECTED_ROLE: "a role of theirs is protected",
    PruneReason.PROTECTED_NAME: "their name is protected",
    PruneReason.EXEMPTION: "somebody has asked to keep them or a server of theirs",
    PruneReason.SERVER_ACTIVE: "a server of theirs runs or is pending",
    PruneReason.TOKEN_USED: "a token of theirs was used lately",
    PruneReason.CALLER: "they are the one who asks",
    PruneReason.NO_TIMES: "neither their activity nor their creation is known",
    PruneReason.CANT_TELL: "their groups or roles aren't told, and it depends on them",
}


# -- words ----------------------------------------------------------------------------------------------------------------


def reason_words(reason: PruneReason) -> str:
    """A word or two for why somebody is stale or kept."""
    return REASON_WORDS[reason]


def state_words(state: PruneState) -> str:
    """The word for how a plan stands."""
    return STATE_WORDS[state]


def item_words(item: PruneItem) -> str:
    """The word for what came of one user of a plan."""
    return ITEM_WORDS[item.state]


def fate_words(fate: StorageFate) -> str:
    """A few words for what becomes of storage."""
    return FATE_WORDS[fate]


def verdict_sentence(verdict: PruneVerdict, now: datetime) -> str:
    """Why that user is stale, or all that keeps them, as one sentence."""
    if verdict.stale:
        return f"Stale: {_idle(verdict, now)}; the limit is {_limit(verdict)}{_stamped(verdict, now)}."
    return f"Kept: {'; '.join(_clause(reason, verdict, now) for reason in verdict.reasons)}."


def _clause(reason: PruneReason, verdict: PruneVerdict, now: datetime) -> str:
    if reason is PruneReason.TOKEN_USED and verdict.account.token_used_at is not None:
        return f"a token of theirs was used {words.age(verdict.account.token_used_at, now)}"
    if reason is PruneReason.ACTIVE:
        when = "" if verdict.due_at is None else f", so stale {words.until(verdict.due_at, now)} at the earliest"
        return f"{_idle(verdict, now)}{when}{_stamped(verdict, now)}"
    if reason is PruneReason.NOT_ASKED_FOR:
        if verdict.idle_since is not None and verdict.due_at is None:
            kind = "never" if _never_active(verdict) else "ever"
            return f"those who were {kind} active aren't asked for"
        return "they aren't among the groups, roles or names that are asked for"
    return _KEPT[reason]


def _never_active(verdict: PruneVerdict) -> bool:
    if verdict.stale:
        return verdict.reason is PruneReason.NEVER_ACTIVE
    return verdict.account.last_activity is None and verdict.idle_since == verdict.account.created


def _idle(verdict: PruneVerdict, now: datetime) -> str:
    since = verdict.idle_since
    if since is None:
        return _KEPT[PruneReason.NO_TIMES]
    if _never_active(verdict):
        return f"made {words.age(since, now)}, and never active since"
    return f"last active {words.age(since, now)}"


def _limit(verdict: PruneVerdict) -> str:
    if verdict.due_at is None or verdict.idle_since is None:
        return "reached"
    return words.limit((verdict.due_at - verdict.idle_since).total_seconds())


def _stamped(verdict: PruneVerdict, now: datetime) -> str:
    """That the hub's own time isn't the one that counts, where it isn't."""
    hubs, since = verdict.account.last_activity, verdict.idle_since
    if hubs is None or since is None or hubs <= since:
        return ""
    return f" (the hub has {words.age(hubs, now)}, which is when HubGuard stopped a server of theirs)"


def goes_with(what: Deletion | Account) -> str:
    """What goes with a user: ``2 servers, 3 tokens, 1 share, 2 groups``; empty where that is nothing, or isn't told."""
    servers = what.servers if isinstance(what, Deletion) or what.servers_whole else None
    numbers = (
        (None if servers is None else len(servers), "server"),
        (what.tokens, "token"),
        (what.shares, "share"),
        (None if what.groups is None else len(what.groups), "group"),
        (None if what.roles is None else len(what.roles), "role"),
    )
    return ", ".join(words.count(number, noun) for number, noun in numbers if number)


def plan_sentence(plan: PrunePlan) -> str:
    """Whom a plan deletes: ``Deletes 4,900 of 5,000 users: 4,800 inactive, 100 never active.``"""
    by = Counter(deletion.reason for deletion in plan.deletions)
    why = ", ".join(f"{number:,} {reason_words(reason).lower()}" for reason, number in by.most_common())
    among = f"{len(plan.deletions):,} of {words.count(plan.gain.users_before, 'user')}"
    rest = f" {words.count(plan.left_out, 'more stale user')} left for another plan." if plan.left_out else ""
    return f"Deletes {among}{': ' if why else ''}{why}.{rest}"


def gain_sentence(plan: PrunePlan) -> str:
    """What is gained, as far as it is known."""
    gain = plan.gain
    parts = [f"{words.count(gain.users_after, 'user')} {'is' if gain.users_after == 1 else 'are'} left"]
    if gain.pages_after != gain.pages_before:
        parts.append(f"{words.count(gain.pages_after, 'page')} of the hub's list instead of {gain.pages_before:,}")
    if gain.rows is not None:
        # Neither codes nor OAuth clients are counted, nor what others have of a user's.
        parts.append(f"at least {words.count(sum(gain.rows.values()), 'row')} less in the hub's database")
    if gain.startup_s is not None:
        parts.append(f"the hub's last start took {gain.startup_s:.1f} s")
    return f"{'; '.join(parts)}."


def run_sentence(run: PruneRun) -> str:
    """How a plan stands, and why."""
    why = f": {run.why.rstrip('. ')}" if run.why.strip(". ") else ""
    if run.state is PruneState.PLANNED:
        return f"Planned{why}; it can be begun until {words.stamp(run.expires_at)}."
    parts = [f"{run.done:,} of {words.count(run.count, 'user')} deleted"]
    parts += [
        f"{number:,} {word}"
        for number, word in ((run.skipped, "kept"), (run.failed, "failed"), (run.unverified, "not verified"))
        if number
    ]
    if run.state is PruneState.RUNNING and run.left_s is not None:
        parts.append(f"done in about {words.duration(run.left_s)}")
    if run.restored:
        parts.append(f"{run.restored:,} brought back")
    return f"{state_words(run.state)}{why}; {', '.join(parts)}."


# -- values ---------------------------------------------------------------------------------------------------------------


def plan_shape(plan: PrunePlan) -> dict[str, Any]:
    """A plan as the API gives it, with all its deletions: the same that a plan's file holds."""
    return to_dict(plan)


def verdict_shape(verdict: PruneVerdict, now: datetime) -> dict[str, Any]:
    """One user, judged, as the API gives them. What isn't told is null; ``idle_s`` is never negative."""
    account = verdict.account
    idle_s = None if verdict.idle_since is None else max(0.0, round((now - verdict.idle_since).total_seconds(), 3))
    return {
        "user": account.name,
        "id": account.id,
        "admin": account.admin,
        "stale": verdict.stale,
        "reason": verdict.reason.value,
        "reasons": [reason.value for reason in verdict.reasons],
        "sentence": verdict_sentence(verdict, now),
        "created": _iso(account.created),
        "last_activity": _iso(account.last_activity),
        "idle_since": _iso(verdict.idle_since),
        "idle_s": idle_s,
        "due_at": _iso(verdict.due_at),
        "groups": _listed(account.groups),
        "roles": _listed(account.roles),
        "servers": [
            {
                "name": server.name,
                "active": server.active,
                "pending": server.pending,
                "last_activity": _iso(server.last_activity),
                "keeps_state": server.keeps_state,
            }
            for server in account.servers
        ],
        "servers_whole": account.servers_whole,
        "tokens": account.tokens,
        "token_used_at": _iso(account.token_used_at),
        "shares": account.shares,
    }


def item_shape(item: PruneItem) -> dict[str, Any]:
    """One deletion of a plan and what came of it, as the API gives them."""
    return {
        "index": item.index,
        **deletion_dict(item.deletion),
        "state": item.state,
        "detail": "" if item.outcome is None else item.outcome.detail,
        "at": _iso(item.at),
    }


def run_shape(run: PruneRun) -> dict[str, Any]:
    """How a plan stands, as the API gives it."""
    return {
        "digest": run.digest,
        "state": run.state.value,
        "sentence": run_sentence(run),
        "why": run.why,
        "made_at": _iso(run.made_at),
        "expires_at": _iso(run.expires_at),
        "actor": run.actor,
        "asked_why": run.asked_why,
        "acknowledged": list(run.acknowledged),
        "scheduled": run.scheduled,
        "began_at": _iso(run.began_at),
        "ended_at": _iso(run.ended_at),
        "count": run.count,
        "settled": run.settled,
        "done": run.done,
        "skipped": run.skipped,
        "failed": run.failed,
        "unverified": run.unverified,
        "per_s": run.per_s,
        "left_s": run.left_s,
        "undo_file": run.undo_file,
        "undo_sha256": run.undo_sha256,
        "restored": run.restored,
        "restored_at": _iso(run.restored_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(timezone.utc).isoformat()


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


# -- for a spreadsheet ----------------------------------------------------------------------------------------------------

CSV_HEADER = (
    *("user", "reason", "idle_since", "created", "last_activity", "id"),
    *("servers", "groups", "roles", "tokens", "shares", "state", "detail", "at"),
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet takes a text that begins so for a formula, which may send away what stands beside it."""


def plan_csv(plan: PrunePlan, items: Sequence[PruneItem] = ()) -> str:
    """The plan as CSV with a header, one line a user, in its order; ``items`` have what came of them, () before it is begun.

    A text that a spreadsheet would take for a formula has an apostrophe before it. Several names in one field are parted by
    "; ", and the default server is "(default)". What isn't told is empty.
    """
    rows = items or [PruneItem(index, deletion) for index, deletion in enumerate(plan.deletions)]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(CSV_HEADER)
    for item in rows:
        one = item.deletion
        servers = None if one.servers is None else [name or "(default)" for name in one.servers]
        writer.writerow(
            [
                *(_cell(one.user), one.reason.value, _iso(one.idle_since), _iso(one.created), _iso(one.last_activity)),
                *(one.id, _names(servers), _names(one.groups), _names(one.roles), one.tokens, one.shares),
                *(item.state, "" if item.outcome is None else _cell(item.outcome.detail), _iso(item.at)),
            ]
        )
    return out.getvalue()


def _names(names: Sequence[str] | None) -> str:
    return "" if names is None else _cell("; ".join(names))


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


@dataclass(frozen=True, slots=True)
class UserShape:
    """A user, and whether they are stale. ``reasons`` has the one for which they are, or all that keep them.

    ``reason`` is the first of these, ``sentence`` says it in words. ``idle_since`` is what the limit counts from, ``due_at``
    when it is or was reached. ``servers_whole``: servers that don't run are told, too. What isn't told is null.
    """

    user: str
    id: int | None
    admin: bool
    stale: bool
    reason: PruneReason
    reasons: tuple[PruneReason, ...]
    sentence: str
    created: datetime | None
    last_activity: datetime | None
    idle_since: datetime | None
    idle_s: float | None
    due_at: datetime | None
    groups: tuple[str, ...] | None
    roles: tuple[str, ...] | None
    servers: tuple[AccountServer, ...]
    servers_whole: bool
    tokens: int | None
    token_used_at: datetime | None
    shares: int | None


@dataclass(frozen=True, slots=True)
class DeletionShape:
    """A user to delete, with the reading that it rests on: where ``id``, ``created`` or ``last_activity`` changes, they stay.

    ``servers``, ``groups`` and ``roles`` go with them, and so many ``tokens`` and ``shares``; null where that isn't told.
    """

    user: str
    id: int | None
    created: datetime | None
    last_activity: datetime | None
    reason: PruneReason
    idle_since: datetime | None
    servers: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    roles: tuple[str, ...] | None
    tokens: int | None
    shares: int | None


@dataclass(frozen=True, slots=True)
class PruneItemShape:
    """A user of a plan. ``state`` is waiting until their turn has come, then done, skipped, failed or unverified.

    ``detail`` says in one line what came of it, and ``at`` when. The rest is as in DeletionShape.
    """

    index: int
    user: str
    id: int | None
    created: datetime | None
    last_activity: datetime | None
    reason: PruneReason
    idle_since: datetime | None
    servers: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    roles: tuple[str, ...] | None
    tokens: int | None
    shares: int | None
    state: str
    detail: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class StorageShape:
    """What becomes of users' storage. ``at_risk``: the plan has a caution about it."""

    fate: StorageFate
    spawner: str | None
    at_risk: bool
    why: str


@dataclass(frozen=True, slots=True)
class ProtectionShape:
    """Who is kept by the settings: members of the groups, holders of the roles, names that a glob in ``names`` matches.

    ``token_used_within_s``: who has a token that was used within so many seconds; 0: tokens keep nobody.
    """

    groups: tuple[str, ...]
    roles: tuple[str, ...]
    names: tuple[str, ...]
    token_used_within_s: float


@dataclass(frozen=True, slots=True)
class PrunePlanShape:
    """A frozen plan. ``reasons`` counts the users to delete, ``kept`` those who are kept, by reason.

    ``cautions`` have to be acknowledged by name, ``lost`` says what can't be brought back. ``left_out`` counts the stale
    beyond the cap. ``protection`` is what of the settings kept users. ``offline``, ``database``, ``revision`` and
    ``housekeeping`` are for plans made for a hub that is down.
    """

    format: str
    version: int
    digest: str
    made_at: datetime
    expires_at: datetime
    made_by: str
    offline: bool
    database: str
    revision: str
    criteria: StaleCriteria
    count: int
    reasons: Mapping[str, int]
    kept: Mapping[str, int]
    left_out: int
    protection: ProtectionShape
    gain: Gain
    storage: StorageShape
    cautions: tuple[Caution, ...]
    lost: tuple[str, ...]
    housekeeping: ORMCounts | None
    deletions: tuple[DeletionShape, ...]


@dataclass(frozen=True, slots=True)
class PruneRunShape:
    """How a plan stands; ``sentence`` says it in words. ``actor`` made it, or began it, ``asked_why`` is their reason,
    ``acknowledged`` names the cautions that were acknowledged for it.

    Of ``count`` users so many are ``settled``, the sum of the four after it. ``per_s`` and ``left_s`` are null where they
    can't be told, ``undo_file``, on the guard's machine, before it is written. ``restored`` were brought back.
    """

    digest: str
    state: PruneState
    sentence: str
    why: str
    made_at: datetime
    expires_at: datetime
    actor: str
    asked_why: str
    acknowledged: tuple[str, ...]
    scheduled: bool
    began_at: datetime | None
    ended_at: datetime | None
    count: int
    settled: int
    done: int
    skipped: int
    failed: int
    unverified: int
    per_s: float | None
    left_s: float | None
    undo_file: str | None
    undo_sha256: str | None
    restored: int
    restored_at: datetime | None


@dataclass(frozen=True, slots=True)
class PruneStandingShape:
    """A plan, and how it stands."""

    run: PruneRunShape
    plan: PrunePlanShape
