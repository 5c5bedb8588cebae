"""Plans to remove users: what was planned, how each stands, and what became of each user."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hubguard.journal import tables
from hubguard.journal.asynchronous import AsyncJournal, AsyncStore, awaited
from hubguard.journal.entries import add_entry, add_outcome, one_at_a_time, one_text
from hubguard.journal.model import Event
from hubguard.journal.store import Journal
from hubguard.model import ActionKind, Cause, Outcome, OutcomeKind
from hubguard.prune.model import PrunePlan, PruneRun, PruneState, StaleCriteria, Use, fate
from hubguard.wire import Malformed, read

_prune = tables.prune
_item = tables.prune_item
_entry = tables.entry
_activity = tables.activity

_OVER = (PruneState.CANCELLED, PruneState.DONE)

BEGINNING = 8192
"""Characters of a plan's text that are read for its criteria."""

_ROWS_AT_ONCE = 500

_STOPS = (ActionKind.STOP_SERVER.value, ActionKind.START_AND_STOP.value)
"""What the hub stamps a user's activity with when it is done."""

_USER = sa.bindparam("user", type_=_entry.c.user_name.type)
_ACTIVE = sa.select(_activity.c.user_name, sa.func.max(_activity.c.active_at)).group_by(_activity.c.user_name)
_USER_ACTIVE = _ACTIVE.where(_activity.c.user_name == _USER)
_intent = _entry.alias("intent")
_STOPPED = (
    sa.select(_entry.c.user_name, _intent.c.at, _entry.c.at)
    .join(_intent, _entry.c.refers_to == _intent.c.id)
    .where(_entry.c.outcome == OutcomeKind.DONE.value, _entry.c.action.in_(_STOPS))
    .order_by(_entry.c.id)
)
_USER_STOPPED = _STOPPED.where(_entry.c.user_name == _USER)


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of one user of a plan: ``position`` is that of the deletion in it, from 0."""

    position: int
    outcome: Outcome
    at: datetime


class PruneStore:
    """Plans to remove users, kept in the journal. Every method raises JournalError when the database fails.

    Digests are matched as they are. Every change of how a plan stands is an entry, too.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def keep_plan(self, plan: PrunePlan, text: str, *, scheduled: bool = False, why: str = "") -> PruneRun:
        """That plan is kept until it is forgotten, and stands as planned; one of that digest that is there stays as it is.

        ``text`` is what :meth:`plan_text` is to give, ``why`` says how it came to be made.
        """
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            there = connection.execute(sa.select(_prune.c.digest).where(_prune.c.digest == plan.digest)).one_or_none()
            if there is None:
                connection.execute(
                    sa.insert(_prune).values(
                        digest=plan.digest,
                        plan=text,
                        state=PruneState.PLANNED.value,
                        actor=plan.made_by,
                        why=one_text(why),
                        asked_why="",
                        scheduled=scheduled,
                        user_count=len(plan.deletions),
                        made_at=plan.made_at,
                        expires_at=plan.expires_at,
                        turned_at=plan.made_at,
                        restored=0,
                        acknowledged="[]",
                    )
                )
                what = f"{_named(plan.digest)}, to remove {len(plan.deletions):,} users, was made"
                _note(connection, plan.digest, plan.made_at, plan.made_by, f"{what}: {why}" if why else what)
            return _run(connection, plan.digest)

    def plan_text(self, digest: str) -> str | None:
        """What was kept as the plan of that digest; None if there is none (any more)."""
        with self.journal.reading() as connection:
            query = sa.select(_prune.c.plan).where(_prune.c.digest == digest)
            return connection.execute(query).scalar_one_or_none()

    def prune_run(self, digest: str) -> PruneRun | None:
        """How the plan of that digest stands; None if there is none (any more)."""
        with self.journal.reading() as connection:
            runs = _runs(connection, _prune.c.digest == digest)
        return runs[0] if runs else None

    def prune_runs(self, *, limit: int = 100, user: str = "") -> tuple[PruneRun, ...]:
        """The plans that were made last, newest first, at most ``limit``.

        With ``user``, only those that have a user of that name, whatever the case of its letters from a to z.
        """
        # Names stand in the plan's text as JSON.
        named = sa.func.lower(_prune.c.plan).contains(f'"user":{json.dumps(user)}'.lower(), autoescape=True)
        where = named if user else None
        with self.journal.reading() as connection:
            return _runs(connection, where, limit=limit)

    def prunes_under_way(self) -> tuple[PruneRun, ...]:
        """Those that are running or paused, newest first."""
        states = [PruneState.RUNNING.value, PruneState.PAUSED.value]
        with self.journal.reading() as connection:
            return _runs(connection, _prune.c.state.in_(states))

    def prune_state(self, digest: str) -> PruneState | None:
        """How that plan stands, and nothing else; None if there is none (any more)."""
        with self.journal.reading() as connection:
            state = connection.execute(sa.select(_prune.c.state).where(_prune.c.digest == digest)).scalar_one_or_none()
        return None if state is None else PruneState(state)

    def prune_turned_at(self, digest: str) -> datetime | None:
        """When somebody, or HubGuard, last changed how that plan stands, or settled a user of it; None: no such plan."""
        with self.journal.reading() as connection:
            turned = sa.select(_prune.c.turned_at).where(_prune.c.digest == digest)
            turned_at = connection.execute(turned).scalar_one_or_none()
            settled = sa.select(sa.func.max(_item.c.at)).where(_item.c.digest == digest)
            settled_at = connection.execute(settled).scalar_one_or_none()
        return max((at for at in (turned_at, settled_at) if at is not None), default=None)

    def begin_prune(
        self,
        digest: str,
        actor: str,
        why: str,
        undo_file: str,
        undo_sha256: str,
        now: datetime,
        *,
        acknowledged: Iterable[str] = (),
    ) -> PruneRun | None:
        """That plan is running from now on. None, and nothing changed: it isn't just planned, or another one is running.

        Of several that begin at once one does. ``acknowledged`` names the cautions that were, for as long as it lasts.
        """
        names = sorted(set(acknowledged))
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            if _another_runs(connection, digest):
                return None
            beginning = (
                sa.update(_prune)
                .where(_prune.c.digest == digest, _prune.c.state == PruneState.PLANNED.value)
                .values(
                    state=PruneState.RUNNING.value,
                    actor=actor,
                    asked_why=one_text(why),
                    why="",
                    began_at=now,
                    turned_at=now,
                    undo_file=undo_file,
                    undo_sha256=undo_sha256,
                    acknowledged=json.dumps(names),
                )
            )
            if connection.execute(beginning).rowcount != 1:
                return None
            run = _run(connection, digest)
            what = (
                f"{_named(digest)} is carried out, {run.count:,} users; undo file {undo_file} (SHA-256 {undo_sha256})"
            )
            what += f"; acknowledged: {', '.join(names)}" if names else ""
            _note(connection, digest, now, actor, f"{what}: {one_text(why)}" if why else what)
            return run

    def turn_prune(
        self,
        digest: str,
        from_states: Iterable[PruneState],
        to: PruneState,
        actor: str,
        why: str,
        now: datetime,
        *,
        acknowledged: Iterable[str] = (),
    ) -> PruneRun | None:
        """That plan stands as ``to`` from now on, for the reason ``why``. None, and nothing changed: it stood otherwise.

        Nor does one run while another does. The cautions that ``acknowledged`` names are, besides those that were before.
        """
        why = one_text(why)
        states = [state.value for state in from_states]
        with self.journal.writing() as connection:
            one_at_a_time(connection)
            if to is PruneState.RUNNING and _another_runs(connection, digest):
                return None
            turning = sa.update(_prune).where(_prune.c.digest == digest, _prune.c.state.in_(states))
            values: dict[str, Any] = {"state": to.value, "why": why, "turned_at": now}
            if to in _OVER:
                values["ended_at"] = now
            if connection.execute(turning.values(**values)).rowcount != 1:
                return None
            run = _run(connection, digest)
            if new := sorted({*acknowledged} - {*run.acknowledged}):
                names = sorted({*new, *run.acknowledged})
                change = sa.update(_prune).where(_prune.c.digest == digest)
                connection.execute(change.values(acknowledged=json.dumps(names)))
                run = _run(connection, digest)
            summary = f"{_named(digest)} is {to.value}: {run.done:,} removed, {run.skipped:,} skipped"
            summary += f", {run.gone:,} already gone, {run.failed:,} failed, {run.unverified:,} unverified"
            summary += f", {run.count - run.settled:,} waiting"
            summary += f"; acknowledged: {', '.join(new)}" if new else ""
            _note(connection, digest, now, actor, f"{summary}; {why}" if why else summary)
            return run

    def say_of_prune(self, digest: str, why: str) -> None:
        """``why`` tells from now on why that plan stands as it does; no entry says so."""
        with self.journal.writing() as connection:
            connection.execute(sa.update(_prune).where(_prune.c.digest == digest).values(why=one_text(why)))

    def settle_pruned(
        self, digest: str, position: int, outcome: Outcome, now: datetime, *, intent: int | None = None
    ) -> bool:
        """What came of that user of the plan is on disk. False, and nothing of it changed: that was known before.

        Who was unverified is settled again, and who was failed may be done after all. It is the outcome of ``intent``, too,
        where one is given that has none yet: the two are never told apart.
        """
        values = {"outcome": fate(outcome), "detail": one_text(outcome.detail), "at": now}
        this = (_item.c.digest == digest, _item.c.position == position)
        with self.journal.writing() as connection:
            if intent is not None:
                add_outcome(connection, intent, outcome, now)
            one_at_a_time(connection)
            was = connection.execute(sa.select(_item.c.outcome).where(*this)).scalar_one_or_none()
            if was is None:
                connection.execute(sa.insert(_item).values(digest=digest, position=position, **values))
                return True
            late = was == OutcomeKind.FAILED.value and outcome.kind is OutcomeKind.DONE
            if was != OutcomeKind.UNVERIFIED.value and not late:
                return False
            return connection.execute(sa.update(_item).where(*this).values(**values)).rowcount == 1

    def wait_again(self, digest: str, position: int) -> bool:
        """That user of the plan waits for their turn again. False, and nothing changed: what came of it wasn't unverified."""
        unverified = _item.c.outcome == OutcomeKind.UNVERIFIED.value
        with self.journal.writing() as connection:
            gone = sa.delete(_item).where(_item.c.digest == digest, _item.c.position == position, unverified)
            return connection.execute(gone).rowcount == 1

    def pruned(self, digest: str, first: int = 0, end: int | None = None) -> tuple[Settled, ...]:
        """The users of that plan that are settled, in its order, from position ``first`` up to before ``end``."""
        query = sa.select(_item).where(_item.c.digest == digest, _item.c.position >= first).order_by(_item.c.position)
        if end is not None:
            query = query.where(_item.c.position < end)
        with self.journal.reading() as connection:
            return tuple(
                Settled(row.position, _to_outcome(row.outcome, row.detail), row.at) for row in connection.execute(query)
            )

    def note_restored(
        self, digest: str, outcomes: Iterable[tuple[str, Outcome]], restored: int, actor: str, now: datetime
    ) -> PruneRun:
        """An entry tells for each user what came of bringing them back; ``restored`` are back by now. How the plan stands."""
        with self.journal.writing() as connection:
            for user, outcome in outcomes:
                _note(
                    connection,
                    digest,
                    now,
                    actor,
                    f"brought back from an undo file: {outcome.kind.value}: {outcome.detail}",
                    user_name=user if tables.holds(user) else None,
                )
            change = sa.update(_prune).where(_prune.c.digest == digest)
            connection.execute(change.values(restored=restored, restored_at=now))
            return _run(connection, digest)

    def intended_by(self, user: str, created: datetime | None, since: datetime) -> frozenset[str | None]:
        """The plans by which HubGuard has set out to delete that very user since then, whatever came of it.

        None is among them if it did so by no plan.
        """
        if not tables.holds(user):
            return frozenset()
        query = sa.select(_entry.c.plan).where(
            _entry.c.user_name == user,
            _entry.c.event == Event.INTENT.value,
            _entry.c.action == ActionKind.DELETE_USER.value,
            _entry.c.started.is_not_distinct_from(created),
            _entry.c.at >= since,
        )
        with self.journal.reading() as connection:
            return frozenset(connection.execute(query.distinct()).scalars())

    def deletions_intended(self, digest: str) -> tuple[tuple[str, datetime | None], ...]:
        """The users who HubGuard set out to delete by that plan, whatever the outcome: name and creation, first to last."""
        query = sa.select(_entry.c.user_name, _entry.c.started).where(
            _entry.c.event == Event.INTENT.value,
            _entry.c.action == ActionKind.DELETE_USER.value,
            _entry.c.plan == digest,
        )
        with self.journal.reading() as connection:
            return tuple((row.user_name, row.started) for row in connection.execute(query.order_by(_entry.c.id)))

    def uses(self, user: str | None = None) -> dict[str, Use]:
        """By name, what the journal knows about the users' activity; of that ``user`` alone where given.

        Who isn't in it has no record. Stops are in the order in which they ended; those that were seen done count.
        """
        if user is not None and not tables.holds(user):
            return {}
        # Made once: what SQLAlchemy takes to put such a statement together is most of what one user's use would cost.
        active, stops = (_ACTIVE, _STOPPED) if user is None else (_USER_ACTIVE, _USER_STOPPED)
        of = {} if user is None else {"user": user}
        with self.journal.reading() as connection:
            active_at: dict[str, datetime | None] = {name: at for name, at in connection.execute(active, of)}  # noqa: C416
            stopped: dict[str, list[tuple[datetime, datetime]]] = {}
            for name, began_at, ended_at in connection.execute(stops, of):
                stopped.setdefault(name, []).append((began_at, ended_at))
        return {
            name: Use(active_at.get(name), tuple(stopped.get(name, ()))) for name in active_at.keys() | stopped.keys()
        }

    def forget(self, before: datetime) -> None:
        """Plans that nobody used and that had expired by then, and those that were over, are gone, with their users."""
        unused = sa.and_(_prune.c.state == PruneState.PLANNED.value, _prune.c.expires_at < before)
        over = sa.and_(_prune.c.state.in_([state.value for state in _OVER]), _prune.c.ended_at < before)
        with self.journal.reading() as connection:
            old = connection.execute(sa.select(_prune.c.digest).where(sa.or_(unused, over))).scalars().all()
        for digest in old:
            while self._forget_some_pruned(digest):
                pass
            with self.journal.writing() as connection:
                connection.execute(sa.delete(_prune).where(_prune.c.digest == digest))

    def _forget_some_pruned(self, digest: str) -> bool:
        """Some hundred rows at a time, so that others get their turn in between; whether there were any."""
        first = sa.select(_item.c.position).where(_item.c.digest == digest).order_by(_item.c.position)
        with self.journal.writing() as connection:
            some = connection.execute(first.limit(_ROWS_AT_ONCE)).scalars().all()
            if some:
                gone = sa.delete(_item).where(_item.c.digest == digest, _item.c.position <= some[-1])
                connection.execute(gone)
            return bool(some)


