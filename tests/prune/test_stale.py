from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from builders import DAY_S, NOW, days_ago

from hubguard.errors import ConfigError
from hubguard.hub.nouns import Account, AccountServer, UndoServer, UndoUser
from hubguard.journal.model import Exemption
from hubguard.prune.decide.plan import freeze, from_dict, storage, to_dict
from hubguard.prune.decide.stale import EPOCH, checked, judge, second_look, since, undo_facts, unsaved
from hubguard.prune.model import Deletion, Protection, PruneReason, PruneVerdict, StaleCriteria, Use

HALF_A_YEAR = StaleCriteria(180 * DAY_S, 180 * DAY_S)
NOBODY = Protection()


ANN = Account(
    "ann",
    admin=False,
    created=days_ago(900),
    last_activity=days_ago(400),
    groups=("course",),
    roles=("user",),
    servers=(AccountServer("", active=False), AccountServer("gpu", active=False)),
    servers_whole=True,
    tokens=2,
    token_used_at=days_ago(300),
    shares=1,
    id=7,
)


def judged(
    account: Account,
    criteria: StaleCriteria = HALF_A_YEAR,
    protection: Protection = NOBODY,
    exemptions: tuple[Exemption, ...] = (),
    use: Use | None = None,
    now: datetime = NOW,
) -> PruneVerdict:
    uses = {} if use is None else {account.name: use}
    (verdict,) = judge([account], criteria, protection, exemptions, uses, now)
    return verdict


def exemption(user: str = "ann", server: str | None = None, **more: Any) -> Exemption:
    given = {"until": days_ago(-1), "ended_at": None} | more
    return Exemption(1, user, server, actor="x", why="", made_at=days_ago(2), **given)


# -- who is stale ---------------------------------------------------------------------------------------------------------


def test_who_was_last_active_longer_ago_than_the_limit_is_stale() -> None:
    verdict = judged(ANN)
    assert (verdict.stale, verdict.reasons) == (True, (PruneReason.INACTIVE,))
    assert verdict.idle_since == days_ago(400)
    assert verdict.due_at == days_ago(220)


def test_the_limit_is_reached_at_its_very_second_and_not_before() -> None:
    at_it, before = replace(ANN, last_activity=days_ago(180)), replace(ANN, last_activity=days_ago(180, -1))
    assert judged(at_it).stale
    assert judged(before).reasons == (PruneReason.ACTIVE,)


def test_who_was_never_active_is_stale_by_their_creation_and_by_the_other_limit() -> None:
    never = replace(ANN, last_activity=None)
    verdict = judged(never, StaleCriteria(never_active_for_s=365 * DAY_S))
    assert verdict.reasons == (PruneReason.NEVER_ACTIVE,)
    assert (verdict.idle_since, verdict.due_at) == (days_ago(900), days_ago(535))
    assert judged(replace(never, created=days_ago(364)), StaleCriteria(never_active_for_s=365 * DAY_S)).reasons == (
        PruneReason.ACTIVE,
    )


def test_a_limit_that_is_off_asks_for_nobody_of_its_kind() -> None:
    assert judged(ANN, StaleCriteria(never_active_for_s=1)).reasons == (PruneReason.NOT_ASKED_FOR,)
    assert judged(replace(ANN, last_activity=None), StaleCriteria(inactive_for_s=1)).reasons == (
        PruneReason.NOT_ASKED_FOR,
    )
    assert not judged(ANN, StaleCriteria()).stale


@pytest.mark.parametrize("limit_s", [float("nan"), -1.0, float("inf")])
def test_a_limit_that_makes_no_sense_makes_nobody_stale(limit_s: float) -> None:
    assert not judged(ANN, StaleCriteria(limit_s, limit_s)).stale
    assert not judged(replace(ANN, last_activity=None), StaleCriteria(limit_s, limit_s)).stale


def test_who_has_neither_activity_nor_creation_is_kept() -> None:
    verdict = judged(replace(ANN, created=None, last_activity=None))
    assert verdict.reasons == (PruneReason.NO_TIMES,)
    assert (verdict.idle_since, verdict.due_at) == (None, None)


def test_an_activity_from_before_the_creation_counts_from_the_creation() -> None:
    """Whoever was deleted and made anew isn't stale by what an older record has."""
    assert judged(replace(ANN, created=days_ago(10))).idle_since == days_ago(10)
    assert not judged(replace(ANN, created=days_ago(10))).stale


