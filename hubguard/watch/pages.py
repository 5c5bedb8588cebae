"""The pages of alerts, signals and incidents."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from typing_extensions import override

from hubguard.errors import JournalError
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry
from hubguard.watch import words as watch_words
from hubguard.watch.api import NOTE, TITLE
from hubguard.watch.charts import (
    SPANS_S,
    draw_alert,
    draw_signal,
    limit_of,
    limit_word,
    rule_named,
    span_around,
)
from hubguard.watch.cycle import Watch
from hubguard.watch.decide.history import level_for
from hubguard.watch.decide.sentence import say
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import AlertRow, Incident, Sample, Silence, Story, signal_key, split_key
from hubguard.watch.shapes import AlertShape, describe, describe_source
from hubguard.web.chart import Chart, Span
from hubguard.web.openapi import Param, Refused
from hubguard.web.page import ROWS, Page, choose_until

RECENT = timedelta(days=7)
"""For how long resolved alerts stay on the page."""

MOST_CHARTS = 12
"""Maximum alerts that are listed with their charts; of more, each has its chart on its own page."""

CHARTS_EVERY = "10s"
"""How often the pages with charts are refreshed: signals come no faster."""


class AlertsPage(Page):
    """What is wrong now, what to do first, what was wrong recently, and what is silenced."""

    watch: Watch
    template = "watch/alerts.html"
    tab = "alerts"

    async def get(self) -> None:
        status, watched = self.site.status(), self.watch.status()
        trouble, rows, silences = "", tuple[AlertRow, ...](), tuple[Silence, ...]()
        try:
            rows = await self.watch.alerts.alerts(since=status.at - RECENT)
            silences = await self.watch.silences()
        except JournalError as error:
            trouble = str(error)
        alerts, sources = describe(self.watch.rules, watched), [describe_source(each) for each in watched.readings]
        shown = [alert for alert in alerts if alert.raised_at][:MOST_CHARTS]
        rule, subject = self.asked("rule"), self.asked("subject")
        await self.show(
            "alerts",
            {
                **self.common(status),
                "w": watch_words,
                "unwatched": watch_words.unwatched(status, watched),
                "alerts": [(alert, silence_of(alert, silences, status.at)) for alert in alerts],
                "charts": {
                    (alert.rule, alert.subject): draw_alert(
                        alert, self.watch.rules[alert.rule], self.watch.history, status.at
                    )
                    for alert in shown
                },
                "evidence": self.evidence,
                "resolved": [row for row in rows if row.resolved_at is not None],
                "silences": silences,
                "sources": sources,
                "trouble": trouble,
            },
            live_every=CHARTS_EVERY,
            rules=sorted(self.watch.rules),
            rule=rule if rule in self.watch.rules else "",
            subject=subject,
            today=f"{status.at:%Y-%m-%d}",
        )

    def evidence(self, alert: AlertShape) -> list[tuple[str, str]]:
        """What the alert is based on, as (label, value)."""
        unit = SIGNALS[alert.signal].unit
        rows = [("Last reading", say(alert.value, unit)), ("Worst", say(alert.worst, unit))]
        if alert.limit is not None:
            word = limit_word(self.watch.rules[alert.rule].condition)
            rows.append((word[:1].upper() + word[1:], say(alert.limit, unit)))
        if alert.left is not None:
            rows.append(("Time left", watch_words.left_evidence(alert.left)))
        return rows


def silence_of(alert: AlertShape, silences: Sequence[Silence], now: datetime) -> Silence | None:
    """Of those that cover the alert the one that lasts longest; None if nothing does."""
    covering = [silence for silence in silences if silence.covers(alert.rule, alert.subject, now)]
    return max(covering, key=lambda silence: silence.until, default=None)


class AlertPage(Page):
    """One alert that was raised: how its signal was, what happened meanwhile, and what came of it."""

    watch: Watch
    journal: AsyncJournal
    template = "watch/alert.html"
    tab = "alerts"

    async def get(self, id_: str) -> None:
        status = self.site.status()
        row = await self.watch.alerts.alert(int(id_))
        if row is None:
            raise Refused(404, f"No alert {id_}: it never was, or is too old to be remembered.")
        since, until = span_around(row.raised_at, row.resolved_at, status.at)
        rule = rule_named(row.rule, self.watch.rules)
        chart, entries, trouble = None, tuple[Entry, ...](), ""
        alerts = describe(self.watch.rules, self.watch.status())
        alert = next((each for each in alerts if each.id == row.id), None)
        try:
            if rule is not None:
                key = signal_key(rule.condition.signal, row.subject)
                step_s, samples = await self.watch.samples(since, until, {key})
                end = row.resolved_at or status.at
                chart = draw_signal(
                    SIGNALS[rule.condition.signal],
                    row.subject,
                    samples.get(key, ()),
                    since,
                    until,
                    step_s,
                    limit=limit_of(rule.condition, alert),
                    spans=(Span(row.raised_at.timestamp(), end.timestamp(), "firing"),),
                )
            entries = await self.journal.entries(limit=ROWS, since=since, until=until)
        except JournalError as error:
            trouble = str(error)
        live = {
            **self.common(status),
            "w": watch_words,
            "row": row,
            "alert": alert,
            "rule": rule,
            "first": rule.first.format(subject=row.subject) if rule is not None else "",
            "unit": SIGNALS[rule.condition.signal].unit if rule is not None else None,
            "say": say,
            "chart": chart,
            "entries": entries,
            "trouble": trouble,
        }
        await self.show(f"alerts/{id_}", live, poll=row.resolved_at is None, live_every=CHARTS_EVERY)


class SilenceAlert(Page):
    """Where the form on the page of alerts is sent."""

    watch: Watch
    needs = ("act",)
    tab = "alerts"

    async def post(self) -> None:
        """Nobody is notified of that until then, and the list of silences has it."""
        subject = self.get_body_argument("subject", "", strip=False)
        Param("subject", str, "", high=255).checked(subject)
        rule, why = self.get_body_argument("rule", ""), self.why()
        if not why:
            raise Refused(400, "Nothing silenced: no reason was given. Go back and say why.")
        until = choose_until(self, self.site.status().at)
        assert self.who is not None
        await self.watch.silence(rule, subject or None, until, self.who.actor, why)
        self.redirect(self.here("alerts") + "#h-silences", status=303)


class EndSilence(Page):
    """Where the buttons in the list of silences are sent."""

    watch: Watch
    needs = ("act",)
    tab = "alerts"

    async def post(self, id_: str) -> None:
        """It is over. 404 if it isn't in force."""
        assert self.who is not None
        await self.watch.end_silence(int(id_), self.who.actor)
        self.redirect(self.here("alerts") + "#h-silences", status=303)


