from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from builders import NOW, ago
from builders import server as server_of
from hypothesis import given
from hypothesis import strategies as st

from hubguard.cull.decide.judge import (
    CullPolicy,
    judge,
    judge_all,
    judge_users,
    latest,
    not_before,
    plan,
    still_due,
    user_still_due,
)
from hubguard.cull.decide.reach import Reach
from hubguard.cull.decide.rules import Rule, first_match, parse
from hubguard.cull.model import Known, Protected, Reason, Standing, Surplus, Verdict
from hubguard.journal.model import Exemption, Failures
from hubguard.model import Action, ActionKind, Server, User
from hubguard.snapshot.model import Evidence

POLICY = CullPolicy(idle_timeout_s=600, max_age_s=0)
server = partial(server_of, user="ada", ready=True, age_s=7200, idle_s=700)


def rules(*raw: dict[str, object]) -> tuple[Rule, ...]:
    read, errors = parse(raw)
    assert errors == ()
    return read


def exemption(user: str = "ada", name: str | None = "", ends_in_s: float = 60, **changes: object) -> Exemption:
    base = Exemption(7, user, name, ago(-ends_in_s), "ann", "exam", ago(600))
    return replace(base, **changes)  # type: ignore[arg-type]


times = st.none() | st.integers(-10_000, 200_000).map(ago)
servers = st.builds(
    Server,
    user=st.sampled_from(["ada", "bob", "a/b", "żółw"]),
    name=st.sampled_from(["", "gpu", "a b"]),
    ready=st.booleans(),
    pending=st.sampled_from([None, "spawn", "stop", "check"]),
    started=times,
    last_activity=times,
    admin=st.booleans(),
    groups=st.none() | st.sampled_from([(), ("class",), ("staff",)]),
)
rule_sets = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "users": st.sampled_from(["ada", "*"]),
            "groups": st.sampled_from(["class", "s*"]),
            "named": st.booleans(),
            "hours": st.sampled_from(["11:00-13:00", "13:00-14:00"]),
        },
    ).flatmap(
        lambda matched: st.sampled_from(
            [
                {"never": True},
                {"idle_timeout_s": 60},
                {"max_age_s": 50},
                {"idle_timeout_s": 0, "max_age_s": 0},
                {"max_servers": 1},
                {"max_servers_in_all": 1},
            ]
        ).map(lambda sets: {**matched, **sets})
    ),
    max_size=3,
).map(lambda raw: rules(*raw))
policies = st.builds(
    CullPolicy,
    idle_timeout_s=st.sampled_from([0, 1, 600, 3600.5]),
    max_age_s=st.sampled_from([0, 100, 7200]),
    admin_servers=st.booleans(),
    default_servers=st.booleans(),
    named_servers=st.booleans(),
    remove_named_servers=st.booleans(),
    plan_cap=st.integers(1, 5),
    rules=rule_sets,
    interrupt_spawns=st.booleans(),
)
histories = st.none() | st.builds(Failures, count=st.integers(1, 60), last_at=st.integers(0, 10_000).map(ago))
exemptions = st.builds(
    exemption,
    user=st.sampled_from(["ada", "bob"]),
    name=st.sampled_from([None, "", "gpu"]),
    ends_in_s=st.integers(-100, 100),
    ended_at=st.none() | st.sampled_from([ago(10), ago(-10)]),
)
knowns = st.builds(
    Known,
    failures=histories,
    exemption=st.none() | exemptions,
    proxy_activity=times,
    pending_since=times,
    clock_from=times,
    hook=st.sampled_from([None, True, False]),
    hook_error=st.sampled_from(["", "", "it raised"]),
)


def test_an_idle_server_is_stopped_and_the_reason_is_its_idleness():
    verdict = judge(server(), POLICY, Known(), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.STOP, Reason.IDLE)
    assert verdict.due_at == ago(100)


def test_a_server_is_due_at_the_very_second_of_its_limit():
    assert judge(server(last_activity=ago(600)), POLICY, Known(), NOW).standing is Standing.STOP
    assert judge(server(last_activity=ago(599.9)), POLICY, Known(), NOW).standing is Standing.KEEP


def test_a_server_that_was_just_started_is_not_idle_by_the_activity_of_an_earlier_run():
    verdict = judge(server(started=ago(5), last_activity=ago(90_000)), POLICY, Known(), NOW)
    assert verdict.standing is Standing.KEEP
    assert verdict.idle_since == ago(5)


def test_without_activity_the_start_counts():
    assert judge(server(last_activity=None), POLICY, Known(), NOW).standing is Standing.STOP


def test_without_any_time_nothing_is_decided():
    verdict = judge(server(last_activity=None, started=None), POLICY, Known(), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.UNKNOWN, Reason.NO_TIMES)


def test_an_old_server_in_use_is_stopped_for_its_age():
    verdict = judge(server(last_activity=NOW), replace(POLICY, max_age_s=7000), Known(), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.STOP, Reason.TOO_OLD)


def test_activity_in_the_future_is_a_busy_server_not_an_idle_one():
    assert judge(server(last_activity=ago(-9999)), POLICY, Known(), NOW).standing is Standing.KEEP


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"admin": True}, replace(POLICY, admin_servers=False), Reason.ADMIN),
        ({"name": "gpu"}, replace(POLICY, named_servers=False), Reason.NAMED_SERVER),
        ({}, replace(POLICY, default_servers=False), Reason.DEFAULT_SERVER),
        ({}, replace(POLICY, idle_timeout_s=0), Reason.NO_LIMITS),
        # The idle culler lets --max-age overrule these switches; here a switch is a promise.
        ({"admin": True}, replace(POLICY, admin_servers=False, max_age_s=1), Reason.ADMIN),
    ],
)
def test_an_exempt_server_is_left_alone(changes: dict[str, object], policy: CullPolicy, reason: Reason):
    verdict = judge(server(**changes), policy, Known(), NOW)
    assert (verdict.standing, verdict.reason, verdict.due_at) == (Standing.EXEMPT, reason, None)


