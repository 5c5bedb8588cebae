from __future__ import annotations

import math
from pathlib import Path

import pytest
from traitlets.config import Config

from hubguard import config
from hubguard.errors import ConfigError


def errors(**sections: dict[str, object]) -> list[str]:
    return [str(error) for error in config.load(sections, environ={}).errors]


def test_nothing_set_gives_the_defaults_and_no_error():
    settings = config.load(environ={})
    assert settings.errors == ()
    assert settings.cull.idle_timeout_s == 3600
    assert settings.guard.armed is None


def test_a_later_layer_wins():
    settings = config.load(
        {"HubGuardCull": {"idle_timeout_s": 600, "max_age_s": 7}}, {"HubGuardCull": {"idle_timeout_s": 60}}, environ={}
    )
    assert (settings.cull.idle_timeout_s, settings.cull.max_age_s) == (60, 7)


@pytest.mark.parametrize(
    ("section", "name", "value", "says"),
    [
        (
            "HubGuardCull",
            "idle_timeout",
            600,
            "HubGuardCull.idle_timeout: no such setting; did you mean idle_timeout_s?",
        ),
        ("HubGuardCul", "idle_timeout_s", 600, "HubGuardCul: no such section of settings; did you mean HubGuardCull?"),
        ("HubGuardCull", "idle_timeout_s", -1, "HubGuardCull.idle_timeout_s: -1 is out of range"),
        ("HubGuardCull", "idle_timeout_s", 1e12, "HubGuardCull.idle_timeout_s: 1000000000000.0 is out of range"),
        ("HubGuardCull", "idle_timeout_s", math.nan, "HubGuardCull.idle_timeout_s: nan is out of range"),
        ("HubGuardCull", "idle_timeout_s", math.inf, "HubGuardCull.idle_timeout_s: inf is out of range"),
        ("HubGuardCull", "idle_timeout_s", "3600", "HubGuardCull.idle_timeout_s: '3600' can't be used"),
        ("HubGuardCull", "idle_timeout_s", True, "HubGuardCull.idle_timeout_s: is a number, and True is not"),
        ("HubGuardCull", "idle_timeout_s", None, "HubGuardCull.idle_timeout_s: None can't be used"),
        ("HubGuardCull", "plan_cap", 0, "HubGuardCull.plan_cap: 0 is out of range"),
        ("HubGuardCull", "plan_cap", 2.5, "HubGuardCull.plan_cap: 2.5 can't be used"),
        ("HubGuardBudget", "rate", 0, "HubGuardBudget.rate: 0 is out of range"),
        ("HubGuard", "armed", "yes", "HubGuard.armed: 'yes' can't be used"),
        ("HubGuard", "on_idle_culler", "ignore", "HubGuard.on_idle_culler: 'ignore' can't be used"),
        ("HubGuard", "url", "localhost:80", "HubGuard.url: 'localhost:80' is no URL"),
        ("HubGuard", "url", "http://h:99999", "HubGuard.url: 'http://h:99999' is no URL"),
        ("HubGuardCull", "log", 1, "HubGuardCull.log: no such setting"),
    ],
)
def test_a_wrong_setting_is_named_and_never_raises(section: str, name: str, value: object, says: str):
    (error,) = errors(**{section: {name: value}})
    assert error.startswith(says)
    assert "\n" not in error


def test_every_wrong_setting_is_told_not_only_the_first():
    assert len(errors(HubGuardCull={"idle_timeout_s": -1, "nonsense": 1}, HubGuardBudget={"rate": -1})) == 3


def test_two_settings_that_contradict_each_other_are_refused():
    (error,) = errors(HubGuardPrune={"every_s": 86400.0, "delete_users": False})
    assert error.startswith("HubGuardPrune.every_s")


FORMER = [
    f"{section.__name__}.{name}" for section in config.SECTIONS for name in (*section.constants, *section.replaced)
]


@pytest.mark.parametrize("setting", FORMER)
def test_a_setting_of_an_older_version_does_nothing_is_no_error_and_is_noted(setting: str):
    section, name = setting.split(".")
    settings = config.load({section: {name: -1}}, environ={})
    assert settings.errors == ()
    (note,) = settings.notes
    assert note.startswith(f"{setting} is no longer a setting")
    assert note.endswith(" Remove the line.")


def test_the_note_on_a_former_setting_says_what_holds_now():
    settings = config.load({"HubGuardCull": {"retry_base_s": 5.0}, "HubGuardDrift": {"watch_proxy": False}}, environ={})
    assert settings.cull.retry_base_s == 30.0
    assert settings.notes == (
        "HubGuardCull.retry_base_s is no longer a setting; HubGuard uses 30 s. Remove the line.",
        "HubGuardDrift.watch_proxy is no longer a setting. HubGuard.read_proxy = False turns off all that HubGuard"
        " does at the proxy. Remove the line.",
    )


def test_a_wrong_setting_leaves_the_default_in_its_place():
    settings = config.load({"HubGuardCull": {"idle_timeout_s": -1}}, environ={})
    assert settings.cull.idle_timeout_s == 3600


def test_the_environment_gives_defaults_that_the_config_overrules():
    environ = {"HUBGUARD_DB_URL": "sqlite:///env.sqlite", "JUPYTERHUB_REQUEST_TIMEOUT": "5"}
    settings = config.load(environ=environ)
    assert settings.guard.db_url == "sqlite:///env.sqlite"
    assert settings.budget.request_timeout_s == 5
    assert config.load({"HubGuard": {"db_url": "sqlite:///mine"}}, environ=environ).guard.db_url == "sqlite:///mine"


def test_a_wrong_timeout_in_the_environment_is_named():
    (error,) = config.load(environ={"JUPYTERHUB_REQUEST_TIMEOUT": "soon"}).errors
    assert str(error).startswith("JUPYTERHUB_REQUEST_TIMEOUT: 'soon'")


def test_a_config_file_is_read_whether_it_is_ours_or_the_hubs(tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("c.JupyterHub.port = 1\nc.HubGuardCull.idle_timeout_s = 60.0\nc.HubGuard.armed = True\n")
    assert config.sections_of(config.read_file(file)) == {
        "HubGuardCull": {"idle_timeout_s": 60.0},
        "HubGuard": {"armed": True},
    }


@pytest.mark.parametrize("text", ["c.HubGuard.armed = ", "raise SystemError('no')", "import nonexistent_module"])
def test_a_config_file_that_fails_is_named(tmp_path: Path, text: str):
    file = tmp_path / "hubguard_config.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match="hubguard_config.py: can't be read"):
        config.read_file(file)


def test_a_config_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere.py: can't be read"):
        config.read_file(tmp_path / "nowhere.py")


def test_sections_that_are_not_ours_are_left_alone():
    assert config.sections_of(Config({"JupyterHub": {"port": 1}, "HubGuard": {"armed": False}})) == {
        "HubGuard": {"armed": False}
    }


def test_every_setting_has_help_that_ends_as_a_sentence():
    table = config.settings_table()
    assert len(table) > 15
    for name, _default, text in table:
        assert text.endswith((".", ")")), name
        assert len(text) > 30, name
