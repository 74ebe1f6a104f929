"""The `msmlp` command: the offline commands and the serving ones under one name."""

import sys

import typer

from model.cli import app as offline
from model.errors import CallerError, MsmlpError
from service.cli import app as serving

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _msmlp() -> None:
    """An image classifier that spends compute only where an image needs it."""


# Without a name their commands stand at the top level.
app.add_typer(offline)
app.add_typer(serving)


def main() -> None:
    """Run a command; a known error is one line on stderr and exit status 2 (the caller's) or 1."""
    try:
        app()
    except MsmlpError as error:
        sys.stderr.write(f"msmlp: {error}\n")
        sys.exit(2 if isinstance(error, CallerError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("msmlp: interrupted\n")
        sys.exit(1)