def test_times_ahead_of_ours_make_a_user_look_active() -> None:
    for account in (
        replace(ANN, last_activity=days_ago(-400)),
        replace(ANN, last_activity=None, created=datetime.max.replace(tzinfo=timezone.utc)),
        replace(ANN, created=days_ago(-1)),
    ):
        assert judged(account).reasons == (PruneReason.ACTIVE,)


# -- real activity --------------------------------------------------------------------------------------------------------


def stopped(at: datetime, active_at: datetime | None) -> Use:
    return Use(active_at, ((at - timedelta(seconds=30), at),))


def test_a_stop_of_our_own_isnt_use() -> None:
    verdict = judged(replace(ANN, last_activity=days_ago(20)), use=stopped(days_ago(20), days_ago(200)))
    assert verdict.reasons == (PruneReason.INACTIVE,)
    assert verdict.idle_since == days_ago(200)


@pytest.mark.parametrize(("off_s", "stale"), [(-2, True), (2, True), (3, False), (-33, False), (-31, True)])
def test_a_hub_stamps_a_stop_up_to_two_seconds_before_it_or_after(off_s: float, stale: bool) -> None:
    stamped = replace(ANN, last_activity=days_ago(20) + timedelta(seconds=off_s))
    assert judged(stamped, use=stopped(days_ago(20), days_ago(200))).stale is stale


def test_a_stop_of_our_own_counts_as_use_where_no_use_before_it_is_on_record() -> None:
    """A server was started before it, and when is anybody's guess."""
    assert not judged(replace(ANN, last_activity=days_ago(20)), use=stopped(days_ago(20), None)).stale


def test_use_that_the_journal_has_seen_counts_where_the_hub_has_an_older_time_or_none() -> None:
    seen = Use(days_ago(30))
    assert judged(ANN, use=seen).idle_since == days_ago(30)
    assert judged(ANN, use=seen).reasons == (PruneReason.ACTIVE,)
    assert judged(replace(ANN, last_activity=None), use=seen).idle_since == days_ago(30)
    assert judged(replace(ANN, last_activity=None), use=Use(days_ago(300))).reasons == (PruneReason.INACTIVE,)
    assert judged(ANN, use=Use(days_ago(800))).idle_since == days_ago(400)


# -- who is kept ----------------------------------------------------------------------------------------------------------

PROTECTED: list[tuple[PruneReason, dict[str, Any], dict[str, Any]]] = [
    (PruneReason.ADMIN, {"admin": True}, {}),
    (PruneReason.ADMIN, {"roles": ("admin", "user")}, {}),
    (PruneReason.IN_CONFIG, {}, {"in_config": frozenset({"ann"})}),
    (PruneReason.PROTECTED_GROUP, {}, {"groups": ("staff", "course")}),
    (PruneReason.PROTECTED_ROLE, {}, {"roles": ("user",)}),
    (PruneReason.PROTECTED_NAME, {}, {"names": ("zoe", "a*")}),
    (PruneReason.SERVER_ACTIVE, {"servers": (AccountServer("", active=False), AccountServer("x", active=True))}, {}),
    (PruneReason.SERVER_ACTIVE, {"servers": (AccountServer("", active=False, pending="stop"),)}, {}),
    (PruneReason.TOKEN_USED, {"token_used_at": days_ago(29)}, {"token_used_within_s": 30 * DAY_S}),
    (PruneReason.TOKEN_USED, {"token_used_at": days_ago(-5)}, {"token_used_within_s": 30 * DAY_S}),
    (PruneReason.CALLER, {}, {"callers": ("bob", "ann")}),
    (PruneReason.CANT_TELL, {"groups": None}, {"groups": ("staff",)}),
    (PruneReason.CANT_TELL, {"roles": None}, {"roles": ("staff",)}),
]


@pytest.mark.parametrize(("reason", "account", "protection"), PROTECTED)
def test_who_is_protected_is_kept_stale_or_not(
    reason: PruneReason, account: dict[str, Any], protection: dict[str, Any]
) -> None:
    user, kept_by = replace(ANN, **account), Protection(**protection)
    assert judged(user, protection=kept_by).reasons == (reason,)
    active = judged(replace(user, last_activity=days_ago(1)), protection=kept_by)
    assert active.reasons == (reason, PruneReason.ACTIVE)
    assert active.due_at == days_ago(-179)


