from __future__ import annotations

import copy
import json
import os
import subprocess
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jupyterhub.spawner
import pytest
from builders import NOW

from hubguard.hub.nouns import Account, AccountServer, ORMCounts
from hubguard.prune.decide.plan import (
    OFFLINE_STORAGE,
    cautions,
    chosen,
    freeze,
    from_dict,
    held,
    lost,
    protected,
    refusal,
    storage,
    to_dict,
)
from hubguard.prune.decide.stale import judge
from hubguard.prune.model import (
    Caution,
    PlanProtection,
    Protection,
    PrunePlan,
    PruneReason,
    StaleCriteria,
    Storage,
    StorageFate,
)
from hubguard.prune.review import HubConfigFacts

pytestmark = pytest.mark.contract

ASKED = StaleCriteria(86400.0, 86400.0, names=("*",))
KUBE = "kubespawner.KubeSpawner"
HUBS_OWN = "jupyterhub.spawner.Spawner"


def user(name: str, idle_days: float = 10, **more: Any) -> Account:
    at = NOW - timedelta(days=idle_days)
    told: dict[str, Any] = {
        "admin": False,
        "groups": ("a", "b"),
        "roles": ("user",),
        "servers": (AccountServer("", active=False), AccountServer("x", active=False)),
        "servers_whole": True,
        "tokens": 3,
        "shares": 1,
    }
    return Account(name, created=NOW - timedelta(days=99), last_activity=at, **told | more)


def planned(*accounts: Account, **more: Any) -> PrunePlan:
    given: dict[str, Any] = {
        "made_by": "ann",
        "life_s": 3600.0,
        "cap": None,
        "users_total": len(accounts),
        "storage": storage((KUBE,), {}, None),
        "cautions": (Caution("KubeSpawner", "It deletes volumes."),),
        "lost": ("Tokens.",),
        "rows_known": True,
    }
    return freeze(judge(accounts, ASKED, Protection(), (), {}, NOW), ASKED, NOW, **given | more)


# -- freezing -------------------------------------------------------------------------------------------------------------


def test_a_plan_has_the_stale_in_name_order_and_counts_who_is_kept_by_first_reason() -> None:
    plan = planned(user("zoe"), user("bob", 0.5), user("ann"), user("adm", admin=True), user("adm2", 0.5, admin=True))
    assert [deletion.user for deletion in plan.deletions] == ["ann", "zoe"]
    assert plan.kept == {PruneReason.ACTIVE: 1, PruneReason.ADMIN: 2}
    assert (plan.made_at, plan.expires_at, plan.left_out) == (NOW, NOW + timedelta(hours=1), 0)


def test_a_deletion_has_the_reading_it_rests_on_and_all_that_goes() -> None:
    (deletion,) = planned(user("ann", id=7)).deletions
    assert deletion.created == NOW - timedelta(days=99)
    assert deletion.last_activity == deletion.idle_since == NOW - timedelta(days=10)
    assert (deletion.id, deletion.servers, deletion.groups, deletion.roles) == (7, ("", "x"), ("a", "b"), ("user",))
    assert (deletion.tokens, deletion.shares, deletion.reason) == (3, 1, PruneReason.INACTIVE)


def test_servers_that_arent_all_told_are_told_as_unknown() -> None:
    (deletion,) = planned(user("ann", servers=(), servers_whole=False)).deletions
    assert deletion.servers is None


def test_a_capped_plan_has_who_is_idle_for_longest_and_says_how_many_are_left() -> None:
    people = [user("a", 5), user("b", 30), user("c", 20), user("d", 20)]
    plan = planned(*people, cap=2)
    assert [deletion.user for deletion in plan.deletions] == ["b", "c"]
    assert plan.left_out == 2
    assert plan.gain.users_after == 2
    assert planned(*people, cap=0).deletions == ()


def test_the_gain_is_in_pages_of_200_and_in_rows_by_table() -> None:
    gain = planned(user("ann"), user("bob"), user("new", 0.5), users_total=402).gain
    assert (gain.users_before, gain.users_after, gain.pages_before, gain.pages_after) == (402, 400, 3, 2)
    assert gain.rows == {
        "users": 2,
        "spawners": 4,
        "api_tokens": 6,
        "user_group_map": 4,
    }
    assert gain.startup_s is None


