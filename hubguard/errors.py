"""The exceptions. Every message is for an operator: what didn't happen, why, and what to do."""

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
    """This entry can't be recorded, because no database can hold a name or text in it. Other entries can."""


class InDoubt(JournalError):
    """The connection broke while a change was being committed: whether it was recorded is unknown."""


class NotThere(HubGuardError):
    """What was asked for by its id isn't there, or is over. Nothing was changed."""


class LeaseLost(JournalError):
    """Another guard holds the lease, or ours ran out. This guard may do nothing until it holds the lease again."""


class ActingRefused(JournalError):
    """The journal refused an intent: acting is on hold, or HubGuard only observes."""


class HubError(HubGuardError):
    """The hub's API gave no usable answer."""


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


class NamedServersOff(HubFailed):
    """The hub runs named servers and refuses all that is done to them: they are switched off in its config (400)."""


class UserNotDeleted(HubFailed):
    """The hub failed while it deleted a user (500). Its authenticator has its own code there, so the hub may be well."""


class HubGarbled(HubError):
    """The hub answered 2xx with something that its API doesn't allow: no JSON, or a wrong shape."""


class HubDBError(HubGuardError):
    """The hub's database can't be read: missing, unreachable, locked, or of a revision that HubGuard doesn't know."""


class OtherHubsDB(HubDBError):
    """The database that HubGuard reads isn't the hub's: they hold different users."""


class ProxyError(HubGuardError):
    """The proxy's API gave no usable answer."""


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
    """The proxy answered with something that its API doesn't allow: no JSON, or a wrong shape."""


class BudgetExhausted(HubGuardError):
    """The budget gives no slot in time: the breaker is open, or the wait would be too long."""


class BackendError(HubGuardError):
    """What runs the servers (Docker, systemd, …) gave no usable answer: unreachable, refused, or malformed."""


class UndoError(HubGuardError):
    """An undo file can't be written, or has changed since it was written. Nothing may rely on it."""


class OfflineRefused(HubGuardError):
    """The hub's database was left unchanged: a hub uses it, it isn't the plan's, or its revision is unknown."""
