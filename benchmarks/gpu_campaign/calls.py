"""The calls of a lease as text: what each carries, and the command it runs on the lent machine."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALL_SECONDS = 600
MARGIN_SECONDS = 40
"""A call is killed at its limit; the campaign is to end so much earlier."""
SHORT_SECONDS = 180
COMMAND_CHARACTERS = 2000
SETS = ("cifar10", "cifar100")
THERE = "/tmp/msmlp"
"""Where everything lives on the lent machine: data, site (our packages), results (of an earlier lease), campaign."""

INSTALL = (
    "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target {there}/site "
    "{there}/wheels/*.whl"
)
CAMPAIGN = "PYTHONUNBUFFERED=1 PYTHONPATH={there}/site:. python3 -m benchmarks.gpu_campaign"


@dataclass
class Call:
    """What one call carries (from where, to which name), and what is complete on the machine once it has."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    size: int = 0
    complete: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lease:
    """What all the calls of a lease have in common."""

    folder: str
    commit: str | None
    restores: bool
    smoke_seconds: int = 0


def describe(lease: Lease, calls: list[Call]) -> Iterator[str]:
    """Every call to make, in order."""
    ready: set[str] = set()
    for number, call in enumerate(calls, 1):
        ready |= set(call.complete)
        runs = "wheels" in ready and bool(ready & set(SETS))
        smokes = number == 1 and lease.smoke_seconds > 0 and not runs
        limit = CALL_SECONDS if runs else SHORT_SECONDS + lease.smoke_seconds * smokes
        yield f"call {number} of {len(calls)}: carry {lease.folder}/call{number}, timeout_s {limit}, command:"
        yield f"  {' && '.join(_parts(lease, call, number, runs, smokes))}"
    yield f"every call after these, while the exit status is 75: carry nothing, timeout_s {CALL_SECONDS}, command:"
    yield f"  {campaign(lease)}"
    yield "last, where the output names more parts: the same with --part 2 and so on; gather all files in one folder"


def _parts(lease: Lease, call: Call, number: int, runs: bool, smokes: bool) -> Iterator[str]:
    yield f"mkdir -p {THERE} && cp -r {shlex.quote(f'{lease.folder}/call{number}')}/. {THERE}"
    if "wheels" in call.complete:
        yield INSTALL.format(there=THERE)
    for name in call.complete:
        if name in SETS:
            yield f"python3 {THERE}/unpack.py {name} {THERE}/data --as python"
    if smokes:
        yield f"python3 {THERE}/unpack.py cifar10 {THERE}/few --as python --per-class 100"
        yield _run(f"--tiny --data {THERE}/few --work {THERE}/smoke --seconds {lease.smoke_seconds}")
    if runs:
        yield campaign(lease)


def campaign(lease: Lease) -> str:
    """The campaign itself; `SECONDS` is bash's own count of how long the call has lasted."""
    restore = f"--restore {THERE}/results " if lease.restores else ""
    commit = f"--commit {lease.commit} " if lease.commit else ""
    return _run(
        f"--data {THERE}/data --work {THERE}/campaign {restore}{commit}"
        f'--out "$OUT" --seconds $(({CALL_SECONDS - MARGIN_SECONDS} - SECONDS))'
    )


def _run(options: str) -> str:
    return f"{CAMPAIGN.format(there=THERE)} {options}"
