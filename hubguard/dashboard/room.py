"""The addresses of what concerns every feature."""

from hubguard.dashboard import api, pages
from hubguard.web.room import Room

DASHBOARD = Room(
    part="guard",
    live={
        "": pages.Overview,
        "journal": pages.JournalPage,
    },
    pages={
        "actions/{word}": pages.Change,
    },
    api={
        "api/v1/status": api.StatusApi,
        "api/v1/journal": api.JournalApi,
        "api/v1/arm": api.stance_api("arm"),
        "api/v1/observe": api.stance_api("observe"),
        "api/v1/hold": api.stance_api("hold"),
        "api/v1/resume": api.stance_api("resume"),
        "openapi.json": api.OpenApi,
        "metrics": api.MetricsApi,
        "health": api.HealthApi,
        "health/live": api.LiveApi,
        "health/ready": api.ReadyApi,
    },
    choices={"word": pages.Change.words},
)
