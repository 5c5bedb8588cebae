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
        help="Seconds without activity after which a server is stopped. 0: never because it is idle. (z2jh's default.)",
    ).tag(config=True, low=0.0, high=YEAR_S)
    max_age_s = Float(
        0.0,
        help="Seconds after its start at which a server is stopped, even if it is in use. 0: never because of its age.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    every_s = Float(
        60.0,
        help="""Seconds from the end of one cycle to the start of the next, plus or minus 10 %, so that several hubs, or
        the hub's own checks, stay out of step. Range: 1 to a day.""",
    ).tag(config=True, low=1.0, high=DAY_S)
    admin_servers = Bool(True, help="Whether servers of hub admins are stopped, too.").tag(config=True)
    default_servers = Bool(True, help="Whether default servers are stopped.").tag(config=True)
    named_servers = Bool(True, help="Whether named servers are stopped.").tag(config=True)
    rules = List(
        Dict(),
        help="""Rules in order; the first that matches a server sets its limits. Each is a dict of what it matches, all
        of it (`users`, `groups`, `roles`, `servers`, `profiles`: a glob or a list of them; `options`: values of
        user_options, or comparisons such as ">= 16"; `not_users`, `not_groups` and so on: none of these; `admin`,
        `named`: True or False; `from`, `until`: dates; `weekdays` such as "mon-fri", `hours` such as "08:00-18:00",
        `timezone`), and what it sets: `idle_timeout_s`, `max_age_s`, `max_servers`, `max_servers_in_all`, or `never`:
        True. `name` is its name on pages. A server that no rule matches has the limits set here.""",
    ).tag(config=True)
    hook = Unicode(
        "",
        help="""Your own function that decides last, as `module:function`, sync or async. HubGuard calls it with the
        keywords `server`, `user`, `groups`, `inactive` (a timedelta), `inactive_limit` (seconds) for a server that is
        due, and returns whether to stop it. If it raises or takes more than 10 s, the server is kept. Install the
        module in HubGuard's environment, or have its folder in PYTHONPATH when the hub starts. Empty: none.""",
    ).tag(config=True)
    users = Bool(
        False,
        help="""Whether users are deleted from the hub, with all they have there, once none of their servers runs and
        they have been inactive for `user_idle_timeout_s`. For hubs with temporary users. Users that
        `HubGuardPrune` protects, or that the hub's config names, are kept. If the spawner deletes storage with the user
        (KubeSpawner: by default), HubGuard deletes nobody until `HubGuardPrune.acknowledged` names the spawner. Set it
        before the include, which then requests the scope for it.""",
    ).tag(config=True)
    user_idle_timeout_s = Float(
        30 * DAY_S,
        help="Seconds without activity after which a user is deleted, if `users` is True. 0: never because of inactivity.",
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    user_max_age_s = Float(
        0.0, help="Seconds after which a user is deleted even if active, if `users` is True. 0: never because of age."
    ).tag(config=True, low=0.0, high=10 * YEAR_S)
    admin_users = Bool(False, help="Whether admins are deleted, too, if `users` is True.").tag(config=True)
    pending_limit_s = Float(
        1800.0,
        help="""Seconds after which a pending server (starting or stopping) is reported as stuck. Set it longer than the
        spawner's slowest start. With the include, it is at least what the hub gives a start (`start_timeout` and
        `http_timeout` of the spawner). Range: 60 to a day.""",
    ).tag(config=True, low=60.0, high=DAY_S)
    interrupt_spawns = Bool(
        False, help="Whether HubGuard interrupts a start that has been stuck for longer than `pending_limit_s`."
    ).tag(config=True)
    hub_activity_interval_s = Float(
        300.0,
        help="""Seconds between two updates of activity from the proxy by the hub:
        `c.JupyterHub.last_activity_interval`, which the include passes on if it is set. 0: the hub never updates.
        Range: 0 to a day.""",
    ).tag(config=True, low=0.0, high=DAY_S)
    remove_named_servers = Bool(
        False, help="Whether a stopped named server is also removed from the hub, with its options."
    ).tag(config=True)
    plan_cap = Int(
        1000,
        help="""Maximum number of servers to stop, starts to interrupt and users to delete that may be due at once. With more,
        HubGuard is braked until fewer are due, or until a person resumes; then each cycle acts on up to this many.
        Range: 1 to a million.""",
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
