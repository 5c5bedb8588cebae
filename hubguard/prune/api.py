"""The part of the REST API that tells who is stale and why, and removes and restores users by a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, ClassVar

from typing_extensions import override

from hubguard.errors import ConfigError, HubError, HubGuardError, JournalError
from hubguard.hub.names import UnknownUser
from hubguard.prune import words as prune_words
from hubguard.prune.cycle import PruneCycles
from hubguard.prune.decide.plan import PrunePlanShape, to_shape
from hubguard.prune.decide.stale import LONGEST_S, checked
from hubguard.prune.model import PruneReason, PruneRun, PruneVerdict, StaleCriteria, UsersReport
from hubguard.times import point
from hubguard.web.auth import Caller
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api
from hubguard.web.openapi import Operation, Param, Refused

ITEM_STATES = tuple(prune_words.ITEM_WORDS)

PLANS_LISTED = 1000
"""Maximum plans listed, newest first; the journal has what older ones did."""

_WHEN = "this time, such as 2026-06-01T12:00Z, the start of a date (2026-06-01), or a span ago (90d)."

CRITERIA = (
    Param(
        "inactive_for_s",
        float,
        "A user is stale who was last active this many seconds ago; 0: nobody who was ever active. Default: the setting.",
        low=0,
        high=LONGEST_S,
    ),
    Param(
        "never_active_for_s",
        float,
        "A user is stale who was never active and was created this many seconds ago; 0: no such user. Default: the setting.",
        low=0,
        high=LONGEST_S,
    ),
    Param("groups", str, "Only members of one of these groups. Default: the setting.", low=1, high=255, many=True),
    Param("roles", str, "Only users with one of these roles. Default: the setting.", low=1, high=255, many=True),
    Param(
        "names",
        str,
        "Only users whose name matches one of these globs. Default: the setting.",
        low=1,
        high=255,
        many=True,
    ),
    Param("not_groups", str, "No members of these groups.", low=1, high=255, many=True),
    Param("not_roles", str, "No users with one of these roles.", low=1, high=255, many=True),
    Param("created_before", str, f"Only users created before {_WHEN}", low=1, high=40),
    Param("created_after", str, f"Only users created on or after {_WHEN}", low=1, high=40),
)

MOMENTS = ("created_before", "created_after")

_COUNT = Param("count", int, "How many users the plan has, as a check.", low=0, high=10_000_000, required=True)


def criteria_of(asked: Mapping[str, Any], default: StaleCriteria, now: datetime) -> StaleCriteria:
    """What a request asks for at ``now``; what it leaves out is as in ``default``. Raises Refused (400)."""

    def given(name: str) -> Any:
        value = asked.get(name)
        if value is None:
            return getattr(default, name)
        return moment_of(name, value, now) if name in MOMENTS else value

    try:
        return checked(StaleCriteria(**{field.name: given(field.name) for field in fields(StaleCriteria)}))
    except ConfigError as error:
        raise Refused(400, str(error)) from None


def moment_of(name: str, text: str, now: datetime) -> datetime:
    """The moment that ``text`` in the field ``name`` means. Raises ConfigError."""
    try:
        return point(text, now)
    except ValueError:
        raise ConfigError(name, f"{text!r} is no date such as 2026-06-01, no time and no span such as 90d") from None


def asker(who: Caller | None) -> str | None:
    """The user who asks, who is never removed by their own wish; None for a service."""
    return who.name if who is not None and who.kind == "user" else None


def chosen(
    verdicts: Iterable[PruneVerdict],
    *,
    search: str = "",
    stale: bool | None = None,
    reason: PruneReason | None = None,
    sort: str = "idle",
) -> list[PruneVerdict]:
    """Those whose name contains ``search`` (whatever the case), who are ``stale`` or not, and have this first ``reason``.

    ``sort`` is ``idle`` (longest first; who has no such time comes last) or ``name``, with ``-`` the other way round.
    """
    part = search.casefold()
    kept = [
        verdict
        for verdict in verdicts
        if (not part or part in verdict.account.name.casefold())
        and stale in (None, verdict.stale)
        and reason in (None, verdict.reason)
    ]
    by, down = sort.lstrip("-"), sort.startswith("-")
    if by == "name":
        return sorted(kept, key=lambda verdict: verdict.account.name, reverse=down)
    known = [(verdict.idle_since, verdict.account.name, verdict) for verdict in kept if verdict.idle_since is not None]
    known.sort(key=lambda row: row[:2], reverse=down)
    return [verdict for _, _, verdict in known] + [verdict for verdict in kept if verdict.idle_since is None]


def counted(verdicts: Iterable[PruneVerdict]) -> list[tuple[PruneReason, int]]:
    """How many have which first reason, in the order of the reasons, without those that nobody has."""
    by = Counter(verdict.reason for verdict in verdicts)
    return [(reason, by[reason]) for reason in PruneReason if by[reason]]


class PruneApi(Api):
    """An endpoint of pruning."""

    pruning: PruneCycles

    def criteria_of(self, asked: Mapping[str, Any]) -> StaleCriteria:
        """What a request asks for; what it leaves out is as in the settings. Raises Refused (400)."""
        return criteria_of(asked, self.pruning.default_criteria(), self.site.status().at)

    def write_csv(self, name: str, text: str) -> None:
        """Answer with a table, to be saved under that name."""
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.finish(text)


FILTERS = (
    Param("search", str, "Part of the name, whatever the case.", default="", high=255),
    Param("stale", bool, "Only who is stale; false: only who is kept."),
    Param(
        "reason",
        str,
        "Only those with this first reason.",
        choices=tuple(reason.value for reason in PruneReason),
    ),
    *CRITERIA,
)


class JudgedApi(PruneApi):
    """An endpoint about every user, judged."""

    async def judged(self, asked: Mapping[str, Any]) -> tuple[UsersReport, list[PruneVerdict]]:
        """The report by the criteria of a request, and those of its users that the request's filters let through."""
        report = await self.pruning.users(self.criteria_of(asked), caller=asker(self.who))
        reason = PruneReason(asked["reason"]) if asked["reason"] else None
        return report, chosen(report.verdicts, search=asked["search"], stale=asked["stale"], reason=reason)


