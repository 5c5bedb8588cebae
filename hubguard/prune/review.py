"""Who is stale: what is read of the users, judged by what the journal knows of them and by what people have asked for."""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hubguard.errors import HubError, HubGuardError, HubRefused
from hubguard.hub.api import HubAPI
from hubguard.hub.names import nearest, spellings
from hubguard.hub.nouns import Account
from hubguard.inhub.named_users import unpacked
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Exemption
from hubguard.model import Source
from hubguard.pacing.clock import Clock
from hubguard.prune.decide import plan as prune_plan
from hubguard.prune.decide import stale
from hubguard.prune.decide.risks import TOKENS, claimed_again
from hubguard.prune.model import (
    Caution,
    Deletion,
    Protection,
    PrunePlan,
    PruneVerdict,
    SecondLook,
    StaleCriteria,
    Storage,
    UndoFacts,
    UsersReport,
)
from hubguard.prune.observe import AHEAD_S, AccountReader, AccountsRead
from hubguard.prune.settings import HubGuardPrune
from hubguard.prune.store import AsyncPrunes

log = logging.getLogger(__name__)

READ_LASTS_S = 300.0
"""Seconds for which users are shown as they were read. Every plan and every deletion reads them again."""

JUDGED_LASTS_S = 10.0
"""Seconds for which verdicts count. Turning pages doesn't judge everybody again: 50,000 users take a third of a second."""

LEARN_S = 600.0
"""Seconds for which pages use what the hub said about its spawner and our scopes. Every plan asks again."""

AHEAD = 50
"""Maximum users of a plan that are read ahead at once: as many as a fast hub deletes within AHEAD_S."""


@dataclass(frozen=True, slots=True)
class HubConfigFacts:
    """What the include reports about the hub's config. ``named`` are the users it names, None: unknown.

    ``classes`` are the full names of the spawner's class and those it is made of, nearest first; empty: not known.
    ``settings`` are those of its settings that decide what becomes of storage. ``overrides``: it has code of its own for
    what is done when a user is deleted; None: not known. ``deleter`` is the full name of the class with that code; "": not
    known. ``authenticator`` and ``claims`` are the same of the authenticator, with what decides who may claim a name.
    """

    named: frozenset[str] | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    overrides: bool | None = None
    deleter: str = ""
    authenticator: tuple[str, ...] = ()
    claims: Mapping[str, object] = field(default_factory=dict, hash=False)

    @classmethod
    def from_dict(cls, registration: Mapping[str, Any] | None) -> HubConfigFacts:
        """As the include has written it; what it left out is unknown."""
        registration = registration or {}
        return cls(
            unpacked(registration),
            tuple(map(str, registration.get("classes") or ())),
            dict(registration.get("settings") or {}),
            registration.get("overrides"),
            str(registration.get("deleter") or ""),
            tuple(map(str, registration.get("authenticator") or ())),
            dict(registration.get("claims") or {}),
        )


@dataclass(frozen=True, slots=True)
class _Judged:
    """Verdicts that hold for some seconds, with what they rest on, and when (monotonic) they were made."""

    read: AccountsRead
    criteria: StaleCriteria
    caller: str | None
    exemptions: tuple[Exemption, ...]
    verdicts: tuple[PruneVerdict, ...]
    at_s: float


