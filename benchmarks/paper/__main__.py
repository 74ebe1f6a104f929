"""The paper's tables and figures beside ours: train what is needed, measure it, and write one page.

    python -m benchmarks.paper --data CIFAR-10 --data100 CIFAR-100 --out runs/paper --scale cpu

Each training has a folder in --out. The command may be stopped and started at any time, also in several shells at once:
a finished run is skipped, an interrupted one goes on where it was saved. The page is written anew after each run.
Without --data or --data100 nothing is trained on that data set. --list says how far each run is, with its `msmlp train`
command. --speed measures Table 2 with the finished runs; keep the machine idle.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.paper.measure import load_results
from benchmarks.paper.page import Campaign, write_page
from benchmarks.paper.plan import DATA, LARGER, SCALES, Run, chosen, command, plan
from msmlp.model.errors import MsmlpError
from msmlp.model.training.recipes import TrainOptions


def main() -> int:
    given = _arguments()
    try:
        well = _command(given)
    except MsmlpError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:  # outside of a training, which ends in words
        return 130
    return 0 if well else 1


def _command(given: argparse.Namespace) -> bool:
    from benchmarks.paper.train import state, train_all  # brings torch

    runs, well = chosen(plan(SCALES[given.scale]), given.only), True
    work = [(run, _options(run, given)) for run in runs]
    if given.list:
        for run, options in work:
            print(f"{run.name}: {state(options.out)}\n    {command(options)}")
        return True
    if given.speed:
        _speed(given)
    else:
        well = train_all([each for each in work if _data(given, each[0].data)], _say, lambda: _page(given))
        _sheets(given)
    _page(given)
    return well


def _data(given: argparse.Namespace, data: str) -> Path | None:
    folder: Path | None = {"cifar10": given.data, "cifar100": given.data100}[data]
    return folder


def _options(run: Run, given: argparse.Namespace) -> TrainOptions:
    return run.options(
        _data(given, run.data) or Path(DATA[run.data]), given.out / run.name, given.device, given.threads
    )


def _speed(given: argparse.Namespace) -> None:
    """Measure Table 2's pairs that are finished; the figures replace earlier ones of the same pair."""
    from benchmarks.paper.speed import compare
    from msmlp.model.data import load_dataset

    scale, rows = SCALES[given.scale], _measured_speed(given)
    results = load_results(scale, given.out)
    for data, size in [(data, size) for size in scale.sizes for data in DATA]:
        pair, folder = [Run(scale, data, size, network, 0) for network in LARGER], _data(given, data)
        if folder is None or not all(run in results for run in pair):
            _say(f"{data}-{size}: needs {' and '.join(run.name for run in pair)}, and their data")
            continue
        test = load_dataset(folder, 32).test
        assert test is not None  # it has been measured
        folders = [given.out / run.name for run in pair]
        found = compare(folders, [results[run] for run in pair], test.pixels[:2048], given.rounds, given.device)
        rows[f"{data}-{size}"] = found
        _say(f"{data}-{size}: {' and '.join(f'{each:,.0f}' for each in found['images_per_second'])} images/s")
        (given.out / "speed.json").write_text(json.dumps(rows, indent=1) + "\n")


def _measured_speed(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    path = given.out / "speed.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _sheets(given: argparse.Namespace) -> None:
    """Figure 5's images go to --out alone: they belong to the data set."""
    from benchmarks.paper.figures import contact_sheet

    for run, result in load_results(SCALES[given.scale], given.out).items():
        path = given.out / f"figure-5-{run.data}.png"
        if (
            run == Run(run.scale, run.data, run.scale.sizes[0], "all", 0)
            and _data(given, run.data)
            and not path.exists()
        ):
            contact_sheet(_options(run, given), result, run.gflops(), path)


def _page(given: argparse.Namespace) -> None:
    path, scale = given.page or given.out / "README.md", SCALES[given.scale]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(Campaign(scale, load_results(scale, given.out), _measured_speed(given)), path)
    _say(f"{path} is written")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10, as msmlp train takes it")
    parser.add_argument("--data100", type=Path, help="CIFAR-100")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs and what is measured")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="paper: its own networks, for a GPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these runs; * and ? stand for others")
    parser.add_argument("--list", action="store_true", help="say how far each run is; train nothing")
    parser.add_argument("--speed", action="store_true", help="measure Table 2; train nothing")
    parser.add_argument("--rounds", type=int, default=9, help="of --speed")
    parser.add_argument("--page", type=Path, metavar="FILE", help="default: README.md in --out; its figures lie beside")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of a CPU, per run; default: as many as are fastest")
    return parser.parse_args()


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    sys.exit(main())
