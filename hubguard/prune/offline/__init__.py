"""Prunes and restores in the hub's database while the hub is down. It needs no guard, and refuses while a hub uses
the database."""

from hubguard.prune.offline.apply import Applied, apply_offline
from hubguard.prune.offline.in_use import why_in_use
from hubguard.prune.offline.plan import plan_offline
from hubguard.prune.offline.restore import Restored, restore_offline

__all__ = ["Applied", "Restored", "apply_offline", "plan_offline", "restore_offline", "why_in_use"]
