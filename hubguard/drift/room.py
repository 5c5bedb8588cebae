"""The addresses of drift."""

from hubguard.drift import api, pages
from hubguard.web.room import Room

DRIFT = Room(
    part="drifts",
    live={
        "drift": pages.DriftPage,
        "beliefs/{user}/{name}": pages.BeliefsPage,
    },
    pages={
        "repairs": pages.RepairsPage,
    },
    api={
        "api/v1/drift": api.DriftApi,
        "api/v1/drift/report": api.ReportApi,
        "api/v1/drift/looks": api.LooksApi,
        "api/v1/routes": api.RoutesApi,
        "api/v1/repairs": api.RepairsApi,
        "api/v1/beliefs/{user}/{name}": api.BeliefsApi,
        "api/v1/outlived": api.OutlivedApi,
    },
)
