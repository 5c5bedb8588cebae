"""Runs HubGuard beside this hub. Include this file from jupyterhub_config.py, or put it where your distribution looks
for config.

Settings (c.HubGuard, c.HubGuardCull, c.HubGuardDrift, c.HubGuardPrune, c.HubGuardBudget) may come before or after it.
These must come before it: c.HubGuard.url, c.HubGuardPrune.delete_users and c.HubGuardCull.users. The last two request
the scope to delete users.
"""

import logging

try:
    from hubguard.inhub import register
except ImportError as error:
    # HubGuard never keeps a hub from starting, not even by being absent.
    logging.getLogger("hubguard").error(
        "HubGuard isn't installed in the hub's environment (%s). The hub runs without it.", error
    )
else:
    register(c)
