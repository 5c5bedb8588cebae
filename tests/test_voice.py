"""Words that don't come back: docs, pages, messages, docstrings and comments say it plainly."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INSTEAD = {
    r"\banew\b": "again",
    r"\bfor want of\b": "because … is missing",
    r"\b(told|tells?|telling) of\b": "reports, shows, names",
    r"\blately\b": "recently",
    r"\bbut for\b": "except",
    r"\bwhom\b": "who, or whose",
    r"\b(holds?|held|holding) back\b": "braked",
    r"\bso (many|often|long|seldom)\b(?! as\b| that\b)": "Maximum …, Seconds between …",
    r"\bhow long [^.;:]{0,60} counts?\b": "Seconds that …",
    r"\b(nobody|everybody|somebody) of\b": "no user in, every user in",
    r"\bgive or take\b": "plus or minus",
    r"\bcan't be told\b|\bcan be told\b|\bnobody can be asked\b": "is unknown, can't be read",
    r"\bthe same were\b|\bfor ever\b": "forever",
    r"\bgoes by\b|\bgo by what\b": "uses",
    r"\b(None|null|40[0-9]|503) where\b": "None if",
    r"\bdoesn't tell\b|\btells neither\b": "doesn't show, report",
    r"\bisn't known\b": "is unknown",
    r"\bdefect (in|of) HubGuard\b": "unexpected error (a bug in HubGuard)",
}
SEE = re.compile(r"^See [\w.`:~ ]+\.$")


def pieces(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of all prose in a file: of Python its strings and comments, of others everything."""
    text = file.read_text()
    if file.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def prose() -> list[Path]:
    """README, docs, the product with its templates, and what is installed or run beside it."""
    found = [ROOT / "README.md", ROOT / "Makefile"]
    for folder in ("docs", "bench", "migrations", "jupyterhub_config.d", "hubguard"):
        found += [file for file in (ROOT / folder).rglob("*") if file.suffix in {".py", ".md", ".html", ".mako"}]
    return sorted(found)


@pytest.mark.parametrize("file", prose(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_old_word_comes_back(file: Path):
    found = [
        f"{line}: {match[0]!r}, say {instead!r}: {text[:120]}"
        for line, text in pieces(file)
        for old, instead in INSTEAD.items()
        if (match := re.search(old, text, re.IGNORECASE))
    ]
    found += [f"{line}: say what it is: {text}" for line, text in pieces(file) if SEE.match(text)]
    assert found == [], "\n".join(["", *found])
