"""Pruning in words and plain values, for pages, API and command: who is stale or kept and why, and what came of plans."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timezone
from typing import Any

from hubguard import words
from hubguard.hub.nouns import AccountServer
from hubguard.model import Cause, OutcomeKind
from hubguard.prune.decide.plan import PrunePlanShape
from hubguard.prune.model import (
    Deletion,
    NotBack,
    PruneItem,
    PrunePlan,
    PruneReason,
    PruneRun,
    PruneState,
    PruneVerdict,
    RestoredRun,
    StaleCriteria,
    StorageFate,
)
from hubguard.wire import extended, to_plain

REASON_WORDS: Mapping[PruneReason, str] = {
    PruneReason.INACTIVE: "Inactive",
    PruneReason.NEVER_ACTIVE: "Never active",
    PruneReason.ACTIVE: "Active",
    PruneReason.NOT_ASKED_FOR: "Outside the criteria",
    PruneReason.ADMIN: "Admin",
    PruneReason.IN_CONFIG: "Named in the hub's config",
    PruneReason.PROTECTED_GROUP: "In a protected group",
    PruneReason.PROTECTED_ROLE: "Has a protected role",
    PruneReason.PROTECTED_NAME: "Protected name",
    PruneReason.EXEMPTION: "Exempt",
    PruneReason.SERVER_ACTIVE: "Server running",
    PruneReason.TOKEN_USED: "Token used recently",
    PruneReason.CALLER: "Makes the plan",
    PruneReason.NO_TIMES: "No known activity",
    PruneReason.CANT_TELL: "Needed facts unknown",
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
    Cause.GONE.value: "Already gone",
    OutcomeKind.FAILED.value: "Failed",
    OutcomeKind.UNVERIFIED.value: "Not verified",
}
"""The words for what came of one user of a plan, by ``PruneItem.state``."""

ENDS = tuple((state, word.lower()) for state, word in ITEM_WORDS.items() if state not in ("waiting", "done"))
"""How users of a plan end who aren't deleted, by the fields of PruneRun, each with its word."""

_KEPT: Mapping[PruneReason, str] = {
    PruneReason.ADMIN: "they are an admin",
    PruneReason.IN_CONFIG: "the hub's config names them, so they would come back at its next start",
    PruneReason.PROTECTED_GROUP: "one of their groups is protected",
    PruneReason.PROTECTED_ROLE: "one of their roles is protected",
    PruneReason.PROTECTED_NAME: "their name is protected",
    PruneReason.EXEMPTION: "they or one of their servers are exempt",
    PruneReason.SERVER_ACTIVE: "one of their servers is running or pending",
    PruneReason.TOKEN_USED: "one of their tokens was used recently",
    PruneReason.CALLER: "they make this plan",
    PruneReason.NO_TIMES: "it is unknown when they were active",
    PruneReason.CANT_TELL: "their groups, roles or creation are unknown, and the criteria or protections need them",
}


# -- words ----------------------------------------------------------------------------------------------------------------


def verdict_sentence(verdict: PruneVerdict, now: datetime) -> str:
    """Why that user is stale, or all that keeps them, as one sentence."""
    if verdict.stale:
        return f"Stale: {_idle(verdict, now)}; the limit is {_limit(verdict)}{_stamped(verdict, now)}."
    return f"Kept: {'; '.join(_clause(reason, verdict, now) for reason in verdict.reasons)}."


def _clause(reason: PruneReason, verdict: PruneVerdict, now: datetime) -> str:
    if reason is PruneReason.TOKEN_USED and verdict.account.token_used_at is not None:
        return f"one of their tokens was used {words.age(verdict.account.token_used_at, now)}"
    if reason is PruneReason.ACTIVE:
        when = "" if verdict.due_at is None else f", so stale {words.until(verdict.due_at, now)} at the earliest"
        return f"{_idle(verdict, now)}{when}{_stamped(verdict, now)}"
    if reason is PruneReason.NOT_ASKED_FOR:
        if verdict.idle_since is not None and verdict.due_at is None:
            kind = "never" if _never_active(verdict) else "ever"
            return f"the criteria leave out users who were {kind} active"
        return "their groups, roles, name or creation don't match the criteria"
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
        return f"created {words.age(since, now)} and never active"
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
    return f" (the hub says {words.age(hubs, now)}, when HubGuard stopped one of their servers)"


