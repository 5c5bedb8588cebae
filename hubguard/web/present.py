"""The words and numbers that pages, API and CLI share. Text in, text out: no HTML, no clock, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

from hubguard.decide.cull import CullPolicy
from hubguard.decide.rules import Rule
from hubguard.model import (
    ActionKind,
    Brake,
    BrakeReason,
    Entry,
    Evidence,
    Exemption,
    FindingKind,
    Mode,
    Outcome,
    OutcomeKind,
    Reason,
    Source,
    Standing,
    Status,
    Verdict,
)

MODE_WORDS: dict[Mode, str] = {
    Mode.STARTING: "Starting",
    Mode.ACTING: "Acting",
    Mode.OBSERVING: "Observing",
    Mode.HELD: "On hold",
    Mode.BRAKED: "Braked",
    Mode.STANDBY: "Standing by",
    Mode.TROUBLED: "In trouble",
}

STANDING_WORDS: dict[Standing, str] = {
    Standing.STOP: "Due",
    Standing.WAIT: "Waiting",
    Standing.KEEP: "Running",
    Standing.EXEMPT: "Exempt",
    Standing.UNKNOWN: "Unknown",
}

FINDING_WORDS: dict[FindingKind, str] = {
    FindingKind.PENDING_STUCK: "Stuck",
    FindingKind.CAME_BACK: "Came back",
    FindingKind.ACTIVITY_FROZEN: "Activity frozen",
    FindingKind.CANT_TELL: "Can't tell",
    FindingKind.NOT_CULLING: "Not culling",
    FindingKind.RULE: "Rule",
    FindingKind.PRUNE_HELD: "Pruning waits",
}

SOURCE_WORDS: dict[Source, str] = {
    Source.HUB_API: "Hub's API",
    Source.HUB_DB: "Hub's database",
    Source.PROXY: "Proxy",
    Source.BACKEND: "Backends",
    Source.HUB_ROUTES: "Proxy, as the hub sees it",
}

_KIND_WORDS: dict[str, tuple[str, str]] = {
    ActionKind.STOP_SERVER.value: ("stop {}", "stopping {}"),
    ActionKind.INTERRUPT_SPAWN.value: ("interrupt the start of {}", "interrupting the start of {}"),
    ActionKind.DELETE_USER.value: ("delete the user {}", "deleting the user {}"),
    ActionKind.CHECK_ROUTES.value: ("have the hub check its routes", "having the hub check its routes"),
    ActionKind.START_AND_STOP.value: ("start and stop {}", "starting and stopping {}"),
    ActionKind.END_BACKEND.value: ("end the backend of {}", "ending the backend of {}"),
}

_EXEMPT_WHY: dict[Reason, str] = {
    Reason.ADMIN: "servers of admins are left alone (HubGuardCull.admin_servers)",
    Reason.DEFAULT_SERVER: "default servers are left alone (HubGuardCull.default_servers)",
    Reason.NAMED_SERVER: "named servers are left alone (HubGuardCull.named_servers)",
    Reason.NO_LIMITS: "both limits are switched off (HubGuardCull.idle_timeout_s and max_age_s are 0)",
}

_WHEN_DUE: dict[Mode, str] = {
    Mode.STARTING: "judged anew when HubGuard has started",
    Mode.ACTING: "{done} in the next cycle",
    Mode.OBSERVING: "would be {done} now, if armed",
    Mode.HELD: "would be {done} now, but acting is on hold",
    Mode.BRAKED: "would be {done} now, but HubGuard holds back",
    Mode.STANDBY: "left to the guard that holds the lease",
    Mode.TROUBLED: "would be {done} now, but HubGuard is in trouble",
}

_COUNTED_FROM: dict[Evidence, str] = {
    Evidence.HUB: "the hub's last activity",
    Evidence.START: "its start",
    Evidence.PROXY: "traffic at the proxy",
    Evidence.RECOVERY: "the end of an outage of hub or proxy",
}

_IDLE_SINCE: dict[Evidence, str] = {
    Evidence.HUB: "",
    Evidence.START: " since its start",
    Evidence.PROXY: " since traffic at the proxy",
    Evidence.RECOVERY: " since the end of an outage",
}

_JUST_NOW: dict[Evidence, str] = {
    Evidence.HUB: "In use within the last minute",
    Evidence.START: "Started within the last minute",
    Evidence.PROXY: "In use within the last minute",
    Evidence.RECOVERY: "Idleness counts anew, since an outage has just ended",
}


def duration(seconds: float) -> str:
    """How long, as people say it: ``12 s``, ``5 min``, ``1 h 12 min``, ``3 d 4 h``. Rounded down; negative counts as 0."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    return _units(whole - whole % 60)


