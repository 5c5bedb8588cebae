"""Bringing users back to a hub in memory, and all that can go wrong on the way."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from doubles.hub import MemoryHub, Request
from virtual_time import VirtualClock

from hubguard.errors import (
    BudgetExhausted,
    HubBusy,
    HubError,
    HubFailed,
    HubGarbled,
    HubRefused,
    HubUnreachable,
    JournalError,
    LeaseLost,
)
from hubguard.hub.nouns import UndoServer, UndoUser
from hubguard.model import Cause, Outcome, OutcomeKind, User
from hubguard.pacing.budget import Budget
from hubguard.prune.restore import Restorer

AT_ONCE = 100

ODD = "que?stion # % käthe"
PLAIN = UndoUser("plain", roles=("user",))
STAFF = UndoUser("staff", groups=("gpu users", "staff"), roles=("user",))
NAMER = UndoUser(
    ODD, groups=("staff",), roles=("user",), servers=(UndoServer(""), UndoServer("gpu", {"cpu": 2}), UndoServer("old"))
)
EVERYBODY = (PLAIN, STAFF, NAMER)
MADE_LONG_AGO = timedelta(days=400)
MAKING = {"create", "group", "create-server"}


class Hub(MemoryHub):
    """A hub with the groups that there were. ``lost`` are answers that the connection swallows when all is done."""

    def __init__(self, clock: VirtualClock, budget: Budget | None = None) -> None:
        super().__init__(clock=clock, budget=budget)
        self.clock = clock
        self.groups = {"staff", "gpu users"}
        self.lost: set[str] = set()
        self.unknown_to_groups: set[str] = set()

    async def create_user(self, name: str, *, confirm: Callable[[], Awaitable[None]] | None = None) -> bool:
        made = await super().create_user(name, confirm=confirm)
        self._lose("create")
        return made

    async def add_to_group(
        self, group: str, users: Sequence[str], *, confirm: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        if self.unknown_to_groups & {*users}:
            raise HubFailed("The hub failed to put them into a group (400: no such user).", status=400)
        await super().add_to_group(group, users, confirm=confirm)
        self._lose("group")

    def _lose(self, call: str) -> None:
        if call in self.lost:
            raise HubUnreachable("The hub didn't answer: the connection broke.")

    def asked(self, *calls: str) -> list[tuple[str, str, str]]:
        return [(one.call, one.user, one.name) for one in self.requests if one.call in calls]

    @property
    def made(self) -> dict[str, tuple[str, ...]]:
        """The groups of each user that there is."""
        return {user.name: user.groups or () for user in self._users.values()}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def hub(clock: VirtualClock) -> Hub:
    return Hub(clock)


def fault(**errors: HubError) -> Callable[[Request], HubError | None]:
    """Each call by that name fails; ``_`` stands for ``-``."""
    return lambda request: errors.get(request.call.replace("-", "_"))


async def restored(hub: Hub, *users: UndoUser, **more: Any) -> dict[str, Outcome]:
    answer = await hub.clock.run(Restorer(hub).restore(users or EVERYBODY, **more))
    assert [name for name, _ in answer] == [user.name for user in users or EVERYBODY]
    return dict(answer)


def kinds(outcomes: dict[str, Outcome]) -> dict[str, OutcomeKind]:
    return {name: outcome.kind for name, outcome in outcomes.items()}


async def test_users_groups_and_named_servers_come_back(hub: Hub) -> None:
    outcomes = await restored(hub)

    assert hub.made == {"plain": (), "staff": ("gpu users", "staff"), ODD: ("staff",)}
    assert {key: record.server.options for key, record in hub._records.items()} == {
        (ODD, "gpu"): {"cpu": 2},
        (ODD, "old"): {},
    }
    assert outcomes == dict.fromkeys(("plain", "staff", ODD), Outcome(OutcomeKind.DONE, "is back"))


async def test_nothing_is_started_and_nobody_is_made_an_admin(hub: Hub) -> None:
    await restored(hub)

    assert not await hub.list_servers()
    assert not any(user.admin for user in hub._users.values())
    assert not hub.asked("start")


async def test_each_group_is_asked_for_once(hub: Hub) -> None:
    await restored(hub)

    assert [(name, user.split("\n")) for _, user, name in hub.asked("group")] == [
        ("gpu users", ["staff"]),
        ("staff", ["staff", ODD]),
    ]


async def test_a_request_for_a_group_is_of_bounded_size_however_many_there_are(hub: Hub) -> None:
    hub.takes_s = 0.01
    crowd = [UndoUser(f"user-{number}", groups=("staff",)) for number in range(2 * AT_ONCE + 1)]

    outcomes = await restored(hub, *crowd)

    assert [len(user.split("\n")) for _, user, _ in hub.asked("group")] == [AT_ONCE, AT_ONCE, 1]
    assert {*kinds(outcomes).values()} == {OutcomeKind.DONE}
    assert all(groups == ("staff",) for groups in hub.made.values())


async def test_asking_twice_is_as_good_as_once(hub: Hub) -> None:
    await restored(hub)
    before, servers = dict(hub._users), set(hub._records)

    again = await restored(hub)

    assert again == dict.fromkeys(("plain", "staff", ODD), Outcome(OutcomeKind.DONE, "is back already"))
    assert (hub._users, set(hub._records)) == (before, servers)


async def test_who_was_never_deleted_is_left_as_they_are(hub: Hub) -> None:
    """They are in the file since it is written before the first is deleted; meanwhile they were put out of a group."""
    now = hub.clock.now()
    hub.add_user(User("staff", admin=False, groups=(), roles=("user",), created=now - MADE_LONG_AGO))

    outcomes = await restored(hub, since=now)

    assert outcomes["staff"] == Outcome(OutcomeKind.SKIPPED, "was there: they weren't deleted")
    assert hub.made["staff"] == ()
    assert outcomes["plain"].kind is OutcomeKind.DONE


async def test_nor_is_one_changed_of_whom_it_is_not_told_since_when_they_are_there(hub: Hub) -> None:
    hub.add_user(User("staff", admin=False, groups=(), roles=("user",)))

    outcomes = await restored(hub, STAFF, since=hub.clock.now())

    assert outcomes["staff"].kind is OutcomeKind.SKIPPED
    assert hub.made["staff"] == ()


@pytest.mark.parametrize("skew_s", [0.0, -3600.0, 3600.0])
async def test_who_came_back_by_themselves_gets_what_they_lack(hub: Hub, skew_s: float) -> None:
    """Whatever the hub's clock says, and it is by that clock that users are made."""
    hub.skew_s = skew_s
    by_hub = hub.clock.now() + timedelta(seconds=skew_s)
    hub.add_user(User("staff", admin=False, groups=("staff",), roles=("user",), created=by_hub))
    hub.add_user(User("plain", admin=False, groups=(), created=by_hub - timedelta(seconds=60)))

    outcomes = await restored(hub, STAFF, PLAIN, since=hub.clock.now())

    assert outcomes["staff"] == Outcome(OutcomeKind.DONE, "was there, and is in the group gpu users again")
    assert outcomes["plain"] == Outcome(OutcomeKind.SKIPPED, "was there: they weren't deleted")
    assert hub.made["staff"] == ("gpu users", "staff")
    assert [(name, user) for _, user, name in hub.asked("group")] == [("gpu users", "staff")]


