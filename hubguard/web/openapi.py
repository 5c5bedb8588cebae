"""What the API takes and returns, declared once: requests are checked by it, and ``openapi.json`` is made from it."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError
from tornado.web import HTTPError

import hubguard
from hubguard.times import moment

# Not what str.isprintable() refuses: that would be the full-width space and what joins letters and emoji, too.
_BREAKS_LINES = {"Cc", "Cs", "Zl", "Zp"}

IN_ONE_LINE = "^[^\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]*$"
"""The pattern of a text without these, as far as JSON Schema can say it."""

BY_THE_HUB = "the token of HubGuard's own service"
"""What an operation needs that only the hub itself calls."""

MANY = 100_000
"""Maximum values in one list of a request."""


class Refused(HTTPError):
    """A request that gets an answer of its own: ``message`` is one line for the caller, and holds no secret."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.message = message


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter in the query or in a JSON body. ``low`` and ``high`` bound a number, or the length of a text.

    ``above`` is a bound that a number has to lie above. ``default`` None: it may be left out, and means what ``help`` says,
    unless it is ``required``. ``many``: it is a list of such values in a body, and may be repeated in a query.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    many: bool = False

    def from_text(self, text: str) -> Any:
        """The value that ``text`` in a query means, one of them if there may be ``many``. Raises Refused (400).

        A switch without a value, as in ``?verbose``, is on.
        """
        try:
            if self.kind is bool:
                return self._one({"true": True, "false": False, "": True}.get(text, text))
            return self._one(text if self.kind is datetime else self.kind(text))
        except (ValueError, OverflowError):
            raise self._refused(text) from None

    def checked(self, value: Any) -> Any:
        """``value``, as JSON has it, when it is of the right kind and within its bounds. Raises Refused (400).

        A list of such values becomes a tuple, in which none stands twice, if there may be ``many``.
        """
        if not self.many:
            return self._one(value)
        if not isinstance(value, list) or len(value) > MANY:
            raise Refused(400, f"{self.name}: must be a list of at most {MANY:,}, each {self._wanted()}")
        return tuple(dict.fromkeys(self._one(operation) for operation in value))

    def _one(self, value: Any) -> Any:
        try:
            return _adapter(self).validate_python(value)
        except ValidationError as error:
            if error.errors()[0]["type"] == "value_error":
                raise Refused(400, f"{self.name}: {error.errors()[0]['ctx']['error']}") from None
            raise self._refused(value) from None

    def _refused(self, value: object) -> Refused:
        got = repr(value)
        return Refused(400, f"{self.name}: must be {self._wanted()}, not {got if len(got) <= 60 else got[:57] + '...'}")

    def _wanted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is str:
            return f"a text of at most {self.high:g} characters" if self.high else "a text"
        if self.kind is datetime:
            return "a time such as 2026-12-01T18:00Z, or a date"
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a number"
        bound, word = (self.low, "from") if self.above is None else (self.above, "above")
        low = "" if bound is None else f" {word} {bound:g}"
        return f"{noun}{low}{'' if self.high is None else f' to {self.high:g}'}"

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        made = _adapter(self).json_schema()
        if self.kind is str and not self.choices:
            made["pattern"] = IN_ONE_LINE
        if self.many:
            made = {"type": "array", "items": made, "maxItems": MANY}
        if self.default is not None:
            made["default"] = list(self.default) if self.many else self.default
        return made


@functools.cache
def _adapter(param: Param) -> TypeAdapter[Any]:
    """What checks one value of ``param`` and describes it."""
    kind: Any = Annotated[param.kind, Field(strict=True, ge=param.low, le=param.high, gt=param.above)]
    if param.choices:
        kind = Literal[param.choices]
    elif param.kind is datetime:
        kind = Annotated[datetime, PlainValidator(_read_moment), WithJsonSchema(_MOMENT)]
    elif param.kind is str:
        shortest, longest = (None if bound is None else int(bound) for bound in (param.low, param.high))
        kind = Annotated[str, Field(strict=True, min_length=shortest, max_length=longest), AfterValidator(_in_one_line)]
    elif param.kind is float:
        kind = Annotated[kind, Field(allow_inf_nan=False)]
    return TypeAdapter(kind)


_MOMENT = {"type": "string", "format": "date-time"}


def _read_moment(value: Any) -> datetime:
    if not isinstance(value, str):
        raise PydanticCustomError("moment", "no time")
    try:
        return moment(value)
    except ValueError:
        raise PydanticCustomError("moment", "no time") from None


def _in_one_line(text: str) -> str:
    if any(unicodedata.category(char) in _BREAKS_LINES for char in text):
        raise ValueError("must not contain control characters")
    return text


def from_query(params: Iterable[Param], arguments: Mapping[str, list[bytes]]) -> dict[str, Any]:
    """A value for each of ``params`` from a query. Raises Refused (400) for an unknown, repeated or bad one."""
    known = {param.name: param for param in params}
    values = {name: param.default for name, param in known.items()}
    for name, given in arguments.items():
        if name not in known:
            raise _unknown(name, known)
        if len(given) != 1 and not known[name].many:
            raise Refused(400, f"{name}: is given {len(given)} times, and may be given once")
        try:
            texts = [text.decode() for text in given]
        except UnicodeDecodeError:
            raise Refused(400, f"{name}: is not UTF-8") from None
        parsed = [known[name].from_text(text) for text in texts[:MANY]]
        values[name] = tuple(dict.fromkeys(parsed)) if known[name].many else parsed[0]
    return _with_all(known, values)


