"""The command, without a hub: one clear line for each thing that is wrong, and the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubguard import cli
from hubguard.journal.store import open_journal

HUBLESS = {"JUPYTERHUB_API_TOKEN": "sikrit-token", "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "JUPYTERHUB_API_TOKEN",
        "JUPYTERHUB_API_URL",
        "HUBGUARD_DB_URL",
        "HUBGUARD_CONFIG",
        "CONFIGPROXY_API_URL",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def begun() -> None:
    """The guard's journal is in this folder."""
    open_journal("sqlite:///hubguard.sqlite").close()


@pytest.fixture
def hubless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HUBLESS.items():
        monkeypatch.setenv(name, value)


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def runs(*words: str) -> Said:
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert HUBLESS["JUPYTERHUB_API_TOKEN"] not in out + err
        return Said(code, out, err)

    return runs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["cull"], "--once"),
        (["cull", "--once", "--rate", "-1"], "argument --rate: invalid number from 0.1 to 1000 value: '-1'"),
        (["cull", "--once", "--rate", "nan"], "argument --rate: invalid number from 0.1 to 1000 value: 'nan'"),
        (["cull", "--once", "--rate", "0.01"], "argument --rate: invalid number from 0.1 to 1000 value: '0.01'"),
        (["cull", "--once", "--timeout", "1e12"], "argument --timeout: invalid number above 0 and up to a year value"),
        (
            ["cull", "--once", "--timeout", "-5"],
            "argument --timeout: invalid number above 0 and up to a year value: '-5'",
        ),
        (["cull", "--once", "--concurrency", "0"], "argument --concurrency: invalid count from 1 to 500 value: '0'"),
        (["seed", "--users", "many"], "argument --users"),
        (["db", "drop"], "invalid choice: 'drop'"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(run, words: list[str], says: str):
    said = run(*words)
    assert said.code == 2
    assert says in said.err


@pytest.mark.parametrize("words", [["serve"], ["cull", "--once"]])
def test_without_a_token_it_says_which_variable_is_missing(run, begun, words: list[str]):
    said = run(*words)
    assert said.code == 2
    assert said.err.startswith("hubguard: JUPYTERHUB_API_TOKEN: is not set.")
    assert said.err.count("\n") == 1


def test_a_wrong_api_url_is_named(run, begun, hubless, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUPYTERHUB_API_URL", "localhost:8081")
    said = run("cull", "--once")
    assert said.code == 2
    assert said.err.startswith("hubguard: JUPYTERHUB_API_URL: 'localhost:8081' is no URL")


def test_an_unreachable_hub_fails_and_says_so(run, begun, hubless):
    said = run("cull", "--once", "--timeout", "600", "--json")
    assert said.code == 1
    report = json.loads(said.out)
    assert report["actions"] == []
    assert "http://127.0.0.1:9/hub/api" in report["sources"][0]["detail"]


def test_a_wrong_setting_is_named_before_anything_is_done(run, hubless, tmp_path: Path):
    (tmp_path / "mine.py").write_text("c.HubGuardCull.idle_timeout = 5\n")
    said = run("cull", "--once", "--config", "mine.py")
    assert said.code == 2
    assert said.err.startswith("hubguard: HubGuardCull.idle_timeout: no such setting")
    assert not (tmp_path / "hubguard.sqlite").exists()


def test_hold_and_resume_work_with_hub_proxy_and_guard_down(run, begun, tmp_path: Path):
    assert run("hold", "an exam").out == "acting is on hold, observing only\n"
    journal = open_journal("sqlite:///hubguard.sqlite")
    assert journal.stance().held
    assert journal.stance().held_why == "an exam"
    journal.close()
    assert run("resume").out == "not on hold, observing only\n"
    assert run("arm", "we are ready").out == "not on hold, armed\n"
    assert run("observe").out == "not on hold, observing only\n"
    lines = run("journal", "--json").out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["observing", "armed", "resumed", "held"]
    assert "an exam" in run("journal").out


@pytest.mark.parametrize("words", [["hold", "an exam"], ["arm"], ["journal"], ["cull", "--once"]])
def test_incident_a_command_in_another_folder_than_the_hubs_began_a_journal_of_its_own(
    run, hubless, tmp_path: Path, words: list[str]
):
    """A hold that held nobody, and a cull by default settings beside the guard at work. November 2026.

    The default database is relative to the folder that the hub runs in; run elsewhere, a command made a new one there.
    """
    said = run(*words)
    assert said.code == 2
    assert "HUBGUARD_DB_URL" in said.err
    assert not (tmp_path / "hubguard.sqlite").exists()


def test_a_held_hub_is_left_alone_even_by_name_and_exits_3(run, begun, hubless):
    run("hold")
    assert run("cull", "--once", "--timeout", "600").code in {1, 3}


def test_a_database_that_cannot_be_used_is_one_line(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", "postgresql://me:hunter2@127.0.0.1:9/x")
    said = run("hold")
    assert said.code == 1
    assert "hunter2" not in said.err
    assert said.err.startswith("hubguard: ")


def test_config_check_tells_before_a_deploy(run, tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("from hubguard.inhub import register\nregister(c)\nc.HubGuardCull.idle_timeout_s = 60.0\n")
    good = run("config", "check", str(file))
    assert good.code == 0
    assert "HubGuard is registered as a service" in good.out
    file.write_text(file.read_text() + "c.HubGuardCull.idle_timeout_s = -1\n")
    bad = run("config", "check", str(file))
    assert bad.code == 1
    assert "HubGuardCull.idle_timeout_s: -1 is out of range" in bad.out


def test_config_check_notices_that_later_lines_throw_the_include_away(run, tmp_path: Path):
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("from hubguard.inhub import register\nregister(c)\nc.JupyterHub.services = []\n")
    said = run("config", "check", str(file))
    assert said.code == 1
    assert "isn't among the services in the end" in said.out


def test_config_check_names_a_file_that_fails(run, tmp_path: Path):
    (tmp_path / "broken.py").write_text("c.JupyterHub.services = [\n")
    said = run("config", "check", "broken.py")
    assert said.code == 1
    assert "broken.py" in said.out
    assert "SyntaxError" in said.out


def test_config_show_hides_the_password(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", "postgresql://me:hunter2@db/x")
    said = run("config", "show")
    assert said.code == 0
    assert "hunter2" not in said.out
    assert "HubGuardCull.idle_timeout_s = 3600.0\n" in said.out


def test_config_install_writes_the_include_once_and_never_over_another_file(run, tmp_path: Path):
    assert run("config", "install", str(tmp_path)).code == 0
    assert "register(c)" in (tmp_path / "50-hubguard.py").read_text()
    assert run("config", "install", str(tmp_path)).code == 0
    (tmp_path / "50-hubguard.py").write_text("# mine\n")
    assert run("config", "install", str(tmp_path)).code == 2
    assert (tmp_path / "50-hubguard.py").read_text() == "# mine\n"
    assert run("config", "install", str(tmp_path / "nowhere")).code == 2


def test_db_status_and_upgrade(run):
    assert run("db", "status").code == 4
    assert run("db", "upgrade").code == 0
    assert run("db", "status").code == 0


def test_the_doctor_says_what_to_do_about_each_thing_that_is_missing(run):
    said = run("doctor", "--json")
    assert said.code == 1
    checks = {check["subject"]: check for check in json.loads(said.out)}
    assert checks["hub"]["finding"] == "wrong"
    assert "JUPYTERHUB_API_TOKEN" in checks["hub"]["what"]
    assert checks["settings"]["finding"] == "fine"
    assert all(check["do"] for check in checks.values() if check["finding"] != "fine")


def test_the_doctor_tells_an_unreachable_hub_in_one_line(run, hubless):
    said = run("doctor")
    assert said.code == 1
    assert said.out.count("127.0.0.1:9") >= 1


def test_seeding_a_database_that_is_not_given_is_named(run):
    said = run("seed", "--users", "3")
    assert said.code == 2
    assert "--hub-db" in said.err


def test_without_a_guard_and_without_a_policy_nothing_is_stopped_by_defaults(run, hubless, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HUBGUARD_DB_URL", f"sqlite:///{tmp_path}/mine.sqlite")
    said = run("cull", "--once")
    assert said.code == 2
    assert said.err.startswith("hubguard: --config: is needed, or --timeout")