async def test_an_admin_who_is_there_is_left_as_they_are(hub: Hub) -> None:
    hub.add_user(User("staff", admin=True, groups=(), roles=("admin", "user"), created=hub.clock.now()))

    outcomes = await restored(hub, STAFF)

    assert outcomes["staff"] == Outcome(OutcomeKind.DONE, "is back already, as an admin, and is left as they are")
    assert hub.made["staff"] == ()
    assert hub._users["staff"].admin


async def test_a_group_that_is_gone_is_told_and_not_made(hub: Hub) -> None:
    hub.groups = {"gpu users"}

    outcomes = await restored(hub)

    assert hub.made == {"plain": (), "staff": ("gpu users",), ODD: ()}
    assert outcomes["staff"] == Outcome(OutcomeKind.DONE, "not back: the group staff (the hub no longer has it)")
    assert outcomes[ODD].detail == "not back: the group staff (the hub no longer has it)"


async def test_one_name_that_a_group_does_not_take_keeps_no_other_out(hub: Hub) -> None:
    crowd = [UndoUser(f"user-{number}", groups=("staff",)) for number in range(7)]
    hub.unknown_to_groups = {"user-3"}

    outcomes = await restored(hub, *crowd)

    assert [name for name, groups in hub.made.items() if groups != ("staff",)] == ["user-3"]
    assert outcomes["user-3"] == Outcome(OutcomeKind.DONE, "not back: the group staff (the hub failed to, 400)")


