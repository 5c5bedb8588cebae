"""Dataclasses as JSON and back: checked strictly, and refused in one line that names the field.

Times are RFC 3339 in UTC with a ``Z``; any zone is read, and none is refused. Fields that a dataclass lacks are refused, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter
from pydantic_core import SchemaSerializer, SchemaValidator, ValidationError, core_schema

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

LONGEST_VALUE = 60
"""Maximum characters of a refused value that its message shows."""


class Malformed(ValueError):
    """A value isn't what it should be. The message is one line that names the field."""


def read(kind: type[T], value: object, what: str, *, secret: bool = False) -> T:
    """``value``, as ``json.loads`` returns it, as the dataclass ``kind``. Raises Malformed, naming the value ``what``.

    ``secret``: no part of the value is in the message.
    """
    try:
        return cast("T", _wire_of(kind).validator.validate_python(value))
    except ValidationError as error:
        raise Malformed(refusal(error, what, secret=secret)) from None
    except RecursionError:
        raise Malformed(f"{what}: nested too deeply") from None


def to_plain(value: object) -> Any:
    """``value`` as ``json.dumps`` takes it."""
    return _wire_of(type(value)).serializer.to_python(value, mode="json", warnings=False)


def to_values(value: object) -> Any:
    """``value`` with dicts for its dataclasses, and times and enums as they are."""
    return _wire_of(type(value)).serializer.to_python(value, mode="python", warnings=False)


def extended(shape: type[T], *nouns: DataclassInstance, **more: object) -> T:
    """The dataclass ``shape`` with the fields that it shares with the ``nouns``, the later over the earlier, and ``more``."""
    wanted = {field.name for field in fields(cast("type[DataclassInstance]", shape))}
    shared = {field.name: getattr(noun, field.name) for noun in nouns for field in fields(noun) if field.name in wanted}
    return shape(**{**shared, **more})


def refusal(error: ValidationError, what: str, *, secret: bool = False) -> str:
    """The first thing that ``error`` finds wrong, in one line: ``plan.deletions[3].user: must be a text, not 5``."""
    (first, *_) = error.errors(include_url=False)
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"] if step != "[key]")
    field, got = f"{what}{path}", repr(first["input"])
    got = got if len(got) <= LONGEST_VALUE else f"{got[:LONGEST_VALUE]}…"
    got = "" if secret else f", not {got}"
    match first["type"]:
        case "missing":
            return f"{field}: is missing"
        case "unexpected_keyword_argument":
            return f"{field}: is unknown"
        case "enum":
            return f"{field}: must be one of {first['ctx']['expected'].replace(' or ', ', ')}{got}"
        case kind:
            wanted = _WANTED.get(kind) or re.sub("^Input should ", "must ", first["msg"].removeprefix("Value error, "))
            return f"{field}: {wanted}{got}"


_WANTED: Mapping[str, str] = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "dataclass_type": "must be an object",
    "dataclass_exact_type": "must be an object",
}


# -- how pydantic is held to that -----------------------------------------------------------------------------------------


class _Wire:
    """What reads and writes one type."""

    def __init__(self, kind: Any) -> None:
        schema = _strict(TypeAdapter(kind).core_schema)
        self.validator = SchemaValidator(schema)
        self.serializer = SchemaSerializer(schema)


_wires: dict[Any, _Wire] = {}


def _wire_of(kind: Any) -> _Wire:
    """What reads and writes ``kind``, made once: that takes milliseconds."""
    if kind not in _wires:
        _wires[kind] = _Wire(kind)
    return _wires[kind]


def _strict(schema: Any) -> Any:
    """``schema`` without pydantic's conversions: "5" is no number, 5 no time, and 1 not true."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    match schema.get("type"):
        case "datetime":
            return _TIME
        case "str" | "int" | "bool":
            return {**schema, "strict": True}
        case "float":
            return {**schema, "strict": True, "allow_inf_nan": False}
        case "dataclass-args":
            schema = {**schema, "extra_behavior": "forbid"}
    return {name: part if name in _NO_SCHEMAS else _strict(part) for name, part in schema.items()}


_NO_SCHEMAS = frozenset(
    {"cls", "config", "default", "default_factory", "fields_set", "members", "metadata", "serialization"}
)


def _read_time(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("must be a time")
    try:
        # Python 3.10 doesn't know "Z".
        at = datetime.fromisoformat(f"{value[:-1]}+00:00" if value[-1:] in {"Z", "z"} else value)
        utc = at.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError("must be a time such as 2026-12-01T18:00:00Z") from None
    if at.tzinfo is None:
        raise ValueError("must be a time with its zone, such as 2026-12-01T18:00:00Z")
    return utc


def _write_time(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


_TIME = core_schema.no_info_plain_validator_function(
    _read_time,
    serialization=core_schema.plain_serializer_function_ser_schema(
        _write_time, return_schema=core_schema.str_schema(), when_used="json-unless-none"
    ),
)