def test_rows_of_a_table_of_which_one_user_doesnt_tell_arent_made_up() -> None:
    gain = planned(user("ann"), user("bob", tokens=None, groups=None)).gain
    assert gain.rows is not None
    assert set(gain.rows) == {"users", "spawners"}
    assert planned(user("ann"), rows_known=False).gain.rows is None


@pytest.mark.parametrize(
    "more",
    [
        {"life_s": 3601.0},
        {"made_by": "bob"},
        {"users_total": 3},
        {"cap": 1},
        {"cautions": ()},
        {"lost": ()},
        {"offline": True},
        {"database": "sqlite"},
        {"revision": "x"},
        {"housekeeping": ORMCounts()},
        {"startup_s": 1.0},
        {"storage": OFFLINE_STORAGE},
        {"protection": Protection(groups=("staff",))},
        {"protection": Protection(token_used_within_s=1.0)},
    ],
)
def test_the_digest_is_of_all_that_a_plan_says(more: dict[str, Any]) -> None:
    people = (user("ann"), user("bob"))
    assert planned(*people).digest == planned(*people).digest
    assert planned(*people, **more).digest != planned(*people).digest


def test_a_plan_keeps_what_kept_users_when_it_was_made_beside_what_does_now() -> None:
    then = Protection(("staff", "z"), ("r",), ("a*",), 60.0, in_config=frozenset({"ann"}), callers=("bob",))
    plan = planned(user("ann"), protection=then)
    assert plan.protection == PlanProtection(("staff", "z"), ("r",), ("a*",), 60.0)
    assert from_dict(as_file(plan)) == plan
    now = Protection(("b",), (), ("x",), 5.0, in_config=frozenset({"cleo"}), callers=("dan",))
    assert protected(plan, now) == Protection(
        ("b", "staff", "z"), ("r",), ("a*", "x"), 60.0, in_config=frozenset({"cleo"}), callers=("dan",)
    )
    assert protected(planned(user("ann")), now) == now


# -- as a file ------------------------------------------------------------------------------------------------------------


def as_file(plan: PrunePlan) -> Any:
    return json.loads(json.dumps(to_dict(plan)))


def test_a_plan_is_read_as_it_was_written() -> None:
    odd = [user(name, id=n) for n, name in enumerate(("a/b?c#%", "żółć", "\ud800", "=1+1", " x "))]
    never = replace(user("never"), last_activity=None, tokens=None)
    plan = planned(*odd, never, housekeeping=ORMCounts(1, 2, 3, 4, 5, 6), startup_s=2)
    assert from_dict(as_file(plan)) == plan
    assert as_file(plan)["count"] == 6
    assert as_file(plan)["reasons"] == {"inactive": 5, "never-active": 1}


@pytest.mark.parametrize(
    "path",
    [
        ("expires_at",),
        ("made_by",),
        ("kept", "active"),
        ("gain", "users_before"),
        ("criteria", "inactive_for_s"),
        ("deletions", 0, "user"),
        ("deletions", 0, "last_activity"),
        ("deletions", 0, "created"),
        ("cautions", 0, "name"),
        ("storage", "why"),
        ("digest",),
        ("count",),
    ],
)
def test_a_plan_that_was_changed_by_hand_is_refused(path: tuple[str | int, ...]) -> None:
    data = as_file(planned(user("ann"), user("new", 0.5)))
    part = data
    for step in path[:-1]:
        part = part[step]
    value = part[path[-1]]
    part[path[-1]] = value + 1 if isinstance(value, (int, float)) else f"2027{value[4:]}x"[: len(value)]
    with pytest.raises(ValueError, match="plan") as refused:
        from_dict(data)
    assert "\n" not in str(refused.value)


def test_a_plan_with_a_deletion_more_less_or_twice_is_refused() -> None:
    data = as_file(planned(user("ann"), user("bob")))
    other = as_file(planned(user("adm")))["deletions"]
    for deletions in (data["deletions"] + other, data["deletions"][:1], data["deletions"][:1] * 2, []):
        with pytest.raises(ValueError, match="make it again"):
            from_dict({**copy.deepcopy(data), "deletions": deletions})


