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


# -- how large things may grow --------------------------------------------------------------------------------------------

MODULES = sorted((ROOT / "hubguard").rglob("*.py"))
MOST_ATTRIBUTES = 25
MOST_PARAMETERS = 10


def frozen(node: ast.ClassDef) -> bool:
    """Whether the class is a frozen dataclass: a value has as many fields as its subject, and does nothing with them."""
    return any("dataclass" in (made := ast.unparse(one)) and "frozen=True" in made for one in node.decorator_list)


def attributes(node: ast.ClassDef) -> set[str]:
    """What the class assigns to ``self``, and the fields that it declares."""
    fields = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    return fields | {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


def parameters(node: ast.ClassDef) -> int:
    """How many values its constructor takes; a dataclass that isn't frozen takes its fields."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return len([*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]) - 1
    if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        return sum(isinstance(one, ast.AnnAssign) and "init=False" not in ast.unparse(one) for one in node.body)
    return 0


def test_no_class_has_too_many_attributes_and_no_constructor_too_many_parameters():
    """Frozen dataclasses are values and don't count, nor do sections of settings: traitlets are not assigned to self."""
    too_large = []
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not frozen(node):
                found = len(attributes(node)), parameters(node)
                if found[0] > MOST_ATTRIBUTES or found[1] > MOST_PARAMETERS:
                    too_large.append(
                        f"{file.relative_to(ROOT)} {node.name}: {found[0]} attributes, {found[1]} parameters"
                    )
    assert too_large == []


def test_every_module_says_what_it_is():
    assert [str(file.relative_to(ROOT)) for file in MODULES if not ast.get_docstring(ast.parse(file.read_text()))] == []


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_package_says_what_it_must_not_do(package: str):
    docstring = ast.get_docstring(ast.parse(PACKAGES[package].read_text())) or ""
    assert re.search(r"\b(no|not|never|nothing|none|only|neither)\b|n't\b", docstring, re.IGNORECASE), docstring


def test_the_package_carries_no_doubles():
    """They stand in tests/doubles, and nothing of tests is in the package."""
    double = re.compile(r"^class (Memory[A-Z]|Fake|Scripted|Mock)|^\s*(from|import) (doubles|tests)\b", re.MULTILINE)
    assert any(double.search(file.read_text()) for file in (ROOT / "tests" / "doubles").glob("*.py"))
    assert [str(file.relative_to(ROOT)) for file in MODULES if double.search(file.read_text())] == []
