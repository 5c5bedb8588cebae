"""The settings of pruning."""

from __future__ import annotations

from traitlets import Bool, Float, Int, List, Unicode

from hubguard.errors import ConfigError
from hubguard.settings import Section
from hubguard.times import DAY_S, HOUR_S


class HubGuardPrune(Section):
    """Who is stale, who is always kept, and who HubGuard may delete by itself. By default it deletes nobody."""

    delete_users = Bool(
        False,
        help="""Whether HubGuard may delete users through the hub. Set it before the include, which then requests the
        scope delete:users. You can make plans without it.""",
    ).tag(config=True)
    inactive_for_s = Float(
        180 * DAY_S,
        help="""Count a user as stale if last active at least this many seconds ago. It is the default of pages and
        commands, and what scheduled pruning uses. Half a year is longer than a term and the holidays after it. 0:
        nobody who was ever active. Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    never_active_for_s = Float(
        180 * DAY_S,
        help="""Also count a user as stale if never active and created at least this many seconds ago. 0: nobody who was
        never active. Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    groups = List(
        Unicode(), help="Only members of one of these groups can be stale. Empty: members of any group or none."
    ).tag(config=True)
    roles = List(
        Unicode(), help="Only users with one of these roles can be stale. Empty: users with any role or none."
    ).tag(config=True)
    names = List(
        Unicode(),
        help='Only users whose name matches one of these globs ("guest-*") can be stale. Empty: any name.',
    ).tag(config=True)
    protected_groups = List(Unicode(), help="Members of these groups are always kept.").tag(config=True)
    protected_roles = List(Unicode(), help="Users with one of these roles are always kept.").tag(config=True)
    protected_names = List(Unicode(), help="Users whose name matches one of these globs are always kept.").tag(
        config=True
    )
    token_used_within_s = Float(
        30 * DAY_S,
        help="""Keep users with a token used within this many seconds: their script may still run. 0: tokens keep
        nobody. Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    rate = Float(
        1.0,
        help="""Maximum users deleted per second, within the budget's rate. The hub spends 8 to 20 ms on each and
        answers nobody else meanwhile: from two per second on, one in a hundred requests of others waits noticeably
        longer. Range: 0.01 to 1000.""",
    ).tag(config=True, low=0.01, high=1000.0)
    plan_life_s = Float(
        DAY_S,
        help="""Seconds after which a plan that wasn't started expires: long enough for two people to review it.
        HubGuard checks each user again before deleting them. Range: a minute to 30 days.""",
    ).tag(config=True, low=60.0, high=30 * DAY_S)
    every_s = Float(
        0.0,
        help="""Seconds between scheduled prunings. 0: never. Scheduled pruning needs delete_users, and HubGuard must be
        armed. Range: 0, or an hour to a year.""",
    ).tag(config=True, low=0.0, high=366 * DAY_S)
    run_cap = Int(
        100,
        help="Maximum number of users that one scheduled pruning deletes; the rest wait for the next. Range: 1 to a million.",
    ).tag(config=True, low=1, high=1_000_000)
    share_cap = Float(
        0.1,
        help="""If more than this share of all users is stale, a scheduled pruning deletes nobody and raises an alert,
        so that a person reviews it. Range: 0.001 to 1.""",
    ).tag(config=True, low=0.001, high=1.0)
    acknowledged = List(
        Unicode(),
        help="""Names of the cautions that scheduled pruning may ignore, as a plan lists them (for example
        "KubeSpawner": the users' volumes are deleted with them).""",
    ).tag(config=True)
    undo_folder = Unicode(
        "",
        help="""Folder for undo files. They hold all deleted rows, including spawner state and token hashes (mode 0600).
        Empty: hubguard-undo, in the folder that HubGuard runs in.""",
    ).tag(config=True)

    def problems(self) -> list[ConfigError]:
        """What is wrong with the schedule."""
        setting = f"{type(self).__name__}.every_s"
        if 0 < self.every_s < HOUR_S:
            return [ConfigError(setting, f"{self.every_s:g} s is too often; use 3600 or more, or 0 for never")]
        if self.every_s and not self.delete_users:
            return [ConfigError(setting, "scheduled pruning needs HubGuardPrune.delete_users = True")]
        return []
