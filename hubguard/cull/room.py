"""The addresses of culling."""

from hubguard.cull import api, pages
from hubguard.web.room import Room

CULL = Room(
    part="culling",
    live={
        "servers": pages.Servers,
        "servers/{user}/{name}": pages.ServerPage,
        "exemptions": pages.Exemptions,
    },
    pages={
        "exemptions/new": pages.Keep,
        "exemptions/{id}": pages.EndExemption,
    },
    api={
        "api/v1/servers": api.ServersApi,
        "api/v1/servers/{user}/{name}": api.ServerApi,
        "api/v1/exemptions": api.ExemptionsApi,
        "api/v1/exemptions/{id}": api.ExemptionApi,
        "api/v1/cycles": api.CyclesApi,
    },
)
