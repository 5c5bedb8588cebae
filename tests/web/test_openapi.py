"""The description of the API: valid, and kept by every answer to whatever it allows and forbids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import schemathesis
from asked_site import end, serve
from doubles.drift import one_of_each, report_with
from doubles.guard import FakeAuth, guard_with, made_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import CHECKS
from tornado.httpserver import HTTPServer

from hubguard.dashboard.routes import API
from hubguard.web.openapi import document

pytestmark = pytest.mark.contract

DESCRIPTION = document({path: handler.operations for path, handler in API.items()}, "/services/hubguard/")
OPERATIONS = [(method, path) for path, handler in API.items() for method in handler.operations]
CALLERS = ("pruner", "actor", "nobody", None)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The API over a made-up guard, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    guard = guard_with(made_up(5))
    guard.drifts.report = report_with(one_of_each(), made_up(5))

    async def begin() -> tuple[HTTPServer, str]:
        return serve(guard, FakeAuth(), service_token="ours")

    server, where = asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
    try:
        yield where
    finally:
        asyncio.run_coroutine_threadsafe(end(guard, server), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


def test_the_description_is_valid() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DESCRIPTION).iter_errors()] == []


def conforms(url: str, method: str, path: str, examples: int) -> None:
    """Every answer to ``examples`` requests, allowed ones and others, is as described."""
    schema = schemathesis.openapi.from_dict(DESCRIPTION)
    operation = schema[f"/{path}"][method.upper()]
    checks = CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )

    for mode in schemathesis.GenerationMode:

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
        )
        @given(operation.as_strategy(generation_mode=mode), st.sampled_from(CALLERS))
        def ask(case: schemathesis.Case, caller: str | None) -> None:
            headers = {"Authorization": f"token {caller}"} if caller else {}
            case.call_and_validate(base_url=url.rstrip("/"), headers=headers, checks=checks)

        with suppress(Unsatisfiable):  # an operation that takes nothing can't be given what it forbids
            ask()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_described(url: str, method: str, path: str) -> None:
    conforms(url, method, path, 3)


@pytest.mark.long
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_to_many_requests_is_as_described(url: str, method: str, path: str) -> None:
    conforms(url, method, path, 100)
