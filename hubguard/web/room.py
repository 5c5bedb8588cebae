"""What one feature shows: its pages and endpoints, by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubguard.web.base import Base
from hubguard.web.endpoint import Api

PATTERNS: Mapping[str, str] = {
    "user": "([^/]+)",
    "name": "([^/]*)",
    "id": "([0-8]?[0-9]{1,18})",  # what every database can count up to
    "signal": "([a-z0-9_]+)",
    "digest": "([0-9a-f]{64})",
}
"""What a placeholder stands for in every path, as a regular expression."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one feature shows, by path. ``part`` is the attribute in which its handlers find their part of the guard.

    ``live`` are the pages with a live part, which is answered below ``fragments/``, too; ``pages`` are the others.
    ``choices`` are the words that a placeholder of its own stands for.
    """

    part: str
    live: Mapping[str, type[Base]]
    pages: Mapping[str, type[Base]]
    api: Mapping[str, type[Api]]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def every_page(self) -> dict[str, type[Base]]:
        """Every page by its path."""
        return {**self.live, **self.pages}

    def fragments(self) -> dict[str, type[Base]]:
        """The live parts by their paths; that of the first page has a name there."""
        return {f"fragments/{path or 'overview'}": page for path, page in self.live.items()}

    def handlers(self, prefix: str, **given: Any) -> Iterator[tuple[str, type[Base], dict[str, Any]]]:
        """As tornado takes them: every address below ``prefix`` with its handler, which gets what is ``given``."""
        for path, handler in {**self.every_page(), **self.fragments(), **self.api}.items():
            yield prefix + self._pattern(path), handler, given

    def _pattern(self, path: str) -> str:
        path = path.replace(".", r"\.")
        for name, pattern in {**PATTERNS, **{name: f"({'|'.join(of)})" for name, of in self.choices.items()}}.items():
            path = path.replace(f"{{{name}}}", pattern)
        return path
