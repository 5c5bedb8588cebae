from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hubguard import culler
from hubguard.errors import ConfigError
from hubguard.inhub.idle_culler import DEFAULTS, LOGGING, OPTIONS
from hubguard.model import Server

SERVER = Server(user="ann", name="", ready=True, pending=None, started=None, last_activity=None)
MODEL = {"name": "", "ready": True, "state": {"profile_name": "gpu"}}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, no hub, and a folder without a config file."""
    for name in ("JUPYTERHUB_API_TOKEN", "JUPYTERHUB_API_URL", "JUPYTERHUB_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quiet_log():
    """Puts the log back as it was."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    for handler in root.handlers:
        if handler not in before[1]:
            handler.close()
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_help_tells_every_option_and_needs_no_token(capsys: pytest.CaptureFixture[str]):
    assert culler.main(["--help"]) == 0
    told = capsys.readouterr().out
    for option in (*OPTIONS, *LOGGING):
        assert f"{option.flag}\n" in told


def test_the_config_file_that_is_generated_is_one_and_changes_nothing(capsys: pytest.CaptureFixture[str]):
    assert culler.main(["--generate-config"]) == 0
    text = capsys.readouterr().out
    Path("idle_culler_config.py").write_text(text)
    assert culler.read_config_file(None) == ({}, ())
    Path("idle_culler_config.py").write_text(
        text.replace("# c.IdleCuller", "c.IdleCuller").replace("_hook = None", "_hook = print")
    )
    found, unknown = culler.read_config_file(None)
    assert found == {
        **{name: value for name, value in DEFAULTS.items() if name != "generate_config"},
        culler.HOOK: print,
    }
    assert unknown == ()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--spare-the-professor"], "--spare-the-professor"),
        (["--timeout=soon"], "--timeout=soon"),
        (["--config=gone.py"], "gone.py"),
        (["--config=broken.py"], "broken.py"),
        (["--config=wrong.py"], "c.IdleCuller.timeout"),
        (["--config=hookless.py"], "c.IdleCuller.cull_arbiter_hook"),
        (["--config=garbled.json"], "garbled.json"),
        (["--logging=loud"], "--logging"),
        (["--timeout=5"], "JUPYTERHUB_API_TOKEN"),
    ],
)
@pytest.mark.usefixtures("quiet_log")
def test_what_can_not_work_is_said_in_one_line_and_nothing_is_culled(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
):
    Path("broken.py").write_text("c.IdleCuller.timeout = 5\n1 / 0\n")
    Path("wrong.py").write_text("c.IdleCuller.timeout = '5'\n")
    Path("hookless.py").write_text("c.IdleCuller.cull_arbiter_hook = 'spare_all'\n")
    Path("garbled.json").write_text("{")
    assert culler.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_the_config_file_in_the_folder_is_read_unasked_and_json_goes_before_python():
    Path("idle_culler_config.py").write_text(
        "c.IdleCuller.timeout = 60\nc.IdleCuller.max_age = 5\nc.Application.log_level = 10\n"
    )
    Path("idle_culler_config.json").write_text(json.dumps({"IdleCuller": {"timeout": 70}}))
    found, unknown = culler.read_config_file(None)
    assert found == {"timeout": 70, "max_age": 5, "log_level": "10"}
    assert unknown == ()


def test_what_a_config_file_sets_for_nothing_is_named():
    Path("x.py").write_text("c.IdleCuller.tiemout = 60\nc.IdleCuller.cull_users\nc.Other.thing = 1\n")
    assert culler.read_config_file("x.py") == ({}, ("IdleCuller.tiemout",))


def test_it_acts_without_a_disk_or_a_person():
    settings = culler.settings_of({}, {})
    assert settings.guard.armed is True
    assert settings.guard.db_url == "sqlite://"
    assert settings.cull.plan_cap == 1_000_000
    assert settings.cull.population_fall == 1.0
    assert (settings.cull.idle_timeout_s, settings.cull.every_s, settings.cull.users) == (600, 300, False)


