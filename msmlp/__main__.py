"""The `msmlp` command, and `python -m msmlp`."""

import sys


def main() -> None:
    """Run a command. Ctrl-C says so in one line, also while packages load, which takes most of the first second."""
    try:
        from msmlp.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("msmlp: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
