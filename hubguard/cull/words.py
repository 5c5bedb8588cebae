"""Why, why not, what next and when, for one server, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hubguard.cull.decide.judge import SURPLUS_IDLE_S, CullPolicy, busy_words, surplus_words
from hubguard.cull.decide.rules import Rule
from hubguard.cull.model import Reason, Standing, Verdict
from hubguard.journal.model import Entry, Event, Exemption
from hubguard.journal.words import EVIDENCE, grounds_words
from hubguard.model import ActionKind, Outcome, OutcomeKind
from hubguard.snapshot.model import Evidence
from hubguard.status import Mode
from hubguard.words import age, clock, count, duration, kept_label, limit, stamp, until

STANDING_WORDS: dict[Standing, str] = {
    Standing.STOP: "Due",
    Standing.WAIT: "Waiting",
    Standing.KEEP: "Running",
    Standing.EXEMPT: "Exempt",
    Standing.UNKNOWN: "Unknown",
}


_EXEMPT_WHY: dict[Reason, str] = {
    Reason.ADMIN: "servers of admins are left alone (HubGuardCull.admin_servers)",
    Reason.DEFAULT_SERVER: "default servers are left alone (HubGuardCull.default_servers)",
    Reason.NAMED_SERVER: "named servers are left alone (HubGuardCull.named_servers)",
    Reason.BEYOND: "the role of the idle culler that HubGuard replaces doesn't allow it",
    Reason.DOTS: 'a name of dots alone ("." or "..") has no path of its own at the hub; rename or delete it there',
    Reason.NO_LIMITS: "both limits are switched off (HubGuardCull.idle_timeout_s and max_age_s are 0)",
}


_WHEN_DUE: dict[Mode, str] = {
    Mode.STARTING: "judged again when HubGuard has started",
    Mode.ACTING: "{done} in the next cycle",
    Mode.OBSERVING: "would be {done} now, if armed",
    Mode.HELD: "would be {done} now, but HubGuard is on hold",
    Mode.BRAKED: "would be {done} now, but HubGuard is braked",
    Mode.STANDBY: "left to the guard in charge",
    Mode.TROUBLED: "would be {done} now, but HubGuard isn't working",
}


_IDLE_SINCE: dict[Evidence, str] = {
    Evidence.HUB: "",
    Evidence.START: " since its start",
    Evidence.PROXY: " since traffic at the proxy",
    Evidence.RECOVERY: " since the end of an outage",
}


IN_USE_S = 60.0
"""Seconds since the last use during which a server counts as in use, in words. Activity is reported about once a minute."""

_JUST_NOW: dict[Evidence, str] = {
    Evidence.HUB: "In use within the last minute",
    Evidence.START: "Started within the last minute",
    Evidence.PROXY: "In use within the last minute",
    Evidence.RECOVERY: "The idle clock restarted after an outage",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a server has its standing, what happens next and when. ``sentence`` says it all; ``facts`` is what it is based on.

    ``facts`` holds (what, text) pairs in reading order; what is unknown is left out.
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
        return f"{_measure(verdict, policy, now)}; HubGuard leaves it as it is, because {off}."
    if reason is Reason.PENDING:
        return f"Due, but {busy_words(verdict.server.pending)}; judged again in the next cycle."
    if reason is Reason.NOT_READY:
        return "Due, but the hub doesn't call it ready; judged again in the next cycle."
    if reason is Reason.BACKING_OFF:
        tries = "the last try" if verdict.failures == 1 else f"{verdict.failures} tries"
        what = "interrupt its start" if verdict.server.pending else "stop it"
        again = f" The next try is {_when(verdict.not_before, now)}." if verdict.not_before else ""
        return f"Due, but {tries} to {what} failed.{again}"
    if reason is Reason.SWITCHED_OFF:
        off = "the hub has named servers switched off (JupyterHub.allow_named_servers) and lets nobody stop it"
        return f"{_measure(verdict, policy, now)}; {off}. Switch them on again, or end what runs it yourself."
    if reason is Reason.HOOK:
        answer = f"gave no answer: {known.hook_error.rstrip('. ')}" if known.hook_error else "says to keep it"
        return f"Due, but the hook (HubGuardCull.hook) {answer}; asked again in the next cycle."
    return _not_yet(verdict, now, mode)


def _exempt(verdict: Verdict, policy: CullPolicy, now: datetime) -> str:
    exemption = verdict.known.exemption
    if verdict.reason is Reason.EXEMPTION and exemption is not None:
        return f"Kept {_kept(exemption, now)}. Judged again after that."
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
    return f"until {at} ({until(exemption.until, now)}), by {exemption.actor}{why}"


def _unknown(verdict: Verdict, policy: CullPolicy) -> str:
    if verdict.reason is Reason.CANT_TELL:
        rule = _rule(verdict, policy)
        if rule is None:
            return "the idle culler that HubGuard replaces is limited to some groups, and the hub doesn't show groups"
        hidden = " and ".join(rule.hidden(verdict.server))
        if not hidden:
            return (
                f'the rule "{verdict.rule}" compares an option that has a unit with a number that has none;'
                " write the unit in the rule, too, as in '>= 16G'"
            )
        return f'the rule "{verdict.rule}" depends on {hidden}, which the hub doesn\'t show HubGuard'
    if verdict.idle_since is None:
        return "the hub reports neither when it was last used nor when it started"
    return "the hub doesn't report when it started, and the maximum age counts from then"


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
    if idle_s < IN_USE_S and evidence in {Evidence.HUB, Evidence.PROXY} and verdict.due_at:
        will = "Will" if mode is Mode.ACTING else "Would"
        return f"In use. {will} be stopped {clock(verdict.due_at, now)} if unused until then{rule}."
    surplus, at_s = verdict.known.surplus, verdict.idle_timeout_s
    if (
        surplus is not None
        and verdict.due_at
        and verdict.idle_since == verdict.due_at - timedelta(seconds=SURPLUS_IDLE_S)
    ):
        at_s, rule = SURPLUS_IDLE_S, f", because {surplus_words(surplus, verdict.server.user)}{rule}"
    begin = f"Idle for {duration(idle_s)}{_IDLE_SINCE[evidence]}" if idle_s >= IN_USE_S else _JUST_NOW[evidence]
    return f"{begin}; {would} when idle for {limit(at_s)}{rule}{when}."


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
    if verdict.reason is Reason.SURPLUS and verdict.known.surplus is not None:
        idle = duration((now - verdict.idle_since).total_seconds())
        many = surplus_words(verdict.known.surplus, verdict.server.user)
        return f"Idle for {idle}; {many}{rule}, and the longest idle stop first"
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
        OutcomeKind.UNVERIFIED: f"asked the hub to {do} it, not verified yet{detail}",
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
        named.append(("Idle since", f"{at(verdict.idle_since)}, by {EVIDENCE[verdict.evidence.value]}"))
    if verdict.rule is not None:
        named.append(("Rule", verdict.rule))
    if known.surplus is not None:
        named.append(("Too many", surplus_words(known.surplus, server.user)))
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
        due = until(verdict.due_at, now) if verdict.due_at > now else age(verdict.due_at, now)
        named.append(("Due", f"{stamp(verdict.due_at)}, {due}"))
    if verdict.failures:
        named.append(("Failed tries", str(verdict.failures)))
    if verdict.not_before is not None:
        named.append(("Not before", stamp(verdict.not_before)))
    return tuple(named)


def _differ(at: datetime, other: datetime | None) -> bool:
    """By more than the hub itself rounds activity."""
    return other is None or abs((at - other).total_seconds()) >= 60


def planned(stops: int, interrupts: int, deletions: int) -> str:
    """``3 servers to be stopped, 1 start to be interrupted, 2 users to be deleted``; what there is none of is left out."""
    parts = [f"{count(stops, 'server')} to be stopped"] if stops or not (interrupts or deletions) else []
    parts += [f"{count(interrupts, 'start')} to be interrupted"] if interrupts else []
    parts += [f"{count(deletions, 'user')} to be deleted"] if deletions else []
    return ", ".join(parts)


def report_text(report: Mapping[str, Any]) -> str:
    """A cycle's report, as the API returns it, as lines for a terminal."""
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
        lines.append(f"{count(report['left_out'], 'action')} more over the cap, left for the next cycle.")
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


