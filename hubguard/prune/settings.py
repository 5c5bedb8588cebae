"""The settings of pruning."""

from __future__ import annotations

from traitlets import Bool, Float, Int, List, Unicode

from hubguard.errors import ConfigError
from hubguard.settings import Section
from hubguard.times import DAY_S, HOUR_S


class HubGuardPrune(Section):
    """Who is stale, who is always kept, and what HubGuard may remove by itself. It removes nobody unless told to."""

    delete_users = Bool(
        False,
        help="""Whether HubGuard may delete users through the hub at all. Set it before HubGuard's include: that asks for the
        scope delete:users then. Plans can be made without it.""",
    ).tag(config=True)
    inactive_for_s = Float(
        180 * DAY_S,
        help="""A user is stale who was last active so many seconds ago. Pages and commands begin with it, and scheduled
        pruning goes by it. Half a year: longer than a term and the holidays after it. 0: none of those who were ever active.
        Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    never_active_for_s = Float(
        180 * DAY_S,
        help="""A user is stale, too, who was never active and was made so many seconds ago. 0: none of them. Range: 0 to ten
        years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    groups = List(
        Unicode(), help="Only members of one of these groups are asked for; empty: whatever their groups."
    ).tag(config=True)
    roles = List(Unicode(), help="Only users with one of these roles are asked for; empty: whatever their roles.").tag(
        config=True
    )
    names = List(
        Unicode(),
        help='Only users whose name matches one of these globs ("guest-*") are asked for; empty: whatever it is.',
    ).tag(config=True)
    protected_groups = List(Unicode(), help="Members of these groups are kept, whatever is asked for.").tag(config=True)
    protected_roles = List(Unicode(), help="Users with one of these roles are kept, whatever is asked for.").tag(
        config=True
    )
    protected_names = List(
        Unicode(), help="Users whose name matches one of these globs are kept, whatever is asked for."
    ).tag(config=True)
    token_used_within_s = Float(
        30 * DAY_S,
        help="""Users with a token that was used so lately, in seconds, are kept: a script of theirs may be at work. 0: tokens
        keep nobody. Range: 0 to ten years.""",
    ).tag(config=True, low=0.0, high=3660 * DAY_S)
    rate = Float(
        1.0,
        help="""Users deleted per second at most; the budget's rate holds, too. A hub spends 8 to 20 ms on each, and answers
        nobody else meanwhile: from two a second on, one of a hundred requests of others would wait noticeably longer.
        Range: 0.01 to 1000.""",
    ).tag(config=True, low=0.01, high=1000.0)
    plan_life_s = Float(
        DAY_S,
        help="""Seconds for which a plan can be begun after it was made: long enough for two people to look at it. Each user
        is looked at again before they are deleted, whenever that is. Range: a minute to 30 days.""",
    ).tag(config=True, low=60.0, high=30 * DAY_S)
    every_s = Float(
        0.0,
        help="""Seconds from one scheduled pruning to the next; 0, and nothing is pruned by itself. It needs delete_users, and
        HubGuard armed. Range: 0, or an hour to a year.""",
    ).tag(config=True, low=0.0, high=366 * DAY_S)
    run_cap = Int(
        100,
        help="The most users that one scheduled pruning removes; the rest wait for the next. Range: 1 to a million.",
    ).tag(config=True, low=1, high=1_000_000)
    share_cap = Float(
        0.1,
        help="""A scheduled pruning that finds more than this share of all users stale removes nobody and raises an alert:
        such a plan needs a person's eyes. Range: 0.001 to 1.""",
    ).tag(config=True, low=0.001, high=1.0)
    acknowledged = List(
        Unicode(),
        help="""The cautions that scheduled pruning may go on with, by name as a plan tells them ("KubeSpawner": the users'
        volumes are deleted with them).""",
    ).tag(config=True)
    undo_folder = Unicode(
        "",
        help="""The folder for undo files, which hold all rows that go, spawner state and token hashes among them (mode 0600).
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