def test_all_reasons_are_told_the_most_telling_first() -> None:
    everything = replace(
        ANN,
        admin=True,
        last_activity=days_ago(1),
        token_used_at=days_ago(1),
        roles=None,
        servers=(AccountServer("", active=True),),
    )
    verdict = judged(
        everything,
        replace(HALF_A_YEAR, names=("z*",)),
        Protection(
            ("course",),
            ("staff",),
            ("ann",),
            in_config=frozenset({"ann"}),
            token_used_within_s=30 * DAY_S,
            callers=("ann",),
        ),
        (exemption(),),
    )
    assert verdict.reasons == (
        PruneReason.ADMIN,
        PruneReason.IN_CONFIG,
        PruneReason.PROTECTED_GROUP,
        PruneReason.PROTECTED_NAME,
        PruneReason.EXEMPTION,
        PruneReason.SERVER_ACTIVE,
        PruneReason.TOKEN_USED,
        PruneReason.CALLER,
        PruneReason.CANT_TELL,
        PruneReason.ACTIVE,
        PruneReason.NOT_ASKED_FOR,
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (exemption(), True),
        (exemption(server="gpu"), True),
        (exemption(server=""), True),
        (exemption(server="another"), True),  # it may be made again under that name
        (exemption(user="Ann"), False),
        (exemption(until=NOW), False),
        (exemption(ended_at=days_ago(1)), False),
        (exemption(ended_at=days_ago(-1)), True),
    ],
)
def test_an_exemption_of_a_user_or_any_server_of_theirs_keeps_them_until_it_is_over(
    given: Exemption, kept: bool
) -> None:
    assert judged(ANN, exemptions=(given,)).stale is not kept


def test_a_token_keeps_nobody_that_wasnt_used_lately_or_of_which_nothing_is_told() -> None:
    within = Protection(token_used_within_s=30 * DAY_S)
    assert judged(replace(ANN, token_used_at=days_ago(30)), protection=within).stale
    assert not judged(replace(ANN, token_used_at=days_ago(0)), protection=Protection(token_used_within_s=1.0)).stale
    assert judged(replace(ANN, token_used_at=None, tokens=None), protection=within).stale
    assert judged(replace(ANN, token_used_at=days_ago(1)), protection=Protection()).stale


def test_names_are_compared_as_they_are_and_globs_match_the_whole_of_one() -> None:
    for name in ("Ann", "joann", "ann2", "ann\n"):
        assert judged(replace(ANN, name=name), protection=Protection(names=("ann", "a.n"))).stale
    for name, glob in (("a/b?c#%", "a/b[?]c*"), ("żółć", "?ółć"), ("guest-1\n", "guest-*")):
        kept = judged(replace(ANN, name=name), protection=Protection(names=("other", glob)))
        assert kept.reasons == (PruneReason.PROTECTED_NAME,)


# -- who is asked for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"groups": ("course", "x")}, True),
        ({"groups": ("x",)}, False),
        ({"roles": ("user",)}, True),
        ({"roles": ("server",)}, False),
        ({"names": ("x", "a?n")}, True),
        ({"names": ("b*",)}, False),
        ({"listed": ("ann", "bob")}, True),
        ({"listed": ("a*",)}, False),
        ({"listed": ()}, False),
        ({"groups": ("course",), "names": ("b*",)}, False),
        ({"groups": ("course",), "roles": ("user",), "names": ("ann",), "listed": ("ann",)}, True),
    ],
)
def test_only_who_fits_all_that_is_set_is_meant(asked: dict[str, Any], meant: bool) -> None:
    verdict = judged(ANN, replace(HALF_A_YEAR, **asked))
    assert verdict.stale is meant
    assert verdict.reason is (PruneReason.INACTIVE if meant else PruneReason.NOT_ASKED_FOR)


def test_who_may_be_of_an_asked_group_but_cant_be_told_to_be_is_kept() -> None:
    for asked in ({"groups": ("course",)}, {"roles": ("user",)}):
        unknown = replace(ANN, groups=None, roles=None)
        assert judged(unknown, replace(HALF_A_YEAR, **asked)).reasons == (PruneReason.CANT_TELL,)
    assert judged(replace(ANN, groups=None, roles=None)).stale


