"""The rules as an operator has adjusted them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hubguard.errors import HubGuardError
from hubguard.watch.decide.alert import Level, Rule
from hubguard.watch.decide.rules import RULES
from hubguard.watch.model import Severity

OF_RULE = ("for_s", "clear_for_s", "looks", "severity")
"""What can be changed of every rule; beside it, the numbers of its condition can."""

LONGEST_S = 7 * 86400.0
"""Maximum seconds that an alert's times can be set to: what is held in memory reaches no further back."""


def adjustable(rule: Rule) -> dict[str, float | int | str | None]:
    """What an operator can change of that rule, with the values that hold by default."""
    condition = {
        field.name: getattr(rule.condition, field.name)
        for field in dataclasses.fields(rule.condition)  # type: ignore[arg-type]
        if isinstance(getattr(rule.condition, field.name), float)
    }
    return {
        **condition,
        "for_s": rule.for_s,
        "clear_for_s": rule.clear_for_s,
        "looks": rule.looks,
        "severity": rule.severity.value,
    }


def adjust(changes: Mapping[str, object]) -> tuple[Rule, ...]:
    """The built-in rules with ``changes`` by name, those that are switched off left out. What is wrong changes nothing."""
    wrong = {where for where, _ in problems_of(changes)}
    rules = []
    for rule in RULES:
        change = changes.get(rule.name) if rule.name not in wrong else None
        if change is False:
            continue
        rules.append(_changed(rule, change) if isinstance(change, Mapping) else rule)
    return tuple(rules)


def _changed(rule: Rule, change: Mapping[str, Any]) -> Rule:
    of_rule = {name: value for name, value in change.items() if name in OF_RULE}
    if "severity" in of_rule:
        of_rule["severity"] = Severity(of_rule["severity"])
    of_condition = {name: float(value) for name, value in change.items() if name not in OF_RULE}
    condition: Any = rule.condition
    return dataclasses.replace(rule, **of_rule, condition=dataclasses.replace(condition, **of_condition))


def problems_of(changes: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(name of the rule, what is wrong with its change), in the order of ``changes``; one for each rule at most."""
    names = [rule.name for rule in RULES]
    by_name = {rule.name: rule for rule in RULES}
    for name, change in changes.items():
        if name not in by_name:
            near = difflib.get_close_matches(str(name), names, n=1)
            yield (
                str(name),
                "no such alert" + (f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(names)}"),
            )
        elif change is not False and (why := _why_not(by_name[name], change)):
            yield str(name), why


def _why_not(rule: Rule, change: object) -> str:
    if not isinstance(change, Mapping):
        return f"is False or a dict of changes, not {change!r}"
    there = adjustable(rule)
    for name, value in change.items():
        if name not in there:
            return f"has no {name!r}; choose from {', '.join(there)}"
        if name == "severity":
            if value not in [severity.value for severity in Severity]:
                return f"severity: one of now, today, this-week, not {value!r}"
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"{name}: is a number, not {value!r}"
        if name == "looks" and (not isinstance(value, int) or not 1 <= value <= 1000):
            return f"looks: a whole number from 1 to 1000, not {value!r}"
        if name.endswith("_s") and not 0 <= value <= LONGEST_S:
            return f"{name}: from 0 to {LONGEST_S:.0f} seconds, not {value!r}"
    changed = _changed(rule, change).condition
    if isinstance(changed, Level):
        crossed = changed.clear_at < changed.raise_at if changed.below else changed.clear_at > changed.raise_at
        if crossed:
            side = "below" if changed.below else "above"
            return f"clears {side} where it raises ({changed.clear_at:g}, {changed.raise_at:g}): it would never rest"
    return ""


def check_rule(name: str, names: Collection[str]) -> None:
    """Raise HubGuardError unless ``name`` is one of the alerts in force, or "" for all of them."""
    if name and name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise HubGuardError(f"Nothing silenced: no alert {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
