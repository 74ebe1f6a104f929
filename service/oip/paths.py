"""The protocol's paths: which requests are its, and how metrics call them."""

import re

_MODEL = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?(/ready|/config|/stats|/infer)?")
_SERVER = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index")


def is_oip(path: str) -> bool:
    """Whether errors under this path take the protocol's form."""
    return path == "/v2" or path.startswith("/v2/")


def route_label(path: str) -> str | None:
    """One of a bounded set of names; None for what the protocol does not know."""
    if path in _SERVER:
        return path
    model = _MODEL.fullmatch(path)
    return f"/v2/models/{{name}}{model[1] or ''}" if model else None
