"""The guard's mode, findings and first sentence, for the Overview."""

from __future__ import annotations

from collections.abc import Sequence

from hubguard.cull.decide.judge import CullPolicy
from hubguard.journal.model import ArmedBy
from hubguard.model import FindingKind
from hubguard.snapshot.model import Brake, BrakeReason
from hubguard.status import Culls, Mode, OtherCuller, Status
from hubguard.watch.model import AlertState, Severity
from hubguard.watch.shapes import AlertShape
from hubguard.words import count

MODE_WORDS: dict[Mode, str] = {
    Mode.STARTING: "Starting",
    Mode.ACTING: "Acting",
    Mode.OBSERVING: "Observing",
    Mode.HELD: "On hold",
    Mode.BRAKED: "Braked",
    Mode.STANDBY: "Standing by",
    Mode.TROUBLED: "Not working",
}


CULLS_WORDS: dict[Culls, str] = {
    Culls.HUBGUARD: "HubGuard",
    Culls.OTHER: "Another service",
    Culls.NOBODY: "Nobody",
}


ARMED_BY_WORDS: dict[ArmedBy, str] = {
    ArmedBy.NOBODY: "HubGuard isn't armed",
    ArmedBy.SETTINGS: "armed by c.HubGuard.armed",
    ArmedBy.PERSON: "armed by a person",
    ArmedBy.CULLER: "armed by the culler's service, as long as it is in the hub's config; only for what the culler did",
}


FINDING_WORDS: dict[FindingKind, str] = {
    FindingKind.PENDING_STUCK: "Stuck",
    FindingKind.CAME_BACK: "Came back",
    FindingKind.ACTIVITY_FROZEN: "Activity frozen",
    FindingKind.CANT_TELL: "Can't tell",
    FindingKind.NOT_CULLING: "Not culling",
    FindingKind.RULE: "Rule",
    FindingKind.NOBODY: "Unknown user",
    FindingKind.PRUNE_HELD: "Pruning waits",
    FindingKind.USERS_KEPT: "Users kept",
    FindingKind.NAMED_SERVERS_OFF: "Named servers off",
    FindingKind.NEW_DATABASE: "New database",
    FindingKind.NOT_DELETED: "Users not deleted",
    FindingKind.RECEIVER: "Notices don't arrive",
}


def worst_of(alerts: Sequence[AlertShape]) -> AlertShape | None:
    """The alert that is said first: one that asks to act now, if possible one that is known to hold; None without any."""
    urgent = [alert for alert in alerts if alert.severity is Severity.NOW]
    known = [alert for alert in urgent if alert.state is not AlertState.UNKNOWN]
    return next(iter(known or urgent), None)


def acceptance(brake: Brake, policy: CullPolicy) -> str:
    """What a person accepts by resuming under an acceptable ``brake``; one sentence."""
    if brake.reason is BrakeReason.OVER_CAP:
        return f"If you resume, HubGuard carries out everything that is due, up to {policy.plan_cap:,} actions in each cycle."
    if brake.reason is BrakeReason.POPULATION:
        return "If you resume, you confirm that the missing users are meant to be gone."
    return "If you resume, HubGuard continues despite this."


def other_state(other: OtherCuller) -> tuple[str, str]:
    """The mark of a service that culls or may cull, and its state in a word or two."""
    if not other.known:
        return "unknown", "may cull"
    if other.runs is None:
        return "wait", "hasn't reported yet"
    return ("acting", "culls") if other.runs else ("keep", "waits")


def reach_words(other: OtherCuller) -> str:
    """Whose servers a culler may stop."""
    limits = [" or ".join(filters) for filters in other.reach]
    return " and ".join(limits) or "everybody"


def headline(status: Status, due: int, users: int = 0, *, under_way: bool = False) -> str:
    """What HubGuard is doing and why, for people. ``due`` and ``users`` are the numbers of servers and users that were due
    at the last look; ``under_way``: they are being stopped and deleted at this moment.
    """
    if status.mode is Mode.ACTING:
        state = "being stopped" if under_way else "due now"
        now = f"{count(due, 'server')} {'is' if due == 1 else 'are'} {state}" if due else "No server is due now"
        leaving = f" {count(users, 'user')} {'is' if users == 1 else 'are'} due to be deleted." if users else ""
        return f"HubGuard is armed and stops servers that are due. {now}.{leaving}"
    if status.mode is Mode.OBSERVING:
        would = [f"stop {count(due, 'server')}"] if due else []
        would += [f"delete {count(users, 'user')}"] if users else []
        return f"HubGuard only observes. If armed, it would {' and '.join(would) or 'stop nothing'} now. {status.why}"
    if status.mode is Mode.HELD:
        return f"{status.why} HubGuard changes nothing at the hub until someone resumes."
    if status.mode is Mode.BRAKED and status.brake is not None:
        return status.brake.cause
    return status.why
