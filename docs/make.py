"""Writes what the docs repeat of the code: every setting and fixed limit, and every file. Run: python docs/make.py."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from traitlets import Bool, Float, Int, List

from hubguard import config, words
from hubguard.watch.decide.prometheus import write_reference
from hubguard.watch.decide.rules import RULES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "settings.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
ALERTS = ROOT / "docs" / "reference" / "alerts.md"
FILES = "\n## Every file\n"
UNITS = {
    "HubGuardBudget.rate": "requests per second",
    "HubGuardPrune.rate": "users per second",
    "HubGuardPrune.share_cap": "share of users",
}
NO_LIMITS = {"VERSION", "HOUR_S", "DAY_S", "YEAR_S", "NOBODY", "FINE", "FAILED", "USAGE", "HELD", "FINDINGS"}
"""Formats, units, ids and exit codes."""


class Limit(NamedTuple):
    """A fixed number: a constant of a module, with the string that follows it."""

    name: str
    value: float
    reason: str


def limits() -> Iterator[Limit]:
    """Every public numeric constant of a module, except those of the demo and the tests."""
    for file in sorted((ROOT / "hubguard").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if module.startswith("hubguard.staging"):
            continue
        for names, text in _assigned(ast.parse(file.read_text()).body):
            for name in names:
                value = getattr(importlib.import_module(module), name)
                if name.isupper() and _is_number(value) and name not in NO_LIMITS:
                    yield Limit(f"{module.removeprefix('hubguard.')}.{name}", value, text)


def settled() -> Iterator[Limit]:
    """The constants of the sections of settings."""
    for section in config.SECTIONS:
        tree = ast.parse(textwrap.dedent(inspect.getsource(section)))
        for names, text in _assigned(tree.body[0].body):  # type: ignore[attr-defined]
            for name in names:
                if name in section.constants:
                    yield Limit(f"{section.__name__}.{name}", getattr(section, name), text)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[list[str], str]]:
    """The names of each assignment, with the string that follows it, or the last of those right after it."""
    for place, node in enumerate(body):
        after = (_text(later) for later in body[place + 1 :] if not _names(later))
        yield _names(node), next(after, "")


def _names(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    found = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name for name in found if not name.startswith("_")]


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def unit(name: str, value: object, kind: type = float) -> str:
    """What a default counts, by the end of its name or by its kind."""
    if name in UNITS:
        return UNITS[name]
    if name.lower().endswith("_s"):
        long = isinstance(value, (int, float)) and value >= 120
        return f"seconds ({words.limit(value)})" if long else "seconds"  # type: ignore[arg-type]
    if name.endswith("_days"):
        return "days"
    if name.endswith("SHARE"):
        return "share"
    if issubclass(kind, Bool):
        return "yes or no"
    if issubclass(kind, List):
        return "list"
    return "number" if issubclass(kind, (Int, Float, float)) else "text"


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Every default",
        "",
        "`python docs/make.py` makes this page from the code, and a test compares the two. Set a setting in",
        "`jupyterhub_config.py`; names that start with `c.` are settings. The others are fixed, named by their section or by",
        "their module below `hubguard/`.",
        "",
        "| name | default | unit | what it is, and why |",
        "| --- | --- | --- | --- |",
    ]
    kinds = {
        f"{section.__name__}.{name}": type(trait)
        for section in config.SECTIONS
        for name, trait in section.class_own_traits(config=True).items()
    }
    values = {
        f"{section.__name__}.{name}": trait.default()
        for section in config.SECTIONS
        for name, trait in section.class_own_traits(config=True).items()
    }
    for name, default, text in config.settings_table():
        lines.append(_row(f"c.{name}", default, unit(name, values[name], kinds[name]), text))
    for limit in (*settled(), *limits()):
        lines.append(_row(limit.name, f"{limit.value}", unit(limit.name, limit.value), limit.reason))
    return "\n".join(lines) + "\n"


def _row(name: str, default: str, counts: str, text: str) -> str:
    return f"| `{name}` | `{default}` | {counts} | {text.replace('|', '/')} |"


def architecture() -> str:
    """docs/architecture.md, with the first sentences of all modules at its end."""
    lines = [
        ARCHITECTURE.read_text().split(FILES)[0],
        "## Every file",
        "",
        "`python docs/make.py` takes these from the first lines of the modules, and a test compares the two. Paths are below",
        "`hubguard/`.",
        "",
        "| file | what is in it |",
        "| --- | --- |",
    ]
    for file in sorted((ROOT / "hubguard").rglob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        if file.name not in {"__init__.py", "__main__.py"}:
            sentence = " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", "/")
            lines.append(f"| `{file.relative_to(ROOT / 'hubguard')}` | {sentence} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    ALERTS.write_text(write_reference(RULES))
    ARCHITECTURE.write_text(architecture())
