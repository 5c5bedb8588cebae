"""The headers that every answer carries, errors and the login's too."""

from __future__ import annotations

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


def harden(handler: RequestHandler) -> None:
    """Every answer, errors too, keeps the browser from doing more with it than HubGuard's pages need."""
    handler.clear_header("Server")
    handler.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Referrer-Policy", "no-referrer")
    handler.set_header("Cross-Origin-Opener-Policy", "same-origin")
    handler.set_header("Cache-Control", "no-store")
