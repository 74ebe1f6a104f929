"""An error as a response, in the form that its path's clients read."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from msmlp.model.errors import MsmlpError
from msmlp.service.errors import CLIENT_CLOSED_REQUEST, PROBLEM_TYPE, RetryableError, problem, problem_document
from msmlp.service.oip.model import is_oip, oip_error


def error_response(request: Request, error: MsmlpError) -> Response:
    """What the client is told of an error."""
    status, document = problem(error, request.scope["msmlp_account"].request_id)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, RetryableError) else None
    return problem_response(request.scope["path"], status, document, headers)


def gone_response() -> Response:
    """The client left; nobody but the metrics sees this, where it is not to be taken for a client's mistake."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def internal_error(scope: Scope) -> Response:
    """The server's own fault: nothing of it is told."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    document = problem_document(status, "internal", "the server failed", scope["msmlp_account"].request_id)
    return problem_response(scope["path"], status, document)


def problem_response(
    path: str, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem document as problem+json; under /v2 as the Open Inference Protocol's `{"error"}`."""
    if is_oip(path):
        status, error = oip_error(status, document["detail"])
        return JSONResponse(error, status_code=status, headers=headers)
    return JSONResponse(document, status_code=status, headers=headers, media_type=PROBLEM_TYPE)
