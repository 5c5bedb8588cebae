"""The addresses of watching."""

from hubguard.watch import api, pages
from hubguard.web.room import Room

WATCH = Room(
    part="watch",
    live={
        "alerts": pages.AlertsPage,
    },
    pages={},
    api={
        "api/v1/alerts": api.AlertsApi,
        "api/v1/signals/sources": api.SignalSourcesApi,
    },
)
