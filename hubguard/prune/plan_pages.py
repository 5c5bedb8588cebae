"""The pages on plans of pruning: reviewed, begun, watched while they are carried out, and looked up later."""

from __future__ import annotations

import shlex
from collections import Counter

from typing_extensions import override

from hubguard.errors import HubError, HubGuardError, JournalError
from hubguard.prune.api import ITEM_STATES, PLANS_LISTED, asker, known_run
from hubguard.prune.model import PruneRun, PruneState
from hubguard.prune.pages import FIELDS, PrunePage, UsersPage
from hubguard.web.openapi import Param
from hubguard.web.page import ROWS, whole

TROUBLED = ("failed", "unverified", "gone", "skipped")
"""The ends that a person should look at, most telling first."""

TROUBLED_SHOWN = 20
"""Maximum users of each kind above the list; their own list has all."""

MARKS = {
    PruneState.PLANNED: "starting",
    PruneState.RUNNING: "acting",
    PruneState.PAUSED: "held",
    PruneState.CANCELLED: "skipped",
    PruneState.DONE: "done",
}
"""The shape for how a plan stands."""


class PlansPage(PrunePage):
    """Every plan, newest first: who, when, what came of it, and its undo file."""

    template = "prune/plans.html"

    @override
    async def get(self) -> None:
        status, user = self.site.status(), self.asked("user").strip()
        runs, trouble = tuple[PruneRun, ...](), ""
        try:
            runs = await self.pruning.runs(limit=PLANS_LISTED, user=user)
        except HubGuardError as error:
            trouble = str(error)
        pages = max(1, -(-len(runs) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        live = {
            **self.common(status),
            "runs": runs[(number - 1) * ROWS : number * ROWS],
            "marks": MARKS,
            "trouble": trouble,
            "user": user,
            "number": number,
            "pages": pages,
        }
        await self.show("plans", live)


class MakePlan(UsersPage):
    """Where the form on the Users page is sent."""

    needs = ("prune", "read")

    async def get(self) -> None:
        """Back to the Users page: this address was reloaded after something had been refused."""
        self.redirect(self.here("users"), status=303)

    async def post(self) -> None:
        """The plan is made, and its page shows it; else the Users page once more, with what is wrong."""
        given = {name: text for name in FIELDS if (text := self.get_body_argument(name, "").strip())}
        assert self.who is not None
        try:
            made = await self.pruning.plan(self.criteria(given), self.who.actor, caller=asker(self.who))
        except (HubError, JournalError):
            raise
        except HubGuardError as error:
            self.set_status(409)
            await self.show_users(given, str(error))
            return
        self.redirect(self.here(f"plans/{made.digest}"), status=303)


class PlanPage(PrunePage):
    """One plan: the whole list with what goes, and the form that has it carried out; then what comes of it."""

    template = "prune/plan.html"

    @override
    async def get(self, digest: str) -> None:
        await self.show_plan(digest)

    async def show_plan(self, digest: str, *, trouble: str = "", why: str = "", typed: tuple[str, ...] = ()) -> None:
        """Answer with the page; ``trouble`` says why nothing was done, ``why`` and ``typed`` are what was typed."""
        status, run = self.site.status(), await known_run(self.pruning, digest)
        begun = run.began_at is not None
        wanted = self.asked("state")
        wanted = wanted if begun and wanted in ITEM_STATES else ""
        by_state = counts(run)
        matching = by_state[wanted] if wanted else run.count
        pages = max(1, -(-matching // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        above = []
        if begun and not wanted and number == 1:
            for state in TROUBLED:
                if by_state[state]:
                    above.append((state, await self.pruning.items(digest, state=state, limit=TROUBLED_SHOWN)))
        # A refresh reads it again only before it is begun, when nothing else is to be seen: a plan may be of 50,000 users.
        fragment = self.request.path.startswith(self.site.prefix + "fragments/")
        plan = None if begun and fragment else await self.pruning.plan_of(digest)
        live = {
            **self.common(status),
            "run": run,
            "begun": begun,
            "plan": plan,
            "mark_of": MARKS[run.state],
            "rows": await self.pruning.items(digest, state=wanted or None, offset=begin, limit=ROWS),
            "begin": begin,
            "found": matching,
            "by_state": by_state,
            "restore": f"hubguard prune restore {shlex.quote(run.undo_file or '')} --count {run.done}",
            "wanted": wanted,
            "above": above,
            "reasons": Counter(deletion.reason for deletion in plan.deletions) if plan else Counter(),
            "number": number,
            "pages": pages,
        }
        await self.show(
            f"plans/{digest}", live, live_every="5s" if begun else "60s", trouble=trouble, why=why, typed=typed
        )


def counts(run: PruneRun) -> dict[str, int]:
    """How many users of a plan stand how, by ITEM_STATES."""
    return {state: run.count - run.settled if state == "waiting" else getattr(run, state) for state in ITEM_STATES}


class ApplyPlan(PlanPage):
    """Where the form on a plan's page is sent: carry it out."""

    needs = ("prune", "read")

    async def get(self, digest: str) -> None:
        """Back to the plan: this address was reloaded after something had been refused."""
        self.redirect(self.here(f"plans/{digest}"), status=303)

    async def post(self, digest: str) -> None:
        """It is under way, and its page shows how it goes; else the plan once more, with what is wrong."""
        count = self.get_body_argument("count", "").strip().replace(",", "")
        why = self.why()
        name = Param("acknowledged", str, "", high=255)
        typed = tuple(str(name.checked(text.strip())) for text in self.get_body_arguments("acknowledged"))
        assert self.who is not None
        await known_run(self.pruning, digest)
        try:
            if not (count.isascii() and count.isdigit() and len(count) < 9):
                raise HubGuardError(
                    "Nothing was done: type the number of users, as it stands in the sentence above it."
                )
            acknowledged = tuple(dict.fromkeys(text for text in typed if text))
            await self.pruning.apply(digest, int(count), self.who.actor, why, acknowledged=acknowledged)
        except (HubError, JournalError):
            raise
        except HubGuardError as error:
            self.set_status(409)
            await self.show_plan(digest, trouble=str(error), why=why, typed=typed)
            return
        self.redirect(self.here(f"plans/{digest}"), status=303)


class TurnPlan(PrunePage):
    """Pause, resume or cancel a plan; all but pausing is confirmed on a page of its own."""

    needs = ("prune", "read")
    template = "prune/turn_plan.html"
    words = ("pause", "resume", "cancel")

    async def get(self, digest: str, word: str) -> None:
        """The question, with what is left to do."""
        await self.ask(digest, word)

    async def ask(self, digest: str, word: str, *, trouble: str = "", why: str = "", typed: str = "") -> None:
        """Answer with the question; ``trouble`` says why nothing was done, ``why`` and ``typed`` are what was typed."""
        run = await known_run(self.pruning, digest)
        values = {**self.common(self.site.status()), "word": word, "run": run, "left": run.count - run.settled}
        values |= {"trouble": trouble, "why": why, "typed": typed}
        self.finish(self.site.env.get_template(self.template).render(**values))

    async def post(self, digest: str, word: str) -> None:
        """It is done, and the plan's page shows it; or the question to resume once more, with what is in the way."""
        assert self.who is not None
        why = self.why()
        await known_run(self.pruning, digest)
        if word != "resume":
            await getattr(self.pruning, word)(digest, self.who.actor, why)
        else:
            typed = str(Param("acknowledged", str, "", high=1000).checked(self.get_body_argument("acknowledged", "")))
            names = tuple(name for text in typed.split(",") if (name := text.strip()))
            try:
                await self.pruning.resume(digest, self.who.actor, why, acknowledged=names)
            except (HubError, JournalError):
                raise
            except HubGuardError as error:
                self.set_status(409)
                await self.ask(digest, word, trouble=str(error), why=why, typed=typed)
                return
        self.redirect(self.here(f"plans/{digest}"), status=303)