class Review:
    """Judges users, makes plans of those that are stale, and looks at each of them again before they are deleted.

    ``journal`` gives the journal, and raises HubGuardError with why, where it can't be used now; so does all that asks it.
    """

    def __init__(
        self,
        settings: HubGuardPrune,
        hub: HubAPI,
        reader: AccountReader,
        clock: Clock,
        journal: AsyncJournal,
        facts: HubConfigFacts,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._reader = reader
        self._clock = clock
        self._journal = journal
        self._facts = facts
        self._read: AccountsRead | None = None
        self._reading = asyncio.Lock()
        self._judged: _Judged | None = None
        self._spawner: str | None = None
        self._spawner_at_s = float("-inf")

    def forget(self) -> None:
        """Read users again the next time."""
        self._read = self._judged = None

    # -- looking --------------------------------------------------------------------------------------------------

    async def users(self, criteria: StaleCriteria, caller: str | None) -> UsersReport:
        """Judge everybody, as read at most a few minutes ago. ``caller`` is kept."""
        read = await self._read_recently(criteria)
        verdicts = await self._judge_recently(read, criteria, caller)
        storage = await self._storage(LEARN_S)
        notes = []
        if read.since is not None:
            notes.append(
                f"Only users who weren't active since {read.since:%Y-%m-%d} are listed: reading everyone through the API"
                " would load the hub. Give HubGuard the hub's database (HubGuard.hub_db_url) to see all."
            )
        notes += self._nobody_has(criteria, read)
        notes += [caution.why for caution in await self._cautions(storage, LEARN_S)]
        return UsersReport(
            read_at=read.at,
            criteria=criteria,
            verdicts=verdicts,
            users_total=read.users_total,
            source=read.source.value,
            active_since=read.since,
            storage=storage,
            notes=tuple(notes),
            took_s=read.took_s,
        )

    async def user(self, name: str, criteria: StaleCriteria, caller: str | None) -> PruneVerdict | None:
        """Read and judge that user now; None if the hub knows nobody by that name."""
        try:
            account = await self._reader.one(name)
        except HubRefused:
            # Without the right to see tokens, the rest is known all the same.
            account = await self._reader.one(name, tokens=False)
        if account is None:
            return None
        now = self._clock.now()
        exemptions = await self._journal.exemptions(now, user=name)
        uses = await AsyncPrunes(self._journal).uses(name)
        return stale.judge([account], criteria, self._protection(caller), exemptions, uses, now)[0]

    def _nobody_has(self, criteria: StaleCriteria, read: AccountsRead) -> list[str]:
        """A sentence for each group and role that somebody asked for and no user has, if all users were read."""
        sentences = []
        for noun, wanted, by_default, having in (
            (
                "group",
                {*criteria.groups, *criteria.not_groups},
                self._settings.groups,
                [account.groups for account in read.accounts],
            ),
            (
                "role",
                {*criteria.roles, *criteria.not_roles},
                self._settings.roles,
                [account.roles for account in read.accounts],
            ),
        ):
            if read.since is not None or None in having:
                continue
            there = {name for names in having for name in names or ()}
            for name in sorted(wanted - set(by_default) - there):
                near = nearest(name, there)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                sentences.append(f"No user has the {noun} {name}.{hint}")
        return sentences

    async def _read_recently(self, criteria: StaleCriteria) -> AccountsRead:
        async with self._reading:
            now, lasts = self._clock.now(), timedelta(seconds=READ_LASTS_S)
            since, read = stale.since(criteria, now), self._read
            fresh = read is not None and abs(now - read.at) < lasts
            if read is None or not fresh or (read.since is not None and read.since < since - lasts):
                self._read = read = await self._reader.read(since)
            return read

    async def _judge_recently(
        self, read: AccountsRead, criteria: StaleCriteria, caller: str | None
    ) -> tuple[PruneVerdict, ...]:
        now_s = self._clock.monotonic_s()
        # These are asked for each time: who has just exempted somebody sees it.
        exemptions = await self._journal.exemptions(self._clock.now())
        had = self._judged
        if (
            had is not None
            and now_s - had.at_s < JUDGED_LASTS_S
            and had.read is read
            and (had.criteria, had.caller, had.exemptions) == (criteria, caller, exemptions)
        ):
            return had.verdicts
        verdicts = await self._judge(read, criteria, caller, exemptions)
        if self._read is read:
            self._judged = _Judged(read, criteria, caller, exemptions, verdicts, now_s)
        return verdicts

    async def _judge(
        self, read: AccountsRead, criteria: StaleCriteria, caller: str | None, exemptions: Sequence[Exemption]
    ) -> tuple[PruneVerdict, ...]:
        now = self._clock.now()
        uses = await AsyncPrunes(self._journal).uses()
        # In a thread, as all that takes a while with 50,000 users: others are answered meanwhile, and the lease renewed.
        return await asyncio.to_thread(
            stale.judge, read.accounts, criteria, self._protection(caller), exemptions, uses, now
        )

    def _protection(self, caller: str | None = None) -> Protection:
        prune = self._settings
        return Protection(
            groups=tuple(prune.protected_groups),
            roles=tuple(prune.protected_roles),
            names=tuple(prune.protected_names),
            in_config=self._facts.named,
            token_used_within_s=prune.token_used_within_s,
            callers=(caller,) if caller else (),
        )

    async def _storage(self, within_s: float) -> Storage:
        """By what the include reports, else by what the hub said about its spawner within ``within_s``."""
        spawner = None
        if not self._facts.classes:
            try:
                spawner = await self._spawner_class(within_s)
            except HubError as error:
                log.info("The hub's spawner is unknown: %s", error)
        return self._storage_by(spawner)

    def _storage_by(self, spawner: str | None) -> Storage:
        classes = self._facts.classes or ((spawner,) if spawner else ())
        return prune_plan.storage(classes, self._facts.settings, self._facts.overrides, self._facts.deleter)

    async def _spawner_class(self, within_s: float) -> str | None:
        now_s = self._clock.monotonic_s()
        if now_s - self._spawner_at_s >= within_s:
            self._spawner, self._spawner_at_s = await self._hub.spawner_class(), now_s
        return self._spawner

    async def _cautions(self, storage: Storage, within_s: float) -> tuple[Caution, ...]:
        tokens_known = await self._reader.tokens_known(within_s=within_s)
        claimed = claimed_again(self._facts.authenticator, self._facts.claims)
        return prune_plan.cautions(storage, self._protection(), tokens_known=tokens_known, claimed=claimed)

    async def cautions(self) -> tuple[Caution, ...]:
        """What needs an acknowledgement now, whatever needed one when a plan was made.

        Raises HubError when the hub doesn't answer: it might report a risk.
        """
        spawner = None if self._facts.classes else await self._spawner_class(0.0)
        return await self._cautions(self._storage_by(spawner), 0.0)

    # -- planning -------------------------------------------------------------------------------------------------

    async def plan(
        self,
        criteria: StaleCriteria,
        actor: str,
        caller: str | None,
        *,
        cap: int | None = None,
        ignore_unknown: bool = False,
    ) -> PrunePlan:
        """A plan by a reading of now, of ``cap`` users at most; it may have none. Raises HubGuardError.

        So it does if a listed name is no user's, unless ``ignore_unknown``.
        """
        async with self._reading:
            self._read = read = await self._reader.read(stale.since(criteria, self._clock.now()))
        if not ignore_unknown and (unknown := await self._unknown(criteria.listed or (), read)):
            raise HubGuardError(prune_plan.unmatched_refusal(unknown))
        if not ignore_unknown and (nobody := self._nobody_has(criteria, read)):
            raise HubGuardError(f"No plan was made. {' '.join(nobody)}")
        storage = await self._storage(0.0)
        try:
            startup_s = await self._hub.startup_s()
        except HubError:
            startup_s = None
        try:
            named_servers = int((await self._hub.version()).partition(".")[0]) >= 6
        except ValueError:
            named_servers = False
        cautions = await self._cautions(storage, 0.0)
        of_database = read.source is Source.HUB_DB
        exemptions = await self._journal.exemptions(self._clock.now())
        verdicts = await self._judge(read, criteria, caller, exemptions)
        names = [verdict.account.name for verdict in await asyncio.to_thread(prune_plan.chosen, verdicts, cap)]
        lost = prune_plan.lost(storage, offline=False, rows=of_database, named_servers=named_servers, names=names)
        return await asyncio.to_thread(
            prune_plan.freeze,
            verdicts,
            criteria,
            self._clock.now(),
            made_by=actor,
            life_s=self._settings.plan_life_s,
            cap=cap,
            users_total=read.users_total,
            storage=storage,
            cautions=cautions,
            lost=lost,
            protection=self._protection(),
            startup_s=startup_s,
            rows_known=of_database,
        )

    async def _unknown(self, listed: Sequence[str], read: AccountsRead) -> tuple[str, ...]:
        unknown = prune_plan.unmatched(listed, {account.name for account in read.accounts})
        if read.since is None:
            return unknown
        # Who was active recently wasn't read.
        spelled = [spelling for name in unknown for spelling in spellings(name)]
        return prune_plan.unmatched(unknown, {*spelled} - await self._reader.absent(spelled))

    # -- the second look ------------------------------------------------------------------------------------------

    def look_anew(self) -> None:
        """A plan begins or goes on, or the hub was away: no second look is based on what was read before now."""
        self._reader.look_anew()

    async def second_look(
        self, plan: PrunePlan, deletion: Deletion, acknowledged: Collection[str], undo: UndoFacts | None
    ) -> SecondLook:
        """What that very user is now (see AccountReader.again), and what people have asked for meanwhile.

        ``acknowledged`` names the cautions that are, for that plan. ``undo`` is what its undo file has of the user.
        """
        account = await self._account(plan, deletion, acknowledged)
        exemptions = await self._journal.exemptions(self._clock.now(), user=deletion.user)
        use = (await AsyncPrunes(self._journal).uses(deletion.user)).get(deletion.user)
        kept = prune_plan.protected(plan, self._protection())
        why_not = stale.second_look(deletion, account, plan.criteria, kept, exemptions, use, self._clock.now())
        if why_not is None and account is not None and undo is not None:
            why_not = stale.unsaved(account, undo)
        return SecondLook(account, why_not)

    async def count_users(self) -> int:
        """How many users the hub has now."""
        return await self._reader.count()

    async def missing(self, plan: PrunePlan, names: Sequence[str]) -> frozenset[str]:
        """Those of ``names``, users of ``plan``, who aren't there any more."""
        return await self._reader.missing(names, stale.since(plan.criteria, self._clock.now()))

    async def is_gone(self, deletion: Deletion) -> bool:
        """Whether the hub's database proves that this very user is there no more."""
        return await self._reader.is_gone(deletion.user, deletion.created)

    async def _account(self, plan: PrunePlan, deletion: Deletion, acknowledged: Collection[str]) -> Account | None:
        at = bisect_right(plan.deletions, deletion.user, key=lambda entry: entry.user)
        ahead = min(AHEAD, math.ceil(self._settings.rate * AHEAD_S) - 1)
        following = [entry.user for entry in plan.deletions[at : at + ahead]]
        try:
            return await self._reader.again(deletion.user, following)
        except HubRefused:
            # It goes on without only if somebody has acknowledged that tokens can't be seen.
            if TOKENS not in acknowledged and self._settings.token_used_within_s:
                raise
            return await self._reader.one(deletion.user, tokens=False)
