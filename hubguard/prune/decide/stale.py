"""Who is stale, who is kept and why, and whether somebody who was to be deleted still is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from fnmatch import translate

from hubguard.errors import ConfigError
from hubguard.hub.names import plain, spellings
from hubguard.hub.nouns import Account, UndoUser
from hubguard.journal.model import Exemption
from hubguard.prune.model import Deletion, Protection, PruneReason, PruneVerdict, StaleCriteria, UndoFacts, Use

LONGEST_S = 3660 * 86400.0
"""No limit is longer than ten years, as in the settings: nothing is known of anybody from before that."""

STAMPED = timedelta(seconds=2)
"""A hub may stamp a user's activity so much before or after what HubGuard's journal has for a stop of its own."""

SAME = timedelta(seconds=1)
"""Two readings of one time may differ by so much: MySQL keeps whole seconds."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
"""Nobody was active before that."""

_NO_USE = Use()


def checked(criteria: StaleCriteria) -> StaleCriteria:
    """The same criteria with groups, roles, names and list each sorted and without doubles.

    Raises ConfigError, naming the field, if no limit is set, a limit is no number from 0 to ten years, a text is empty, or
    nobody can be created both before and after what is set.
    """
    inactive_for_s = _limit("inactive_for_s", criteria.inactive_for_s)
    never_active_for_s = _limit("never_active_for_s", criteria.never_active_for_s)
    if not inactive_for_s and not never_active_for_s:
        raise ConfigError(
            "inactive_for_s",
            "it and never_active_for_s are both 0, so that nobody would be stale; set one of them to the seconds it takes",
        )
    before, after = criteria.created_before, criteria.created_after
    if before is not None and after is not None and after >= before:
        raise ConfigError(
            "created_after", f"{after:%Y-%m-%d %H:%M} UTC isn't before created_before, so nobody would match"
        )
    return StaleCriteria(
        inactive_for_s,
        never_active_for_s,
        groups=_texts("groups", criteria.groups),
        roles=_texts("roles", criteria.roles),
        names=_texts("names", criteria.names),
        listed=None if criteria.listed is None else _texts("listed", criteria.listed),
        not_groups=_texts("not_groups", criteria.not_groups),
        not_roles=_texts("not_roles", criteria.not_roles),
        created_before=before,
        created_after=after,
    )


