"""How every process of the service logs."""

import logging
import sys


def log_to_stderr(level: str) -> None:
    """Our own records and uvicorn's at `level`; libraries' only when something is wrong."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("msmlp", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
