"""Single pictures to an earlier checkout of msmlp, to this one, and to this one with keys, in alternation.

    git worktree add build/before 2d5e635 && python -m benchmarks.singles build/before

All three have the default weights and settings, but never refuse and never brown out; the third asks for a key with
limits that are never reached. Servers whose turn it is not are stopped; keep the machine idle. Prints the median
requests/s and, over the rounds, the median ratio of this checkout to the earlier one, and of keys to none.
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
    parser.add_argument("before", type=Path, help="the earlier checkout")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    given = parser.parse_args()
    with ExitStack() as stack:
        keys = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".keys"))
        keys.write(f"{KEY} name=benchmark requests=1e6 pixels=1e12\n")
        keys.flush()
        servers = []
        for name, path, more in (
            ("before", given.before, ()),
            ("now", Path(), ()),
            ("keys", Path(), ("--api-keys-file", keys.name)),
        ):
            servers.append(stack.enter_context(server_process(name, serve(path) + list(more), say)))
            pause(servers[-1])
            stack.callback(resume, servers[-1])  # a stopped process does not end
        for kind in ("PNG", "JPEG"):
            for connections in CONNECTIONS:
                rounds = [_round(servers, kind, connections, given.seconds, number) for number in range(given.rounds)]
                speeds = ", ".join(f"{name} {statistics.median(r[name] for r in rounds):.0f}" for name in rounds[0])
                new, keyed = (_ratio(rounds, *pair) for pair in (("now", "before"), ("keys", "now")))
                print(
                    f"{kind}, {connections} connections: {speeds} requests/s; {new} of before, with keys {keyed} of now"
                )


def _ratio(rounds: list[dict[str, float]], ours: str, theirs: str) -> str:
    ratios = [each[ours] / each[theirs] for each in rounds]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{statistics.median(ratios):.3f} ± {error:.3f}"


def _round(servers: list[Server], kind: str, connections: int, seconds: float, number: int) -> dict[str, float]:
    order = servers[number % 3 :] + servers[: number % 3]
    return {each.name: _speed(each, kind, connections, seconds) for each in (order if number % 2 else order[::-1])}


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
