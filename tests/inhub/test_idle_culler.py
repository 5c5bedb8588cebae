from __future__ import annotations

import pytest
from culler_lines import LINES

from hubguard import config
from hubguard.inhub.idle_culler import (
    DEFAULTS,
    OPTIONS,
    Dialect,
    names_a_culler,
    read_line,
    read_trait,
    run_of,
    runs_a_culler,
    settings_for,
    settings_from,
)

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
    taken = settings_from(["python3", "-m", "hubguard.culler", *options])
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
def test_the_drop_in_understands_both_dialects(options: list[str], name: str, expected: object):
    assert cull(*options)[name] == expected


def test_what_is_taken_over_are_settings_that_hubguard_accepts():
    for number in ("0", "1", "2", "59.5", "86401", "604800", "31622401", "999999999999", "1e300"):
        for option in ("timeout", "max-age", "cull-every", "concurrency"):
            taken = settings_from(["jupyterhub-idle-culler", f"--{option}={number}"])
            assert config.load(taken.settings, environ={}).errors == (), (option, number)


def test_unlimited_concurrency_becomes_our_own_cap():
    assert "HubGuardBudget" not in settings_from(["jupyterhub-idle-culler", "--concurrency=0"]).settings


@pytest.mark.parametrize(
    ("option", "version"),
    [
        ("--cull-users", "1.4.0"),
        ("--cull-users=true", None),
        ("--cull_users=True", "1.4.0"),
        ("--IdleCuller.cull_users=1", "2.0.0"),
    ],
)
def test_deleting_users_is_taken_over_with_the_same_times(option: str, version: str | None):
    taken = settings_from([*Z2JH, "--max-age=7200", option], version)
    assert (taken.understood, taken.works) == (True, True)
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


@pytest.mark.parametrize("words", [["--help"], ["--help-all"], ["-h"], ["--version"], ["-V"], ["--generate-config"]])
@pytest.mark.parametrize("version", ["1.4.0", "2.0.0", None])
def test_a_culler_that_prints_something_and_exits_is_not_one_with_the_default_limits(
    words: list[str], version: str | None
):
    taken = settings_from(["jupyterhub-idle-culler", *words], version)
    assert not taken.understood
    assert "culls nobody" in " ".join(taken.notes)


# -- what stands before the culler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "program"),
    [
        (["jupyterhub-idle-culler"], "jupyterhub-idle-culler"),
        (["/opt/bin/jupyterhub-idle-culler"], "/opt/bin/jupyterhub-idle-culler"),
        (["python3", "-u", "-Werror", "-m", "jupyterhub_idle_culler"], "python3"),
        (["/usr/bin/python3.11", "-mjupyterhub_idle_culler"], "/usr/bin/python3.11"),
        (["python", "/srv/cull_idle_servers.py"], "python"),
        (["tini", "--", "python", "-m", "jupyterhub_idle_culler"], "python"),
        (["/usr/bin/dumb-init", "--", "jupyterhub-idle-culler"], "jupyterhub-idle-culler"),
        (["nice", "-n", "19", "jupyterhub-idle-culler"], "jupyterhub-idle-culler"),
        (["env", "A=b", "nice", "-n", "-5", "python3", "-m", "hubguard.culler"], "python3"),
    ],
)
def test_what_may_stand_before_a_culler(before: list[str], program: str):
    run = run_of([*before, "--timeout=60"])
    assert (run.program, run.words, run.problems) == (program, ("--timeout=60",), ())
    assert settings_from([*before, "--timeout=60"]).settings["HubGuardCull"]["idle_timeout_s"] == 60


