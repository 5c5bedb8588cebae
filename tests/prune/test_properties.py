from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from builders import NOW
from hypothesis import given, reject
from hypothesis import strategies as st

from hubguard.errors import ConfigError
from hubguard.hub.nouns import Account, AccountServer, ORMCounts
from hubguard.journal.model import Exemption
from hubguard.prune.decide.plan import cautions, freeze, from_dict, lost, storage, to_dict
from hubguard.prune.decide.stale import checked, judge, second_look
from hubguard.prune.model import Protection, PrunePlan, PruneReason, StaleCriteria, Use

PEOPLE = ("ann", "bob", "a/b?c#%", "żółć", "=cmd", "")
GROUPS = ("course", "staff", "x")

days = st.integers(-3, 40).map(lambda n: NOW - timedelta(days=n / 2))
maybe_days = st.none() | days
limits = st.sampled_from([0.0, 1.0, 86400.0, 5 * 86400.0, 12.5 * 86400.0])
names = st.lists(st.sampled_from(PEOPLE), max_size=3, unique=True).map(tuple)
globs = st.lists(st.sampled_from(["a*", "bob", "*", "?ółć", "=*", "[!a]*"]), max_size=2, unique=True).map(tuple)
some_groups = st.lists(st.sampled_from(GROUPS), max_size=2, unique=True).map(tuple)

servers = st.lists(
    st.builds(
        AccountServer,
        name=st.sampled_from(["", "x"]),
        active=st.sampled_from([False, False, False, True]),
        pending=st.sampled_from([None, None, None, "stop"]),
    ),
    max_size=2,
).map(tuple)
accounts = st.builds(
    Account,
    name=st.sampled_from(PEOPLE),
    admin=st.sampled_from([False, False, False, True]),
    created=maybe_days,
    last_activity=maybe_days,
    groups=st.none() | some_groups,
    roles=st.none() | some_groups,
    servers=servers,
    servers_whole=st.booleans(),
    tokens=st.none() | st.integers(0, 3),
    token_used_at=maybe_days,
    shares=st.none() | st.integers(0, 3),
    id=st.none() | st.integers(1, 3),
)
criterias = st.builds(
    StaleCriteria,
    inactive_for_s=limits,
    never_active_for_s=limits,
    groups=some_groups,
    roles=some_groups,
    names=globs,
    listed=st.none() | names,
)
protections = st.builds(
    Protection,
    groups=some_groups,
    roles=some_groups,
    names=globs,
    in_config=st.none() | names.map(frozenset),
    token_used_within_s=limits,
    callers=names,
)
exemptions = st.lists(
    st.builds(
        Exemption,
        id=st.just(1),
        user=st.sampled_from(PEOPLE),
        server=st.sampled_from([None, "", "x"]),
        until=days,
        actor=st.just("x"),
        why=st.just(""),
        made_at=st.just(NOW),
        ended_at=maybe_days,
    ),
    max_size=2,
).map(tuple)
uses = st.dictionaries(
    st.sampled_from(PEOPLE),
    st.builds(Use, active_at=maybe_days, stops=st.lists(days.map(lambda at: (at, at)), max_size=2).map(tuple)),
    max_size=3,
)
peoples = st.lists(accounts, max_size=6, unique_by=lambda account: account.name)
plain = st.fixed_dictionaries(
    {"criteria": criterias, "protection": protections, "exemptions": exemptions, "uses": uses}
)


def stale(people: list[Account], asked: dict[str, Any]) -> set[str]:
    return {verdict.account.name for verdict in judge(people, now=NOW, **asked) if verdict.stale}


def frozen(people: list[Account], asked: dict[str, Any], **more: Any) -> PrunePlan:
    kube = storage(("kubespawner.KubeSpawner",), {}, None)
    given = {
        "made_by": "ann",
        "life_s": 60.0,
        "cap": None,
        "users_total": 10,
        "storage": kube,
        "cautions": cautions(kube, asked["protection"], tokens_known=False),
        "lost": lost(kube, offline=False, rows=True, named_servers=True),
        "rows_known": True,
    }
    return freeze(judge(people, now=NOW, **asked), asked["criteria"], NOW, **given | more)


