"""A double of a guard's pruning with made-up users, for the pages' tests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from builders import DAY_S, NOW, days

from hubguard.errors import HubGuardError
from hubguard.hub.nouns import Account, AccountServer
from hubguard.model import Outcome, OutcomeKind
from hubguard.prune.model import (
    Caution,
    Deletion,
    Gain,
    PruneItem,
    PrunePlan,
    PruneReason,
    PruneRun,
    PruneState,
    PruneStatus,
    PruneVerdict,
    RestoredRun,
    StaleCriteria,
    Storage,
    StorageFate,
    UsersReport,
)
from hubguard.wire import extended

CRITERIA = StaleCriteria(inactive_for_s=180 * DAY_S, never_active_for_s=180 * DAY_S)
STALE = (PruneReason.INACTIVE, PruneReason.NEVER_ACTIVE)
KEPT = tuple(reason for reason in PruneReason if reason not in STALE)
DELETES = Storage(StorageFate.DELETED, "KubeSpawner", "KubeSpawner deletes the home volume with the user.")
KEEPS = Storage(StorageFate.KEPT, "SystemdSpawner", "SystemdSpawner leaves the home folders where they are.")
UNDO = "/srv/hubguard-undo/undo-20261121T120000Z-0123456789ab.jsonl"


def verdict_of(name: str = "ann", *reasons: PruneReason, idle_days: float | None = None, **fields: Any) -> PruneVerdict:
    """A user who is stale unless a reason that keeps them is given; ``fields`` are the account's."""
    why = reasons or (PruneReason.INACTIVE,)
    stale = why[0] in STALE
    gone = idle_days if idle_days is not None else (200.0 if stale else 3.0)
    last = None if PruneReason.NEVER_ACTIVE in why or PruneReason.NO_TIMES in why else NOW - days(gone)
    made = Account(
        name=name,
        admin=PruneReason.ADMIN in why,
        created=None if PruneReason.NO_TIMES in why else NOW - days(max(400.0, gone)),
        last_activity=last,
        groups=("course-1",),
        roles=("user",),
        servers=(AccountServer("", False, keeps_state=True),),
        servers_whole=True,
        tokens=2,
        token_used_at=NOW - days(2) if PruneReason.TOKEN_USED in why else None,
        shares=0,
        id=7,
    )
    account = replace(made, **fields)
    since = account.last_activity or account.created
    return PruneVerdict(account, stale, why, since, since + days(180) if since else None)


def one_of_each() -> list[PruneVerdict]:
    """A user for every reason, named after it."""
    return [verdict_of(f"u-{reason.value}", reason) for reason in PruneReason]


