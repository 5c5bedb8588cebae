"""A guard from what a test has of the outside."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hubguard.config import Settings
from hubguard.guard import Guard
from hubguard.hub.api import HubAPI
from hubguard.pacing.budget import Budget
from hubguard.wiring import Circumstances, Ways, assemble


def assembled(
    settings: Settings, hub: HubAPI, budget: Budget, journal: Any, clock: Any, chance: Any = lambda: 0.5, **given: Any
) -> Guard:
    """The guard, not yet running; ``given`` are fields of Ways and of Circumstances."""
    ways = {field.name: given.pop(field.name) for field in fields(Ways) if field.name in given}
    return assemble(settings, Ways(hub, budget, **ways), journal, clock, chance, Circumstances(**given))
