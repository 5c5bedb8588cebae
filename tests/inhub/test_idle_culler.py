from __future__ import annotations

import pytest

from hubguard import config
from hubguard.inhub.idle_culler import DEFAULTS, OPTIONS, read_line, read_trait, settings_for, settings_from

Z2JH = [
    "python3",
    "-m",
    "jupyterhub_idle_culler",
    "--url=http://localhost:8081/hub/api",
    "--timeout=3600",
    "--cull-every=600",
    "--concurrency=10",
]


def cull(*options: str) -> dict[str, object]:
    taken = settings_from(["python3", "-m", "jupyterhub_idle_culler", *options])
    assert taken.understood, taken.notes
    return taken.settings["HubGuardCull"]


def test_what_z2jh_runs_is_understood():
    taken = settings_from(Z2JH)
    assert taken.understood
    assert taken.notes == ()
    assert taken.settings["HubGuardCull"]["idle_timeout_s"] == 3600
    assert taken.settings["HubGuardCull"]["every_s"] == 600
    assert taken.settings["HubGuardBudget"] == {"concurrency": 10}


def test_without_options_the_cullers_own_defaults_hold():
    assert cull() == {
        "default_servers": True,
        "named_servers": True,
        "remove_named_servers": False,
        "idle_timeout_s": 600,
        "max_age_s": 0,
        "every_s": 300,
    }


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["--timeout=60"], "idle_timeout_s", 60),
        (["--timeout", "60"], "idle_timeout_s", 60),
        (["--IdleCuller.timeout=60"], "idle_timeout_s", 60),
        (["--timeout=61"], "every_s", 30),
        (["--timeout=1"], "every_s", 1),
        (["--timeout=604800"], "every_s", 86400),
        (["--timeout=999999999", "--max-age=3600"], "idle_timeout_s", 0),
        (["--cull_every=90"], "every_s", 90),
        (["--max-age=7200"], "max_age_s", 7200),
        (["--cull_named_servers=False"], "named_servers", False),
        (["--cull-named-servers=0"], "named_servers", False),
        (["--cull-default-servers", "false"], "default_servers", False),
        (["--remove-named-servers"], "remove_named_servers", True),
        (["--remove-named-servers=true", "--debug"], "remove_named_servers", True),
        (["--logging=debug", "--api-page-size=200", "--timeout=5"], "idle_timeout_s", 5),
    ],
)
def test_both_dialects_are_understood(options: list[str], name: str, expected: object):
    assert cull(*options)[name] == expected


def test_what_is_taken_over_are_settings_that_hubguard_accepts():
    for number in ("0", "1", "2", "59.5", "86401", "604800", "31622401", "999999999999", "1e300"):
        for option in ("timeout", "max-age", "cull-every", "concurrency"):
            taken = settings_from(["jupyterhub-idle-culler", f"--{option}={number}"])
            assert config.load(taken.settings, environ={}).errors == (), (option, number)


def test_unlimited_concurrency_becomes_our_own_cap():
    assert "HubGuardBudget" not in settings_from(["x", "--concurrency=0"]).settings


@pytest.mark.parametrize(
    "option", ["--cull-users", "--cull-users=true", "--cull_users=True", "--IdleCuller.cull_users=1"]
)
def test_deleting_users_is_taken_over_with_the_same_times_and_that_is_said(option: str):
    taken = settings_from([*Z2JH, "--max-age=7200", option])
    assert taken.understood
    assert "users" in taken.notes[0]
    cull = taken.settings["HubGuardCull"]
    assert (cull["users"], cull["user_idle_timeout_s"], cull["user_max_age_s"]) == (True, 3600, 7200)
    assert cull["admin_users"] is True
    assert config.load(taken.settings, environ={}).errors == ()


def test_users_that_are_not_culled_need_no_note():
    taken = settings_from([*Z2JH, "--cull-users=false"])
    assert taken.notes == ()
    assert "users" not in taken.settings["HubGuardCull"]