@pytest.mark.parametrize("pending", ["spawn", "stop", "check", "rename", "something new"])
def test_a_pending_server_waits(pending: str):
    verdict = judge(server(pending=pending), POLICY, Known(), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.WAIT, Reason.PENDING)


def test_a_server_that_is_not_ready_waits():
    assert judge(server(ready=False), POLICY, Known(), NOW).reason is Reason.NOT_READY


def test_after_a_failure_the_next_try_waits_for_its_back_off():
    failures = Failures(6, ago(0))
    verdict = judge(server(), POLICY, Known(failures=failures), NOW)
    assert (verdict.standing, verdict.reason, verdict.failures) == (Standing.WAIT, Reason.BACKING_OFF, 6)
    assert verdict.not_before is not None
    assert judge(server(), POLICY, Known(failures=failures), verdict.not_before).standing is Standing.STOP


@given(servers, histories, policies, st.integers(0, 5000))
def test_the_back_off_of_a_failure_is_the_same_in_every_cycle(s: Server, f: Failures | None, p: CullPolicy, later: int):
    if f is None:
        return
    again_at = not_before(s.run, f, p)
    assert f.last_at <= again_at <= f.last_at + timedelta(seconds=p.retry_max_s)
    assert again_at == not_before(s.run, f, p)


@given(servers, policies, knowns)
def test_only_a_due_and_included_server_that_nothing_protects_is_ever_stopped(s: Server, p: CullPolicy, k: Known):
    verdict = judge(s, p, k, NOW)
    if verdict.standing is not Standing.STOP:
        return
    assert p.admin_servers or not s.admin
    assert p.named_servers if s.name else p.default_servers
    assert k.exemption is None or not k.exemption.covers(s.user, s.name, NOW)
    rule, certain = first_match(p.rules, s, NOW)
    assert certain
    assert rule is None or not rule.never
    assert k.hook is not False
    assert not k.hook_error
    assert k.failures is None or not_before(s.run, k.failures, p) <= NOW
    assert verdict.due_at is not None
    assert verdict.due_at <= NOW
    if verdict.reason is Reason.STUCK:
        assert p.interrupt_spawns
        assert s.pending == "spawn"
        assert k.pending_since is not None
        assert k.pending_since + timedelta(seconds=p.pending_limit_s) <= NOW
        return
    assert s.ready
    assert s.pending is None
    idle_timeout_s, max_age_s = p.idle_timeout_s, p.max_age_s
    if rule is not None:
        idle_timeout_s = idle_timeout_s if rule.idle_timeout_s is None else rule.idle_timeout_s
        max_age_s = max_age_s if rule.max_age_s is None else rule.max_age_s
    assert (verdict.idle_timeout_s, verdict.max_age_s) == (idle_timeout_s, max_age_s)
    evidence = (s.started, s.last_activity, k.proxy_activity, k.clock_from)
    idle = idle_timeout_s > 0 and all(t + timedelta(seconds=idle_timeout_s) <= NOW for t in evidence if t)
    old = max_age_s > 0 and s.started is not None and s.started + timedelta(seconds=max_age_s) <= NOW
    assert idle if verdict.reason is Reason.IDLE else old


@given(servers, policies, knowns, times, st.sampled_from(["last_activity", "proxy_activity", "clock_from"]))
def test_more_evidence_of_activity_never_makes_a_server_more_due(
    s: Server, p: CullPolicy, k: Known, at: datetime | None, where: str
):
    owner: Server | Known = s if where == "last_activity" else k
    before = getattr(owner, where)
    if at is None or (before is not None and at < before) or (s.started is None and s.last_activity is None):
        return
    more = replace(owner, **{where: at})  # type: ignore[type-var]
    after = judge(more, p, k, NOW) if isinstance(more, Server) else judge(s, p, more, NOW)
    verdict = judge(s, p, k, NOW)
    assert after.standing is not Standing.STOP or verdict.standing is Standing.STOP
    assert (after.due_at is None) == (verdict.due_at is None)
    assert after.due_at is None or verdict.due_at is None or after.due_at >= verdict.due_at


@given(servers, policies, knowns)
def test_what_only_hubguard_knows_stops_nothing_that_the_hub_has_no_times_of(s: Server, p: CullPolicy, k: Known):
    nameless = replace(s, started=None, last_activity=None)
    verdict = judge(nameless, p, k, NOW)
    assert verdict.standing is not Standing.STOP or verdict.reason is Reason.STUCK
    assert (verdict.idle_since, verdict.evidence) == (None, None)


@given(servers, policies, knowns)
def test_a_switch_then_an_exemption_then_a_rule_that_says_never_always_wins(s: Server, p: CullPolicy, k: Known):
    verdict = judge(s, p, k, NOW)
    switched = (s.admin and not p.admin_servers) or not (p.named_servers if s.name else p.default_servers)
    kept = k.exemption is not None and k.exemption.covers(s.user, s.name, NOW)
    rule, certain = first_match(p.rules, s, NOW)
    if switched:
        assert verdict.reason in {Reason.ADMIN, Reason.NAMED_SERVER, Reason.DEFAULT_SERVER}
    elif kept:
        assert verdict.reason is Reason.EXEMPTION
    elif not certain:
        assert (verdict.standing, verdict.reason) == (Standing.UNKNOWN, Reason.CANT_TELL)
    elif rule is not None and rule.never:
        assert verdict.reason is Reason.RULE
    else:
        assert verdict.reason not in {Reason.EXEMPTION, Reason.RULE, Reason.CANT_TELL}
    if switched or kept or (certain and rule is not None and rule.never):
        assert (verdict.standing, verdict.due_at) == (Standing.EXEMPT, None)
    assert verdict.known == k
    assert verdict.rule == (rule.name if rule else None)


