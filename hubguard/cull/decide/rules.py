"""The rules of the culling policy: what they match, what they set, and which of them can never have a say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from hubguard.cull.decide.options import Wanted, at, wanted
from hubguard.errors import ConfigError
from hubguard.hub.names import fits, spellings
from hubguard.model import Server, User
from hubguard.words import stamp

LONGEST_IDLE_S = 366 * 86400.0
LONGEST_AGE_S = 10 * LONGEST_IDLE_S
"""Maximum seconds of a rule's limits, as in the settings of the same names."""

MOST_SERVERS = 1_000_000
"""Maximum of max_servers and max_servers_in_all, in servers; no hub runs as many."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DAY_MIN = 24 * 60
_WEEK_MIN = 7 * _DAY_MIN

_FIRST, _LAST = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)
_DAY = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?!\d)", re.ASCII)

Globs = tuple[str, ...]
Options = tuple[tuple[str, tuple[Wanted, ...]], ...]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule matches, all of it, and what it sets. ``name`` is what pages call it; no two have the same.

    None (for ``options``: ()) stands for a criterion that isn't given. One of the globs has to match, case-sensitively;
    ``servers`` has them for the server's name, ``options`` what may stand at each (dotted) key; a key that stands more than
    once has to match each time. ``without`` has globs by what they are about ("users", "groups", "roles", "servers"), and
    ``without_options`` what none of may match. ``week`` is when it holds: (begin, end) in minutes from Monday 00:00 in
    ``zone``, merged, in order, the end not included; ``begins`` and ``ends`` are the moments between which it holds.
    A limit of None is left to the settings, 0 is off; ``never``: it is never stopped. ``max_servers`` is how many of the
    servers that it decides on one user may have, ``max_servers_in_all`` how many all users together; 0: any number.
    """

    name: str
    users: Globs | None = None
    groups: Globs | None = None
    roles: Globs | None = None
    servers: Globs | None = None
    admin: bool | None = None
    named: bool | None = None
    options: Options = ()
    without: tuple[tuple[str, Globs], ...] = ()
    without_options: Options = ()
    week: tuple[Span, ...] | None = None
    zone: tzinfo = timezone.utc
    begins: datetime | None = None
    ends: datetime | None = None
    idle_timeout_s: float | None = None
    max_age_s: float | None = None
    never: bool = False
    max_servers: int = 0
    max_servers_in_all: int = 0

    def matches(self, server: Server, now: datetime) -> bool | None:
        """Whether it matches ``server`` at ``now``.

        None if that depends on something that the hub doesn't show, or on comparing an option's unit with a bare number.
        """
        if self.admin not in {None, server.admin} or self.named not in {None, bool(server.name)}:
            return False
        have = _texts_of(server)
        for what, globs in self._globs:
            texts = have[what]
            if texts is not None and not _any_match(globs, texts):
                return False
        for what, globs in self.without:
            if _any_match(globs, have[what] or ()):
                return False
        options = server.options or {}
        wants = [_any_fits(items, options, key) for key, items in self.options]
        bans = [_any_fits(items, options, key) for key, items in self.without_options]
        if server.options is not None and (False in wants or True in bans):
            return False
        if self.week is not None and not _within(self.week, now.astimezone(self.zone)):
            return False
        if (self.begins is not None and now < self.begins) or (self.ends is not None and now >= self.ends):
            return False
        return None if None in (*wants, *bans) or self.hidden(server) else True

    def matches_user(self, user: User, now: datetime) -> bool | None:
        """Whether it matches every server of ``user``, whatever server that is, as :meth:`matches` does."""
        server = Server(user.name, "", True, None, None, None, user.admin, user.groups, user.roles, {})
        return self.matches(server, now) if self.of_users else False

    @property
    def of_users(self) -> bool:
        """Whether it asks only what is the same for all servers of a user."""
        asked = {what for what, _ in (*self._globs, *self.without)}
        return self.named is None and "servers" not in asked and not (self.options or self.without_options)

    @property
    def unlimited(self) -> bool:
        """Whether nothing is asked, so that it matches each server at any time."""
        timed = self.week is not None or self.begins is not None or self.ends is not None
        asked = self._globs or self.without or self.options or self.without_options or timed
        return not asked and self.admin is None and self.named is None

    @property
    def _globs(self) -> tuple[tuple[str, Globs], ...]:
        given = (("users", self.users), ("groups", self.groups), ("roles", self.roles), ("servers", self.servers))
        return tuple((what, globs) for what, globs in given if globs is not None)

    def hidden(self, server: Server) -> tuple[str, ...]:
        """What it needs and the hub doesn't show of ``server``: groups, roles, options."""
        needed = {what for what, _ in (*self._globs, *self.without)}
        if self.options or self.without_options:
            needed.add("options")
        have = {**_texts_of(server), "options": server.options}
        return tuple(what for what in ("groups", "roles", "options") if what in needed and have[what] is None)


