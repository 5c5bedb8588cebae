"""The part of the REST API that tells of drift, and repairs it."""

from __future__ import annotations

import hmac
from typing import Any

from hubguard.drift import beliefs, routes
from hubguard.drift import words as drift_words
from hubguard.drift.model import DriftKind, DriftReport
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api
from hubguard.web.openapi import BY_THE_HUB, Operation, Param, Refused

KIND = Param(
    "kind",
    str,
    "Only of this kind; may be repeated.",
    default=(),
    choices=tuple(kind.value for kind in DriftKind),
    many=True,
)
STATES = tuple(state.value for state in drift_words.DriftState)
VERDICTS = tuple(verdict.value for verdict in routes.RouteVerdict)


class LookedApi(Api):
    """An endpoint that tells what the last look found."""

    def found(self) -> DriftReport:
        """The last look's report. Raises Refused (409) before the first: an empty list would say that all agree."""
        report = self.site.guard.drift()
        if report is None:
            raise Refused(409, drift_words.not_looked(self.site.guard.status()))
        return report


class DriftApi(LookedApi):
    """The differences."""

    operations = {
        "get": Operation(
            "Where hub, database, proxy and backends differ: what is raised first, oldest first; then what is suspected.",
            drift_words.DriftShape,
            "read",
            query=(
                OFFSET,
                LIMIT,
                KIND,
                Param("state", str, "Only what is raised, or only suspected.", choices=STATES),
                Param(
                    "q", str, "Part of the server's name, route or backend, whatever the case.", default="", high=255
                ),
            ),
            listed=True,
            paged=True,
            fails=(409,),
        )
    }

    def get(self) -> None:
        """See write_page."""
        asked = self.query()
        report = self.found()
        wanted = drift_words.DriftState(asked["state"]) if asked["state"] else None
        kinds = [DriftKind(kind) for kind in asked["kind"]]
        repairs = drift_words.last_repairs(report.repaired)
        unasked = drift_words.without_asking(report, self.site.guard.status())
        rows = drift_words.chosen(report.drifts, q=asked["q"], kinds=kinds, wanted=wanted)
        self.write_page(rows, asked, lambda row: drift_words.drift(row, repairs, unasked))


class ReportApi(Api):
    """The last look in numbers."""

    operations = {
        "get": Operation(
            "What the last look found, in numbers: its sources, what can't be told, the proxy's watch, the last repairs.",
            drift_words.ReportShape,
            "read",
        )
    }

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(drift_words.report(self.site.guard.drift(), self.site.guard.status()))


class LooksApi(Api):
    """A look that someone asks for."""

    operations = {
        "post": Operation(
            "Look at all sources now; answers when that is done, with what was found.",
            drift_words.ReportShape,
            "act and read",
            body=(),
            fails=(400, 409),
        )
    }

    async def post(self) -> None:
        """It takes the right to act, since each look costs the hub something."""
        self.body()
        found = await self.site.guard.look_for_drift()
        self.write_json(drift_words.report(found, self.site.guard.status()))


class RoutesApi(LookedApi):
    """The proxy's table."""

    operations = {
        "get": Operation(
            "The proxy's routes as of the last look, each with whether it is right, and those that are missing.",
            routes.RouteShape,
            "read",
            query=(
                OFFSET,
                LIMIT,
                Param("verdict", str, "Only routes that stand so.", choices=VERDICTS),
                Param("q", str, "Part of the path, whatever the case.", default="", high=255),
            ),
            listed=True,
            paged=True,
            fails=(409,),
        )
    }

    def get(self) -> None:
        """See write_page. 409 where the table couldn't be read: an empty list would say that there are no routes."""
        asked = self.query()
        report = self.found()
        if report.world.routes is None:
            raise Refused(409, "The proxy's routes aren't known: none of the ways to read them gave an answer.")
        part = asked["q"].casefold()
        rows = [
            row
            for row in routes.routes(report)
            if part in row.path.casefold() and asked["verdict"] in {None, row.verdict.value}
        ]
        self.write_page(rows, asked, lambda row: row)


