"""The REST API, metrics and health. JSON in and out; every error is one clear line."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlencode

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hubguard.model import Entry, Standing
from hubguard.web import shapes
from hubguard.web.base import Base
from hubguard.web.openapi import Operation, Param, Refused, document, from_body, from_query

PAGINATION = "application/jupyterhub-pagination+json"
"""As with the hub: asked for in Accept, a list comes as ``items`` with ``_pagination``."""

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
EVENTS = ("intent", "outcome", "armed", "observing", "held", "resumed", "cycle", "lease", "note")
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
        operation = self.operations.get("get" if method == "head" and hasattr(self, "get") else method)
        if operation is None:
            raise Refused(405, f"This address takes {', '.join(sorted(self.operations)).upper()} only.")
        self.needs = () if operation.needs == "none" else tuple(operation.needs.split(" and "))
        await super().prepare()

    def query(self) -> dict[str, Any]:
        """The query's parameters, checked."""
        return from_query(self.operations["get"].query, self.request.query_arguments)

    def body(self) -> dict[str, Any]:
        """The JSON body's parameters, checked."""
        return from_body(self.operations["post"].body or (), self.request.body)

    def link_next(self, **query: Any) -> str:
        """The address of the next page, also put into ``Link``."""
        url = f"{self.request.path}?{urlencode({name: value for name, value in query.items() if value is not None})}"
        self.set_header("Link", f'<{url}>; rel="next"')
        return url


class StatusApi(Api):
    """What HubGuard is doing."""

    operations = {"get": Operation("What HubGuard is doing, and why.", shapes.StatusShape, "read")}

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(shapes.of_status(self.site.guard.status()))


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
        """A plain list with a ``Link`` to the next page, or as the hub paginates where Accept asks for it."""
        asked = self.query()
        offset, limit = asked["offset"], asked["limit"]
        standing = Standing(asked["standing"]) if asked["standing"] else None
        status = self.site.guard.status()
        rows = shapes.chosen(shapes.running(status.last_cycle), q=asked["q"], standing=standing, sort=asked["sort"])
        items = [shapes.server(row, self.site.policy, status) for row in rows[offset : offset + limit]]
        after = None
        if offset + limit < len(rows):
            after = {
                "offset": offset + limit,
                "limit": limit,
                "url": self.link_next(**{**asked, "offset": offset + limit}),
            }
        if PAGINATION not in self.request.headers.get("Accept", ""):
            self.write_json(items)
            return
        pagination = {"offset": offset, "limit": limit, "total": len(rows), "next": after}
        self.write_json({"items": items, "_pagination": pagination})
        self.set_header("Content-Type", PAGINATION)


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
    "resume": "The hold is over.",
}


class StanceApi(Api):
    """Arm, observe, hold, resume: the last part of the path says which. One subclass each, by ``stance_api``."""

    word: ClassVar[str] = ""

    async def post(self) -> None:
        """The guard has taken it up, and the journal has it."""
        why = self.body()["why"]
        assert self.who is not None
        await getattr(self.site.guard, self.word)(self.who.actor, why)
        if self.may.read:
            self.write_json(shapes.of_status(self.site.guard.status()))
        else:
            self.set_status(204)


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
                Param("idle_timeout_s", float, "The idle limit in this cycle, in seconds.", above=0, high=366 * 86400),
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

    def head(self) -> None:
        """As GET, without the body."""
        self.get()


class OpenApi(Api):
    """This API, described."""

    operations = {"get": Operation("This description.", None, "none")}

    def get(self) -> None:
        """See ``operations``."""
        self.write_json(document(self.site.operations, self.site.prefix))
