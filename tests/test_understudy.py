"""What an understudy does, step by step and as a process: the original works unless HubGuard has shown that it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubguard.understudy import (
    CLAIM,
    Claim,
    Part,
    Past,
    Report,
    Terms,
    Word,
    command_for,
    decide,
    part_of,
    read_claim,
    read_report,
    report_file,
    write,
)

TERMS = Terms(grace_s=120, fresh_s=60, promise_s=30, margin_s=5)


@pytest.mark.parametrize(
    ("claim", "past", "now_s", "runs", "promises"),
    [
        pytest.param(None, Past(0), 119, False, False, id="no HubGuard yet: it gets a while"),
        pytest.param(None, Past(0), 120, True, False, id="no HubGuard"),
        pytest.param(Claim(Word.STARTING, "", 119), Past(0), 119.5, False, False, id="starting"),
        pytest.param(Claim(Word.STARTING, "", 120), Past(0), 120, True, False, id="starting for ever"),
        pytest.param(Claim(Word.ABLE, "", 100), Past(0), 160, False, True, id="able"),
        pytest.param(Claim(Word.ABLE, "", 100), Past(0, 160, 190), 161, False, False, id="silent, but promised"),
        pytest.param(Claim(Word.ABLE, "", 100), Past(0, 160, 190), 194.9, False, False, id="the last request arrives"),
        pytest.param(Claim(Word.ABLE, "", 100), Past(0, 160, 190), 195, True, False, id="silent, promise over"),
        pytest.param(Claim(Word.UNABLE, "x", 5), Past(0), 5, True, False, id="unable at once"),
        pytest.param(Claim(Word.UNABLE, "x", 100), Past(0, 99, 129), 101, False, False, id="unable, but promised"),
        pytest.param(Claim(Word.STARTING, "", 130), Past(0, 100, 120), 159, False, False, id="started again"),
        pytest.param(Claim(Word.STARTING, "", 160), Past(0, 100, 120), 160, True, False, id="again and again"),
        pytest.param(Claim(Word.HELD, "exam", 100), Past(0), 101, False, True, id="on hold"),
        pytest.param(Claim(Word.HELD, "exam", 100), Past(0, 100, 130), 9000, False, False, id="on hold, then dead"),
        pytest.param(Claim(Word.ABLE, "", 9000), Past(0), 130, True, False, id="from the future"),
    ],
)
def test_what_it_does_next(claim: Claim | None, past: Past, now_s: float, runs: bool, promises: bool):
    step = decide(claim, past, TERMS, now_s)
    assert (step.runs, step.promises) == (runs, promises)
    assert step.why


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"word": "fine", "why": "", "at_s": 1}', '{"at_s": "soon"}'])
def test_what_cannot_be_read_is_no_claim_and_no_promise(tmp_path: Path, text: str):
    (tmp_path / CLAIM).write_text(text)
    (tmp_path / report_file(0)).write_text(text)
    assert read_claim(tmp_path) is None
    assert read_report(tmp_path, 0) is None


def test_the_original_command_comes_back_word_for_word(tmp_path: Path):
    command = ("sh -c", "", "--", "a 'b' \"c\" $d", "--timeout=5", "ünï")
    part = Part(str(tmp_path), 3, 17, TERMS, command)
    assert part_of(command_for(part, "python3")) == part
    assert part_of(["python3", "-m", "jupyterhub_idle_culler"]) is None


# -- as a process -----------------------------------------------------------------------------------------------------

QUICK = Terms(grace_s=0.5, fresh_s=2, promise_s=1, margin_s=0.1, poll_s=0.05)
ORIGINAL = "import json, os, sys, time; print(json.dumps([sys.argv[1:], os.environ['MINE'], os.getcwd()]), flush=True)"


def child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def gone(pid: int) -> bool:
    """Whether the process is gone within 10 s."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


