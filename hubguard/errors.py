"""The exception tree. Every message starts with one line for an operator: what happened, what it means, what to do."""

from __future__ import annotations


class HubGuardError(Exception):
    """Base of everything HubGuard raises on purpose.

    ``str(error)`` is one line for an operator; ``detail`` may hold more, and never a token.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class ConfigError(HubGuardError):
    """A setting, an option or a file is wrong. ``setting`` names it as an operator writes it; ``text`` says what is wrong.

    For example ``HubGuardCull.idle_timeout_s``, ``--count`` or ``JUPYTERHUB_API_TOKEN``.
    """

    def __init__(self, setting: str, text: str, *, detail: str = "") -> None:
        super().__init__(f"{setting}: {text}", detail=detail)
        self.setting = setting
        self.text = text


class JournalError(HubGuardError):
    """The journal's database can't be used: unreachable, read-only, full, or of a newer revision."""


class Unrecordable(JournalError):
    """This one entry can't be recorded, for a name or text in it that no database can hold; others can."""


class LeaseLost(JournalError):
    """Another guard holds the lease, or ours ran out: nothing may be done until it is ours again."""


class ActingRefused(JournalError):
    """The journal said no to an intent: acting is on hold, or HubGuard only observes."""


class HubError(HubGuardError):
    """The hub's API didn't give a usable answer."""


class HubUnreachable(HubError):
    """No answer: connection refused, reset, or timed out. Whether a request took effect is unknown."""


class HubRefused(HubError):
    """The hub answered 401 or 403: the token is wrong or lacks a scope. Repeating won't help."""


class HubBusy(HubError):
    """The hub answered 429 or 503. ``retry_after_s`` is its Retry-After in seconds, or None."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.retry_after_s = retry_after_s


class HubFailed(HubError):
    """The hub answered another error status. ``status`` is that status."""

    def __init__(self, message: str, *, status: int, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.status = status


class HubGarbled(HubError):
    """The hub answered 2xx with something that isn't what its API promises (not JSON, a wrong shape)."""


class HubDBError(HubGuardError):
    """The hub's database can't be read: missing, unreachable, locked, or of a revision that HubGuard doesn't know."""


class OtherHubsDB(HubDBError):
    """The database that is read isn't the one that the hub uses: they know different users."""


class ProxyError(HubGuardError):
    """The proxy's API didn't give a usable answer."""


class ProxyUnreachable(ProxyError):
    """No answer: connection refused, reset, or timed out."""


class ProxyRefused(ProxyError):
    """The proxy answered 401 or 403: the token isn't its own. Repeating won't help."""


class ProxyFailed(ProxyError):
    """The proxy answered another error status. ``status`` is that status."""

    def __init__(self, message: str, *, status: int, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.status = status


class ProxyGarbled(ProxyError):
    """The proxy answered with something that isn't what its API promises (not JSON, a wrong shape)."""


class BudgetExhausted(HubGuardError):
    """The budget gives no slot in time: the breaker is open, or the wait would be too long."""


class BackendError(HubGuardError):
    """What runs the servers didn't tell, or didn't do as asked: its API is out of reach, refuses us or makes no sense."""


class UndoError(HubGuardError):
    """An undo file can't be written, or isn't what it was when it was written: nothing may rest on it."""


class OfflineRefused(HubGuardError):
    """The hub's database isn't touched: a hub uses it, it isn't the one that was planned for, or of an unknown revision."""
