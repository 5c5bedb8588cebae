"""Reads the command line of jupyterhub-idle-culler, so that HubGuard can go on with its settings.

Learned from the options of 1.4.0 (tornado's: ``--cull-every=0``, ``--cull_users``) and 2.0.0 (traitlets': ``--cull-every 0``,
``--IdleCuller.cull_every=0``), whose names and defaults are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DEFAULT_TIMEOUT_S = 600
"""The culler's own default, which holds where its command doesn't say."""

DEFAULT_CONFIG_FILE = "idle_culler_config.py"
"""What 2.0.0 reads from the folder it runs in where no ``--config`` names another file."""

LONGEST_IDLE_S = 366 * 86400
LONGEST_AGE_S = 10 * LONGEST_IDLE_S
"""Longer than HubGuard's settings take, and as good as none."""

LONGEST_EVERY_S = 86400
MOST_AT_ONCE = 500

_BOOLEANS = {
    "cull-default-servers": ("default_servers", True),
    "cull-named-servers": ("named_servers", True),
    "remove-named-servers": ("remove_named_servers", False),
}
_NUMBERS = ("timeout", "cull-every", "max-age", "concurrency")
# --cull-admin-users spares admins from being deleted, not their servers from being stopped (read in 1.4.0 and 2.0.0).
_WITHOUT_MEANING_HERE = {
    "cull-admin-users",
    "url",
    "api-page-size",
    "logging",
    "log-level",
    "debug",
    "log-file-prefix",
    "log-to-stderr",
}
_NOT_TAKEN_OVER = {
    "cull-users": "--cull-users isn't taken over: HubGuard deletes no users by itself.",
    "config": "--config isn't taken over: HubGuard doesn't know what stands in that file.",
    "cull-arbiter-hook": "the arbiter hook isn't taken over: HubGuard doesn't know what it spares.",
    "ssl-enabled": "--ssl-enabled isn't taken over: HubGuard doesn't reach hubs with internal SSL yet.",
    "internal-certs-location": "",
}
_MAKE_IT_UNSAFE = {"config", "cull-arbiter-hook", "ssl-enabled"}


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What a culler's command says, as ``settings`` of HubGuard's (section → name → value).

    ``notes`` says what isn't taken over, one line each. With ``understood`` False some of it could spare servers in ways
    that HubGuard doesn't know, or HubGuard couldn't do its work: it must not take over.
    """

    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    understood: bool = True


def settings_from(command: Sequence[str]) -> TakenOver:
    """The settings that a culler's whole command, interpreter included, amounts to. Never raises."""
    cull: dict[str, object] = dict(_BOOLEANS.values())
    numbers = {"timeout": float(DEFAULT_TIMEOUT_S), "cull-every": 0.0, "max-age": 0.0, "concurrency": 10.0}
    notes: list[str] = []
    understood = True
    if shell := next((str(word) for word in command if "cull" in str(word) and len(str(word).split()) > 1), None):
        notes.append(f"a command inside a command can't be understood: {shell}")
        understood = False
    for name, value in _options(command):
        if name in _WITHOUT_MEANING_HERE:
            continue
        known = (
            _number(value)
            if name in _NUMBERS
            else _boolean(value)
            if name in _BOOLEANS or name in _NOT_TAKEN_OVER
            else None
        )
        if name in _NOT_TAKEN_OVER and known is not False:
            notes += [note] if (note := _NOT_TAKEN_OVER[name]) else []
            understood &= name not in _MAKE_IT_UNSAFE
        elif name in _NUMBERS and known is not None:
            numbers[name] = float(known)
        elif name in _BOOLEANS and known is not None:
            cull[_BOOLEANS[name][0]] = known
        elif name not in _NOT_TAKEN_OVER:
            notes.append(f"--{name}" + (f"={value}" if value is not None else "") + " can't be understood.")
            understood = False
    timeout_s, max_age_s = numbers["timeout"], numbers["max-age"]
    if timeout_s < 1:
        notes.append("--timeout=0 isn't taken over: it stops every server in every cycle.")
        understood = False
    every_s = numbers["cull-every"] or timeout_s // 2
    cull["idle_timeout_s"] = timeout_s if timeout_s <= LONGEST_IDLE_S else 0.0
    cull["max_age_s"] = max_age_s if max_age_s <= LONGEST_AGE_S else 0.0
    cull["every_s"] = min(max(1.0, every_s), LONGEST_EVERY_S)
    settings: dict[str, dict[str, object]] = {"HubGuardCull": cull}
    if numbers["concurrency"] >= 1:
        settings["HubGuardBudget"] = {"concurrency": min(int(numbers["concurrency"]), MOST_AT_ONCE)}
    return TakenOver(settings, tuple(notes), understood)


def _options(command: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name in dashes, value or None) of every option; what stands before the first one is how the culler is run."""
    words = [str(word) for word in command]
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or word == "--":
            if word == "-m":
                position += 1
            continue
        name, equals, value = word[2:].partition("=")
        name = name.removeprefix("IdleCuller.").replace("_", "-")
        if equals:
            yield name, value
        elif position < len(words) and not words[position].startswith("-") and _takes_a_value(name, words[position]):
            position += 1
            yield name, words[position - 1]
        else:
            yield name, None


def _takes_a_value(name: str, word: str) -> bool:
    return name in _NUMBERS or name in {"url", "config", "logging", "api-page-size"} or _boolean(word) is not None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _boolean(value: str | None) -> bool | None:
    if value is None:
        return True
    return {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}.get(
        value.strip("'\"").lower()
    )