def limit(seconds: float) -> str:
    """A limit as it is set, to the second below an hour: ``1 min 30 s``, ``2 h``; parts of a second only below one."""
    return f"{seconds:g} s" if seconds < 1 else _units(int(seconds))


def _units(whole: int) -> str:
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def age(at: datetime, now: datetime) -> str:
    """``12 s ago``, or ``just now`` for what lies less than a second back or, by a skewed clock, ahead."""
    passed_s = (now - at).total_seconds()
    return f"{duration(passed_s)} ago" if passed_s >= 1 else "just now"


def until(at: datetime, now: datetime) -> str:
    """``in 48 min``, or ``now`` for what is due."""
    left_s = (at - now).total_seconds()
    return f"in {duration(left_s)}" if left_s >= 1 else "now"


def clock(at: datetime, now: datetime) -> str:
    """``at 14:05 UTC``, with the date where it isn't today's: ``on 22 Nov at 14:05 UTC``."""
    at = at.astimezone(timezone.utc)
    time = f"at {at:%H:%M} UTC"
    if at.date() == now.astimezone(timezone.utc).date():
        return time
    year = "" if at.year == now.astimezone(timezone.utc).year else f" {at.year}"
    return f"on {at.day} {at:%b}{year} {time}"


def stamp(at: datetime) -> str:
    """The full time, to the second: ``2026-11-21 14:05:09 UTC``."""
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def day(at: datetime) -> str:
    """``28 Nov``, in UTC."""
    at = at.astimezone(timezone.utc)
    return f"{at.day} {at:%b}"


def kept_label(user: str, server: str | None) -> str:
    """What an exemption keeps: ``ann/gpu``, ``ann`` for the default server, ``all servers of ann`` for None."""
    if server is None:
        return f"all servers of {user}"
    return f"{user}/{server}" if server else user


def exemption_text(exemption: Exemption) -> str:
    """One line for a terminal."""
    why = f": {exemption.why}" if exemption.why else ""
    kept = kept_label(exemption.user, exemption.server)
    return f"{exemption.id:>4}  {kept}  until {stamp(exemption.until)}  {exemption.actor}{why}"


def count(number: int, noun: str) -> str:
    """``1 server``, ``12,000 servers``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a server has its standing, what happens next and when. ``sentence`` says it all; ``facts`` is what it rests on.

    ``facts`` holds (what, text) pairs in reading order; what isn't known is left out.
    """

    sentence: str
    facts: tuple[tuple[str, str], ...]


def explain(
    verdict: Verdict, policy: CullPolicy, now: datetime, mode: Mode, outcome: Outcome | None = None
) -> Explanation:
    """Why, why not, what next and when. ``outcome`` is what came of acting on it in the cycle of the verdict, or None.

    In any mode but ACTING it says what *would* be done.
    """
    return Explanation(_sentence(verdict, policy, now, mode, outcome), _facts(verdict, policy, now))


