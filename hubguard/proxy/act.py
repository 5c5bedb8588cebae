"""Asking the hub to check its routes: whether it may be asked, and the journal's record of it."""

from __future__ import annotations

from hubguard.act.mandate import Mandate
from hubguard.model import Action, ActionKind, Order, Outcome

REASON = "route-missing"
"""The reason in the journal: drift's word for it."""


class RouteChecks:
    """Requests to the hub to check its routes: allowed by the mandate, and journaled with intent and outcome.

    ``wanted``: the settings want missing routes repaired unasked.
    """

    def __init__(self, mandate: Mandate, *, wanted: bool) -> None:
        self._mandate = mandate
        self._wanted = wanted
        self._intent: int | None = None

    def may_act(self) -> bool:
        """Whether the hub may be asked now."""
        return self._wanted and self._mandate.may_act(Order("hubguard"))

    async def record(self, what: str, outcome: Outcome | None) -> None:
        """Journal that the hub is about to fill the table, or with ``outcome`` what came of it.

        Raises LeaseLost, ActingRefused or JournalError; then nothing may be sent.
        """
        intent, self._intent = self._intent, None
        if outcome is None:
            if intent is not None:
                self._mandate.release(intent)
            action = Action("", "", None, None, REASON, kind=ActionKind.CHECK_ROUTES)
            self._intent = await self._mandate.intend(action, Order("hubguard"), what)
        elif intent is not None:
            try:
                await self._mandate.settle(intent, outcome)
            finally:
                self._mandate.release(intent)
