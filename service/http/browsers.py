"""What browsers are told with every answer: which pages of other origins may read it, and to come over TLS only."""

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Scope

from msmlp.service.oip.model import HEADER_LENGTH
from msmlp.service.settings import Settings

RawHeaders = list[tuple[bytes, bytes]]

EVERYWHERE = {"X-Content-Type-Options": "nosniff"}
"""With all answers, however they came."""

HSTS = (b"strict-transport-security", b"max-age=31536000")
"""For a year a browser comes to this host by HTTPS alone."""

MAY_SEND = ["Authorization", "X-Request-ID", HEADER_LENGTH]
"""Headers, besides those that CORS always allows and Content-Type."""
MAY_READ = ["X-Request-ID", "Server-Timing", "Retry-After", HEADER_LENGTH]


class Browsers:
    def __init__(self, settings: Settings) -> None:
        self._secure = settings.ssl_certfile is not None
        self._rules: CORSMiddleware | None = None
        if settings.cors_origins is not None:
            # Only what it decides is used: as middleware it would stand between every answer and its short way out.
            nothing: Any = None
            self._rules = CORSMiddleware(
                nothing,
                allow_origins=settings.cors_origins.split(","),
                allow_methods=["GET", "HEAD", "POST", "PUT"],
                allow_headers=MAY_SEND,
                expose_headers=MAY_READ,
            )

    def headers(self, scope: Scope) -> RawHeaders:
        """What the answer to a request carries besides its own headers."""
        found: RawHeaders = []
        if not self._secure and self._rules is None:
            return found
        if self._secure and scope["scheme"] == "https":
            found.append(HSTS)
        headers = Headers(scope=scope)
        if (rules := self._rules) is not None and not _is_preflight(scope, headers):
            origin = headers.get("origin")
            if not rules.allow_all_origins:
                found.append((b"vary", b"Origin"))
            if origin is not None and rules.is_allowed_origin(origin):
                allowed = {"Access-Control-Allow-Origin": origin, **rules.simple_headers}
                found += [(name.lower().encode(), value.encode("latin-1")) for name, value in allowed.items()]
        return found

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser that asks whether a page may send a request; None for any other request."""
        headers = Headers(scope=scope)
        if self._rules is None or not _is_preflight(scope, headers):
            return None
        return self._rules.preflight_response(headers)


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
