"""Stands in for an idle culler in that culler's service entry, and runs the original command whenever HubGuard doesn't cull.

The handover, in short:

- The culler's entry stays in the hub's config, with its token, role, environment, folder and name. Only its command becomes
  this file, with the original command after ``--``, word for word.
- HubGuard and the understudies share a folder that the hub makes at its start. HubGuard writes its :class:`Claim` there
  every few seconds: able to do the culler's work, on hold, starting, or unable, and why. Times are of the machine's
  monotonic clock, so a changed date means nothing.
- While the claim is fresh and says "able", the understudy ends the original if that runs, and then promises not to start it
  before a certain moment (its :class:`Report`). It renews the promise while the claim stays fresh.
- HubGuard stops servers by itself only while every understudy's promise lasts. So there is a moment in between at which
  nobody culls, and none at which both do: a guard that was frozen finds the promise over when it wakes.
- Without a fresh claim, or with one that says "unable", the understudy waits until its promise has expired, and runs the
  original, again and again, as the hub would.
- A hold is a person's word, so nobody culls during one, not even if HubGuard dies while it lasts. A brake protects, too:
  HubGuard stays able while it is braked, as long as its looks at the hub are complete.
- The original may be a script that starts the culler. So a keeper between the two sees to it that nothing of the original
  is left when it is asked to end, or when the understudy itself is killed. Until then, the original counts as running.
- Whatever is missing (folder, claim, a way to write) leads to the original at work, never to nobody.

Only the standard library is imported, since this runs for as long as the hub does and in the culler's service.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

GRACE_S = 120.0
"""Seconds that a HubGuard that has shown nothing yet, or is starting, gets before the original is started."""

FRESH_S = 60.0
"""Seconds after which a claim is stale. The hub starts a guard that has ended again within about 35."""

PROMISE_S = 30.0
"""Seconds for which the understudy promises not to start the original. It renews the promise after a third of that."""

MARGIN_S = 5.0
"""Seconds after the end of a promise for which the original still waits: what HubGuard sent last has to arrive."""

POLL_S = 1.0
"""Seconds between two readings of the claim."""

END_S = 8.0
"""Seconds that the original gets to end, before it is killed. The hub gives a service ten."""

ENDING_POLL_S = 0.1
"""Seconds between two looks at whether anything of the original is left, once it was asked to end."""

RESTART_S = 30.0
"""Seconds from one start of the original to the next, as the hub has it between two looks at its services."""

CLAIM = "claim.json"
"""HubGuard's file in the shared folder."""

LONGEST_WHY = 2000
"""Maximum characters of a reason that is passed on."""


class Word(str, Enum):
    """What HubGuard says of itself to those who stand by."""

    STARTING = "starting"  # it hasn't read the hub for the first time yet
    ABLE = "able"  # it does that culler's work, or would, if the original didn't run
    HELD = "held"  # a person has put acting on hold
    UNABLE = "unable"


class Claim(NamedTuple):
    """HubGuard's word at ``at_s``, with one clause on why."""

    word: Word
    why: str
    at_s: float


class Report(NamedTuple):
    """What an understudy says: the original isn't started before ``until_s``. ``runs``: it runs now. ``at_s``: when said."""

    until_s: float
    runs: bool
    why: str
    at_s: float


class Terms(NamedTuple):
    """Seconds, see the constants of the same names."""

    grace_s: float = GRACE_S
    fresh_s: float = FRESH_S
    promise_s: float = PROMISE_S
    margin_s: float = MARGIN_S
    poll_s: float = POLL_S


class Past(NamedTuple):
    """What an understudy remembers: when it began, when HubGuard was able last (None: never), until when it has promised."""

    began_s: float
    able_s: float | None = None
    until_s: float = float("-inf")


class Step(NamedTuple):
    """What an understudy does next: let the original run or not, and promise to wait or not. ``why`` is one clause."""

    runs: bool
    promises: bool
    why: str


