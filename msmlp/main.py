"""The `msmlp` command: the offline commands and the serving ones under one name."""

import sys
from typing import Annotated

import typer

import msmlp
from msmlp.bench.command import app as bench
from msmlp.classify import classify
from msmlp.deploy import app as deploy
from msmlp.doctor import doctor
from msmlp.model.cli import app as offline
from msmlp.model.errors import (
    CallerError,
    MissingPackageError,
    MsmlpError,
    TrainingInterruptedError,
    install_hint,
    plain,
)
from msmlp.model.text import printable
from msmlp.plan.command import plan
from msmlp.service.cli import app as serving

INTERRUPTED = 130
"""As shells have it, and Typer for a KeyboardInterrupt."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"msmlp {msmlp.__version__}")
        raise typer.Exit


# Plain help: it wraps well and can be copied from.
app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.callback()
def _msmlp(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """An image classifier that spends compute only where an image needs it.

    \b
    Examples:
      msmlp serve
      msmlp train --data my-photos --preset tiny --recipe quick --out weights/mine
      msmlp COMMAND --help
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# Without a name their commands are at the top level.
app.add_typer(offline)
app.add_typer(serving)
app.command()(classify)
app.command()(doctor)
app.command()(plan)
app.add_typer(bench)
app.add_typer(deploy)


def main() -> None:
    """Run a command: exit status 0, 2 for the caller's mistake, 130 if interrupted, 1 for anything else; of what fails,
    one line on stderr says why.
    """
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(prog_name="msmlp", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "msmlp"
        text = plain(error.format_message()).removesuffix(".")
        if context and type(error).__name__ == "NoArgsIsHelpError":  # its text is the whole help
            text = f"{context.info_name}: expected one of {', '.join(context.command.commands)}"
        return _fail(2, f"{text}; see {command} --help")
    except MsmlpError as error:
        interrupted = isinstance(error, TrainingInterruptedError)
        return _fail(INTERRUPTED if interrupted else 2 if isinstance(error, CallerError) else 1, str(error))
    except MissingPackageError as error:
        return _fail(1, str(error))
    except ModuleNotFoundError as error:
        extras = "serve,import" if error.name == "onnx" and sys.argv[1:2] == ["import"] else "serve,train"
        return _fail(1, f"this command needs the package {error.name}: {install_hint(extras)}")
    except Exception as error:  # a full disk, or a bug
        if "--traceback" in sys.argv:
            raise
        return _fail(1, f"unexpected {type(error).__name__}: {error} (msmlp --traceback ... shows where)")
    return _fail(INTERRUPTED, "interrupted") if status == INTERRUPTED else int(status or 0)


def _fail(status: int, text: str) -> int:
    # Some libraries' texts have several lines, and names in files may have control characters.
    sys.stderr.write(f"msmlp: {printable(' '.join(text.split()))}\n")
    return status
