"""The pages: complete without JavaScript; with it, their live part is asked for every few seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from jinja2_fragments import render_block
from markupsafe import Markup

from hubguard.errors import HubGuardError, JournalError
from hubguard.model import Entry, Exemption, Mode, Standing, Status
from hubguard.prune import PruneRun, PruneState
from hubguard.web import drift, htmx, present, prune, shapes
from hubguard.web.api import EVENTS, WHY, exemption_id, not_running
from hubguard.web.base import Base
from hubguard.web.openapi import Param, Refused
from hubguard.web.times import moment

ROWS = 100
"""Rows on a page of the Servers and Journal tables."""


class Page(Base):
    """A page, or its live part when asked for below ``fragments/``. ``values`` gives what ``template`` shows."""

    page = True
    needs: tuple[str, ...] = ("read",)
    template: ClassVar[str] = ""
    tab: ClassVar[str] = ""

    def here(self, path: str = "", **query: Any) -> str:
        """The address of ``path`` below the prefix, with what is set of ``query``."""
        given = {name: value for name, value in query.items() if value not in {None, ""}}
        return self.site.prefix + path + (f"?{urlencode(given)}" if given else "")

    def asked(self, name: str) -> str:
        """The text of a parameter in the query, "" where it isn't given; control characters are dropped."""
        return "".join(char for char in self.get_query_argument(name, "")[:255] if char.isprintable())

    def common(self, status: Status) -> dict[str, Any]:
        """What every template may use."""
        return {
            "site": self.site,
            "who": self.who,
            "may": self.may,
            "tab": self.tab,
            "status": status,
            "now": status.at,
            "p": present,
            "form_token": self.form_token(),
            "url": self.here,
            "server_url": self.server_url,
            "beliefs_url": self.beliefs_url,
            "user_url": self.user_url,
            "row_id": row_id,
        }

    def server_url(self, user: str, name: str) -> str:
        """The address of a server's own page."""
        return self.here(f"servers/{quote(user, safe='')}/{quote(name, safe='')}")

    def user_url(self, name: str, /, **query: Any) -> str:
        """The address of a user's own page."""
        return self.here(f"users/{quote(name, safe='')}", **query)

    def beliefs_url(self, user: str, name: str) -> str:
        """The address of what each source says of a server."""
        return self.here(f"beliefs/{quote(user, safe='')}/{quote(name, safe='')}")

    def why(self) -> str:
        """The reason in the form that was sent. Raises Refused (400)."""
        return str(Param("why", str, WHY.help, high=WHY.high).checked(self.get_body_argument("why", "").strip()))

    async def show(self, path: str, live: Mapping[str, Any], *, poll: bool = True, **around: Any) -> None:
        """Answer with the page at ``path``, whose live part shows ``live`` and the rest ``around``, too.

        ``poll`` False: it doesn't change.
        """
        fragment = self.site.prefix + "fragments/"
        if self.request.path.startswith(fragment):
            htmx.finish_fragment(self, self.site.env, self.template, "live", **live)
            return
        html = render_block(self.site.env, self.template, "live", **live)
        query = f"?{self.request.query}" if self.request.query else ""
        self.finish(
            self.site.env.get_template(self.template).render(
                **{**live, **around},
                live_html=Markup(html),  # noqa: S704  # rendered a line above, with autoescaping
                live_tag=htmx.ptag(html),
                live_url=fragment + path + query if poll else None,
                htmx_config=htmx.CONFIG,
            )
        )


def row_id(*parts: str) -> str:
    """An element id that is the same for the same thing from refresh to refresh, whatever is in its name."""
    return "r" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class Overview(Page):
    """What HubGuard is doing, and why."""

    template = "overview.html"
    tab = "overview"

    async def get(self) -> None:
        """See the class."""
        status = self.site.guard.status()
        trouble, entries = "", tuple[Entry, ...]()
        try:
            entries = last_actions(await self.site.guard.entries(limit=50))
        except JournalError as error:
            trouble = str(error)
        runs = tuple[PruneRun, ...]()
        with suppress(HubGuardError):  # what is wrong is said above, or on their own page
            runs = await self.site.guard.pruning.runs(limit=20)
        await self.show(
            "overview",
            {
                **self.common(status),
                "shape": shapes.of_status(status, self.site.policy),
                "modes": Mode,
                "recovered_at": recovered_at(status),
                "late": shapes.is_late(status),
                "entries": entries,
                "journal_trouble": trouble,
                "runs": [one for one in runs if one.state in {PruneState.RUNNING, PruneState.PAUSED}],
                "pr": prune,
                "drift": self.site.guard.drift(),
                "d": drift,
            },
        )