class UsersApi(JudgedApi):
    """Every user, judged."""

    operations = {
        "get": Operation(
            "Every user, each with why they are stale or kept, as read a few minutes ago at most; idle for longest first.",
            prune_words.UserShape,
            "read",
            query=(OFFSET, LIMIT, *FILTERS),
            listed=True,
            paged=True,
            fails=(409,),
        )
    }

    @override
    async def get(self) -> None:
        asked = self.query()
        _, rows = await self.judged(asked)
        now = self.site.status().at
        self.write_page(rows, asked, lambda verdict: prune_words.user_shape(verdict, now))


class UsersCsvApi(JudgedApi):
    """Every user as a table."""

    operations = {
        "get": Operation(
            "Every user, each with why they are stale or kept, as CSV; idle for longest first.",
            None,
            "read",
            query=FILTERS,
            fails=(409,),
        )
    }

    async def get(self) -> None:
        """A file to save."""
        report, rows = await self.judged(self.query())
        now, since = self.site.status().at, report.active_since
        self.write_csv("users.csv", prune_words.users_csv(rows, report.criteria, now, active_since=since))


class UserApi(PruneApi):
    """One user."""

    operations = {
        "get": Operation(
            "Why that user would be removed or not, with all reasons, by a reading of now.",
            prune_words.UserShape,
            "read",
            query=CRITERIA,
            fails=(404, 409),
        )
    }

    async def get(self, name: str) -> None:
        """404 if the hub knows nobody by that name."""
        criteria = self.criteria_of(self.query())
        try:
            verdict = await self.pruning.user(name, criteria, caller=asker(self.who))
        except UnknownUser as error:
            raise Refused(404, str(error)) from None
        if verdict is None:
            raise Refused(404, nobody(name))
        self.write_json(prune_words.user_shape(verdict, self.site.status().at))


def nobody(name: str) -> str:
    """The message for a user that the hub doesn't know."""
    return f"The hub has no user {name}: there never was one, or they were deleted."


class PlanApi(PruneApi):
    """An endpoint about one plan, by its digest."""

    async def known(self, digest: str) -> PruneRun:
        """How the plan of that digest stands. Raises Refused (404) where there is none."""
        return await known_run(self.pruning, digest)


async def known_run(pruning: PruneCycles, digest: str) -> PruneRun:
    """How the plan of that digest stands. Raises Refused (404) where there is none."""
    try:
        return await pruning.run(digest)
    except (HubError, JournalError):
        raise
    except HubGuardError as error:
        raise Refused(404, str(error)) from None


class PlansApi(PruneApi):
    """What was planned, and planning."""

    operations = {
        "get": Operation(
            "Plans and what came of them, newest first.",
            prune_words.PruneRunShape,
            "read",
            query=(OFFSET, LIMIT, Param("user", str, "Only plans with a user of this name.", default="", high=255)),
            listed=True,
            paged=True,
        ),
        "post": Operation(
            "Make a plan by a reading of now, and keep it until it is used or expires. Nobody is removed.",
            PrunePlanShape,
            "prune and read",
            body=(
                *CRITERIA,
                Param("listed", str, "Only these users, by name; an empty list is nobody.", low=1, high=255, many=True),
                Param(
                    "ignore_unknown", bool, "Leave out listed names that are no user's, not refuse them.", default=False
                ),
            ),
            fails=(409,),
            status=201,
        ),
    }

    @override
    async def get(self) -> None:
        asked = self.query()
        runs = await self.pruning.runs(limit=PLANS_LISTED, user=asked["user"])
        self.write_page(runs, asked, prune_words.run_shape)

    async def post(self) -> None:
        """The plan is in the journal."""
        asked = self.body()
        assert self.who is not None
        criteria = self.criteria_of(asked)
        made = await self.pruning.plan(
            criteria, self.who.actor, caller=asker(self.who), ignore_unknown=asked["ignore_unknown"]
        )
        self.set_status(201)
        self.set_header("Location", f"{self.site.prefix}api/v1/plans/{made.digest}")
        self.write_json(to_shape(made))


