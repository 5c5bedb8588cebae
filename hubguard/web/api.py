"""The REST API, metrics and health. JSON in and out; every error is one clear line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hubguard.model import Entry, Exemption, Standing
from hubguard.web import present, shapes
from hubguard.web.base import Base
from hubguard.web.openapi import Operation, Param, Refused, document, from_body, from_query

PAGINATION = "application/jupyterhub-pagination+json"
"""As with the hub: asked for in Accept, a list comes as ``items`` with ``_pagination``."""

YEAR_S = 366 * 86400.0

OFFSET = Param("offset", int, "Where the page begins.", default=0, low=0, high=10_000_000)
LIMIT = Param("limit", int, "How many at most.", default=100, low=1, high=1000)
WHY = Param("why", str, "The reason, for the journal.", default="", high=500)
SERVER_FILTERS = (
    Param("q", str, "Part of the user's or server's name, whatever the case.", default="", high=255),
    Param("standing", str, "Only servers with this standing.", choices=tuple(one.value for one in Standing)),
    Param(
        "sort",
        str,
        "The order; with - the other way round. What has no such time comes last.",
        default="due",
        choices=tuple(sign + name for name in shapes.SORTS for sign in ("", "-")),
    ),
)
EVENTS = (
    *("intent", "outcome", "armed", "observing", "held", "resumed", "kept", "released"),
    *("braked", "brake-over", "finding", "cleared", "cycle", "lease", "note"),
)
JOURNAL_FILTERS = (
    Param("before_id", int, "Only entries older than this one.", low=1, high=2**62),
    LIMIT,
    Param("user", str, "Only what concerns this user's servers.", high=255),
    Param("server", str, "Only servers of this name; empty for default servers.", high=255),
    Param("event", str, "Only this kind of entry.", choices=EVENTS),
)


class Api(Base):
    """An endpoint. ``operations`` holds, by method, what it takes and gives."""

    operations: ClassVar[dict[str, Operation]] = {}

    async def prepare(self) -> None:
        """The rights are those of the operation."""
        method = (self.request.method or "").lower()
        operation = self.operations.get("get" if method == "head" else method)
        if operation is None:
            raise Refused(405, f"This address takes {', '.join(sorted(self.operations)).upper()} only.")
        self.needs = () if operation.needs == "none" else tuple(operation.needs.split(" and "))
        await super().prepare()

    def query(self) -> dict[str, Any]:
        """The query's parameters, checked."""
        return from_query(self._operation().query, self.request.query_arguments)

    def body(self) -> dict[str, Any]:
        """The JSON body's parameters, checked."""
        return from_body(self._operation().body or (), self.request.body)

    def _operation(self) -> Operation:
        method = (self.request.method or "").lower()
        return self.operations["get" if method == "head" else method]

    def write_page(self, rows: Sequence[Any], asked: Mapping[str, Any], shape: Callable[[Any], Any]) -> None:
        """The part of ``rows`` that ``asked`` wants: a plain list with a ``Link`` to the next page, or as the hub
        paginates where Accept asks for it.
        """
        offset, limit = asked["offset"], asked["limit"]
        items = [shape(row) for row in rows[offset : offset + limit]]
        after = None
        if offset + limit < len(rows):
            url = self.link_next(**{**asked, "offset": offset + limit})
            after = {"offset": offset + limit, "limit": limit, "url": url}
        if PAGINATION not in self.request.headers.get("Accept", ""):
            self.write_json(items)
            return
        # Set first: finishing sends the headers.
        self.set_header("Content-Type", PAGINATION)
        pagination = {"offset": offset, "limit": limit, "total": len(rows), "next": after}
        self.finish(present.json_text({"items": items, "_pagination": pagination}))

    def write_json_to_readers(self, value: Any) -> None:
        """Answer with ``value`` as JSON, or with 204 to a caller who may act and not read."""
        if self.may.read:
            self.write_json(value)
        else:
            self.set_status(204)

    def link_next(self, **query: Any) -> str:
        """The address of the next page, also put into ``Link``."""
        given = {name: value for name, value in query.items() if value is not None}
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}
        url = f"{self.request.path}?{urlencode(texts, doseq=True)}"
        self.set_header("Link", f'<{url}>; rel="next"')
        return url


