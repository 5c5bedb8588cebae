"""The rules of the culling policy: what they match, what they set, and which of them can never have a say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from hubguard.errors import ConfigError
from hubguard.model import Server

LONGEST_IDLE_S = 366 * 86400.0
LONGEST_AGE_S = 10 * LONGEST_IDLE_S
"""A rule's limits have the range of the settings of the same names."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DAY_MIN = 24 * 60
_WEEK_MIN = 7 * _DAY_MIN

Globs = tuple[str, ...]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule matches, all of it, and what it sets. ``name`` is what pages call it; no two have the same.

    None (for ``options``: nothing) stands for a criterion that isn't given. One of the globs has to match, case-sensitively;
    ``servers`` has them for the server's name, ``options`` for the texts at each (dotted) key, a key more than once where
    each time one has to match. ``week`` is when it holds: (begin, end) in minutes from Monday 00:00 in ``zone``, merged,
    in order, the end not included. A limit of None is left to the settings, 0 is off; ``never``: it is never stopped.
    """

    name: str
    users: Globs | None = None
    groups: Globs | None = None
    roles: Globs | None = None
    servers: Globs | None = None
    admin: bool | None = None
    named: bool | None = None
    options: tuple[tuple[str, Globs], ...] = ()
    week: tuple[Span, ...] | None = None
    zone: tzinfo = timezone.utc
    idle_timeout_s: float | None = None
    max_age_s: float | None = None
    never: bool = False

    def matches(self, server: Server, now: datetime) -> bool | None:
        """Whether it matches ``server`` at ``now``; None if that depends on something that the hub doesn't show."""
        if self.admin not in {None, server.admin} or self.named not in {None, bool(server.name)}:
            return False
        asked = [(self.users, (server.user,)), (self.servers, (server.name,)), (self.groups, server.groups)]
        for globs, texts in [*asked, (self.roles, server.roles)]:
            if globs is not None and texts is not None and not _any_match(globs, texts):
                return False
        if server.options is not None:
            for key, globs in self.options:
                if not _any_match(globs, _texts(_at(server.options, key))):
                    return False
        if self.week is not None and not _within(self.week, now.astimezone(self.zone)):
            return False
        return None if self.untold(server) else True

    def untold(self, server: Server) -> tuple[str, ...]:
        """What it needs and the hub doesn't show of ``server``: groups, roles, options."""
        asked = (
            ("groups", self.groups is not None and server.groups is None),
            ("roles", self.roles is not None and server.roles is None),
            ("options", bool(self.options) and server.options is None),
        )
        return tuple(what for what, missing in asked if missing)


def first_match(rules: Sequence[Rule], server: Server, now: datetime) -> tuple[Rule | None, bool]:
    """The first of ``rules`` that matches ``server``, or None, and whether that is certain.

    Not certain: the hub doesn't tell whether this rule matches, and no earlier one does.
    """
    for rule in rules:
        matched = rule.matches(server, now)
        if matched is not False:
            return rule, matched is True
    return None, True


def parse(raw: Sequence[Mapping[str, object]]) -> tuple[tuple[Rule, ...], tuple[ConfigError, ...]]:
    """The rules that ``raw`` has right, in order, and what is wrong with the others. Never raises.

    The ``setting`` of each error is ``rules[i].field``, or ``rules[i]`` if it is about no single field. With errors the rules
    aren't what their author meant: don't act on them.
    """
    rules: list[Rule] = []
    errors: list[ConfigError] = []
    for i, fields in enumerate(raw):
        rule, wrong = _parse_one(fields, f"rules[{i}]", {rule.name for rule in rules})
        errors += wrong
        if rule is not None:
            rules.append(rule)
    return tuple(rules), tuple(errors)


def analyse(rules: Sequence[Rule]) -> tuple[str, ...]:
    """One sentence for each rule that can never match, or that an earlier one leaves nothing to; in their order.

    Only what is certain is told: a rule that isn't named here may still never match.
    """
    sentences = []
    for i, rule in enumerate(rules):
        if why := _contradiction(rule):
            sentences.append(f'The rule "{rule.name}" can never match: {why}.')
        elif shadow := next((earlier for earlier in rules[:i] if _covers(earlier, rule)), None):
            sentences.append(
                f'The rule "{rule.name}" is never used: the earlier rule "{shadow.name}" matches all that it matches.'
            )
    return tuple(sentences)


def _any_match(globs: Globs, texts: Iterable[str]) -> bool:
    return any(fnmatchcase(text, glob) for text in texts for glob in globs)


