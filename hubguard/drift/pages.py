"""The pages on drift: the differences, what each source says of one server, and the plan to confirm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from hubguard import words
from hubguard.drift import beliefs
from hubguard.drift import shapes as drift_shapes
from hubguard.drift import words as drift_words
from hubguard.drift.api import KIND, STATES
from hubguard.drift.cycle import DriftCycles
from hubguard.drift.decide.repair import remedy
from hubguard.drift.model import Drift, DriftKind, DriftReport, RepairPlan
from hubguard.errors import HubError, HubGuardError, JournalError
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry
from hubguard.model import Order
from hubguard.status import Status
from hubguard.web.openapi import Param, Refused
from hubguard.web.page import ROWS, Page, whole

REPAIRS_SHOWN = 20
"""Maximum repairs on the Drift page. The journal has them all."""


class FollowedPage(Page):
    """A page of drift."""

    drifts: DriftCycles
    journal: AsyncJournal
    tab = "drift"


class DriftPage(FollowedPage):
    """Where sources differ. Filters and page number are in the address."""

    template = "drift/drift.html"

    async def get(self) -> None:
        """Ignore whatever makes no sense in the address."""
        status, report = self.site.status(), self.drifts.report
        q, kind, state = self.asked("q").strip(), self.asked("kind"), self.asked("state")
        kind = kind if kind in KIND.choices else ""
        state = state if state in STATES else ""
        drifts = report.drifts if report else ()
        matching = drift_shapes.select(
            drifts,
            q=q,
            kinds=[DriftKind(kind)] if kind else (),
            state=drift_shapes.DriftState(state) if state else None,
        )
        pages = max(1, -(-len(matching) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        live = {
            **self.common(status),
            "d": drift_words,
            "report": report,
            "shape": drift_shapes.describe_report(report, status),
            "rows": shown(matching[begin : begin + ROWS], report, status),
            "begin": begin,
            "found": len(matching),
            "empty": empty_words(report, status),
            "reparable": _by_kind(drifts),
            "filters": {"q": q, "kind": kind, "state": state},
            "number": number,
            "pages": pages,
            "repairs_shown": REPAIRS_SHOWN,
        }
        said = self.asked("asked")
        asked = whole(said) if said.isascii() and said.isdigit() else 0
        await self.show("drift", live, q=q, kind=kind, state=state, kinds=drift_words.KIND_WORDS, asked=asked)


def shown(
    drifts: Sequence[Drift], report: DriftReport | None, status: Status
) -> list[tuple[str, drift_shapes.DriftShape]]:
    """Each difference with its label."""
    if report is None:
        return []
    repairs, policy = drift_shapes.latest_repairs(report.repaired), drift_words.policy_sentences(report, status)
    return [(drift_words.label(drift), drift_shapes.describe_drift(drift, repairs, policy)) for drift in drifts]


def _by_kind(drifts: tuple[Drift, ...]) -> list[tuple[DriftKind, int]]:
    """The number of differences that can be repaired now, for each kind that has any."""
    ready = Counter(drift.kind for drift in drifts if drift.raised_at is not None and remedy(drift) is not None)
    return [(kind, ready[kind]) for kind in DriftKind if ready[kind]]


def empty_words(report: DriftReport | None, status: Status) -> str:
    """Why a table of differences is empty."""
    if report is None:
        return drift_words.why_no_look(status)
    if report.drifts:
        return f"No difference matches the filter (of {words.count(len(report.drifts), 'difference')})."
    if drift_words.blind(report):
        return "No difference found in what could be read. Not every source could, so there may be some."
    return "No differences. Nothing to repair."


class BeliefsPage(FollowedPage):
    """What each source says of one server, known to the hub or not."""

    template = "drift/beliefs.html"

    async def get(self, user: str, name: str) -> None:
        """Never 404: that no source knows the server is an answer."""
        status, report = self.site.status(), self.drifts.report
        trouble, entries = "", tuple[Entry, ...]()
        try:
            entries = await self.journal.entries(limit=1, user=user, server=name)
        except JournalError as error:
            trouble = str(error)
        across = beliefs.compare_beliefs(report, user, name, entries, status) if report else None
        label = words.kept_label(user, name)
        about = [drift for drift in report.drifts if (drift.user, drift.server or "") == (user, name)] if report else []
        await self.show(
            f"beliefs/{quote(user, safe='')}/{quote(name, safe='')}",
            {
                **self.common(status),
                "d": drift_words,
                "label": label,
                "user": user,
                "name": name,
                "report": report,
                "across": across,
                "rows": shown(about, report, status),
                "why_no_look": drift_words.why_no_look(status),
                "journal_trouble": trouble,
            },
        )


class RepairsPage(FollowedPage):
    """The plan for the selection, and the form that applies it."""

    needs = ("act", "read")
    template = "drift/repairs.html"

    def get(self) -> None:
        """Show the plan. Nothing is repaired yet."""
        self._show_plan(self.get_query_arguments("drift"), self.get_query_arguments("kind"))

    async def post(self) -> None:
        """Begin the repairs and go to the Drift page, or show the plan again with what is wrong."""
        digest = str(Param("digest", str, "", low=1, high=64).checked(self.get_body_argument("digest", "")))
        typed = self.get_body_argument("count", "").strip().replace(",", "")
        why = self.why()
        assert self.who is not None
        try:
            if not (typed.isascii() and typed.isdigit() and len(typed) < 9):
                raise HubGuardError("Nothing was done: type the number of repairs, as shown above the field.")
            plan = await self.drifts.repair(digest, int(typed), Order(self.who.actor, why, asked=True))
        except (HubError, JournalError):
            raise
        except HubGuardError as error:
            self.set_status(409)
            self._show_plan(self.get_body_arguments("drift"), self.get_body_arguments("kind"), str(error), why)
            return
        self.redirect(self.here("drift", asked=str(len(plan.repairs))), status=303)

    def _show_plan(self, ids: list[str], kinds: list[str], trouble: str = "", why: str = "") -> None:
        ids, kinds = list(dict.fromkeys(ids)), list(dict.fromkeys(kinds))
        if not ids and not kinds:
            raise Refused(400, "Nothing selected. Go back, select what to repair, and try again.")
        if len(ids) > ROWS or not set(kinds) <= set(KIND.choices):
            raise Refused(400, "This selection wasn't made on the Drift page. Go back and select there.")
        status = self.site.status()
        plan, refused = self._plan(ids, kinds)
        html = self.site.env.get_template(self.template).render(
            **self.common(status),
            d=drift_words,
            plan=plan,
            labels=self._labels(plan),
            ids=ids,
            kinds=kinds,
            trouble=trouble,
            refused=refused,
            why=why,
        )
        self.finish(html)

    def _plan(self, ids: list[str], kinds: list[str]) -> tuple[RepairPlan | None, str]:
        """The plan, or why there is none."""
        try:
            wanted = tuple(DriftKind(kind) for kind in kinds)
            return self.drifts.plan(ids=tuple(ids), kinds=wanted), ""
        except HubGuardError as error:
            return None, str(error)

    def _labels(self, plan: RepairPlan | None) -> dict[str, str]:
        """A label for each difference that the plan repairs, by id."""
        report = self.drifts.report
        wanted: set[str] = {id for repair in plan.repairs for id in repair.drifts} if plan else set()
        return {drift.id: _about(drift) for drift in (report.drifts if report else ()) if drift.id in wanted}


def _about(drift: Drift) -> str:
    more = f" ({drift.subject})" if drift.subject and drift.user is not None else ""
    return f"{drift_words.KIND_WORDS[drift.kind]}: {drift_words.label(drift)}{more}"
