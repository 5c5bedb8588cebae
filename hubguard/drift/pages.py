"""The pages on drift: what differs, what each source says of one server, and repairing after a look at the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from hubguard import words
from hubguard.drift import beliefs
from hubguard.drift import words as drift_words
from hubguard.drift.api import KIND, STATES
from hubguard.drift.decide.repair import remedy
from hubguard.drift.model import Drift, DriftKind, DriftReport, RepairPlan
from hubguard.errors import HubError, HubGuardError, JournalError
from hubguard.journal.model import Entry
from hubguard.status import Status
from hubguard.web.openapi import Param, Refused
from hubguard.web.page import ROWS, Page, whole

REPAIRS_SHOWN = 20
"""The newest repairs that stand on the Drift page; the journal has them all."""


class DriftPage(Page):
    """Where sources differ; the filters and the page stand in the address."""

    template = "drift/drift.html"
    tab = "drift"

    async def get(self) -> None:
        """See the class. What makes no sense in the address counts as not given."""
        status, report = self.site.guard.status(), self.site.guard.drift()
        q, kind, state = self.asked("q").strip(), self.asked("kind"), self.asked("state")
        kind = kind if kind in KIND.choices else ""
        state = state if state in STATES else ""
        drifts = report.drifts if report else ()
        found = drift_words.chosen(
            drifts,
            q=q,
            kinds=[DriftKind(kind)] if kind else (),
            wanted=drift_words.DriftState(state) if state else None,
        )
        pages = max(1, -(-len(found) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        live = {
            **self.common(status),
            "d": drift_words,
            "report": report,
            "shape": drift_words.report(report, status),
            "rows": shown(found[begin : begin + ROWS], report, status),
            "begin": begin,
            "found": len(found),
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
) -> list[tuple[str, drift_words.DriftShape]]:
    """What each difference is about, with what the page tells of it."""
    if report is None:
        return []
    repairs, unasked = drift_words.last_repairs(report.repaired), drift_words.without_asking(report, status)
    return [(drift_words.label(one), drift_words.drift(one, repairs, unasked)) for one in drifts]


def _by_kind(drifts: tuple[Drift, ...]) -> list[tuple[DriftKind, int]]:
    """How many can be repaired now, by kind; kinds without any are left out."""
    ready = Counter(one.kind for one in drifts if one.raised_at is not None and remedy(one) is not None)
    return [(kind, ready[kind]) for kind in DriftKind if ready[kind]]


def empty_words(report: DriftReport | None, status: Status) -> str:
    """Why a table of differences is empty."""
    if report is None:
        return drift_words.not_looked(status)
    if report.drifts:
        many = words.count(len(report.drifts), "difference")
        return f"No difference matches. There {'is' if len(report.drifts) == 1 else 'are'} {many} without the filter."
    if drift_words.blind(report):
        return "No difference was found in what could be read. That isn't all, so this doesn't mean that there is none."
    return "Nothing differs: there is nothing to repair."


class BeliefsPage(Page):
    """What each source says of one server, known to the hub or not."""

    template = "drift/beliefs.html"
    tab = "drift"

    async def get(self, user: str, name: str) -> None:
        """See the class. Never 404: that no source knows of it is an answer."""
        status, report = self.site.guard.status(), self.site.guard.drift()
        trouble, entries = "", tuple[Entry, ...]()
        try:
            entries = await self.site.guard.entries(limit=1, user=user, server=name)
        except JournalError as error:
            trouble = str(error)
        told = beliefs.beliefs(report, user, name, entries, status) if report else None
        label = words.kept_label(user, name)
        about = [one for one in report.drifts if (one.user, one.server or "") == (user, name)] if report else []
        await self.show(
            f"beliefs/{quote(user, safe='')}/{quote(name, safe='')}",
            {
                **self.common(status),
                "d": drift_words,
                "label": label,
                "user": user,
                "name": name,
                "report": report,
                "told": told,
                "rows": shown(about, report, status),
                "not_looked": drift_words.not_looked(status),
                "journal_trouble": trouble,
            },
        )


class RepairsPage(Page):
    """The plan for what was selected, and the form that has it carried out."""

    needs = ("act", "read")
    template = "drift/repairs.html"
    tab = "drift"

    def get(self) -> None:
        """The plan. Nothing is done yet."""
        self._show_plan(self.get_query_arguments("drift"), self.get_query_arguments("kind"))

    async def post(self) -> None:
        """It is under way, and the Drift page shows what comes of it; else the plan once more, with what is wrong."""
        digest = str(Param("digest", str, "", low=1, high=64).checked(self.get_body_argument("digest", "")))
        typed = self.get_body_argument("count", "").strip().replace(",", "")
        why = self.why()
        assert self.who is not None
        try:
            if not (typed.isascii() and typed.isdigit() and len(typed) < 9):
                raise HubGuardError(
                    "Nothing was done: type the number of repairs, as it stands in the sentence above it."
                )
            made = await self.site.guard.repair(digest, int(typed), self.who.actor, why)
        except (HubError, JournalError):
            raise
        except HubGuardError as error:
            self.set_status(409)
            self._show_plan(self.get_body_arguments("drift"), self.get_body_arguments("kind"), str(error), why)
            return
        self.redirect(self.here("drift", asked=str(len(made.repairs))), status=303)

    def _show_plan(self, ids: list[str], kinds: list[str], trouble: str = "", why: str = "") -> None:
        ids, kinds = list(dict.fromkeys(ids)), list(dict.fromkeys(kinds))
        if not ids and not kinds:
            raise Refused(400, "Nothing was selected: go back, tick what is to be repaired, and try again.")
        if len(ids) > ROWS or not set(kinds) <= set(KIND.choices):
            raise Refused(400, "This selection wasn't made on the Drift page: go back, and select there.")
        status = self.site.guard.status()
        made, refused = self._planned(ids, kinds)
        html = self.site.env.get_template(self.template).render(
            **self.common(status),
            d=drift_words,
            plan=made,
            labels=self._labels(made),
            ids=ids,
            kinds=kinds,
            trouble=trouble,
            refused=refused,
            why=why,
        )
        self.finish(html)

    def _planned(self, ids: list[str], kinds: list[str]) -> tuple[RepairPlan | None, str]:
        """The plan, or why there is none."""
        try:
            wanted = tuple(DriftKind(kind) for kind in kinds)
            return self.site.guard.plan_repairs(ids=tuple(ids), kinds=wanted), ""
        except HubGuardError as error:
            return None, str(error)

    def _labels(self, made: RepairPlan | None) -> dict[str, str]:
        """What each difference that the plan is for is about, by id."""
        report = self.site.guard.drift()
        wanted: set[str] = {one for repair in made.repairs for one in repair.drifts} if made else set()
        return {one.id: _about(one) for one in (report.drifts if report else ()) if one.id in wanted}


def _about(one: Drift) -> str:
    more = f" ({one.subject})" if one.subject and one.user is not None else ""
    return f"{drift_words.KIND_WORDS[one.kind]}: {drift_words.label(one)}{more}"
