"""A backend: the process, unit, container or pod that runs a server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hubguard.model import Key


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs, or ran, a server: a process, unit, container or pod; or what answers in its place (``kind`` "http").

    ``id`` names it for good: a later one by the same name has another. ``name`` is how people find it ("pid 4711", "container
    jupyter-ann"). ``alive`` None: unknown. ``proof`` is one clause on why it is this hub's, "" if that isn't
    proved: then it is never ended. ``detail`` is one clause on its state. ``command`` ends it, and nothing else, when a
    person types it; "" if there is no such command.
    """

    kind: str
    id: str
    user: str
    server: str
    alive: bool | None
    name: str
    started: datetime | None = None
    proof: str = ""
    detail: str = ""
    command: str = ""

    @property
    def key(self) -> Key:
        """(user, name) of the server it is for."""
        return (self.user, self.server)
