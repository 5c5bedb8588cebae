"""The part of the REST API that reports alerts and signals, and silences."""

from __future__ import annotations

from hubguard.watch.cycle import Watch
from hubguard.watch.shapes import AlertShape, SignalSourceShape, describe, describe_source
from hubguard.web.endpoint import LIMIT, OFFSET, Api
from hubguard.web.openapi import Operation


class WatchApi(Api):
    """An endpoint of watching."""

    watch: Watch


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
