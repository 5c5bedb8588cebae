"""The headers that every answer carries, errors and the login's too."""

from __future__ import annotations

from typing import Any

from tornado.web import RequestHandler

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        *(
            f"{kind} 'self'"
            for kind in ("script-src", "style-src", "img-src", "font-src", "connect-src", "form-action")
        ),
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)

RETRY_AFTER_S = "5"
"""Seconds after which a request that got 503 may be sent again."""


class Hardened(RequestHandler):
    """A handler whose answers keep the browser from doing more with them than HubGuard's pages need."""

    def set_default_headers(self) -> None:
        """Every answer, errors too, is for the page that asked for it alone."""
        self.clear_header("Server")
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def set_cookie(self, name: str, value: str | bytes, *args: Any, **options: Any) -> None:
        """The cookie goes along from other sites only when a link is followed, unless ``options`` say otherwise."""
        if not any(option.lower() == "samesite" for option in options):
            options["samesite"] = "Lax"
        super().set_cookie(name, value, *args, **options)

    def methods(self) -> tuple[str, ...]:
        """The methods that this address takes."""
        taken = {name for name in self.SUPPORTED_METHODS if self._takes(name)}
        return tuple(name for name in self.SUPPORTED_METHODS if name in taken and (name != "HEAD" or "GET" in taken))

    def _takes(self, method: str) -> bool:
        return getattr(type(self), method.lower()) is not RequestHandler._unimplemented_method

    def say_what_would_do(self, status: int) -> None:
        """With an error of that ``status`` go the headers that say what to send instead."""
        if status == 405:
            self.set_header("Allow", ", ".join(self.methods()))
        if status == 503:
            self.set_header("Retry-After", RETRY_AFTER_S)
        if status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="hubguard"')
