"""The pages on users: who is stale, who is kept and why, and what the reasons are for a single one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from typing_extensions import override

from hubguard import words
from hubguard.errors import HubGuardError, JournalError
from hubguard.hub.names import UnknownUser
from hubguard.journal.asynchronous import AsyncJournal
from hubguard.journal.model import Entry, Exemption
from hubguard.prune import words as prune_words
from hubguard.prune.api import MOMENTS, asker, chosen, counted, moment_of, nobody
from hubguard.prune.cycle import PruneCycles
from hubguard.prune.decide.stale import LONGEST_S
from hubguard.prune.model import PruneReason, StaleCriteria, UsersReport
from hubguard.status import Status
from hubguard.times import DAY_S
from hubguard.web.openapi import Refused
from hubguard.web.page import ROWS, Page, whole
from hubguard.wire import to_plain

SORTS = ("idle", "name")

STALE_REASONS = (PruneReason.INACTIVE, PruneReason.NEVER_ACTIVE)

KEPT_REASONS = tuple(reason for reason in PruneReason if reason not in STALE_REASONS)


class PrunePage(Page):
    """A page about users or plans. ``criteria`` stand in the address, in days, where they aren't those of the settings."""

    pruning: PruneCycles
    journal: AsyncJournal
    tab = "users"

    def common(self, status: Status) -> dict[str, Any]:
        """What these templates may use besides what all may."""
        return {**super().common(status), "pr": prune_words}

    def criteria(self, given: dict[str, str]) -> StaleCriteria:
        """What ``given`` asks for, field by field; what is empty, or a limit that makes no sense, is as in the settings.

        Raises ConfigError for a moment of creation that can't be read.
        """
        now = self.site.status().at
        default = self.pruning.default_criteria()
        shown = fields_of(default)
        texts = {name: given.get(name, "").strip() or shown[name] for name in shown}
        return replace(
            default,
            inactive_for_s=_seconds(texts["inactive"], default.inactive_for_s, shown["inactive"]),
            never_active_for_s=_seconds(texts["never"], default.never_active_for_s, shown["never"]),
            groups=_several(texts["group"], default.groups, shown["group"]),
            roles=_several(texts["role"], default.roles, shown["role"]),
            names=_several(texts["name"], default.names, shown["name"]),
            not_groups=_several(texts["not_group"], default.not_groups, shown["not_group"]),
            not_roles=_several(texts["not_role"], default.not_roles, shown["not_role"]),
            created_before=_moment("created_before", texts, now),
            created_after=_moment("created_after", texts, now),
        )

    def asked_fields(self) -> dict[str, str]:
        """The criteria in the address, as they were written there; only those that are."""
        return {name: text for name in FIELDS if (text := self.asked(name).strip())}


FIELDS = ("inactive", "never", "group", "role", "name", "not_group", "not_role", *MOMENTS)
"""The criteria as an address and a form have them; limits in days, several values with commas between them."""


def fields_of(criteria: StaleCriteria) -> dict[str, str]:
    """The criteria as an address and a form have them, by FIELDS."""
    return {
        "inactive": f"{criteria.inactive_for_s / DAY_S:g}",
        "never": f"{criteria.never_active_for_s / DAY_S:g}",
        "group": ", ".join(criteria.groups),
        "role": ", ".join(criteria.roles),
        "name": ", ".join(criteria.names),
        "not_group": ", ".join(criteria.not_groups),
        "not_role": ", ".join(criteria.not_roles),
        **dict.fromkeys(MOMENTS, ""),
    }


def _seconds(text: str, default_s: float, shown: str) -> float:
    """The limit of that many days, in seconds."""
    if text == shown:
        return default_s  # to the second, and not as it was rounded for the page
    try:
        days = float(text)
    except ValueError:
        return default_s
    return days * DAY_S if math.isfinite(days) and 0 <= days * DAY_S <= LONGEST_S else default_s


def _moment(name: str, texts: Mapping[str, str], now: datetime) -> datetime | None:
    return moment_of(name, texts[name], now) if texts[name] else None


def _several(text: str, default: tuple[str, ...], shown: str) -> tuple[str, ...]:
    if text == shown:
        return default  # one of them may have a comma in it
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