class AsyncPrunes(AsyncStore[PruneStore]):
    """The same, awaited."""

    def __init__(self, journal: AsyncJournal) -> None:
        super().__init__(journal, PruneStore)

    keep_plan = awaited(PruneStore.keep_plan)
    plan_text = awaited(PruneStore.plan_text)
    prune_run = awaited(PruneStore.prune_run)
    prune_runs = awaited(PruneStore.prune_runs)
    prunes_under_way = awaited(PruneStore.prunes_under_way)
    prune_state = awaited(PruneStore.prune_state)
    prune_turned_at = awaited(PruneStore.prune_turned_at)
    begin_prune = awaited(PruneStore.begin_prune)
    turn_prune = awaited(PruneStore.turn_prune)
    say_of_prune = awaited(PruneStore.say_of_prune)
    settle_pruned = awaited(PruneStore.settle_pruned)
    wait_again = awaited(PruneStore.wait_again)
    pruned = awaited(PruneStore.pruned)
    note_restored = awaited(PruneStore.note_restored)
    intended_by = awaited(PruneStore.intended_by)
    deletions_intended = awaited(PruneStore.deletions_intended)
    uses = awaited(PruneStore.uses)
    forget = awaited(PruneStore.forget)


def _another_runs(connection: Connection, digest: str) -> bool:
    running = sa.and_(_prune.c.state == PruneState.RUNNING.value, _prune.c.digest != digest)
    return connection.execute(sa.select(_prune.c.digest).where(running).limit(1)).one_or_none() is not None