async def test_roles_that_a_hub_does_not_give_by_itself_are_told(hub: Hub) -> None:
    outcomes = await restored(hub, replace(PLAIN, roles=("instructor", "user")))

    assert outcomes["plain"] == Outcome(OutcomeKind.DONE, "not back: the role instructor")


async def test_options_of_the_default_server_are_told(hub: Hub) -> None:
    outcomes = await restored(hub, replace(PLAIN, servers=(UndoServer("", {"image": "x"}),)))

    assert outcomes["plain"] == Outcome(OutcomeKind.DONE, "not back: the options of the default server")
    assert not hub.asked("create-server")


async def test_what_of_the_rows_does_not_come_back_is_told(hub: Hub) -> None:
    rows: dict[str, tuple[dict[str, object], ...]] = {
        "users": ({"name": "plain"},),
        "spawners": ({"state": "{}"}, {"state": None}, {"state": '{"pvc_name": "claim-x"}'}),
        "api_tokens": ({}, {}),
        "shares": ({},),
    }

    outcomes = await restored(hub, replace(PLAIN, rows=rows), replace(STAFF, rows={"spawners": ({"state": "{}"},)}))

    assert outcomes["plain"] == Outcome(OutcomeKind.DONE, "not back: the spawner's state, 2 of tokens, 1 of shares")
    assert outcomes["staff"] == Outcome(OutcomeKind.DONE, "is back")


async def test_before_hub_6_named_servers_are_told_and_asked_for_once(hub: Hub) -> None:
    hub.hub_version = "5.5.0"
    more = replace(NAMER, name="more")

    outcomes = await restored(hub, more, NAMER)

    why = "hubs before 6.0 can't have one that was never started"
    for name in ("more", ODD):
        assert outcomes[name] == Outcome(OutcomeKind.DONE, f"not back: the server gpu ({why}), the server old ({why})")
        assert hub.made[name] == ("staff",)


async def test_a_server_that_the_hub_does_not_allow_is_told_in_its_words(hub: Hub) -> None:
    hub.fault = fault(create_server=HubFailed("The hub failed to make it (400: too many).", status=400))

    outcomes = await restored(hub, NAMER)

    assert outcomes[ODD].kind is OutcomeKind.DONE
    assert "the server gpu (The hub failed to make it (400: too many).)" in outcomes[ODD].detail


async def test_a_name_that_the_authenticator_refuses_has_failed_and_ends_nothing(hub: Hub) -> None:
    def refuse(request: Request) -> HubError | None:
        if request.call == "create" and request.user == "staff":
            return HubFailed("The hub failed to make the user staff (400: Failed to create user).", status=400)
        return None

    hub.fault = refuse

    outcomes = await restored(hub)

    assert kinds(outcomes) == {"plain": OutcomeKind.DONE, "staff": OutcomeKind.FAILED, ODD: OutcomeKind.DONE}
    assert "400" in outcomes["staff"].detail
    assert ("group", "staff", "gpu users") not in hub.asked("group")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HubFailed("The hub failed (500).", status=500), OutcomeKind.FAILED),
        (HubBusy("The hub is too busy (503)."), OutcomeKind.FAILED),
        (HubGarbled("That makes no sense."), OutcomeKind.FAILED),
        (HubUnreachable("No answer."), OutcomeKind.UNVERIFIED),
    ],
)
async def test_who_is_not_there_after_all_is_not_called_back(hub: Hub, error: HubError, kind: OutcomeKind) -> None:
    hub.fault = fault(create=error)

    outcomes = await restored(hub)

    assert {*kinds(outcomes).values()} == {kind}
    assert not hub.asked("group", "create-server")


async def test_an_answer_that_got_lost_is_found_out(hub: Hub) -> None:
    hub.lost = {"create", "group"}

    outcomes = await restored(hub)

    assert outcomes == dict.fromkeys(("plain", "staff", ODD), Outcome(OutcomeKind.DONE, "is back"))
    assert hub.made["staff"] == ("gpu users", "staff")