class StatusApi(Api):
    """What HubGuard is doing."""

    operations = {"get": Operation("What HubGuard is doing, and why.", shapes.StatusShape, "read")}

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(shapes.of_status(self.site.guard.status(), self.site.policy))


class ServersApi(Api):
    """The servers of the last cycle that still run."""

    operations = {
        "get": Operation(
            "The servers that run, nearest to being stopped first, each with why or why not.",
            shapes.ServerShape,
            "read",
            query=(OFFSET, LIMIT, *SERVER_FILTERS),
            listed=True,
            paged=True,
        )
    }

    def get(self) -> None:
        """See write_page."""
        asked = self.query()
        standing = Standing(asked["standing"]) if asked["standing"] else None
        status = self.site.guard.status()
        rows = shapes.chosen(shapes.running(status.last_cycle), q=asked["q"], standing=standing, sort=asked["sort"])
        self.write_page(rows, asked, lambda row: shapes.server(row, self.site.policy, status))


class ServerApi(Api):
    """One server."""

    operations = {
        "get": Operation("One server; an empty name is the default server.", shapes.ServerShape, "read", fails=(404,))
    }

    def get(self, user: str, name: str) -> None:
        """404 where it doesn't run as of the last cycle, or there was none yet."""
        status = self.site.guard.status()
        row = shapes.find(status.last_cycle, user, name)
        if row is None:
            raise Refused(404, not_running(f"{user}/{name}" if name else user, known=status.last_cycle is not None))
        self.write_json(shapes.server(row, self.site.policy, status))


def not_running(label: str, *, known: bool) -> str:
    """What is said of a server that the last cycle didn't show, or where there was none yet (``known`` False)."""
    if not known:
        return f"Nothing is known of {label} yet: HubGuard hasn't read the hub's servers so far."
    return f"{label} isn't running, as of HubGuard's last look at the hub."


class JournalApi(Api):
    """The journal."""

    operations = {
        "get": Operation("What was decided and done, newest first.", Entry, "read", query=JOURNAL_FILTERS, listed=True)
    }

    async def get(self) -> None:
        """A list, with a ``Link`` to older entries where there may be some."""
        asked = self.query()
        entries = await self.site.guard.entries(**asked)
        if len(entries) == asked["limit"]:
            self.link_next(**{**asked, "before_id": entries[-1].id})
        self.write_json(entries)


_SAYS = {
    "arm": "Acting is allowed from now on.",
    "observe": "Only observe from now on; what is under way is finished.",
    "hold": "Send nothing more that changes the hub, whoever asks, until resumed.",
    "resume": "The hold is over, and what a brake objects to is accepted, where it is acceptable: status tells.",
}


class StanceApi(Api):
    """Arm, observe, hold, resume: the last part of the path says which. One subclass each, by ``stance_api``."""

    word: ClassVar[str] = ""

    async def post(self) -> None:
        """The guard has taken it up, and the journal has it."""
        why = self.body()["why"]
        assert self.who is not None
        await getattr(self.site.guard, self.word)(self.who.actor, why)
        self.write_json_to_readers(shapes.of_status(self.site.guard.status(), self.site.policy))


def stance_api(word: str) -> type[StanceApi]:
    """The endpoint for one of arm, observe, hold, resume."""
    operation = Operation(_SAYS[word], shapes.StatusShape, "act", body=(WHY,))
    return type(f"{word.title()}Api", (StanceApi,), {"word": word, "operations": {"post": operation}})


