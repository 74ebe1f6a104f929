"""What a request is called in answers and in the log."""

import random
import re
from contextvars import ContextVar

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id_of_this_task: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered, if any: for whatever is logged meanwhile."""


def sane_id(given: str) -> str:
    """The client's own id if it is sane, else a new one."""
    # Not uuid4, which asks the system: whoever does gives the interpreter away and has to wait for it.
    return given if _SANE.fullmatch(given) else f"{random.getrandbits(128):032x}"