def _within(week: tuple[Span, ...], local: datetime) -> bool:
    minute = local.weekday() * _DAY_MIN + local.hour * 60 + local.minute
    return any(begin <= minute < end for begin, end in week)


def _at(options: Mapping[str, object], key: str) -> object:
    """What ``options`` has at ``key``, or, with dots in it, at the path it spells; None for nothing."""
    if key in options:
        return options[key]
    value: object = options
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _texts(value: object) -> Globs:
    """The texts that globs are held against: of each item, since forms give lists; an object or null has none."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(_text(item) for item in items if isinstance(item, (str, int, float)))


def _text(value: str | float) -> str:
    """``value`` as a form would have it: 4 and 4.0 are ``4``, True is ``true``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# -- which rules can have a say --------------------------------------------------------------------------------------


def _contradiction(rule: Rule) -> str:
    """Why ``rule`` can never match, or ""."""
    lists = [("users", rule.users), ("groups", rule.groups), ("roles", rule.roles), ("servers", rule.servers)]
    for what, globs in [*lists, *((f"options {key}", globs) for key, globs in rule.options)]:
        if globs == ():
            return f"its list of {what} is empty"
    if rule.week == ():
        return "its weekdays and hours leave no time (24 hours are 00:00-24:00)"
    if rule.servers is not None:
        if rule.named and all(glob == "" for glob in rule.servers):
            return "it wants named servers only, and servers has only the default server"
        if rule.named is False and not _any_match(rule.servers, ("",)):
            return "it wants default servers only, and servers has only named ones"
    return ""


def _covers(earlier: Rule, later: Rule) -> bool:
    """True only where ``earlier`` is certain to match whenever ``later`` does."""
    if earlier.admin not in {None, later.admin} or earlier.named not in {None, later.named}:
        return False
    if not (_all_covered(earlier.groups, later.groups) and _all_covered(earlier.roles, later.roles)):
        return False
    # Every server has a user and a name, but not every user a group, and not every server an option.
    for whole, part in ((earlier.users, later.users), (earlier.servers, later.servers)):
        if not ("*" in (whole or ()) or _all_covered(whole, part)):
            return False
    for key, globs in earlier.options:
        if not any(key == other and _all_covered(globs, part) for other, part in later.options):
            return False
    if earlier.week is None:
        return True
    if later.week is None or earlier.zone != later.zone:
        return False
    return all(any(b <= begin and end <= e for b, e in earlier.week) for begin, end in later.week)


def _all_covered(whole: Globs | None, part: Globs | None) -> bool:
    if whole is None:
        return True
    return part is not None and all(any(_glob_covers(glob, narrow) for glob in whole) for narrow in part)


def _glob_covers(glob: str, narrow: str) -> bool:
    literal = not any(sign in narrow for sign in "*?[")
    return glob in {"*", narrow} or (literal and fnmatchcase(narrow, glob))


# -- reading what people wrote ---------------------------------------------------------------------------------------


def _parse_one(fields: Mapping[str, object], where: str, taken: set[str]) -> tuple[Rule | None, list[ConfigError]]:
    read: dict[str, Any] = {"name": where}
    errors: list[ConfigError] = []
    for field, value in fields.items():
        if not isinstance(field, str) or field not in _READERS:
            plain = isinstance(field, str) and field.isprintable()
            named = field if plain else _shown(field)
            errors.append(ConfigError(f"{where}.{named}", f"no such field{_closest(field)}"))
            continue
        try:
            read[field] = _READERS[field](value)
        except ValueError as error:
            errors.append(ConfigError(f"{where}.{field}", str(error)))
    if read["name"] in taken:
        errors.append(ConfigError(f"{where}.name", f"another rule has the name {_shown(read['name'])}"))
    limits = [field for field in ("idle_timeout_s", "max_age_s") if field in fields]
    if read.get("never") and limits:
        errors.append(
            ConfigError(f"{where}.{limits[0]}", "a rule that says never has no limits; remove one of the two")
        )
    if not errors and not limits and not read.get("never"):
        errors.append(ConfigError(where, "it sets nothing; add idle_timeout_s, max_age_s or never"))
    if errors:
        return None, errors
    week = _week(read.pop("weekdays", None), read.pop("hours", None))
    zone = read.pop("timezone", timezone.utc)
    options = read.pop("options", ())
    if "profiles" in read:
        options = (*options, ("profile", read.pop("profiles")))
    return Rule(**read, options=options, week=week, zone=zone), []