@given(servers, policies, knowns)
def test_a_longer_timeout_never_stops_more(s: Server, p: CullPolicy, k: Known):
    if p.idle_timeout_s == 0:
        return
    longer = replace(p, idle_timeout_s=p.idle_timeout_s * 2)
    if judge(s, longer, k, NOW).standing is Standing.STOP:
        assert judge(s, p, k, NOW).standing is Standing.STOP


@given(st.lists(servers, max_size=12, unique_by=lambda s: s.key), policies)
def test_a_plan_holds_the_most_overdue_first_and_never_more_than_its_cap(ss: list[Server], p: CullPolicy):
    verdicts = judge_all(ss, p, {}, NOW)
    made = plan(verdicts, p, NOW)
    due = [v for v in verdicts if v.standing is Standing.STOP]
    assert len(made.actions) == min(len(due), p.plan_cap)
    assert made.left_out == len(due) - len(made.actions)
    assert [(a.user, a.name) for a in made.actions] == [v.server.key for v in due[: p.plan_cap]]
    assert [v.due_at for v in due] == sorted(v.due_at for v in due if v.due_at)
    assert plan(reversed(verdicts), p, NOW).digest == made.digest
    assert all(a.remove == (bool(a.name) and p.remove_named_servers) for a in made.actions)


def test_what_failed_before_goes_behind_what_was_not_tried_yet_so_that_it_keeps_nobody_waiting():
    ss = [server(user=user, last_activity=ago(idle)) for user, idle in [("bad", 9000), ("worse", 8000), ("new", 700)]]
    tried = {ss[0].run: Known(failures=Failures(1, ago(4000))), ss[1].run: Known(failures=Failures(2, ago(4000)))}
    made = plan(judge_all(ss, POLICY, tried, NOW), replace(POLICY, plan_cap=2), NOW)
    assert [action.user for action in made.actions] == ["new", "bad"]


def test_the_nearest_to_its_end_comes_first_then_names_decide_and_what_never_ends_comes_last():
    ends = [server(user="zoe", last_activity=ago(300)), server(user="bob", name="b"), server(user="bob", name="a")]
    never = [server(user=user, started=None, last_activity=None) for user in ("eve", "amy")]
    verdicts = judge_all([*never, *ends, server(user="abe")], POLICY, {}, NOW)
    assert [(v.server.user, v.server.name) for v in verdicts] == [
        ("abe", ""),
        ("bob", "a"),
        ("bob", "b"),
        ("zoe", ""),
        ("amy", ""),
        ("eve", ""),
    ]
    assert [v.due_at for v in verdicts[-2:]] == [None, None]


def test_a_plan_is_carried_out_within_ten_minutes_or_not_at_all():
    made = plan([], POLICY, NOW)
    assert made.expires_at - made.made_at == timedelta(minutes=10)


@given(servers, policies, knowns)
def test_what_was_decided_passes_its_second_look_when_nothing_has_changed(s: Server, p: CullPolicy, k: Known):
    for action in plan(judge_all([s], p, {s.run: k}, NOW), p, NOW).actions:
        assert still_due(action, s, p, k, NOW) is None


@given(servers, servers, policies, knowns, knowns)
def test_the_second_look_lets_nothing_pass_that_would_not_be_decided_anew(
    s: Server, seen: Server, p: CullPolicy, k: Known, k_now: Known
):
    for action in plan(judge_all([s], p, {s.run: k}, NOW), p, NOW).actions:
        if still_due(action, seen, p, k_now, NOW) is None:
            again = judge(seen, p, replace(k_now, failures=None), NOW)
            assert again.standing is Standing.STOP
            assert seen.started == action.started
            assert (again.reason is Reason.STUCK) == (action.kind is ActionKind.INTERRUPT_SPAWN)


def action() -> Action:
    (made,) = plan(judge_all([server()], POLICY, {}, NOW), POLICY, NOW).actions
    return made


@pytest.mark.parametrize(
    ("now_seen", "says"),
    [
        (None, "no longer running"),
        (server(started=ago(3)), "restarted"),
        (server(started=None), "restarted"),
        (server(last_activity=ago(1)), "used in the meantime"),
        (server(pending="stop"), "(pending: stop)"),
        (server(ready=False), "no longer due"),
    ],
)
def test_the_second_look_spares_a_server_that_has_changed(now_seen: Server | None, says: str):
    answer = still_due(action(), now_seen, POLICY, Known(), NOW)
    assert answer is not None
    assert says in answer


def test_the_second_look_spares_a_user_who_became_an_admin():
    policy = replace(POLICY, admin_servers=False)
    assert still_due(action(), server(admin=True), policy, Known(), NOW) is not None


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (Known(exemption=exemption()), "somebody has asked to keep it"),
        (Known(hook=False), "the hook didn't say to stop it"),
        (Known(hook_error="it took over 10 s"), "the hook didn't say to stop it"),
        (Known(proxy_activity=ago(5)), "it was used in the meantime"),
    ],
)
def test_the_second_look_spares_a_server_of_which_more_is_known_by_now(known: Known, says: str):
    assert still_due(action(), server(), POLICY, known, NOW) == says