def _sentence(verdict: Verdict, policy: CullPolicy, now: datetime, mode: Mode, outcome: Outcome | None) -> str:
    reason, known = verdict.reason, verdict.known
    if outcome is not None:
        return f"{_measure(verdict, policy, now)}; {_outcome_words(outcome, stuck=reason is Reason.STUCK)}."
    if verdict.standing is Standing.EXEMPT:
        return _exempt(verdict, policy, now)
    if verdict.standing is Standing.UNKNOWN:
        return f"Left alone: {_unknown(verdict, policy)}."
    if verdict.standing is Standing.STOP:
        done = "interrupted" if reason is Reason.STUCK else "stopped"
        return f"{_measure(verdict, policy, now)}; {_WHEN_DUE[mode].format(done=done)}."
    if reason is Reason.STUCK:
        off = (
            "HubGuardCull.interrupt_spawns is off"
            if verdict.server.pending == "spawn"
            else "only a start is interrupted"
        )
        return f"{_measure(verdict, policy, now)}; HubGuard leaves it as it is, since {off}."
    if reason is Reason.PENDING:
        doing = f"the hub is in the middle of something with it ({verdict.server.pending})"
        return f"Due, but {doing}; judged again in the next cycle."
    if reason is Reason.NOT_READY:
        return "Due, but the hub doesn't call it ready; judged again in the next cycle."
    if reason is Reason.BACKING_OFF:
        tries = "the last try" if verdict.failures == 1 else f"{verdict.failures} tries"
        what = "interrupt its start" if verdict.server.pending else "stop it"
        again = f"; tried again {_when(verdict.not_before, now)}" if verdict.not_before else ""
        return f"Due, but {tries} to {what} failed{again}."
    if reason is Reason.HOOK:
        answer = f"gave no answer: {known.hook_error.rstrip('. ')}" if known.hook_error else "says to keep it"
        return f"Due, but the hook (HubGuardCull.hook) {answer}; asked again in the next cycle."
    return _not_yet(verdict, now, mode)


def _exempt(verdict: Verdict, policy: CullPolicy, now: datetime) -> str:
    exemption = verdict.known.exemption
    if verdict.reason is Reason.EXEMPTION and exemption is not None:
        return f"Kept {_kept(exemption, now)}. Judged anew after that."
    if verdict.reason is Reason.RULE:
        rule = _rule(verdict, policy)
        if rule is not None and rule.week is not None:
            return f'Not stopped at this time of the week: the rule "{verdict.rule}" says never.'
        return f'Never stopped: the rule "{verdict.rule}" says never.'
    if verdict.reason is Reason.NO_LIMITS and verdict.rule is not None:
        return f'Never stopped: both limits are off under the rule "{verdict.rule}".'
    return f"Never stopped: {_EXEMPT_WHY.get(verdict.reason, 'the policy leaves it alone')}."


def _kept(exemption: Exemption, now: datetime) -> str:
    at = clock(exemption.until, now).partition(" ")[2]
    why = f": {exemption.why.rstrip('. ')}" if exemption.why.strip(". ") else ""
    return f"until {at} ({until(exemption.until, now)}), as {exemption.actor} asked{why}"


def _unknown(verdict: Verdict, policy: CullPolicy) -> str:
    if verdict.reason is Reason.CANT_TELL:
        rule = _rule(verdict, policy)
        untold = " and ".join(rule.untold(verdict.server) if rule is not None else ()) or "something"
        return f'the rule "{verdict.rule}" asks for {untold}, which the hub doesn\'t tell HubGuard'
    if verdict.idle_since is None:
        return "the hub tells neither when it was last used nor when it started"
    return "the hub doesn't tell when it started, and the maximum age counts from there"


def _rule(verdict: Verdict, policy: CullPolicy) -> Rule | None:
    return next((rule for rule in policy.rules if rule.name == verdict.rule), None)


def _under_rule(verdict: Verdict) -> str:
    return f' (rule "{verdict.rule}")' if verdict.rule is not None else ""


