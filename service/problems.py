"""An error as a response, in the form that its path's clients read."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from service.errors import PROBLEM_TYPE
from service.oip.errors import oip_error
from service.oip.paths import is_oip


def problem_response(
    path: str, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem document as problem+json; under /v2 as the Open Inference Protocol's `{"error"}`."""
    if is_oip(path):
        status, error = oip_error(status, document["detail"])
        return JSONResponse(error, status_code=status, headers=headers)
    return JSONResponse(document, status_code=status, headers=headers, media_type=PROBLEM_TYPE)