def test_a_back_off_that_the_plan_was_made_with_does_not_count_again_at_the_second_look():
    assert still_due(action(), server(), POLICY, Known(failures=Failures(6, NOW)), NOW) is None


def test_the_second_look_knows_the_rule_that_holds_by_then():
    policy = replace(POLICY, rules=rules({"name": "class", "hours": "13:00-14:00", "never": True}))
    (made,) = plan(judge_all([server()], policy, {}, NOW), policy, NOW).actions
    told = still_due(made, server(), policy, Known(), NOW + timedelta(hours=1))
    assert told == 'the rule "class" says never'


# -- rules ---------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_gives_the_limits_and_the_settings_what_it_leaves_open():
    policy = CullPolicy(
        600,
        9000,
        rules=rules(
            {"users": "bob", "idle_timeout_s": 1},
            {"name": "long", "users": "a*", "idle_timeout_s": 3600},
            {"users": "*", "max_age_s": 1},
        ),
    )
    verdict = judge(server(), policy, Known(), NOW)
    assert (verdict.rule, verdict.idle_timeout_s, verdict.max_age_s) == ("long", 3600, 9000)
    assert (verdict.standing, verdict.due_at) == (Standing.KEEP, ago(7200 - 9000))


def test_a_server_that_no_rule_matches_has_the_limits_of_the_settings():
    verdict = judge(server(), replace(POLICY, rules=rules({"users": "bob", "never": True})), Known(), NOW)
    assert (verdict.standing, verdict.rule, verdict.idle_timeout_s) == (Standing.STOP, None, 600)


def test_a_rule_that_asks_for_what_the_hub_does_not_tell_stops_nothing():
    policy = replace(POLICY, max_age_s=1, rules=rules({"name": "class", "groups": "class-*", "idle_timeout_s": 1}))
    verdict = judge(server(), policy, Known(), NOW)
    assert (verdict.standing, verdict.reason, verdict.rule) == (Standing.UNKNOWN, Reason.CANT_TELL, "class")
    assert judge(server(groups=()), policy, Known(), NOW).standing is Standing.STOP


def test_a_rule_can_switch_both_limits_off():
    policy = replace(POLICY, rules=rules({"idle_timeout_s": 0}))
    verdict = judge(server(), policy, Known(), NOW)
    assert (verdict.standing, verdict.reason, verdict.rule) == (Standing.EXEMPT, Reason.NO_LIMITS, "rules[0]")


# -- what else is known ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "known", "since", "evidence"),
    [
        ({}, Known(), ago(700), Evidence.HUB),
        ({"last_activity": ago(9000)}, Known(), ago(7200), Evidence.START),
        ({"last_activity": None}, Known(), ago(7200), Evidence.START),
        ({}, Known(proxy_activity=ago(30)), ago(30), Evidence.PROXY),
        ({}, Known(proxy_activity=ago(800), clock_from=ago(20)), ago(20), Evidence.RECOVERY),
        ({}, Known(proxy_activity=ago(700), clock_from=ago(700)), ago(700), Evidence.HUB),
    ],
)
def test_an_idle_clock_counts_from_the_latest_evidence(
    changes: dict[str, object], known: Known, since: datetime, evidence: Evidence
):
    verdict = judge(server(**changes), POLICY, known, NOW)
    assert (verdict.idle_since, verdict.evidence) == (since, evidence)


def test_an_outage_restarts_the_idle_clock_and_never_that_of_the_age():
    known = Known(clock_from=ago(1))
    assert judge(server(), POLICY, known, NOW).standing is Standing.KEEP
    verdict = judge(server(), replace(POLICY, max_age_s=7000), known, NOW)
    assert (verdict.standing, verdict.reason) == (Standing.STOP, Reason.TOO_OLD)


def test_an_exemption_ends_at_its_very_second():
    known = Known(exemption=exemption(ends_in_s=60))
    assert judge(server(), POLICY, known, ago(-59.9)).reason is Reason.EXEMPTION
    assert judge(server(), POLICY, known, ago(-60)).standing is Standing.STOP
    ended = Known(exemption=exemption(ended_at=ago(1), ended_by="ann"))
    assert judge(server(), POLICY, ended, NOW).standing is Standing.STOP


@pytest.mark.parametrize(
    "known", [Known(hook=False), Known(hook_error="it raised"), Known(hook=True, hook_error="late")]
)
def test_the_hook_has_the_last_word_on_a_server_that_is_due(known: Known):
    verdict = judge(server(), replace(POLICY, max_age_s=1), known, NOW)
    assert (verdict.standing, verdict.reason) == (Standing.WAIT, Reason.HOOK)
    assert verdict.due_at is not None
    assert judge(server(last_activity=NOW), POLICY, known, NOW).reason is Reason.ACTIVE


# -- stuck -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", ["spawn", "stop", "check"])
@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("last_activity", [NOW, None, ago(700)])
def test_a_server_that_is_pending_beyond_its_limit_is_stuck_however_idle(
    pending: str, interrupt: bool, last_activity: datetime | None
):
    policy = replace(POLICY, pending_limit_s=300, interrupt_spawns=interrupt)
    stuck = server(ready=False, pending=pending, last_activity=last_activity, started=None)
    verdict = judge(stuck, policy, Known(pending_since=ago(300)), NOW)
    ends = interrupt and pending == "spawn"
    assert (verdict.standing, verdict.reason) == (Standing.STOP if ends else Standing.WAIT, Reason.STUCK)
    made = plan([verdict], policy, NOW).actions
    assert [a.kind for a in made] == ([ActionKind.INTERRUPT_SPAWN] if ends else [])
    assert judge(stuck, policy, Known(pending_since=ago(299)), NOW).reason is not Reason.STUCK
    assert judge(stuck, policy, Known(pending_since=ago(-9)), NOW).reason is not Reason.STUCK


