"""Runs HubGuard beside this hub: include it from jupyterhub_config.py, or put it where your distribution looks for config.

Settings (c.HubGuard, c.HubGuardCull, c.HubGuardDrift, c.HubGuardPrune, c.HubGuardBudget) may stand before it or after it.
Only c.HubGuard.url goes before, and what asks for the right to delete users:
c.HubGuardPrune.delete_users, c.HubGuardCull.users.
"""

import logging

try:
    from hubguard.inhub import register
except ImportError as error:
    # HubGuard never keeps a hub from starting, not even by being absent.
    logging.getLogger("hubguard").error("HubGuard isn't in the hub's environment (%s): the hub runs without it.", error)
else:
    register(c)
