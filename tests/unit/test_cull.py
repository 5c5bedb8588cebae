from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubguard.decide.cull import CullPolicy, judge, judge_all, not_before, plan, still_due
from hubguard.model import Action, Failures, Known, Reason, Server, Standing

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
POLICY = CullPolicy(idle_timeout_s=600, max_age_s=0)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def server(**changes: object) -> Server:
    base = Server("ada", "", ready=True, pending=None, started=ago(7200), last_activity=ago(700))
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
)
policies = st.builds(
    CullPolicy,
    idle_timeout_s=st.sampled_from([0, 1, 600, 3600.5]),
    max_age_s=st.sampled_from([0, 100, 7200]),
    admin_servers=st.booleans(),
    default_servers=st.booleans(),
    named_servers=st.booleans(),
    remove_named_servers=st.booleans(),
    plan_cap=st.integers(1, 5),
)
histories = st.none() | st.builds(Failures, count=st.integers(1, 60), last_at=st.integers(0, 10_000).map(ago))


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


@given(servers, policies, histories)
def test_only_a_ready_settled_due_and_included_server_is_ever_stopped(s: Server, p: CullPolicy, f: Failures | None):
    verdict = judge(s, p, Known(failures=f), NOW)
    if verdict.standing is not Standing.STOP:
        return
    assert s.ready
    assert s.pending is None
    assert verdict.due_at is not None
    assert verdict.due_at <= NOW
    assert p.admin_servers or not s.admin
    assert p.named_servers if s.name else p.default_servers
    idle = p.idle_timeout_s > 0 and all(
        t + timedelta(seconds=p.idle_timeout_s) <= NOW for t in (s.started, s.last_activity) if t
    )
    old = p.max_age_s > 0 and s.started is not None and s.started + timedelta(seconds=p.max_age_s) <= NOW
    assert idle or old


@given(servers, policies, histories)
def test_a_longer_timeout_never_stops_more(s: Server, p: CullPolicy, f: Failures | None):
    if p.idle_timeout_s == 0:
        return
    longer = replace(p, idle_timeout_s=p.idle_timeout_s * 2)
    if judge(s, longer, Known(failures=f), NOW).standing is Standing.STOP:
        assert judge(s, p, Known(failures=f), NOW).standing is Standing.STOP


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


@given(servers, policies)
def test_what_was_decided_passes_its_second_look_when_nothing_has_changed(s: Server, p: CullPolicy):
    for action in plan(judge_all([s], p, {}, NOW), p, NOW).actions:
        assert still_due(action, s, p, Known(), NOW) is None


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
        (server(pending="stop"), "(stop)"),
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
