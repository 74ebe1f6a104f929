"""The GPU campaign at tiny size on a CPU: the same walk, stopped, resumed, packed and restored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_campaign.__main__ import MORE_TO_DO, RESERVE_SECONDS
from benchmarks.gpu_campaign.archive import INDEX, PREFIX
from benchmarks.gpu_campaign.plans import PLANS, TINY_PLANS, Plan
from benchmarks.gpu_campaign.steps import TINY_SECONDS, Place, steps
from msmlp.model.training.recipes import TrainOptions, configure

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    command.name for step in steps(TINY_PLANS, Place({"cifar10": Path()}, Path(), "cpu")) for command in step.commands
]


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "--tiny", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)  # many processes, on a machine that may be busy
def test_the_campaign_is_stopped_resumed_collected_and_restored(cifar10_folder: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    common = ("--data", str(cifar10_folder.parent), "--commit", "abc")

    # So little time that the first step begins and cannot end: importing torch takes longer.
    stopped = campaign(*common, "--work", str(work), "--seconds", str(RESERVE_SECONDS + TINY_SECONDS + 0.2))
    assert stopped.returncode == MORE_TO_DO, stopped.stdout + stopped.stderr
    assert "cifar10-teacher.train: stopped after" in stopped.stdout
    assert "cifar10-tiny.train: waits for cifar10-teacher.train" in stopped.stdout

    finished = campaign(*common, "--work", str(work), "--out", str(out), "--seconds", "900")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for name in COMMANDS:
        assert f"{name}: done after" in finished.stdout
    taught = json.loads((work / "cifar10-tiny" / "manifest.json").read_text())["training"]["teacher"]
    assert taught["name"] == "cifar10-teacher"
    _check_summary(out)

    restored = campaign(*common, "--work", str(tmp_path / "other"), "--restore", str(out), "--seconds", "900")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "done after" not in restored.stdout
    manifest = Path("cifar10-tiny") / "manifest.json"
    assert (tmp_path / "other" / manifest).read_bytes() == (work / manifest).read_bytes()

    shard = out / f"{PREFIX}00"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    damaged = campaign(*common, "--work", str(tmp_path / "third"), "--restore", str(out))
    assert damaged.returncode == 2
    assert f"{shard} is damaged" in damaged.stderr.splitlines()[-1]


def _check_summary(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["campaign.json", f"{PREFIX}00", INDEX, "summary.md"]
    rows = {row["step"]: row for row in json.loads((out / "campaign.json").read_text())["steps"]}
    assert list(rows) == COMMANDS
    teacher = rows["cifar10-teacher.train"]["record"]
    assert [run["state"] for run in teacher["runs"]] == ["stopped", "done"]
    assert teacher["seconds"] == pytest.approx(sum(run["seconds"] for run in teacher["runs"]))
    assert teacher["command"].startswith("msmlp train --data ")
    assert (teacher["git_commit"], teacher["busy_share"]) == ("abc", None)
    beside = rows["cifar10-plain.train"]["record"]
    assert (beside["side_by_side"], beside["epochs"]) == (2, 2)
    assert beside["images_per_second"] > 0
    evaluated = rows["cifar10-tiny.evaluate"]["result"]
    assert (evaluated["split"], evaluated["images"]) == ("test", 150)
    assert rows["cifar10-tiny.bench"]["result"]["engine_images_per_second"] > 0
    pair = rows["cifar10-plain.pair"]["result"]
    assert (pair["network"]["policy"], pair["max_batch"]) == ("accurate", 16)
    assert rows["cifar10-tiny.report"]["result"]["runs"][0]["finished"]
    text = (out / "summary.md").read_text()
    assert f"| cifar10-tiny | exit 3 | {100 * evaluated['exits'][2]['accuracy']:.2f} % |" in text
    assert beside["command"] in text
    assert "| not yet measured |" in text  # how busy a GPU was that is not there


def test_data_that_is_not_there_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    done = campaign("--data", str(tmp_path), "--work", str(tmp_path / "work"))
    assert done.returncode == 2
    assert "holds none of cifar-10-batches-py" in done.stderr


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_every_plan_is_one_that_msmlp_train_takes(plan: Plan) -> None:
    changes = dict(text.split("=", 1) for text in plan.sets)
    network, recipe = configure(
        TrainOptions(
            data=Path(),
            preset=plan.preset,
            out=Path(),
            recipe=plan.recipe,
            epochs=plan.epochs,
            changes={key: json.loads(value) if key != "reuse" else value for key, value in changes.items()},
        )
    )
    assert recipe.epochs == plan.epochs or plan.epochs is None
    assert network.classes == 10


def test_whoever_learns_comes_after_its_teacher() -> None:
    for plans in (PLANS, TINY_PLANS):
        names = [plan.name for plan in plans]
        assert len(set(names)) == len(names)
        for plan in plans:
            assert plan.teacher is None or names.index(plan.teacher) < names.index(plan.name)


def test_what_is_side_by_side_is_one_step_and_a_benchmark_never_is() -> None:
    data = {"cifar10": Path("c10"), "cifar100": Path("c100")}
    made = steps(PLANS, Place(data, Path("work"), "cuda"))
    sizes = {step.name: len(step.commands) for step in made}
    assert sizes["cifar10-reuse.train"] == sizes["cifar10-reuse.evaluate"] == 4
    assert all(size == 1 for name, size in sizes.items() if name.endswith(".bench"))
    assert len(sizes) == len(made)
    only = steps(PLANS, Place({"cifar10": Path("c10")}, Path("work"), "cuda"))
    assert {step.name.split("-")[0] for step in only} == {"cifar10"}
