"""An endpoint of the REST API: described parameters, JSON answers, pages of rows. It knows no feature."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from hubguard import words
from hubguard.web.base import Base
from hubguard.web.openapi import Operation, Param, Refused, from_body, from_query

PAGINATION = "application/jupyterhub-pagination+json"
"""As with the hub: asked for in Accept, a list comes as ``items`` with ``_pagination``."""


YEAR_S = 366 * 86400.0


OFFSET = Param("offset", int, "Number of items to skip.", default=0, low=0, high=10_000_000)


LIMIT = Param("limit", int, "Maximum number of items.", default=100, low=1, high=1000)


WHY = Param("why", str, "The reason, for the journal.", default="", high=500)


class Api(Base):
    """An endpoint. ``operations`` holds, by method, what it takes and returns."""

    operations: ClassVar[dict[str, Operation]] = {}

    async def prepare(self) -> None:
        """The rights are those of the operation."""
        method = (self.request.method or "").lower()
        operation = self.operations.get("get" if method == "head" else method)
        if operation is None:
            raise Refused(405, f"This address takes {', '.join(self.methods())} only.")
        self.needs = () if operation.needs == "none" else tuple(operation.needs.split(" and "))
        await super().prepare()

    def _takes(self, method: str) -> bool:
        return ("get" if method == "HEAD" else method.lower()) in self.operations

    def query(self) -> dict[str, Any]:
        """The query's parameters, checked."""
        return from_query(self._operation().query, self.request.query_arguments)

    def body(self) -> dict[str, Any]:
        """The JSON body's parameters, checked."""
        return from_body(self._operation().body or (), self.request.body)

    def _operation(self) -> Operation:
        method = (self.request.method or "").lower()
        return self.operations["get" if method == "head" else method]

    def write_page(self, rows: Sequence[Any], asked: Mapping[str, Any], shape: Callable[[Any], Any]) -> None:
        """The part of ``rows`` that ``asked`` wants: a plain list with a ``Link`` to the next page, or as the hub
        paginates if Accept asks for it.
        """
        offset, limit = asked["offset"], asked["limit"]
        items = [shape(row) for row in rows[offset : offset + limit]]
        after = None
        if offset + limit < len(rows):
            url = self.link_next(**{**asked, "offset": offset + limit})
            after = {"offset": offset + limit, "limit": limit, "url": url}
        if PAGINATION not in self.request.headers.get("Accept", ""):
            self.write_json(items)
            return
        # Set first: finishing sends the headers.
        self.set_header("Content-Type", PAGINATION)
        pagination = {"offset": offset, "limit": limit, "total": len(rows), "next": after}
        self.finish(words.json_text({"items": items, "_pagination": pagination}))

    def write_json_to_readers(self, value: Any) -> None:
        """Answer with ``value`` as JSON, or with 204 to a caller who may act and not read."""
        if self.may.read:
            self.write_json(value)
        else:
            self.set_status(204)

    def link_next(self, **query: Any) -> str:
        """The address of the next page, also put into ``Link``."""
        given = {name: value for name, value in query.items() if value is not None}
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}
        url = f"{self.request.path}?{urlencode(texts, doseq=True)}"
        self.set_header("Link", f'<{url}>; rel="next"')
        return url


class HubReport(Api):
    """An endpoint by which the hub itself reports something, with the token of our own service. The hub isn't asked."""

    async def prepare(self) -> None:
        """Check that it is our own service's token. Raises Refused (401)."""
        if self.request.method != "POST":
            raise Refused(405, "This address takes POST only.")
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        ours = self.site.service_token
        given = token.strip() if scheme.lower() in {"token", "bearer"} else ""
        if not ours or not hmac.compare_digest(given.encode(), ours.encode()):
            raise Refused(
                401, "Only the hub that runs HubGuard may report this, with the token of HubGuard's own service."
            )