def test_a_pending_server_of_which_it_is_not_known_since_when_is_not_stuck():
    policy = replace(POLICY, interrupt_spawns=True)
    assert judge(server(ready=False, pending="spawn"), policy, Known(), NOW).reason is Reason.PENDING


def test_a_server_that_has_come_out_of_pending_is_not_stuck():
    verdict = judge(server(), replace(POLICY, interrupt_spawns=True), Known(pending_since=ago(90_000)), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.STOP, Reason.IDLE)


def test_a_start_that_could_not_be_interrupted_is_tried_again_later():
    policy = replace(POLICY, interrupt_spawns=True)
    known = Known(pending_since=ago(9000), failures=Failures(6, NOW))
    verdict = judge(server(ready=False, pending="spawn"), policy, known, NOW)
    assert (verdict.standing, verdict.reason) == (Standing.WAIT, Reason.BACKING_OFF)


def interruption() -> tuple[Action, CullPolicy, Known]:
    policy = replace(POLICY, interrupt_spawns=True, remove_named_servers=True)
    known = Known(pending_since=ago(9000))
    stuck = server(name="gpu", ready=False, pending="spawn")
    (made,) = plan(judge_all([stuck], policy, {stuck.run: known}, NOW), policy, NOW).actions
    assert (made.kind, made.remove) == (ActionKind.INTERRUPT_SPAWN, False)
    return made, policy, known


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "its start is no longer pending"),
        ({"ready": False, "pending": "stop"}, "its start is no longer pending"),
        ({"ready": False, "pending": "spawn", "started": ago(5)}, "it was restarted in the meantime"),
    ],
)
def test_the_second_look_never_interrupts_a_start_that_has_come_through(changes: dict[str, object], says: str):
    made, policy, known = interruption()
    assert still_due(made, server(name="gpu", **changes), policy, known, NOW) == says
    assert still_due(made, server(name="gpu", ready=False, pending="spawn"), policy, known, NOW) is None


def test_a_stop_never_turns_into_an_interruption_at_its_second_look():
    policy = replace(POLICY, interrupt_spawns=True)
    starting = server(ready=False, pending="spawn")
    told = still_due(action(), starting, policy, Known(pending_since=ago(9000)), NOW)
    assert told == "the hub is busy with it (pending: spawn)"


# -- users -------------------------------------------------------------------------------------------------------------------

USERS = CullPolicy(0, 0, users=True, user_idle_timeout_s=1000)


def user(name: str = "ada", **changes: object) -> User:
    base = User(name, admin=False, created=ago(9000), last_activity=ago(2000))
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "policy", "standing", "reason"),
    [
        ({}, USERS, Standing.STOP, Reason.IDLE),
        ({"last_activity": ago(1000)}, USERS, Standing.STOP, Reason.IDLE),
        ({"last_activity": ago(999)}, USERS, Standing.KEEP, Reason.ACTIVE),
        ({"last_activity": ago(-50)}, USERS, Standing.KEEP, Reason.ACTIVE),
        ({"last_activity": None}, USERS, Standing.STOP, Reason.IDLE),
        ({"last_activity": None, "created": ago(5)}, USERS, Standing.KEEP, Reason.ACTIVE),
        ({"last_activity": None, "created": None}, USERS, Standing.UNKNOWN, Reason.NO_TIMES),
        ({"last_activity": NOW}, replace(USERS, user_max_age_s=9000), Standing.STOP, Reason.TOO_OLD),
        ({"created": None}, replace(USERS, user_idle_timeout_s=0, user_max_age_s=1), Standing.UNKNOWN, Reason.NO_TIMES),
        ({"servers": (server(),)}, USERS, Standing.WAIT, Reason.ACTIVE),
        ({"servers": (server(ready=False, pending="spawn"),)}, USERS, Standing.WAIT, Reason.ACTIVE),
        ({"admin": True}, USERS, Standing.EXEMPT, Reason.ADMIN),
        ({"admin": True}, replace(USERS, admin_users=True), Standing.STOP, Reason.IDLE),
        ({}, replace(USERS, users=False), Standing.EXEMPT, Reason.NO_LIMITS),
        ({}, replace(USERS, user_idle_timeout_s=0), Standing.EXEMPT, Reason.NO_LIMITS),
    ],
)
def test_a_user_is_deleted_when_due_without_a_server_and_meant_by_the_policy(
    changes: dict[str, object], policy: CullPolicy, standing: Standing, reason: Reason
):
    (verdict,) = judge_users([user(**changes)], policy, (), NOW)
    assert (verdict.standing, verdict.reason) == (standing, reason)
    assert len(plan((), policy, NOW, [verdict]).actions) == (standing is Standing.STOP)


@pytest.mark.parametrize(
    ("outage_over_s", "standing", "idle_s"),
    [(500, Standing.KEEP, 500), (2500, Standing.STOP, 2000), (8000, Standing.STOP, 2000)],
)
def test_a_users_clock_counts_from_the_end_of_an_outage_or_their_last_use_whichever_is_later(
    outage_over_s: int, standing: Standing, idle_s: int
):
    (verdict,) = judge_users([user()], USERS, (), NOW, ago(outage_over_s))
    assert (verdict.standing, verdict.idle_since) == (standing, ago(idle_s))


