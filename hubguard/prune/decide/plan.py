"""A plan of users to delete: frozen, with what it costs and what must be acknowledged, and as a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from hubguard.errors import ConfigError
from hubguard.hub.names import spellings
from hubguard.hub.nouns import Account, ORMCounts
from hubguard.prune.decide.risks import OFFLINE_STORAGE, cautions, lost, storage
from hubguard.prune.decide.stale import checked
from hubguard.prune.model import (
    Caution,
    Deletion,
    Gain,
    PlanProtection,
    Protection,
    PrunePlan,
    PruneReason,
    PruneVerdict,
    StaleCriteria,
    Storage,
)
from hubguard.wire import Malformed, extended, read, to_plain, to_values

__all__ = [
    "OFFLINE_STORAGE",
    "cautions",
    "chosen",
    "digest_of",
    "freeze",
    "from_dict",
    "held",
    "lost",
    "protected",
    "refusal",
    "storage",
    "to_dict",
    "to_shape",
    "unacknowledged",
    "unmatched",
    "unmatched_refusal",
]

NOBODY = PlanProtection()
"""Keeps nobody."""

FORMAT = "hubguard-prune-plan"
VERSION = 1

PAGE = 200
"""Maximum users on a page of the hub's lists."""

_LATER_CRITERIA = frozenset({"not_groups", "not_roles", "created_before", "created_after"})

_COUNTED: Mapping[str, Callable[[Account], int | None]] = {
    "users": lambda account: 1,
    "spawners": lambda account: len(account.servers) if account.servers_whole else None,
    "api_tokens": lambda account: account.tokens,
    "user_group_map": lambda account: None if account.groups is None else len(account.groups),
}
"""How many rows of each table of the hub go with a user, for tables of which each row goes with one user.

Roles aren't among them, since some come through a group, nor shares, which two users may both lose."""


# -- freezing -------------------------------------------------------------------------------------------------------------


def chosen(verdicts: Iterable[PruneVerdict], cap: int | None) -> list[PruneVerdict]:
    """The users in a plan, in name order: all who are stale, or the ``cap`` who are idle longest (None: no cap)."""
    stale = sorted((verdict for verdict in verdicts if verdict.stale), key=_longest_idle_first)
    return sorted(stale if cap is None else stale[:cap], key=lambda verdict: verdict.account.name)


