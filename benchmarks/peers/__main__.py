"""Our service compared with its bounds and with LitServe and plain FastAPI around the same ONNX graphs, interleaved.

    python -m benchmarks.peers --cifar10 FOLDER > benchmarks/peers/README.md

Makes untrained networks and the peers' own virtual environment in --work (pip installs requirements.txt), chooses each
peer's settings in short runs, then measures them all in alternation; about twenty minutes. Everything, the load
included, runs on two cores. Prints the page; the figures go to a JSON file as they are made. Exit status 1 when an
answer was wrong or degraded; a goal that is missed is on the page. Linux only.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.goals import faults, goals
from benchmarks.peers.measure import medians
from benchmarks.peers.page import page
from benchmarks.peers.run import QUICK, Options, run
from benchmarks.peers.servers import CASCADE, PLAIN, SHIPPED
from msmlp.model.errors import MsmlpError

CORES = 2
CASES = (PLAIN, CASCADE, SHIPPED)
CIFAR10 = Path(os.environ.get("TEST_CIFAR10") or ".data/cifar-10-batches-py")


def main() -> int:
    given = arguments()
    if given.page:
        sys.stdout.write(page(json.loads(given.page.read_text())))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # inherited by what is started here
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        del os.environ[name]  # our server at its defaults
    try:
        document = measured(given)
    except MsmlpError as error:
        _say(str(error))
        return 1
    sys.stdout.write(page(document))
    return 1 if faults(document["runs"]) else 0


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Run → the document, which is in the file after every group of runs."""
    cifar10 = _cifar10(given.cifar10)
    cases = tuple(case for case in given.case or CASES if case != SHIPPED or cifar10)
    if not cases:
        raise MsmlpError("nothing is left to measure")
    more = {name: value for name in ("seconds", "rounds", "connections") if (value := getattr(given, name))}
    options = Options(**{**asdict(QUICK if given.quick else Options()), **more, "cases": cases})
    settings = json.loads(given.settings.read_text())["settings"] if given.settings else []
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    document: dict[str, Any] = {"note": given.note, "runs": []}
    for part in run(options, work, cifar10, settings, _say):
        document["runs"] += part.pop("runs", [])
        document |= {**part, "minutes": round((time.monotonic() - start) / 60, 1)}
        document |= {"goals": goals(document["runs"]), "rows": medians(document["runs"])}
        _write(given.json or work / "run.json", document)
    return document


def _cifar10(given: Path | None) -> Path | None:
    if given is None and not CIFAR10.is_dir():
        _say("without CIFAR-10 (--cifar10 FOLDER) the shipped weights are left out")
        return None
    return given or CIFAR10


def _write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="a folder for nets and packages")
    parser.add_argument("--cifar10", type=Path, help=f"its official python folder (default: {CIFAR10}, if it is there)")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    parser.add_argument("--connections", type=_numbers, help="default: 1,8,32,128")
    parser.add_argument("--seconds", type=_above(float), help="of each run (default: 1.2)")
    parser.add_argument("--rounds", type=_above(int), help="default: 4")
    parser.add_argument("--quick", action="store_true", help="one short round, two loads, nothing tuned")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="the peers' settings from the JSON of another run"
    )
    parser.add_argument("--note", default="", help="a remark on this run for the page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: run.json in --work)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="measure nothing: the page of such a file")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_above(int), text.split(",")))


def _above(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if (value := kind(text)) <= 0:
            raise ValueError
        return value

    return number


def _say(line: str) -> None:
    sys.stderr.write(f"peers: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