def criteria_sentence(criteria: StaleCriteria) -> str:
    """The users who meet the criteria, as one sentence."""
    limits = []
    if criteria.inactive_for_s:
        limits.append(f"inactive for {words.limit(criteria.inactive_for_s)}")
    if criteria.never_active_for_s:
        limits.append(f"never active and created {words.limit(criteria.never_active_for_s)} ago")
    parts = [" or ".join(limits)]
    if criteria.groups:
        parts.append(f"in the group {' or '.join(criteria.groups)}")
    if criteria.roles:
        parts.append(f"with the role {' or '.join(criteria.roles)}")
    if criteria.not_groups:
        parts.append(f"not in the group {' or '.join(criteria.not_groups)}")
    if criteria.not_roles:
        parts.append(f"without the role {' or '.join(criteria.not_roles)}")
    if criteria.created_before is not None:
        parts.append(f"created before {_moment(criteria.created_before)}")
    if criteria.created_after is not None:
        parts.append(f"created on or after {_moment(criteria.created_after)}")
    if criteria.names:
        parts.append(f"named like {' or '.join(criteria.names)}")
    if criteria.listed is not None:
        parts.append(f"among {words.count(len(criteria.listed), 'user')} listed by name")
    return f"{'; '.join(parts)}."


def _moment(at: datetime) -> str:
    """A day by its date, as its start in UTC; any other moment to the second."""
    at = at.astimezone(timezone.utc)
    return f"{at:%Y-%m-%d}" if at.time() == time() else words.stamp(at)