def protected(account: Account, asked: dict[str, Any]) -> bool:
    """The rules anew, from the words of the settings."""
    by: Protection = asked["protection"]
    used = account.token_used_at
    return (
        account.admin
        or account.name in (by.in_config or ())
        or account.name in by.callers
        or bool(set(by.groups) & set(account.groups or ()))
        or bool(set(by.roles) & set(account.roles or ()))
        or any(server.active or server.pending for server in account.servers)
        or any(
            one.user == account.name and one.until > NOW and (one.ended_at or one.until) > NOW
            for one in asked["exemptions"]
        )
        or bool(by.token_used_within_s and used and NOW - used < timedelta(seconds=by.token_used_within_s))
    )


@given(peoples, plain)
def test_a_protected_user_is_never_stale_nor_in_a_plan(people: list[Account], asked: dict[str, Any]) -> None:
    kept = {account.name for account in people if protected(account, asked)}
    assert not kept & stale(people, asked)
    assert not kept & {deletion.user for deletion in frozen(people, asked).deletions}


@given(peoples, plain, st.sampled_from(["inactive_for_s", "never_active_for_s"]), st.integers(1, 10**6))
def test_raising_a_limit_never_makes_more_users_stale(
    people: list[Account], asked: dict[str, Any], field: str, by_s: int
) -> None:
    limit_s = getattr(asked["criteria"], field)
    if limit_s:  # 0 is off, so anything above is more
        higher = replace(asked["criteria"], **{field: limit_s + by_s})
        assert stale(people, asked | {"criteria": higher}) <= stale(people, asked)


@given(peoples, plain, protections, exemptions)
def test_adding_a_protection_never_makes_more_users_stale(
    people: list[Account], asked: dict[str, Any], more: Protection, also: tuple[Exemption, ...]
) -> None:
    before = asked["protection"]
    both = Protection(
        before.groups + more.groups,
        before.roles + more.roles,
        before.names + more.names,
        in_config=(before.in_config or frozenset()) | (more.in_config or frozenset()),
        token_used_within_s=max(before.token_used_within_s, more.token_used_within_s),
        callers=before.callers + more.callers,
    )
    added = asked | {"protection": both, "exemptions": asked["exemptions"] + also}
    assert stale(people, added) <= stale(people, asked)


@given(peoples, plain, criterias)
def test_asking_for_more_at_once_never_makes_more_users_stale(
    people: list[Account], asked: dict[str, Any], more: StaleCriteria
) -> None:
    before = asked["criteria"]
    for field in ("groups", "roles", "names", "listed"):
        # A list without names is nobody, and none at all is everybody.
        if getattr(before, field) == (None if field == "listed" else ()):
            narrower = replace(before, **{field: getattr(more, field)})
            assert stale(people, asked | {"criteria": narrower}) <= stale(people, asked)


@given(peoples, plain)
def test_what_isnt_told_of_a_user_never_makes_them_stale_where_it_matters(
    people: list[Account], asked: dict[str, Any]
) -> None:
    blind = [replace(account, groups=None, roles=None) for account in people]
    matters = [
        *asked["protection"].groups,
        *asked["protection"].roles,
        *asked["criteria"].groups,
        *asked["criteria"].roles,
    ]
    if matters:
        assert not stale(blind, asked)


@given(peoples, plain, st.integers(1, 10**7))
def test_who_is_stale_stays_so_as_time_goes_by(people: list[Account], asked: dict[str, Any], later_s: int) -> None:
    later = NOW + timedelta(seconds=later_s)
    then = {verdict.account.name for verdict in judge(people, now=later, **asked) if verdict.stale}
    assert stale(people, asked) <= then


@given(peoples, plain)
def test_every_user_has_a_verdict_with_a_reason_that_fits_it(people: list[Account], asked: dict[str, Any]) -> None:
    verdicts = judge(people, now=NOW, **asked)
    assert [verdict.account.name for verdict in verdicts] == sorted(account.name for account in people)
    for verdict in verdicts:
        assert verdict.stale is (verdict.reason in {PruneReason.INACTIVE, PruneReason.NEVER_ACTIVE})
        assert len(set(verdict.reasons)) == len(verdict.reasons)
        if verdict.stale:
            assert verdict.due_at is not None
            assert verdict.due_at <= NOW


