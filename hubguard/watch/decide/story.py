"""What happened in a span of time: the journal's entries as a timeline, and the signals as figures of the impact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby

from hubguard.journal.model import Entry, Event
from hubguard.journal.words import entry_sentence
from hubguard.model import ActionKind
from hubguard.watch.decide.sentence import say
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Figure, IncidentNote, Sample, TimelineItem, split_key
from hubguard.words import count, duration, stamp

HUBGUARD = "hubguard"

LEFT_OUT = frozenset({Event.CYCLE, Event.ANNOUNCED})
"""Entries that say what HubGuard looked at or would do: nothing happened."""

FOLDED_FROM = 4
"""Fewest events of one kind in a row that become one line."""

_DONE_WORDS: Mapping[str, str] = {
    ActionKind.STOP_SERVER.value: "stops of servers",
    ActionKind.INTERRUPT_SPAWN.value: "interruptions of stuck starts",
    ActionKind.DELETE_USER.value: "deletions of users",
    ActionKind.CHECK_ROUTES.value: "checks of routes",
    ActionKind.START_AND_STOP.value: "cures of servers that the hub only believed in",
    ActionKind.END_BACKEND.value: "ends of backends",
}


def timeline(entries: Iterable[Entry], notes: Iterable[IncidentNote]) -> tuple[TimelineItem, ...]:
    """``entries``, in any order, and ``notes`` as one timeline, oldest first.

    An intent that has its outcome among them is left out; four and more outcomes of one kind in a row become one line.
    """
    known = sorted((entry for entry in entries if entry.event not in LEFT_OUT), key=lambda entry: entry.id)
    settled = {entry.refers_to for entry in known}
    left = [entry for entry in known if entry.event is not Event.INTENT or entry.id not in settled]
    items = [item for _, group in groupby(left, key=_kind_of) for item in _lines(list(group))]
    items += [TimelineItem(note.at, note.actor, f"note: {note.text}") for note in notes]
    return tuple(sorted(items, key=lambda item: item.at))


def _kind_of(entry: Entry) -> tuple[object, ...]:
    """What entries must share to become one line; those of people, and what isn't an outcome, stay apart by their id."""
    if entry.event is Event.OUTCOME:
        return entry.actor, entry.action, entry.outcome
    return (entry.id,)


def _lines(entries: Sequence[Entry]) -> Iterator[TimelineItem]:
    first, last = entries[0], entries[-1]
    acted = first.event in {Event.OUTCOME, Event.INTENT}
    if len(entries) < FOLDED_FROM:
        for entry in entries:
            yield TimelineItem(entry.at, entry.actor, entry_sentence(entry), acted=acted)
        return
    what = _DONE_WORDS.get(first.action or "", "actions")
    how = first.outcome.value if first.outcome else "ended"
    users = len({entry.user for entry in entries})
    text = f"{len(entries):,} {what}: {how} ({count(users, 'user')})"
    yield TimelineItem(first.at, first.actor, text, until=last.at, acted=True)


# -- impact ---------------------------------------------------------------------------------------------------------------

_SUMS: Mapping[str, str] = {
    "proxy_errors_per_minute": "About {} requests at the proxy ended with 5xx.",
    "hub_errors_per_minute": "About {} requests to the hub ended with 400 or 5xx.",
    "failed_starts_per_minute": "About {} starts of servers failed.",
}
"""Rates whose sum over the time is a figure."""

_DOWN: Mapping[str, str] = {
    "hub_up": "The hub didn't answer for {}.",
    "database_up": "The hub's database didn't answer for {}.",
    "proxy_up": "The proxy was down, or without its routes, for {}.",
}
"""Signals whose time at 0 is a figure."""

_WORST: Mapping[str, str] = {
    "hub_latency_seconds": "The hub took up to {} for a small request.",
    "routes_missing": "Up to {} ready servers had no route: their users were cut off.",
    "proxy_memory_bytes": "The proxy used up to {} of memory.",
    "hub_memory_bytes": "The hub used up to {} of memory.",
    "ports_used_share": "Up to {} of the machine's ephemeral ports were in use.",
    "backends_extra": "Up to {} backends ran that the hub didn't count.",
}
"""Signals whose highest value is a figure."""

_FELL: Mapping[str, str] = {
    "servers_running": "Running servers fell from {} to {}.",
    "users_total": "The hub's users fell from {} to {}.",
}
"""Signals whose fall is a figure."""


def impact(samples: Mapping[str, Sequence[Sample]], step_s: int) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """(figures, what wasn't measured), from the samples of the time by key, each of ``step_s`` seconds.

    A figure names the signal and the time that show it. A signal that was fine gives none.
    """
    by_name: dict[str, list[Sample]] = {}
    for key, some in samples.items():
        by_name.setdefault(split_key(key)[0], []).extend(some)
    figures: list[Figure] = []
    for name, text in _DOWN.items():
        down = [sample for sample in by_name.get(name, ()) if sample.low < 1]
        if down:
            seconds = sum((1 - sample.mean) * step_s for sample in down)
            figures.append(Figure(text.format(duration(max(1.0, seconds))), _evidence(name, down)))
    for name, text in _SUMS.items():
        some = [sample for sample in by_name.get(name, ()) if sample.mean > 0]
        total = sum(sample.mean * step_s / 60 for sample in some)
        if total >= 1:
            figures.append(Figure(text.format(f"{total:,.0f}"), _evidence(name, some)))
    for name, text in _WORST.items():
        some = by_name.get(name, [])
        worst = max(some, key=lambda sample: sample.high, default=None)
        if worst is not None and worst.high > 0:
            figures.append(Figure(text.format(say(worst.high, SIGNALS[name].unit)), _evidence(name, [worst])))
    for name, text in _FELL.items():
        some = by_name.get(name, [])
        if some and min(sample.low for sample in some) < some[0].mean * 0.9:
            lowest = min(some, key=lambda sample: sample.low)
            figures.append(
                Figure(text.format(f"{some[0].mean:,.0f}", f"{lowest.low:,.0f}"), _evidence(name, [some[0], lowest]))
            )
    wanted = {**_DOWN, **_SUMS, **_WORST, **_FELL}
    unknown = tuple(f"{SIGNALS[name].title}: not measured in this time." for name in wanted if not by_name.get(name))
    return tuple(figures), unknown


def _evidence(name: str, samples: Sequence[Sample]) -> str:
    first, last = (datetime.fromtimestamp(at, timezone.utc) for at in (samples[0].at, samples[-1].at))
    when = stamp(first) if first == last else f"{stamp(first)} to {stamp(last)}"
    return f"signal {name}, {when}"