def first_match(rules: Sequence[Rule], server: Server, now: datetime) -> tuple[Rule | None, bool]:
    """The first of ``rules`` that matches ``server``, or None, and whether that is certain.

    Not certain: whether this rule matches is unknown, and no earlier one matches.
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

    Only what is certain is here: a rule that isn't named may still never match. :func:`doubts` has the rest.
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


def doubts(rules: Sequence[Rule], now: datetime) -> tuple[str, ...]:
    """One sentence for each rule that is hardly meant as it stands: it names nothing to match, or has expired by ``now``."""
    sentences = []
    for rule in rules:
        if rule.unlimited:
            never = ", so no later rule or setting ever stops a server" if rule.never else ""
            sentences.append(
                f'The rule "{rule.name}" doesn\'t say what it matches: it applies to every server{never}.'
                ' If that is meant, say so with users: "*".'
            )
        elif rule.ends is not None and rule.ends <= now:
            sentences.append(f'The rule "{rule.name}" expired at {stamp(rule.ends)}.')
    return tuple(sentences)


def _any_match(globs: Globs, texts: Iterable[str]) -> bool:
    return any(fits(glob, text) for text in texts for glob in globs)


def _any_fits(items: tuple[Wanted, ...], options: Mapping[str, object], key: str) -> bool | None:
    answers = {item.fits(value) for value in at(options, key) for item in items}
    return True if True in answers else None if None in answers else False


def _texts_of(server: Server) -> dict[str, tuple[str, ...] | None]:
    """What globs are compared with; None: the hub doesn't show it."""
    return {"users": (server.user,), "groups": server.groups, "roles": server.roles, "servers": (server.name,)}


def _within(week: tuple[Span, ...], local: datetime) -> bool:
    minute = local.weekday() * _DAY_MIN + local.hour * 60 + local.minute
    return any(begin <= minute < end for begin, end in week)


# -- which rules can have a say --------------------------------------------------------------------------------------


def _contradiction(rule: Rule) -> str:
    """Why ``rule`` can never match, or ""."""
    options = ((f"options {key}", items) for key, items in rule.options)
    for what, items in (*rule._globs, *options):
        if not items:
            return f"its list of {what} is empty"
    for what, globs in rule.without:
        if "*" in globs and what in {"users", "servers"}:
            return f"its not_{what} leaves nothing"
        asked = dict(rule._globs).get(what)
        if asked is not None and all(glob in globs for glob in asked):
            return f"its not_{what} leaves nothing of its {what}"
    if rule.week == ():
        return "its weekdays and hours leave no time (24 hours are 00:00-24:00)"
    if rule.servers is not None:
        if rule.named and all(glob == "" for glob in rule.servers):
            return "it wants named servers only, and servers has only the default server"
        if rule.named is False and not _any_match(rule.servers, ("",)):
            return "it wants default servers only, and servers has only named ones"
    return ""


def _covers(earlier: Rule, later: Rule) -> bool:
    """True only if ``earlier`` is certain to match whenever ``later`` does."""
    if earlier.admin not in {None, later.admin} or earlier.named not in {None, later.named}:
        return False
    if not (_all_covered(earlier.groups, later.groups) and _all_covered(earlier.roles, later.roles)):
        return False
    # Every server has a user and a name, but not every user a group, and not every server an option.
    for whole, part in ((earlier.users, later.users), (earlier.servers, later.servers)):
        if not ("*" in (whole or ()) or _all_covered(whole, part)):
            return False
    for key, items in earlier.options:
        if not any(key == other and _all_fit(items, part) for other, part in later.options):
            return False
    # What the earlier one leaves out, the later one has to leave out, too.
    left_out = dict(later.without)
    if not all(what in left_out and set(globs) <= set(left_out[what]) for what, globs in earlier.without):
        return False
    for key, items in earlier.without_options:
        if not any(key == other and set(items) <= set(part) for other, part in later.without_options):
            return False
    if earlier.begins is not None and (later.begins is None or later.begins < earlier.begins):
        return False
    if earlier.ends is not None and (later.ends is None or later.ends > earlier.ends):
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
    return glob in {"*", narrow} or (literal and fits(glob, narrow))