def decide(claim: Claim | None, past: Past, terms: Terms, now_s: float) -> Step:
    """The next step of an understudy that has read ``claim`` (None: there is none)."""
    age_s = now_s - claim.at_s if claim is not None else 0.0
    if claim is not None and claim.word is Word.HELD:
        # A hold that HubGuard doesn't live to see the end of is still somebody's word.
        return Step(False, 0 <= age_s <= terms.fresh_s, claim.why)
    if claim is not None and claim.word is Word.ABLE and 0 <= age_s <= terms.fresh_s:
        return Step(False, True, "HubGuard culls")
    if claim is None:
        why = "HubGuard hasn't shown up"
    elif not 0 <= age_s <= terms.fresh_s:
        why = "HubGuard has fallen silent"
    else:
        why = claim.why or claim.word.value
    if now_s < past.until_s + terms.margin_s:
        return Step(False, False, f"{why}; the promise to wait hasn't expired")
    if claim is None or claim.word is Word.STARTING:
        since_s = past.began_s + terms.grace_s if past.able_s is None else past.able_s + terms.fresh_s
        if now_s < since_s:
            return Step(False, False, f"{why}; it gets a while to start")
    return Step(True, False, why)


# -- the shared folder ------------------------------------------------------------------------------------------------


def report_file(number: int) -> str:
    """The file of the understudy with that ``number``, counted from 0, in the shared folder."""
    return f"understudy-{number}.json"


def write(file: Path, value: Claim | Report) -> None:
    """``file`` holds ``value``, and never half of it. Raises OSError."""
    fields = value._asdict()
    fields["why"] = value.why[:LONGEST_WHY]
    new = file.with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps(fields))
    new.replace(file)


def read_claim(folder: Path) -> Claim | None:
    """HubGuard's claim; None if there is none that can be read."""
    claim = _read(folder / CLAIM)
    try:
        return Claim(Word(claim["word"]), str(claim["why"]), float(claim["at_s"])) if claim else None
    except (KeyError, TypeError, ValueError):
        return None


