"""The page of alerts."""

from __future__ import annotations

from datetime import timedelta

from hubguard.errors import JournalError
from hubguard.watch.cycle import Watch
from hubguard.watch.model import AlertRow
from hubguard.watch.shapes import describe, describe_source
from hubguard.web.page import Page

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
