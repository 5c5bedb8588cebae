"""What the hub says about itself and about our token, read again every ten minutes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from hubguard.errors import HubGuardError, HubRefused
from hubguard.hub.api import HubAPI
from hubguard.inhub.handover import Handover
from hubguard.inhub.idle_culler import names_a_culler
from hubguard.inhub.scopes import allows
from hubguard.pacing.clock import Clock

log = logging.getLogger(__name__)

LEARN_S = 600.0
"""Seconds between two readings: an upgraded hub or a mended role shows by then."""


class HubFacts:
    """``version`` is the hub's, None until read. ``notes`` are those given, and one for each scope that our token lacks.

    ``features`` says for each hub scope what needs it. ``cullers`` are what the include found of other cullers.
    ``without_include``: there is none, as for a guard that the hub doesn't run.
    """

    def __init__(
        self,
        hub: HubAPI,
        clock: Clock,
        features: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
        cullers: Handover | None = None,
        *,
        without_include: bool = False,
    ) -> None:
        self.without_include = without_include
        self.cullers = cullers or Handover()
        self.version: str | None = None
        self.notes = notes
        self._given = notes
        self._hub = hub
        self._clock = clock
        self._features = features or {}
        self._read_at: datetime | None = None

    async def why_not_alone(self, beside: Sequence[str]) -> str | None:
        """Which idle cullers run as services of the hub, as a clause; "": none, or the token may not list services.

        Those named in ``beside`` don't count. None: the hub doesn't answer.
        """
        try:
            services = await self._hub.list_services()
        except HubRefused:
            return ""
        except HubGuardError:
            return None
        names = [name for name, command in services.items() if names_a_culler(command) and name not in beside]
        return f"{' and '.join(names)} culls, and only one of the two may act (HubGuard.act_beside)" if names else ""

    async def refresh(self) -> None:
        """Read them again if the last reading is old. Never raises HubGuardError."""
        if self._read_at is not None and self._clock.now() - self._read_at < timedelta(seconds=LEARN_S):
            return
        try:
            held = (await self._hub.whoami()).scopes
            self.notes = self._given + tuple(
                f"No {feature}: the service's role lacks the scope {scope}."
                for scope, feature in self._features.items()
                if not allows(held, scope)
            )
            self.version = await self._hub.version()
            self._read_at = self._clock.now()
        except HubGuardError as error:
            log.warning("The hub doesn't return its version or our scopes: %s", error)
