"""The part of the REST API that reports alerts and signals, and silences."""

from __future__ import annotations

import difflib
from datetime import datetime, timedelta

from typing_extensions import override

from hubguard.errors import HubGuardError, JournalError
from hubguard.times import YEAR_S, point
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.failed_starts import FailedStart, cause_of_error
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Incident, IncidentNote, Signal, Silence, signal_key, split_key
from hubguard.watch.report import write_report
from hubguard.watch.shapes import (
    AlertShape,
    FailedStartsShape,
    SeriesShape,
    SignalShape,
    SignalSourceShape,
    StoryShape,
    describe,
    describe_series,
    describe_signals,
    describe_source,
    describe_starts,
    describe_story,
)
from hubguard.web.endpoint import LIMIT, OFFSET, WHY, Api, HubReport
from hubguard.web.openapi import BY_THE_HUB, Operation, Param, Refused


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


class StartsApi(WatchApi):
    """Why starts fail."""

    operations = {
        "get": Operation(
            "The starts that failed within the last half hour, by cause and one by one, newest first.",
            FailedStartsShape,
            "read",
        )
    }

    def get(self) -> None:
        self.write_json(describe_starts(self.watch.history, self.watch.failed_starts.recent(self.now)))


class FailedStartApi(WatchApi, HubReport):
    """The hub's own report that a start failed."""

    operations = {
        "post": Operation(
            "Report that a start failed.",
            None,
            BY_THE_HUB,
            body=(
                Param("user", str, "The server's user.", low=1, high=255, required=True),
                Param("server", str, "The server's name; empty for the default server.", high=255, required=True),
                Param("error", str, "The name of the error's class.", high=100, required=True),
                Param("message", str, "What the spawner said.", default="", high=500),
                Param("refused", bool, "It was refused before it began.", default=False),
            ),
            answers=False,
        )
    }

    def post(self) -> None:
        """Note it."""
        asked = self.body()
        cause = cause_of_error(asked["error"], asked["message"], refused=asked["refused"])
        message = asked["message"] or asked["error"]
        self.watch.failed_starts.add(FailedStart(self.now, asked["user"], asked["server"], cause, message))
        self.set_status(204)


MOST = 10_000
"""Maximum incidents that are listed."""

TITLE = Param("title", str, "What is wrong, in a few words.", low=1, high=200, required=True)
NOTE = Param("text", str, "What to write down.", low=1, high=2000, required=True)


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


class SignalsApi(WatchApi):
    """What is measured."""

    operations = {
        "get": Operation("Every signal, with its newest reading.", SignalShape, "read", listed=True),
    }

    def get(self) -> None:
        self.write_json(describe_signals(self.watch.history, self.watch.status()))


_WHEN = "a date, a time in UTC such as 2026-12-01T18:00, or a span before now such as 90min, 12h or 7d"


class SignalApi(WatchApi):
    """How a signal was over time."""

    operations = {
        "get": Operation(
            "What a signal was from one time to another, in steps as fine as that span allows.",
            SeriesShape,
            "read",
            query=(
                Param("subject", str, "Which folder or cause, for a signal that has several.", default="", high=255),
                Param("since", str, f"The first moment: {_WHEN}.", default="3h", low=1, high=40),
                Param("until", str, f"The last moment: {_WHEN}. Left out: now.", low=1, high=40),
            ),
        )
    }

    async def get(self, name: str) -> None:
        """404 for a signal that isn't there, 400 for a subject that is missing or a time that can't be read."""
        asked, now = self.query(), self.now
        signal, subject = signal_of(name), asked["subject"]
        known = [split_key(key)[1] for key in self.watch.history.keys(signal.name)]
        if signal.per and not subject:
            raise Refused(
                400, f"subject: {name} has one series for each {signal.per}: {', '.join(known) or 'none yet'}"
            )
        since, until = moment_of("since", asked["since"], now), now
        if asked["until"] is not None:
            until = moment_of("until", asked["until"], now)
        if not since < until:
            raise Refused(400, "since: must be before until")
        key = signal_key(name, subject)
        step_s, samples = await self.watch.samples(since, until, {key})
        self.write_json(describe_series(signal, subject, since, until, step_s, samples.get(key, ())))


class SilencesApi(WatchApi):
    """The silences."""

    operations = {
        "get": Operation(
            "The silences in force, newest first.", Silence, "read", query=(OFFSET, LIMIT), listed=True, paged=True
        ),
        "post": Operation(
            "Silence an alert until a time: it is raised and shown, and no receiver is notified.",
            Silence,
            "act",
            body=(
                Param("rule", str, "Name of the alert; empty for all.", high=64, required=True),
                Param("subject", str, "Only for this subject. Left out or null: for all.", high=255),
                Param(
                    "until", datetime, "Until when, within a year; a date alone means to the end of that day, in UTC."
                ),
                Param("for_s", float, "Seconds from now, instead of until.", above=0, high=YEAR_S),
                WHY,
            ),
        ),
    }

    @override
    async def get(self) -> None:
        self.write_page(await self.watch.silences(), self.query(), lambda silence: silence)

    async def post(self) -> None:
        """The silence is in force, and the journal has it. 400 for a rule that isn't there."""
        asked = self.body()
        if (asked["until"] is None) == (asked["for_s"] is None):
            raise Refused(400, "until: give either this or for_s")
        until = asked["until"] or self.now + timedelta(seconds=asked["for_s"])
        assert self.who is not None
        try:
            made = await self.watch.silence(asked["rule"], asked["subject"], until, self.who.actor, asked["why"])
        except JournalError:
            raise
        except HubGuardError as error:
            raise Refused(400, str(error)) from None
        self.write_json_to_readers(made)


class SilenceApi(WatchApi):
    """One silence."""

    operations = {"delete": Operation("End a silence that is in force.", Silence, "act", fails=(404,))}

    async def delete(self, number: str) -> None:
        """It has ended, and the journal has it. 404 if none of that number is in force."""
        if len(number) > 18:
            raise Refused(404, f"No silence {number[:18]}… is in force.")
        assert self.who is not None
        self.write_json_to_readers(await self.watch.end_silence(int(number), self.who.actor))


def signal_of(name: str) -> Signal:
    """The signal of that name. Raises Refused (404)."""
    if name not in SIGNALS:
        near = difflib.get_close_matches(name, SIGNALS, n=1)
        raise Refused(404, f"No signal {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
    return SIGNALS[name]


def moment_of(name: str, text: str, now: datetime) -> datetime:
    """The moment that ``text`` in the parameter ``name`` means, near enough to now. Raises Refused (400)."""
    try:
        at = point(text, now)
    except ValueError:
        raise Refused(400, f"{name}: {text!r} is none of {_WHEN}") from None
    if not now - timedelta(days=LONGEST_DAYS) <= at <= now + timedelta(days=LONGEST_DAYS):
        raise Refused(400, f"{name}: must be within {LONGEST_DAYS:,} days of now")
    return at


LONGEST_DAYS = 3660
"""Maximum days between now and a time that is asked for: signals aren't kept for longer."""
