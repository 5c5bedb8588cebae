"""The report after an incident, in Markdown: what is known is filled in, what only people know is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from hubguard.watch.decide.story import HUBGUARD
from hubguard.watch.model import Story, TimelineItem
from hubguard.words import count, duration, stamp

LINES = 400
"""Maximum lines of the timeline."""


def write_report(story: Story, now: datetime) -> str:
    """The report, as of ``now``. Text from outside can't become a heading, a link or a table."""
    return "\n".join(_lines(story, now)) + "\n"


def _lines(story: Story, now: datetime) -> Iterator[str]:
    incident = story.incident
    title = f"Incident {incident.id}: {_safe(incident.title)}" if incident else "What happened"
    yield f"# {title}"
    yield ""
    yield f"Written by HubGuard at {stamp(now)}. All times are UTC."
    yield from _summary(story)
    yield from _section("Impact", [f"- {_safe(figure.text)} (Evidence: {figure.evidence})" for figure in story.figures])
    if story.unknown:
        yield ""
        yield "What wasn't measured:"
        yield ""
        yield from (f"- {_safe(sentence)}" for sentence in story.unknown)
    yield from _section("Timeline", [_line(item) for item in story.items[:LINES]])
    if story.cut or len(story.items) > LINES:
        yield ""
        yield "There is more in the journal than fits here. `hubguard journal` prints it."
    automatic = [item for item in story.items if item.acted and item.actor == HUBGUARD]
    yield from _section("What HubGuard did", [_line(item) for item in automatic[:LINES]])
    yield from _section("What went well", [*_went_well(story), "- _What else went well?_"])
    yield from _section("Open questions", [f"- {question}" for question in _questions(story)])
    yield from _section(
        "Action items",
        [
            "| what | who | until |",
            "| --- | --- | --- |",
            "| _Prevent it_ | | |",
            "| _Notice it sooner_ | | |",
            "| _Mend it faster_ | | |",
        ],
    )


def _summary(story: Story) -> Iterator[str]:
    incident = story.incident
    yield ""
    yield "## Summary"
    yield ""
    if incident is None:
        yield f"From {stamp(story.since)} to {stamp(story.until)} ({duration((story.until - story.since).total_seconds())})."
    else:
        how = "by HubGuard" if incident.opened_by == HUBGUARD else f"by {_safe(incident.opened_by)}"
        yield f"Opened {how} at {stamp(incident.opened_at)}."
        if incident.closed_at is None:
            yield "It goes on."
        else:
            lasted = duration((incident.closed_at - incident.opened_at).total_seconds())
            yield f"Closed by {_safe(incident.closed_by or '')} at {stamp(incident.closed_at)}, after {lasted}."
    for alert in story.alerts:
        end = f"until {stamp(alert.resolved_at)}" if alert.resolved_at else "and goes on"
        verdict = f" A check found: {_safe(alert.verdict)}" if alert.verdict else ""
        span = f"from {stamp(alert.raised_at)} {end}"
        yield f"- **{alert.rule}** ({alert.severity.value}) {span}: {_safe(alert.sentence)}{verdict}"
    if not story.alerts:
        yield "No alert was raised in this time."
    yield ""
    yield "_In your own words, for those who were hit:_"


def _went_well(story: Story) -> Iterator[str]:
    if story.alerts:
        first = story.alerts[0]
        yield f"- HubGuard raised {first.rule} at {stamp(first.raised_at)}. _Compare with the first message of a user._"
    done = sum(item.acted and item.actor == HUBGUARD for item in story.items)
    if done:
        yield f"- HubGuard acted by itself ({count(done, 'line')} of the timeline)."


def _questions(story: Story) -> Iterator[str]:
    yield "What was the cause, and what shows it?"
    yield "Who noticed first, and when?"
    if not story.alerts:
        yield "Which alert would have shown it? `hubguard alerts rules` lists those there are."
    if story.unknown:
        yield "Which of what wasn't measured would have helped?"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield from lines or ["Nothing is known."]


def _line(item: TimelineItem) -> str:
    until = f" to {item.until:%H:%M:%S}" if item.until is not None else ""
    return f"- `{item.at:%Y-%m-%d %H:%M:%S}{until}` {_safe(item.actor)}: {_safe(item.text)}"


def _safe(text: str) -> str:
    """``text`` on one line, without what Markdown would read as more than text."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", line)
