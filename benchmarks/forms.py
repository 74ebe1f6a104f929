"""Large requests to two checkouts of msmlp: a form of 64 pictures alone, four of them in flight, a tensor of 1,024.

    git worktree add build/before 9cf73d0 && python -m benchmarks.forms build/before .

Both servers run and are measured in alternation, with the default weights and settings but without brown-out; keep the
machine idle. Prints the median milliseconds per request, and the median over the rounds of the second to the first.
"""

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from msmlp.bench.generator import Load, offer
from msmlp.bench.http import SERVE
from msmlp.bench.images import FORM, TENSOR, requests, thumbnails
from msmlp.bench.processes import image_size, server_process

CASES = ((FORM, 1), (FORM, 4), (TENSOR, 1))
"""Kinds of body, and how many are in flight."""
OPTIONS = ("serve", "--port", "0", "--brownout-ms", "0", "--max-wait-ms", "0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    given = parser.parse_args()
    with ExitStack() as stack:
        urls = [
            stack.enter_context(server_process(path.resolve().name, serve(path), say)).url for path in given.checkouts
        ]
        size = image_size(urls[1])
        for body, connections in CASES:
            sent = [requests(url, body, thumbnails(size), size) for url in urls]
            loads = [Load(url, each, connections, given.seconds) for url, each in zip(urls, sent, strict=True)]
            for load in loads:
                milliseconds(load)  # warm
            rounds = [_in_turn(loads, number) for number in range(given.rounds)]
            each = " and ".join(f"{statistics.median(of):.1f}" for of in zip(*rounds, strict=True))
            ratio = statistics.median(second / first for first, second in rounds)
            print(f"{body}, {connections} in flight: {each} ms, {ratio:.2f} times")


def serve(checkout: Path) -> list[str]:
    return ["-c", f"import sys; sys.path.insert(0, {str(checkout.resolve())!r}); {SERVE}", *OPTIONS]


def _in_turn(loads: list[Load], number: int) -> tuple[float, float]:
    order = loads if number % 2 else loads[::-1]
    took = {load.url: milliseconds(load) for load in order}
    return took[loads[0].url], took[loads[1].url]


def milliseconds(load: Load) -> float:
    """Per request, of all that a run takes; SystemExit for an answer that is not 200."""
    seen = offer(load)
    if set(seen.statuses) != {"200"}:
        raise SystemExit(f"{load.url} answered {dict(seen.statuses)}")
    return 1e3 * seen.seconds / seen.statuses["200"]


def say(text: str) -> None:
    print(f"forms: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
