"""The log: a line a record, whatever names are in it, and no flood."""

from __future__ import annotations

import io
import logging

import pytest

from hubguard.console import say
from hubguard.logs import PER_MINUTE, TRACEBACKS_PER_MINUTE, Tidy


class Clock:
    at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


class Log:
    def __init__(self) -> None:
        self.clock = Clock()
        self._written = io.StringIO()
        handler = logging.StreamHandler(self._written)
        handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
        handler.addFilter(Tidy(self.clock))
        self.logger = logging.Logger("tried")
        self.logger.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self._written.getvalue().splitlines()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.mark.parametrize("char", ["\n", "\r", "\r\n", "\x1b", "\0", "\x85", "\u2028", "\v", "\ud800"])
def test_a_name_cannot_forge_a_line(log: Log, char: str) -> None:
    log.logger.info("stopping %s", f"ann{char}[INFO] armed by root")
    assert len(log.lines) == 1
    assert log.lines[0].startswith("[INFO] stopping ann\\")


def test_names_in_any_script_are_written_as_they_are(log: Log) -> None:
    log.logger.info("stopping %s", "żółć 試験 a\N{ZERO WIDTH JOINER}b")
    assert log.lines == ["[INFO] stopping żółć 試験 a\N{ZERO WIDTH JOINER}b"]


def test_the_text_of_an_error_cannot_forge_a_line_either(log: Log) -> None:
    try:
        raise ValueError("ann\n[INFO] armed by root\x1b[2J")
    except ValueError:
        log.logger.exception("unexpected")
    assert [line for line in log.lines if not line.startswith("    ")] == ["[ERROR] unexpected"]
    assert "\x1b" not in "".join(log.lines)


def test_a_message_without_end_is_cut(log: Log) -> None:
    log.logger.info("%s", "x" * 65_000)
    assert len(log.lines[0]) < 5_000


def test_one_line_of_code_does_not_flood_the_log_and_others_go_on(log: Log) -> None:
    for i in range(5_000):
        log.logger.warning("connection %d", i)
    log.logger.warning("something else")
    assert len(log.lines) == PER_MINUTE + 1
    assert "left out of the log" in log.lines[PER_MINUTE - 1]
    log.clock.at_s = 61.0
    log.lines.clear()
    for i in range(2):
        log.logger.warning("connection %d", i)
    assert log.lines[-2:] == ["[WARNING] connection 0", "[WARNING] connection 1"]


def test_how_many_were_left_out_is_said_afterwards(log: Log) -> None:
    for i in (*range(PER_MINUTE + 7), -1):
        log.clock.at_s = 61.0 if i < 0 else 0.0
        log.logger.warning("connection %d", i)
    assert log.lines[-1] == "[WARNING] connection -1 (7 more like it were left out of the log before)"


def test_tracebacks_are_left_out_sooner(log: Log) -> None:
    for _ in range(100):
        try:
            raise OSError("too many open files")
        except OSError:
            log.logger.exception("no accept")
    assert len([line for line in log.lines if line.startswith("[ERROR]")]) == TRACEBACKS_PER_MINUTE


def test_a_name_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("idle: ann\x1b[2J\x9b31m\nbo\t1 h")
    assert capsys.readouterr().out == "idle: ann\\x1b[2J\\x9b31m\nbo\t1 h\n"
