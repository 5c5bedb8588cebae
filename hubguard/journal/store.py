"""The journal: the lease, what people have set, what is intended and what came of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from hubguard.errors import ActingRefused, LeaseLost
from hubguard.journal import tables
from hubguard.journal.database import Database
from hubguard.journal.entries import add_entry, add_outcome, grounds_text, one_at_a_time, one_text, to_entry
from hubguard.journal.exemptions import Exemptions
from hubguard.journal.migrate import upgrade
from hubguard.journal.model import Entry, Event, Failures, Lease, Stance
from hubguard.model import Action, Grounds, Outcome, OutcomeKind

_FORGET_AT_ONCE = 500
_FORGET_AT_MOST = 5000

_lease = tables.lease
_stance = tables.stance
_entry = tables.entry
_memory = tables.memory


def open_journal(url: str) -> Journal:
    """The journal at a SQLAlchemy URL, its tables made or upgraded. Several guards may open the same one at once.

    ``sqlite://`` is a journal in memory, for one thread at a time, gone when it is closed. Raises JournalError when the
    URL is wrong, its driver is missing, or the database can't be used, is of a newer revision or isn't HubGuard's.
    """
    database = Database(url)
    try:
        upgrade(database)
    except BaseException:
        database.close()
        raise
    return Journal(database)


class Journal(Exemptions):
    """One hub's journal. Made by :func:`open_journal`; every method raises JournalError when the database fails.

    Each method is one transaction, on disk when it returns. Methods block for a few milliseconds; a database that is
    locked or doesn't answer makes them raise after seconds. ``now`` is the caller's clock. Names are held as they are,
    up to 255 characters; details are cut to 2000.
    """

    @property
    def place(self) -> str:
        """Where it is kept, for people: without account, password or options."""
        return self._database.place

    def close(self) -> None:
        """Every connection is closed; a journal in memory is gone. It isn't used afterwards."""
        self._database.close()

    # The lease

    def take_lease(
        self, hub: str, holder: str, address: str, generation: float, now: datetime, ttl_s: float
    ) -> Lease | None:
        """The lease on ``hub``, ours for ``ttl_s`` seconds; None if another guard holds it.

        It is taken when nobody holds it, when it was released or has run out, and when ``generation`` is greater than
        the holder's (a newer hub started us). Then the fence has risen by 1, and an entry says so. One that is ours
        already is renewed, with the same fence, and takes on ``address`` and ``generation``. Of several that try at
        the same moment one gets it. ``holder`` must not be "" (ValueError).
        """
        if not holder:
            raise ValueError("a lease needs a holder with a name")
        expires_at = now + timedelta(seconds=ttl_s)
        with self.writing() as connection:
            seen = self._lease_row(connection, hub, now)
            same = sa.and_(_lease.c.hub == hub, _lease.c.fence == seen.fence, _lease.c.holder == seen.holder)
            change = sa.update(_lease).values(
                holder=holder, address=address, generation=generation, expires_at=expires_at
            )
            if seen.holder == holder:
                if connection.execute(change.where(same)).rowcount != 1:
                    return None
                return Lease(holder, address, seen.fence, generation, seen.taken_at, expires_at)
            takeable = sa.or_(_lease.c.holder == "", _lease.c.expires_at <= now, _lease.c.generation < generation)
            taking = change.values(fence=seen.fence + 1, taken_at=now).where(same, takeable)
            if connection.execute(taking).rowcount != 1:
                return None
            add_entry(connection, now, Event.LEASE, holder, seen.fence + 1, detail=_how_taken(seen, now))
            return Lease(holder, address, seen.fence + 1, generation, now, expires_at)

    def renew_lease(self, hub: str, lease: Lease, now: datetime, ttl_s: float) -> Lease:
        """The same lease, good until ``ttl_s`` seconds from now. Raises LeaseLost when it is another's or was released.

        One that ran out is renewed as long as nobody has taken it: holder and fence are still in place, so nobody else
        can have acted meanwhile, and intents of ours were refused while it was out.
        """
        expires_at = now + timedelta(seconds=ttl_s)
        with self.writing() as connection:
            renewal = sa.update(_lease).where(_is_held(hub, lease)).values(expires_at=expires_at)
            if connection.execute(renewal).rowcount != 1:
                raise _lost(connection, hub, now)
        return Lease(lease.holder, lease.address, lease.fence, lease.generation, lease.taken_at, expires_at)

    def release_lease(self, hub: str, lease: Lease, now: datetime) -> None:
        """Nobody holds the lease, if it was ours: the next one needn't wait. The fence stays, to rise from there."""
        with self.writing() as connection:
            connection.execute(sa.update(_lease).where(_is_held(hub, lease)).values(holder="", expires_at=now))

    def lease(self, hub: str) -> Lease | None:
        """Who has the lease, even if it has run out (``expires_at``); None if nobody ever had it, or it was released."""
        with self.reading() as connection:
            row = connection.execute(sa.select(_lease).where(_lease.c.hub == hub)).one_or_none()
        if row is None or not row.holder:
            return None
        return Lease(row.holder, row.address, row.fence, row.generation, row.taken_at, row.expires_at)

    # What people have set

    def stance(self) -> Stance:
        """Whether HubGuard may act, as people have set it."""
        with self.reading() as connection:
            return _read_stance(connection)

    def arm(self, actor: str, why: str, now: datetime) -> Stance:
        """HubGuard may act by itself; the new stance."""
        return self._set("armed", Event.ARMED, actor, why, now)

    def observe(self, actor: str, why: str, now: datetime) -> Stance:
        """HubGuard only observes; the new stance."""
        return self._set("armed", Event.OBSERVING, actor, why, now)

    def hold(self, actor: str, why: str, now: datetime) -> Stance:
        """Acting is on hold: from now on no intent is recorded, by whomever, until :meth:`resume`. The new stance."""
        return self._set("held", Event.HELD, actor, why, now)

    def resume(self, actor: str, why: str, now: datetime) -> Stance:
        """Acting is no longer on hold; the new stance."""
        return self._set("held", Event.RESUMED, actor, why, now)

    # Intents and outcomes

    def intend(
        self,
        hub: str,
        lease: Lease,
        action: Action,
        actor: str,
        now: datetime,
        *,
        asked: bool,
        armed: bool | None,
        by_default: bool = False,
        detail: str = "",
        grounds: Grounds | None = None,
    ) -> int:
        """The intent is on disk; its id. Only then may the request go out.

        ``detail`` says what ``action`` doesn't, for people; ``grounds`` is what it is based on. ``armed`` is what the
        settings say; None leaves it to the stance, and ``by_default`` is in effect until people have set that. ``asked``: a
        person wants this one by name, so it needs no arming. Raises LeaseLost unless the lease is ours and hasn't run out,
        and ActingRefused if acting is on hold, or HubGuard is neither armed nor asked. From these checks until the commit
        nobody can take the lease or put acting on hold: whoever does so afterwards finds this intent in the journal.
        """
        with self.writing() as connection:
            # A change that changes nothing: it checks the row and locks it in one statement, on every database.
            touch = (
                sa.update(_lease).where(_is_held(hub, lease), _lease.c.expires_at > now).values(fence=_lease.c.fence)
            )
            if connection.execute(touch).rowcount != 1:
                raise _lost(connection, hub, now)
            stance = _read_stance(connection, lock=True)
            if armed is None:
                armed = by_default if stance.armed is None else stance.armed
            _refuse_unless_allowed(stance, asked=asked, armed=armed)
            return add_entry(
                connection,
                now,
                Event.INTENT,
                actor,
                lease.fence,
                user_name=action.user,
                server_name=action.name,
                started=action.started,
                action=action.kind.value,
                reason=action.reason,
                detail=detail or ("and remove it from the hub" if action.remove else ""),
                grounds=None if grounds is None else grounds_text(grounds),
                plan=action.plan,
            )

    def settle(self, intent_id: int, outcome: Outcome, now: datetime) -> bool:
        """The outcome of that intent is on disk. False, and nothing changed: it has one, or there is no such intent.

        Needs no lease: what has happened may always be recorded.
        """
        with self.writing() as connection:
            return add_outcome(connection, intent_id, outcome, now)

    def open_intents(self) -> tuple[Entry, ...]:
        """Intents that have no outcome, oldest first: those under way, and those that a crash has left behind."""
        settled = _entry.alias("settled")
        query = (
            sa.select(_entry)
            .where(_entry.c.event == Event.INTENT.value)
            .where(~sa.exists().where(settled.c.refers_to == _entry.c.id))
            .order_by(_entry.c.id)
        )
        with self.reading() as connection:
            return tuple(map(to_entry, connection.execute(query)))

    def failures(self, since: datetime) -> dict[tuple[str, str, datetime | None], Failures]:
        """By run (user, server, started): its outcomes failed or unverified since its last done, and since ``since``.

        A run without any isn't in it. Skipped outcomes don't count.
        """
        run = (_entry.c.user_name, _entry.c.server_name, _entry.c.started)
        failed = sa.and_(
            _entry.c.outcome.in_([OutcomeKind.FAILED.value, OutcomeKind.UNVERIFIED.value]), _entry.c.at >= since
        )
        tally = (*run, sa.func.count().label("times"), sa.func.max(_entry.c.at).label("last_at"))
        first_id = sa.func.min(_entry.c.id).label("first_id")
        # Grouped before it is asked what worked later: for each failed entry, that would take minutes in the long run.
        runs = sa.select(*tally, first_id).where(failed).group_by(*run).subquery()
        done = _entry.alias("done")
        last_done_id = (
            sa.select(sa.func.max(done.c.id))
            .where(
                done.c.user_name == runs.c.user_name,
                done.c.server_name == runs.c.server_name,
                done.c.id > runs.c.first_id,
                done.c.outcome == OutcomeKind.DONE.value,
                done.c.started.is_not_distinct_from(runs.c.started),
            )
            .scalar_subquery()
        )
        by_run: dict[tuple[str, str, datetime | None], Failures] = {}
        with self.reading() as connection:
            for row in connection.execute(sa.select(runs, last_done_id.label("last_done_id"))).all():
                key = (row.user_name, row.server_name, row.started)
                failures: sa.Row[Any] | None = row
                if row.last_done_id is not None:
                    # A run that is over and failed again is rare: it came back after it was seen gone.
                    same = (column.is_not_distinct_from(value) for column, value in zip(run, key, strict=True))
                    since_then = sa.select(*tally).where(failed, *same, _entry.c.id > row.last_done_id).group_by(*run)
                    failures = connection.execute(since_then).one_or_none()
                if failures is not None:
                    by_run[key] = Failures(failures.times, failures.last_at)
        return by_run

    def forget(self, before: datetime) -> int:
        """Entries older than ``before`` are gone; how many. An intent goes with its outcome, and an open one never.

        Exemptions that had ended by then are gone, too. The entries go a few hundred at a time, so that others get their
        turn in between, and about 5,000 at the most: while this returns more than 0, call it again.
        """
        self._forget_exemptions(before)
        gone = 0
        with self.reading() as connection:
            old = list(itertools.islice(_ids_to_forget(connection, before), _FORGET_AT_MOST))
        for start in range(0, len(old), _FORGET_AT_ONCE):
            ids = {id_ for group in old[start : start + _FORGET_AT_ONCE] for id_ in group}
            with self.writing() as connection:
                gone += connection.execute(sa.delete(_entry).where(_entry.c.id.in_(ids))).rowcount
        return gone

    # What a guard wants to know again after a restart

    def remember(self, key: str, value: Mapping[str, Any], now: datetime) -> None:
        """:meth:`recall` returns ``value`` from now on. It must be JSON; what isn't raises TypeError or ValueError."""
        text = json.dumps(dict(value), allow_nan=False)
        with self.writing() as connection:
            one_at_a_time(connection)
            change = sa.update(_memory).where(_memory.c.key == key).values(value=text, at=now)
            if connection.execute(change).rowcount != 1:
                connection.execute(sa.insert(_memory).values(key=key, value=text, at=now))

    def recall(self, key: str) -> tuple[dict[str, Any], datetime] | None:
        """What was last remembered under ``key``, and when; None if that is nothing, or can't be read any more."""
        with self.reading() as connection:
            row = connection.execute(sa.select(_memory).where(_memory.c.key == key)).one_or_none()
        if row is None:
            return None
        try:
            value = json.loads(row.value)
        except (ValueError, RecursionError):
            return None
        return (value, row.at) if isinstance(value, dict) else None

    def _lease_row(self, connection: Connection, hub: str, now: datetime) -> Any:
        """The row of that hub; if there was none, there is now one that nobody holds."""
        query = sa.select(_lease).where(_lease.c.hub == hub)
        row = connection.execute(query).one_or_none()
        if row is None:
            nobody = {"holder": "", "address": "", "fence": 0, "generation": 0.0, "taken_at": now, "expires_at": now}
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(_lease).values(hub=hub, **nobody))
            except IntegrityError:
                pass  # another one was quicker, and its row is as good
            row = connection.execute(query).one()
        return row

    def _set(self, column: str, event: Event, actor: str, why: str, now: datetime) -> Stance:
        why = one_text(why)
        change = {
            column: event in (Event.ARMED, Event.HELD),
            f"{column}_by": actor,
            f"{column}_at": now,
            f"{column}_why": why,
        }
        with self.writing() as connection:
            if connection.execute(sa.update(_stance).where(_stance.c.id == 1).values(**change)).rowcount != 1:
                raise self._database.refuse("has lost the row that says whether HubGuard may act", "Restore a backup.")
            add_entry(connection, now, event, actor, 0, detail=why)
            return _read_stance(connection)


