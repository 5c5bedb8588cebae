"""The rules of the culling policy: what they match, what they set, and which of them can't work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches and what it sets. ``name`` is what pages call it."""

    name: str


def parse(raw: Sequence[Mapping[str, object]]) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The rules in ``raw``, and what is wrong with it. Never raises."""
    return (), ()


def analyse(rules: Sequence[Rule]) -> tuple[str, ...]:
    """One sentence for each rule that can never match or is shadowed by an earlier one."""
    return ()
