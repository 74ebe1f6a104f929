"""Make an ignored folder ready for a lease, and print the calls to make, in order.

    python -m benchmarks.gpu_campaign.prepare --shared ../shared/data --out .gpu
    python -m benchmarks.gpu_campaign.prepare --shared ../shared/data --out .gpu --results FETCHED   (a later lease)

The lent machine has torch but neither our packages nor the data, and a call carries 64 MiB, the working tree included.
So wheels, the shards of an earlier lease and the columns of the data sets are laid into folders call1, call2, ... that
each fit. Data that comes after the campaign can begin travels with calls that run it.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_campaign.archive import INDEX, MIB, ArchiveError, checked_shards
from benchmarks.gpu_campaign.calls import COMMAND_CHARACTERS, SETS, Call, Lease, describe
from benchmarks.gpu_campaign.wheels import download, missing
from msmlp.model.training.run_log import git_commit

CARRIED = 64 * MIB
SPARE = 2 * MIB
"""Room for what the transfer may add to the files: names, whole blocks."""

Files = list[tuple[Path, str]]
"""From where, to which name."""


class PrepareError(Exception):
    """One clear line for the caller."""


def main(arguments: list[str] | None = None) -> int:
    """Lay out, check sizes, print the calls."""
    options = _parser().parse_args(arguments)
    try:
        for line in prepare(options):
            print(line)
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options: argparse.Namespace) -> list[str]:
    """Fill `options.out` → the calls as text, one a line."""
    out: Path = options.out
    _check_place(out)
    things = [("wheels", _wheels(options))]
    if options.results is not None:
        things.append(("results", _shards(options.results)))
    things += [(name, _columns(options.shared, name)) for name in options.data]
    tree = _tree_bytes()
    calls = _fill(things, CARRIED - SPARE - tree)
    for old in out.glob("call*"):
        shutil.rmtree(old)
    for number, call in enumerate(calls, 1):
        _lay_out(out / f"call{number}", call)
    text = list(describe(Lease(str(out), git_commit(), options.results is not None, options.smoke), calls))
    for line in text:
        if len(line) > COMMAND_CHARACTERS:
            raise PrepareError(f"a command of {len(line)} characters; {COMMAND_CHARACTERS} are allowed: {line}")
    sizes = ", ".join(f"{(call.size + tree) / MIB:.1f}" for call in calls)
    head = f"the tree has {tree / MIB:.1f} MiB; the calls carry {sizes} of {CARRIED // MIB} MiB with it"
    return [head, "", *text]


def _wheels(options: argparse.Namespace) -> Files:
    folder: Path = options.wheels or options.out / "wheels"
    if options.wheels is None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download(missing(options.python), folder, options.python)
        except subprocess.CalledProcessError as error:
            raise PrepareError(f"pip download ended with {error.returncode}; what it said stands above") from None
    files = [(path, f"wheels/{path.name}") for path in sorted(folder.glob("*.whl"))]
    if not files:
        raise PrepareError(f"{folder} holds no wheels")
    return files


def _shards(folder: Path) -> Files:
    try:
        shards = checked_shards(folder)
    except ArchiveError as error:
        # Found here it costs no device time.
        raise PrepareError(f"{error}; take out what is of an earlier call") from None
    return [(path, f"results/{path.name}") for path in (folder / INDEX, *shards)]


def _columns(shared: Path, name: str) -> Files:
    """The test set and then, of every class, the first column, the second, ...: a part of them is a data set too."""
    script = shared / "unpack.py"
    columns = sorted(
        ((shared / name).glob("t*/*.webp")),
        key=lambda path: (path.parent.name, path.stem.rsplit("-", 1)[-1], path.name),
    )
    if not columns or not script.exists():
        raise PrepareError(f"{shared} does not hold unpack.py and {name}/train/*.webp")
    return [(script, script.name), *((path, f"{name}/{path.parent.name}/{path.name}") for path in columns)]


def _fill(things: list[tuple[str, Files]], room: int) -> list[Call]:
    """One thing after the other, a new call whenever the next file does not fit."""
    calls = [Call()]
    for name, files in things:
        for path, target in files:
            size = path.stat().st_size
            if size > room:
                raise PrepareError(
                    f"{path} has {size / MIB:.2f} MiB, and beside the tree a call carries {max(0, room) / MIB:.2f}"
                )
            if calls[-1].size + size > room:
                calls.append(Call())
            calls[-1].files.append((path, target))
            calls[-1].size += size
        calls[-1].complete.append(name)
    return calls


def _lay_out(folder: Path, call: Call) -> None:
    for path, target in call.files:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / target)


def _check_place(out: Path) -> None:
    if not Path(".git").exists():
        raise PrepareError("run it at the top of the clone that the calls are made from")
    # A folder that git sees would travel with every call; one outside would not travel at all.
    ignored = subprocess.run(["git", "check-ignore", "-q", str(out / "call1")], stderr=subprocess.DEVNULL, check=False)
    if out.is_absolute() or ignored.returncode != 0:
        raise PrepareError(f"{out} is not a folder of this clone that git ignores; .gpu is")


def _tree_bytes() -> int:
    """What travels with every call: tracked files, untracked ones that git does not ignore, and shared/."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True, check=True)
    paths = {Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name}
    paths.update(Path("shared").rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_campaign.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shared", type=Path, required=True, help="holds unpack.py, cifar10/ and cifar100/")
    parser.add_argument("--out", type=Path, default=Path(".gpu"), help="a folder of the clone that git ignores")
    parser.add_argument("--data", nargs="+", choices=SETS, default=SETS, help="in this order")
    parser.add_argument("--results", type=Path, help="the folder of what the last lease brought back")
    parser.add_argument("--python", default="3.12", help="of the lent machine")
    parser.add_argument("--wheels", type=Path, help="wheels that are here already, instead of fetching them")
    parser.add_argument("--smoke", type=int, default=0, help="seconds of the tiny campaign on the GPU, in call 1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
