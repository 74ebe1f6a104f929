"""How every process of the service logs: to stderr, as text or as JSON, with the request's id."""

import logging
import random
import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}


@dataclass(frozen=True)
class Logging:
    """The least level that is logged, and in which form."""

    level: str
    format: Literal["text", "json"] = "text"

    def begin(self) -> None:
        """Log like that from now on: our own records and uvicorn's at `level`, libraries' if something is wrong."""
        global _begun
        _begun = self
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_TextFormatter(TEXT) if self.format == "text" else _json())
        handler.addFilter(_name_request)
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        for name in ("msmlp", "uvicorn"):
            logging.getLogger(name).setLevel(self.level.upper())


_begun: Logging | None = None


def in_force() -> Logging | None:
    """How this process logs, for the processes it starts; None where nobody has said."""
    return _begun


class _TextFormatter(logging.Formatter):
    """The request's id, where there is one, stands in brackets behind the message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The first line; what an exception says comes below."""
        line, request_id = super().formatMessage(record), getattr(record, "request_id", "")
        return f"{line} [{request_id}]" if request_id else line


def _json() -> logging.Formatter:
    # `timestamp=True` is RFC 3339 in UTC. What a record was given as `extra` becomes members of its own.
    unwanted = [*RESERVED_ATTRS, "color_message"]  # uvicorn's message again, for terminals
    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s", rename_fields=NAMES, reserved_attrs=unwanted, timestamp=True
    )


def _name_request(record: logging.LogRecord) -> bool:
    """Add the id of the request that is being answered, unless whoever logs has said one."""
    request_id = request_id_of_this_task.get()
    if request_id and not hasattr(record, "request_id"):
        record.request_id = request_id
    return True


# FROM service/logs.py:
# What a request is called in answers and in the log.

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id_of_this_task: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered, if any: for whatever is logged meanwhile."""


def sane_id(given: str) -> str:
    """The client's own id if it is sane, else a new one."""
    # Not uuid4, which asks the system: whoever does gives the interpreter away and has to wait for it.
    return given if _SANE.fullmatch(given) else f"{random.getrandbits(128):032x}"