def _all_fit(whole: tuple[Wanted, ...], part: tuple[Wanted, ...]) -> bool:
    def plain(item: Wanted) -> bool:
        return not item.bounds and item.switch is None and item.number is None

    def covers(wide: Wanted, narrow: Wanted) -> bool:
        if wide == narrow or (plain(wide) and wide.text == "*"):
            return True
        if wide.number is not None and plain(narrow):
            return wide.fits(narrow.text) is True
        return plain(wide) and plain(narrow) and _glob_covers(wide.text, narrow.text)

    return all(any(covers(wide, narrow) for wide in whole) for narrow in part)


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
    limits = [field for field in _LIMITS if field in fields]
    if read.get("never") and limits:
        errors.append(
            ConfigError(f"{where}.{limits[0]}", "a rule that says never has no limits; remove one of the two")
        )
    if not errors and not limits and not read.get("never"):
        errors.append(ConfigError(where, f"it sets nothing; add {', '.join(_LIMITS)} or never"))
    zone = read.pop("timezone", timezone.utc)
    begins, ends = _moment(read.pop("from", None), zone), _moment(read.pop("until", None), zone, last=True)
    if begins is not None and ends is not None and ends <= begins:
        errors.append(ConfigError(f"{where}.until", f"{_shown(fields['until'])} isn't later than from"))
    if errors:
        return None, errors
    week = _week(read.pop("weekdays", None), read.pop("hours", None))
    options, without_options = (
        (*read.pop(f"{no}options", ()), *((("profile", read.pop(f"{no}profiles")),) if f"{no}profiles" in read else ()))
        for no in ("", "not_")
    )
    without = tuple(
        (what, read.pop(f"not_{what}")) for what in ("users", "groups", "roles", "servers") if f"not_{what}" in read
    )
    more = {"options": options, "without": without, "without_options": without_options, "week": week, "zone": zone}
    return Rule(**read, **more, begins=begins, ends=ends), []


def _globs(value: object) -> Globs:
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"{_shown(item)} is no glob: a text such as 'class-*', or a list of them")
    return tuple(items)


def _users(value: object) -> Globs:
    return tuple(dict.fromkeys(spelling for glob in _globs(value) for spelling in spellings(glob)))


def _profiles(value: object) -> tuple[Wanted, ...]:
    return tuple(map(wanted, _globs(value)))


def _options(value: object) -> Options:
    if not isinstance(value, Mapping):
        raise ValueError(f"{_shown(value)} is no dict such as {{'profile': 'gpu*'}}")
    read: list[tuple[str, tuple[Wanted, ...]]] = []
    for key, given in value.items():
        if not isinstance(key, str):
            raise ValueError(f"the key {_shown(key)} is no text")
        if isinstance(given, Mapping) and given:
            read += [(f"{key}.{deeper}", items) for deeper, items in _options(given)]
            continue
        items = given if isinstance(given, (list, tuple)) else [given]
        for item in items:
            if not isinstance(item, (str, int, float)):
                raise ValueError(f"{_shown(item)} at {key!r} is neither a text nor a number nor True or False")
        try:
            read.append((key, tuple(map(wanted, items))))
        except ValueError as error:
            raise ValueError(f"at {key!r}, {error}") from None
    return tuple(read)


def _time(value: object) -> datetime | date:
    """A date, or a moment, which is in the rule's time zone unless it has one of its own."""
    if isinstance(value, date):  # datetime is one, too
        return value
    if isinstance(value, str):
        text = value.strip()
        day = _DAY.match(text)
        try:
            if day and day.end() == len(text):
                return date(*map(int, day.groups()))
            if day:
                # Python 3.10 reads a date with dashes only.
                return datetime.fromisoformat("-".join(day.groups()) + text[day.end() :].replace("Z", "+00:00"))
        except ValueError:
            pass
    raise ValueError(f"{_shown(value)} is no date such as 2026-12-01 or 2026-12-01T18:00")


def _moment(value: datetime | date | None, zone: tzinfo, *, last: bool = False) -> datetime | None:
    """``value`` in UTC, or the nearest that Python has. A date is its begin, or with ``last`` its end."""
    if value is None:
        return None
    try:
        if not isinstance(value, datetime):
            value = datetime.combine(value + timedelta(days=1) if last else value, time())
        return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(timezone.utc)
    except OverflowError:
        return _FIRST if value.year == date.min.year else _LAST


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"is a number of servers, and {_shown(value)} is not")
    if not 0 <= value <= MOST_SERVERS:
        raise ValueError(f"{_shown(value)} is out of range: from 0 (any number) to {MOST_SERVERS:,} it can be")
    return value


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
            f"{_shown(value)} is no time zone that this machine knows; if it doesn't know a valid name such as Europe/Berlin,"
            " install the package tzdata"
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


_LIMITS = ("idle_timeout_s", "max_age_s", "max_servers", "max_servers_in_all")
"""What a rule may set besides ``never``."""

_READERS: dict[str, Callable[[object], object]] = {
    "name": _name,
    "users": _users,
    "groups": _globs,
    "roles": _globs,
    "servers": _globs,
    "profiles": _profiles,
    "not_users": _users,
    "not_groups": _globs,
    "not_roles": _globs,
    "not_servers": _globs,
    "not_profiles": _profiles,
    "not_options": _options,
    "from": _time,
    "until": _time,
    "max_servers": _number,
    "max_servers_in_all": _number,
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
