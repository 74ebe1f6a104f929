"""Run the campaign until it is done or time is up.

    python -m benchmarks.gpu_campaign --data /tmp/data --work /tmp/campaign --out "$OUT" --seconds 540

What is finished is not run again; what is half done goes on from its last checkpoint. --out receives the whole work
folder in shards of 15 MiB; --restore takes such shards in again, on a fresh machine. Exit status: 0 everything done,
75 there is more to do, 1 a step failed (its log's end is printed).
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_campaign.archive import pack, unpack
from benchmarks.gpu_campaign.steps import PLANS, TINY_PLANS, Step, steps

MORE_TO_DO = 75
STOPPING_SECONDS = 25
"""How long a step may take to stop after SIGINT before it is killed; its checkpoint is safe either way."""

DATA_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def main() -> int:
    """Restore, run, collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds cifar-10-batches-py and/or cifar-100-python")
    parser.add_argument("--work", type=Path, required=True, help="weights, checkpoints, logs, results")
    parser.add_argument("--out", type=Path, help="where the shards go")
    parser.add_argument("--restore", type=Path, help="where shards of an earlier lease lie")
    parser.add_argument("--seconds", type=float, default=540, help="time for this call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the same walk at a size for a CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.work.mkdir(parents=True, exist_ok=True)
    if options.restore is not None and not (options.work / "done").exists():
        unpack(options.restore, options.work)
    data = {name: options.data / folder for name, folder in DATA_FOLDERS.items() if (options.data / folder).is_dir()}
    if not data:
        parser.error(f"{options.data} holds none of {', '.join(DATA_FOLDERS.values())}")
    plans, images = (TINY_PLANS, 32) if options.tiny else (PLANS, 4096)
    status = _run_all(steps(plans, data, options.work, options.device, images), options.work, deadline)
    if options.out is not None:
        for shard in pack(options.work, options.out):
            print(f"{shard.name}: {shard.stat().st_size} bytes")
    return status


def _run_all(todo: list[Step], work: Path, deadline: float) -> int:
    done = work / "done"
    done.mkdir(exist_ok=True)
    for step in todo:
        if (done / step.name).exists():
            print(f"{step.name}: done before")
            continue
        left = deadline - time.monotonic() - STOPPING_SECONDS
        if left <= 0:
            print(f"{step.name}: no time left")
            return MORE_TO_DO
        start = time.monotonic()
        code = _run(step, work, left)
        took = f"{time.monotonic() - start:.0f} s"
        if code is None:
            print(f"{step.name}: stopped after {took}; the next call goes on")
            return MORE_TO_DO
        if code:
            tail = "\n".join((work / f"{step.name}.log").read_text().splitlines()[-15:])
            print(f"{step.name}: exit status {code} after {took}\n{tail}")
            return 1
        (done / step.name).touch()
        print(f"{step.name}: done in {took}")
    return 0


def _run(step: Step, work: Path, seconds: float) -> int | None:
    """Run a step → its exit status, None when time ran out. Output goes to a log, or to the file the step names."""
    with (work / f"{step.name}.log").open("a") as log:
        target = (work / step.output).open("w") if step.output else log
        process = subprocess.Popen(step.command, stdout=target, stderr=log)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT if step.resumable else signal.SIGTERM)
            try:
                process.wait(timeout=STOPPING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return None
        finally:
            if step.output:
                target.close()


if __name__ == "__main__":
    sys.exit(main())