class CyclesApi(Api):
    """A cycle that someone asks for."""

    operations = {
        "post": Operation(
            "Run one cycle now, and act by it even when only observing; answers when it is over.",
            shapes.CycleShape,
            "act and read",
            body=(
                Param("dry_run", bool, "Decide, and do nothing.", default=False),
                Param("idle_timeout_s", float, "The idle limit in this cycle, in seconds.", above=0, high=YEAR_S),
                Param("rate", float, "Requests to the hub per second; only lowers the budget.", low=0.1, high=1000),
                Param("concurrency", int, "Servers stopped at once; only lowers the budget.", low=1, high=500),
            ),
            fails=(409,),
        )
    }

    async def post(self) -> None:
        """The cycle's report, with every action and what came of it."""
        asked = self.body()
        assert self.who is not None
        self.write_json(shapes.cycle(await self.site.guard.cycle(self.who.actor, **asked)))


class ExemptionsApi(Api):
    """What people have asked to keep."""

    operations = {
        "get": Operation(
            "What is to be kept, until when, and who asked for it; newest first.",
            Exemption,
            "read",
            query=(
                OFFSET,
                LIMIT,
                Param("user", str, "Only this user's.", high=255),
                Param("ended", bool, "Also those that are over.", default=False),
            ),
            listed=True,
            paged=True,
        ),
        "post": Operation(
            "Keep a server, or all of a user's, until a time, whoever asks to stop it.",
            Exemption,
            "act",
            body=(
                Param("user", str, "Whose servers.", high=255, low=1, required=True),
                Param(
                    "server", str, "Which; empty for the default server. Left out or null: all of the user's.", high=255
                ),
                Param("until", datetime, "Until when; a date alone means to the end of that day, in UTC."),
                Param("for_s", float, "For how many seconds from now, in place of until.", above=0, high=YEAR_S),
                WHY,
            ),
            fails=(409,),
        ),
    }

    async def get(self) -> None:
        """See write_page."""
        asked = self.query()
        rows = await self.site.guard.exemptions(user=asked["user"], ended=asked["ended"])
        self.write_page(rows, asked, lambda row: row)

    async def post(self) -> None:
        """The exemption is in force, and the journal has it."""
        asked = self.body()
        if (asked["until"] is None) == (asked["for_s"] is None):
            raise Refused(400, "until: give either this or for_s")
        until = asked["until"] or self.site.guard.status().at + timedelta(seconds=asked["for_s"])
        assert self.who is not None
        made = await self.site.guard.exempt(
            self.who.actor, asked["why"], user=asked["user"], server=asked["server"], until=until
        )
        self.write_json_to_readers(made)


class ExemptionApi(Api):
    """One exemption."""

    operations = {
        "delete": Operation(
            "End an exemption that is in force; it stays in the list of those that are over.",
            Exemption,
            "act",
            query=(WHY,),
            fails=(404,),
        )
    }

    async def delete(self, number: str) -> None:
        """It is over, and the journal has it. 404 where none of that number is in force."""
        why = self.query()["why"]
        assert self.who is not None
        self.write_json_to_readers(await self.site.guard.end_exemption(exemption_id(number), self.who.actor, why))


def exemption_id(number: str) -> int:
    """The id that the digits ``number`` of an address stand for. Raises Refused (404) for what no database counts up to."""
    if len(number) > 19 or int(number) > 2**62:
        raise Refused(404, f"There is no exemption {number[:19]}…")
    return int(number)


class MetricsApi(Api):
    """For Prometheus."""

    operations = {"get": Operation("Metrics in Prometheus' text format.", None, "read")}

    def get(self) -> None:
        """See ``operations``."""
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest(self.site.metrics))


class HealthApi(Api):
    """Whether HubGuard works, for anyone."""

    operations = {
        "get": Operation("Always 200 while HubGuard serves; ``ok`` says whether it works.", shapes.HealthShape, "none")
    }

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(shapes.health(self.site.guard.status()))


class OpenApi(Api):
    """This API, described."""

    operations = {"get": Operation("This description.", None, "none")}

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(document(self.site.operations, self.site.prefix))