WRAPPED = [
    ["sh", "-c", "python3 -m jupyterhub_idle_culler --timeout=99999"],
    ["sh", "-c", "exec jupyterhub-idle-culler $OPTIONS"],
    ["sh", "-c", "jupyterhub-idle-culler", "--timeout=3600"],
    ["sh", "-c", "(sleep 5; jupyterhub-idle-culler)"],
    ["bash", "-c", "exec python3 -mjupyterhub_idle_culler"],
    ["bash", "-c", 'exec "$@" --timeout=7200', "x", "jupyterhub-idle-culler", "--timeout=600"],
    ["sh", "-c", 'test -e /etc/holiday || exec "$@"', "x", "jupyterhub-idle-culler", "--timeout=600"],
    ["sh", "/srv/wrap.sh", "jupyterhub-idle-culler", "--timeout=600"],
    ["conda", "run", "-n", "hub", "jupyterhub-idle-culler"],
    ["env", "-u", "HOME", "jupyterhub-idle-culler"],
    ["nice", "-n", "x", "jupyterhub-idle-culler"],
    ["tini", "-s", "jupyterhub-idle-culler"],
    ["python3", "-c", "import os", "jupyterhub-idle-culler"],
    ["python3", "-m", "runpy", "jupyterhub_idle_culler"],
    ["python", "admin_bot.py", "--log", "/var/log/jupyterhub-idle-culler"],
    ["tail", "-F", "/var/log/jupyterhub-idle-culler"],
]


@pytest.mark.parametrize("command", WRAPPED, ids=" ".join)
def test_what_else_stands_before_a_cullers_name_is_not_guessed_at(command: list[str]):
    assert not runs_a_culler(command)
    assert names_a_culler(command)
    taken = settings_from(command)
    assert not taken.understood
    assert "can't tell what" in taken.notes[0]


def test_a_name_in_an_options_value_is_no_program():
    assert not names_a_culler(["/opt/backup", "--exclude=/srv/cull_idle_servers"])


@pytest.mark.parametrize("name", ["JUPYTERHUB_API_TOKEN", "SSL_CERT_FILE", "https_proxy", "NO_PROXY", "PYTHONPATH"])
def test_a_variable_that_may_change_what_the_culler_does_is_named(name: str):
    taken = settings_from(["env", f"{name}=secret", "jupyterhub-idle-culler"])
    assert not taken.understood
    assert name in taken.notes[0]
    assert "secret" not in taken.notes[0]


def test_the_hubs_url_is_taken_from_env_unless_the_culler_has_an_option_for_it():
    before = ["env", "JUPYTERHUB_API_URL=http://a/hub/api", "jupyterhub-idle-culler"]
    assert settings_from(before).api_url == "http://a/hub/api"
    assert settings_from([*before, "--url=http://b/hub/api"]).api_url == "http://b/hub/api"


# -- the dialects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.ONE, Dialect.TWO])
@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[0]))
def test_a_line_is_read_as_the_installed_version_reads_it(line, dialect: Dialect):
    """That the table is right is tested with the real cullers."""
    words, *expected = line
    meant = expected[dialect is Dialect.TWO]
    read = read_line(words, dialect)
    assert bool(read.refusals) == (meant is None)
    if meant is not None:
        assert read.problems == ()
        own = {name: value for name, value in read.values.items() if name in DEFAULTS}
        assert {name: value for name, value in own.items() if value != DEFAULTS[name]} == meant


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[0]))
def test_when_the_version_is_unknown_only_what_both_read_alike_is_understood(line):
    words, one, two = line
    taken = settings_from(["jupyterhub-idle-culler", *words])
    if one is None and two is None:
        assert taken.works is False or not taken.understood
    elif one is None or two is None:
        assert taken.works is None or not taken.understood
    else:
        assert taken.understood == (one == two)
        assert taken.understood or "Versions 1 and 2" in taken.notes[0]


@pytest.mark.parametrize("words", [["foo", "--timeout=60"], ["--cull-user=true"], ["--time=60"], ["--timeout", "-5"]])
def test_what_version_2_may_read_in_more_than_one_way_is_not_understood(words: list[str]):
    assert not settings_from(["jupyterhub-idle-culler", *words], "2.0.0").understood


def test_sparing_admins_from_deletion_does_not_spare_their_servers():
    """The culler's --cull-admin-users is about users alone; read in the sources of 1.4.0 and 2.0.0."""
    taken = settings_from([*Z2JH, "--cull-users", "--cull-admin-users=false"])
    assert taken.understood
    assert "admin_servers" not in taken.settings["HubGuardCull"]
    assert taken.settings["HubGuardCull"]["admin_users"] is False


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