def _run(connection: Connection, digest: str) -> PruneRun:
    return _runs(connection, _prune.c.digest == digest)[0]


def _runs(
    connection: Connection, where: sa.ColumnElement[bool] | None = None, *, limit: int | None = None
) -> tuple[PruneRun, ...]:
    # All but the plan itself, which may be megabytes: its criteria stand near its beginning.
    columns = [column for column in _prune.c if column.name != "plan"]
    beginning = sa.func.substr(_prune.c.plan, 1, BEGINNING).label("beginning")
    query = sa.select(*columns, beginning).order_by(_prune.c.made_at.desc(), _prune.c.digest).limit(limit)
    rows = connection.execute(query if where is None else query.where(where)).all()
    counts: dict[str, dict[str, int]] = {row.digest: {} for row in rows}
    tally = sa.select(_item.c.digest, _item.c.outcome, sa.func.count()).group_by(_item.c.digest, _item.c.outcome)
    for digest, outcome, count in connection.execute(tally.where(_item.c.digest.in_(list(counts)))):
        counts[digest][outcome] = count
    return tuple(_to_run(row, counts[row.digest]) for row in rows)


def _criteria(beginning: str) -> StaleCriteria | None:
    """The criteria of the plan whose text begins so; None if they are longer than that, as with a long list."""
    found = re.search(r'"criteria": ?', beginning)
    try:
        data, _ = json.JSONDecoder().raw_decode(beginning, found.end()) if found else ({}, 0)
        return read(StaleCriteria, data, "criteria") if data else None
    except (ValueError, Malformed):
        return None


