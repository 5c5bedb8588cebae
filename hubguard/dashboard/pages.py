"""The pages: complete without JavaScript; with it, their live part is asked for every few seconds."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import ClassVar

from typing_extensions import override

from hubguard.cull import shapes as cull_shapes
from hubguard.dashboard import shapes as dashboard_status
from hubguard.dashboard.api import EVENTS
from hubguard.dashboard.words import worst_of
from hubguard.drift import words as drift_words
from hubguard.errors import HubGuardError, JournalError
from hubguard.guard import Guard
from hubguard.hub.names import spellings
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Event
from hubguard.model import ARMING_COVERS, NEEDS_NO_ARMING
from hubguard.prune import words as prune_words
from hubguard.prune.model import PruneRun, PruneState
from hubguard.status import Mode, Status
from hubguard.watch import words as watch_words
from hubguard.web import htmx
from hubguard.web.page import ROWS, Page, whole


class Overview(Page):
    """What HubGuard is doing, and why."""

    guard: Guard
    journal: AsyncJournal
    template = "dashboard/overview.html"
    tab = "overview"

    @override
    async def get(self) -> None:
        state = dashboard_status.state_of(self.guard)
        status = state.guard
        trouble, entries = "", tuple[Entry, ...]()
        try:
            entries = last_actions(await self.journal.entries(limit=50))
        except JournalError as error:
            trouble = str(error)
        runs = tuple[PruneRun, ...]()
        with suppress(HubGuardError):  # what is wrong is said above, or on their own page
            runs = await self.guard.parts.pruning.runs(limit=20)
        await self.show(
            "overview",
            {
                **self.common(status),
                "shape": dashboard_status.describe(state),
                "alerts": state.alerts or (),
                "worst": worst_of(state.alerts or ()),
                "w": watch_words,
                "modes": Mode,
                "recovered_at": recovered_at(status),
                "late": cull_shapes.is_late(status, state.cull),
                "entries": entries,
                "journal_trouble": trouble,
                "runs": [run for run in runs if run.state in {PruneState.RUNNING, PruneState.PAUSED}],
                "pr": prune_words,
                "drift": state.drift,
                "d": drift_words,
            },
        )


def recovered_at(status: Status) -> datetime | None:
    """When idle clocks restarted, as long as that is news: for a day."""
    at = status.clock_from
    return at if at is not None and status.at - at < timedelta(days=1) else None


def last_actions(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The newest few of ``entries``, without the intents that have an outcome."""
    settled = {entry.refers_to for entry in entries}
    return tuple(entry for entry in entries if entry.id not in settled)[:8]


class JournalPage(Page):
    """What was decided and done, newest first."""

    journal: AsyncJournal
    template = "dashboard/journal.html"
    tab = "journal"

    async def get(self) -> None:
        """Older pages don't change, and aren't asked for again."""
        user, event, plan = self.asked("user").strip(), self.asked("event"), self.asked("plan").strip()
        event = event if event in EVENTS else ""
        before = whole(self.asked("before_id")) if self.asked("before_id") else None
        entries = tuple[Entry, ...]()
        for spelling in spellings(user):
            entries = entries or await self.journal.entries(
                before_id=before,
                limit=ROWS + 1,
                user=spelling or None,
                event=Event(event) if event else None,
                plan=plan or None,
            )
        live = {
            **self.common(self.site.status()),
            "entries": entries[:ROWS],
            "older": entries[ROWS - 1].id if len(entries) > ROWS else None,
            "before": before,
            "user": user,
            "event": event,
            "plan": plan,
        }
        await self.show("journal", live, poll=before is None, events=EVENTS)


class Change(Page):
    """Arm, observe, hold, resume, by a form; arm and resume are confirmed on a page of their own."""

    guard: Guard
    needs = ("act",)
    tab = "overview"
    template = "confirm.html"
    words: ClassVar[tuple[str, ...]] = ("arm", "observe", "hold", "resume")

    async def get(self, word: str) -> None:
        """The question, with how much is due right now, and what a brake objects to."""
        state = dashboard_status.state_of(self.guard)
        shape = dashboard_status.describe(state)
        users_due = shape.last_cycle.users_due if shape.last_cycle else 0
        template = self.site.env.get_template(self.template)
        values = {**self.common(state.guard), "policy": state.policy, "word": word}
        values |= {"due": shape.servers.stop, "users_due": users_due, "arming": f"{ARMING_COVERS} {NEEDS_NO_ARMING}"}
        self.finish(template.render(**values, htmx_config=htmx.CONFIG))

    async def post(self, word: str) -> None:
        """It is done, and the Overview shows it."""
        assert self.who is not None
        await getattr(self.guard.mandate, word)(self.who.actor, self.why())
        self.redirect(self.site.prefix, status=303)
