"""What the include runs inside the hub's process: registers the service and its role, and tells it what it needs to know.

Imports nothing heavier than model and errors, and raises nothing: HubGuard never keeps a hub from starting.
"""

from hubguard.inhub.late import runs_a_culler
from hubguard.inhub.register import register
from hubguard.inhub.scopes import CUSTOM_SCOPES, LOGIN_SCOPES, SCOPES, Need

__all__ = ["CUSTOM_SCOPES", "LOGIN_SCOPES", "SCOPES", "Need", "register", "runs_a_culler"]
