"""The part of the REST API that reports alerts and signals, and silences."""

from __future__ import annotations

from datetime import datetime

from hubguard.watch.cycle import Watch
from hubguard.watch.model import Incident, IncidentNote
from hubguard.watch.report import write_report
from hubguard.watch.shapes import (
    AlertShape,
    SignalSourceShape,
    StoryShape,
    describe,
    describe_source,
    describe_story,
)
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api
from hubguard.web.openapi import Operation, Param


class WatchApi(Api):
    """An endpoint of watching."""

    watch: Watch

    @property
    def now(self) -> datetime:
        """The guard's time."""
        return self.site.status().at


class AlertsApi(WatchApi):
    """The alerts that are raised, and those whose condition hasn't held for long enough."""

    operations = {
        "get": Operation(
            "The alerts that are raised and not resolved, the most urgent first; then those that are pending.",
            AlertShape,
            "read",
            query=(OFFSET, LIMIT),
            listed=True,
            paged=True,
        )
    }

    def get(self) -> None:
        rows = describe(self.watch.rules, self.watch.status())
        self.write_page(rows, self.query(), lambda row: row)


class SignalSourcesApi(WatchApi):
    """The sources of signals."""

    operations = {
        "get": Operation(
            "Whether each source of signals can be read, and why not.", SignalSourceShape, "read", listed=True
        )
    }

    def get(self) -> None:
        self.write_json([describe_source(reading) for reading in self.watch.status().readings])


MOST = 10_000
"""Maximum incidents that are listed."""

TITLE = Param("title", str, "What is wrong, in a few words.", low=1, high=200)
NOTE = Param("text", str, "What to write down.", low=1, high=2000)


class IncidentsApi(WatchApi):
    """The incidents."""

    operations = {
        "get": Operation(
            "The incidents, newest first.", Incident, "read", query=(OFFSET, LIMIT), listed=True, paged=True
        ),
        "post": Operation("Open an incident; or the one that is open already.", Incident, "act", body=(TITLE,)),
    }

    async def get(self) -> None:
        rows = await self.watch.incidents.store.incidents(limit=MOST)
        self.write_page(rows, self.query(), lambda row: row)

    async def post(self) -> None:
        assert self.who is not None
        title = self.body()["title"]
        self.write_json_to_readers(await self.watch.incidents.open_by_hand(title, self.who.actor, self.now))


class IncidentApi(WatchApi):
    """One incident."""

    operations = {"get": Operation("That incident, with all that is known of it.", StoryShape, "read", fails=(404,))}

    async def get(self, id_: str) -> None:
        self.write_json(describe_story(await self.watch.incidents.story(int(id_), self.now)))


class IncidentNotesApi(WatchApi):
    """Write something down."""

    operations = {
        "post": Operation("Write something down about that incident.", IncidentNote, "act", body=(NOTE,), fails=(404,))
    }

    async def post(self, id_: str) -> None:
        assert self.who is not None
        text = self.body()["text"]
        note = await self.watch.incidents.store.add_note(int(id_), self.who.actor, text, self.now)
        self.write_json_to_readers(note)


class CloseIncidentApi(WatchApi):
    """Close an incident."""

    operations = {"post": Operation("Close that incident.", Incident, "act", body=(WHY,), fails=(404,))}

    async def post(self, id_: str) -> None:
        assert self.who is not None
        why = self.body()["why"]
        self.write_json_to_readers(await self.watch.incidents.close(int(id_), self.who.actor, self.now, why))


class IncidentReportApi(WatchApi):
    """The report of an incident, to be edited by people."""

    operations = {"get": Operation("The report of that incident, in Markdown.", None, "read", fails=(404,))}

    async def get(self, id_: str) -> None:
        story = await self.watch.incidents.story(int(id_), self.now)
        self.set_header("Content-Type", "text/markdown; charset=utf-8")
        self.finish(write_report(story, self.now))
