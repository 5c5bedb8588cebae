"""What a rule wants of a server's options: texts, switches, numbers and comparisons, as forms and the API send them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hubguard.hub.names import fits

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_COMPARISON = re.compile(r"(>=|<=|!=|==|>|<|=)\s*(.*)", re.DOTALL)
_QUANTITY = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?)\s*([kmgtp]i?b?|b)?\s*", re.ASCII | re.IGNORECASE
)
_UNITS = {unit: 1024.0**power for power, unit in enumerate("BKMGTP")}

_ON, _OFF = ("true", "on", "yes"), ("false", "off", "no")
_SWITCHES = {**dict.fromkeys(_ON, True), **dict.fromkeys(_OFF, False)}
_FORMS = {**_SWITCHES, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number; ``sized``: with a unit of bytes, so that it can't be compared with a mere count."""

    number: float
    sized: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that an option may be: ``text``, a glob; or, instead, a switch, a number, or all of some comparisons."""

    text: str
    switch: bool | None = None
    number: float | None = None
    bounds: tuple[tuple[str, Quantity], ...] = ()

    def fits(self, value: object) -> bool | None:
        """Whether ``value``, no list or object, is it; None if it has a unit, and a number to compare it with has none."""
        if self.bounds:
            given = quantity(value)
            if given is None:
                return False
            if given.sized and not all(bound.sized for _, bound in self.bounds):
                return None
            return all(_OPERATORS[sign](given.number, bound.number) for sign, bound in self.bounds)
        if self.switch is not None:
            return _switch(value) is self.switch
        if self.number is not None:
            return not isinstance(value, bool) and _plain(value) == self.number
        if isinstance(value, bool):
            said = _SWITCHES.get(self.text.casefold())
            return said is value if said is not None else fits(self.text, _spelled(value))
        if any(fits(glob, text) for glob in _texts(self.text) for text in _texts(_spelled(value))):
            return True
        said = _SWITCHES.get(self.text.casefold())
        return said is not None and isinstance(value, str) and _SWITCHES.get(value.strip().casefold()) is said


def wanted(item: object) -> Wanted:
    """What ``item`` of a rule stands for. Raises ValueError for a comparison that is none."""
    if isinstance(item, bool):
        return Wanted(_spelled(item), switch=item)
    if isinstance(item, (int, float)):
        return Wanted(_spelled(item), number=_plain(item))
    assert isinstance(item, str)
    if not _COMPARISON.match(item.strip()):
        return Wanted(item)
    bounds = []
    for part in item.split(","):
        match = _COMPARISON.fullmatch(part.strip())
        bound = quantity(match[2]) if match else None
        if match is None or bound is None:
            raise ValueError(
                f"{part.strip()!r} is no comparison such as '>= 16' or '> 2, <= 8'; for a text that begins so, write"
                " its first sign in brackets, such as '[<]none>'"
            )
        bounds.append((match[1], bound))
    return Wanted(item, bounds=tuple(bounds))


def quantity(value: object) -> Quantity | None:
    """``value`` as a number; ``500m`` are thousandths, ``16G``, ``16gb`` and ``16Gi`` count by 1024. None: it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if not isinstance(value, str):
        number = _plain(value)
        return None if number is None else Quantity(number)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        return None
    number, unit = float(match[1]), match[2] or ""
    if unit in {"", "m"}:
        return Quantity(number / 1000 if unit else number)
    return Quantity(number * _UNITS[unit[0].upper()], sized=True)


def at(value: object, key: str) -> Iterator[object]:
    """What stands at the dotted path ``key``, a list's items one by one.

    A key with that very name comes before a path. In a list, a part is an item's number if there is such an item; else the
    path goes into every item.
    """
    if isinstance(value, Mapping) and key in value:
        yield from _items(value[key])
    else:
        yield from _along(value, tuple(key.split(".")))


def _along(value: object, parts: tuple[str, ...]) -> Iterator[object]:
    if not parts:
        yield from _items(value)
    elif isinstance(value, Mapping):
        for end in range(len(parts), 0, -1):
            if (name := ".".join(parts[:end])) in value:
                yield from _along(value[name], parts[end:])
                return
    elif isinstance(value, (list, tuple)):
        numbered = dict(zip(map(str, range(len(value))), value, strict=True))
        if parts[0] in numbered:
            yield from _along(numbered[parts[0]], parts[1:])
        else:
            for item in value:
                yield from _along(item, parts)


def _items(value: object) -> Iterator[object]:
    """``value``, or each item of a list, since forms give lists; an object or null has none."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _items(item)
    elif isinstance(value, (str, int, float)):
        yield value


def _switch(value: object) -> bool | None:
    """``value`` as a switch of a form or the API; None: it is none."""
    if isinstance(value, bool):
        return value
    return _FORMS.get(_spelled(value).strip().casefold())


def _plain(value: object) -> float | None:
    """``value`` as a number without a unit."""
    try:
        return float(value) if isinstance(value, (str, int, float)) and "_" not in str(value) else None
    except (ValueError, OverflowError):
        return None


def _spelled(value: object) -> str:
    """``value`` as a form would have it: 4 and 4.0 are ``4``, True is ``true``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        return str(value)
    except ValueError:  # a number with more digits than Python writes out
        return ""


def _texts(text: str) -> tuple[str, ...]:
    """``text``, and if it is a whole number with zeros behind its point, that number without them."""
    whole = re.fullmatch(r"(-?\d+)\.0+", text, re.ASCII)
    return (text, whole[1]) if whole else (text,)
