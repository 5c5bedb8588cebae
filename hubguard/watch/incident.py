"""Incidents: they open on an urgent alert or by hand, close with recovery, and their story is gathered from what is kept."""

from __future__ import annotations

from datetime import datetime, timedelta

from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.store import Journal
from hubguard.watch.decide.alert import Rule
from hubguard.watch.decide.story import HUBGUARD, impact, timeline
from hubguard.watch.model import Alert, Incident, Severity, Story
from hubguard.watch.store.alerts import AlertStore
from hubguard.watch.store.incidents import AsyncIncidents, IncidentStore
from hubguard.watch.store.signals import SignalStore, step_for

CALM_S = 600.0
"""Seconds without an alert to act on now after which an incident that HubGuard opened is over."""

BEFORE = timedelta(minutes=15)
"""Time before an incident that belongs to its story: what led to it."""

AFTER = timedelta(minutes=5)
"""Time after an incident that belongs to its story."""

ENTRIES = 5000
"""Maximum entries of the journal that a story is made of."""


class Incidents:
    """Opens and closes incidents as alerts come and go. ``current`` is the one that is open, None if none is."""

    def __init__(self, journal: AsyncJournal) -> None:
        self.store = AsyncIncidents(journal)
        self.current: Incident | None = None
        self._calm_since: datetime | None = None

    async def begin(self) -> None:
        """Read which one is open: another guard may have opened or closed it."""
        self.current = await self.store.open_now()
        self._calm_since = None

    async def follow_raised(self, rule: Rule, alert: Alert, sentence: str, fence: int) -> int | None:
        """The id of the incident that this alert belongs to, which is open now; None if it belongs to none.

        An alert to act on now opens one; others belong to the one that is open.
        """
        assert alert.raised_at is not None
        if rule.severity is Severity.NOW and self.current is None:
            self.current = await self.store.open_incident(
                sentence, HUBGUARD, alert.raised_at, severity=rule.severity, fence=fence
            )
        return None if self.current is None else self.current.id

    async def follow_calm(self, now: datetime, fence: int, *, urgent: bool) -> None:
        """Close the one that HubGuard opened, once nothing has been ``urgent`` for a while. One opened by hand stays open.

        ``urgent``: an alert to act on now is raised. Others may last for days, and keep no incident open.
        """
        if self.current is None or self.current.opened_by != HUBGUARD or urgent:
            self._calm_since = None
            return
        self._calm_since = self._calm_since or now
        if now - self._calm_since >= timedelta(seconds=CALM_S):
            await self.close(
                self.current.id, HUBGUARD, now, "recovered: no alert to act on now for 10 minutes", fence=fence
            )

    async def open_by_hand(self, title: str, by: str, now: datetime) -> Incident:
        """The incident that is open: a new one, or the one that was open already."""
        self.current = await self.store.open_incident(title, by, now)
        return self.current

    async def close(self, id_: int, by: str, now: datetime, why: str, *, fence: int = 0) -> Incident:
        """That incident is closed. Raises NoSuchIncident."""
        incident = await self.store.close_incident(id_, by, now, why, fence=fence)
        if self.current is not None and self.current.id == id_:
            self.current = None
        self._calm_since = None
        return incident

    async def story(self, id_: int, now: datetime) -> Story:
        """The story of that incident. Raises NoSuchIncident."""
        return await self.store.call(tell_incident, self.store.sync.journal, id_, now)

    async def story_between(self, since: datetime, until: datetime, now: datetime) -> Story:
        """What is known of that time."""
        return await self.store.call(tell, self.store.sync.journal, since, until, now)


def tell_incident(journal: Journal, id_: int, now: datetime) -> Story:
    """The story of that incident, with what led to it. Raises NoSuchIncident, and JournalError."""
    incident = IncidentStore(journal).incident(id_)
    until = min(now, (incident.closed_at or now) + AFTER)
    return tell(journal, incident.opened_at - BEFORE, until, now, incident)


def tell(journal: Journal, since: datetime, until: datetime, now: datetime, incident: Incident | None = None) -> Story:
    """What is known of the time from ``since`` to ``until``. Raises JournalError."""
    entries = journal.entries(limit=ENTRIES, since=since, until=until)
    notes = () if incident is None else IncidentStore(journal).notes(incident.id)
    alerts = AlertStore(journal).alerts(since=since, until=until, limit=1000)
    begun = since if incident is None else incident.opened_at
    ended = until if incident is None else incident.closed_at or until
    step_s = step_for((ended - begun).total_seconds(), (now - begun).total_seconds())
    # A step that began before belongs to the time, too.
    samples = SignalStore(journal).samples(step_s, begun - timedelta(seconds=step_s), ended)
    figures, unknown = impact(samples, step_s)
    return Story(
        since,
        until,
        incident,
        tuple(sorted(alerts, key=lambda alert: alert.raised_at)),
        timeline(entries, notes),
        figures,
        unknown,
        notes,
        cut=len(entries) == ENTRIES,
    )
