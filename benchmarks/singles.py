"""Single pictures to an earlier checkout of msmlp, to this one, and to this one with keys, in alternation.

    git worktree add build/before 2d5e635 && python -m benchmarks.singles build/before
    python -m benchmarks.singles --instances 4

All have the default weights and settings, but never refuse and never brown out; the third kind asks for a key with
limits that are never reached. Two servers started alike differ by some per cent all their life, so several of each kind
tell more than many rounds. Servers whose turn it is not are stopped; keep the machine idle. Prints the requests/s of
each server (medians of the rounds) and, over the rounds, the median ratio of this checkout to the earlier one, and of
keys to none.
"""

import argparse
import io
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from benchmarks.forms import say, serve
from benchmarks.peers.servers import KEY, pause, resume
from msmlp.bench.generator import Load, offer, request_bytes
from msmlp.bench.images import PICTURES, pick_images
from msmlp.bench.processes import Server, server_process

CONNECTIONS = (1, 8, 32)
SIZE = 32
WARM_SECONDS = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "before", type=Path, nargs="?", help="an earlier checkout; without it the two others are compared"
    )
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--instances", type=int, default=1, help="servers of each kind")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    given = parser.parse_args()
    with ExitStack() as stack:
        keys = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".keys"))
        keys.write(f"{KEY} name=benchmark requests=1e6 pixels=1e12\n")
        keys.flush()
        kinds = {"before": (given.before, ()), "now": (Path(), ()), "keys": (Path(), ("--api-keys-file", keys.name))}
        servers = []
        for name, (path, more) in given.instances * [each for each in kinds.items() if each[1][0] is not None]:
            servers.append(stack.enter_context(server_process(name, serve(path) + list(more), say)))
            pause(servers[-1])
            stack.callback(resume, servers[-1])  # a stopped process does not end
        for kind in ("PNG", "JPEG"):
            for connections in CONNECTIONS:
                rounds = [_round(servers, kind, connections, given.seconds, number) for number in range(given.rounds)]
                speeds = [f"{statistics.median(speeds):.0f}" for speeds in zip(*rounds, strict=True)]
                each = {name: [i for i, server in enumerate(servers) if server.name == name] for name in kinds}
                told = ", ".join(f"{name} {' '.join(speeds[i] for i in mine)}" for name, mine in each.items() if mine)
                new = f"{_ratio(rounds, each['now'], each['before'])} of before, " if each["before"] else ""
                keyed = _ratio(rounds, each["keys"], each["now"])
                print(f"{kind}, {connections} connections: {told} requests/s; {new}with keys {keyed} of now")


def _ratio(rounds: list[list[float]], ours: list[int], theirs: list[int]) -> str:
    ratios = [sum(speeds[i] for i in ours) / sum(speeds[i] for i in theirs) for speeds in rounds]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{statistics.median(ratios):.3f} ± {error:.3f}"


def _round(servers: list[Server], kind: str, connections: int, seconds: float, number: int) -> list[float]:
    """Requests/s of each server."""
    turns = list(range(len(servers)))
    first = number % len(servers)
    turns = turns[first:] + turns[:first]
    speeds = {i: _speed(servers[i], kind, connections, seconds) for i in (turns if number % 2 else turns[::-1])}
    return [speeds[i] for i in range(len(servers))]


def _speed(server: Server, kind: str, connections: int, seconds: float) -> float:
    """Requests/s; SystemExit for an answer that is not 200."""
    headers = {"Authorization": f"Bearer {KEY}"} if server.name == "keys" else {}
    bodies = [request_bytes(server.url, "/classify", each, f"image/{kind.lower()}", **headers) for each in _files(kind)]
    resume(server)
    try:
        offer(Load(server.url, tuple(bodies), connections, WARM_SECONDS))
        seen = offer(Load(server.url, tuple(bodies), connections, seconds))
    finally:
        pause(server)
    if set(seen.statuses) != {"200"}:
        raise SystemExit(f"{server.name} answered {seen.statuses}")
    return len(seen.latencies) / seen.seconds


def _files(kind: str) -> list[bytes]:
    files = []
    for pixels in pick_images(None, PICTURES, SIZE):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        files.append(file.getvalue())
    return files


if __name__ == "__main__":
    main()
