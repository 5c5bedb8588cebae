"""What docs/architecture.md says of packages and places is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = {
    ".".join(file.parent.relative_to(ROOT).parts): file for file in (ROOT / "hubguard").glob("*/**/__init__.py")
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without backticks."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_has_a_sentence_for_every_package():
    assert sorted(name for name, _ in rows("Packages")) == sorted(PACKAGES)


@pytest.mark.parametrize(("package", "sentence"), rows("Packages"))
def test_a_packages_sentence_is_the_first_line_of_its_docstring(package: str, sentence: str):
    docstring = ast.get_docstring(ast.parse(PACKAGES[package].read_text())) or ""
    assert " ".join(docstring.split("\n\n")[0].split()) == sentence


def test_ten_questions_are_answered():
    assert len(rows("Where is …?")) == 10


@pytest.mark.parametrize(
    ("what", "file", "name"), [*rows("Where is …?"), *rows("From the hub's JSON to the journal and back to a page")]
)
def test_everything_is_defined_where_the_page_says(what: str, file: str, name: str):
    body = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        (found,) = [node for node in body if getattr(node, "name", "") == part]
        body = getattr(found, "body", [])


def test_every_path_and_module_of_the_page_is_there():
    """In the text, `cycle.py` stands for a file of a feature, and `hubguard/x.py` for itself."""
    for path in re.findall(r"`((?:hubguard|tests|migrations|docs)/[\w/.]*)`", PAGE):
        assert (ROOT / path).exists(), path
