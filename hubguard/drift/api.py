"""The part of the REST API that reports drift and repairs it."""

from __future__ import annotations

from typing import Any

from hubguard.drift import beliefs, routes
from hubguard.drift import shapes as drift_shapes
from hubguard.drift import words as drift_words
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.model import DriftKind, DriftReport
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.model import Order
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api, HubReport
from hubguard.web.openapi import BY_THE_HUB, Operation, Param, Refused

KIND = Param(
    "kind",
    str,
    "Only this kind; may be repeated.",
    default=(),
    choices=tuple(kind.value for kind in DriftKind),
    many=True,
)
STATES = tuple(state.value for state in drift_shapes.DriftState)
VERDICTS = tuple(verdict.value for verdict in routes.RouteVerdict)


class FollowedApi(Api):
    """An endpoint of drift."""

    drifts: DriftCycles


class LookedApi(FollowedApi):
    """An endpoint that returns what the last look found."""

    def report(self) -> DriftReport:
        """The last report. Raises Refused (409) before the first look: an empty list would say that all agree."""
        report = self.drifts.report
        if report is None:
            raise Refused(409, drift_words.why_no_look(self.site.status()))
        return report


class DriftApi(LookedApi):
    """The differences."""

    operations = {
        "get": Operation(
            "Where hub, database, proxy and backends differ: the raised first, oldest first; then the suspected.",
            drift_shapes.DriftShape,
            "read",
            query=(
                OFFSET,
                LIMIT,
                KIND,
                Param("state", str, "Only the raised, or only the suspected.", choices=STATES),
                Param("q", str, "Part of the server's name, route or backend, in any case.", default="", high=255),
            ),
            listed=True,
            paged=True,
            fails=(409,),
        )
    }

    def get(self) -> None:
        asked = self.query()
        report = self.report()
        wanted = drift_shapes.DriftState(asked["state"]) if asked["state"] else None
        kinds = [DriftKind(kind) for kind in asked["kind"]]
        repairs = drift_shapes.latest_repairs(report.repaired)
        policy = drift_words.policy_sentences(report, self.site.status())
        rows = drift_shapes.select(report.drifts, q=asked["q"], kinds=kinds, state=wanted)
        self.write_page(rows, asked, lambda row: drift_shapes.describe_drift(row, repairs, policy))


class ReportApi(FollowedApi):
    """The last look in numbers."""

    operations = {
        "get": Operation(
            "What the last look found, in numbers: sources, what is unknown, the proxy watch, the last repairs.",
            drift_shapes.ReportShape,
            "read",
        )
    }

    def get(self) -> None:
        self.write_json(drift_shapes.describe_report(self.drifts.report, self.site.status()))


class LooksApi(FollowedApi):
    """A look on request."""

    operations = {
        "post": Operation(
            "Look at all sources now, and return what that found.",
            drift_shapes.ReportShape,
            "act and read",
            body=(),
            fails=(400, 409),
        )
    }

    async def post(self) -> None:
        """Needs the right to act, since each look costs the hub something."""
        self.body()
        report = await self.drifts.look()
        self.write_json(drift_shapes.describe_report(report, self.site.status()))


class RoutesApi(LookedApi):
    """The proxy's table."""

    operations = {
        "get": Operation(
            "The proxy's routes as of the last look, each with its verdict, and those that are missing.",
            routes.RouteShape,
            "read",
            query=(
                OFFSET,
                LIMIT,
                Param("verdict", str, "Only routes with this verdict.", choices=VERDICTS),
                Param("q", str, "Part of the path, in any case.", default="", high=255),
            ),
            listed=True,
            paged=True,
            fails=(409,),
        )
    }

    def get(self) -> None:
        """409 if the table couldn't be read: an empty list would say that there are no routes."""
        asked = self.query()
        report = self.report()
        if report.world.routes is None:
            raise Refused(409, "The proxy's routes are unknown: none of the ways to read them gave an answer.")
        part = asked["q"].casefold()
        rows = [
            row
            for row in routes.list_routes(report)
            if part in row.path.casefold() and asked["verdict"] in {None, row.verdict.value}
        ]
        self.write_page(rows, asked, lambda row: row)


class RepairsApi(FollowedApi):
    """Plan repairs, then apply the plan."""

    operations = {
        "post": Operation(
            "Without a digest: plan repairs of these differences; nothing is repaired. With the digest and count of that"
            " plan: apply it (202). The outcomes appear in the report's repaired.",
            drift_shapes.PlanShape,
            "act and read",
            body=(
                Param("ids", str, "What to repair, by id of the difference.", default=(), low=1, high=16, many=True),
                Param(
                    "kinds",
                    str,
                    "What to repair: every raised difference of these kinds.",
                    default=(),
                    choices=KIND.choices,
                    many=True,
                ),
                Param("digest", str, "Digest of the plan to apply.", low=1, high=64),
                Param("count", int, "Number of repairs in that plan, as a check.", low=0, high=10_000_000),
                WHY,
            ),
            accepts=True,
            fails=(409,),
        )
    }

    async def post(self) -> None:
        """Return the plan, or begin to apply it."""
        asked = self.body()
        assert self.who is not None
        if asked["digest"] is None:
            self._refuse_a_mixture(asked)
            kinds = tuple(DriftKind(kind) for kind in asked["kinds"])
            self.write_json(drift_shapes.describe_plan(self.drifts.plan(ids=asked["ids"], kinds=kinds)))
            return
        if asked["ids"] or asked["kinds"]:
            raise Refused(400, "digest: names a plan that exists already; leave out ids and kinds")
        if asked["count"] is None:
            raise Refused(400, "count: is missing; it is the number of repairs in the plan of that digest")
        plan = await self.drifts.repair(
            asked["digest"], asked["count"], Order(self.who.actor, asked["why"], asked=True)
        )
        self.set_status(202)
        self.write_json(drift_shapes.describe_plan(plan))

    def _refuse_a_mixture(self, asked: dict[str, Any]) -> None:
        if asked["count"] is not None:
            raise Refused(400, "digest: is missing; a count needs the digest of its plan")
        if not asked["ids"] and not asked["kinds"]:
            raise Refused(400, "ids: give these, or kinds, or both")


class BeliefsApi(LookedApi):
    """One server across all sources."""

    journal: AsyncJournal

    operations = {
        "get": Operation(
            "What each source says of one server, known to the hub or not. An empty name is the default server.",
            beliefs.BeliefsShape,
            "read",
            fails=(409,),
        )
    }

    async def get(self, user: str, name: str) -> None:
        """Never 404: that no source knows the server is an answer."""
        report = self.report()
        entries = await self.journal.entries(limit=1, user=user, server=name)
        self.write_json(beliefs.compare_beliefs(report, user, name, entries, self.site.status()))


class OutlivedApi(FollowedApi, HubReport):
    """The hub's own report that a backend outlived its stop.

    The hub calls this in the middle of the stop, so nothing here may ask the hub: our service's token is enough.
    """

    operations = {
        "post": Operation(
            "Report that the backend of a server outlived its stop.",
            None,
            BY_THE_HUB,
            body=(
                Param("user", str, "The server's user.", low=1, high=255, required=True),
                Param("server", str, "The server's name; empty for the default server.", high=255, required=True),
                Param("detail", str, "What was seen, in one clause.", default="", high=500),
            ),
            answers=False,
        )
    }

    def post(self) -> None:
        """Note it."""
        asked = self.body()
        self.drifts.tell_outlived(asked["user"], asked["server"], asked["detail"])
        self.set_status(204)
