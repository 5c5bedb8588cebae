from __future__ import annotations

import pytest

from hubguard import config
from hubguard.idle_culler import settings_from

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


@pytest.mark.parametrize("option", ["--cull-users", "--cull-users=true", "--cull_users=True"])
def test_deleting_users_is_not_taken_over_and_that_is_said(option: str):
    taken = settings_from([*Z2JH, option])
    assert taken.understood
    assert "users" in taken.notes[0]


def test_users_that_are_not_culled_need_no_note():
    assert settings_from([*Z2JH, "--cull-users=false"]).notes == ()


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