def test_verdicts_come_in_name_order_and_one_a_user() -> None:
    """Pages of the hub's list shift while users come and go, so one of them can be read twice."""
    active = replace(ANN, last_activity=days_ago(1))
    verdicts = judge([replace(ANN, name="zoe"), ANN, active], HALF_A_YEAR, Protection(), (), {}, NOW)
    assert [(verdict.account.name, verdict.stale) for verdict in verdicts] == [("ann", False), ("zoe", True)]


# -- what may be asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"inactive_for_s": 0.0}, "inactive_for_s"),
        ({"inactive_for_s": -1.0}, "inactive_for_s"),
        ({"inactive_for_s": float("nan")}, "inactive_for_s"),
        ({"inactive_for_s": True}, "inactive_for_s"),
        ({"inactive_for_s": "180d"}, "inactive_for_s"),
        ({"never_active_for_s": float("inf")}, "never_active_for_s"),
        ({"never_active_for_s": 1e12}, "never_active_for_s"),
        ({"groups": ("",)}, "groups"),
        ({"groups": "course"}, "groups"),
        ({"roles": (1,)}, "roles"),
        ({"names": ("a*", "  ")}, "names"),
        ({"listed": ("",)}, "listed"),
        ({"listed": "ann"}, "listed"),
    ],
)
def test_what_makes_no_sense_is_refused_naming_the_field(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(replace(StaleCriteria(inactive_for_s=1.0), **wrong))
    assert refused.value.setting == field


def test_checked_criteria_are_in_order_and_without_doubles() -> None:
    asked = StaleCriteria(1, names=("b", "a", "b"), groups=("y", "x"), listed=("z", "z", "a"))
    assert checked(asked) == StaleCriteria(1.0, names=("a", "b"), groups=("x", "y"), listed=("a", "z"))
    assert checked(StaleCriteria(1, listed=())).listed == ()
    assert checked(checked(asked)) == checked(asked)


def test_who_was_active_since_needs_no_reading() -> None:
    assert since(HALF_A_YEAR, NOW) == days_ago(180)
    assert since(StaleCriteria(never_active_for_s=1), NOW) == EPOCH


# -- the second look ------------------------------------------------------------------------------------------------------


def deletion(account: Account = ANN, criteria: StaleCriteria = HALF_A_YEAR) -> Deletion:
    plan = freeze(
        judge([account], criteria, Protection(), (), {}, NOW),
        criteria,
        NOW,
        made_by="x",
        life_s=60,
        cap=None,
        users_total=1,
        storage=storage((), {}, None),
        cautions=(),
        lost=(),
    )
    return plan.deletions[0]


def look(account: Account | None, use: Use | None = None, now: datetime = NOW, **more: Any) -> str | None:
    asked = {"criteria": HALF_A_YEAR, "protection": Protection(), "exemptions": ()} | more
    return second_look(deletion(), account, use=use, now=now, **asked)


def test_who_is_as_planned_is_still_to_be_deleted() -> None:
    assert look(ANN) is None
    assert look(ANN, now=days_ago(-1)) is None


def undone(**more: Any) -> UndoUser:
    rows = {
        "users": ({"id": 7, "name": "ann"},),
        # The second one is somebody else's, given out by a server of hers.
        "api_tokens": ({"id": 1, "user_id": 7}, {"id": 2, "user_id": 8}),
        "shares": ({"owner_id": 7, "user_id": 8}, {"owner_id": 8, "user_id": 7}, {"owner_id": 8, "user_id": 9}),
    }
    return replace(UndoUser("ann", ("g",), ("user",), (UndoServer(""), UndoServer("lab")), rows), **more)


def test_what_the_undo_file_has_is_no_reason_to_keep_a_user_nor_is_what_is_gone_since() -> None:
    undo = undo_facts(undone())
    assert (undo.tokens, undo.shares) == (1, 2)
    servers = (AccountServer("", False), AccountServer("lab", False))
    has = replace(ANN, groups=("g",), roles=("user",), servers=servers, tokens=1, shares=2)
    assert unsaved(has, undo) is None
    assert unsaved(replace(has, groups=(), roles=(), servers=(), tokens=0, shares=0), undo) is None
    assert unsaved(replace(has, groups=None, roles=None, tokens=None, shares=None), undo) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": ("a", "g", "z")}, "the group a, the group z"),
        ({"roles": ("user", "grader")}, "the role grader"),
        ({"servers": (AccountServer("gpu", False),)}, "the server gpu"),
        ({"tokens": 2}, "1 more token"),
        ({"shares": 5, "groups": ("h",)}, "the group h, 3 more shares"),
    ],
)
def test_what_has_come_since_the_undo_file_was_written_keeps_a_user(change: dict[str, Any], told: str) -> None:
    has = replace(ANN, groups=("g",), servers=(), tokens=1, shares=2)
    assert unsaved(replace(has, **change), undo_facts(undone())) == f"changed since the undo file was written: {told}"


