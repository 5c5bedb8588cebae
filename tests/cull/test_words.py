"""The words: each sentence says why, what next and when, and never promises what the mode won't do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from builders import NOW, minutes
from doubles.guard import POLICY, guard_with, made_up, report_of
from hypothesis import given
from hypothesis import strategies as st

from hubguard import words
from hubguard.cull import shapes
from hubguard.cull import words as cull_words
from hubguard.cull.decide.judge import CullPolicy, judge
from hubguard.cull.decide.rules import parse
from hubguard.cull.model import Known, Standing
from hubguard.dashboard import words as dashboard_words
from hubguard.journal import words as journal_words
from hubguard.journal.model import Entry, Event, Exemption, Failures
from hubguard.model import ActionKind, Outcome, OutcomeKind, Server
from hubguard.status import Mode


def server(idle_min: float | None = 5, *, age_min: float = 600, name: str = "", **fields: object) -> Server:
    last = None if idle_min is None else NOW - minutes(idle_min)
    return Server(
        **{
            **{"user": "ann", "name": name, "ready": True, "pending": None},
            **{"started": NOW - minutes(age_min), "last_activity": last},
            **fields,
        }  # type: ignore[arg-type]
    )


def says(
    one: Server,
    policy: CullPolicy = POLICY,
    mode: Mode = Mode.ACTING,
    failures: Failures | None = None,
    outcome: Outcome | None = None,
    known: Known | None = None,
) -> str:
    verdict = judge(one, policy, known or Known(failures=failures), NOW)
    return cull_words.explain(verdict, policy, NOW, mode, outcome).sentence


def facts(one: Server, policy: CullPolicy = POLICY, known: Known | None = None) -> dict[str, str]:
    return dict(cull_words.explain(judge(one, policy, known or Known(), NOW), policy, NOW, Mode.ACTING).facts)


def ruled(*raw: dict[str, object], **changes: object) -> CullPolicy:
    rules, errors = parse(raw)
    assert errors == ()
    return replace(POLICY, rules=rules, **changes)  # type: ignore[arg-type]


KEPT = Exemption(3, "ann", "", NOW + minutes(180), "bob", "exam on Monday.", NOW - minutes(5))
STUCK = server(5, ready=False, pending="spawn")
LONG = Known(pending_since=NOW - minutes(45))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.9, "0 s"),
        (59.99, "59 s"),
        (60, "1 min"),
        (119, "1 min"),
        (3600, "1 h"),
        (4320, "1 h 12 min"),
        (7200, "2 h"),
        (86399, "23 h 59 min"),
        (86400, "1 d"),
        (86400 + 60, "1 d"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
        (400 * 86400, "400 d"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (1, "1 s"), (90, "1 min 30 s"), (5400, "1 h 30 min"), (7200, "2 h")]
)
def test_a_limit_is_told_to_the_second(seconds: float, text: str) -> None:
    assert words.limit(seconds) == text


@given(st.floats(min_value=-1e6, max_value=1e9))
def test_a_duration_never_says_more_than_has_passed(seconds: float) -> None:
    sizes = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    told = sum(int(number) * sizes[unit] for number, unit in re.findall(r"(\d+) (\w+)", words.duration(seconds)))
    assert told <= max(0.0, seconds)
    assert max(0.0, seconds) - told < max(60, told)


def test_a_clock_time_has_its_date_only_on_another_day() -> None:
    assert words.clock(NOW, NOW) == "at 12:00 UTC"
    assert words.clock(NOW + timedelta(days=1), NOW) == "on 22 Nov at 12:00 UTC"
    assert words.clock(NOW + timedelta(days=100), NOW) == "on 1 Mar 2027 at 12:00 UTC"
    paris = datetime(2026, 11, 22, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    assert words.clock(paris, NOW) == "at 23:30 UTC"


def test_a_skewed_clock_gives_no_negative_age() -> None:
    assert words.age(NOW + minutes(5), NOW) == "just now"
    assert words.until(NOW - minutes(5), NOW) == "now"


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (says(server(72)), "Idle for 1 h 12 min; stopped when idle for 2 h, at 12:48 UTC."),
        (says(server(0)), "In use. Will be stopped at 14:00 UTC if unused until then."),
        (says(server(125)), "Idle for 2 h 5 min, over the limit of 2 h; stopped in the next cycle."),
        (says(server(5, admin=True)), "Never stopped: servers of admins are left alone (HubGuardCull.admin_servers)."),
        (
            says(server(None, started=None)),
            "Left alone: the hub reports neither when it was last used nor when it started.",
        ),
        (
            says(server(125, ready=False, pending="stop")),
            "Due, but the hub is busy with it (pending: stop); judged again in the next cycle.",
        ),
        (says(server(125, ready=False)), "Due, but the hub doesn't call it ready; judged again in the next cycle."),
        (
            says(server(125), outcome=Outcome(OutcomeKind.SKIPPED, "it was used in the meantime")),
            "Idle for 2 h 5 min, over the limit of 2 h; left alone: it was used in the meantime.",
        ),
    ],
)
def test_a_sentence_says_why_and_when(sentence: str, expected: str) -> None:
    assert sentence == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            says(server(72), ruled({"name": "class", "idle_timeout_s": 3600})),
            'Idle for 1 h 12 min, over the limit of 1 h (rule "class"); stopped in the next cycle.',
        ),
        (
            says(server(30), ruled({"name": "class", "idle_timeout_s": 3600})),
            'Idle for 30 min; stopped when idle for 1 h (rule "class"), at 12:30 UTC.',
        ),
        (
            says(server(5, age_min=30), ruled({"max_age_s": 3600}), Mode.OBSERVING),
            'Running for 30 min; would be stopped at the age of 1 h even when in use (rule "rules[0]"), at 12:30 UTC.',
        ),
        (says(server(125), ruled({"name": "gpu", "never": True})), 'Never stopped: the rule "gpu" says never.'),
        (
            says(server(125), ruled({"name": "noon", "hours": "11:00-13:00", "never": True})),
            'Not stopped at this time of the week: the rule "noon" says never.',
        ),
        (
            says(server(125), ruled({"name": "free", "idle_timeout_s": 0})),
            'Never stopped: both limits are off under the rule "free".',
        ),
        (
            says(server(125), ruled({"name": "class", "groups": "a", "profiles": "b", "never": True})),
            'Left alone: the rule "class" depends on groups and options, which the hub doesn\'t show HubGuard.',
        ),
        (
            says(
                server(125, options={"mem": "1G"}), ruled({"name": "big", "options": {"mem": ">= 16"}, "never": True})
            ),
            'Left alone: the rule "big" compares an option that has a unit with a number that has none; write the unit in'
            " the rule, too, as in '>= 16G'.",
        ),
        (
            says(server(125), known=Known(exemption=KEPT)),
            "Kept until 15:00 UTC (in 3 h), by bob: exam on Monday. Judged again after that.",
        ),
        (
            says(server(125), known=Known(exemption=replace(KEPT, until=NOW + minutes(1500), why=""))),
            "Kept until 22 Nov at 13:00 UTC (in 1 d 1 h), by bob. Judged again after that.",
        ),
        (
            says(server(125), known=Known(hook=False)),
            "Due, but the hook (HubGuardCull.hook) says to keep it; asked again in the next cycle.",
        ),
        (
            says(server(125), known=Known(hook_error="it took over 10 s.")),
            "Due, but the hook (HubGuardCull.hook) gave no answer: it took over 10 s; asked again in the next cycle.",
        ),
        (
            says(server(300), known=Known(clock_from=NOW - minutes(10))),
            "Idle for 10 min since the end of an outage; stopped when idle for 2 h, at 13:50 UTC.",
        ),
        (
            says(server(300), known=Known(clock_from=NOW)),
            "The idle clock restarted after an outage; stopped when idle for 2 h, at 14:00 UTC.",
        ),
        (
            says(server(300), known=Known(proxy_activity=NOW - minutes(130))),
            "Idle for 2 h 10 min since traffic at the proxy, over the limit of 2 h; stopped in the next cycle.",
        ),
        (
            says(server(None, age_min=10)),
            "Idle for 10 min since its start; stopped when idle for 2 h, at 13:50 UTC.",
        ),
        (
            says(server(5, started=None), CullPolicy(0, 3600)),
            "Left alone: the hub doesn't report when it started, and the maximum age counts from then.",
        ),
        (
            says(STUCK, known=LONG),
            "Pending (spawn) for 45 min, over the limit of 30 min; HubGuard leaves it as it is, "
            "because HubGuardCull.interrupt_spawns is off.",
        ),
        (
            says(replace(STUCK, pending="stop"), ruled(interrupt_spawns=True), known=LONG),
            "Pending (stop) for 45 min, over the limit of 30 min; HubGuard leaves it as it is, "
            "because only a start is interrupted.",
        ),
        (
            says(STUCK, ruled(interrupt_spawns=True), known=LONG),
            "Pending (spawn) for 45 min, over the limit of 30 min; interrupted in the next cycle.",
        ),
        (
            says(STUCK, ruled(interrupt_spawns=True), Mode.HELD, known=LONG),
            "Pending (spawn) for 45 min, over the limit of 30 min; would be interrupted now, but HubGuard is on hold.",
        ),
        (
            says(
                STUCK, ruled(interrupt_spawns=True), known=LONG, outcome=Outcome(OutcomeKind.FAILED, "the hub said 500")
            ),
            "Pending (spawn) for 45 min, over the limit of 30 min; interrupting it failed: the hub said 500.",
        ),
    ],
)
def test_a_sentence_names_the_rule_the_evidence_and_what_stands_in_the_way(sentence: str, expected: str) -> None:
    assert sentence == expected


def test_a_start_that_could_not_be_interrupted_says_when_it_is_tried_again() -> None:
    known = replace(LONG, failures=Failures(9, NOW))
    told = says(STUCK, ruled(interrupt_spawns=True), known=known)
    assert told.startswith("Due, but 9 tries to interrupt its start failed. The next try is ")


def test_the_facts_are_those_that_the_verdict_rests_on() -> None:
    policy = ruled({"name": "class", "idle_timeout_s": 3600})
    told = facts(server(72), policy, Known(proxy_activity=NOW - minutes(30), hook=True, exemption=KEPT))
    assert told["Rule"] == "class"
    assert told["Idle limit"] == "1 h"
    assert told["Traffic at the proxy"] == "2026-11-21 11:30:00 UTC, 30 min ago"
    assert told["Idle since"] == "2026-11-21 11:30:00 UTC, 30 min ago, by traffic at the proxy"
    assert told["Kept"] == "until 15:00 UTC (in 3 h), by bob: exam on Monday"
    assert told["Hook"] == "stop it"
    assert "Due" not in told
    outage = facts(server(300), known=Known(clock_from=NOW - minutes(10), hook_error="it raised"))
    assert outage["Idle since"].endswith("by the end of an outage of hub or proxy")
    assert outage["Hook"] == "no answer: it raised"
    assert "Kept" not in facts(server(5), known=Known(exemption=replace(KEPT, until=NOW)))
    assert facts(STUCK, known=LONG)["Pending since"] == "2026-11-21 11:15:00 UTC, 45 min ago; limit 30 min"


def test_where_a_rule_cannot_be_told_no_limit_is_claimed_to_be_off() -> None:
    told = facts(server(125), ruled({"groups": "a", "never": True}))
    assert "Idle limit" not in told
    assert "Maximum age" not in told


def test_the_limit_that_comes_first_is_the_one_named() -> None:
    policy = CullPolicy(idle_timeout_s=7200, max_age_s=8 * 3600)
    assert says(server(5, age_min=420), policy) == (
        "Running for 7 h; stopped at the age of 8 h even when in use, at 13:00 UTC."
    )
    assert says(server(5, age_min=60), policy).startswith("Idle for 5 min; stopped when idle for 2 h")
    assert (
        says(server(5, age_min=500), policy)
        == "Running for 8 h 20 min, over the limit of 8 h; stopped in the next cycle."
    )


def test_a_back_off_says_how_often_it_failed_and_when_it_is_tried_again() -> None:
    told = says(server(125), failures=Failures(9, NOW))
    assert re.fullmatch(r"Due, but 9 tries to stop it failed\. The next try is (at|on) .* UTC \(in .*\)\.", told)


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.ACTING])
@given(idle_min=st.integers(0, 5000), age_min=st.integers(0, 9000), max_age_s=st.sampled_from([0, 3600, 80000]))
def test_only_an_acting_guard_says_that_it_stops(mode: Mode, idle_min: int, age_min: int, max_age_s: int) -> None:
    policy = CullPolicy(idle_timeout_s=7200, max_age_s=max_age_s)
    told = says(server(idle_min, age_min=age_min), policy, mode)
    assert not re.search(r"(?<!would be )(stopped|interrupted)", told.lower())


@given(
    idle_min=st.one_of(st.none(), st.integers(-100, 5000)),
    age_min=st.integers(-100, 9000),
    name=st.sampled_from(["", "gpu"]),
    ready=st.booleans(),
    pending=st.sampled_from([None, "spawn", "stop", "check"]),
    admin=st.booleans(),
    mode=st.sampled_from(Mode),
    idle_timeout_s=st.sampled_from([0.0, 0.5, 60.0, 7200.0]),
    max_age_s=st.sampled_from([0.0, 3600.0]),
    kinds=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    tries=st.integers(0, 3),
    rules=st.sampled_from(
        [
            [],
            [{"never": True}],
            [{"groups": "a", "never": True}],
            [{"max_age_s": 60}],
            [{"hours": "11:00-13:00", "never": True}],
        ]
    ),
    pending_min=st.none() | st.integers(-10, 100),
    outage_min=st.none() | st.integers(-10, 100),
    kept=st.booleans(),
    hook=st.sampled_from([None, True, False]),
    hook_error=st.sampled_from(["", "it raised."]),
    interrupt=st.booleans(),
)
def test_every_verdict_has_one_whole_sentence(
    idle_min: int | None,
    age_min: int,
    name: str,
    ready: bool,
    pending: str | None,
    admin: bool,
    mode: Mode,
    idle_timeout_s: float,
    max_age_s: float,
    kinds: tuple[bool, bool, bool],
    tries: int,
    rules: list[dict[str, object]],
    pending_min: int | None,
    outage_min: int | None,
    kept: bool,
    hook: bool | None,
    hook_error: str,
    interrupt: bool,
) -> None:
    policy = CullPolicy(idle_timeout_s, max_age_s, *kinds, rules=parse(rules)[0], interrupt_spawns=interrupt)
    known = Known(
        failures=Failures(tries, NOW) if tries else None,
        exemption=KEPT if kept else None,
        pending_since=None if pending_min is None else NOW - minutes(pending_min),
        clock_from=None if outage_min is None else NOW - minutes(outage_min),
        hook=hook,
        hook_error=hook_error,
    )
    one = server(idle_min, age_min=age_min, name=name, ready=ready, pending=pending, admin=admin)
    told = says(one, policy, mode, known=known)
    assert all(text and "None" not in text for text in facts(one, policy, known).values())
    assert told[0].isupper()
    assert told.endswith(".")
    assert ".." not in told
    assert "None" not in told


def test_the_headline_counts_what_would_be_stopped_while_observing() -> None:
    status = guard_with((), Mode.OBSERVING).status()
    assert dashboard_words.headline(status, 12).startswith(
        "HubGuard only observes. If armed, it would stop 12 servers now."
    )
    assert dashboard_words.headline(status, 0).startswith(
        "HubGuard only observes. If armed, it would stop nothing now."
    )


def test_a_report_reads_the_same_from_the_api_and_the_command() -> None:
    report = report_of(
        made_up(30), outcomes=[Outcome(OutcomeKind.DONE, ""), Outcome(OutcomeKind.FAILED, "the hub said 500")]
    )
    told = cull_words.report_text(json.loads(words.json_text(shapes.describe_cycle(report))))
    assert told.startswith("30 servers seen, ")
    assert "failed (idle): the hub said 500" in told
    assert "would be stopped (idle)" in told
    held = cull_words.report_text(
        words.as_json(shapes.describe_cycle(report_of((), skipped_why="HubGuard is on hold (ann: an exam)")))
    )
    assert "Nothing was done: HubGuard is on hold (ann: an exam)." in held


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"event": "intent", "user": "ann", "server": "", "reason": "idle"}, "going to stop ann (idle)"),
        (
            {"event": "outcome", "user": "ann", "server": "gpu", "outcome": OutcomeKind.FAILED, "detail": "500"},
            "stopping ann/gpu: failed, 500",
        ),
        ({"event": "held", "detail": "exam"}, "put acting on hold: exam"),
        ({"event": "armed"}, "armed HubGuard"),
        ({"event": "note", "user": "ann", "server": "", "detail": "would be stopped now"}, "ann: would be stopped now"),
        ({"event": "lease", "detail": "taken over"}, "taken over"),
        ({"event": "cycle"}, "cycle"),
    ],
)
def test_a_journal_entry_is_a_sentence(fields: dict[str, object], sentence: str) -> None:
    fields = {**fields, "event": Event(fields["event"])}
    entry = Entry(id=1, at=NOW, actor="hubguard", fence=1, **fields)  # type: ignore[arg-type]
    assert journal_words.entry_sentence(entry) == sentence
    assert sentence in journal_words.entry_text(entry)


def test_times_leave_as_utc_whatever_they_came_as() -> None:
    paris = datetime(2026, 11, 21, 13, 0, tzinfo=timezone(timedelta(hours=1)))
    assert words.as_json({"at": paris, "what": (Standing.STOP,)}) == {"at": "2026-11-21T12:00:00Z", "what": ["stop"]}


def test_json_never_opens_a_tag() -> None:
    assert "<" not in words.json_text({"why": "</script>"})
    assert json.loads(words.json_text({"why": "</script>"})) == {"why": "</script>"}


def test_each_kind_of_action_has_words_of_its_own_in_journal_and_report() -> None:
    base = {"id": 1, "at": NOW, "actor": "hubguard", "fence": 1, "user": "ann", "server": ""}
    said = {
        kind: (
            journal_words.entry_sentence(Entry(**base, event=Event.INTENT, action=kind.value, reason="idle")),
            journal_words.entry_sentence(
                Entry(**base, event=Event.OUTCOME, action=kind.value, outcome=OutcomeKind.DONE)
            ),
        )
        for kind in ActionKind
    }
    assert said == {
        ActionKind.STOP_SERVER: ("going to stop ann (idle)", "stopping ann: done"),
        ActionKind.INTERRUPT_SPAWN: (
            "going to interrupt the start of ann (idle)",
            "interrupting the start of ann: done",
        ),
        ActionKind.DELETE_USER: ("going to delete the user ann (idle)", "deleting the user ann: done"),
        ActionKind.CHECK_ROUTES: (
            "going to have the hub check its routes (idle)",
            "having the hub check its routes: done",
        ),
        ActionKind.START_AND_STOP: ("going to start and stop ann (idle)", "starting and stopping ann: done"),
        ActionKind.END_BACKEND: ("going to end the backend of ann (idle)", "ending the backend of ann: done"),
    }
    actions = [
        {"kind": kind.value, "user": "ann", "name": "", "reason": "idle", "outcome": outcome, "detail": ""}
        for kind in (ActionKind.STOP_SERVER, ActionKind.INTERRUPT_SPAWN, ActionKind.DELETE_USER)
        for outcome in (None, "done")
    ]
    report = {"servers": 9, "actions": actions, "skipped_why": "", "sources": [], "left_out": 3}
    assert cull_words.report_text(report).splitlines() == [
        "9 servers seen, 2 servers to be stopped, 2 starts to be interrupted, 2 users to be deleted.",
        "  ann  would be stopped (idle)",
        "  ann  done (idle)",
        "  the start of ann  would be interrupted (idle)",
        "  the start of ann  interrupting: done (idle)",
        "  the user ann  would be deleted (idle)",
        "  the user ann  deleting: done (idle)",
        "3 actions more over the cap, left for the next cycle.",
    ]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {
                "event": "kept",
                "user": "ann",
                "server": None,
                "detail": "until 2026-12-01 00:00 UTC (exemption 3): exam",
            },
            "keeps all servers of ann until 2026-12-01 00:00 UTC (exemption 3): exam",
        ),
        ({"event": "kept", "user": "ann", "server": "", "detail": "until noon"}, "keeps ann until noon"),
        (
            {"event": "released", "user": "ann", "server": "gpu", "detail": "exemption 3, ended"},
            "no longer keeps ann/gpu: exemption 3, ended",
        ),
        ({"event": "braked", "detail": "the proxy is down"}, "braked: the proxy is down"),
        ({"event": "brake-over", "detail": ""}, "no longer braked"),
        ({"event": "finding", "detail": "12 servers are overdue."}, "12 servers are overdue."),
        ({"event": "finding", "user": "ann", "server": "gpu", "detail": "It is stuck."}, "ann/gpu: It is stuck."),
        (
            {"event": "finding", "user": "ann", "server": "gpu", "detail": "server-dead: ann/gpu: expected ready"},
            "server-dead: ann/gpu: expected ready",
        ),
        (
            {"event": "cleared", "user": "ann", "server": "", "detail": "server-dead: ann: expected ready"},
            "resolved: server-dead: ann: expected ready",
        ),
        ({"event": "finding", "user": "ann", "server": "", "detail": "of joann: no"}, "ann: of joann: no"),
        ({"event": "cleared", "user": "ann", "server": "", "detail": "no route"}, "resolved: ann: no route"),
        (
            {"event": "cleared", "detail": "and more at once: 3 route-stale"},
            "resolved: and more at once: 3 route-stale",
        ),
    ],
)
def test_what_is_kept_held_back_and_found_has_sentences(fields: dict[str, object], sentence: str) -> None:
    fields = {**fields, "event": Event(fields["event"])}
    entry = Entry(**{"id": 1, "at": NOW, "actor": "ann", "fence": 0, **fields})  # type: ignore[arg-type]
    assert journal_words.entry_sentence(entry) == sentence


def test_real_use_is_told_where_hubguards_own_record_differs_from_the_hubs() -> None:
    one = server(5)
    own = {"active_at": NOW - minutes(90)}
    assert facts(one, known=Known(**own))["Last real use"].startswith("2026-11-21 10:30:00 UTC")
    assert "Last real use" not in facts(one, known=Known(active_at=one.last_activity))
    assert "Last real use" not in facts(one)
    assert "Last real use" in facts(server(None), known=Known(**own))