@given(peoples, plain, peoples, plain)
def test_only_who_is_stale_by_now_passes_the_second_look(
    people: list[Account], asked: dict[str, Any], others: list[Account], then: dict[str, Any]
) -> None:
    """Whatever has changed between plan and look: the user, protections, exemptions, what the journal tells."""
    again = {account.name: account for account in others}
    now_asked = then | {"criteria": asked["criteria"]}
    may_go = stale(others, now_asked)
    for deletion in frozen(people, asked).deletions:
        account, use = again.get(deletion.user), then["uses"].get(deletion.user)
        why = second_look(deletion, account, asked["criteria"], then["protection"], then["exemptions"], use, NOW)
        if why is None:
            assert account is not None
            assert deletion.user in may_go
            assert account.last_activity == deletion.last_activity
            assert None in {account.id, deletion.id} or account.id == deletion.id


@given(peoples, plain)
def test_nobody_who_is_unchanged_fails_the_second_look(people: list[Account], asked: dict[str, Any]) -> None:
    by_name = {account.name: account for account in people}
    for deletion in frozen(people, asked).deletions:
        use = asked["uses"].get(deletion.user)
        rules = (asked["criteria"], asked["protection"], asked["exemptions"])
        assert second_look(deletion, by_name[deletion.user], *rules, use, NOW) is None


@given(peoples, plain, st.randoms(use_true_random=False), st.none() | st.integers(0, 4))
def test_a_plan_is_the_same_however_its_users_were_read(
    people: list[Account], asked: dict[str, Any], chance: Any, cap: int | None
) -> None:
    shuffled = list(people)
    chance.shuffle(shuffled)
    assert frozen(shuffled, asked, cap=cap) == frozen(people, asked, cap=cap)


counts = st.builds(ORMCounts, *[st.integers(0, 3) for _ in fields(ORMCounts)])


@given(peoples, plain, st.none() | counts, st.booleans(), st.none() | st.floats(0, 1e6))
def test_a_plan_is_the_same_after_it_was_a_file(
    people: list[Account], asked: dict[str, Any], housekeeping: ORMCounts | None, rows: bool, startup_s: float | None
) -> None:
    try:
        asked = asked | {"criteria": checked(asked["criteria"])}
    except ConfigError:
        reject()
    plan = frozen(people, asked, housekeeping=housekeeping, rows_known=rows, startup_s=startup_s)
    assert from_dict(json.loads(json.dumps(to_dict(plan)))) == plan


def changed(value: Any, chance: Any) -> Any:
    """``value`` with something in it changed, as by hand."""
    if isinstance(value, dict) and value:
        key = chance.choice(sorted(value))
        return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        index = chance.randrange(len(value))
        return [
            *value[:index],
            *([changed(value[index], chance)] if chance.random() < 0.7 else []),
            *value[index + 1 :],
        ]
    others = [None, "", "2026-03-05T12:00:00+00:00", 17, -1, 0.5, [], ["x"], {}, {"x": 1}, "ann"]
    return chance.choice([other for other in others if other != value])


STALE = StaleCriteria(86400.0, 86400.0)
OLD = [
    Account("ann", False, NOW - timedelta(days=9), None, ("x",), (), (AccountServer("", False),), True, 1, None, 0, 1),
    Account("bob", False, NOW - timedelta(days=9), NOW - timedelta(days=8)),
    Account("zoe", False, NOW, NOW),
]


@given(st.randoms(use_true_random=False))
def test_a_plan_that_was_changed_anywhere_is_refused(chance: Any) -> None:
    asked = {"criteria": STALE, "protection": Protection(), "exemptions": (), "uses": {}}
    data = json.loads(json.dumps(to_dict(frozen(OLD, asked, housekeeping=ORMCounts()))))
    with pytest.raises(ValueError, match="make it again|make one"):
        from_dict(changed(data, chance))


@given(peoples, plain, st.data())
def test_no_two_plans_that_differ_in_a_deletion_have_one_digest(
    people: list[Account], asked: dict[str, Any], data: st.DataObject
) -> None:
    plan = frozen(people, asked)
    if plan.deletions:
        gone = data.draw(st.sampled_from(plan.deletions)).user
        rest = [account for account in people if account.name != gone]
        assert frozen(rest, asked).digest != plan.digest