@pytest.mark.parametrize(
    "options",
    [
        ["--config=/etc/culler.py"],
        ["--IdleCuller.cull_arbiter_hook=spare_the_gpu"],
        ["--timeout=soon"],
        ["--timeout=-5"],
        ["--timeout=inf"],
        ["--cull-named-servers=perhaps"],
        ["--ssl-enabled"],
        ["--spare-the-professor"],
        ["--timeout"],
        ["--timeout=0"],
    ],
)
def test_what_could_spare_servers_in_ways_unknown_is_not_understood(options: list[str]):
    taken = settings_from(["python3", "-m", "jupyterhub_idle_culler", *options])
    assert not taken.understood
    assert taken.notes


def test_a_command_inside_a_shell_is_not_guessed_at():
    assert not settings_from(["sh", "-c", "python3 -m jupyterhub_idle_culler --timeout=99999"]).understood
    assert not settings_from(["sh", "-c", "exec jupyterhub-idle-culler $OPTIONS"]).understood


def test_sparing_admins_from_deletion_does_not_spare_their_servers():
    """The culler's --cull-admin-users is about users alone; read in the sources of 1.4.0 and 2.0.0."""
    taken = settings_from([*Z2JH, "--cull-users", "--cull-admin-users=false"])
    assert taken.understood
    assert "admin_servers" not in taken.settings["HubGuardCull"]
    assert taken.settings["HubGuardCull"]["admin_users"] is False


def test_the_options_of_the_interpreter_are_not_the_cullers():
    assert settings_from(["python3", "-u", "-Werror", "-m", "jupyterhub_idle_culler", "--timeout=60"]).understood


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cull-users", "true", "--timeout=5"], {"cull_users": True, "timeout": 5}),
        (["--cull-users", "--timeout", "5"], {"cull_users": True, "timeout": 5}),
        (["--timeout=5", "--timeout=6"], {"timeout": 6}),
        (["-timeout=50"], {"timeout": 50}),  # tornado strips every dash
        (["--config", "x.py"], {"config_file": "x.py"}),
        (["--IdleCuller.config_file=x.py"], {"config_file": "x.py"}),
        (["--Application.log_level=DEBUG"], {"log_level": "DEBUG"}),
        (["--log_file_prefix=/x", "--log-file-max-size=5"], {"log_file_prefix": "/x", "log_file_max_size": 5}),
        (["--url=http://h/?a=b"], {"url": "http://h/?a=b"}),
        (["extra", "--", "--timeout=5"], {"timeout": 5}),
        (["-h"], {"help": True}),
    ],
)
def test_a_line_is_read_as_both_cullers_mean_it(words: list[str], expected: dict[str, object]):
    line = read_line(words)
    assert line.problems == ()
    assert line.values == expected


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_known_by_dash_underscore_and_trait(option):
    value = {bool: "true", int: "7", str: "text"}[type(option.default)]
    meant = {bool: True, int: 7, str: "text"}[type(option.default)]
    for flag in (option.flag, option.flag.replace("-", "_").replace("__", "--", 1), f"--IdleCuller.{option.name}"):
        assert read_line([f"{flag}={value}"]).values == {option.name: meant}
    assert read_trait(option.name, option.default) == DEFAULTS[option.name]


@pytest.mark.parametrize("words", [["--timeout"], ["--timeout", "--debug"], ["--timeout="], ["--cull-user"], ["--url"]])
def test_a_line_that_means_nothing_says_what_is_wrong(words: list[str]):
    (problem,) = read_line(words).problems
    assert words[0] in problem


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", "60"), ("timeout", True), ("timeout", -1), ("cull_users", 1), ("url", 5)]
)
def test_a_config_file_can_not_set_an_option_to_what_it_is_not(name: str, value: object):
    assert read_trait(name, value) is None


def test_a_timeout_of_zero_is_not_never():
    """In HubGuard's own settings it would be, and the culler stops all servers with it."""
    idle_timeout_s = settings_for({"timeout": 0})["HubGuardCull"]["idle_timeout_s"]
    assert isinstance(idle_timeout_s, float)
    assert 0 < idle_timeout_s < 0.1