@pytest.mark.parametrize(
    ("protected", "changes", "standing", "reason"),
    [
        (Protected(names=("ad*",)), {}, Standing.EXEMPT, Reason.PROTECTED),
        (Protected(in_config=frozenset({"ada"})), {}, Standing.EXEMPT, Reason.PROTECTED),
        (Protected(groups=("staff",)), {"groups": ("staff", "x")}, Standing.EXEMPT, Reason.PROTECTED),
        (Protected(roles=("ta",)), {"roles": ("user", "ta")}, Standing.EXEMPT, Reason.PROTECTED),
        (Protected(groups=("staff",)), {"groups": None}, Standing.UNKNOWN, Reason.CANT_TELL),
        (Protected(roles=("ta",)), {"roles": None}, Standing.UNKNOWN, Reason.CANT_TELL),
        (Protected(groups=("staff",), roles=("ta",)), {"groups": (), "roles": ("user",)}, Standing.STOP, Reason.IDLE),
        (Protected(names=("AD*",)), {}, Standing.EXEMPT, Reason.PROTECTED),
    ],
)
def test_users_whom_pruning_protects_are_not_deleted_by_culling_either(
    protected: Protected, changes: dict[str, object], standing: Standing, reason: Reason
):
    policy = replace(USERS, protected=protected)
    one = user(**{"groups": (), "roles": (), **changes})
    (verdict,) = judge_users([one], policy, (), NOW)
    assert (verdict.standing, verdict.reason) == (standing, reason)
    (action,) = plan((), USERS, NOW, judge_users([one], USERS, (), NOW)).actions
    assert (user_still_due(action, one, policy, (), NOW) is None) == (standing is Standing.STOP)


def test_nobody_is_deleted_whose_storage_would_go_unless_that_is_acknowledged():
    policy = replace(USERS, users_wait="KubeSpawner deletes it")
    due, kept = judge_users([user(), user("bob", last_activity=ago(10))], policy, (), NOW)
    assert (due.standing, due.reason, kept.standing) == (Standing.WAIT, Reason.STORAGE, Standing.KEEP)
    assert plan((), policy, NOW, [due, kept]).actions == ()
    (action,) = plan((), USERS, NOW, judge_users([user()], USERS, (), NOW)).actions
    assert "storage" in (user_still_due(action, user(), policy, (), NOW) or "")


def test_an_outage_long_ago_makes_nobody_due_who_was_there_since():
    (verdict,) = judge_users([user(last_activity=ago(300))], USERS, (), NOW, ago(5000))
    assert verdict.standing is Standing.KEEP


@pytest.mark.parametrize("name", [None, "", "gpu"])
def test_whoever_has_a_server_that_is_to_be_kept_is_kept(name: str | None):
    (verdict,) = judge_users([user()], USERS, [exemption(name=name)], NOW)
    assert (verdict.standing, verdict.reason) == (Standing.EXEMPT, Reason.EXEMPTION)
    for other in (exemption(name=name, ends_in_s=0), exemption("bob", name), exemption(name=name, ended_at=ago(1))):
        assert judge_users([user()], USERS, [other], NOW)[0].standing is Standing.STOP


def test_a_plan_stops_first_then_interrupts_then_deletes_and_its_cap_is_over_all():
    policy = replace(USERS, idle_timeout_s=600, interrupt_spawns=True)
    stuck = server(user="eve", ready=False, pending="spawn")
    verdicts = judge_all([server(user="bob"), stuck], policy, {stuck.run: Known(pending_since=ago(90_000))}, NOW)
    leaving = judge_users([user("zoe"), user("ada"), user("old", last_activity=ago(5000))], policy, (), NOW)
    acts = [(a.user, a.kind) for a in plan(verdicts, policy, NOW, leaving).actions]
    assert acts == [
        ("bob", ActionKind.STOP_SERVER),
        ("eve", ActionKind.INTERRUPT_SPAWN),
        ("old", ActionKind.DELETE_USER),
        ("ada", ActionKind.DELETE_USER),
        ("zoe", ActionKind.DELETE_USER),
    ]
    capped = plan(verdicts, replace(policy, plan_cap=3), NOW, reversed(leaving))
    assert ([(a.user, a.kind) for a in capped.actions], capped.left_out) == (acts[:3], 2)


def deletion() -> Action:
    (made,) = plan((), USERS, NOW, judge_users([user()], USERS, (), NOW)).actions
    return made


@pytest.mark.parametrize(
    ("seen", "policy", "kept", "says"),
    [
        (user(), USERS, (), None),
        (None, USERS, (), "there is no such user any more"),
        (user(created=ago(8999)), USERS, (), "the user was deleted and created again in the meantime"),
        (user(created=None), USERS, (), "the user was deleted and created again in the meantime"),
        (user(last_activity=ago(1500)), USERS, (), "the user was active in the meantime"),
        (user(last_activity=ago(1998.9)), replace(USERS, user_max_age_s=1), (), "the user was active in the meantime"),
        (user(servers=(server(),)), USERS, (), "a server of the user's is running"),
        (user(admin=True), USERS, (), "the user is an admin"),
        (user(), USERS, (exemption(),), "somebody has asked to keep a server of the user's"),
        (user(), replace(USERS, users=False), (), "the user is no longer due (no-limits)"),
    ],
)
def test_the_second_look_at_a_user(
    seen: User | None, policy: CullPolicy, kept: tuple[Exemption, ...], says: str | None
):
    assert user_still_due(deletion(), seen, policy, kept, NOW) == says