class RepairsApi(Api):
    """Plan repairs, then have them done."""

    operations = {
        "post": Operation(
            "Without a digest: what would be done about these differences; nothing is done. With the digest and the count of"
            " that plan: it is carried out (202), and what comes of it is in the report's repaired.",
            drift_words.PlanShape,
            "act and read",
            body=(
                Param("ids", str, "What to repair, by id.", default=(), low=1, high=16, many=True),
                Param(
                    "kinds",
                    str,
                    "What to repair: all that is raised of these kinds.",
                    default=(),
                    choices=KIND.choices,
                    many=True,
                ),
                Param("digest", str, "That of the plan to carry out.", low=1, high=64),
                Param("count", int, "How many repairs that plan has, as a check.", low=0, high=10_000_000),
                WHY,
            ),
            accepts=True,
            fails=(409,),
        )
    }

    async def post(self) -> None:
        """A plan, or that it is under way."""
        asked = self.body()
        guard = self.site.guard
        assert self.who is not None
        if asked["digest"] is None:
            self._refuse_a_mixture(asked)
            kinds = tuple(DriftKind(kind) for kind in asked["kinds"])
            self.write_json(drift_words.plan(guard.plan_repairs(ids=asked["ids"], kinds=kinds)))
            return
        if asked["ids"] or asked["kinds"]:
            raise Refused(400, "digest: names a plan that is made already; leave ids and kinds out")
        if asked["count"] is None:
            raise Refused(400, "count: is missing; it is how many repairs the plan of that digest has")
        made = await guard.repair(asked["digest"], asked["count"], self.who.actor, asked["why"])
        self.set_status(202)
        self.write_json(drift_words.plan(made))

    def _refuse_a_mixture(self, asked: dict[str, Any]) -> None:
        if asked["count"] is not None:
            raise Refused(400, "digest: is missing; with a count comes the digest of the plan that it counts")
        if not asked["ids"] and not asked["kinds"]:
            raise Refused(400, "ids: give these, or kinds, or both")


class BeliefsApi(LookedApi):
    """One server across all sources."""

    operations = {
        "get": Operation(
            "What each source says of one server, whether the hub knows it or not; an empty name is the default server.",
            beliefs.BeliefsShape,
            "read",
            fails=(409,),
        )
    }

    async def get(self, user: str, name: str) -> None:
        """See ``operations``. Never 404: that no source knows of it is an answer."""
        report = self.found()
        entries = await self.site.guard.entries(limit=1, user=user, server=name)
        self.write_json(beliefs.beliefs(report, user, name, entries, self.site.guard.status()))


class OutlivedApi(Api):
    """What the hub's own spawner says right after a stop. The hub calls it in the middle of that stop, so that nothing here
    may ask the hub anything: whoever has our service's token is believed.
    """

    operations = {
        "post": Operation(
            "The backend of a server lived on after the hub had stopped it.",
            None,
            BY_THE_HUB,
            body=(
                Param("user", str, "Whose server it was.", low=1, high=255, required=True),
                Param("server", str, "Which; empty for the default server.", high=255, required=True),
                Param("detail", str, "One clause on what was seen.", default="", high=500),
            ),
            answers=False,
        )
    }

    async def prepare(self) -> None:
        """Afterwards it is our own service's token. Raises Refused (401)."""
        if self.request.method != "POST":
            raise Refused(405, "This address takes POST only.")
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        ours = self.site.service_token
        given = token.strip() if scheme.lower() in {"token", "bearer"} else ""
        if not ours or not hmac.compare_digest(given.encode(), ours.encode()):
            raise Refused(401, "Only the hub that runs HubGuard tells this, with the token of HubGuard's own service.")

    def post(self) -> None:
        """The guard knows of it."""
        asked = self.body()
        self.site.guard.tell_outlived(asked["user"], asked["server"], asked["detail"])
        self.set_status(204)