@pytest.mark.parametrize("data", [None, [], "x", {}, {"format": "hubguard-undo"}, 3])
def test_what_is_no_plan_is_told_from_one(data: object) -> None:
    with pytest.raises(ValueError, match=r"^this isn't a HubGuard plan"):
        from_dict(data)


def test_a_plan_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(ValueError, match="version 2"):
        from_dict({**as_file(planned(user("ann"))), "version": 2})


def test_a_plan_that_asks_for_no_limit_is_no_plan() -> None:
    """Else a forged one, its digest made anew, would make everybody stale."""
    everybody = planned(user("ann"), cap=0)
    with pytest.raises(ValueError, match="inactive_for_s"):
        from_dict(to_dict(replace(everybody, criteria=StaleCriteria())))


def test_a_plan_with_somebody_twice_or_out_of_order_is_no_plan() -> None:
    """Whatever its digest: a count that is typed wouldn't be the number of users."""
    plan = planned(user("ann"), user("bob"))
    for deletions in (plan.deletions[::-1], (plan.deletions[0], *plan.deletions)):
        with pytest.raises(ValueError, match="aren't in order, or one is in it twice"):
            from_dict(to_dict(replace(plan, deletions=deletions)))


# -- storage --------------------------------------------------------------------------------------------------------------


def test_a_kind_of_kubespawner_without_code_of_its_own_for_deletions_keeps_volumes_as_that_does() -> None:
    kept = {"delete_pvc": False}
    assert storage(("ours.Kube", KUBE, HUBS_OWN), kept, True, KUBE).fate is StorageFate.KEPT
    assert storage(("ours.Kube", KUBE, HUBS_OWN), kept, True, "ours.Kube").fate is StorageFate.MAY_BE_DELETED
    assert storage(("ours.Kube", KUBE, HUBS_OWN), {}, True, KUBE).fate is StorageFate.DELETED
    told = {"classes": ["ours.Kube", KUBE], "settings": kept, "overrides": True, "deleter": KUBE}
    assert HubConfigFacts.from_dict(told).deleter == KUBE


@pytest.mark.parametrize(
    ("classes", "settings", "overrides", "fate"),
    [
        ((), {}, None, StorageFate.UNKNOWN),
        ((), {}, False, StorageFate.UNKNOWN),
        ((KUBE, HUBS_OWN), {"delete_pvc": True}, True, StorageFate.DELETED),
        (("kubespawner.spawner.KubeSpawner",), {}, None, StorageFate.DELETED),
        ((KUBE,), {"delete_pvc": "no"}, True, StorageFate.DELETED),
        (("__main__.Ours", "kubespawner.spawner.KubeSpawner", HUBS_OWN), {}, True, StorageFate.DELETED),
        ((KUBE,), {"delete_pvc": False}, True, StorageFate.KEPT),
        (("__main__.Ours", KUBE), {"delete_pvc": False}, True, StorageFate.MAY_BE_DELETED),
        ((KUBE,), {}, False, StorageFate.KEPT),  # before 0.17
        (("ours.Spawner",), {}, True, StorageFate.MAY_BE_DELETED),
        (("ours.Spawner",), {}, None, StorageFate.MAY_BE_DELETED),
        (("ours.Spawner", HUBS_OWN), {}, False, StorageFate.KEPT),
        (("dockerspawner.DockerSpawner",), {}, None, StorageFate.KEPT),
        (("dockerspawner.dockerspawner.DockerSpawner",), {}, True, StorageFate.MAY_BE_DELETED),
        (("ours.Mine", "dockerspawner.DockerSpawner"), {}, None, StorageFate.MAY_BE_DELETED),
        (("ours.Mine", "dockerspawner.dockerspawner.DockerSpawner"), {}, False, StorageFate.KEPT),
        (("ours.DockerSpawner",), {}, None, StorageFate.MAY_BE_DELETED),
        (("jupyterhub.spawner.LocalProcessSpawner",), {}, None, StorageFate.KEPT),
        (("systemdspawner.SystemdSpawner",), {}, None, StorageFate.KEPT),
    ],
)
def test_storage_is_kept_only_where_that_is_known(
    classes: tuple[str, ...], settings: dict[str, object], overrides: bool | None, fate: StorageFate
) -> None:
    found = storage(classes, settings, overrides)
    assert found.fate is fate
    assert found.spawner == (classes[0].rpartition(".")[2] if classes else None)
    assert found.at_risk is (fate is not StorageFate.KEPT)
    assert found.why.endswith(".")


