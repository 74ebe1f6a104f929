"""A cascade beside its networks alone over HTTP: images/s, and which share of the pictures each gets right.

    python -m benchmarks.cascade --data runs/clothes/photos --weights runs/clothes/cascade \\
        --alone runs/clothes/large-alone

Each weights folder gets its own server, with the default settings plus `--serve`, but without brown-out and without a
limit on waiting (no 429). All are sent the test pictures, one per request, in a closed loop over kept connections. They
take turns in every round; the other servers are paused. Requests to the cascade carry `--options`: by default
`min_accuracy`, set to the last exit's accuracy on the validation pictures. `--scaled` sends squares of the networks'
size as PNG, as a client would that scales pictures itself, instead of the files.

Prints a row for each server: the share of right answers among the pictures that were answered, with its standard error;
the images that left at each exit; medians over the rounds of images/s and of CPU time per image. Then the ratios of the
cascade to each alone, medians over the rounds with the standard error of their mean, and the difference of the
accuracies on the same pictures. Keep the machine idle.
"""

import argparse
import io
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.forms import serve
from benchmarks.peers.servers import pause, resume
from msmlp.bench.generator import Load, Seen, offer, request_bytes
from msmlp.bench.processes import Server, server_process
from msmlp.model.data.loading import SUFFIXES
from msmlp.model.errors import DataError
from msmlp.model.preprocess import decode
from msmlp.model.views import View, Views
from msmlp.model.weights import load_calibration, load_weights

WARM_SECONDS = 0.25


@dataclass(frozen=True)
class Picture:
    """What is sent, and the class whose name the answer should have."""

    content: bytes
    label: str