class UsersPage(PrunePage):
    """Every user, with why they are stale or kept; criteria, search, filter, order and page stand in the address."""

    template = "prune/users.html"

    @override
    async def get(self) -> None:
        await self.show_users(self.asked_fields())

    async def show_users(self, given: dict[str, str], refused: str = "") -> None:
        """Answer with the page, by the criteria in ``given``; ``refused`` says why no plan was made."""
        report, trouble = None, ""
        try:
            report = await self.pruning.users(self.criteria(given), caller=asker(self.who))
        except HubGuardError as error:
            # The page is of use all the same: it says what is wrong, and keeps what was typed.
            trouble = str(error)
        status = self.site.status()
        search, show, sort = self.asked("search").strip(), self.asked("show"), self.asked("sort")
        show = show if show in {"kept", "all", *(kind.value for kind in PruneReason)} else ""
        sort = sort if sort.removeprefix("-") in SORTS else "idle"
        verdicts = report.verdicts if report else ()
        stale = {"": True, "kept": False}.get(show)
        reason = PruneReason(show) if show not in {"", "kept", "all"} else None
        matching = chosen(verdicts, search=search, stale=stale, reason=reason, sort=sort)
        pages = max(1, -(-len(matching) // ROWS))
        number = min(max(1, whole(self.asked("page"))), pages)
        begin = (number - 1) * ROWS
        stale_total = sum(verdict.stale for verdict in verdicts)
        filters = {**given, "search": search, "show": show, "sort": "" if sort == "idle" else sort}
        csv = {**prune_words.criteria_query(to_plain(report.criteria)), "search": search} if report else {}
        csv |= {} if stale is None else {"stale": str(stale).lower()}
        csv |= {} if reason is None else {"reason": reason.value}
        live = {
            **self.common(status),
            "report": report,
            "csv": f"{self.here('api/v1/users.csv')}?{urlencode(csv, doseq=True)}",
            "trouble": trouble,
            "rows": matching[begin : begin + ROWS],
            "begin": begin,
            "found": len(matching),
            "stale_total": stale_total,
            "counts": counted(verdicts),
            "stale_reasons": STALE_REASONS,
            "empty": empty_words(report, stale_total, search=search, show=show),
            "given": given,
            "sort": sort,
            "filters": filters,
            "number": number,
            "pages": pages,
        }
        shown = {**fields_of(self.pruning.default_criteria()), **given}
        # Judging everyone again every few seconds would show the same: users are read every few minutes only.
        await self.show(
            "users",
            live,
            poll=self.request.method == "GET",
            live_every="60s",
            refused=refused,
            shown=shown,
            search=search,
            show=show,
            reasons=(STALE_REASONS, KEPT_REASONS),
        )


def empty_words(report: UsersReport | None, stale: int, *, search: str, show: str) -> str:
    """Why a table of users is empty."""
    if report is None:
        return "No users to show: they couldn't be read."
    if not report.users_total:
        return "The hub has no users."
    if search or show:
        return f"No user matches. {words.count(stale, 'user')} of {report.users_total:,} are stale by these criteria."
    return "No user is stale by these criteria."


class UserPage(PrunePage):
    """One user: why they would be removed, or not, and what would go with them."""

    template = "prune/user.html"

    @override
    async def get(self, name: str) -> None:
        status = self.site.status()
        given = self.asked_fields()
        trouble, verdict, absent = "", None, nobody(name)
        try:
            verdict = await self.pruning.user(name, self.criteria(given), caller=asker(self.who))
        except UnknownUser as error:
            absent = str(error)
        except HubGuardError as error:
            trouble = str(error)
        name = verdict.account.name if verdict is not None else name
        journal_trouble, entries, exemptions = "", tuple[Entry, ...](), tuple[Exemption, ...]()
        try:
            entries = await self.journal.entries(limit=20, user=name)
            exemptions = await self.journal.exemptions(status.at, user=name)
        except JournalError as error:
            journal_trouble = str(error)
        if verdict is None and not entries and not trouble and not journal_trouble:
            raise Refused(404, absent)
        # Each look asks the hub about this user: the page isn't asked for again by itself.
        await self.show(
            f"users/{quote(name, safe='')}",
            {
                **self.common(status),
                "name": name,
                "verdict": verdict,
                "absent": trouble or absent,
                "trouble": trouble,
                "given": given,
                "exemptions": exemptions,
                "entries": entries,
                "journal_trouble": journal_trouble,
            },
            poll=False,
            today=f"{status.at:%Y-%m-%d}",
        )