def test_a_default_server_for_which_reading_the_user_has_made_a_row_keeps_nobody() -> None:
    """As on a real hub: nobody who had never started a server was deleted, since the second look itself had made the row."""
    undo = undo_facts(undone(servers=()))
    has = replace(ANN, groups=("g",), servers=(AccountServer("", active=False),), tokens=1)
    assert unsaved(has, undo) is None
    runs = replace(has, servers=(AccountServer("", active=True),))
    assert unsaved(runs, undo) == "changed since the undo file was written: the server (default)"


def test_without_rows_in_the_undo_file_numbers_of_tokens_and_shares_say_nothing() -> None:
    for rows in (None, {}):
        undo = undo_facts(undone(rows=rows))
        assert unsaved(replace(ANN, groups=("g",), servers=(), tokens=9, shares=9), undo) is None
        assert unsaved(replace(ANN, groups=("g",)), undo) == "changed since the undo file was written: the server gpu"


def test_times_that_another_source_rounds_are_the_same() -> None:
    rounded = replace(ANN, created=days_ago(900, -0.7), last_activity=days_ago(400, -0.7))
    assert look(rounded) is None
    assert look(replace(ANN, created=days_ago(900, 0.7), last_activity=days_ago(400, 0.7))) is None


def test_who_is_there_no_more_isnt_deleted() -> None:
    assert look(None) == "there is no such user any more"
    assert look(replace(ANN, name="Ann")) == "there is no such user any more"


@pytest.mark.parametrize(
    "anew",
    [
        {"id": 8},
        {"created": days_ago(1)},
        {"created": days_ago(900, 1.1)},
        {"id": None, "created": days_ago(1)},
        {"created": days_ago(1), "last_activity": None},
        {"created": None, "last_activity": None},
    ],
)
def test_who_was_made_anew_isnt_deleted(anew: dict[str, Any]) -> None:
    """SQLite gives the id of the newest user, once deleted, to the next one."""
    assert look(replace(ANN, **anew)) == "the user was deleted and created again in the meantime"


def test_who_was_active_after_the_plan_isnt_deleted_however_long_ago_that_is() -> None:
    criteria = StaleCriteria(inactive_for_s=1)
    later = replace(ANN, last_activity=days_ago(400, -1.1))
    assert look(later, criteria=criteria) == "the user was active in the meantime"
    assert look(ANN, use=Use(days_ago(1))) == "the user was active in the meantime"
    never = replace(ANN, last_activity=None)
    assert second_look(
        deletion(never), replace(never, last_activity=days_ago(399)), criteria, Protection(), (), None, NOW
    )


def test_who_has_an_older_activity_than_was_planned_with_isnt_deleted() -> None:
    """The hub's database isn't the one that was read, or was put back to an older state."""
    assert (
        look(replace(ANN, last_activity=days_ago(500))) == "the hub's record of the user's activity isn't what it was"
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"admin": True}, "the user is an admin"),
        ({"roles": ("admin",)}, "the user is an admin"),
        ({"servers": (AccountServer("new", active=True),)}, "a server of the user's runs or is pending"),
        ({"servers": (AccountServer("", active=False, pending="spawn"),)}, "a server of the user's runs or is pending"),
        ({"groups": ("course", "staff")}, "the user is in a protected group"),
        (
            {"groups": None},
            "the user's groups, roles or creation are unknown, and the criteria or protections need them",
        ),
        ({"token_used_at": days_ago(1)}, "one of the user's tokens was used recently"),
    ],
)
def test_who_is_protected_by_now_isnt_deleted(changed: dict[str, Any], why: str) -> None:
    by = Protection(groups=("staff",), token_used_within_s=30 * DAY_S)
    assert look(ANN, protection=by) is None
    assert look(replace(ANN, **changed), protection=by) == why


