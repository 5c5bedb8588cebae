"""A plan of whom to delete: frozen, with what it costs and what must be acknowledged, and as a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from hubguard.errors import ConfigError
from hubguard.hub.nouns import Account, ORMCounts
from hubguard.prune.decide.risks import OFFLINE_STORAGE, cautions, lost, storage
from hubguard.prune.decide.stale import checked
from hubguard.prune.model import (
    Caution,
    Deletion,
    Gain,
    Protection,
    PrunePlan,
    PruneReason,
    PruneVerdict,
    StaleCriteria,
    Storage,
    StorageFate,
)

__all__ = [
    "OFFLINE_STORAGE",
    "cautions",
    "chosen",
    "freeze",
    "from_dict",
    "held",
    "lost",
    "protected",
    "refusal",
    "storage",
    "to_dict",
    "unacknowledged",
]

T = TypeVar("T")

NOBODY = Protection()
"""Nobody is kept."""

FORMAT = "hubguard-prune-plan"
VERSION = 1

PAGE = 200
"""The hub's lists of users have pages of so many at most."""

_COUNTED: Mapping[str, Callable[[Account], int | None]] = {
    "users": lambda account: 1,
    "spawners": lambda account: len(account.servers) if account.servers_whole else None,
    "api_tokens": lambda account: account.tokens,
    "shares": lambda account: account.shares,
    "user_group_map": lambda account: None if account.groups is None else len(account.groups),
    "user_role_map": lambda account: None if account.roles is None else len(account.roles),
}
"""How many rows of each table of the hub go with a user."""


# -- freezing -------------------------------------------------------------------------------------------------------------