def _limit(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(field, f"{value!r} is no number of seconds")
    if not 0 <= value <= LONGEST_S:
        raise ConfigError(field, f"{value:g} s is out of range: 0 (off) to {LONGEST_S:g} (ten years)")
    return float(value)


def _texts(field: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigError(field, f"{values!r} is no list of texts")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(field, f"{value!r} in it is no name; leave it out")
    return tuple(sorted(set(values)))


def since(criteria: StaleCriteria, now: datetime) -> datetime:
    """Users active after this can't be stale, so they needn't be read, except those that only a stop of HubGuard's
    own makes look active: they are found later, when that is old enough.
    """
    if criteria.inactive_for_s <= 0:
        return EPOCH
    return now - timedelta(seconds=min(criteria.inactive_for_s, LONGEST_S))


def judge(
    accounts: Iterable[Account],
    criteria: StaleCriteria,
    protection: Protection,
    exemptions: Sequence[Exemption],
    uses: Mapping[str, Use],
    now: datetime,
) -> tuple[PruneVerdict, ...]:
    """A verdict for every user, in name order; of several accounts with one name the last counts.

    ``uses`` is by name; who isn't in it, of them the journal knows nothing.

    Who is kept has all reasons for that, in this order: admin, named in the config, protected group, role, name, exemption,
    active server, token, caller; then what is unknown; then active, or not asked for. So the first is the one that
    would still keep them after the limit. What is unknown of an account keeps it if a criterion or a protection depends
    on it; a token's unknown use doesn't. A time in the future makes a user look active, never stale.
    """
    judging = _Judging(criteria, protection, exemptions, now)
    by_name = {account.name: account for account in accounts}
    return tuple(judging.verdict(by_name[name], uses.get(name, _NO_USE)) for name in sorted(by_name))


def second_look(
    deletion: Deletion,
    account: Account | None,
    criteria: StaleCriteria,
    protection: Protection,
    exemptions: Sequence[Exemption],
    use: Use | None,
    now: datetime,
) -> str | None:
    """None if ``account``, as just read again (None: nobody by that name), is to be deleted; else why not, as one clause.

    Whatever of the reading that ``deletion`` is based on has changed keeps the user; servers, groups and roles may have, and
    are judged as they are now. ``criteria`` are those of the plan, the rest is of now.
    """
    if account is None or account.name != deletion.user:
        # A database that takes upper and lower case for the same finds somebody else by that name.
        return "there is no such user any more"
    if None not in (deletion.id, account.id) and deletion.id != account.id:
        return _MADE_ANEW
    if deletion.created is not None and account.created is not None and abs(account.created - deletion.created) > SAME:
        return _MADE_ANEW
    if not account.times_known:
        return _SPARED[PruneReason.NO_TIMES]
    was, is_now = deletion.last_activity, account.last_activity
    if was is not None and is_now is None:
        return _MADE_ANEW
    if is_now is not None and (was is None or is_now > was + SAME):
        return _SPARED[PruneReason.ACTIVE]
    if is_now is not None and was is not None and is_now < was - SAME:
        return "the hub's record of the user's activity isn't what it was"
    verdict = _Judging(criteria, protection, exemptions, now).verdict(account, use or _NO_USE)
    return None if verdict.stale else _SPARED[verdict.reason]


def undo_facts(user: UndoUser) -> UndoFacts:
    """What of that user the undo file has that it is of."""
    groups, roles = frozenset(user.groups), frozenset(user.roles)
    servers = frozenset(server.name for server in user.servers)
    rows = user.rows
    if rows is None or not rows.get("users"):
        return UndoFacts(groups, roles, servers)
    # It has rows of others, too, such as the tokens that their servers have given out.
    own = rows["users"][0].get("id")
    tokens = sum(row.get("user_id") == own for row in rows.get("api_tokens", ()))
    shares = sum(own in (row.get("owner_id"), row.get("user_id")) for row in rows.get("shares", ()))
    return UndoFacts(groups, roles, servers, tokens, shares)


def unsaved(account: Account, undo: UndoFacts) -> str | None:
    """Why that user isn't to be deleted: what they have by now and ``undo`` hasn't, as one clause; None: nothing.

    What neither tells isn't missed, nor what they no longer have: the hub purges expired tokens by itself. Nor is a default
    server that doesn't run: the hub makes a row for it as soon as anybody reads the user, ourselves included (5.5, 6.1).
    """
    servers = [server.name for server in account.servers if server.name or server.active]
    changes = [
        f"the {what} {name or '(default)'}"
        for what, has, had in (
            ("group", account.groups, undo.groups),
            ("role", account.roles, undo.roles),
            ("server", servers, undo.servers),
        )
        for name in sorted({*(has or ())} - had)
    ]
    for what, count, was in (("token", account.tokens, undo.tokens), ("share", account.shares, undo.shares)):
        if count is not None and was is not None and count > was:
            changes.append(f"{count - was} more {what}{'s' * (count - was > 1)}")
    return f"changed since the undo file was written: {', '.join(changes)}" if changes else None


_MADE_ANEW = "the user was deleted and created again in the meantime"

_SPARED: Mapping[PruneReason, str] = {
    PruneReason.ADMIN: "the user is an admin",
    PruneReason.IN_CONFIG: "the hub's config names the user",
    PruneReason.PROTECTED_GROUP: "the user is in a protected group",
    PruneReason.PROTECTED_ROLE: "the user has a protected role",
    PruneReason.PROTECTED_NAME: "the user's name is protected",
    PruneReason.EXEMPTION: "somebody has asked to keep the user or a server of theirs",
    PruneReason.SERVER_ACTIVE: "a server of the user's runs or is pending",
    PruneReason.TOKEN_USED: "one of the user's tokens was used recently",
    PruneReason.CALLER: "the user is the one who asks",
    PruneReason.CANT_TELL: "the user's groups, roles or creation are unknown, and the criteria or protections need them",
    PruneReason.NO_TIMES: "it is unknown when the user was active",
    PruneReason.ACTIVE: "the user was active in the meantime",
    PruneReason.NOT_ASKED_FOR: "the user is no longer among those that were asked for",
}


class _Judging:
    """What is the same for all users of one judgement."""

    def __init__(
        self, criteria: StaleCriteria, protection: Protection, exemptions: Sequence[Exemption], now: datetime
    ) -> None:
        self._criteria = criteria
        self._protection = protection
        self._now = now
        self._exempted = {
            exemption.user for exemption in exemptions if exemption.covers(exemption.user, exemption.server or "", now)
        }
        self._callers = frozenset(protection.callers)
        self._in_config = protection.in_config or frozenset()
        self._protected_groups = frozenset(protection.groups)
        self._protected_roles = frozenset(protection.roles)
        self._protected_name = _matcher(protection.names)
        self._groups = frozenset(criteria.groups)
        self._roles = frozenset(criteria.roles)
        self._name = _matcher(criteria.names)
        listed = criteria.listed
        self._listed = None if listed is None else {spelling for name in listed for spelling in spellings(name)}

    def verdict(self, account: Account, use: Use) -> PruneVerdict:
        """What is to become of ``account``."""
        idle_since, stale_by = _idle_since(account, use)
        criteria = self._criteria
        limit_s = criteria.inactive_for_s if stale_by is PruneReason.INACTIVE else criteria.never_active_for_s
        reasons = [*self._protections(account), *self._unknown(account)]
        due_at, asked_for = None, self._asked_for(account)
        if idle_since is None:
            reasons.append(PruneReason.NO_TIMES)
        elif limit_s > 0:
            due_at = _after(idle_since, limit_s)
            if (self._now - idle_since).total_seconds() < limit_s:
                reasons.append(PruneReason.ACTIVE)
        else:
            asked_for = False
        if not asked_for:
            reasons.append(PruneReason.NOT_ASKED_FOR)
        return PruneVerdict(account, not reasons, tuple(reasons) or (stale_by,), idle_since, due_at)

    def _protections(self, account: Account) -> Iterable[PruneReason]:
        protection, groups, roles = self._protection, account.groups or (), account.roles or ()
        # The role can be given to who isn't marked as an admin.
        if account.admin or "admin" in roles:
            yield PruneReason.ADMIN
        if account.name in self._in_config:
            yield PruneReason.IN_CONFIG
        if not self._protected_groups.isdisjoint(groups):
            yield PruneReason.PROTECTED_GROUP
        if not self._protected_roles.isdisjoint(roles):
            yield PruneReason.PROTECTED_ROLE
        if self._protected_name(account.name):
            yield PruneReason.PROTECTED_NAME
        if account.name in self._exempted:
            yield PruneReason.EXEMPTION
        if any(server.active or server.pending is not None for server in account.servers):
            yield PruneReason.SERVER_ACTIVE
        if account.token_used_at is not None and protection.token_used_within_s > 0:
            unused_s = (self._now - account.token_used_at).total_seconds()
            if unused_s < protection.token_used_within_s:
                yield PruneReason.TOKEN_USED
        if account.name in self._callers:
            yield PruneReason.CALLER

    def _unknown(self, account: Account) -> Iterable[PruneReason]:
        criteria = self._criteria
        groups_matter = self._protected_groups or self._groups or criteria.not_groups
        roles_matter = self._protected_roles or self._roles or criteria.not_roles
        creation_matters = criteria.created_before or criteria.created_after
        if (
            (account.groups is None and groups_matter)
            or (account.roles is None and roles_matter)
            or (account.created is None and creation_matters)
        ):
            yield PruneReason.CANT_TELL

    def _asked_for(self, account: Account) -> bool:
        """Whether they fit all that is set besides the limits, as far as that is known."""
        criteria, created = self._criteria, account.created
        return (
            (not self._groups or account.groups is None or not self._groups.isdisjoint(account.groups))
            and (not self._roles or account.roles is None or not self._roles.isdisjoint(account.roles))
            and (not criteria.names or self._name(account.name))
            and not {*criteria.not_groups}.intersection(account.groups or ())
            and not {*criteria.not_roles}.intersection(account.roles or ())
            and (criteria.created_before is None or created is None or created < criteria.created_before)
            and (criteria.created_after is None or created is None or created >= criteria.created_after)
            and (self._listed is None or account.name in self._listed)
        )


def _idle_since(account: Account, use: Use) -> tuple[datetime | None, PruneReason]:
    """What the limit counts from, and which: the last real use, or the creation of who was never active.

    Use that the journal has no record of isn't denied: a stop of our own counts as use then, since a server was started
    before it. Of who has a time that can't be read, nothing counts.
    """
    active_at = account.last_activity
    if not account.times_known:
        return None, PruneReason.INACTIVE
    if active_at is not None and use.active_at is not None:
        stamped = any(begins - STAMPED <= active_at <= ends + STAMPED for begins, ends in use.stops)
        active_at = use.active_at if stamped else max(active_at, use.active_at)
    elif active_at is None:
        active_at = use.active_at
    if active_at is None:
        return account.created, PruneReason.NEVER_ACTIVE
    return (active_at if account.created is None else max(active_at, account.created)), PruneReason.INACTIVE


def _after(at: datetime, seconds: float) -> datetime | None:
    try:
        return at + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether one of ``globs``, as typed or as the hub would have it, matches a whole name; none of them matches nothing."""
    if not globs:
        return lambda _: False
    readings = (reading for glob in globs for spelling in spellings(glob) for reading in (spelling, plain(spelling)))
    pattern = re.compile("|".join(map(translate, dict.fromkeys(readings))))
    return lambda name: pattern.match(name) is not None
