"""What people may write into a parameter, in whatever script, and what would break a line of the journal."""

from __future__ import annotations

import pytest

from hubguard.web.openapi import Param, Refused

WHY = Param("why", str, "The reason.", high=500)


@pytest.mark.parametrize("text", [
    "試験\N{IDEOGRAPHIC SPACE}午後五時まで",
    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{SCHOOL} until 5 pm",
    "می\N{ZERO WIDTH NON-JOINER}رویم",
    "jusqu'à 17\N{NO-BREAK SPACE}h",
])  # fmt: skip
def test_a_reason_may_be_written_in_any_script(text: str) -> None:
    assert WHY.checked(text) == text


@pytest.mark.parametrize("char", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\ud800"])
def test_what_would_break_a_line_is_refused_and_named(char: str) -> None:
    with pytest.raises(Refused, match="400") as refused:
        WHY.checked(f"exam{char}armed by ann")
    assert refused.value.message.startswith("why: ")
