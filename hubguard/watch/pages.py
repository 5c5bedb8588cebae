"""The pages of alerts and of incidents."""

from __future__ import annotations

from datetime import datetime, timedelta

from typing_extensions import override

from hubguard.errors import JournalError
from hubguard.watch.api import NOTE, TITLE
from hubguard.watch.cycle import Watch
from hubguard.watch.model import AlertRow, Incident
from hubguard.watch.shapes import describe, describe_source
from hubguard.web.page import ROWS, Page

RECENT = timedelta(days=7)
"""For how long resolved alerts stay on the page."""


class AlertsPage(Page):
    """What is wrong now, what to do first, and what was wrong of late."""

    watch: Watch
    template = "watch/alerts.html"
    tab = "alerts"

    async def get(self) -> None:
        status = self.site.status()
        watched = self.watch.status()
        trouble, rows = "", tuple[AlertRow, ...]()
        try:
            rows = await self.watch.alerts.alerts(since=status.at - RECENT)
        except JournalError as error:
            trouble = str(error)
        await self.show(
            "alerts",
            {
                **self.common(status),
                "alerts": describe(self.watch.rules, watched),
                "resolved": [row for row in rows if row.resolved_at is not None],
                "sources": [describe_source(reading) for reading in watched.readings],
                "trouble": trouble,
            },
        )


class IncidentsPage(Page):
    """The incidents, newest first; by a form one is opened."""

    watch: Watch
    template = "watch/incidents.html"
    tab = "alerts"

    async def get(self) -> None:
        trouble, incidents = "", tuple[Incident, ...]()
        try:
            incidents = await self.watch.incidents.store.incidents(limit=ROWS)
        except JournalError as error:
            trouble = str(error)
        live = {**self.common(self.site.status()), "incidents": incidents, "trouble": trouble}
        await self.show("incidents", live)


class OpenIncident(Page):
    """Open an incident by the form of their list."""

    watch: Watch
    needs = ("act",)
    tab = "alerts"

    async def post(self) -> None:
        """It is open, or another was, and its page shows it."""
        assert self.who is not None
        title = str(TITLE.checked(self.get_body_argument("title", "").strip()))
        incident = await self.watch.incidents.open_by_hand(title, self.who.actor, self.site.status().at)
        self.redirect(self.here(f"incidents/{incident.id}"), status=303)


class IncidentPage(Page):
    """One incident: what happened, what it meant, who did what."""

    watch: Watch
    template = "watch/incident.html"
    tab = "alerts"

    async def get(self, id_: str) -> None:
        status = self.site.status()
        story = await self.watch.incidents.story(int(id_), status.at)
        await self.show(f"incidents/{id_}", {**self.common(status), "story": story, "incident": story.incident})


class ChangeIncident(Page):
    """A form of an incident's page."""

    watch: Watch
    needs = ("act",)
    tab = "alerts"

    async def change(self, id_: int, actor: str, now: datetime) -> None:
        """Do what the form asks for."""
        raise NotImplementedError

    async def post(self, id_: str) -> None:
        assert self.who is not None
        await self.change(int(id_), self.who.actor, self.site.status().at)
        self.redirect(self.here(f"incidents/{id_}"), status=303)


class NoteIncident(ChangeIncident):
    """Write something down."""

    @override
    async def change(self, id_: int, actor: str, now: datetime) -> None:
        text = str(NOTE.checked(self.get_body_argument("text", "").strip()))
        await self.watch.incidents.store.add_note(id_, actor, text, now)


class CloseIncident(ChangeIncident):
    """Close an incident."""

    @override
    async def change(self, id_: int, actor: str, now: datetime) -> None:
        await self.watch.incidents.close(id_, actor, now, self.why())