def criteria_query(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria, as JSON has them, as a request for users takes them: without a list, which is too long for one."""
    limits = ("inactive_for_s", "never_active_for_s")
    return {name: value for name, value in criteria.items() if name != "listed" and (value or name in limits)}


def plan_sentence(plan: PrunePlan) -> str:
    """The users who a plan deletes: ``Deletes 4,900 of 5,000 users: 4,800 inactive, 100 never active.``"""
    by = Counter(deletion.reason for deletion in plan.deletions)
    why = ", ".join(f"{number:,} {REASON_WORDS[reason].lower()}" for reason, number in by.most_common())
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
        # Online, neither roles, shares, codes nor OAuth clients are counted, nor what others have of a user's.
        least = "" if plan.offline else "at least "
        parts.append(f"{least}{words.count(sum(gain.rows.values()), 'row')} fewer in the hub's database")
    if gain.startup_s is not None:
        parts.append(f"the hub's last start took {gain.startup_s:.1f} s")
    return f"{'; '.join(parts)}."


def run_sentence(run: PruneRun) -> str:
    """How a plan stands, and why."""
    why = f": {run.why.rstrip('. ')}" if run.why.strip(". ") else ""
    if run.state is PruneState.PLANNED:
        return f"Planned{why}; apply it by {words.stamp(run.expires_at)}."
    parts = [f"{run.done:,} of {words.count(run.count, 'user')} deleted"]
    parts += [f"{number:,} {word}" for state, word in ENDS if (number := getattr(run, state))]
    if run.state is PruneState.RUNNING and run.left_s is not None:
        parts.append(f"done in about {words.duration(run.left_s)}")
    if run.restored:
        parts.append(f"{run.restored:,} restored")
    return f"{STATE_WORDS[run.state]}{why}; {', '.join(parts)}."


# -- values ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserShape:
    """A user, and whether they are stale. ``reasons`` has the one for which they are, or all that keep them.

    ``reason`` is the first of these, ``sentence`` says it in words. ``idle_since`` is what the limit counts from, ``due_at``
    when it is or was reached. ``servers_whole``: servers that don't run are listed, too. What is unknown is null;
    if ``times_known`` is false, a time in the hub's database can't be read, and a null may hide a use.
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
    times_known: bool
    tokens: int | None
    token_used_at: datetime | None
    shares: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneItemShape(Deletion):
    """A user of a plan. ``state`` is waiting at first, then done, skipped, gone, failed or unverified.

    ``detail`` says in one line what came of it, and ``at`` when. The rest is what the plan knew of the user when it was made:
    a user whose ``id``, ``created`` or ``last_activity`` changes is skipped. What is unknown is null.
    """

    index: int
    state: str
    detail: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRunShape(PruneRun):
    """How a plan stands; ``sentence`` says it in words.

    Of ``count`` users ``settled`` are: the sum of ``done``, ``skipped``, ``gone``, ``failed`` and
    ``unverified``. ``undo_file`` is a
    path on the guard's machine. What is unknown is null.
    """

    sentence: str
    settled: int = field()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRunShape(PruneRunShape):
    """How a plan stands after users were restored; ``not_back`` has those who aren't there again, each with why."""

    not_back: tuple[NotBack, ...]


@dataclass(frozen=True, slots=True)
class PruneStandingShape:
    """A plan, and how it stands."""

    run: PruneRunShape
    plan: PrunePlanShape


def user_shape(verdict: PruneVerdict, now: datetime) -> UserShape:
    """One user, judged, as the API returns them; ``idle_s`` is never negative."""
    account = verdict.account
    since = verdict.idle_since
    return extended(
        UserShape,
        account,
        user=account.name,
        stale=verdict.stale,
        reason=verdict.reason,
        reasons=verdict.reasons,
        sentence=verdict_sentence(verdict, now),
        idle_since=since,
        idle_s=None if since is None else max(0.0, round((now - since).total_seconds(), 3)),
        due_at=verdict.due_at,
    )


def item_shape(item: PruneItem) -> PruneItemShape:
    """One deletion of a plan and what came of it, as the API returns them."""
    detail = "" if item.outcome is None else item.outcome.detail
    return extended(PruneItemShape, item.deletion, index=item.index, state=item.state, detail=detail, at=item.at)


def run_shape(run: PruneRun) -> PruneRunShape:
    """How a plan stands, as the API returns it."""
    shape = RestoredRunShape if isinstance(run, RestoredRun) else PruneRunShape
    return extended(shape, run, sentence=run_sentence(run), settled=run.settled)


# -- for a spreadsheet ----------------------------------------------------------------------------------------------------

CSV_HEADER = (
    *("user", "reason", "idle_since", "created", "last_activity", "id"),
    *("servers", "groups", "roles", "tokens", "shares", "state", "detail", "at"),
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet takes a text that begins so for a formula, which may send away what stands beside it."""


def plan_csv(plan: PrunePlan, items: Sequence[PruneItem] = ()) -> str:
    """The plan as CSV: a comment with its criteria, a header, and one line for each user, in its order.

    The comment is one line that begins with ``#``, for programs to skip. ``items`` have what came of the users so far.

    A text that a spreadsheet would take for a formula has an apostrophe before it. Several names in one field are parted by
    "; ", and the default server is "(default)". What is unknown is empty.
    """
    rows = items or [PruneItem(index, deletion) for index, deletion in enumerate(plan.deletions)]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([_comment(f"Criteria: {criteria_sentence(plan.criteria)}")])
    writer.writerow(CSV_HEADER)
    for item in rows:
        values = to_plain(item_shape(item))
        writer.writerow(
            [_cell(_server_names(values[name]) if name == "servers" else values[name]) for name in CSV_HEADER]
        )
    return out.getvalue()


USERS_HEADER = (
    *("user", "verdict", "reasons", "sentence", "idle_since", "due_at", "created", "last_activity", "id", "admin"),
    *("groups", "roles", "tokens", "token_used_at", "shares"),
)


def users_csv(
    verdicts: Iterable[PruneVerdict], criteria: StaleCriteria, now: datetime, *, active_since: datetime | None = None
) -> str:
    """Users as CSV, each with why they are stale or kept: comments, a header, and one line for each.

    The comments begin with ``#`` and hold the criteria. ``active_since``: users active since then weren't read, and a second
    comment says that they are kept; None: everybody was. Cells are as in :func:`plan_csv`.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([_comment(f"Criteria: {criteria_sentence(criteria)}")])
    if active_since is not None:
        writer.writerow([_comment(f"Users active since {words.stamp(active_since)} are kept, too, and aren't listed.")])
    writer.writerow(USERS_HEADER)
    for verdict in verdicts:
        values = {**to_plain(user_shape(verdict, now)), "verdict": "stale" if verdict.stale else "kept"}
        writer.writerow([_cell(values[name]) for name in USERS_HEADER])
    return out.getvalue()


def _comment(text: str) -> str:
    """One line, though a name that was asked for may hold a line break."""
    return " ".join(f"# {text}".split())


def _server_names(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else [name or "(default)" for name in names]


def _cell(value: object) -> object:
    text = "; ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text
