"""The rules for Prometheus and the dashboard for Grafana say what the built-in alerts say."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from hubguard.watch.decide.prometheus import (
    Series,
    dashboard,
    expression,
    series_of_guard,
    series_of_hub,
    write_reference,
    write_rules,
)
from hubguard.watch.decide.rules import RULES
from hubguard.watch.decide.signals import SIGNALS

EVERY_SERIES = [series_of_guard, series_of_hub(5, "jupyterhub"), series_of_hub(6, "prod_hub")]
BY_NAME = {rule.name: rule for rule in RULES}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("series", EVERY_SERIES)
def test_every_alert_is_a_rule_that_prometheus_can_parse(series: Series) -> None:
    (group,) = yaml.safe_load(write_rules(RULES, series))["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [rule.name for rule in RULES]
    for rule in group["rules"]:
        promql.parse(rule["expr"])
        assert rule["labels"] == {"severity": BY_NAME[rule["alert"]].severity.value}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_conditions_become_promql() -> None:
    assert expression(BY_NAME["HubSlow"].condition) == "avg_over_time(hubguard_hub_latency_seconds[180s]) >= 2"
    assert expression(BY_NAME["DiskLow"].condition) == "hubguard_disk_free_share <= 0.1"
    assert expression(BY_NAME["UsersGone"].condition) == (
        "hubguard_users_total <= 0.7 * max_over_time(hubguard_users_total[3600s])"
        " and max_over_time(hubguard_users_total[3600s]) >= 20"
    )
    assert "hubguard_proxy_restarts_total >= 2 + min_over_time(" in expression(BY_NAME["ProxyRestarts"].condition)
    assert "predict_linear(hubguard_ports_used_share[1200s], 3600) >= 1" in expression(BY_NAME["PortsUsed"].condition)


def test_hubs_5_and_6_count_failed_starts_by_other_words() -> None:
    of_5, of_6 = (expression(BY_NAME["StartsFail"].condition, series_of_hub(hub, "h")) for hub in (5, 6))
    assert 'h_server_spawn_duration_seconds_count{status=~"failure|error"}' in of_5
    assert 'h_server_spawn_duration_seconds_count{status="error"}' in of_6


def test_the_dashboard_has_a_panel_for_each_signal_and_the_variables_of_the_hubs_dashboards() -> None:
    made = json.loads(json.dumps(dashboard()))
    assert [variable["name"] for variable in made["templating"]["list"]] == ["PROMETHEUS_DS", "hub"]
    assert [panel["title"] for panel in made["panels"]] == [signal.title for signal in SIGNALS.values()]
    for panel in made["panels"]:
        promql.parse(panel["targets"][0]["expr"].replace("$hub", "hub"))


def test_each_runbook_leads_to_a_heading_of_the_page_on_alerts() -> None:
    page = (ROOT / "docs" / "reference" / "alerts.md").read_text()
    assert page == write_reference(RULES)
    headings = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    (group,) = yaml.safe_load(write_rules(RULES))["groups"]
    assert {rule["annotations"]["runbook_url"].partition("#")[2] for rule in group["rules"]} == headings


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool isn't installed (Debian's package prometheus)")
def test_promtool_accepts_and_fires_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(write_rules(RULES))
    cases = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": "hubguard_hub_up", "values": "1x4 0x20"}],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="HubDown",alertstate="firing",severity="now"})',
                        "eval_time": "10m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "cases.yml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
