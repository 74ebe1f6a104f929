"""Who may come in over HTTP: which paths need a key, and which one."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import Scope

from msmlp.service.errors import RateLimitedError
from msmlp.service.keys import Key
from msmlp.service.service import Service

OPEN = {"/", "/docs", "/livez", "/openapi.json", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Probes, and pages and files that are the same everywhere, as those under /ui/ are. They need no key."""

OPERATIONS = {"/livez", "/metrics", "/readyz"}
"""All that `--metrics-port` has. They need no key there."""

NOWHERE = HTTPStatus.NOT_FOUND, "no such path"
NOT_HERE = HTTPStatus.NOT_FOUND, f"no such path; this port has {', '.join(sorted(OPERATIONS))}"


class Gate:
    """Lets a request in once: its key is `msmlp_key` in its scope then."""

    def __init__(self, service: Service) -> None:
        self._keys, self._shed = service.keys, service.metrics.shed.labels("key")
        self._open = OPEN | {"/metrics"} if service.settings.metrics_open else OPEN
        self._metrics_port = service.settings.metrics_port

    def refuse(self, scope: Scope) -> Exception | None:
        """Why a request may not come in; one that was let in before may."""
        path = scope["path"]
        if self._metrics_port is not None and (scope["server"] or ("", 0))[1] == self._metrics_port:
            return None if path in OPERATIONS else HTTPException(*NOT_HERE)
        if path.startswith("/admin") and path[6:7] in ("", "/"):
            file = self._keys.admin
            if file is None:
                return HTTPException(*NOWHERE)
        else:
            file = self._keys.api
            if file is None or path in self._open or path.startswith("/ui/"):
                return None
        if "msmlp_key" in scope:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = file.enter(given)
        if isinstance(key, Key):
            scope["msmlp_key"] = key
            return None
        if isinstance(key, RateLimitedError):
            self._shed.inc()
        return key
