"""The alerts in the docs are valid PromQL, and about what HubGuard exports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import promql_parser as promql
import pytest
import yaml
from doubles.drift import report_with
from doubles.guard import guard_with, made_up

from hubguard.dashboard.metrics import registry
from hubguard.dashboard.shapes import state_of
from hubguard.guard import Guard
from hubguard.model import Tally

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")


def rules() -> list[tuple[str, dict[str, Any]]]:
    return [
        (rule["alert"], rule)
        for page in PAGES
        for block in YAML.findall(page.read_text())
        for group in yaml.safe_load(block).get("groups", ())
        for rule in group["rules"]
    ]


def in_prose() -> list[tuple[str, str]]:
    """Whatever stands as code in a line, names one of our metrics, and isn't a file."""
    return [
        (page.name, code)
        for page in PAGES
        for code in CODE.findall(YAML.sub("", page.read_text()))
        if re.search(r"\bhubguard_(?!\w*\.(?:py|db))", code) and " --" not in code and "config" not in code
    ]


def exported() -> dict[str, list[dict[str, str]]]:
    """The labels of all samples, by metric."""
    guard = guard_with(made_up(20))
    guard.change(recent=Tally(done=3, failed=1))
    guard.drifts.report = report_with()
    samples: dict[str, list[dict[str, str]]] = {"up": [{"job": "hubguard"}]}
    for family in registry(lambda: state_of(cast(Guard, guard))).collect():
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    return samples


def selectors(expression: Any) -> Iterator[Any]:
    """The selectors of series in a parsed expression."""
    if isinstance(expression, promql.VectorSelector):
        yield expression
    parts = [getattr(expression, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    for part in [*parts, *(getattr(expression, "args", None) or ())]:
        if isinstance(part, promql.Expr):
            yield from selectors(part)


def check(text: str) -> int:
    """The number of selectors, each of which finds a sample. Raises ValueError for what Prometheus refuses."""
    found = list(selectors(promql.parse(text)))
    for selector in found:
        samples = exported()[selector.name]
        for matcher in selector.matchers.matchers:
            values = {labels[matcher.name] for labels in samples}
            wanted = matcher.value.split("|") if matcher.op == promql.MatchOp.Re else [matcher.value]
            assert set(wanted) <= values, f"{selector.name} never has {matcher.name}={wanted}"
    return len(found)


@pytest.mark.parametrize(("name", "rule"), rules())
def test_each_alert_is_valid_and_can_fire(name: str, rule: dict[str, Any]) -> None:
    assert check(rule["expr"]) >= 1
    assert set(rule) <= {"alert", "expr", "for"}
    assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "0s"))


@pytest.mark.parametrize(("page", "code"), in_prose())
def test_each_metric_in_prose_is_valid(page: str, code: str) -> None:
    assert check(code) >= 1


def test_there_are_alerts_of_every_shape() -> None:
    assert len(rules()) > 10
    assert len(in_prose()) >= 1
    assert check("rate(hubguard_hub_requests_total[10m]) / rate(hubguard_hub_requests_total[5m]) > 0") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        r'hubguard_mode{mode=~"troubled\|held"} == 1',
        "hubguard_proxy_watch > 0 for ten seconds",
        'hubguard_mode{mode="acted"}',
        'hubguard_mode{state="acting"}',
        "hubguard_modes == 1",
    ],
)
def test_an_alert_that_prometheus_refuses_or_that_never_fires_is_noticed(wrong: str) -> None:
    with pytest.raises((ValueError, KeyError, AssertionError)):
        check(wrong)
