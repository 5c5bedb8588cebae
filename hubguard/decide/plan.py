"""Freezes actions into a plan: ordered, capped, with a digest and an expiry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from hubguard.model import Action, Plan

PLAN_LIFE_S = 600.0
"""A plan is carried out within ten minutes or not at all: what it rests on is older than that by then."""


def freeze(actions: Sequence[Action], *, cap: int, now: datetime) -> Plan:
    """A plan of the first ``cap`` of ``actions``, in their order, made at ``now``."""
    kept = tuple(actions[:cap])
    return Plan(now, now + timedelta(seconds=PLAN_LIFE_S), kept, len(actions) - len(kept), digest(kept))


def digest(actions: Sequence[Action]) -> str:
    """SHA-256 (hex) over the actions in their order: equal for equal plans, whoever made them and when."""
    text = json.dumps([asdict(action) for action in actions], default=str, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
