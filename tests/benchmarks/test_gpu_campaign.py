"""The GPU campaign at tiny size on a CPU: the same walk, stopped, resumed, packed and restored."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_campaign.__main__ import MORE_TO_DO, STOPPING_SECONDS
from benchmarks.gpu_campaign.archive import SHARD, pack, unpack

ROOT = Path(__file__).resolve().parents[2]


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "--tiny", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_campaign_is_stopped_resumed_collected_and_restored(cifar10_folder: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    common = ("--data", str(cifar10_folder.parent))

    # So little time that the first step cannot end: importing torch takes longer.
    stopped = campaign(*common, "--work", str(work), "--seconds", str(STOPPING_SECONDS + 0.2))
    assert stopped.returncode == MORE_TO_DO, stopped.stdout + stopped.stderr
    assert "cifar10-tiny.train: stopped" in stopped.stdout

    finished = campaign(*common, "--work", str(work), "--out", str(out), "--seconds", "900")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for step in ("train", "evaluate", "bench"):
        assert f"cifar10-tiny.{step}: done in" in finished.stdout
    evaluated = json.loads((work / "cifar10-tiny.evaluate.json").read_text())
    assert evaluated["split"] == "test"
    assert evaluated["images"] == 150
    assert json.loads((work / "cifar10-tiny.bench.json").read_text())["engine_images_per_second"] > 0

    restored = campaign(*common, "--work", str(tmp_path / "other"), "--restore", str(out), "--seconds", "900")
    assert restored.returncode == 0
    assert restored.stdout.count("done before") == 3
    manifest = Path("cifar10-tiny") / "manifest.json"
    assert (tmp_path / "other" / manifest).read_bytes() == (work / manifest).read_bytes()


def test_a_failing_step_says_why(cifar10_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data" / "cifar-10-batches-py"
    broken.mkdir(parents=True)
    for file in cifar10_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "data_batch_3").write_bytes(b"no pickle")
    done = campaign("--data", str(broken.parent), "--work", str(tmp_path / "work"))
    assert done.returncode == 1
    assert "data_batch_3" in done.stdout


def test_data_that_is_not_there_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    assert campaign("--data", str(tmp_path), "--work", str(tmp_path / "work")).returncode == 2


def test_shards_are_small_and_come_back_whole(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "a").mkdir(parents=True)
    content = bytes(range(256)) * (2 * SHARD // 256 + 1)
    (work / "a" / "large").write_bytes(content)
    (work / "a" / "half.partial").write_bytes(b"x")
    shards = pack(work, tmp_path / "out")
    assert len(shards) == 3
    assert all(shard.stat().st_size <= SHARD for shard in shards)
    assert unpack(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "a" / "large").read_bytes() == content
    assert not (tmp_path / "back" / "a" / "half.partial").exists()
    assert not unpack(tmp_path / "empty", tmp_path / "back")