def recovered_at(status: Status) -> datetime | None:
    """When idle clocks were started anew, as long as that is news: for a day."""
    at = status.clock_from
    return at if at is not None and status.at - at < timedelta(days=1) else None


def last_actions(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The newest few of ``entries``, without the intents that an outcome tells of anyway."""
    settled = {entry.refers_to for entry in entries}
    return tuple(entry for entry in entries if entry.id not in settled)[:8]


class Servers(Page):
    """Every server, with why it will or won't be stopped; filter, order and page stand in the address."""

    template = "servers.html"
    tab = "servers"

    async def get(self) -> None:
        """See the class. What makes no sense in the address counts as not given."""
        status = self.site.guard.status()
        q, standing, sort = self.asked("q").strip(), self.asked("standing"), self.asked("sort")
        wanted = Standing(standing) if standing in {one.value for one in Standing} else None
        sort = sort if sort.removeprefix("-") in shapes.SORTS else "due"
        rows = shapes.running(status.last_cycle)
        found = shapes.chosen(rows, q=q, standing=wanted, sort=sort)
        pages = max(1, -(-len(found) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        try:
            kept = kept_by(await self.site.guard.exemptions())
        except JournalError:
            kept = {}
        filters = {"q": q, "standing": wanted.value if wanted else "", "sort": "" if sort == "due" else sort}
        live = {
            **self.common(status),
            "rows": [
                (
                    row,
                    present.explain(row.verdict, self.site.policy, status.at, status.mode, row.outcome),
                    kept.get(row.verdict.server.key) or kept.get((row.verdict.server.user, None)),
                )
                for row in found[begin : begin + ROWS]
            ],
            "begin": begin,
            "found": len(found),
            "total": len(rows),
            "counts": shapes.counts(rows),
            "empty": empty_words(status, total=len(rows)),
            "sort": sort,
            "kept": filters,
            "number": number,
            "pages": pages,
        }
        await self.show("servers", live, q=q, standing=wanted, standings=present.STANDING_WORDS)


def kept_by(exemptions: Sequence[Exemption]) -> dict[tuple[str, str | None], Exemption]:
    """By user and server (None: all of the user's), of ``exemptions`` the one that runs for longest."""
    return {(one.user, one.server): one for one in sorted(exemptions, key=lambda one: one.until)}


def whole(text: str) -> int:
    """The number that ``text`` from an address stands for, 1 where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def empty_words(status: Status, *, total: int) -> str:
    """Why a table of servers is empty."""
    if status.last_cycle is None:
        return {
            Mode.TROUBLED: "HubGuard is in trouble and hasn't read the hub's servers. The Overview says what is wrong.",
            Mode.STANDBY: "Another guard acts for this hub, and knows its servers. This one only stands by.",
        }.get(
            status.mode,
            "The hub's servers haven't been read yet. Reload the page in a moment, where it doesn't fill by itself.",
        )
    incomplete = next((one for one in status.last_cycle.snapshot.readings if not one.complete), None)
    if total:
        return f"No server matches. {present.count(total, 'server')} {'is' if total == 1 else 'are'} running."
    if incomplete:
        return f"The hub's servers couldn't be read: {incomplete.detail.rstrip('.')}. Nothing is concluded from that."
    return "No server is running: there is nothing to stop."


class ServerPage(Page):
    """One server: why, why not, what next, when; and what was done about it."""

    template = "server.html"
    tab = "servers"

    async def get(self, user: str, name: str) -> None:
        """See the class. 404 for what neither runs nor is in the journal."""
        status = self.site.guard.status()
        row = shapes.find(status.last_cycle, user, name)
        trouble, entries, exemptions = "", tuple[Entry, ...](), tuple[Exemption, ...]()
        try:
            entries = await self.site.guard.entries(limit=20, user=user, server=name)
            exemptions = await self.site.guard.exemptions(user=user)
        except JournalError as error:
            trouble = str(error)
        label = f"{user}/{name}" if name else user
        absent = not_running(label, known=status.last_cycle is not None)
        exemptions = tuple(one for one in exemptions if one.server in {None, name})
        if row is None and not entries and not exemptions and not trouble:
            raise Refused(404, absent)
        explanation = (
            present.explain(row.verdict, self.site.policy, status.at, status.mode, row.outcome) if row else None
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


class Exemptions(Page):
    """What people have asked to keep, newest first."""

    template = "exemptions.html"
    tab = "servers"

    async def get(self) -> None:
        """See the class."""
        user, ended = self.asked("user").strip(), bool(self.asked("ended"))
        found = await self.site.guard.exemptions(user=user or None, ended=ended)
        pages = max(1, -(-len(found) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        live = {
            **self.common(self.site.guard.status()),
            "exemptions": found[(number - 1) * ROWS : number * ROWS],
            "user": user,
            "ended": ended,
            "number": number,
            "pages": pages,
        }
        await self.show("exemptions", live)


class Keep(Page):
    """Where the form on a server's page is sent: keep it, or all of that user's servers; and the one on a user's page."""

    needs = ("act",)

    async def post(self) -> None:
        """It is kept, and its page shows it."""
        user, server = (self.get_body_argument(name, "", strip=False) for name in ("user", "server"))
        Param("user", str, "", low=1, high=255).checked(user)
        Param("server", str, "", high=255).checked(server)
        scope = Param("scope", str, "", choices=("server", "user")).checked(self.get_body_argument("scope", ""))
        assert self.who is not None
        await self.site.guard.exempt(
            self.who.actor,
            self.why(),
            user=user,
            server=server if scope == "server" else None,
            until=self._until(self.get_body_argument("until", ""), self.get_body_argument("date", "")),
        )
        back = self.user_url(user) if self.get_body_argument("back", "") == "user" else self.server_url(user, server)
        self.redirect(back, status=303)

    def _until(self, choice: str, date: str) -> datetime:
        Param("until", str, "", choices=(*_SPANS, "date")).checked(choice)
        if choice in _SPANS:
            return self.site.guard.status().at + _SPANS[choice]
        try:
            return moment(date)
        except ValueError:
            raise Refused(400, "Until a date was chosen, and no date given: go back, and give one.") from None


_SPANS = {"day": timedelta(days=1), "week": timedelta(days=7)}


class EndExemption(Page):
    """End an exemption, once that is confirmed."""

    needs = ("act", "read")
    tab = "servers"

    async def get(self, number: str) -> None:
        """The question. 404 where it is over."""
        wanted = exemption_id(number)
        found = next((one for one in await self.site.guard.exemptions() if one.id == wanted), None)
        if found is None:
            raise Refused(404, f"Exemption {wanted} isn't in force: it is over, was ended, or never was.")
        template = self.site.env.get_template("end_exemption.html")
        self.finish(template.render(**self.common(self.site.guard.status()), exemption=found))

    async def post(self, number: str) -> None:
        """It is over, and the list of exemptions shows what is left."""
        assert self.who is not None
        await self.site.guard.end_exemption(exemption_id(number), self.who.actor, self.why())
        self.redirect(self.here("exemptions"), status=303)


class JournalPage(Page):
    """What was decided and done, newest first."""

    template = "journal.html"
    tab = "journal"

    async def get(self) -> None:
        """See the class. Older pages don't change, and aren't asked for again."""
        user, event = self.asked("user").strip(), self.asked("event")
        event = event if event in EVENTS else ""
        before = whole(self.asked("before_id")) if self.asked("before_id") else None
        entries = await self.site.guard.entries(
            before_id=before, limit=ROWS + 1, user=user or None, event=event or None
        )
        live = {
            **self.common(self.site.guard.status()),
            "entries": entries[:ROWS],
            "older": entries[ROWS - 1].id if len(entries) > ROWS else None,
            "before": before,
            "user": user,
            "event": event,
        }
        await self.show("journal", live, poll=before is None, events=EVENTS)


class Change(Page):
    """Arm, observe, hold, resume, by a form; arm and resume are confirmed on a page of their own."""

    needs = ("act",)
    tab = "overview"
    template = "confirm.html"
    words: ClassVar[tuple[str, ...]] = ("arm", "observe", "hold", "resume")

    async def get(self, word: str) -> None:
        """The question, with how much is due right now, and what a brake objects to."""
        status = self.site.guard.status()
        shape = shapes.of_status(status, self.site.policy)
        users_due = shape.last_cycle.users_due if shape.last_cycle else 0
        template = self.site.env.get_template(self.template)
        values = {**self.common(status), "word": word, "due": shape.servers.stop, "users_due": users_due}
        self.finish(template.render(**values, htmx_config=htmx.CONFIG))

    async def post(self, word: str) -> None:
        """It is done, and the Overview shows it."""
        assert self.who is not None
        await getattr(self.site.guard, word)(self.who.actor, self.why())
        self.redirect(self.site.prefix, status=303)