def _is_held(hub: str, lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(_lease.c.hub == hub, _lease.c.fence == lease.fence, _lease.c.holder == lease.holder)


def _how_taken(seen: Any, now: datetime) -> str:
    if not seen.holder:
        how = "no other guard held the lease"
    elif seen.expires_at <= now:
        how = f"the lease of {seen.holder} ran out"
    else:
        how = f"{seen.holder} belongs to an earlier start of the hub"
    return f"This guard is now in charge: {how}"


def _lost(connection: Connection, hub: str, now: datetime) -> LeaseLost:
    row = connection.execute(sa.select(_lease).where(_lease.c.hub == hub)).one_or_none()
    if row is None or not row.holder:
        state = "no guard holds the lease any more"
    elif row.expires_at <= now:
        state = f"the lease ran out at {row.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    else:
        state = f"{row.holder} holds the lease now"
    return LeaseLost(f"Nothing was sent: {state}. This guard acts again once it holds the lease.")


FORMER_TAKEOVER = "took over from "
"""How the reason began with which earlier versions armed themselves, as "hubguard", when they replaced an idle culler."""


def _read_stance(connection: Connection, *, lock: bool = False) -> Stance:
    """``lock``: nobody changes it before this transaction ends."""
    query = sa.select(_stance).where(_stance.c.id == 1)
    row = connection.execute(query.with_for_update() if lock else query).one()
    # They stayed armed when the culler was gone.
    held = {"held": row.held, "held_by": row.held_by, "held_at": row.held_at, "held_why": row.held_why}
    if row.armed_by == "hubguard" and (row.armed_why or "").startswith(FORMER_TAKEOVER):
        return Stance(**held)
    return Stance(row.armed, row.armed_by, row.armed_at, row.armed_why, **held)


def _refuse_unless_allowed(stance: Stance, *, asked: bool, armed: bool) -> None:
    if stance.held:
        raise ActingRefused(f"Nothing was sent. {stance.sentence} Resume to continue.")
    if not asked and not armed:
        raise ActingRefused("Nothing was sent: HubGuard isn't armed and only observes. Arm it to let it act by itself.")


def _ids_to_forget(connection: Connection, before: datetime) -> Iterator[tuple[int, ...]]:
    """Groups of ids that go together: (intent, its outcome), and other entries one by one."""
    outcome = _entry.alias("outcome")
    pairs = (
        sa.select(_entry.c.id, outcome.c.id)
        .join(outcome, outcome.c.refers_to == _entry.c.id)
        .where(_entry.c.at < before, outcome.c.at < before)
    )
    others = sa.select(_entry.c.id).where(
        _entry.c.at < before, _entry.c.event.not_in([Event.INTENT.value, Event.OUTCOME.value])
    )
    for query in (pairs, others):
        for row in connection.execute(query):
            yield tuple(row)