def _not_yet(verdict: Verdict, now: datetime, mode: Mode) -> str:
    would = "stopped" if mode is Mode.ACTING else "would be stopped"
    when = f", {clock(verdict.due_at, now)}" if verdict.due_at else ""
    rule = _under_rule(verdict)
    if _by_age(verdict) and verdict.server.started:
        running = duration((now - verdict.server.started).total_seconds())
        return f"Running for {running}; {would} at the age of {limit(verdict.max_age_s)} even when in use{rule}{when}."
    idle_s = (now - verdict.idle_since).total_seconds() if verdict.idle_since else 0.0
    evidence = verdict.evidence or Evidence.HUB
    begin = f"Idle for {duration(idle_s)}{_IDLE_SINCE[evidence]}" if idle_s >= 60 else _JUST_NOW[evidence]
    return f"{begin}; {would} when idle for {limit(verdict.idle_timeout_s)}{rule}{when}."


def _measure(verdict: Verdict, policy: CullPolicy, now: datetime) -> str:
    """What a due server has come to, and the limit that it is over."""
    pending_since, started = verdict.known.pending_since, verdict.server.started
    if verdict.reason is Reason.STUCK and pending_since is not None:
        pending = duration((now - pending_since).total_seconds())
        return f"Pending ({verdict.server.pending}) for {pending}, over the limit of {limit(policy.pending_limit_s)}"
    rule = _under_rule(verdict)
    if verdict.reason is Reason.TOO_OLD and started:
        running = duration((now - started).total_seconds())
        return f"Running for {running}, over the limit of {limit(verdict.max_age_s)}{rule}"
    if verdict.idle_since is None:
        return "Due"
    over = f", over the limit of {limit(verdict.idle_timeout_s)}{rule}" if verdict.idle_timeout_s > 0 else ""
    since = _IDLE_SINCE[verdict.evidence or Evidence.HUB]
    return f"Idle for {duration((now - verdict.idle_since).total_seconds())}{since}{over}"


def _outcome_words(outcome: Outcome, *, stuck: bool) -> str:
    detail = f": {outcome.detail}" if outcome.detail else ""
    done, doing, do = ("interrupted", "interrupting", "interrupt") if stuck else ("stopped", "stopping", "stop")
    return {
        OutcomeKind.DONE: done,
        OutcomeKind.SKIPPED: f"left alone{detail}",
        OutcomeKind.FAILED: f"{doing} it failed{detail}",
        OutcomeKind.UNVERIFIED: f"asked the hub to {do} it, not confirmed yet{detail}",
    }[outcome.kind].rstrip(".")


def _by_age(verdict: Verdict) -> bool:
    """Whether the maximum age is the limit that ``due_at`` comes from."""
    started = verdict.server.started
    if verdict.max_age_s <= 0 or started is None:
        return False
    return verdict.due_at == started + timedelta(seconds=verdict.max_age_s)


def _when(at: datetime | None, now: datetime) -> str:
    if at is None:
        return ""
    return f"{clock(at, now)} ({until(at, now)})" if at > now else "in the next cycle"


def _facts(verdict: Verdict, policy: CullPolicy, now: datetime) -> tuple[tuple[str, str], ...]:
    server, known = verdict.server, verdict.known

    def at(time: datetime) -> str:
        return f"{stamp(time)}, {age(time, now)}"

    named = [
        ("The hub says", "ready" if server.ready else f"pending: {server.pending}" if server.pending else "not ready"),
    ]
    if server.pending is not None and known.pending_since is not None:
        named.append(("Pending since", f"{at(known.pending_since)}; limit {limit(policy.pending_limit_s)}"))
    named += [
        ("Started", at(server.started) if server.started else "unknown"),
        ("Last activity", at(server.last_activity) if server.last_activity else "unknown"),
    ]
    if known.proxy_activity is not None:
        named.append(("Traffic at the proxy", at(known.proxy_activity)))
    if known.active_at is not None and _differ(known.active_at, server.last_activity):
        named.append(("Last real use", f"{at(known.active_at)}, by HubGuard's own record"))
    if known.clock_from is not None:
        named.append(("End of an outage", f"{at(known.clock_from)}; nobody's idleness counts from before that"))
    if verdict.idle_since is not None and verdict.evidence is not None:
        named.append(("Idle since", f"{at(verdict.idle_since)}, by {_COUNTED_FROM[verdict.evidence]}"))
    if verdict.rule is not None:
        named.append(("Rule", verdict.rule))
    if verdict.reason is not Reason.CANT_TELL:
        named += [
            ("Idle limit", limit(verdict.idle_timeout_s) if verdict.idle_timeout_s > 0 else "off"),
            ("Maximum age", limit(verdict.max_age_s) if verdict.max_age_s > 0 else "off"),
        ]
    if known.exemption is not None and known.exemption.covers(server.user, server.name, now):
        named.append(("Kept", _kept(known.exemption, now)))
    if known.hook_error:
        named.append(("Hook", f"no answer: {known.hook_error}"))
    elif known.hook is not None:
        named.append(("Hook", "stop it" if known.hook else "keep it"))
    if verdict.due_at is not None:
        named.append(("Due", f"{stamp(verdict.due_at)}, {until(verdict.due_at, now)}"))
    if verdict.failures:
        named.append(("Failed tries", str(verdict.failures)))
    if verdict.not_before is not None:
        named.append(("Not before", stamp(verdict.not_before)))
    return tuple(named)


