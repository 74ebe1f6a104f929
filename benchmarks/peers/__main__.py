"""Our service beside LitServe and plain FastAPI, all around the same ONNX graphs, in one interleaved run.

    python -m benchmarks.peers --json > docs/results/peers.json
    python -m benchmarks.peers.page > benchmarks/peers/README.md

Makes untrained nets and the peers' own virtual environment in --work (pip installs benchmarks/peers/requirements.txt),
chooses each peer's settings in short runs, then measures all in turn; about ten minutes. Everything runs on two cores,
the load too. Without --json the page is printed. Exit status 1 when an answer was wrong. Linux only.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks.peers.page import page
from benchmarks.peers.run import QUICK, Options, run
from msmlp.model.errors import MsmlpError

CORES = 2


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="a folder for nets and packages")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, two loads, nothing tuned")
    parser.add_argument("--note", default="", help="what else the page should say of this run, as what disturbed it")
    parser.add_argument("--json", action="store_true", help="print the document, not the page")
    given = parser.parse_args()
    if given.seconds <= 0 or given.rounds < 1:
        parser.error("--seconds must be above 0 and --rounds 1 at least")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are ended then too
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # what is started here inherits it
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        del os.environ[name]  # our server as it is shipped
    options = QUICK if given.quick else Options(seconds=given.seconds, rounds=given.rounds)
    try:
        document = {"note": given.note, **run(options, given.work.resolve(), _say)}
    except MsmlpError as error:
        _say(str(error))
        return 1
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if given.json else page(document))
    return 1 if any(row.get("wrong") for row in document["rows"]) else 0


def _say(line: str) -> None:
    sys.stderr.write(f"peers: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
