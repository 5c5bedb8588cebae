"""The pages of culling: servers, one server, exemptions."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from typing_extensions import override

from hubguard import words
from hubguard.cull import shapes as cull_shapes
from hubguard.cull import words as cull_words
from hubguard.cull.api import absent_words, meant_by
from hubguard.cull.model import CycleReport, Standing
from hubguard.cull.part import Culling
from hubguard.errors import JournalError
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Exemption
from hubguard.model import server_label
from hubguard.status import Mode, Status
from hubguard.web.openapi import Param, Refused
from hubguard.web.page import ROWS, Page, choose_until, whole


class CullPage(Page):
    """A page of culling."""

    culling: Culling
    journal: AsyncJournal
    tab = "servers"


class Servers(CullPage):
    """Every server, with why it will or won't be stopped; filter, order and page stand in the address."""

    template = "cull/servers.html"

    @override
    async def get(self) -> None:
        status, last = self.site.status(), self.culling.status().newest
        q, standing, sort = self.asked("q").strip(), self.asked("standing"), self.asked("sort")
        wanted = Standing(standing) if standing in {kind.value for kind in Standing} else None
        sort = sort if sort.removeprefix("-") in cull_shapes.SORTS else "due"
        rows = cull_shapes.list_running(last)
        matching = cull_shapes.select(rows, q=q, standing=wanted, sort=sort)
        pages = max(1, -(-len(matching) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        try:
            kept = kept_by(await self.culling.exemptions())
        except JournalError:
            kept = {}
        filters = {"q": q, "standing": wanted.value if wanted else "", "sort": "" if sort == "due" else sort}
        live = {
            **self.common(status),
            "last_cycle": last,
            "rows": [
                (
                    row,
                    cull_words.explain(row.verdict, self.culling.policy, status.at, status.mode, row.outcome),
                    kept.get(row.verdict.server.key) or kept.get((row.verdict.server.user, None)),
                )
                for row in matching[begin : begin + ROWS]
            ],
            "begin": begin,
            "found": len(matching),
            "total": len(rows),
            "counts": cull_shapes.count_standings(rows),
            "empty": empty_words(status, last, total=len(rows)),
            "sort": sort,
            "kept": filters,
            "number": number,
            "pages": pages,
        }
        await self.show("servers", live, q=q, standing=wanted, standings=cull_words.STANDING_WORDS)


def kept_by(exemptions: Sequence[Exemption]) -> dict[tuple[str, str | None], Exemption]:
    """By user and server (None: all of the user's), of ``exemptions`` the one that runs for longest."""
    return {
        (exemption.user, exemption.server): exemption
        for exemption in sorted(exemptions, key=lambda exemption: exemption.until)
    }


def empty_words(status: Status, last: CycleReport | None, *, total: int) -> str:
    """Why a table of servers is empty."""
    if last is None:
        return {
            Mode.TROUBLED: "HubGuard isn't working and hasn't read the hub's servers. The Overview says what is wrong.",
            Mode.STANDBY: "Another guard is in charge of this hub and knows its servers. This one is standing by.",
        }.get(
            status.mode,
            "HubGuard hasn't read the hub's servers yet. This page updates by itself.",
        )
    incomplete = next((reading for reading in last.snapshot.readings if not reading.complete), None)
    if total:
        return f"No server matches. {words.count(total, 'server')} {'is' if total == 1 else 'are'} running."
    if incomplete:
        return f"The hub's servers couldn't be read: {incomplete.detail.rstrip('.')}. Nothing is concluded from that."
    return "No server is running: there is nothing to stop."


class ServerPage(CullPage):
    """One server: why, why not, what next, when; and what was done about it."""

    template = "cull/server.html"

    @override
    async def get(self, user: str, name: str) -> None:
        status, last = self.site.status(), self.culling.status().newest
        user = meant_by(last, user)
        row = cull_shapes.find(last, user, name)
        trouble, entries, exemptions = "", tuple[Entry, ...](), tuple[Exemption, ...]()
        try:
            entries = await self.journal.entries(limit=20, user=user, server=name)
            exemptions = await self.culling.exemptions(user=user)
        except JournalError as error:
            trouble = str(error)
        label = server_label(user, name)
        absent = absent_words(last, user, name, entries)
        exemptions = tuple(exemption for exemption in exemptions if exemption.server in {None, name})
        if row is None and not entries and not exemptions and not trouble:
            raise Refused(404, absent)
        explanation = (
            cull_words.explain(row.verdict, self.culling.policy, status.at, status.mode, row.outcome) if row else None
        )
        await self.show(
            f"servers/{quote(user, safe='')}/{quote(name, safe='')}",
            {
                **self.common(status),
                "label": label,
                "row": row,
                "explanation": explanation,
                "absent": absent,
                "exemptions": exemptions,
                "entries": entries,
                "journal_trouble": trouble,
            },
            user=user,
            name=name,
            today=f"{status.at:%Y-%m-%d}",
        )


class Exemptions(CullPage):
    """What people have asked to keep, newest first."""

    template = "cull/exemptions.html"

    @override
    async def get(self) -> None:
        user, ended = self.asked("user").strip(), bool(self.asked("ended"))
        exemptions = await self.culling.exemptions(user=user or None, ended=ended)
        pages = max(1, -(-len(exemptions) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        live = {
            **self.common(self.site.status()),
            "exemptions": exemptions[(number - 1) * ROWS : number * ROWS],
            "user": user,
            "ended": ended,
            "number": number,
            "pages": pages,
        }
        await self.show("exemptions", live)


class Keep(CullPage):
    """Where the form on a server's page is sent: keep it, or all of that user's servers; and the one on a user's page."""

    needs = ("act",)

    async def post(self) -> None:
        """It is kept, and its page shows it."""
        user, server = (self.get_body_argument(name, "", strip=False) for name in ("user", "server"))
        Param("user", str, "", low=1, high=255).checked(user)
        Param("server", str, "", high=255).checked(server)
        scope = Param("scope", str, "", choices=("server", "user")).checked(self.get_body_argument("scope", ""))
        assert self.who is not None
        await self.culling.exempt(
            self.who.actor,
            self.why(),
            user=user,
            server=server if scope == "server" else None,
            until=choose_until(self, self.site.status().at),
        )
        back = self.user_url(user) if self.get_body_argument("back", "") == "user" else self.server_url(user, server)
        self.redirect(back, status=303)


class EndExemption(CullPage):
    """End an exemption, once that is confirmed."""

    needs = ("act", "read")

    async def get(self, number: str) -> None:
        """The question. 404 if it has ended."""
        wanted = int(number)
        exemption = next((each for each in await self.culling.exemptions() if each.id == wanted), None)
        if exemption is None:
            raise Refused(404, f"Exemption {wanted} isn't in force: it has expired, was ended, or never existed.")
        template = self.site.env.get_template("cull/end_exemption.html")
        self.finish(template.render(**self.common(self.site.status()), exemption=exemption))

    async def post(self, number: str) -> None:
        """It has ended, and the list of exemptions shows what is left."""
        assert self.who is not None
        await self.culling.end_exemption(int(number), self.who.actor, self.why())
        self.redirect(self.here("exemptions"), status=303)