def from_body(params: Iterable[Param], body: bytes) -> dict[str, Any]:
    """A value for each of ``params`` from a JSON object; an empty body is an empty object, null means left out.

    Raises Refused (400) for what isn't one, and for an unknown or bad value.
    """
    known = {param.name: param for param in params}
    try:
        given = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise Refused(400, "The body must be a JSON object, and is not JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, "The body must be a JSON object")
    values = {name: param.default for name, param in known.items()}
    for name, value in given.items():
        if name not in known:
            raise _unknown(name, known)
        if value is not None:
            values[name] = known[name].checked(value)
    return _with_all(known, values)


def _with_all(known: Mapping[str, Param], values: dict[str, Any]) -> dict[str, Any]:
    for name, param in known.items():
        if param.required and values[name] is None:
            raise Refused(400, f"{name}: is missing")
    return values


def _unknown(name: str, known: Mapping[str, Param]) -> Refused:
    shown = name if name.isprintable() and len(name) <= 60 else repr(name[:57])
    return Refused(400, f"{shown}: no such parameter here; there {'are ' + ', '.join(known) if known else 'is none'}")


LONGEST_NAME = 255
"""Maximum characters of a name. The journal keeps no longer one."""

PATH_NAME = Param("address", str, "A name in the address.", high=LONGEST_NAME)
"""What a name in the address may be."""

_IN_PATHS = {
    "user": {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME, "pattern": IN_ONE_LINE},
    "id": {"type": "string", "pattern": "^[0-8]?[0-9]{1,18}$"},
    "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path does. ``answer`` is a dataclass, or None for text; ``listed``: a list of them.

    ``needs`` is the right it takes: read, act, prune, several as ``act and read``, or none; or BY_THE_HUB.
    ``status`` is that of a good answer. ``accepts``: it may also answer 202, with the same, for what is under way by then.
    Without ``answers`` it returns 204. ``unavailable``: it may also answer 503, with the same.
    """

    summary: str
    answer: type | None
    needs: str
    query: tuple[Param, ...] = ()
    body: tuple[Param, ...] | None = None
    listed: bool = False
    paged: bool = False
    fails: tuple[int, ...] = ()
    accepts: bool = False
    answers: bool = True
    status: int = 200
    unavailable: bool = False


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """Every error: the HTTP status, and one line that says what is wrong."""

    status: int
    message: str


def document(paths: Mapping[str, Mapping[str, Operation]], prefix: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description of ``paths``: path template → method → operation."""
    answers = {
        operation.answer for methods in paths.values() for operation in methods.values() if operation.answer is not None
    }
    adapters: list[tuple[type, Literal["validation", "serialization"], TypeAdapter[Any]]]
    adapters = [(kind, "serialization", TypeAdapter(kind)) for kind in {ErrorShape, *answers}]
    made, described = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    schemas = {kind: schema for (kind, _), schema in made.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "HubGuard",
            "version": hubguard.__version__,
            "description": "Rights: read, act, prune. All times are UTC (ISO 8601, Z), all durations seconds.",
        },
        "servers": [{"url": prefix.rstrip("/") or "/"}],
        "security": [{"token": []}],
        "paths": {
            f"/{path}": {method: _operation(path, operation, schemas) for method, operation in methods.items()}
            for path, methods in sorted(paths.items())
        },
        "components": {
            "schemas": described["$defs"],
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`token <a JupyterHub API token>`, or `Bearer <…>`",
                }
            },
        },
    }


def _operation(path: str, operation: Operation, schemas: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if path.endswith(".json"):
        content = {"application/json": {"schema": {"type": "object"}}}
    if path.endswith(".csv"):
        content = {"text/csv": {"schema": {"type": "string"}}}
    if path.endswith(".md"):
        content = {"text/markdown": {"schema": {"type": "string"}}}
    if operation.answer is not None:
        schema = schemas[operation.answer]
        content = {"application/json": {"schema": {"type": "array", "items": schema} if operation.listed else schema}}
        if operation.paged:
            page = {"type": "object", "properties": {"items": {"type": "array", "items": schema}, "_pagination": {}}}
            content["application/jupyterhub-pagination+json"] = {"schema": page}
    statuses = set(operation.fails)
    if "{" in path:
        statuses |= {400, 404}
    if operation.query or operation.body:
        statuses |= {400}
    if operation.needs == BY_THE_HUB:
        statuses |= {401}
    elif operation.needs != "none":
        statuses |= {401, 403, 503}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "description": f"Needs the right: {operation.needs}.",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _IN_PATHS.get(name, PATH_NAME.schema())}
            for name in re.findall(r"{(\w+)}", path)
        ]
        + [
            {"name": param.name, "in": "query", "description": param.help, "schema": param.schema()}
            | ({"required": True} if param.required else {})
            for param in operation.query
        ],
        "responses": {str(operation.status): {"description": HTTPStatus(operation.status).phrase, "content": content}}
        | {
            str(status): {
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorShape"}}},
            }
            for status in sorted(statuses)
        },
    }
    if operation.accepts:
        described["responses"]["202"] = {"description": "It is under way.", "content": content}
    if operation.unavailable:
        described["responses"]["503"] = {"description": "It doesn't work now.", "content": content}
    if not operation.answers:
        described["responses"]["204"] = {"description": "Done, without content."}
        del described["responses"]["200"]
    elif operation.needs == "act":
        described["responses"]["204"] = {"description": "Done, without content: the caller may not read."}
    if operation.needs == "none":
        described["security"] = []
    if operation.body is not None:
        properties = {param.name: param.schema() | {"description": param.help} for param in operation.body}
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
        if required := [param.name for param in operation.body if param.required]:
            schema["required"] = required
        described["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return described