def chosen(verdicts: Iterable[PruneVerdict], cap: int | None) -> list[PruneVerdict]:
    """Whom a plan has, in name order: the stale, or with more of them than ``cap`` (None: no cap) those idle for longest."""
    stale = sorted((verdict for verdict in verdicts if verdict.stale), key=_longest_idle_first)
    return sorted(stale if cap is None else stale[:cap], key=lambda verdict: verdict.account.name)


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
    protection: Protection = NOBODY,
    startup_s: float | None = None,
    rows_known: bool = False,
    offline: bool = False,
    database: str = "",
    revision: str = "",
    housekeeping: ORMCounts | None = None,
) -> PrunePlan:
    """The plan to delete those of ``verdicts`` that are stale, which can be begun for ``life_s`` seconds from ``now`` on.

    It has those that :func:`chosen` gives, for that ``cap``. ``criteria`` are those that were judged by,
    and so is ``protection``.
    ``rows_known``: the accounts are from the hub's database, so that the rows that go can be counted; a table for which one
    of them doesn't tell is left out. The order of ``verdicts`` makes no difference. ``OFFLINE_STORAGE`` is the storage of
    an offline plan.
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
        criteria=criteria,
        deletions=tuple(map(_deletion, deleted)),
        kept=dict(kept),
        gain=Gain(
            users_before=users_total,
            users_after=after,
            pages_before=math.ceil(users_total / PAGE),
            pages_after=math.ceil(after / PAGE),
            rows=_rows([verdict.account for verdict in deleted]) if rows_known else None,
            startup_s=startup_s,
        ),
        storage=storage,
        cautions=tuple(cautions),
        lost=tuple(lost),
        left_out=sum(verdict.stale for verdict in verdicts) - len(deleted),
        protection=replace(protection, in_config=None, callers=()),
        offline=offline,
        database=database,
        revision=revision,
        housekeeping=housekeeping,
    )
    return replace(plan, digest=_digest(to_dict(plan)))


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
    found = {}
    for table, count in _COUNTED.items():
        counts = [count(account) for account in accounts]
        known = [one for one in counts if one is not None]
        if len(known) == len(counts):
            found[table] = sum(known)
    return found


# -- as a file ------------------------------------------------------------------------------------------------------------


def to_dict(plan: PrunePlan) -> dict[str, Any]:
    """The plan as JSON has it, for a file and for the API; times are ISO, in UTC. ``count`` and ``reasons`` are sums."""
    criteria, gain = plan.criteria, plan.gain
    reasons = Counter(deletion.reason for deletion in plan.deletions)
    return {
        "format": FORMAT,
        "version": VERSION,
        "digest": plan.digest,
        "made_at": _iso(plan.made_at),
        "expires_at": _iso(plan.expires_at),
        "made_by": plan.made_by,
        "offline": plan.offline,
        "database": plan.database,
        "revision": plan.revision,
        "criteria": criteria_dict(criteria),
        "count": len(plan.deletions),
        "reasons": _by_reason(reasons),
        "kept": _by_reason(plan.kept),
        "left_out": plan.left_out,
        "protection": {
            "groups": list(plan.protection.groups),
            "roles": list(plan.protection.roles),
            "names": list(plan.protection.names),
            "token_used_within_s": float(plan.protection.token_used_within_s),
        },
        "gain": {
            "users_before": gain.users_before,
            "users_after": gain.users_after,
            "pages_before": gain.pages_before,
            "pages_after": gain.pages_after,
            "rows": None if gain.rows is None else dict(sorted(gain.rows.items())),
            "startup_s": None if gain.startup_s is None else float(gain.startup_s),
        },
        "storage": storage_dict(plan.storage),
        "cautions": [asdict(caution) for caution in plan.cautions],
        "lost": list(plan.lost),
        "housekeeping": None if plan.housekeeping is None else asdict(plan.housekeeping),
        "deletions": [deletion_dict(deletion) for deletion in plan.deletions],
    }


def criteria_dict(criteria: StaleCriteria) -> dict[str, Any]:
    """The criteria as JSON has them."""
    return {
        "inactive_for_s": float(criteria.inactive_for_s),
        "never_active_for_s": float(criteria.never_active_for_s),
        "groups": list(criteria.groups),
        "roles": list(criteria.roles),
        "names": list(criteria.names),
        "listed": None if criteria.listed is None else list(criteria.listed),
    }


def storage_dict(storage: Storage) -> dict[str, Any]:
    """What becomes of storage, as JSON has it."""
    return {"fate": storage.fate.value, "spawner": storage.spawner, "at_risk": storage.at_risk, "why": storage.why}


def deletion_dict(deletion: Deletion) -> dict[str, Any]:
    """One deletion as JSON has it."""
    return {
        "user": deletion.user,
        "id": deletion.id,
        "created": _iso(deletion.created),
        "last_activity": _iso(deletion.last_activity),
        "reason": deletion.reason.value,
        "idle_since": _iso(deletion.idle_since),
        "servers": _listed(deletion.servers),
        "groups": _listed(deletion.groups),
        "roles": _listed(deletion.roles),
        "tokens": deletion.tokens,
        "shares": deletion.shares,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(timezone.utc).isoformat()


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _by_reason(counts: Mapping[PruneReason, int]) -> dict[str, int]:
    return {reason.value: counts[reason] for reason in sorted(counts, key=lambda reason: reason.value)}


def _digest(data: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over all of a plan's dict but the digest itself."""
    text = json.dumps({**data, "digest": ""}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def from_dict(data: object) -> PrunePlan:
    """The plan that :func:`to_dict` made ``data`` of, whoever wrote it down in between.

    Raises ValueError with one line: it isn't a plan, of another version of HubGuard, or not what it was when it was made.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ValueError("this is no plan of HubGuard's; make one with hubguard prune plan -o FILE")
    if data.get("version") != VERSION:
        raise ValueError(
            f"this plan has the version {data.get('version')!r}, and HubGuard knows {VERSION}; make it again"
        )
    try:
        plan = _plan(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        raise ValueError(f"this is no whole plan: {type(error).__name__}: {error}; make it again") from error
    again = to_dict(plan)
    if again != dict(data) or plan.digest != _digest(again):
        raise ValueError("this plan isn't what it was when it was made: its digest doesn't fit it; make it again")
    return plan


def _plan(data: Mapping[str, Any]) -> PrunePlan:
    gain, storage, housekeeping = data["gain"], data["storage"], data["housekeeping"]
    protection = data["protection"]
    criteria = StaleCriteria(
        inactive_for_s=_number(data["criteria"]["inactive_for_s"]),
        never_active_for_s=_number(data["criteria"]["never_active_for_s"]),
        groups=_texts(data["criteria"]["groups"]),
        roles=_texts(data["criteria"]["roles"]),
        names=_texts(data["criteria"]["names"]),
        listed=_known(_texts, data["criteria"]["listed"]),
    )
    checked(criteria)
    deletions = tuple(map(_to_deletion, data["deletions"]))
    names = [deletion.user for deletion in deletions]
    if names != sorted(set(names)):
        raise ValueError("its users aren't in order, or one is in it twice")
    return PrunePlan(
        digest=_text(data["digest"]),
        made_at=_time(data["made_at"]),
        expires_at=_time(data["expires_at"]),
        made_by=_text(data["made_by"]),
        criteria=criteria,
        deletions=deletions,
        kept=_counts(data["kept"], PruneReason),
        gain=Gain(
            users_before=_whole(gain["users_before"]),
            users_after=_whole(gain["users_after"]),
            pages_before=_whole(gain["pages_before"]),
            pages_after=_whole(gain["pages_after"]),
            rows=_known(lambda rows: _counts(rows, _text), gain["rows"]),
            startup_s=_known(_number, gain["startup_s"]),
        ),
        storage=Storage(StorageFate(storage["fate"]), _known(_text, storage["spawner"]), _text(storage["why"])),
        cautions=tuple(Caution(_text(one["name"]), _text(one["why"])) for one in data["cautions"]),
        lost=_texts(data["lost"]),
        left_out=_whole(data["left_out"]),
        protection=Protection(
            groups=_texts(protection["groups"]),
            roles=_texts(protection["roles"]),
            names=_texts(protection["names"]),
            token_used_within_s=_number(protection["token_used_within_s"]),
        ),
        offline=data["offline"] is True,
        database=_text(data["database"]),
        revision=_text(data["revision"]),
        housekeeping=None
        if housekeeping is None
        else ORMCounts(**{field.name: _whole(housekeeping[field.name]) for field in fields(ORMCounts)}),
    )


def _to_deletion(data: Mapping[str, Any]) -> Deletion:
    return Deletion(
        user=_text(data["user"]),
        created=_known(_time, data["created"]),
        last_activity=_known(_time, data["last_activity"]),
        reason=PruneReason(data["reason"]),
        idle_since=_known(_time, data["idle_since"]),
        id=_known(_whole, data["id"]),
        servers=_known(_texts, data["servers"]),
        groups=_known(_texts, data["groups"]),
        roles=_known(_texts, data["roles"]),
        tokens=_known(_whole, data["tokens"]),
        shares=_known(_whole, data["shares"]),
    )


def _known(read: Callable[[Any], T], value: object) -> T | None:
    return None if value is None else read(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r:.60} is no list")
    return tuple(map(_text, value))


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.60} is no whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{value!r:.60} is no number")
    return float(value)


def _time(value: object) -> datetime:
    at = datetime.fromisoformat(_text(value))
    if at.tzinfo is None:
        raise ValueError(f"{value!r:.60} has no time zone")
    return at.astimezone(timezone.utc)


def _counts(value: Mapping[str, object], key: Callable[[str], T]) -> dict[T, int]:
    return {key(name): _whole(count) for name, count in value.items()}


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
        return "There is no such plan (any more): it was never made here, or has been forgotten. Make it again."
    if now >= plan.expires_at:
        return f"The plan expired at {plan.expires_at:%Y-%m-%d %H:%M} UTC. Nothing was done; make it again."
    if not plan.deletions and plan.housekeeping is None:
        return "The plan deletes nobody. Nothing was done."
    if count != len(plan.deletions):
        return f"The plan deletes {len(plan.deletions):,} users, not {count:,}. Nothing was done."
    missing = unacknowledged(plan.cautions, acknowledged)
    if missing is not None:
        return f"Nothing was done: this must be acknowledged by name first. {missing}"
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
        f" ({share_cap * 100:g} %): nobody is deleted by schedule until a person has looked at a plan and applied it."
    )
