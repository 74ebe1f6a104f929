"""Run the campaign until it is done or time is up.

    python -m benchmarks.gpu_campaign --data /tmp/data --work /tmp/campaign --out "$OUT" --seconds 540

What is finished is not run again; what is half done goes on from its last checkpoint. --out receives a summary and, in
shards of 15 MiB, what of the work folder is worth most and fits one fetch; --restore takes such shards in again, on a
fresh machine. Exit status: 0 everything is done, 75 there is more to do, 1 whatever is left has failed or waits for
what failed (the end of each log is printed), 2 the caller's mistake.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu_campaign.archive import ArchiveError, pack, restore
from benchmarks.gpu_campaign.gpu import device_name
from benchmarks.gpu_campaign.parcels import parcels
from benchmarks.gpu_campaign.plans import PLANS, TINY_PLANS
from benchmarks.gpu_campaign.records import SUFFIX, Records, Where
from benchmarks.gpu_campaign.runner import STOPPING_SECONDS, run_step
from benchmarks.gpu_campaign.schedule import Schedule
from benchmarks.gpu_campaign.steps import Place, steps
from benchmarks.gpu_campaign.summary import summarize

MORE_TO_DO = 75
PACKING_SECONDS = 10
RESERVE_SECONDS = STOPPING_SECONDS + PACKING_SECONDS
"""Of a call's seconds no step gets these: they are for stopping and for packing."""
LINES_OF_A_LOG = 15

DATA_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def main() -> int:
    """Restore, run, collect."""
    parser = _parser()
    options = parser.parse_args()
    start = time.monotonic()
    data = {name: options.data / folder for name, folder in DATA_FOLDERS.items() if (options.data / folder).is_dir()}
    if options.part < 1:
        parser.error(f"--part counts from 1, got {options.part}")
    if not data:
        parser.error(f"{options.data} holds none of {', '.join(DATA_FOLDERS.values())}")
    options.work.mkdir(parents=True, exist_ok=True)
    if options.restore is not None and not any(options.work.glob("*" + SUFFIX)):
        try:
            missing = restore(options.restore, options.work)
        except ArchiveError as error:
            parser.error(str(error))
        for name in missing:
            print(f"not in the shards: {name}")
    where = Where(device_name(options.device), importlib.metadata.version("torch"), options.commit or _commit())
    plan = steps(TINY_PLANS if options.tiny else PLANS, Place(data, options.work, options.device, options.tiny))
    schedule = Schedule(plan, Records(options.work, where), options.work)
    try:
        if options.part == 1:
            run_all(schedule, options.device, start + options.seconds - RESERVE_SECONDS)
    finally:
        status = _collect(schedule, options.out, options.part)
    return status


def _commit() -> str | None:
    from msmlp.model.training.run_log import git_commit  # brings torch, which takes seconds

    return git_commit()


def run_all(schedule: Schedule, device: str, deadline: float) -> None:
    """Step after step, while one can get anywhere before `deadline`."""
    while (step := schedule.next(left := deadline - time.monotonic())) is not None:
        for name, run in run_step(step, schedule.records, device, left).items():
            print(f"{name}: {run.state} after {run.seconds:.0f} s", flush=True)
            if run.state == "failed":
                schedule.failed.add(name)
                log = (schedule.work / f"{name}.log").read_text(errors="replace").splitlines()
                print("\n".join(log[-LINES_OF_A_LOG:]), flush=True)


def _collect(schedule: Schedule, out: Path | None, part: int) -> int:
    document, text = summarize(schedule.steps, schedule.records)
    print(text.split("\n## Commands")[0])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "campaign.json").write_text(json.dumps(document, indent=1) + "\n")
        (out / "summary.md").write_text(text + "\n")
        packed = pack(parcels(schedule.work, schedule), schedule.work, out, part)
        for file in packed.files:
            print(f"{file.name}: {file.stat().st_size} bytes")
        for parcel in packed.left_behind:
            print(f"not in this fetch: {parcel.name}, {parcel.size} bytes")
        if packed.parts > 1:
            print(f"this is part {part} of {packed.parts}; the same command with --part 2 and so on brings the others")
    return _status(schedule)


def _status(schedule: Schedule) -> int:
    todo = [(step, command) for step in schedule.steps for command in schedule.open(step)]
    for step, command in todo:
        print(f"{command.name}: {schedule.why_not(step, command)}")
    if not todo:
        return 0
    return 1 if all(schedule.stuck(command) for _, command in todo) else MORE_TO_DO


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="holds cifar-10-batches-py and/or cifar-100-python")
    parser.add_argument("--work", type=Path, required=True, help="weights, checkpoints, logs, results, records")
    parser.add_argument("--out", type=Path, help="where summary and shards go")
    parser.add_argument("--restore", type=Path, help="shards of an earlier lease, for an empty work folder")
    parser.add_argument("--part", type=int, default=1, help="from 2 on: run nothing, bring more of the work folder")
    parser.add_argument("--seconds", type=float, default=540, help="time for this call, stopping and packing included")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--commit", help="of the code, where no clone says it")
    parser.add_argument("--tiny", action="store_true", help="the same walk at a size for a CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
