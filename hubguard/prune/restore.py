"""Brings users back to a running hub, by its API: the user, then their groups, then the named servers that they had."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hubguard.errors import BudgetExhausted, HubBusy, HubError, HubFailed, HubGuardError, HubRefused, HubUnreachable
from hubguard.hub.api import HubAPI
from hubguard.hub.nouns import UndoUser
from hubguard.model import Cause, Outcome, OutcomeKind, User

AT_ONCE = 100
"""Users restored, and read again, before the next ones: a group takes that many with one request.

The hub does such a request in one piece, and nobody else is served meanwhile (6.1)."""

IN_FLIGHT = 10
"""Maximum users with a request under way or waiting for the budget, which paces them."""

SKEW_S = 5.0
"""The hub's clock is known to a second or so; whoever was pruned was made long before."""

_RIGHTS = "admin:users and read:servers"

Confirm = Callable[[], Awaitable[None]]
Begin = Callable[[Sequence[str]], Awaitable[None]]
Progress = Callable[[str, Outcome], Awaitable[None]]


class Restorer:
    """Brings users back, as far as the hub's API can: no roles, tokens or shares, and no state of a spawner's.

    ``hub`` has the rights of who asks for it. ``confirm`` is awaited before each request that changes something, when all
    waiting is over; what it raises ends the restoring.
    """

    def __init__(self, hub: HubAPI, *, confirm: Confirm | None = None) -> None:
        self._hub = hub
        self._confirm = confirm

    async def restore(
        self,
        users: Sequence[UndoUser],
        *,
        since: datetime | None = None,
        begin: Begin | None = None,
        progress: Progress | None = None,
    ) -> tuple[tuple[str, Outcome], ...]:
        """Each user's name and what came of them, in that order.

        ``begin`` is awaited with the names of some users before anything is sent for them, ``progress`` with each user when
        what came of them is known; what these raise ends it all and is raised here.
        What is nobody's, and has no name, is left out: it comes back offline only.

        DONE: a re-read shows them, whether they came back now or earlier; what didn't come back is in the detail.
        SKIPPED: they were never deleted, or it wasn't tried. FAILED: a re-read shows that they aren't there. UNVERIFIED: what
        came of it is unknown.
        Nobody is made an admin, and admins who are there are left as they are; so is whoever the hub says was made before
        ``since`` (when the undo file was written), since they were never deleted. Others who are there get the groups and
        named servers that they lack: asking again finishes what was broken off. None: everybody is taken for one of these.
        One failure never ends the rest. What does, with the rest skipped: the hub refusing the token a request, the breaker
        open, ``confirm``.
        """
        work = _Work(progress)
        cases = [_Case(user) for user in users if user.name]
        for first in range(0, len(cases), AT_ONCE):
            batch = cases[first : first + AT_ONCE]
            if begin is not None and not work.ended:
                await begin([case.user.name for case in batch])
            await _all(batch, lambda case: self._make(case, since, work))
            under_way = [case for case in batch if case.outcome is None]
            await self._into_groups(under_way, work)
            await _all(under_way, lambda case: self._make_servers(case, work))
            await _all(under_way, lambda case: self._read_again(case, work))
        return tuple((case.user.name, case.outcome) for case in cases if case.outcome is not None)

    # -- the user -------------------------------------------------------------------------------------------------

    async def _make(self, case: _Case, since: datetime | None, work: _Work) -> None:
        if not work.ended:
            try:
                if await self._hub.create_user(case.user.name, confirm=self._confirm):
                    return
            except HubRefused as error:
                work.refused(error, "admin:users")
            except HubError as error:
                case.failed = error
            except HubGuardError as error:
                work.end(str(error))
            else:
                case.was_there = True
        if case.failed is None and not case.was_there:
            await work.settle(case, Outcome(OutcomeKind.SKIPPED, f"not tried: {work.ended}", Cause.NOT_TRIED))
        elif (outcome := await self._not_made(case, since, work)) is not None:
            await work.settle(case, outcome)

    async def _not_made(self, case: _Case, since: datetime | None, work: _Work) -> Outcome | None:
        """None: they are there all the same, and may lack the rest."""
        try:
            there = await self._hub.get_user(case.user.name)
        except (HubError, BudgetExhausted) as error:
            work.unread(error)
            if case.was_there:
                return Outcome(OutcomeKind.UNVERIFIED, f"was there, and couldn't be read: {error}")
            return Outcome(OutcomeKind.UNVERIFIED, f"{case.failed} Nor could they be read again: {error}")
        if there is None:
            if isinstance(case.failed, HubUnreachable):
                return Outcome(OutcomeKind.UNVERIFIED, f"{case.failed} They aren't there by now.")
            return Outcome(OutcomeKind.FAILED, str(case.failed or "was there, and is gone again"))
        if since is not None and there.created is None:
            return Outcome(OutcomeKind.SKIPPED, "was there, maybe never deleted: the hub doesn't show since when")
        if since is not None and there.created is not None and there.created < self._by_hub(since):
            return Outcome(OutcomeKind.SKIPPED, "was there: they weren't deleted")
        if there.admin:
            return Outcome(OutcomeKind.DONE, "is back already, as an admin, and is left as they are")
        if case.was_there:
            case.there = there
        return None

    def _by_hub(self, at: datetime) -> datetime:
        return at + timedelta(seconds=(self._hub.skew_s or 0.0) - SKEW_S)

    # -- what hangs on them ---------------------------------------------------------------------------------------

    async def _into_groups(self, cases: Iterable[_Case], work: _Work) -> None:
        members: dict[str, list[_Case]] = {}
        for case in cases:
            for group in case.user.groups:
                if case.there is None or group not in (case.there.groups or ()):
                    members.setdefault(group, []).append(case)
        for group in sorted(members):
            await self._into_group(group, members[group], work)

    async def _into_group(self, group: str, cases: Sequence[_Case], work: _Work) -> None:
        why = work.ended or work.no_groups.get(group, "")
        if not why:
            try:
                await self._hub.add_to_group(group, [case.user.name for case in cases], confirm=self._confirm)
                return
            except HubRefused as error:
                why = work.refused(error, "groups")
            except HubFailed as error:
                if error.status == 400 and len(cases) > 1:
                    # A user that the hub doesn't find by that name keeps all others out, too.
                    half = len(cases) // 2
                    await self._into_group(group, cases[:half], work)
                    await self._into_group(group, cases[half:], work)
                    return
                why = f"the hub failed to, {error.status}"
                if error.status == 404:
                    why = work.no_groups[group] = "the hub no longer has it"
            except HubBusy:
                why = "the hub was too busy"
            except HubError as error:
                why = "the hub didn't answer" if isinstance(error, HubUnreachable) else "the hub's answer made no sense"
            except HubGuardError as error:
                why = work.end(str(error))
        for case in cases:
            case.why[group] = why

    async def _make_servers(self, case: _Case, work: _Work) -> None:
        for server in case.user.servers:
            why = work.ended or work.no_servers
            if not server.name:
                if server.options:
                    case.lost.append("the options of the default server")
                continue
            if not why:
                try:
                    await self._hub.create_server(case.user.name, server.name, server.options, confirm=self._confirm)
                    continue
                except HubRefused as error:
                    why = work.refused(error, "servers, or admin:servers")
                except HubError as error:
                    why = str(error)
                    if isinstance(error, HubFailed) and error.status == 405:
                        why = work.no_servers = "hubs before 6.0 can't have one that was never started"
                except HubGuardError as error:
                    why = work.end(str(error))
            case.lost.append(f"the server {server.name} ({why})")

    # -- proof ----------------------------------------------------------------------------------------------------

    async def _read_again(self, case: _Case, work: _Work) -> None:
        try:
            seen = await self._hub.get_user(case.user.name)
        except (HubError, BudgetExhausted) as error:
            work.unread(error)
            await work.settle(case, Outcome(OutcomeKind.UNVERIFIED, f"couldn't be read again: {error}"))
            return
        if seen is None:
            await work.settle(case, Outcome(OutcomeKind.FAILED, "the hub made them, and doesn't have them"))
        else:
            await work.settle(case, _outcome(case, seen))


