"""The port to the hub's REST API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Protocol

from hubguard.hub.nouns import TokenOwner
from hubguard.model import Route, Server, User

FOUND_AT_MOST = 200
"""Maximum names that a search for users returns: a page of the hub's."""


class HubAPI(Protocol):
    """The port to the hub. Names go in as they are; clients quote them. Every call passes the budget.

    Every call may also raise BudgetExhausted, and nothing was sent then.
    """

    @property
    def skew_s(self) -> float | None:
        """The hub's clock minus ours in seconds, right to a second or so, by its last answer; None before any.

        Below zero, our clock is ahead, and everybody looks idle for that much longer than they are.
        """
        ...

    async def list_servers(self) -> tuple[Server, ...]:
        """Every server that the hub calls active (ready or pending), sorted by (user, name), from all pages.

        Raises HubError when any page is missing: half a list is never returned.
        """
        ...

    async def get_server(self, user: str, name: str) -> Server | None:
        """That server as the hub sees it now; None when the hub says it isn't active, or knows no such user.

        Raises HubError when the hub didn't say.
        """
        ...

    async def stop_server(
        self, user: str, name: str, *, remove: bool = False, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Ask the hub to stop it; ``remove`` also deletes a named server. True: answered 204; False: 202, stopping slowly.

        ``confirm`` is awaited when all waiting is over and the request is about to go out; what it raises is raised here,
        and then nothing is sent.
        Neither proves anything: read again. A user or server that is unknown by now (404) counts as True.
        A start that is pending is interrupted, which takes the hub a second; a server that the hub still checks after a
        start of its own can't be stopped (HubFailed, 500).
        Raises HubError; after HubUnreachable the request may have taken effect all the same.
        """
        ...

    async def start_server(self, user: str, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Ask the hub to start it, with the options it had last, or none. True: answered 201, it runs; False: 202, it starts.

        ``confirm`` is as for stop_server. One that the hub calls ready is polled first, and started again if it is dead;
        else, and for one that is stopping, HubFailed, 400. A named server needn't be there yet; an unknown user is
        HubFailed, 404, and a start that fails HubFailed, 500. A hub that starts as many as it may is HubBusy.
        Raises HubError; after HubUnreachable it may be starting all the same.
        """
        ...

    async def find_users(self, part: str) -> tuple[str, ...]:
        """Names of users that contain ``part``, whatever the case; FOUND_AT_MOST at most. Raises HubError.

        Its ``%`` and ``_`` stand for any text and any character.
        """
        ...

    async def count_users(self) -> int:
        """How many users the hub has, whether or not anything of theirs runs. Raises HubError."""
        ...

    async def first_user(self) -> User | None:
        """The oldest user of the hub, by its own numbers; None: it has nobody. Raises HubError."""
        ...

    async def list_users(self, *, inactive_since: datetime | None) -> tuple[User, ...]:
        """Every user who hasn't been active since then, or never was, sorted by name; None: every user.

        Raises HubError when any page is missing, HubRefused also if the hub doesn't show when users were active.
        """
        ...

    async def get_user(self, name: str, *, stopped: bool = False) -> User | None:
        """That user as the hub sees them now; None when it knows nobody by that name.

        With ``stopped``, those of their servers that don't run are there, too: neither ready nor pending. The default one
        may be among them though it was never started.
        Raises HubError when the hub didn't say, HubRefused also if it doesn't show when users were active.
        """
        ...

    async def delete_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        """Ask the hub to delete that user for good, with what its spawner keeps for them. Unknown by now (404) is fine.

        ``confirm`` is as for stop_server. Stop all servers first: the hub itself stops the default one only, and gives up
        if that is slow (HubFailed, 400); a named or pending one makes it fail (HubFailed, 500) when the default one is
        stopped and its authenticator has forgotten the user already. Our own name is refused (HubFailed, 400).
        Raises HubError; after HubUnreachable the user may be gone all the same.
        """
        ...

    async def tokens_of(self, user: str) -> tuple[int, datetime | None]:
        """How many API tokens that user has, and the last use of any of them; None if none was ever used.

        Expired ones don't count: the hub removes them on this occasion. Raises HubError, for an unknown user HubFailed, 404.
        """
        ...

    async def create_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Have the hub make that user, no admin, in no group. True: made; False: there was one by that name already.

        ``confirm`` is as for stop_server. The hub's authenticator may refuse (HubFailed, 400), as it does a name with a
        slash. Raises HubError; after HubUnreachable the user may be there all the same.
        """
        ...

    async def add_to_group(
        self, group: str, users: Sequence[str], *, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Have the hub put these users into that group; who is in it already stays.

        ``confirm`` is as for stop_server. A group that isn't there is HubFailed, 404, a user who isn't HubFailed, 400, and
        then nobody was put into it. The hub makes small letters of the names here, whatever they are.
        Raises HubError; after HubUnreachable they may be in it all the same.
        """
        ...

    async def create_server(
        self,
        user: str,
        name: str,
        options: Mapping[str, object] | None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Have the hub make a named server that doesn't run, with these options. One by that name stays as it is.

        ``confirm`` is as for stop_server. Hubs before 6.0 can't (HubFailed, 405), nor if named servers are off or as many
        as may be (HubFailed, 400). A name must be a letter, then up to 29 letters, digits and single hyphens, all of them
        small and of ASCII, and no hyphen last: another that a server had before 6.0 is refused (HubFailed, 400).
        Raises HubError; after HubUnreachable it may be there all the same.
        """
        ...

    async def startup_s(self) -> float | None:
        """How many seconds the hub's last start took, by its own measure; None if it doesn't show that, or not to our token.

        Raises HubError if it didn't answer.
        """
        ...

    async def metrics(self) -> str | None:
        """The hub's metrics in Prometheus' text format; None if it doesn't show them to our token. Raises HubError."""
        ...

    def with_token(self, token: str) -> HubAPI:
        """The same hub by way of the same budget, with the rights of another token. Use it as ``async with``, or close it.

        Raises ConfigError for what can't be a token.
        """
        ...

    async def close(self) -> None:
        """Close all connections. It may be used again afterwards, and opens new ones then."""

    async def __aenter__(self) -> HubAPI: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def list_services(self) -> dict[str, tuple[str, ...]]:
        """The command of each of the hub's services, by name; empty for one that the hub doesn't run. Raises HubError."""
        ...

    async def service_prefixes(self) -> dict[str, str]:
        """The path of the route of each service that has a url, by name, as in the proxy's table. Raises HubError.

        Whether the service is up makes no difference to that. With subdomains the routes begin with a host, which the hub
        doesn't show here.
        """
        ...

    async def list_routes(self) -> dict[str, Route]:
        """The proxy's table as the hub sees it, by path, with the routes that are the hub's only.

        Raises HubError when any page is missing: half a table is never returned.
        """
        ...

    async def check_routes(self, *, timeout_s: float, confirm: Callable[[], Awaitable[None]] | None = None) -> None:
        """Have the hub compare the proxy's table with what it knows, and mend it; it has done so when this returns.

        ``confirm`` is as for stop_server. The answer may take ``timeout_s``: with the proxy down, a hub tries for half a
        minute (HubFailed, 500). Raises HubError; after HubUnreachable the hub may still be at it.
        """
        ...

    async def version(self) -> str:
        """The hub's version, such as ``6.1.1``. Needs no scope. Raises HubError."""
        ...

    async def spawner_class(self) -> str | None:
        """The full name of the class of the hub's spawner; None if our token may not ask. Raises HubError otherwise."""
        ...

    async def whoami(self) -> TokenOwner:
        """Whose token ours is. Raises HubError."""
        ...