class OnePlanApi(PlanApi):
    """One plan, whole, and how it stands."""

    operations = {
        "get": Operation("The whole plan, and how it stands.", prune_words.PruneStandingShape, "read", fails=(404,))
    }

    @override
    async def get(self, digest: str) -> None:
        run = await self.known(digest)
        plan = await self.pruning.plan_of(digest)
        self.write_json(prune_words.PruneStandingShape(prune_words.run_shape(run), to_shape(plan)))


class ItemsApi(PlanApi):
    """The users of a plan."""

    operations = {
        "get": Operation(
            "The users of a plan in its order, each with what came of it.",
            prune_words.PruneItemShape,
            "read",
            query=(OFFSET, LIMIT, Param("state", str, "Only users that stand so.", choices=ITEM_STATES)),
            listed=True,
            fails=(404,),
        )
    }

    async def get(self, digest: str) -> None:
        """A list, with a ``Link`` to the next page where there may be one."""
        asked = self.query()
        await self.known(digest)
        items = await self.pruning.items(digest, **asked)
        if len(items) == asked["limit"]:
            self.link_next(**{**asked, "offset": asked["offset"] + asked["limit"]})
        self.write_json([prune_words.item_shape(item) for item in items])


class CsvApi(PlanApi):
    """A plan as a table."""

    operations = {"get": Operation("The users of a plan, with what came of each, as CSV.", None, "read", fails=(404,))}

    async def get(self, digest: str) -> None:
        """A file to save."""
        await self.known(digest)
        text = prune_words.plan_csv(await self.pruning.plan_of(digest), await self.pruning.items(digest))
        self.write_csv(f"plan-{digest[:12]}.csv", text)


_ACKNOWLEDGED = Param(
    "acknowledged", str, "The cautions that there are, each by its name.", default=(), low=1, high=255, many=True
)


class ApplyApi(PlanApi):
    """Have a plan carried out."""

    operations = {
        "post": Operation(
            "Carry out a plan: its undo file is written, and it is under way, when this answers.",
            prune_words.PruneRunShape,
            "prune and read",
            body=(_COUNT, WHY, _ACKNOWLEDGED),
            fails=(404, 409),
            status=202,
        )
    }

    async def post(self, digest: str) -> None:
        """It is under way. 409 with the reason where it may not be."""
        asked = self.body()
        assert self.who is not None
        await self.known(digest)
        run = await self.pruning.apply(
            digest, asked["count"], self.who.actor, asked["why"], acknowledged=asked["acknowledged"]
        )
        self.set_status(202)
        self.write_json(prune_words.run_shape(run))


_SAYS = {
    "pause": "Remove nobody more until resumed; whoever is being removed is finished.",
    "resume": "Go on where it stopped. 409 names what must be acknowledged by now, as where the hub has another spawner.",
    "cancel": "Remove nobody more, for good.",
}


class TurnApi(PlanApi):
    """Pause, resume, cancel: the last part of the path says which. One subclass each, by ``turn_api``."""

    word: ClassVar[str] = ""

    async def post(self, digest: str) -> None:
        """The journal has it. 409 if the plan's state doesn't allow it."""
        asked = self.body()
        why = asked.pop("why")
        assert self.who is not None
        await self.known(digest)
        turn = getattr(self.pruning, self.word)
        self.write_json(prune_words.run_shape(await turn(digest, self.who.actor, why, **asked)))


def turn_api(word: str) -> type[TurnApi]:
    """The endpoint for one of pause, resume, cancel."""
    body = (WHY, _ACKNOWLEDGED) if word == "resume" else (WHY,)
    operation = Operation(_SAYS[word], prune_words.PruneRunShape, "prune and read", body=body, fails=(404, 409))
    return type(f"{word.title()}Api", (TurnApi,), {"word": word, "operations": {"post": operation}})


class RestoreApi(PlanApi):
    """Bring back the users that a plan removed."""

    operations = {
        "post": Operation(
            "Bring back the users that the plan removed, from its undo file, with the rights of the token in this request's"
            " Authorization header; done when this answers. Who is there again is left as they are.",
            prune_words.RestoredRunShape,
            "prune and read",
            body=(
                Param(
                    "count", int, "How many users the plan removed, as a check.", low=0, high=10_000_000, required=True
                ),
                WHY,
                Param("sha256", str, "The undo file's checksum (hex), where it is known.", low=64, high=64),
            ),
            fails=(404, 409),
        )
    }

    async def post(self, digest: str) -> None:
        """They are back, and the journal has each. 400 for a login by cookie: it has no rights at the hub to lend."""
        asked = self.body()
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() not in {"token", "bearer"} or not token:
            raise Refused(
                400,
                "Restoring takes a token of your own that may create users at the hub (admin:users), sent as"
                " `Authorization: token …`. Nothing was done.",
            )
        assert self.who is not None
        await self.known(digest)
        run = await self.pruning.restore(
            digest, asked["count"], self.who.actor, asked["why"], token=token, sha256=asked["sha256"]
        )
        self.write_json(prune_words.run_shape(run))
