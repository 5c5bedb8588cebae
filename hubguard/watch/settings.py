"""The settings of watching."""

from __future__ import annotations

from traitlets import Dict, Int

from hubguard.errors import ConfigError
from hubguard.settings import Section
from hubguard.watch.decide.adjust import problems_of


class HubGuardWatch(Section):
    """What HubGuard measures, when it raises an alert, and how long it remembers."""

    alerts = Dict(
        help="""Changes to the built-in alerts, by name: False switches one off, and a dict changes it, for example
        {"DiskLow": {"raise_at": 0.05, "clear_at": 0.08, "severity": "now"}, "HubBusy": False}. `hubguard alerts rules`
        lists them with what each can change.""",
    ).tag(config=True)
    keep_days = Int(
        400,
        help="""Days for which signals are kept, in steps of one hour from the second month on. Range: 1 to 3,660. The
        default lets you compare a semester with the one a year before.""",
    ).tag(config=True, low=1, high=3660)

    def problems(self) -> list[ConfigError]:
        """Every alert that isn't there, and every change that it can't take."""
        return [ConfigError(f"HubGuardWatch.alerts[{where!r}]", why) for where, why in problems_of(self.alerts)]
