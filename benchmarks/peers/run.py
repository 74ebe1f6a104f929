"""One whole run: networks, pictures, tuned peers, every server up and paused, and the measurement."""

import multiprocessing
import os
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.bare import Bare
from benchmarks.peers.measure import TUNED_AT, WARM_SECONDS, Entry, Send, measure
from benchmarks.peers.pictures import SQUARES, VALIDATION, held_out, photographs
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
    LEAST,
    OURS,
    OURS_ALONE,
    OURS_KEYED,
    PEERS,
    PLAIN,
    SHIPPED,
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
from msmlp.model.errors import DeviceError
from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS, Settings

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How much is measured; without `tunes` the peers keep the settings they start with."""

    cases: tuple[str, ...] = (PLAIN, CASCADE, SHIPPED)
    connections: tuple[int, ...] = (1, 8, 32, 128)
    seconds: float = 1.2
    rounds: int = 4
    tuning_seconds: float = 0.6
    tunes: bool = True


INSTANCES = 3
"""Servers of ours with keys, and without. Two that were started alike differ by some per cent all their life."""

QUICK = Options(connections=(1, 32), seconds=0.5, rounds=1, tunes=False)


def run(options: Options, work: Path, cifar10: Path | None, settings: list[Row], say: Say) -> Iterator[Row]:
    """Measure → parts of the document: first the facts, then `runs`.

    Args:
        settings: of peers, as chosen by another run; the others are tuned.

    Raises:
        PeersError, DataError, DeviceError: something cannot be built, read or started.
    """
    machine, python = _machine(), environment(work / "venv")
    packages = versions(python)
    say(f"peers: {', '.join(f'{name} {version}' for name, version in packages.items())}")
    cases = list(_cases(options.cases, work, cifar10))
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        generator, alone, each = (
            stack.enter_context(ProcessPoolExecutor(count, mp_context=context)) for count in (1, 1, machine["cores"])
        )

        def send(load: Load, seen: Seen) -> Seen:
            return generator.submit(offer, load, seen).result()

        known = {(row["case"], row["server"]): row for row in settings}
        chosen = [
            known.get((case.name, peer.name)) or _tuned(peer, case, python, options, send, say)
            for case in cases
            for peer in PEERS
        ]
        yield {
            "machine": machine,
            "packages": packages,
            "options": asdict(options),
            "nets": {case.name: {"gflops": gflops(case.folder), "thresholds": case.thresholds} for case in cases},
            "settings": chosen,
        }
        entries = _entries(cases, chosen, python, stack, say)
        bare = Bare(alone, each, options.seconds)
        for runs in measure(entries, options.connections, options.rounds, options.seconds, send, bare, say):
            yield {"runs": runs}


def _cases(names: tuple[str, ...], work: Path, cifar10: Path | None) -> Iterator[Case]:
    if {PLAIN, CASCADE} & set(names):
        folders, files = make_nets(work / "nets"), photographs(SQUARES, SIZE)
        if PLAIN in names:
            yield _case(PLAIN, folders["plain"], (), files)
        if CASCADE in names:
            half = half_threshold(first_scores(folders["cascade"], files))
            yield _case(CASCADE, folders["cascade"], (half,), files)
    if SHIPPED in names and cifar10 is not None:
        calibration = load_calibration(load_weights(DEFAULT_WEIGHTS))
        default = Settings.model_fields["policy"].default
        point = next(point for point in calibration.points if point.name == default)
        files = held_out(cifar10, DEFAULT_WEIGHTS, VALIDATION)
        yield _case(SHIPPED, DEFAULT_WEIGHTS, tuple(point.thresholds), files, by_default=True)


def _case(
    name: str, folder: Path, thresholds: tuple[float, ...], files: list[bytes], *, by_default: bool = False
) -> Case:
    return Case(name, folder, thresholds, tuple(files), tuple(right_answers(folder, thresholds, files)), by_default)


def _tuned(peer: Peer, case: Case, python: str, options: Options, send: Send, say: Say) -> Row:
    """A peer's best settings for a case, and all that were tried."""

    def speed(settings: Tuning) -> float:
        try:
            with peer_server(peer, settings, case, python, lambda _: None) as server:
                entry = Entry(case, server)
                send(entry.load(TUNED_AT, WARM_SECONDS), Seen())
                runs = [send(entry.load(TUNED_AT, options.tuning_seconds), Seen()) for _ in range(2)]
        except DeviceError as error:
            say(f"{settings}: {error}")
            return 0.0
        return max(len(seen.latencies) / seen.seconds for seen in runs)  # other processes only slow it down

    if not options.tunes:
        return {"case": case.name, "server": peer.name, "best": peer.start, "tried": []}
    best, tried = tune(peer.start, peer.steps, speed)
    say(f"{case.name}, {peer.name}: {best}, the best of {len(tried)} settings")
    return {"case": case.name, "server": peer.name, "best": best, "tried": tried}


def _entries(cases: list[Case], chosen: list[Row], python: str, stack: ExitStack, say: Say) -> list[Entry]:
    """Every server of every case, started and paused."""
    best = {(each["case"], each["server"]): each["best"] for each in chosen}
    entries = []
    for case in cases:
        servers = [(our_server(case, say, name), False) for _ in range(INSTANCES) for name in (OURS, OURS_KEYED)]
        servers.append((our_server(case, say, OURS_ALONE), False))
        for peer in (LEAST, *PEERS):
            tuning = best.get((case.name, peer.name), peer.start)
            servers.append((peer_server(peer, tuning, case, python, say), peer.batches))
        for starting, batches in servers:
            server = stack.enter_context(starting)
            pause(server)
            stack.callback(resume, server)  # a stopped process does not end
            entries.append(Entry(case, server, batches))
    return entries


def _machine() -> Row:
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
