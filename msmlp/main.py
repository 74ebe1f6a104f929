"""The `msmlp` command."""

import sys

from model.cli import app
from model.errors import CallerError, MsmlpError


def main() -> None:
    """Run a command; a known error is one line on stderr and exit status 2 (the caller's) or 1."""
    try:
        app()
    except MsmlpError as error:
        print(f"msmlp: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, CallerError) else 1)