class SignalsPage(Page):
    """Every signal as a small chart, by source; the time stands in the address."""

    watch: Watch
    template = "watch/signals.html"
    tab = "alerts"

    async def get(self) -> None:
        status, watched = self.site.status(), self.watch.status()
        choice = self.asked("span")
        choice = choice if choice in SPANS_S else "3h"
        span_s, trouble = SPANS_S[choice], ""
        since, step_s = status.at - timedelta(seconds=span_s), level_for(span_s).step_s
        samples: dict[str, tuple[Sample, ...]] = {
            key: self.watch.history.over(key, span_s, status.at.timestamp())
            for name in SIGNALS
            for key in self.watch.history.keys(name)
        }
        if choice == "month":  # longer than what is held in memory
            try:
                step_s, samples = await self.watch.samples(since, status.at)
            except JournalError as error:
                trouble = str(error)
        charts: dict[str, list[tuple[str, Chart]]] = {}
        order = {name: number for number, name in enumerate(SIGNALS)}
        known = [key for key in samples if split_key(key)[0] in order]  # another version may have kept others
        for key in sorted(known, key=lambda key: (order[split_key(key)[0]], key)):
            name, subject = split_key(key)
            drawn = draw_signal(SIGNALS[name], subject, samples[key], since, status.at, step_s)
            charts.setdefault(SIGNALS[name].source.value, []).append((key, drawn))
        live = {
            **self.common(status),
            "w": watch_words,
            "unwatched": watch_words.unwatched(status, watched),
            "sources": [describe_source(each) for each in watched.readings],
            "charts": charts,
            "span": choice,
            "trouble": trouble,
        }
        await self.show("signals", live, live_every=CHARTS_EVERY if choice == "3h" else "60s", spans=tuple(SPANS_S))


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


ALWAYS_CHARTED = ("hub_latency_seconds", "servers_running", "proxy_errors_per_minute")
"""The signals on every incident's page, as far as they were measured."""

CHARTS_MOST = 8
"""Maximum charts on an incident's page."""


class IncidentPage(Page):
    """One incident: what happened, what it meant, who did what."""

    watch: Watch
    template = "watch/incident.html"
    tab = "alerts"

    async def get(self, id_: str) -> None:
        status = self.site.status()
        story = await self.watch.incidents.story(int(id_), status.at)
        assert story.incident is not None
        live = {**self.common(status), "story": story, "incident": story.incident}
        live["charts"] = await self._charts(story, story.incident, status.at)
        await self.show(f"incidents/{id_}", live, poll=story.incident.closed_at is None, live_every=CHARTS_EVERY)

    async def _charts(self, story: Story, incident: Incident, now: datetime) -> list[Chart]:
        """What its alerts are about, and the signals that tell most of any incident, over its time and what led to it."""
        keys: list[str] = []
        for alert in story.alerts:
            rule = rule_named(alert.rule, self.watch.rules)
            if rule is not None and alert.incident == incident.id:
                keys.append(signal_key(rule.condition.signal, alert.subject))
        keys = list(dict.fromkeys([*keys, *ALWAYS_CHARTED]))[:CHARTS_MOST]
        step_s, samples = await self.watch.samples(story.since, story.until, set(keys))
        begun, ended = incident.opened_at.timestamp(), (incident.closed_at or now).timestamp()
        charts = []
        for key in keys:
            name, subject = split_key(key)
            some, spans = samples.get(key, ()), (Span(begun, ended, "incident"),)
            if some:
                charts.append(draw_signal(SIGNALS[name], subject, some, story.since, story.until, step_s, spans=spans))
        return charts


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
