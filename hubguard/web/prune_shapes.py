"""What the API answers with on pruning, for its description: web/prune.py makes the values, field by field the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hubguard.drift import ORMCounts
from hubguard.prune import AccountServer, Caution, Gain, PruneReason, PruneState, StaleCriteria, StorageFate


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