async def test_a_failure_for_a_group_is_told(hub: Hub) -> None:
    for error, says in (
        (HubUnreachable("No answer."), "the hub didn't answer"),
        (HubBusy("Busy."), "the hub was too busy"),
        (HubFailed("No.", status=500), "the hub failed to, 500"),
        (HubGarbled("?"), "the hub's answer made no sense"),
    ):
        hub.fault = fault(group=error)
        user = replace(STAFF, name=says)
        outcome = (await restored(hub, user))[says]
        assert outcome == Outcome(OutcomeKind.DONE, f"not back: the group gpu users ({says}), the group staff ({says})")


async def test_a_group_that_said_yes_and_took_nobody_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lies(self: Hub, group: str, users: Sequence[str], **_: object) -> None:
        return

    monkeypatch.setattr(Hub, "add_to_group", lies)

    outcome = (await restored(hub, STAFF))["staff"]

    assert outcome.kind is OutcomeKind.DONE
    assert "the group staff (the hub said that they are in it)" in outcome.detail


async def test_what_cannot_be_read_again_is_unverified(hub: Hub) -> None:
    hub.fault = fault(get_user=HubFailed("The hub failed to read (500).", status=500))

    outcomes = await restored(hub)

    assert {*kinds(outcomes).values()} == {OutcomeKind.UNVERIFIED}
    assert set(hub.made) == {"plain", "staff", ODD}


async def test_a_user_who_is_gone_again_has_failed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(self: Hub, name: str) -> None:
        return None

    monkeypatch.setattr(Hub, "get_user", nobody)

    assert {*kinds(await restored(hub)).values()} == {OutcomeKind.FAILED}


@pytest.mark.parametrize(
    ("call", "right"), [("create", "admin:users"), ("group", "groups"), ("create_server", "servers")]
)
async def test_a_token_that_may_not_ends_it_and_the_right_is_named(hub: Hub, call: str, right: str) -> None:
    hub.fault = fault(**{call: HubRefused("The hub refused it (403).")})
    crowd = [replace(NAMER, name=f"user-{number}") for number in range(AT_ONCE + 20)]

    outcomes = await restored(hub, *crowd)

    late = [outcomes[user.name] for user in crowd[AT_ONCE:]]
    assert {outcome.kind for outcome in late} == {OutcomeKind.SKIPPED}
    assert all(outcome.cause is Cause.NOT_TRIED and f"the right {right}" in outcome.detail for outcome in late)
    asked = hub.asked(*MAKING)
    assert len([one for one in asked if one[0] == call.replace("_", "-")]) <= 10
    if call != "create":
        early = outcomes["user-99"]
        assert early.kind is OutcomeKind.DONE
        assert f"the right {right}" in early.detail
    else:
        assert not hub.made


async def test_a_token_that_may_not_read_ends_it_too(hub: Hub) -> None:
    hub.fault = fault(get_user=HubRefused("The hub refused to read (403)."))
    crowd = [UndoUser(f"user-{number}") for number in range(AT_ONCE + 20)]

    outcomes = await restored(hub, *crowd)

    assert outcomes["user-0"].kind is OutcomeKind.UNVERIFIED
    assert outcomes[f"user-{AT_ONCE}"].kind is OutcomeKind.SKIPPED
    assert "read:servers" in outcomes[f"user-{AT_ONCE}"].detail


async def test_an_open_breaker_ends_it_and_asking_again_finishes_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    create, left = Hub.create_user, iter([True] * 2)

    async def breaks(self: Hub, name: str, **more: Any) -> bool:
        if not next(left, False):
            raise BudgetExhausted("The breaker is open.")
        return await create(self, name, **more)

    monkeypatch.setattr(Hub, "create_user", breaks)
    first = await restored(hub)
    assert sorted(outcome.kind.value for outcome in first.values()) == ["done", "done", "skipped"]
    assert {outcome.detail for outcome in first.values() if outcome.kind is OutcomeKind.SKIPPED} == {
        "not tried: The breaker is open."
    }

    monkeypatch.setattr(Hub, "create_user", create)
    await restored(hub)

    assert hub.made == {"plain": (), "staff": ("gpu users", "staff"), ODD: ("staff",)}