@dataclass
class Served:
    """A server with the path that it is asked, and what came back: which pictures it got right, the exits that were
    taken, and images/s and CPU milliseconds per image of each round."""

    server: Server
    path: str
    right: dict[int, bool] = field(default_factory=dict)
    exits: Counter[int] = field(default_factory=Counter)
    speeds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def main() -> None:
    given = _arguments()
    pictures = read_pictures(given.data / "test")
    if given.scaled:
        pictures = [scaled(each, largest_view(given.weights)) for each in pictures]
    options = given.options if given.options is not None else f"min_accuracy={last_exit(given.weights)}"
    with ExitStack() as stack:
        found = []
        for folder in (given.weights, *given.alone):
            arguments = [*serve(Path()), "--weights", str(folder), *given.serve.split()]
            server = stack.enter_context(server_process(folder.name, arguments, say))
            pause(server)
            stack.callback(resume, server)  # a stopped process does not end
            found.append(Served(server, "/classify" + (f"?{options}" if folder == given.weights else "")))
        for number in range(given.rounds):
            first = number % len(found)  # so that none always runs after the same one
            for each in (found[first:] + found[:first])[:: 1 if number % 2 else -1]:
                turn(each, pictures, given.connections, given.seconds, number)
    kind = "squares" if given.scaled else "files"
    print(f"{len(pictures)} test pictures sent as {kind}, {given.connections} connections, {given.rounds} rounds of")
    print(f"{given.seconds} s; the cascade with {options or 'its default policy'}\n")
    print("\n".join([*table(found), "", *(compared(found[0], each) for each in found[1:])]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights folder of the cascade")
    parser.add_argument("--alone", type=Path, nargs="+", required=True, help="weights folders of its networks")
    parser.add_argument("--data", type=Path, required=True, help="a folder with test/CLASS/*")
    parser.add_argument("--options", help="query of requests to the cascade, such as policy=fast")
    parser.add_argument("--serve", default="", help="more options of msmlp serve, for all servers")
    parser.add_argument("--scaled", action="store_true", help="send squares of the networks' size")
    parser.add_argument("--connections", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each run; default: %(default)s")
    return parser.parse_args()


def read_pictures(folder: Path) -> list[Picture]:
    """All pictures in the folders of classes, in random order; DataError if there are none."""
    files = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{folder} has no pictures; expected {folder}/CLASS/*")
    order = np.random.default_rng(0).permutation(len(files))
    return [Picture(files[i].read_bytes(), files[i].relative_to(folder).parts[0]) for i in order]


def largest_view(folder: Path) -> View:
    return max(load_weights(folder).manifest.views.views, key=lambda view: view.size)


def scaled(picture: Picture, view: View) -> Picture:
    """The square that a stage reads of it, as PNG, which loses nothing."""
    square, file = Views((view,)).pixels(decode(picture.content)), io.BytesIO()
    Image.fromarray(square).save(file, "PNG")
    return Picture(file.getvalue(), picture.label)


def last_exit(folder: Path) -> float:
    """The accuracy of the last exit on the validation pictures."""
    calibration = load_calibration(load_weights(folder))
    return calibration.table.expect_exit(len(calibration.file.temperatures)).accuracy


def turn(served: Served, pictures: list[Picture], connections: int, seconds: float, number: int) -> None:
    """One run, which begins where others have not; SystemExit for an answer that is not 200."""
    server, start = served.server, number * 997 % len(pictures)
    order = [*range(start, len(pictures)), *range(start)]
    content_type = "application/octet-stream"
    sent = tuple(request_bytes(server.url, served.path, pictures[i].content, content_type) for i in order)
    resume(server)
    try:
        offer(Load(server.url, sent, connections, WARM_SECONDS))
        before = server.cpu_seconds() or 0.0
        seen = offer(Load(server.url, sent, connections, seconds), Seen(every=1, most=sys.maxsize))
        spent = (server.cpu_seconds() or 0.0) - before
    finally:
        pause(server)
    if set(seen.statuses) != {"200"}:
        raise SystemExit(f"{server.name} answered {dict(seen.statuses)}")
    served.speeds.append(len(seen.latencies) / seen.seconds)
    served.costs.append(1e3 * spent / len(seen.latencies))
    say(f"round {number + 1}: {server.name} {served.speeds[-1]:.0f} images/s")
    for request, body in zip(seen.asked, seen.answers, strict=True):
        (answer,), picture = json.loads(body)["results"], order[request]
        served.right[picture] = answer["label"] == pictures[picture].label
        served.exits[answer["exit"]] += 1


def table(found: Iterable[Served]) -> list[str]:
    """Markdown, a row for each server."""
    rows = ["| server | right | exits | images/s | CPU ms/image |", "|---|---|---|---|---|"]
    for each in found:
        share, error = mean_error(np.array(list(each.right.values()), dtype=float))
        left = " / ".join(f"{100 * count / each.exits.total():.0f} %" for _, count in sorted(each.exits.items()))
        speed, cost = statistics.median(each.speeds), statistics.median(each.costs)
        accuracy = f"{100 * share:.2f} ± {100 * error:.2f} % of {len(each.right)}"
        rows.append(f"| {each.server.name} | {accuracy} | {left} | {speed:.0f} | {cost:.2f} |")
    return rows


def compared(cascade: Served, alone: Served) -> str:
    """The cascade beside one network alone: ratios, and the difference of the accuracies on the same pictures."""
    both = sorted(cascade.right.keys() & alone.right.keys())
    apart, error = mean_error(np.array([float(cascade.right[i]) - float(alone.right[i]) for i in both]))
    return (
        f"{cascade.server.name} beside {alone.server.name}: {ratio(cascade.speeds, alone.speeds)} times the images/s, "
        f"{ratio(alone.costs, cascade.costs)} times the images per CPU second, "
        f"{100 * apart:+.2f} ± {100 * error:.2f} points on {len(both)} pictures"
    )


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median over the rounds, with the standard error of their mean."""
    ratios = np.array(ours) / np.array(theirs)
    return f"{np.median(ratios):.2f} ± {mean_error(ratios)[1]:.2f}"


def mean_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Their mean, with its standard error (0 of a single one)."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def say(text: str) -> None:
    print(f"cascade: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