def _outcome(case: _Case, seen: User) -> Outcome:
    lost = [
        f"the group {group} ({case.why.get(group, 'the hub said that they are in it')})"
        for group in case.user.groups
        if group not in (seen.groups or ())
    ]
    lost += case.lost
    lost += [f"the role {role}" for role in case.user.roles if role not in (seen.roles or ())]
    lost += _of_rows(case.user)
    not_back = f"not back: {', '.join(lost)}" if lost else ""
    if case.there is None:
        return Outcome(OutcomeKind.DONE, not_back or "is back")
    came = sorted({*case.user.groups} & {*(seen.groups or ())} - {*(case.there.groups or ())})
    again = (
        f"was there, and is in the group{'s' * (len(came) > 1)} {', '.join(came)} again" if came else "is back already"
    )
    return Outcome(OutcomeKind.DONE, again + (f"; {not_back}" if lost else ""))


def _of_rows(user: UndoUser) -> list[str]:
    """What of their rows the API brings nobody back. The hub writes nothing, null or {} for a spawner without state."""
    rows = user.rows or {}
    state = any(row.get("state") not in (None, "", "null", "{}") for row in rows.get("spawners", ()))
    of_tables = (("api_tokens", "tokens"), ("shares", "shares"), ("share_codes", "share codes"))
    counts = [f"{len(rows[table])} of {words}" for table, words in of_tables if rows.get(table)]
    return ["the spawner's state"] * state + counts


async def _all(cases: Iterable[_Case], do: Callable[[_Case], Awaitable[None]]) -> None:
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(case: _Case) -> None:
        async with room:
            await do(case)

    tasks = [asyncio.ensure_future(one(case)) for case in cases]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Case:
    """One user. ``was_there``: the hub has them already, as ``there`` tells; ``failed`` is its no to making them.

    ``why`` says for a group why they weren't put into it, ``lost`` what else doesn't come back.
    """

    user: UndoUser
    was_there: bool = False
    there: User | None = None
    failed: HubError | None = None
    why: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    outcome: Outcome | None = None


@dataclass(slots=True)
class _Work:
    """What holds for all users: why nothing more is sent, which groups are gone, why no servers can be made."""

    progress: Progress | None
    ended: str = ""
    no_groups: dict[str, str] = field(default_factory=dict)
    no_servers: str = ""

    async def settle(self, case: _Case, outcome: Outcome) -> None:
        case.outcome = outcome
        if self.progress is not None:
            await self.progress(case.user.name, outcome)

    def end(self, why: str) -> str:
        self.ended = self.ended or why
        return why

    def refused(self, error: HubRefused, right: str) -> str:
        return self.end(f"it takes the right {right}, which the token that asks lacks: {error}")

    def unread(self, error: HubError | BudgetExhausted) -> None:
        """Where reading is refused, or the breaker is open, it isn't this one user's matter."""
        if isinstance(error, HubRefused):
            self.refused(error, _RIGHTS)
        elif isinstance(error, BudgetExhausted):
            self.end(str(error))