def _differ(one: datetime, other: datetime | None) -> bool:
    """By more than the hub itself rounds activity."""
    return other is None or abs((one - other).total_seconds()) >= 60


def planned(stops: int, interrupts: int, deletions: int) -> str:
    """``3 servers to be stopped, 1 start to be interrupted, 2 users to be deleted``; what there is none of is left out."""
    parts = [f"{count(stops, 'server')} to be stopped"] if stops or not (interrupts or deletions) else []
    parts += [f"{count(interrupts, 'start')} to be interrupted"] if interrupts else []
    parts += [f"{count(deletions, 'user')} to be deleted"] if deletions else []
    return ", ".join(parts)


def acceptance(brake: Brake, policy: CullPolicy) -> str:
    """What a person accepts by resuming under an acceptable ``brake``; one sentence."""
    if brake.reason is BrakeReason.OVER_CAP:
        return f"Resuming accepts all that is due: each cycle then does up to {policy.plan_cap:,} of it."
    if brake.reason is BrakeReason.POPULATION:
        return "Resuming accepts that the others are gone: HubGuard goes on by the users that are left."
    return "Resuming accepts that."


def headline(status: Status, due: int, users: int = 0) -> str:
    """One sentence: what HubGuard is doing and why. ``due`` is how many servers are due at the last look.

    So many ``users`` are due to be deleted.
    """
    if status.mode is Mode.ACTING:
        now = f"{count(due, 'server')} {'is' if due == 1 else 'are'} due" if due else "none is due right now"
        leaving = f" {count(users, 'user')} {'is' if users == 1 else 'are'} due to be deleted." if users else ""
        return f"HubGuard is armed and stops servers that are due; {now}.{leaving}"
    if status.mode is Mode.OBSERVING:
        would = [f"stop {count(due, 'server')}"] if due else []
        would += [f"delete {count(users, 'user')}"] if users else []
        return f"HubGuard only observes: it would {' and '.join(would) or 'stop nothing'} now. {status.why}"
    if status.mode is Mode.HELD:
        return f"{status.why.rstrip('. :')}. Nothing is sent to the hub to change it until someone resumes."
    if status.mode is Mode.BRAKED and status.brake is not None:
        return f"HubGuard holds back, since {status.brake.why.rstrip('. ')}."
    return status.why