user_values = st.builds(
    User,
    name=st.sampled_from(["ada", "bob"]),
    admin=st.booleans(),
    created=times,
    last_activity=times,
    servers=st.sampled_from([(), (server(),)]),
)
user_policies = st.builds(
    CullPolicy,
    idle_timeout_s=st.just(0),
    max_age_s=st.just(0),
    users=st.booleans(),
    user_idle_timeout_s=st.sampled_from([0, 600, 9000]),
    user_max_age_s=st.sampled_from([0, 7200]),
    admin_users=st.booleans(),
)


@given(user_values, user_values, user_policies, st.lists(exemptions, max_size=2))
def test_no_user_is_deleted_before_a_limit_or_against_a_promise(
    one: User, seen: User, p: CullPolicy, kept: list[Exemption]
):
    (verdict,) = judge_users([one], p, kept, NOW)
    if verdict.standing is not Standing.STOP:
        return
    assert p.users
    assert not one.servers
    assert p.admin_users or not one.admin
    assert not any(e.covers(one.name, e.server or "", NOW) for e in kept)
    known = [t for t in (one.last_activity, one.created) if t is not None]
    idle = bool(known) and 0 < p.user_idle_timeout_s <= (NOW - max(known)).total_seconds()
    old = one.created is not None and 0 < p.user_max_age_s <= (NOW - one.created).total_seconds()
    assert idle or old
    (made,) = plan((), p, NOW, [verdict]).actions
    assert user_still_due(made, one, p, kept, NOW) is None
    if user_still_due(made, replace(seen, name=one.name), p, kept, NOW) is None:
        assert seen.created == one.created
        assert not seen.servers
        assert seen.last_activity is None or (one.last_activity is not None and seen.last_activity <= one.last_activity)


# -- the most servers a user or a group may have -----------------------------------------------------------------------


def test_the_latest_of_several_times_counts_and_those_that_arent_known_dont():
    assert latest(ago(60), None, ago(30), ago(90)) == ago(30)
    assert latest(None) is None


def verdicts_of(policy: CullPolicy, *there: Server, known: dict[Any, Known] | None = None) -> dict[str, Verdict]:
    return {verdict.server.label: verdict for verdict in judge_all(there, policy, known or {}, NOW)}


def of(user: str, name: str, idle_min: float, **changes: object) -> Server:
    return server(
        user=user, name=name, last_activity=ago(60 * idle_min), started=ago(90000), groups=("class",), **changes
    )


UNLIMITED = replace(POLICY, idle_timeout_s=0)
TWO_EACH = replace(UNLIMITED, rules=rules({"name": "two", "groups": "class", "max_servers": 2}))


def test_of_more_servers_than_a_user_may_have_the_longest_idle_are_due():
    found = verdicts_of(
        TWO_EACH, of("ada", "", 20), of("ada", "a", 50), of("ada", "b", 40), of("ada", "c", 30), of("bo", "", 900)
    )
    due = {label for label, verdict in found.items() if verdict.standing is Standing.STOP}
    assert due == {"ada/a", "ada/b"}
    assert found["ada/a"].reason is Reason.SURPLUS
    assert found["ada/a"].known.surplus == Surplus("two", 4, 2)
    assert found["bo"].reason is Reason.NO_LIMITS


def test_of_more_servers_than_a_group_may_have_the_longest_idle_of_all_are_due():
    policy = replace(UNLIMITED, rules=rules({"groups": "class", "max_servers_in_all": 2}))
    found = verdicts_of(
        policy, of("ada", "", 20), of("bo", "", 50), of("cy", "", 40), replace(of("di", "", 99), groups=())
    )
    assert {label for label, verdict in found.items() if verdict.standing is Standing.STOP} == {"bo"}


def test_one_too_many_that_was_just_in_use_waits_until_it_is_idle_for_ten_minutes():
    found = verdicts_of(TWO_EACH, of("ada", "", 1), of("ada", "a", 2), of("ada", "b", 3))
    assert {verdict.standing for verdict in found.values()} == {Standing.KEEP, Standing.EXEMPT}
    assert found["ada/b"].due_at == ago(180) + timedelta(minutes=10)


def test_a_kept_server_counts_and_another_goes():
    kept = of("ada", "a", 90)
    known = {kept.run: Known(exemption=exemption(name="a", ends_in_s=3600))}
    found = verdicts_of(TWO_EACH, kept, of("ada", "b", 40), of("ada", "c", 30), known=known)
    assert {label for label, verdict in found.items() if verdict.standing is Standing.STOP} == {"ada/b"}


@pytest.mark.parametrize(
    ("changes", "known", "policy"),
    [
        ({}, Known(), {"reach": Reach(((("server=ada/b", "server=ada/c", "server=ada/d"),),))}),
        ({}, Known(), {"reach": Reach(((("user=ada", "group=unknown"), ("server=ada/b", "server=ada/c")),))}),
        ({"pending": "spawn", "ready": False}, Known(), {}),
        ({"pending": "check"}, Known(), {}),
        ({"ready": False}, Known(), {}),
        ({}, Known(hook=False), {}),
    ],
    ids=["reach", "two-scopes", "spawning", "checked", "not-ready", "hook"],
)
def test_a_server_that_may_not_or_cannot_be_stopped_counts_and_another_goes(
    changes: dict[str, Any], known: Known, policy: dict[str, Any]
):
    """It was chosen as the one too many, so that the number was never kept."""
    spared = of("ada", "a", 90, **changes)
    found = verdicts_of(
        replace(TWO_EACH, **policy), spared, of("ada", "b", 40), of("ada", "c", 30), known={spared.run: known}
    )
    assert {label for label, verdict in found.items() if verdict.standing is Standing.STOP} == {"ada/b"}
    in_all = replace(UNLIMITED, rules=rules({"groups": "class", "max_servers_in_all": 2}), **policy)
    found = verdicts_of(in_all, spared, of("ada", "b", 40), of("ada", "c", 30), known={spared.run: known})
    assert {label for label, verdict in found.items() if verdict.standing is Standing.STOP} == {"ada/b"}