def test_who_was_exempted_or_named_in_the_config_since_isnt_deleted() -> None:
    assert (
        look(ANN, exemptions=(exemption(server="gpu"),)) == "somebody has asked to keep the user or a server of theirs"
    )
    assert look(ANN, protection=Protection(in_config=frozenset({"ann"}))) == "the hub's config names the user"


def test_who_has_left_the_group_that_was_asked_for_isnt_deleted() -> None:
    asked = replace(HALF_A_YEAR, groups=("course",))
    assert look(replace(ANN, groups=()), criteria=asked) == "the user is no longer among those that were asked for"


def test_servers_that_came_and_went_make_no_difference() -> None:
    assert look(replace(ANN, servers=(AccountServer("another", active=False),))) is None


def test_a_time_that_is_off_by_a_second_is_the_same_and_by_more_it_is_not() -> None:
    last = ANN.last_activity
    assert last is not None
    for off_s in (-1.0, 1.0):
        assert look(replace(ANN, last_activity=last + timedelta(seconds=off_s))) is None
        assert look(replace(ANN, last_activity=last + timedelta(seconds=1.001 * off_s))) is not None
    assert ANN.created is not None
    for off_s in (-1.0, 1.0):
        assert look(replace(ANN, created=ANN.created + timedelta(seconds=off_s))) is None
        assert look(replace(ANN, created=ANN.created + timedelta(seconds=1.001 * off_s))) is not None


@pytest.mark.parametrize(
    ("criteria", "matches"),
    [
        ({"not_groups": ("course",)}, False),
        ({"not_groups": ("staff", "other")}, True),
        ({"not_roles": ("user",)}, False),
        ({"not_roles": ("grader",)}, True),
        ({"created_before": days_ago(900)}, False),
        ({"created_before": days_ago(900, -1)}, True),
        ({"created_after": days_ago(900)}, True),
        ({"created_after": days_ago(900, -1)}, False),
        ({"created_after": days_ago(901), "created_before": days_ago(899)}, True),
    ],
)
def test_who_is_left_out_by_group_role_or_creation_isnt_asked_for(criteria: dict[str, Any], matches: bool) -> None:
    verdict = judged(ANN, replace(HALF_A_YEAR, **criteria))
    assert verdict.stale is matches
    assert verdict.reasons == ((PruneReason.INACTIVE,) if matches else (PruneReason.NOT_ASKED_FOR,))


@pytest.mark.parametrize(
    ("unknown", "criteria"),
    [
        ("groups", {"not_groups": ("a",)}),
        ("roles", {"not_roles": ("a",)}),
        ("created", {"created_before": NOW}),
        ("created", {"created_after": days_ago(5000)}),
    ],
)
def test_what_a_criterion_needs_and_nobody_tells_keeps_a_user(unknown: str, criteria: dict[str, Any]) -> None:
    ann = replace(ANN, **{unknown: None})
    assert judged(ann, replace(HALF_A_YEAR, **criteria)).reason is PruneReason.CANT_TELL
    assert judged(ann).stale


def test_nobody_is_created_both_before_and_after() -> None:
    assert checked(replace(HALF_A_YEAR, created_before=NOW, created_after=days_ago(1))).created_before == NOW
    with pytest.raises(ConfigError, match="created_after"):
        checked(replace(HALF_A_YEAR, created_before=NOW, created_after=NOW))


@pytest.mark.parametrize(
    "more",
    [{"not_groups": ("a",)}, {"not_roles": ("a",)}, {"created_before": NOW}, {"created_after": NOW}],
)
def test_every_criterion_is_in_a_plans_digest_and_comes_back_from_its_file(more: dict[str, Any]) -> None:
    def plan(criteria: StaleCriteria) -> Any:
        verdicts = judge([ANN], HALF_A_YEAR, NOBODY, (), {}, NOW)
        kept = storage(("a.B",), {}, False)
        return freeze(
            verdicts,
            criteria,
            NOW,
            made_by="x",
            life_s=60.0,
            cap=None,
            users_total=1,
            storage=kept,
            cautions=(),
            lost=(),
        )

    made = plan(replace(HALF_A_YEAR, **more))
    assert made.digest != plan(HALF_A_YEAR).digest
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made