def test_its_pace_is_hubguards_and_only_the_concurrency_is_as_asked():
    untold, unlimited, three = (
        culler.settings_of(told, {}).budget for told in ({}, {"concurrency": 0}, {"concurrency": 3})
    )
    assert three.concurrency == 3
    assert unlimited.concurrency == type(unlimited)().concurrency
    hubguards = type(untold)()
    assert {(b.rate, b.burst) for b in (untold, unlimited, three)} == {(hubguards.rate, hubguards.burst)}


def test_the_database_of_another_guard_on_the_machine_is_left_alone():
    assert culler.settings_of({}, {"HUBGUARD_DB_URL": "sqlite:////srv/hubguard.sqlite"}).guard.db_url == "sqlite://"


@pytest.mark.parametrize(("text", "expected"), [("", 60), ("90", 90), ("0", 600), ("9999", 600), ("0.1", 1)])
def test_the_request_timeout_of_the_environment_counts_within_what_can_be_done(text: str, expected: float):
    assert culler.settings_of({}, {"JUPYTERHUB_REQUEST_TIMEOUT": text}).budget.request_timeout_s == expected


def test_a_request_timeout_that_is_none_is_named():
    with pytest.raises(ConfigError, match="JUPYTERHUB_REQUEST_TIMEOUT"):
        culler.settings_of({}, {"JUPYTERHUB_REQUEST_TIMEOUT": "soon"})


def test_with_a_hook_every_server_is_due_as_far_as_the_timeout_goes_but_users_are_not():
    settings = culler.settings_of({"timeout": 600, culler.HOOK: print, "cull_users": True}, {})
    assert 0 < settings.cull.idle_timeout_s < 0.1
    assert settings.cull.user_idle_timeout_s == 600


async def _answer_later(answer: object) -> object:
    await asyncio.sleep(0)
    return answer


def _done(answer: object) -> Future[object]:
    future: Future[object] = Future()
    future.set_result(answer)
    return future


@pytest.mark.parametrize("way", [lambda answer: answer, _answer_later, _done], ids=["sync", "async", "future"])
@pytest.mark.parametrize(("answer", "expected"), [(True, True), (False, False), (None, False), (1, True)])
async def test_the_hook_is_asked_as_the_culler_asks_it_and_its_answer_counts(way: Any, answer: object, expected: bool):
    asked: list[dict[str, object]] = []

    def hook(inactive: timedelta, inactive_limit: float, server: dict[str, object]) -> object:
        asked.append({"inactive": inactive, "inactive_limit": inactive_limit, "server": server})
        return way(answer)

    arbiter = culler.as_arbiter(hook, 600, lambda server: MODEL)
    assert (
        await arbiter(server=SERVER, user="ann", groups=None, inactive=timedelta(hours=1), inactive_limit=0.001)
        is expected
    )
    assert asked == [{"inactive": timedelta(hours=1), "inactive_limit": 600, "server": MODEL}]


async def test_what_the_hook_does_to_the_model_changes_nothing():
    def hook(inactive: timedelta, inactive_limit: float, server: dict[str, object]) -> bool:
        return bool(server.pop("ready"))

    arbiter = culler.as_arbiter(hook, 600, lambda server: MODEL)
    assert await arbiter(server=SERVER, inactive=timedelta(0)) is True
    assert MODEL["ready"] is True


async def test_a_hook_that_raises_raises():
    """The guard keeps the server then."""
    arbiter = culler.as_arbiter(lambda **_: 1 / 0, 600, lambda server: MODEL)
    with pytest.raises(ZeroDivisionError):
        await arbiter(server=SERVER, inactive=timedelta(0))


def test_the_docs_tell_every_option_and_everything_that_is_missing():
    docs = Path(__file__).parents[1] / "docs"
    reference = (docs / "reference" / "idle-culler.md").read_text()
    table = reference[reference.index("| option | default |") :]
    assert [option.flag for option in (*OPTIONS, *LOGGING) if f"`{option.flag}`" not in table] == []
    for line in culler.WITHOUT:
        assert f"- {line}\n" in (docs / "how-to" / "replace-the-idle-culler.md").read_text()
