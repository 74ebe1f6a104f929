"""The one exception of `msmlp.Client` and of a model from `msmlp.load`."""

from collections.abc import Mapping
from typing import Any

from msmlp.model.errors import MsmlpError


class ServiceError(MsmlpError):
    """A request that was not answered; both callers raise it with the same fields for the same fault.

    Args:
        detail: one clear line.
        status: the HTTP status; None when no answer came.
        code: the service's name for it (`bad_option`, `overloaded`, ...); `unreachable` or `timeout` when no answer
            came, `not_sent` when nothing could be sent, `not_understood` when the answer is not the service's.
        request_id: as the service logged it.
        errors: one `{"index", "code", "detail"}` for each image at fault.
        retry_after: seconds, when the service asked to come again.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str = "",
        request_id: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.status, self.code = detail, status, code
        self.request_id, self.errors, self.retry_after = request_id, errors or [], retry_after

    @classmethod
    def of_problem(cls, problem: Mapping[str, Any], retry_after: float | None = None) -> "ServiceError":
        """From a problem+json document."""
        return cls(
            str(problem["detail"]),
            status=problem["status"],
            code=str(problem["code"]),
            request_id=problem.get("request_id"),
            errors=problem.get("errors"),
            retry_after=retry_after,
        )