async def test_each_request_that_changes_something_is_confirmed_and_a_no_ends_it(hub: Hub) -> None:
    allowed = 4

    async def confirm() -> None:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise LeaseLost("Another guard holds the lease.")

    outcomes = dict(await hub.clock.run(Restorer(hub, confirm=confirm).restore(EVERYBODY)))

    assert len(hub.asked(*MAKING)) == 4
    assert outcomes["plain"].kind is OutcomeKind.DONE
    assert outcomes[ODD] == Outcome(
        OutcomeKind.DONE,
        "not back: the group staff (Another guard holds the lease.), the server gpu (Another guard holds the lease.),"
        " the server old (Another guard holds the lease.)",
    )


async def test_progress_tells_each_once_as_it_is_known(hub: Hub) -> None:
    told: list[tuple[str, Outcome]] = []

    async def tell(name: str, outcome: Outcome) -> None:
        told.append((name, outcome))

    outcomes = await restored(hub, progress=tell)

    assert len(told) == 3
    assert dict(told) == outcomes


async def test_who_is_next_is_told_before_anything_is_sent_for_them(hub: Hub) -> None:
    crowd = [UndoUser(f"user-{number:03}", groups=("staff",)) for number in range(AT_ONCE + 20)]
    told: list[str] = []

    async def begin(names: Sequence[str]) -> None:
        assert {request.user for request in hub.requests if request.call == "create"} == {*told}
        told.extend(names)

    await restored(hub, *crowd, begin=begin)

    assert told == [user.name for user in crowd]


@pytest.mark.parametrize("at", ["begin", "progress"])
async def test_what_cannot_be_written_down_ends_it(hub: Hub, at: str) -> None:
    crowd = [UndoUser(f"user-{number:03}") for number in range(AT_ONCE + 20)]

    async def fails(*_: object) -> None:
        raise JournalError("The disk is full.")

    with pytest.raises(JournalError, match="disk is full"):
        await hub.clock.run(Restorer(hub).restore(crowd, **{at: fails}))

    assert len(hub.made) == (0 if at == "begin" else AT_ONCE)


async def test_who_is_back_counts_as_back_even_where_a_role_is_lost(hub: Hub) -> None:
    """Or asking again would never find everybody back."""
    since = hub.clock.now()
    user = replace(PLAIN, roles=("instructor", "user"))
    await restored(hub, user, since=since)

    again = await restored(hub, user, since=since)

    assert again["plain"] == Outcome(OutcomeKind.DONE, "is back already; not back: the role instructor")


async def test_it_keeps_to_the_budget(clock: VirtualClock) -> None:
    hub = Hub(clock, Budget(rate=2.0, burst=1, concurrency=2, clock=clock))
    crowd = [UndoUser(f"user-{number}", groups=("staff",)) for number in range(30)]

    await restored(hub, *crowd)

    at_s = sorted(request.at_s for request in hub.requests)
    assert len(at_s) == 61
    assert all(later - earlier > 0.49 for earlier, later in itertools.pairwise(at_s))


class Killed(BaseException):
    """The process ends here."""


async def test_killed_at_any_request_asking_again_finishes_it() -> None:
    since = VirtualClock().now()
    for step in range(100):
        hub = Hub(VirtualClock())
        kill_at(hub, step)
        try:
            await restored(hub, since=since)
        except Killed:
            pass
        else:
            break
        hub.fault = None
        outcomes = await restored(hub, since=since)
        assert {outcome.kind for outcome in outcomes.values()} <= {OutcomeKind.DONE, OutcomeKind.SKIPPED}
        assert not any("not back" in outcome.detail for outcome in outcomes.values())
        assert hub.made == {"plain": (), "staff": ("gpu users", "staff"), ODD: ("staff",)}, f"killed at {step}"
        assert {*hub._records} == {(ODD, "gpu"), (ODD, "old")}, f"killed at {step}"
    else:
        raise AssertionError("it never came to its end")
    assert step == 3 + 2 + 2 + 3


def kill_at(hub: Hub, step: int) -> None:
    def kill(_: Request) -> HubError | None:
        if len(hub.requests) > step:
            raise Killed
        return None

    hub.fault = kill
