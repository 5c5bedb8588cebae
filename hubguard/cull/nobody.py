"""Rules, protections and exemptions that are about nobody: names that the hub doesn't know protect no one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from hubguard.cull.decide.judge import CullPolicy
from hubguard.errors import HubGuardError
from hubguard.hub.api import HubAPI
from hubguard.hub.names import nearest, nobody_of
from hubguard.journal.model import Exemption
from hubguard.model import Finding, FindingKind
from hubguard.words import count, kept_label

log = logging.getLogger(__name__)

AGAIN_S = 86400.0
"""Seconds after which the hub is asked again whether it has the users that rules, protections and exemptions name."""


class Nobodies:
    """Asks the hub whether it has the users that are named; once a day for each, unless they have servers that run."""

    def __init__(self, hub: HubAPI, policy: CullPolicy) -> None:
        self._hub = hub
        rules = {f'The rule "{rule.name}" is about users': rule.users for rule in policy.rules if rule.users}
        protected = policy.protected.names
        names = {"HubGuardPrune.protected_names names users": protected} if protected else {}
        self._named: Mapping[str, tuple[str, ...]] = {**rules, **names}
        self._asked: dict[object, tuple[datetime, bool]] = {}

    async def found(self, exemptions: Sequence[Exemption], there: Iterable[str], now: datetime) -> list[Finding]:
        """One finding for each that is about nobody. ``there`` are users of the hub. It doesn't raise HubGuardError."""
        there = frozenset(there)
        findings = []
        for whose, globs in self._named.items():
            if await self._nobody(whose, globs, there, now):
                near = tuple(dict.fromkeys(name for glob in globs for name in nearest(glob, there)))
                meant = f" Did you mean {' or '.join(near)}?" if near else ""
                text = f"{whose}, and the hub has none of these: {', '.join(globs)}.{meant}"
                findings.append(Finding(FindingKind.NOBODY, now, text))
        of_nobody = [
            exemption for exemption in exemptions if await self._nobody(exemption.id, (exemption.user,), there, now)
        ]
        findings += [
            Finding(
                FindingKind.NOBODY,
                now,
                f"Exemption {exemption.id} keeps {kept_label(exemption.user, exemption.server)},"
                " and the hub has no such user.",
                exemption.user,
                exemption.server,
            )
            for exemption in of_nobody
        ]
        return findings

    async def _nobody(self, what: object, globs: tuple[str, ...], there: frozenset[str], now: datetime) -> bool:
        asked = self._asked.get(what)
        if asked is not None and now - asked[0] < timedelta(seconds=AGAIN_S):
            return asked[1]
        try:
            nobody = await nobody_of(self._hub, globs, there)
        except HubGuardError as error:
            log.info("The hub doesn't say whether it has %s: %s", count(len(globs), "user"), error)
            return False
        self._asked[what] = now, nobody
        return nobody
