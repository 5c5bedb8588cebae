"""An alert in one sentence, with its numbers in words."""

from __future__ import annotations

from hubguard.watch.decide.alert import Rule
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Alert, AlertState, TimeLeft, Unit
from hubguard.words import duration


def say(value: float, unit: Unit) -> str:
    """``1.9 GiB``, ``12 %``, ``2.4 s``, ``1,200``: three digits are enough to act on."""
    match unit:
        case Unit.SHARE:
            return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"
        case Unit.BYTES:
            return _bytes(value)
        case Unit.SECONDS:
            return duration(value) if value >= 60 else f"{value:.3g} s"
        case Unit.PER_MINUTE:
            return f"{_number(value)} a minute"
        case Unit.COUNT | Unit.CORES:
            return _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def left_words(left: TimeLeft) -> str:
    """``in about 12 min (9 min to 17 min)``."""
    if left.likely_s <= 0:
        return "now"
    most = duration(left.most_s) if left.most_s is not None else "never"
    return f"in about {duration(left.likely_s)} ({duration(left.least_s)} to {most})"


def describe_alert(rule: Rule, alert: Alert) -> str:
    """What is wrong, in one sentence; and of an alert whose source was lost, that this is unknown now."""
    unit = SIGNALS[rule.condition.signal].unit
    left = f", and reaches its limit {left_words(alert.left)}" if alert.left is not None else ""
    text = rule.sentence.format(
        value=say(alert.value, unit),
        limit=say(alert.limit, unit) if alert.limit is not None else "an unknown limit",
        subject=alert.subject,
        left=left,
    )
    if alert.state is AlertState.UNKNOWN:
        return f"Unknown: the source isn't available. Last seen: {text}"
    return text
