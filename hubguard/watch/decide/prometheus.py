"""The alerts as rules for Prometheus, and the signals as a dashboard for Grafana: from the same definitions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hubguard.watch.decide.alert import Condition, Fall, Forecast, Jump, Level, Rule
from hubguard.watch.decide.signals import SIGNALS
from hubguard.watch.model import Signal, Unit

REFERENCE = "docs/reference/alerts.md"
"""Where each alert has a heading of its own."""

FAILED_START = {5: 'status=~"failure|error"', 6: 'status="error"'}
"""What the hub of that version counts a start as that timed out, crashed or ended with an error."""

_WORDS = {
    Unit.SHARE: "{{ $value | humanizePercentage }}",
    Unit.BYTES: "{{ $value | humanize1024 }}B",
    Unit.SECONDS: "{{ $value | humanizeDuration }}",
}
_GRAFANA_UNITS = {Unit.SHARE: "percentunit", Unit.BYTES: "bytes", Unit.SECONDS: "s"}

Series = Callable[[str], str]
"""The expression of a signal by its name."""


def series_of_guard(name: str) -> str:
    """The metric of that signal in HubGuard's own ``/metrics``."""
    return f"hubguard_{name}_total" if SIGNALS[name].counter else f"hubguard_{name}"


def series_of_hub(hub: int, prefix: str) -> Series:
    """The hub's own metrics, with its ``prefix``, for the signals that are made of those; HubGuard's for the others.

    ``hub`` is the hub's major version: 5 and 6 count failed starts differently.
    """
    requests = f"{prefix}_request_duration_seconds_count"
    wrong = f'sum(rate({requests}{{code=~"400|5.."}}[5m]))'
    starts = f"{prefix}_server_spawn_duration_seconds_count"
    failed = f"sum(increase({starts}{{{FAILED_START[hub]}}}[30m]))"
    tried = f'sum(increase({starts}{{status="success"}}[30m]))'
    own = {
        "hub_errors_per_minute": f"60 * {wrong}",
        "hub_error_share": f"{wrong} / sum(rate({requests}[5m]))",
        "failed_starts_recent": failed,
        "failed_starts_share": f"{failed} / ({failed} + {tried})",
        "servers_running": f"sum({prefix}_running_servers)",
        "users_total": f"sum({prefix}_total_users)",
    }
    return lambda name: f"({own[name]})" if name in own else series_of_guard(name)


def expression(condition: Condition, series: Series = series_of_guard) -> str:
    """What ``condition`` says, in PromQL. Its value is the signal's. Raises TypeError for a kind that it doesn't know."""
    value = series(condition.signal)
    if isinstance(condition, Level):
        mean = _over("avg", value, condition.over_s) if condition.over_s else value
        text = f"{mean} {'<=' if condition.below else '>='} {condition.raise_at:g}"
        if not condition.beside:
            return text
        beside = series(condition.beside)
        beside = _over("avg", beside, condition.over_s) if condition.over_s else beside
        return f"{text} and {beside} >= {condition.least:g}"
    if isinstance(condition, Forecast):
        return _forecast(condition, value, series)
    if isinstance(condition, Fall):
        highest = _over("max", value, condition.within_s)
        return f"{value} <= {1 - condition.share:g} * {highest} and {highest} >= {condition.least:g}"
    if isinstance(condition, Jump):
        lowest = _over("min", value, condition.within_s)
        return f"{value} >= {condition.least:g} + {lowest} and {value} >= {1 + condition.share:g} * {lowest}"
    raise TypeError(f"No PromQL for {type(condition).__name__}")


def _over(how: str, value: str, span_s: float) -> str:
    return f"{how}_over_time({value}[{span_s:g}s{':1m' if value.startswith('(') else ''}])"


def _forecast(condition: Forecast, value: str, series: Series) -> str:
    limit = series(condition.limit_signal) if condition.limit is None else f"{condition.limit:g}"
    ahead = f"predict_linear({value}[{condition.over_s:g}s], {condition.within_s:g})"
    parts = []
    if condition.falling:
        near = "" if condition.from_value is None else f"{value} <= {condition.from_value:g} and "
        parts.append(f"{near}{ahead} <= {limit}")
    elif condition.within_s:
        parts.append(f"{value} >= {condition.from_share:g} * {limit} and {ahead} >= {limit}")
    if condition.sure_share is not None:
        parts.append(f"{value} >= {condition.sure_share:g} * {limit}")
    return " or ".join(parts)


def write_rules(rules: Iterable[Rule], series: Series = series_of_guard, docs: str = REFERENCE) -> str:
    """A file of rules for Prometheus 2.42 and later, as YAML. ``docs`` is the address of the page on every alert."""
    lines = ["groups:", "  - name: hubguard-alerts", "    rules:"]
    for rule in rules:
        signal = SIGNALS[rule.condition.signal]
        subject = f"{{{{ $labels.{signal.per} }}}}" if signal.per else ""
        what = f"{signal.title} of {subject}" if subject else signal.title
        annotations = {
            "summary": f"{what}: {_WORDS.get(signal.unit, '{{ $value | humanize }}')}",
            "description": f"{rule.why} First: {rule.first.replace('{subject}', subject)}",
            "runbook_url": f"{docs}#{rule.name.lower()}",
        }
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {json.dumps(expression(rule.condition, series))}",
            f"        for: {rule.for_s:g}s",
            f"        keep_firing_for: {rule.clear_for_s:g}s",
            f"        labels: {{severity: {rule.severity.value}}}",
            "        annotations:",
            *(f"          {name}: {json.dumps(text)}" for name, text in annotations.items()),
        ]
    return "\n".join(lines) + "\n"


def dashboard() -> Mapping[str, Any]:
    """A dashboard for import into Grafana: a panel for each signal, with the variables of JupyterHub's own dashboards."""
    source = {"type": "prometheus", "uid": "$PROMETHEUS_DS"}
    return {
        "title": "HubGuard",
        "uid": "hubguard",
        "editable": True,
        "schemaVersion": 38,
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "PROMETHEUS_DS", "type": "datasource", "query": "prometheus"},
                {
                    "name": "hub",
                    "type": "query",
                    "datasource": source,
                    "query": "label_values(hubguard_hub_up, namespace)",
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(place, signal, source) for place, signal in enumerate(SIGNALS.values())],
    }


def _panel(place: int, signal: Signal, source: Mapping[str, str]) -> Mapping[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": signal.title,
        "datasource": source,
        "gridPos": {"x": place % 2 * 12, "y": place // 2 * 8, "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": _GRAFANA_UNITS.get(signal.unit, "short")}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "expr": f'{series_of_guard(signal.name)}{{namespace=~"$hub"}}',
                "legendFormat": f"{{{{{signal.per}}}}}" if signal.per else signal.title,
            }
        ],
    }


def write_reference(rules: Iterable[Rule]) -> str:
    """The page on every alert, as Markdown, with a heading for each."""
    lines = [
        "# Every alert",
        "",
        "`python docs/make.py` makes this page from the code, and a test compares the two.",
        "`c.HubGuardWatch.alerts` changes an alert or switches it off; `hubguard alerts rules` lists what can be changed.",
    ]
    for rule in rules:
        first = rule.first.replace("{subject}", "FOLDER")
        lines += ["", f"## {rule.name}", "", f"Act: {rule.severity.value.replace('-', ' ')}. {rule.why}", "", first]
        lines += ["", "```promql", expression(rule.condition), "```"]
    return "\n".join(lines) + "\n"