def test_while_named_servers_are_off_the_default_one_goes_for_them():
    found = verdicts_of(
        replace(TWO_EACH, named_servers_off=True), of("ada", "a", 90), of("ada", "", 40), of("ada", "c", 30)
    )
    assert {label for label, verdict in found.items() if verdict.standing is Standing.STOP} == {"ada"}


def test_one_too_many_whose_stop_failed_is_tried_again_and_no_other_goes_for_it():
    failed = of("ada", "a", 90)
    known = {failed.run: Known(failures=Failures(3, NOW))}
    found = verdicts_of(TWO_EACH, failed, of("ada", "b", 40), of("ada", "c", 30), known=known)
    assert found["ada/a"].reason is Reason.BACKING_OFF
    assert not any(verdict.standing is Standing.STOP for verdict in found.values())


def test_what_was_one_too_many_before_and_no_longer_is_stays():
    left = of("ada", "a", 90)
    found = verdicts_of(TWO_EACH, left, known={left.run: Known(surplus=Surplus("two", 3, 2))})
    assert (found["ada/a"].reason, found["ada/a"].known.surplus) == (Reason.NO_LIMITS, None)


def test_a_server_that_is_stopping_no_longer_counts():
    found = verdicts_of(
        TWO_EACH, of("ada", "a", 90, pending="stop", ready=False), of("ada", "b", 40), of("ada", "c", 30)
    )
    assert not any(verdict.standing is Standing.STOP for verdict in found.values())


def test_one_too_many_is_left_alone_when_another_has_gone_in_the_meantime():
    gone = of("ada", "b", 40)
    action = Action("ada", "b", gone.started, gone.last_activity, Reason.SURPLUS.value)
    told = still_due(action, gone, TWO_EACH, Known(), NOW)
    assert told == "there are no longer more servers than the rule allows"
    assert still_due(action, gone, TWO_EACH, Known(surplus=Surplus("two", 3, 2)), NOW) is None


@given(st.lists(servers, max_size=8), policies, st.lists(knowns, min_size=8, max_size=8))
def test_never_more_are_due_for_being_too_many_than_are_too_many(
    there: list[Server], policy: CullPolicy, of_runs: list[Known]
):
    there = list({one.key: one for one in there}.values())
    known = {one.run: of_run for one, of_run in zip(there, of_runs, strict=False)}
    found = judge_all(there, policy, known, NOW)
    for rule in policy.rules:
        of_rule = [v for v in found if v.rule == rule.name and v.reason is not Reason.CANT_TELL]
        going = [v for v in of_rule if v.reason is Reason.SURPLUS]
        for user in {v.server.user for v in going}:
            if rule.max_servers:
                assert sum(v.server.user == user for v in going) <= max(
                    0, sum(v.server.user == user for v in of_rule) - 1
                )
        if rule.max_servers_in_all:
            assert len(going) <= max(0, len(of_rule) - 1)
        if not (rule.max_servers or rule.max_servers_in_all):
            assert not going


# -- rules that keep users ---------------------------------------------------------------------------------------------

GONE = User("ada", False, ("class", "staff"), ("user",), ago(9e6), ago(8e6))
DELETING = replace(POLICY, users=True, user_idle_timeout_s=3600)


@pytest.mark.parametrize(
    ("raw", "standing"),
    [
        ([{"groups": "staff", "never": True}], Standing.EXEMPT),
        ([{"users": "ADA", "never": True}], Standing.EXEMPT),
        ([{"not_groups": "guests", "never": True}], Standing.EXEMPT),
        ([{"groups": "guests", "never": True}], Standing.STOP),
        ([{"groups": "staff", "never": True, "until": "2026-02-28"}], Standing.STOP),
        ([{"groups": "staff", "servers": "gpu", "never": True}], Standing.STOP),
        ([{"groups": "staff", "idle_timeout_s": 0}], Standing.STOP),
        ([{"groups": "class", "idle_timeout_s": 60}, {"groups": "staff", "never": True}], Standing.STOP),
    ],
)
def test_a_rule_that_says_never_of_users_keeps_them_from_being_deleted(
    raw: list[dict[str, object]], standing: Standing
):
    policy = replace(DELETING, rules=rules(*raw))
    (verdict,) = judge_users([GONE], policy, (), NOW)
    assert verdict.standing is standing
    if standing is Standing.EXEMPT:
        assert (verdict.reason, verdict.rule) == (Reason.RULE, "rules[0]")
        action = Action("ada", "", GONE.created, GONE.last_activity, "idle", kind=ActionKind.DELETE_USER)
        assert user_still_due(action, GONE, policy, (), NOW) == "a rule says never"


def test_a_user_is_kept_when_the_hub_does_not_tell_what_a_rule_that_says_never_asks():
    policy = replace(DELETING, rules=rules({"roles": "researcher", "never": True}))
    (verdict,) = judge_users([replace(GONE, roles=None)], policy, (), NOW)
    assert (verdict.standing, verdict.reason) == (Standing.UNKNOWN, Reason.CANT_TELL)


def test_a_protected_name_protects_however_it_is_spelled():
    policy = replace(DELETING, protected=Protected(names=("Ada", "x [y]")))
    kept, also = judge_users([GONE, replace(GONE, name="x [y]")], policy, (), NOW)
    assert {kept.standing, also.standing} == {Standing.EXEMPT}
