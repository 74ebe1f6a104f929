"""Calling other programs."""

import subprocess


def call(*command: str) -> None:
    """Run a command, its output shown; CalledProcessError when it fails."""
    subprocess.run(command, check=True)


def output(*command: str) -> str:
    """What a command prints; CalledProcessError when it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def succeeds(*command: str) -> bool:
    """Whether a command ends with status 0; what it prints is dropped."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def flags(flag: str, values: list[str]) -> list[str]:
    """`flag` before each value."""
    return [part for value in values for part in (flag, value)]