def _globs(value: object) -> Globs:
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"{_shown(item)} is no glob: a text such as 'class-*', or a list of them")
    return tuple(items)


def _options(value: object) -> tuple[tuple[str, Globs], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{_shown(value)} is no dict such as {{'profile': 'gpu*'}}")
    read = []
    for key, wanted in value.items():
        items = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if not isinstance(key, str):
            raise ValueError(f"the key {_shown(key)} is no text")
        for item in items:
            if not isinstance(item, (str, int, float)):
                raise ValueError(f"{_shown(item)} at {key!r} is neither a text nor a number nor True or False")
        read.append((key, tuple(_text(item) for item in items)))
    return tuple(read)


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_shown(value)} is no text that pages could show")
    return " ".join(value.split())


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither True nor False")
    return value


def _limit(high: float, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"is a number of seconds, and {_shown(value)} is not")
    # Written as "not inside" so that NaN, which compares with nothing, is refused, too.
    if not 0 <= value <= high:
        raise ValueError(f"{_shown(value)} is out of range: from 0 to {high:g} it can be")
    return float(value)


def _weekdays(value: object) -> frozenset[int]:
    days: set[int] = set()
    for part in _parts(value, "mon-fri"):
        first, dash, last = (end.strip().lower() for end in part.partition("-"))
        last = last if dash else first
        if first not in DAYS or last not in DAYS:
            raise ValueError(f"{_shown(part)} is no weekday or span of them: {', '.join(DAYS)}, mon-fri")
        begin, end = DAYS.index(first), DAYS.index(last)
        days.update(day % 7 for day in range(begin, end + 1 if end >= begin else end + 8))
    return frozenset(days)


def _hours(value: object) -> tuple[Span, ...]:
    spans = []
    for part in _parts(value, "08:00-18:00"):
        match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})", part)
        if match is None:
            raise ValueError(f"{_shown(part)} is no span such as 08:00-18:00")
        hour, minute, end_hour, end_minute = map(int, match.groups())
        begin, end = hour * 60 + minute, end_hour * 60 + end_minute
        if max(minute, end_minute) > 59 or begin >= _DAY_MIN or end > _DAY_MIN:
            raise ValueError(f"{_shown(part)} goes beyond the day: from 00:00 to 24:00 it has")
        spans.append((begin, end))
    return tuple(spans)


def _parts(value: object, example: str) -> list[str]:
    items = value if isinstance(value, (list, tuple)) else [value]
    parts: list[str] = []
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"{_shown(item)} is no text such as {example}, or a list of them")
        parts += [part.strip() for part in item.split(",")]
    return parts


def _zone(value: object) -> tzinfo:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no time zone such as Europe/Berlin")
    if value == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"{_shown(value)} is no time zone that this machine knows; where a right name such as Europe/Berlin isn't "
            "known, install the package tzdata"
        ) from None


def _week(days: frozenset[int] | None, hours: tuple[Span, ...] | None) -> tuple[Span, ...] | None:
    """When a rule holds; None for always. What goes over midnight belongs to the day on which it begins."""
    if days is None and hours is None:
        return None
    minutes: list[Span] = []
    for day in range(7) if days is None else days:
        for begin, end in ((0, _DAY_MIN),) if hours is None else hours:
            start = day * _DAY_MIN + begin
            stop = start + end - begin + (_DAY_MIN if end < begin else 0)
            minutes += [(start, min(stop, _WEEK_MIN)), (0, stop - _WEEK_MIN)]
    merged: list[Span] = []
    for start, stop in sorted(span for span in minutes if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return None if merged == [(0, _WEEK_MIN)] else tuple(merged)


_READERS: dict[str, Callable[[object], object]] = {
    "name": _name,
    "users": _globs,
    "groups": _globs,
    "roles": _globs,
    "servers": _globs,
    "profiles": _globs,
    "admin": _flag,
    "named": _flag,
    "options": _options,
    "weekdays": _weekdays,
    "hours": _hours,
    "timezone": _zone,
    "idle_timeout_s": partial(_limit, LONGEST_IDLE_S),
    "max_age_s": partial(_limit, LONGEST_AGE_S),
    "never": _flag,
}


def _closest(field: object) -> str:
    near = difflib.get_close_matches(field, _READERS, n=1) if isinstance(field, str) else []
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(_READERS))}"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # a number with more digits than Python writes out
        return f"this {type(value).__name__}"
