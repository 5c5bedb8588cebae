"""The REST API of culling: servers, cycles, exemptions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from typing_extensions import override

from hubguard.cull import shapes as cull_shapes
from hubguard.cull import words as cull_words
from hubguard.cull.model import CycleReport, Standing, Wish
from hubguard.cull.part import Culling
from hubguard.hub.names import nearest, resolved, spellings
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Exemption
from hubguard.model import server_label
from hubguard.times import YEAR_S
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api
from hubguard.web.openapi import Operation, Param, Refused

SERVER_FILTERS = (
    Param("q", str, "Part of the user's or server's name, in any case.", default="", high=255),
    Param("standing", str, "Only servers with this standing.", choices=tuple(kind.value for kind in Standing)),
    Param(
        "sort",
        str,
        "The order; with - in front, reversed. Servers without such a time come last.",
        default="due",
        choices=tuple(sign + name for name in cull_shapes.SORTS for sign in ("", "-")),
    ),
)


class CullApi(Api):
    """An endpoint of culling."""

    culling: Culling
    journal: AsyncJournal


class ServersApi(CullApi):
    """The servers of the last cycle that still run."""

    operations = {
        "get": Operation(
            "The running servers, nearest to their stop first, each with why or why not.",
            cull_shapes.ServerShape,
            "read",
            query=(OFFSET, LIMIT, *SERVER_FILTERS),
            listed=True,
            paged=True,
        )
    }

    @override
    def get(self) -> None:
        asked = self.query()
        standing = Standing(asked["standing"]) if asked["standing"] else None
        rows = cull_shapes.select(
            cull_shapes.list_running(self.culling.status().newest), q=asked["q"], standing=standing, sort=asked["sort"]
        )
        status = self.site.status()
        self.write_page(rows, asked, lambda row: cull_shapes.describe_server(row, self.culling.policy, status))


class ServerApi(CullApi):
    """One server."""

    operations = {
        "get": Operation(
            "One server; an empty name is the default server.", cull_shapes.ServerShape, "read", fails=(404,)
        )
    }

    async def get(self, user: str, name: str) -> None:
        """404 if it doesn't run as of the last cycle, or there was none yet; the message says when and why it was stopped."""
        last = self.culling.status().newest
        user = meant_by(last, user)
        row = cull_shapes.find(last, user, name)
        if row is None:
            entries: tuple[Entry, ...] = ()
            for spelling in spellings(user):
                entries = entries or await self.journal.entries(limit=20, user=spelling, server=name)
            raise Refused(404, absent_words(last, user, name, entries))
        self.write_json(cull_shapes.describe_server(row, self.culling.policy, self.site.status()))


def meant_by(last: CycleReport | None, user: str) -> str:
    """Whose server is meant by ``user``, as typed, as of ``last``; ``user`` itself if nobody's runs."""
    return resolved(user, _running(last)) or user


def _running(last: CycleReport | None) -> set[str]:
    return set() if last is None else {verdict.server.user for verdict in last.verdicts}


def absent_words(last: CycleReport | None, user: str, name: str, entries: Iterable[Entry]) -> str:
    """What is said of a server that ``last`` doesn't show: when and why it was stopped, or who else may be meant."""
    said = [not_running(server_label(user, name), known=last is not None)]
    if stopped := cull_words.last_stop(entries):
        said.append(stopped)
    elif user not in _running(last) and (near := nearest(user, _running(last))):
        said.append(f"Did you mean {' or '.join(near)}?")
    return " ".join(said)


def not_running(label: str, *, known: bool) -> str:
    """What is said of a server that the last cycle didn't show, or if there was none yet (``known`` False)."""
    if not known:
        return f"{label} is unknown: HubGuard hasn't read the hub's servers yet."
    return f"{label} isn't running, as of HubGuard's last look at the hub."


class CyclesApi(CullApi):
    """A cycle that someone asks for."""

    operations = {
        "post": Operation(
            "Run one cycle now and act on it even while only observing; returns when it has ended.",
            cull_shapes.CycleShape,
            "act and read",
            body=(
                Param("dry_run", bool, "Decide, and change nothing.", default=False),
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
        self.write_json(cull_shapes.describe_cycle(await self.culling.cycle(self.who.actor, Wish(**asked))))


class ExemptionsApi(CullApi):
    """What people have asked to keep."""

    operations = {
        "get": Operation(
            "What is kept, until when, and who asked for it; newest first.",
            Exemption,
            "read",
            query=(
                OFFSET,
                LIMIT,
                Param("user", str, "Only this user's.", high=255),
                Param("ended", bool, "Also those that have ended.", default=False),
            ),
            listed=True,
            paged=True,
        ),
        "post": Operation(
            "Keep a server, or all of a user's, until a time.",
            Exemption,
            "act",
            body=(
                Param("user", str, "Whose servers.", high=255, low=1, required=True),
                Param(
                    "server",
                    str,
                    "Its name; empty for the default server. Left out or null: all of the user's.",
                    high=255,
                ),
                Param("until", datetime, "Until when; a date alone means to the end of that day, in UTC."),
                Param("for_s", float, "Seconds from now, instead of until.", above=0, high=YEAR_S),
                WHY,
            ),
            fails=(409,),
        ),
    }

    @override
    async def get(self) -> None:
        asked = self.query()
        rows = await self.culling.exemptions(user=asked["user"], ended=asked["ended"])
        self.write_page(rows, asked, lambda row: row)

    async def post(self) -> None:
        """The exemption is in force, and the journal has it."""
        asked = self.body()
        if (asked["until"] is None) == (asked["for_s"] is None):
            raise Refused(400, "until: give either this or for_s")
        until = asked["until"] or self.site.status().at + timedelta(seconds=asked["for_s"])
        assert self.who is not None
        made = await self.culling.exempt(
            self.who.actor, asked["why"], user=asked["user"], server=asked["server"], until=until
        )
        self.write_json_to_readers(made)


class ExemptionApi(CullApi):
    """One exemption."""

    operations = {
        "delete": Operation(
            "End an exemption that is in force; it stays in the list of those that have ended.",
            Exemption,
            "act",
            query=(WHY,),
            fails=(404,),
        )
    }

    async def delete(self, number: str) -> None:
        """It has ended, and the journal has it. 404 if none of that number is in force."""
        why = self.query()["why"]
        assert self.who is not None
        self.write_json_to_readers(await self.culling.end_exemption(int(number), self.who.actor, why))
