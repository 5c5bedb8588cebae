"""The table of hubs in the docs: each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?` \|$", re.MULTILINE)


def test_each_row_of_the_table_of_hubs_names_a_test_that_there_is():
    text = (CHECKOUT / "docs" / "reference" / "hubs.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| hub |", "| --- |"))]
    named = NAMED.findall(text)
    assert len(named) == len(rows) > 15
    for file, name in named:
        there = (CHECKOUT / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in there, f"{file} has no {name}"