def _to_run(row: Any, counts: Mapping[str, int]) -> PruneRun:
    return PruneRun(
        digest=row.digest,
        state=PruneState(row.state),
        made_at=row.made_at,
        expires_at=row.expires_at,
        actor=row.actor,
        count=row.user_count,
        why=row.why,
        asked_why=row.asked_why,
        scheduled=row.scheduled,
        began_at=row.began_at,
        ended_at=row.ended_at,
        undo_file=row.undo_file,
        undo_sha256=row.undo_sha256,
        restored=row.restored,
        restored_at=row.restored_at,
        acknowledged=tuple(json.loads(row.acknowledged)),
        criteria=_criteria(row.beginning),
        gone=counts.get(Cause.GONE.value, 0),
        **{kind.value: counts.get(kind.value, 0) for kind in OutcomeKind},
    )


def _to_outcome(fate: str, detail: str) -> Outcome:
    if fate == Cause.GONE.value:
        return Outcome(OutcomeKind.SKIPPED, detail, Cause.GONE)
    return Outcome(OutcomeKind(fate), detail)


def _note(connection: Connection, digest: str, now: datetime, actor: str, detail: str, **values: Any) -> None:
    add_entry(connection, now, Event.NOTE, actor, 0, detail=detail, plan=digest, **values)


def _named(digest: str) -> str:
    return f"plan {digest[:12]}"
