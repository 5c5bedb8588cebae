"""What the include runs inside the hub's process. It imports nothing heavy and never keeps a hub from starting.

Imports nothing heavier than model and errors, and raises nothing: HubGuard never keeps a hub from starting.
"""

from hubguard.inhub.idle_culler import runs_a_culler
from hubguard.inhub.register import register
from hubguard.inhub.scopes import CUSTOM_SCOPES, LOGIN_SCOPES, SCOPES, Need

__all__ = ["CUSTOM_SCOPES", "LOGIN_SCOPES", "SCOPES", "Need", "register", "runs_a_culler"]
