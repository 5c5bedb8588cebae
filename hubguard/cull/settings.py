"""The settings of culling."""

from __future__ import annotations

from traitlets import Bool, Dict, Float, Int, List, Unicode

from hubguard.cull.decide import rules as cull_rules
from hubguard.errors import ConfigError
from hubguard.settings import Section
from hubguard.times import DAY_S, YEAR_S


class HubGuardCull(Section):
    """Which servers are stopped, and when."""

    idle_timeout_s = Float(
        3600.0,
        help="Seconds without activity after which a server is stopped. 0: never for idleness. (z2jh's default.)",
    ).tag(config=True, low=0.0, high=YEAR_S)
    max_age_s = Float(
        0.0,
        help="Seconds after its start at which a server is stopped even when it is in use. 0: never for its age.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    every_s = Float(
        60.0,
        help="""Seconds from the end of one cycle to the start of the next, give or take 10 %, so that several hubs, or
        the hub's own checks, stay out of step. Range: 1 to a day.""",
    ).tag(config=True, low=1.0, high=DAY_S)
    admin_servers = Bool(True, help="Whether servers of hub admins are stopped, too.").tag(config=True)
    default_servers = Bool(True, help="Whether default servers are stopped.").tag(config=True)
    named_servers = Bool(True, help="Whether named servers are stopped.").tag(config=True)
    rules = List(
        Dict(),
        help="""Rules in order; the first that matches a server gives its limits. A dict each: what it matches, all of it
        (`users`, `groups`, `roles`, `servers`, `profiles`: a glob or a list of them; `admin`, `named`: True or False;
        `options`: values of user_options; `weekdays` such as "mon-fri", `hours` such as "08:00-18:00", `timezone`), and what
        it sets: `idle_timeout_s`, `max_age_s`, or `never`: True. `name` is what pages call it. A server that no rule matches
        has the limits set here.""",
    ).tag(config=True)
    hook = Unicode(
        "",
        help="""A function of yours that has the last word, as `module:function`, sync or async. It is called with the
        keywords `server`, `user`, `groups`, `inactive` (a timedelta), `inactive_limit` (seconds) for a server that is due,
        and returns whether to stop it. Where it raises or takes over 10 s, the server is kept. Install the module where
        HubGuard is. Empty: none.""",
    ).tag(config=True)
    users = Bool(
        False,
        help="""Whether users are deleted from the hub, too, with all they have there, once none of their servers runs and
        they have been inactive for `user_idle_timeout_s`. For hubs with temporary users. Where the spawner deletes storage
        with the user, that is gone, too (KubeSpawner: by default). Set it before the include, which then asks for the
        scope that it needs.""",
    ).tag(config=True)
    user_idle_timeout_s = Float(
        30 * DAY_S,
        help="Seconds without activity after which a user is deleted, where `users` is True. 0: never for inactivity.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    user_max_age_s = Float(
        0.0, help="Seconds after which a user is deleted even when active, where `users` is True. 0: never for age."
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    admin_users = Bool(False, help="Whether admins are deleted, too, where `users` is True.").tag(config=True)
    pending_limit_s = Float(
        1800.0,
        help="""Seconds for which a server may be pending (starting, stopping) until it is reported as stuck. Longer than the
        spawner's slowest start. Range: 60 to a day.""",
    ).tag(config=True, low=60.0, high=DAY_S)
    interrupt_spawns = Bool(
        False, help="Whether a start that is stuck for longer than `pending_limit_s` is interrupted by itself."
    ).tag(config=True)
    hub_activity_interval_s = Float(
        300.0,
        help="""How often the hub takes over activity from the proxy, in seconds: `c.JupyterHub.last_activity_interval`, which
        the include passes on where it is set. 0: the hub never does. Up to a day.""",
    ).tag(config=True, low=0.0, high=DAY_S)
    remove_named_servers = Bool(
        False, help="Whether a named server that was stopped is also removed from the hub, with its options."
    ).tag(config=True)
    plan_cap = Int(
        1000,
        help="""The most that may be due at once: servers to stop, starts to interrupt and users to delete, together. With
        more, HubGuard holds back until no more are due, or a person has looked and resumes; then each cycle does so many. At
        least 1.""",
    ).tag(config=True, low=1, high=1_000_000)

    constants = ("outage_s", "population_fall", "verify_s", "retry_base_s", "retry_max_s")

    outage_s = 120.0
    """Seconds without hub or proxy that count as an outage, after which all idle clocks start again.

    A restart takes less, and the hub's activity lags by more anyway.
    """
    population_fall = 0.2
    """Share of the users (and at least ten) whose disappearance brakes HubGuard, unless HubGuard deleted them."""
    verify_s = 60.0
    """Seconds for which HubGuard reads a server again after a stop, until the hub shows it gone."""
    retry_base_s = 30.0
    """Maximum wait in seconds after the first failed stop of a server; it doubles with every further failure.

    The actual wait is drawn between 0 and that (full jitter).
    """
    retry_max_s = 3600.0
    """Maximum wait in seconds between two attempts to stop the same server."""

    def problems(self) -> list[ConfigError]:
        """Every rule that can't be used."""
        wrong = cull_rules.parse(self.rules)[1]
        return [ConfigError(f"{type(self).__name__}.{error.setting}", error.text) for error in wrong]