def as_json(value: Any) -> Any:
    """``value`` as JSON knows it: dataclasses as objects, times as ISO 8601 in UTC with a ``Z``, tuples as lists."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return value


def json_text(value: Any) -> str:
    """``as_json`` as text; ``<`` is escaped, so that no browser ever takes it for a page."""
    return json.dumps(as_json(value), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def entry_json(entry: Entry) -> dict[str, Any]:
    """A journal entry as the API gives it."""
    plain: dict[str, Any] = as_json(entry)
    return plain


def entry_sentence(entry: Entry) -> str:
    """What happened, in words, without the time and who did it."""
    whose = f"{entry.user}/{entry.server}" if entry.server else entry.user or ""
    detail = f": {entry.detail}" if entry.detail else ""
    do, doing = _KIND_WORDS.get(entry.action or "", _KIND_WORDS[ActionKind.STOP_SERVER.value])
    if entry.event == "intent":
        why = f" ({entry.reason})" if entry.reason else ""
        return f"going to {do.format(whose)}{why}"
    if entry.event == "outcome":
        kind = entry.outcome.value if entry.outcome else "ended"
        return f"{doing.format(whose)}: {kind}{f', {entry.detail}' if entry.detail else ''}"
    if entry.event in {"kept", "released"} and entry.user is not None:
        kept = kept_label(entry.user, entry.server)
        return f"keeps {kept} {entry.detail}" if entry.event == "kept" else f"no longer keeps {kept}{detail}"
    words = {
        "armed": "armed HubGuard",
        "observing": "set HubGuard to observe only",
        "held": "put acting on hold",
        "resumed": "resumed acting",
        "braked": "holds back",
        "brake-over": "no longer holds back",
    }.get(entry.event)
    if words:
        return words + detail
    if f" {whose}: " in detail:
        whose = ""  # what drifts is named in the detail, after its kind
    if entry.event == "cleared":
        return f"over: {whose}{detail}" if whose else f"over{detail}"
    return f"{whose}{detail}" if whose and entry.event in {"note", "finding"} else entry.detail or entry.event


def entry_text(entry: Entry) -> str:
    """One line for a terminal."""
    return f"{stamp(entry.at)}  {entry.event:<9}  {entry.actor}: {entry_sentence(entry)}"


def report_text(report: Mapping[str, Any]) -> str:
    """A cycle's report, in the form in which the API gives it, as lines for a terminal."""
    actions = report["actions"]
    kinds = [action["kind"] for action in actions]
    numbers = (
        kinds.count(kind.value) for kind in (ActionKind.STOP_SERVER, ActionKind.INTERRUPT_SPAWN, ActionKind.DELETE_USER)
    )
    lines = [f"{count(report['servers'], 'server')} seen, {planned(*numbers)}."]
    if report["skipped_why"]:
        lines.append(f"Nothing was done: {report['skipped_why']}.")
    lines += [
        f"The {source['source']} reading is incomplete: {source['detail']}"
        for source in report["sources"]
        if not source["complete"]
    ]
    lines += [f"  {_action_text(action)}" for action in actions]
    if report["left_out"]:
        lines.append(f"{count(report['left_out'], 'action')} more over the cap, left to the next cycle.")
    return "\n".join(lines)


def _action_text(action: Mapping[str, Any]) -> str:
    label = f"{action['user']}/{action['name']}" if action["name"] else action["user"]
    what, words = {
        ActionKind.STOP_SERVER.value: (label, action["outcome"] or "would be stopped"),
        ActionKind.INTERRUPT_SPAWN.value: (f"the start of {label}", _ended("interrupt", action["outcome"])),
        ActionKind.DELETE_USER.value: (f"the user {label}", _ended("delete", action["outcome"])),
    }[action["kind"]]
    detail = f": {action['detail']}" if action["detail"] else ""
    return f"{what}  {words} ({action['reason']}){detail}"


def _ended(verb: str, outcome: str | None) -> str:
    return f"{verb.rstrip('e')}ing: {outcome}" if outcome else f"would be {verb.rstrip('e')}ed"


def server_text(server: Mapping[str, Any]) -> str:
    """Why, or why not, as the API tells it of one server, as lines for a terminal."""
    lines = [f"{kept_label(server['user'], server['name'])}: {STANDING_WORDS[Standing(server['standing'])].lower()}"]
    lines += [server["explanation"], server["not_acting"]]
    width = max((len(fact["what"]) for fact in server["facts"]), default=0)
    lines += [f"  {fact['what']:<{width}}  {fact['text']}" for fact in server["facts"]]
    return "\n".join(line for line in lines if line)