def last_stop(entries: Iterable[Entry]) -> str:
    """One sentence on the newest stop among ``entries`` (newest first) of a server: when, who, and why; "" without one."""
    for entry in entries:
        if entry.event is Event.OUTCOME and entry.action in _STOPS and entry.outcome is not None:
            why = grounds_words(entry.reason or "", entry.grounds)
            if entry.outcome is OutcomeKind.DONE:
                by = "HubGuard" if entry.actor == "hubguard" else f"HubGuard, asked by {entry.actor},"
                return f"{by} {_STOPS[entry.action]} at {stamp(entry.at)}: {why}."
            return f"The last try to stop it, at {stamp(entry.at)} ({why}): {entry.outcome.value}, {entry.detail}."
    return ""


_STOPS = {ActionKind.STOP_SERVER.value: "stopped it", ActionKind.INTERRUPT_SPAWN.value: "interrupted its start"}


def server_text(server: Mapping[str, Any]) -> str:
    """Why, or why not: one server, as the API returns it, as lines for a terminal."""
    lines = [f"{kept_label(server['user'], server['name'])}: {STANDING_WORDS[Standing(server['standing'])].lower()}"]
    lines += [server["explanation"], server["not_acting"]]
    width = max((len(fact["what"]) for fact in server["facts"]), default=0)
    lines += [f"  {fact['what']:<{width}}  {fact['text']}" for fact in server["facts"]]
    return "\n".join(line for line in lines if line)