def read_report(folder: Path, number: int) -> Report | None:
    """The last report of the understudy with that ``number``; None if there is none that can be read."""
    report = _read(folder / report_file(number))
    try:
        if not report:
            return None
        return Report(float(report["until_s"]), bool(report["runs"]), str(report["why"]), float(report["at_s"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


# -- the command line -------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What one understudy is started for."""

    folder: str
    number: int
    hub_pid: int
    terms: Terms
    command: tuple[str, ...]


def command_for(part: Part, python: str) -> list[str]:
    """The command that runs ``part``. It needs neither the culler's folder nor installed packages."""
    terms = ",".join(f"{seconds:g}" for seconds in part.terms)
    options = [part.folder, str(part.number), str(part.hub_pid), terms]
    return [python, "-I", "-S", str(Path(__file__).absolute()), *options, "--", *part.command]


def part_of(command: Sequence[str]) -> Part | None:
    """What ``command`` would run if it is an understudy's, else None."""
    words = list(command)
    for place, word in enumerate(words):
        if Path(word).name == Path(__file__).name and words[place + 5 : place + 6] == ["--"]:
            folder, number, hub_pid, terms = words[place + 1 : place + 5]
            try:
                seconds = [float(text) for text in terms.split(",")]
                return Part(folder, int(number), int(hub_pid), Terms(*seconds), tuple(words[place + 6 :]))
            except (TypeError, ValueError):
                return None
    return None


# -- running ----------------------------------------------------------------------------------------------------------


class _Original:
    """The original command, in the care of a keeper. Started at most every RESTART_S seconds, as the hub does it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._keeper: int | None = None
        self._order = -1
        self._started_s = float("-inf")

    @property
    def runs(self) -> bool:
        """Whether anything that the command has started is left."""
        return self._keeper is not None

    def look(self) -> None:
        """Notice that it has ended."""
        if self._keeper is not None and os.waitpid(self._keeper, os.WNOHANG)[0]:
            os.close(self._order)
            self._keeper = None

    def start(self) -> None:
        """Start it, unless it runs or was started a moment ago."""
        now_s = time.monotonic()
        if self._keeper is not None or now_s - self._started_s < RESTART_S:
            return
        self._started_s = now_s
        orders, self._order = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                os.close(self._order)
                _keep(self._command, orders)
            finally:
                os._exit(0)
        os.close(orders)

    def end(self) -> None:
        """Ask it to end."""
        if self._keeper is not None:
            with contextlib.suppress(OSError):
                os.write(self._order, b"x")
            self._started_s = float("-inf")


def _keep(command: list[str], orders: int) -> None:
    """Run ``command`` until no process is left that it has started, in whichever session.

    A byte from ``orders`` asks all of them to end; what is left END_S seconds later is killed. If the understudy is gone,
    however it ended, ``orders`` is closed, and all are killed at once. So this process outlives the understudy.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # what we run gets it, too, or is asked by us
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans of the command become our children
    try:
        # Its environment and folder are ours, which are those of its own service entry.
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_us)  # noqa: S603, PLW1509
    except OSError as error:
        _say(f"{command[0]} can't be started: {error.strerror or error}. It is tried again.")
        return
    watched, kill_s = [orders], float("inf")
    while _reap(process.pid, command[0]):
        ready, _, _ = select.select(watched, [], [], POLL_S if kill_s == float("inf") else ENDING_POLL_S)
        now_s = time.monotonic()
        if ready and not os.read(orders, 1):
            watched, kill_s = [], now_s
        elif ready and kill_s == float("inf"):
            kill_s = now_s + END_S
            _signal_group(process.pid, signal.SIGTERM)
        if now_s >= kill_s:
            _signal_group(process.pid, signal.SIGKILL)
            for child in _children():
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)


def _reap(command: int, name: str) -> bool:
    """Take notice of children that have ended; whether any child, or process of the command's group, is left."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            if pid == command:
                _say(f"{name} exited with status {os.waitstatus_to_exitcode(status)}.")
    except ChildProcessError:
        return _signal_group(command, 0)


def _signal_group(group: int, number: int) -> bool:
    """Whether the process group was there."""
    try:
        os.killpg(group, number)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _children() -> list[int]:
    """Our children, as far as the system tells."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _die_with_us() -> None:
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _prctl(option: int, value: int) -> None:
    """Set what Linux offers for a process; nothing elsewhere."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(option, value)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"[HubGuard's understudy] {text}\n")
        sys.stderr.flush()


def run(part: Part) -> int:
    """Stand by, and run the original when it is due, until SIGTERM or SIGINT comes or the hub is gone; the exit code."""
    ending: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ending.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes us
    original = _Original(part.command)
    # A promise that an earlier process of this part has made still stands.
    last = read_report(Path(part.folder), part.number)
    past = Past(time.monotonic(), until_s=float("-inf") if last is None else last.until_s)
    last = None
    while not ending and os.getppid() == part.hub_pid:
        original.look()
        past, last = _turn(part, original, past, last)
        ready, _, _ = select.select([reader], [], [], part.terms.poll_s)
        if ready:
            os.read(reader, 512)
    original.end()
    while original.runs:
        original.look()
        time.sleep(ENDING_POLL_S)
    return 0


def _turn(part: Part, original: _Original, past: Past, last: Report | None) -> tuple[Past, Report]:
    folder, now_s = Path(part.folder), time.monotonic()
    step = decide(read_claim(folder), past, part.terms, now_s)
    until_s = past.until_s
    if step.promises:
        past = past._replace(able_s=now_s)
        if not original.runs and until_s - now_s < part.terms.promise_s * 2 / 3:
            until_s = now_s + part.terms.promise_s
    if last is None or last[1:3] != (original.runs, step.why):
        culls = "starts or continues" if step.runs else "waits" if not original.runs else "is told to end"
        _say(f"{' '.join(part.command)[:200]} {culls}: {step.why}.")
    report = Report(until_s, original.runs, step.why, now_s)
    if last is None or report[:3] != last[:3]:
        try:
            write(folder / report_file(part.number), report)
        except OSError as error:
            # Nobody knows of a promise that can't be written, so nobody acts on it, and the original has to.
            why = f"the folder shared with HubGuard can't be written ({error.strerror})"
            step, report = (
                Step(now_s >= past.until_s + part.terms.margin_s, False, why),
                Report(past.until_s, original.runs, why, now_s),
            )
        else:
            past = past._replace(until_s=until_s)
    if step.runs:
        original.start()
    else:
        original.end()
    return past, report


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line says; the exit code."""
    part = part_of(sys.argv if words is None else words)
    if part is None or not part.command:
        sys.stderr.write("Runs in the place of an idle culler; HubGuard's include writes this command line.\n")
        return 2
    return run(part)


if __name__ == "__main__":
    sys.exit(main())
