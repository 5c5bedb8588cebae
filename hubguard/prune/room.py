"""The addresses of pruning."""

from hubguard.prune import api, pages, plan_pages
from hubguard.web.room import Room

PRUNE = Room(
    part="pruning",
    live={
        "users": pages.UsersPage,
        "plans": plan_pages.PlansPage,
        "plans/{digest}": plan_pages.PlanPage,
    },
    pages={
        "users/{user}": pages.UserPage,
        "plans/new": plan_pages.MakePlan,
        "plans/{digest}/apply": plan_pages.ApplyPlan,
        "plans/{digest}/{turn}": plan_pages.TurnPlan,
    },
    api={
        "api/v1/users": api.UsersApi,
        "api/v1/users/{user}": api.UserApi,
        "api/v1/users.csv": api.UsersCsvApi,
        "api/v1/plans": api.PlansApi,
        "api/v1/plans/{digest}": api.OnePlanApi,
        "api/v1/plans/{digest}.csv": api.CsvApi,
        "api/v1/plans/{digest}/items": api.ItemsApi,
        "api/v1/plans/{digest}/apply": api.ApplyApi,
        "api/v1/plans/{digest}/pause": api.turn_api("pause"),
        "api/v1/plans/{digest}/resume": api.turn_api("resume"),
        "api/v1/plans/{digest}/cancel": api.turn_api("cancel"),
        "api/v1/plans/{digest}/restore": api.RestoreApi,
    },
    choices={"turn": plan_pages.TurnPlan.words},
)
