"""What Ray's proxy answers for a replica that has died: 503 and when to come back, in the form of all other errors.

By itself it answers a bare 500, which clients take for a fault of their request's, and do not repeat. Ray loads this
where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=msmlp.service.ray_proxy:middlewares` is set when a node starts. It is
for clusters that serve nothing else: no application's bare 500 comes through.
"""

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msmlp.service.errors import PROBLEM_TYPE, EngineDownError, problem
from msmlp.service.oip.model import is_oip, oip_error

LOST = "the replica that was handling this request died; try again"


class Lost:
    """Answers requests to which the proxy itself says nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = scope["type"] != "http"

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        await self._app(scope, receive, watched)
        if not begun:
            await _refusal(scope)(scope, receive, send)


def _refusal(scope: Scope) -> JSONResponse:
    error = EngineDownError(LOST)
    request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")  # the proxy has put one in
    headers = {"Retry-After": str(error.retry_after), "X-Request-ID": request_id}
    status, document = problem(error, request_id)
    if is_oip(scope["path"]):
        oip_status, body = oip_error(status, document["detail"])
        return JSONResponse(body, status_code=oip_status, headers=headers)
    return JSONResponse(document, status_code=status, headers=headers, media_type=PROBLEM_TYPE)


def middlewares() -> list[Middleware]:
    """As Ray asks for them."""
    return [Middleware(Lost)]
