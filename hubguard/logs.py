"""The log as operators read it: a line a record, whatever is in it, and no flood."""

from __future__ import annotations

import logging
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 4000
"""Maximum characters of a message. Names and addresses in it come from outside."""

PER_MINUTE = 600
"""Maximum records a minute from one line of code. The last of them says so, and the next how many were left out."""

TRACEBACKS_PER_MINUTE = 20
"""The same for records with a traceback, each of which is long."""

_MINUTE_S = 60.0

_BREAKS_LINES = {"Cc", "Cs", "Zl", "Zp"}


def one_line(text: str) -> str:
    """``text`` with its control characters written out (``\\n``, ``\\x1b``): it can't begin a line or move a cursor."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _BREAKS_LINES else char for char in text
    )


def for_terminals(text: str) -> str:
    """``text`` with the control characters written out that do more than break lines: it can't move a cursor."""
    return "".join(char if char in "\t\n\r" else one_line(char) for char in text)


@dataclass(slots=True)
class _Minute:
    """What one line of code has logged since ``began_s``."""

    began_s: float
    count: int = 0


class Tidy(logging.Filter):
    """For a handler: a record's message becomes one line, its traceback is indented, and no line of code floods the log."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic_s = monotonic_s
        self._minutes: dict[tuple[str, int, int], _Minute] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; it is tidy then."""
        with self._lock:
            note = self._counted(record)
        if note is None:
            return False
        message = one_line(record.getMessage())
        if len(message) > LONGEST:
            message = f"{message[:LONGEST]}… ({len(message):,} characters)"
        record.msg, record.args = message + note, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text and not record.exc_text.startswith("    "):
            # A line of an error's own text may look like a record otherwise.
            record.exc_text = "\n".join(f"    {one_line(line)}" for line in record.exc_text.split("\n"))
        return True

    def _counted(self, record: logging.LogRecord) -> str | None:
        """What to add to the message, or None if the record is one too many."""
        if record.levelno < logging.INFO:
            return ""  # asked for by --debug
        now_s = self._monotonic_s()
        where = (record.pathname, record.lineno, record.levelno)
        minute = self._minutes.get(where)
        most = TRACEBACKS_PER_MINUTE if record.exc_info else PER_MINUTE
        left_out = 0
        if minute is None or now_s - minute.began_s >= _MINUTE_S:
            left_out = 0 if minute is None else max(0, minute.count - most)
            minute = self._minutes[where] = _Minute(now_s)
        minute.count += 1
        if left_out:
            return f" ({left_out:,} more like it were left out of the log before)"
        if minute.count == most:
            return " (more like it are left out of the log for a minute)"
        return "" if minute.count < most else None


def tidy(*handlers: logging.Handler) -> None:
    """What these handlers write is tidy from now on."""
    for handler in handlers:
        if not any(isinstance(known, Tidy) for known in handler.filters):
            handler.addFilter(Tidy())
