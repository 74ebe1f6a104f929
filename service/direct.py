"""The shortest way to the few routes that take images: the framework's own costs more than the answer."""

import re
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from msmlp.model.errors import MsmlpError
from msmlp.service.problems import error_response, gone_response

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """POST requests whose path matches one of `endpoints` go straight there, all others to `app`; plain ASGI.

    The application knows these routes too: it describes them, and answers what is no POST.
    """

    def __init__(self, app: ASGIApp, endpoints: dict[re.Pattern[str], Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] == "http" and scope["method"] == "POST":
            for pattern, endpoint in self._endpoints.items():
                if found := pattern.fullmatch(scope["path"]):
                    scope["app"], scope["path_params"] = self._app, found.groupdict()
                    response = await _answered(endpoint, Request(scope, receive))
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _answered(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except MsmlpError as error:
        return error_response(request, error)
    except ClientDisconnect:
        return gone_response()