@pytest.mark.parametrize(
    ("template", "whose"),
    [
        ("claim-{user_server}", "all the user's servers"),
        ("claim-{username}--{servername}", "perhaps those of named ones"),
        ("claim-{safe_user_server}", "perhaps those of named ones"),
        ("claim-{username}", "the user's volume claim,"),
        ("claim-{userid}", "the user's volume claim,"),
        ("course-data", "everybody's"),
        (None, "the volume claims of the user"),
    ],
)
def test_it_is_said_whose_volumes_go(template: str | None, whose: str) -> None:
    assert whose in storage((KUBE,), {"pvc_name_template": template}, True).why


def test_what_stays_behind_is_named() -> None:
    assert "home folders" in storage(("jupyterhub.spawner.LocalProcessSpawner",), {}, False).why
    assert "containers" in storage(("x.Mine", "dockerspawner.dockerspawner.DockerSpawner"), {}, False).why
    assert "folders and volumes" in storage(("x.Mine",), {}, False).why


def test_the_hubs_own_spawners_delete_nothing() -> None:
    """What is said of them rests on that; they are checked in the hub that is here."""
    own = jupyterhub.spawner
    for kind in (own.LocalProcessSpawner, own.SimpleLocalProcessSpawner):
        assert kind.delete_forever is own.Spawner.delete_forever


