"""What a request is called in answers and in the log."""

import re
import uuid

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def sane_id(given: str) -> str:
    """The client's own id if it is sane, else a new one."""
    return given if _SANE.fullmatch(given) else uuid.uuid4().hex