class Process:
    """An understudy of a script that says what it was started with and then sleeps."""

    def __init__(self, folder: Path, code: str = f"{ORIGINAL}; time.sleep(600)", hub_pid: int | None = None) -> None:
        self.folder = folder
        self.out = (folder / "out.txt").open("w+")
        command = (sys.executable, "-c", code, "--a b", "$c")
        part = Part(str(folder), 0, hub_pid or os.getpid(), QUICK, command)
        environ = {"MINE": "token", "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(command_for(part, sys.executable), cwd=folder, env=environ, stdout=self.out)

    def said(self) -> list[list[object]]:
        return [json.loads(line) for line in (self.folder / "out.txt").read_text().splitlines()]

    def able(self) -> Report:
        """Its last report while HubGuard says that it culls."""
        write(self.folder / CLAIM, Claim(Word.ABLE, "", time.monotonic()))
        report = read_report(self.folder, 0)
        assert report is not None
        return report

    def until(self, runs: bool) -> Report:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            report = read_report(self.folder, 0)
            if report is not None and report.runs is runs:
                return report
            time.sleep(0.02)
        raise AssertionError(f"it never had runs={runs}: {report}")

    def keeper(self) -> int:
        return child(self.process.pid)

    def original(self) -> int:
        deadline = time.monotonic() + 10
        while not self.said() and time.monotonic() < deadline:
            time.sleep(0.02)
        return child(self.keeper())

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(15)
        self.out.close()
        return code


@pytest.fixture
def understudy(tmp_path: Path):
    made = Process(tmp_path)
    yield made
    made.end()


def test_without_hubguard_the_original_runs_with_its_own_words_folder_and_environment(understudy: Process):
    understudy.until(runs=True)
    deadline = time.monotonic() + 10
    while not understudy.said() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert understudy.said() == [[["--a b", "$c"], "token", str(understudy.folder)]]


def test_it_ends_the_original_before_it_promises_and_starts_it_after_the_promise_is_over(understudy: Process):
    understudy.until(runs=True)
    original = understudy.original()
    write(understudy.folder / CLAIM, Claim(Word.ABLE, "", time.monotonic()))
    promised = understudy.until(runs=False)
    while promised.until_s < time.monotonic():
        promised = understudy.until(runs=False)
    assert not Path(f"/proc/{original}").exists()
    report = understudy.until(runs=True)  # nobody renews the claim
    assert report.at_s > promised.until_s
    assert "silent" in report.why


def test_an_original_that_ends_is_started_again_but_not_at_once(tmp_path: Path):
    made = Process(tmp_path, f"{ORIGINAL}; sys.exit(3)")
    try:
        deadline = time.monotonic() + 20
        while not made.said() and time.monotonic() < deadline:
            time.sleep(0.02)
        made.until(runs=False)
        time.sleep(1)
        assert len(made.said()) == 1
    finally:
        made.end()


def test_told_to_end_it_takes_the_original_with_it(understudy: Process):
    understudy.until(runs=True)
    original = understudy.original()
    assert understudy.end() == 0
    assert not Path(f"/proc/{original}").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends the child of a killed process")
def test_killed_it_takes_the_original_with_it(understudy: Process):
    understudy.until(runs=True)
    original = understudy.original()
    understudy.process.send_signal(signal.SIGKILL)
    understudy.process.wait(10)
    assert gone(original)


WRAPPED = """
import json, signal, subprocess, sys, time
inner = "import signal, sys, time; {0}; print(1, flush=True); time.sleep(600)"
inner = subprocess.Popen([sys.executable, "-c", inner], start_new_session={1}, stdout=subprocess.PIPE)
inner.stdout.readline()
print(json.dumps(inner.pid), flush=True)
time.sleep(600)
"""
"""A script that starts the culler, doesn't wait for it, and ends before it."""

LATE = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit()))"
NEVER = "signal.signal(signal.SIGTERM, lambda *_: None)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a child's children")
@pytest.mark.parametrize("own_session", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_the_original_has_started_is_gone_before_it_counts_as_ended(tmp_path: Path, own_session: bool):
    made = Process(tmp_path, WRAPPED.format(NEVER if own_session else LATE, own_session))
    try:
        made.original()
        (inner,) = made.said()
        deadline = time.monotonic() + 20
        while made.able().runs and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{inner}").exists()
        assert not made.able().runs
    finally:
        made.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a child's children")
@pytest.mark.parametrize("own_session", [False, True])
def test_killed_it_takes_what_the_original_has_started_with_it(tmp_path: Path, own_session: bool):
    made = Process(tmp_path, WRAPPED.format(NEVER, own_session))
    made.original()
    (inner,) = made.said()
    made.process.send_signal(signal.SIGKILL)
    made.process.wait(10)
    assert gone(int(str(inner)))
    made.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends the child of a killed process")
def test_without_its_keeper_the_original_ends(understudy: Process):
    original = understudy.original()
    os.kill(understudy.keeper(), signal.SIGKILL)
    assert gone(original)


def test_without_its_hub_it_ends(tmp_path: Path):
    made = Process(tmp_path, hub_pid=os.getppid())
    assert made.process.wait(15) == 0
    made.end()


def test_a_promise_that_cannot_be_written_is_none_and_the_original_runs(tmp_path: Path):
    folder = tmp_path / "shared"
    folder.mkdir()
    made = Process(tmp_path)
    try:
        write(tmp_path / CLAIM, Claim(Word.ABLE, "", time.monotonic() + 1))
        (tmp_path / report_file(0)).unlink(missing_ok=True)
        (tmp_path / report_file(0)).mkdir()  # nothing can take its place
        deadline = time.monotonic() + 20
        while not made.said() and time.monotonic() < deadline:
            write(tmp_path / CLAIM, Claim(Word.ABLE, "", time.monotonic()))
            time.sleep(0.05)
        assert made.said()
    finally:
        (tmp_path / report_file(0)).rmdir()
        made.end()


def test_it_imports_nothing_but_the_standard_library():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); "
    code += "print([name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names])"
    file = command_for(Part("", 0, 0, TERMS, ("x",)), "python3")[3]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['__main__']"