@pytest.mark.parametrize(
    ("kind", "deletes"), [("kubespawner.KubeSpawner", True), ("dockerspawner.DockerSpawner", False)]
)
def test_the_spawners_whose_fate_is_known_are_as_they_were_read(kind: str, deletes: bool) -> None:
    package = kind.partition(".")[0]
    variable = f"HUBGUARD_TEST_{package.upper()}_PYTHON"
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    asked = (
        f"import {package}, jupyterhub.spawner as own; print({kind}.delete_forever is not own.Spawner.delete_forever)"
    )
    told = subprocess.run([os.environ[variable], "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == str(deletes)
    assert storage((kind,), {}, deletes).at_risk is deletes


# -- cautions and losses --------------------------------------------------------------------------------------------------

KNOWN = Protection(in_config=frozenset(), token_used_within_s=30.0)
KEEPING = storage(("jupyterhub.spawner.LocalProcessSpawner",), {}, False)


@pytest.mark.parametrize(
    ("at_risk", "protection", "tokens_known", "expected"),
    [
        (KEEPING, KNOWN, True, []),
        (OFFLINE_STORAGE, KNOWN, True, []),
        (storage((KUBE,), {}, None), KNOWN, True, ["KubeSpawner"]),
        (storage(("__main__.Ours", KUBE), {}, None), KNOWN, True, ["Ours"]),
        (storage((), {}, None), KNOWN, True, ["unknown-spawner"]),
        (KEEPING, replace(KNOWN, in_config=None), True, ["users-in-config-unknown"]),
        (KEEPING, KNOWN, False, ["tokens-unknown"]),
        (KEEPING, replace(KNOWN, token_used_within_s=0.0), False, []),
        (
            storage((), {}, None),
            Protection(token_used_within_s=1),
            False,
            ["unknown-spawner", "users-in-config-unknown", "tokens-unknown"],
        ),
    ],
)
def test_what_cant_be_excluded_must_be_acknowledged(
    at_risk: Storage, protection: Protection, tokens_known: bool, expected: list[str]
) -> None:
    found = cautions(at_risk, protection, tokens_known=tokens_known)
    assert [caution.name for caution in found] == expected


def test_what_cant_come_back_is_said() -> None:
    volumes = storage((KUBE,), {}, None)
    online = lost(volumes, offline=False, rows=True, named_servers=True)
    assert "is deleted with a user is gone for good" in online[0]
    assert "may be deleted" in lost(storage((), {}, None), offline=False, rows=True, named_servers=True)[0]
    assert not any("gone for good" in one for one in lost(KEEPING, offline=False, rows=True, named_servers=True))
    assert any("Named servers" in one for one in lost(KEEPING, offline=False, rows=True, named_servers=False))
    assert "restored offline instead" in online[-1]
    assert "has no rows of it" in lost(KEEPING, offline=False, rows=False, named_servers=True)[-1]
    (offline,) = lost(OFFLINE_STORAGE, offline=True, rows=True, named_servers=False)
    assert "only if you restore with --with-tokens" in offline


def test_users_whom_the_hub_would_not_make_are_counted_in_their_plan() -> None:
    names = ("ann", "sl/ash", ".", "..", "%2e", " bob", "a.b", "que?stion", "李雷")
    (told,) = (
        one
        for one in lost(KEEPING, offline=False, rows=True, named_servers=True, names=names)
        if "can't come back online at all" in one
    )
    assert told.startswith("5 of these users")
    for nobody in (("ann", "a.b"), ()):
        sentences = lost(KEEPING, offline=False, rows=True, named_servers=True, names=nobody)
        assert not any("online at all" in one for one in sentences)


def test_whom_a_capped_plan_has_are_those_idle_for_longest() -> None:
    accounts = [user("cy", idle_days=80), user("ann"), user("bob", idle_days=90)]
    verdicts = judge(accounts, ASKED, Protection(), (), {}, NOW)
    assert [verdict.account.name for verdict in chosen(verdicts, 2)] == ["bob", "cy"]
    assert [verdict.account.name for verdict in chosen(verdicts, None)] == ["ann", "bob", "cy"]


# -- whether it may be begun ----------------------------------------------------------------------------------------------


def test_a_plan_is_begun_only_with_its_count_its_cautions_and_in_time() -> None:
    plan = planned(user("ann"), user("bob"))
    right: dict[str, Any] = {"count": 2, "now": NOW, "acknowledged": ("KubeSpawner", "more")}
    assert refusal(plan, **right) is None
    assert refusal(plan, **right | {"now": plan.expires_at - timedelta(seconds=1)}) is None
    for wrong, why in (
        ({"count": 1}, "deletes 2 users, not 1"),
        ({"now": plan.expires_at}, "expired at 2026-11-21 13:00 UTC"),
        ({"acknowledged": ()}, "KubeSpawner: It deletes volumes."),
        ({"acknowledged": ("kubespawner", "Kube")}, "by name"),
    ):
        assert why in str(refusal(plan, **right | wrong))
    assert "no such plan" in str(refusal(None, **right))


def test_a_plan_for_nobody_is_begun_only_for_the_rows_it_cleans() -> None:
    asked: dict[str, Any] = {"count": 0, "now": NOW, "acknowledged": ("KubeSpawner",)}
    assert "nobody" in str(refusal(planned(user("new", 0.5)), **asked))
    assert refusal(planned(user("new", 0.5), housekeeping=ORMCounts(expired_tokens=4)), **asked) is None


@pytest.mark.parametrize(
    ("deletions", "total", "share", "is_held"),
    [(100, 1000, 0.1, False), (101, 1000, 0.1, True), (0, 0, 0.1, False), (1, 0, 0.1, True), (1000, 1000, 1.0, False)],
)
def test_a_scheduled_plan_over_its_share_is_held(deletions: int, total: int, share: float, is_held: bool) -> None:
    why = held(deletions, total, share)
    assert (why is not None) is is_held
    if why is not None:
        assert "HubGuardPrune.share_cap" in why
        assert f"{deletions:,} of {total:,} users" in why


def test_another_spawner_by_the_name_of_kubespawner_is_not_taken_for_it() -> None:
    for spawner in ("ours.spawners.KubeSpawner", "kubespawner.reflector.OurSpawner"):
        assert "has its own code" in storage((spawner, "jupyterhub.spawner.Spawner"), {"delete_pvc": False}, True).why