def made_up_users(count: int) -> tuple[PruneVerdict, ...]:
    """Nine of ten stale, idle for 181 days and more; the others kept for a reason of each kind in turn."""
    made = []
    for i in range(count):
        if i % 10:
            reason = PruneReason.NEVER_ACTIVE if i % 7 == 3 else PruneReason.INACTIVE
            made.append(verdict_of(f"student-{i:05d}", reason, idle_days=181 + i * 37 % 900))
        else:
            made.append(verdict_of(f"student-{i:05d}", KEPT[i // 10 % len(KEPT)], idle_days=i % 170))
    return tuple(made)


def plan_of(verdicts: Sequence[PruneVerdict], criteria: StaleCriteria = CRITERIA, **fields: Any) -> PrunePlan:
    """The plan for those of ``verdicts`` that are stale."""
    stale = [one for one in verdicts if one.stale]
    deletions = tuple(
        Deletion(
            one.account.name,
            one.account.created,
            one.account.last_activity,
            one.reason,
            one.idle_since,
            one.account.id,
            tuple(server.name for server in one.account.servers),
            one.account.groups,
            one.account.roles,
            one.account.tokens,
            one.account.shares,
        )
        for one in stale
    )
    made = PrunePlan(
        digest=hashlib.sha256(repr((deletions, criteria)).encode()).hexdigest(),
        made_at=NOW,
        expires_at=NOW + timedelta(days=1),
        made_by="ann",
        criteria=criteria,
        deletions=deletions,
        kept=Counter(one.reason for one in verdicts if not one.stale),
        gain=Gain(
            len(verdicts),
            len(verdicts) - len(stale),
            -(-len(verdicts) // 200),
            -(-(len(verdicts) - len(stale)) // 200),
            {"users": len(stale), "spawners": len(stale), "api_tokens": 2 * len(stale)},
            12.5,
        ),
        storage=DELETES,
        cautions=(Caution("KubeSpawner", "The home volumes are deleted with the users."),),
        lost=("A deleted volume can't be brought back.", "Roles aren't brought back while the hub runs."),
    )
    return replace(made, **fields)


@dataclass
class FakePruning:
    """A guard's pruning whose users a test sets; what it was asked to do is in ``asked``, without any token."""

    verdicts: Sequence[PruneVerdict] = ()
    storage: Storage = DELETES
    source: str = "hub_db"
    whole: bool = True
    notes: tuple[str, ...] = ()
    fails: Exception | None = None
    held: str = ""
    cautions_of_now: str = ""
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    plans: dict[str, PrunePlan] = field(default_factory=dict)
    states: dict[str, PruneRun] = field(default_factory=dict)
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=dict)

    def status(self) -> PruneStatus:
        return PruneStatus()

    def default_criteria(self) -> StaleCriteria:
        return CRITERIA

    async def users(self, criteria: StaleCriteria | None = None, *, caller: str | None = None) -> UsersReport:
        self._fail()
        self._check(criteria)
        self.asked.append(("users", criteria, caller))
        return UsersReport(
            read_at=NOW - timedelta(minutes=2),
            criteria=criteria or CRITERIA,
            verdicts=tuple(self.verdicts),
            users_total=len(self.verdicts),
            source=self.source,
            active_since=None if self.whole else NOW - days(180),
            storage=self.storage,
            notes=self.notes,
            took_s=0.4,
        )

    async def user(
        self, name: str, criteria: StaleCriteria | None = None, *, caller: str | None = None
    ) -> PruneVerdict | None:
        self._fail()
        self.asked.append(("user", name, criteria, caller))
        return next((one for one in self.verdicts if one.account.name == name), None)

    async def plan(
        self, criteria: StaleCriteria, actor: str, *, caller: str | None = None, ignore_unknown: bool = False
    ) -> PrunePlan:
        self._fail()
        self._check(criteria)
        self.asked.append(("plan", criteria, actor, caller))
        made = plan_of(self.verdicts, criteria, made_by=actor, storage=self.storage)
        if not made.deletions:
            raise HubGuardError("No plan made: no user is stale by these criteria.")
        return self.add(made)

    def add(self, plan: PrunePlan) -> PrunePlan:
        """As if that plan had been made."""
        self.plans[plan.digest] = plan
        self.states[plan.digest] = PruneRun(
            plan.digest,
            PruneState.PLANNED,
            plan.made_at,
            plan.expires_at,
            plan.made_by,
            len(plan.deletions),
            criteria=plan.criteria,
        )
        self.outcomes[plan.digest] = {}
        return plan

    def settle(self, digest: str, *kinds: OutcomeKind, detail: str = "", **fields: Any) -> PruneRun:
        """The first users of that plan, from the first that isn't settled on, came to these ends."""
        came = self.outcomes[digest]
        for kind in kinds:
            came[len(came)] = Outcome(kind, detail)
        by = Counter(one.kind for one in came.values())
        run = replace(self.states[digest], **{kind.value: by[kind] for kind in OutcomeKind}, **fields)
        self.states[digest] = run
        return run

    async def runs(self, *, limit: int = 100, user: str = "") -> tuple[PruneRun, ...]:
        self._fail()
        return tuple(reversed(self.states.values()))[:limit]

    async def run(self, digest: str) -> PruneRun:
        self._fail()
        if digest not in self.states:
            raise HubGuardError(f"There is no plan {digest[:12]}: it was never made, or is forgotten.")
        return self.states[digest]

    async def plan_of(self, digest: str) -> PrunePlan:
        await self.run(digest)
        return self.plans[digest]

    async def items(
        self, digest: str, *, state: str | None = None, offset: int = 0, limit: int | None = None
    ) -> tuple[PruneItem, ...]:
        await self.run(digest)
        came = self.outcomes[digest]
        every = [
            PruneItem(i, one, came.get(i), NOW if i in came else None)
            for i, one in enumerate(self.plans[digest].deletions)
        ]
        found = [one for one in every if state in (None, one.state)]
        return tuple(found[offset : None if limit is None else offset + limit])

    async def apply(
        self, digest: str, count: int, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()
    ) -> PruneRun:
        run, plan = await self.run(digest), self.plans[digest]
        if self.held:
            raise HubGuardError(self.held)
        if run.state is not PruneState.PLANNED:
            raise HubGuardError("The plan was begun already. Nothing was done.")
        if count != len(plan.deletions):
            raise HubGuardError(f"The plan has {len(plan.deletions)} users, not {count}. Nothing was done.")
        for one in plan.cautions:
            if one.name not in acknowledged:
                raise HubGuardError(f"{one.why} Acknowledge {one.name} to go on. Nothing was done.")
        self.asked.append(("apply", digest, count, actor, why, acknowledged))
        return self.begin(digest, actor, why)

    def begin(self, digest: str, actor: str, why: str) -> PruneRun:
        """As if that plan had been begun."""
        self.states[digest] = replace(
            self.states[digest],
            state=PruneState.RUNNING,
            actor=actor,
            asked_why=why,
            began_at=NOW,
            undo_file=UNDO,
            undo_sha256="ab" * 32,
        )
        return self.states[digest]

    async def pause(self, digest: str, actor: str, why: str) -> PruneRun:
        return await self._turn("pause", digest, actor, why, PruneState.PAUSED, PruneState.RUNNING)

    async def resume(self, digest: str, actor: str, why: str, *, acknowledged: tuple[str, ...] = ()) -> PruneRun:
        if self.cautions_of_now and self.cautions_of_now not in acknowledged:
            raise HubGuardError(f"{self.cautions_of_now} must be acknowledged by name. Nothing was changed.")
        return await self._turn("resume", digest, actor, why, PruneState.RUNNING, PruneState.PAUSED)

    async def cancel(self, digest: str, actor: str, why: str) -> PruneRun:
        whence = (PruneState.PLANNED, PruneState.RUNNING, PruneState.PAUSED)
        return await self._turn("cancel", digest, actor, why, PruneState.CANCELLED, *whence)

    async def _turn(
        self, deed: str, digest: str, actor: str, why: str, state: PruneState, *whence: PruneState
    ) -> PruneRun:
        run = await self.run(digest)
        if run.state not in whence:
            raise HubGuardError(f"The plan is {run.state.value}, so this can't be done. Nothing was changed.")
        self.asked.append((deed, digest, actor, why))
        self.states[digest] = replace(run, state=state, why=f"{actor}: {why}")
        return self.states[digest]

    async def restore(
        self, digest: str, count: int, actor: str, why: str, *, token: str, sha256: str | None = None
    ) -> PruneRun:
        run = await self.run(digest)
        if count != run.done:
            raise HubGuardError(f"The plan deleted {run.done} users, not {count}. Nothing was done.")
        self.asked.append(("restore", digest, count, actor, why, sha256))
        self.tokens.append(token)
        self.states[digest] = replace(run, restored=count, restored_at=NOW)
        return extended(RestoredRun, self.states[digest], not_back=())

    def _fail(self) -> None:
        if self.fails:
            raise self.fails

    def _check(self, criteria: StaleCriteria | None) -> None:
        if criteria and not (criteria.inactive_for_s or criteria.never_active_for_s):
            raise HubGuardError("inactive_for_s: no limit is set, so nobody can be stale.")