def unmatched(listed: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """Those of the names ``listed`` that are nobody's of the users ``known``, as they are or as the hub would have them."""
    names = frozenset(known)
    return tuple(name for name in listed if names.isdisjoint(spellings(name)))


def unmatched_refusal(names: Sequence[str]) -> str:
    """Why no plan is made of a list with ``names``, which are nobody's."""
    return (
        f"No plan made: the hub has none of these listed users: {', '.join(names)}. Correct the list, or plan without them"
        " (--ignore-unknown)."
    )


def freeze(
    verdicts: Iterable[PruneVerdict],
    criteria: StaleCriteria,
    now: datetime,
    *,
    made_by: str,
    life_s: float,
    cap: int | None,
    users_total: int,
    storage: Storage,
    cautions: Sequence[Caution],
    lost: Sequence[str],
    protection: PlanProtection = NOBODY,
    startup_s: float | None = None,
    rows_known: bool = False,
    rows: Mapping[str, int] | None = None,
    offline: bool = False,
    database: str = "",
    revision: str = "",
    housekeeping: ORMCounts | None = None,
) -> PrunePlan:
    """The plan to delete those of ``verdicts`` that are stale, which can be begun for ``life_s`` seconds from ``now`` on.

    It has those that :func:`chosen` gives, for that ``cap``. ``criteria`` are those that were judged by,
    and so is ``protection``.
    ``rows_known``: the accounts are from the hub's database, so that the rows that go can be counted; a table for which one
    of them doesn't show is left out. ``rows`` are these numbers, if they are known better. The order of ``verdicts`` makes no
    difference. ``OFFLINE_STORAGE`` is the storage of an offline plan.
    """
    verdicts = list(verdicts)
    deleted = chosen(verdicts, cap)
    kept = Counter(verdict.reason for verdict in verdicts if not verdict.stale)
    after = max(0, users_total - len(deleted))
    plan = PrunePlan(
        digest="",
        made_at=now,
        expires_at=now + timedelta(seconds=life_s),
        made_by=made_by,
        criteria=_with_floats(criteria),
        deletions=tuple(map(_deletion, deleted)),
        kept=dict(kept),
        gain=Gain(
            users_before=users_total,
            users_after=after,
            pages_before=math.ceil(users_total / PAGE),
            pages_after=math.ceil(after / PAGE),
            rows=_rows([verdict.account for verdict in deleted]) if rows is None and rows_known else rows,
            startup_s=None if startup_s is None else float(startup_s),
        ),
        storage=storage,
        cautions=tuple(cautions),
        lost=tuple(lost),
        left_out=sum(verdict.stale for verdict in verdicts) - len(deleted),
        protection=extended(PlanProtection, protection, token_used_within_s=float(protection.token_used_within_s)),
        offline=offline,
        database=database,
        revision=revision,
        housekeeping=housekeeping,
    )
    return replace(plan, digest=digest_of(plan))


def _with_floats(criteria: StaleCriteria) -> StaleCriteria:
    """A limit that was given as 86400 is digested as 86400.0, which is what a file has."""
    return replace(
        criteria,
        inactive_for_s=float(criteria.inactive_for_s),
        never_active_for_s=float(criteria.never_active_for_s),
    )


def _longest_idle_first(verdict: PruneVerdict) -> tuple[bool, datetime | None, str]:
    return (verdict.idle_since is None, verdict.idle_since, verdict.account.name)


def _deletion(verdict: PruneVerdict) -> Deletion:
    account = verdict.account
    return Deletion(
        user=account.name,
        created=account.created,
        last_activity=account.last_activity,
        reason=verdict.reason,
        idle_since=verdict.idle_since,
        id=account.id,
        servers=tuple(server.name for server in account.servers) if account.servers_whole else None,
        groups=account.groups,
        roles=account.roles,
        tokens=account.tokens,
        shares=account.shares,
    )


def _rows(accounts: Sequence[Account]) -> dict[str, int]:
    rows = {}
    for table, count in _COUNTED.items():
        counts = [count(account) for account in accounts]
        known = [number for number in counts if number is not None]
        if len(known) == len(counts):
            rows[table] = sum(known)
    return rows


# -- as a file ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageShape(Storage):
    """What becomes of users' storage. ``at_risk``: the plan has a caution about it."""

    at_risk: bool = field()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlanShape(PrunePlan):
    """A frozen plan, in a file and in the API.

    ``count`` is the number of users to delete, and ``reasons`` counts them by reason, as ``kept`` counts those who are kept.
    """

    format: str
    version: int
    count: int
    reasons: Mapping[PruneReason, int] = field(hash=False)
    storage: StorageShape = field()


def to_shape(plan: PrunePlan) -> PrunePlanShape:
    """The plan as a file and the API have it."""
    return extended(
        PrunePlanShape,
        plan,
        format=FORMAT,
        version=VERSION,
        count=len(plan.deletions),
        reasons=dict(Counter(deletion.reason for deletion in plan.deletions)),
        storage=extended(StorageShape, plan.storage, at_risk=plan.storage.at_risk),
    )


def to_dict(plan: PrunePlan) -> dict[str, Any]:
    """The plan as JSON has it."""
    data: dict[str, Any] = to_plain(to_shape(plan))
    return data


def from_dict(data: object) -> PrunePlan:
    """The plan that :func:`to_dict` made ``data`` of.

    Raises ValueError with one line when ``data`` isn't a plan, has another version or has changed since the plan was made.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ValueError("this isn't a HubGuard plan; make one with hubguard prune plan -o FILE")
    if data.get("version") != VERSION:
        raise ValueError(
            f"this plan has version {data.get('version')!r}, and this HubGuard reads version {VERSION}; make it again"
        )
    try:
        if missing := sorted({field.name for field in fields(PrunePlanShape)} - data.keys()):
            raise Malformed(f"plan.{missing[0]}: is missing")
        shape = read(PrunePlanShape, data, "plan")
        checked(shape.criteria)
    except (Malformed, ConfigError) as error:
        raise ValueError(f"this plan is damaged: {error}; make it again") from None
    names = [deletion.user for deletion in shape.deletions]
    if names != sorted(set(names)):
        raise ValueError("this plan is damaged: its users aren't in order, or one is in it twice; make it again")
    plan = extended(PrunePlan, shape, storage=extended(Storage, shape.storage))
    if to_shape(plan) != shape or plan.digest != digest_of(plan):
        raise ValueError("this plan has changed since it was made: its digest doesn't fit; make it again")
    return plan


def digest_of(plan: PrunePlan) -> str:
    """SHA-256 (hex) over all of a plan but the digest itself.

    Times are digested as the first version wrote them, with ``+00:00``, and criteria that it didn't know only if they are
    set: plans of then must keep their digest.
    """
    values = to_values(replace(to_shape(plan), digest=""))
    values["criteria"] = {
        name: value for name, value in values["criteria"].items() if value or name not in _LATER_CRITERIA
    }
    text = json.dumps(values, sort_keys=True, default=_digested_time)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _digested_time(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat()


# -- who is kept now --------------------------------------------------------------------------------------------------------


def protected(plan: PrunePlan, now: Protection) -> Protection:
    """Who is kept when the plan is carried out: by the protection of then or by that of ``now``."""
    was = plan.protection
    return replace(
        now,
        groups=tuple(sorted({*was.groups, *now.groups})),
        roles=tuple(sorted({*was.roles, *now.roles})),
        names=tuple(sorted({*was.names, *now.names})),
        token_used_within_s=max(was.token_used_within_s, now.token_used_within_s),
    )


# -- whether it may be begun -----------------------------------------------------------------------------------------------


def refusal(plan: PrunePlan | None, *, count: int, now: datetime, acknowledged: Collection[str]) -> str | None:
    """Why the plan (None: nobody knows it) may not be begun at ``now``, for whoever asked; None: it may.

    ``count`` is how many users they believe it deletes, ``acknowledged`` are the names of cautions.
    """
    if plan is None:
        return "There is no such plan: it was never made here or is forgotten. Make it again."
    if now >= plan.expires_at:
        return f"Plan not applied: it expired at {plan.expires_at:%Y-%m-%d %H:%M} UTC. Make it again."
    if not plan.deletions and plan.housekeeping is None:
        return "Plan not applied: it deletes nobody."
    if count != len(plan.deletions):
        return f"Plan not applied: it deletes {len(plan.deletions):,} users, not {count:,}."
    missing = unacknowledged(plan.cautions, acknowledged)
    if missing is not None:
        return f"Plan not applied: acknowledge this by name first. {missing}"
    return None


def unacknowledged(cautions: Iterable[Caution], acknowledged: Collection[str]) -> str | None:
    """Name and sentence of each of ``cautions`` that isn't among the names ``acknowledged``; None: all are."""
    missing = [f"{caution.name}: {caution.why}" for caution in cautions if caution.name not in acknowledged]
    return " ".join(missing) or None


def held(deletions: int, users_total: int, share_cap: float) -> str | None:
    """Why nobody is deleted by schedule, where ``deletions`` (with those beyond the cap) of ``users_total`` are stale.

    None: it is no larger a share than ``share_cap``.
    """
    if deletions <= share_cap * users_total:
        return None
    return (
        f"{deletions:,} of {users_total:,} users are stale, a larger share than HubGuardPrune.share_cap"
        f" ({share_cap * 100:g} %). Scheduled pruning deletes nobody until a person has reviewed and applied a plan."
    )
