"""All of it, in order: nets, peers, their settings, the rounds."""

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.bare import Bare
from benchmarks.peers.environment import environment, versions
from benchmarks.peers.goals import CASCADE, PLAIN, goals
from benchmarks.peers.nets import SIZE, gflops, make_nets
from benchmarks.peers.rounds import TUNED_AT, WARM_SECONDS, Entry, measure, nearest
from benchmarks.peers.servers import PEERS, Case, Peer, Say, Tuning, our_server, pause, peer_server, resume
from benchmarks.peers.truth import first_scores, half_threshold, right_answers
from benchmarks.peers.tuning import tune
from msmlp.bench.generator import Load, Seen, offer
from msmlp.bench.images import thumbnails
from msmlp.model.errors import DeviceError


@dataclass(frozen=True)
class Options:
    """How much is measured; without `tunes` the peers keep the settings they begin with."""

    connections: tuple[int, ...] = (1, 8, 32, 128)
    seconds: float = 1.5
    rounds: int = 5
    tuning_seconds: float = 0.8
    tunes: bool = True


QUICK = Options(connections=(1, 32), seconds=0.5, rounds=1, tunes=False)


def run(options: Options, work: Path, say: Say) -> dict[str, Any]:
    """The document. Raises PeersError or DeviceError for what could not be made or started."""
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
        "compared_at": nearest(options.connections),
        "goals": goals(rows, nearest(options.connections)),
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
        return max(len(seen.latencies) / seen.seconds for seen in runs)  # what else runs here only takes away

    if not options.tunes:
        return {"case": case.name, "server": peer.name, "best": peer.start, "tried": []}
    best, tried = tune(peer.start, peer.steps, speed)
    say(f"{case.name}, {peer.name}: {best}, the best of {len(tried)} settings")
    return {"case": case.name, "server": peer.name, "best": best, "tried": tried}


def _entries(cases: list[Case], chosen: list[dict[str, Any]], python: str, stack: ExitStack, say: Say) -> list[Entry]:
    """Every server of every case, up and paused."""
    best = {(each["case"], each["server"]): each["best"] for each in chosen}
    entries = []
    for case in cases:
        servers = [our_server(case, say)]
        servers += [peer_server(peer, best[case.name, peer.name], case, python, say) for peer in PEERS]
        for each in servers:
            server = stack.enter_context(each)
            pause(server)
            stack.callback(resume, server)  # a process that is stopped does not end
            entries.append(Entry(case, server))
    return entries


def _machine() -> dict[str, Any]:
    """What it is, and how busy it was before."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
