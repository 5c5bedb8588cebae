"""The addresses of watching."""

from hubguard.watch import api, pages
from hubguard.web.room import Room

WATCH = Room(
    part="watch",
    live={
        "alerts": pages.AlertsPage,
        "alerts/{id}": pages.AlertPage,
        "signals": pages.SignalsPage,
        "incidents": pages.IncidentsPage,
        "incidents/{id}": pages.IncidentPage,
    },
    pages={
        "silences/new": pages.SilenceAlert,
        "silences/{id}": pages.EndSilence,
        "incidents/open": pages.OpenIncident,
        "incidents/{id}/notes": pages.NoteIncident,
        "incidents/{id}/close": pages.CloseIncident,
    },
    api={
        "api/v1/alerts": api.AlertsApi,
        "api/v1/starts": api.StartsApi,
        "api/v1/starts/failed": api.FailedStartApi,
        "api/v1/silences": api.SilencesApi,
        "api/v1/silences/{id}": api.SilenceApi,
        "api/v1/signals": api.SignalsApi,
        "api/v1/signals/sources": api.SignalSourcesApi,
        "api/v1/incidents": api.IncidentsApi,
        "api/v1/incidents/{id}": api.IncidentApi,
        "api/v1/incidents/{id}/notes": api.IncidentNotesApi,
        "api/v1/incidents/{id}/close": api.CloseIncidentApi,
        "api/v1/incidents/{id}/report.md": api.IncidentReportApi,
        "api/v1/signals/{signal}": api.SignalApi,
    },
)
