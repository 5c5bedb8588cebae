"""The port to what runs the servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from hubguard.backends.model import Backend
from hubguard.model import Key


@dataclass(frozen=True, slots=True)
class Place:
    """Which hub the backends must belong to, and what is known of how it makes them.

    ``api_url`` is the URL of the hub's API as its servers have it (JUPYTERHUB_API_URL in their environment), no slash at the
    end; ``base_url`` the hub's, with a slash at both ends. ``spawner`` names the class of the hub's spawner and those
    that it is derived from, nearest first ("dockerspawner.dockerspawner.DockerSpawner"); ``settings`` are those of its
    traits that distinguish its backends (``network_name``, ``unit_name_template``, ``namespace``, ...), for as much as the
    include could pass on: texts, numbers and True or False. ``environ`` is for finding an engine (DOCKER_HOST,
    KUBERNETES_SERVICE_HOST).
    """

    api_url: str
    base_url: str = "/"
    spawner: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    environ: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Expected:
    """A server that the hub calls ready, and where it is reached, as far as that is known.

    ``target`` is the URL at which it is reached (scheme, host, port), ``state`` what its spawner keeps in the hub's database;
    each None if unknown.
    """

    user: str
    server: str
    started: datetime | None = None
    target: str | None = None
    state: Mapping[str, object] | None = field(default=None, hash=False)

    @property
    def key(self) -> Key:
        """(user, name) of the server."""
        return (self.user, self.server)


class Backends(Protocol):
    """All backends of one kind. It never uses a user's credentials, and paces itself: what it costs is bounded."""

    @property
    def kind(self) -> str:
        """The word for it, which is also the setting: process, systemd, docker, kubernetes, http."""
        ...

    @property
    def whole(self) -> bool:
        """Whether :meth:`look` reports all there are, the unexpected among them, so that absence means gone."""
        ...

    async def look(self, expected: Sequence[Expected]) -> tuple[Backend, ...]:
        """What there is for this hub, sorted by (user, server, id), each freshly read.

        An expected server of which nothing is known has a Backend with ``alive`` None. Without ``whole``, each of
        ``expected`` has one, and nothing else does. Backends of another hub are left out; those that merely look like this
        hub's have no ``proof``. Raises BackendError if not everything can be read.
        """
        ...

    async def end(self, backend: Backend) -> None:
        """Ask that one to end; a later look shows whether it did. It is read again first, by id, with its proof.

        Nothing happens if it is gone already. Raises BackendError if it isn't proved to be this hub's, or isn't the one
        that it was, or the engine refuses: nothing was ended then.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
