"""Our service compared with LitServe and plain FastAPI around the same ONNX graphs, in one interleaved run.

    python -m benchmarks.peers > benchmarks/peers/README.md

Makes untrained networks and the peers' own virtual environment in --work (pip installs requirements.txt), chooses each
peer's settings in short runs, then measures them all in alternation; about ten minutes. Everything, the load included,
runs on two cores. Prints the page, or with --json the document. Exit status 1 when an answer was wrong. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.measure import TUNED_AT, WARM_SECONDS, Bare, Entry, measure
from benchmarks.peers.page import page
from benchmarks.peers.prepare import (
    SIZE,
    environment,
    first_scores,
    gflops,
    half_threshold,
    make_nets,
    right_answers,
    versions,
)
from benchmarks.peers.servers import (
    CASCADE,
    PEERS,
    PLAIN,
    Case,
    Peer,
    Say,
    Tuning,
    our_server,
    pause,
    peer_server,
    resume,
    tune,
)
from msmlp.bench.generator import Load, Seen, offer
from msmlp.bench.images import thumbnails
from msmlp.model.errors import DeviceError, MsmlpError

CORES = 2


@dataclass(frozen=True)
class Options:
    """How much is measured; without `tunes` the peers keep the settings they start with."""

    connections: tuple[int, ...] = (1, 8, 32, 128)
    seconds: float = 1.5
    rounds: int = 5
    tuning_seconds: float = 0.8
    tunes: bool = True


QUICK = Options(connections=(1, 32), seconds=0.5, rounds=1, tunes=False)


def run(options: Options, work: Path, say: Say) -> dict[str, Any]:
    """Measure → the document. Raises PeersError or DeviceError if something cannot be built or started."""
    start, machine = time.monotonic(), _machine()
    python = environment(work / "venv")
    packages = versions(python)
    say(f"peers: {', '.join(f'{name} {version}' for name, version in packages.items())}")
    folders = make_nets(work / "nets")
    files = tuple(thumbnails(SIZE))
    half = half_threshold(first_scores(folders["cascade"], list(files)))
    cases = [_case(PLAIN, folders["plain"], (), files), _case(CASCADE, folders["cascade"], (half,), files)]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        generator, alone = (stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(2))

        def send(load: Load) -> Seen:
            return generator.submit(offer, load).result()

        chosen = [_tuned(peer, case, python, options, send, say) for case in cases for peer in PEERS]
        entries = _entries(cases, chosen, python, stack, say)
        bare = Bare(alone, options.seconds).rows
        rows = measure(entries, options.connections, options.rounds, options.seconds, send, bare, say)
    return {
        "machine": machine,
        "packages": packages,
        "options": asdict(options),
        "nets": {case.name: {"gflops": gflops(case.folder), "thresholds": case.thresholds} for case in cases},
        "settings": chosen,
        "rows": rows,
        "minutes": round((time.monotonic() - start) / 60, 1),
    }


def _case(name: str, folder: Path, thresholds: tuple[float, ...], files: tuple[bytes, ...]) -> Case:
    return Case(name, folder, thresholds, files, tuple(right_answers(folder, list(thresholds), list(files))))


def _tuned(
    peer: Peer, case: Case, python: str, options: Options, send: Callable[[Load], Seen], say: Say
) -> dict[str, Any]:
    """A peer's best settings for a case, and all that were tried."""

    def speed(settings: Tuning) -> float:
        try:
            with peer_server(peer, settings, case, python, lambda _: None) as server:
                entry = Entry(case, server)
                send(entry.load(TUNED_AT, WARM_SECONDS))
                runs = [send(entry.load(TUNED_AT, options.tuning_seconds)) for _ in range(2)]
        except DeviceError as error:
            say(f"{settings}: {error}")
            return 0.0
        return max(len(seen.latencies) / seen.seconds for seen in runs)  # other processes only slow it down

    if not options.tunes:
        return {"case": case.name, "server": peer.name, "best": peer.start, "tried": []}
    best, tried = tune(peer.start, peer.steps, speed)
    say(f"{case.name}, {peer.name}: {best}, the best of {len(tried)} settings")
    return {"case": case.name, "server": peer.name, "best": best, "tried": tried}


def _entries(cases: list[Case], chosen: list[dict[str, Any]], python: str, stack: ExitStack, say: Say) -> list[Entry]:
    """Every server of every case, started and paused."""
    best = {(each["case"], each["server"]): each["best"] for each in chosen}
    entries = []
    for case in cases:
        servers = [our_server(case, say)]
        servers += [peer_server(peer, best[case.name, peer.name], case, python, say) for peer in PEERS]
        for each in servers:
            server = stack.enter_context(each)
            pause(server)
            stack.callback(resume, server)  # a stopped process does not end
            entries.append(Entry(case, server))
    return entries


def _machine() -> dict[str, Any]:
    """What the machine is, and how busy it was before."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="a folder for nets and packages")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, two loads, nothing tuned")
    parser.add_argument("--note", default="", help="a remark on this run for the page")
    parser.add_argument("--json", action="store_true", help="print the document, not the page")
    given = parser.parse_args()
    if given.seconds <= 0 or given.rounds < 1:
        parser.error("--seconds must be above 0 and --rounds 1 at least")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # inherited by what is started here
    for name in [name for name in os.environ if name.startswith("MSMLP_")]:
        del os.environ[name]  # our server at its defaults
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
