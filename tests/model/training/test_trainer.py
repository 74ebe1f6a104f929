"""Whole training runs: what they leave, what stops them, and that an interrupted one ends like any other."""

import fcntl
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msmlp.model.data import load_dataset
from msmlp.model.data.dataset import split_digest
from msmlp.model.errors import (
    CallerError,
    ConfigError,
    DataError,
    OptionError,
    TrainingInterruptedError,
    TrainingStoppedError,
)
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import override, preset
from msmlp.model.training import checkpoint, epochs, loop, run_log, trainer
from msmlp.model.training.batches import Batches
from msmlp.model.training.convnet import read_teacher
from msmlp.model.training.recipes import RECIPES
from msmlp.model.training.trainer import TrainOptions, configure, train
from msmlp.model.weights import load_calibration, load_graphs, load_weights
from tests.conftest import audited_run

Run = Callable[..., TrainOptions]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows, without the speed, which no two runs share."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("images_per_second") > 0 for row in rows)
    return rows


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(one) == metrics(other)


# --- what a run leaves -------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_a_weights_folder(tiny_weights: Path, digits_folder: Path) -> None:
    weights = load_weights(tiny_weights)
    manifest = weights.manifest
    assert manifest.classes == tuple("0123456789")
    assert manifest.cascade == preset("tiny")
    assert [row["exit"] for row in manifest.results] == [1, 2, 3]
    assert all(row["split"] == "val" and row["images"] == 40 for row in manifest.results)
    assert min(row["accuracy"] for row in manifest.results) > 0.6
    assert manifest.results[0]["accuracy"] == metrics(tiny_weights)[-1]["val_accuracy"][0]

    dataset = load_dataset(digits_folder, 32)
    parts = dataset.partition(seed=0)
    training = parts.training
    assert manifest.training["validation"] == {"seed": 0, "images": 40, "digest": split_digest(parts.validation)}
    assert manifest.training["audit"] == {"images": 0, "reason": parts.no_audit}
    assert manifest.training["images"] == len(training) == 360
    pixels = training.pixels.reshape(-1, 3) / 255
    assert manifest.preprocess.size == 32
    assert manifest.preprocess.mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-6)
    assert manifest.preprocess.std == pytest.approx(pixels.std(0).tolist(), abs=1e-6)
    assert manifest.training["recipe"]["lr"] == 0.01
    assert {"data", "recipe_name", "seed", "epochs", "device", "command", "git_commit"} <= manifest.training.keys()


def test_a_run_leaves_graphs_that_match(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    assert len(load_graphs(weights, load_calibration(weights))) == len(weights.manifest.cascade.stages)


def test_a_run_leaves_metrics_and_curves(tiny_weights: Path) -> None:
    rows = metrics(tiny_weights)
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(len(row["val_accuracy"]) == 3 for row in rows)
    with Image.open(tiny_weights / "curves.png") as picture:
        assert picture.format == "PNG"


def test_zero_epochs_leave_untrained_weights(short_run: Run) -> None:
    folder = train(short_run(epochs=0, seed=3))
    weights = load_weights(folder)
    assert metrics(folder) == []
    assert (folder / "curves.png").exists()
    assert [row["exit"] for row in weights.manifest.results] == [1, 2, 3]
    torch.manual_seed(3)
    fresh = Cascade(weights.manifest.cascade).state_dict()
    assert weights.state.keys() == fresh.keys()
    assert all(np.array_equal(weights.state[name], fresh[name].numpy()) for name in fresh)


def test_classes_and_their_number_are_the_datas(short_run: Run) -> None:
    manifest = load_weights(train(short_run(epochs=0))).manifest
    assert manifest.classes == ("digit-3", "digit-7", "digit-8")
    assert manifest.cascade.classes == 3


def test_other_image_sizes_train(short_run: Run) -> None:
    weights = load_weights(train(short_run(epochs=1, changes={"image_size": 48})))
    assert weights.manifest.preprocess.size == 48


def test_limiting_the_images_of_a_class_leaves_validation_as_it_is(short_run: Run) -> None:
    whole, limited = (load_weights(train(short_run(epochs=0, limit_per_class=n))).manifest.training for n in (None, 2))
    assert whole["images"] == 33
    assert limited["images"] == 6
    assert limited["validation"] == whole["validation"]


def test_the_seed_decides_the_validation_images(short_run: Run) -> None:
    digests = {
        load_weights(train(short_run(epochs=0, seed=seed))).manifest.training["validation"]["digest"] for seed in (1, 2)
    }
    assert len(digests) == 2


# --- the audit set -----------------------------------------------------------------------------------------------


def test_no_audit_image_is_trained_on_and_every_exit_is_measured_on_them(
    audited_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bytes] = set()
    real = epochs.train_epoch

    def watched(learner: Any, data: Any, *rest: Any, **more: Any) -> tuple[float, float]:
        seen.update(image.numpy().tobytes() for image in data.pixels)
        return real(learner, data, *rest, **more)

    monkeypatch.setattr(epochs, "train_epoch", watched)
    weights = load_weights(train(audited_run(audited_digits, tmp_path / "out", epochs=1)))
    parts = load_dataset(audited_digits, 16).partition(seed=0)
    assert parts.audit is not None
    shown = parts.audit.pixels.transpose(0, 3, 1, 2)
    assert len(seen) == 800
    assert not seen & {np.ascontiguousarray(image).tobytes() for image in shown}
    assert weights.manifest.training["audit"] == {"seed": 0, "images": 100, "digest": split_digest(parts.audit)}

    audit = load_calibration(weights).file.audit
    assert audit is not None
    assert (audit.images, audit.digest) == (100, split_digest(parts.audit))
    rows = [row for row in weights.manifest.results if row["split"] == "audit"]
    expected = [row["accuracy"] for row in weights.manifest.results if row["split"] == "val"]
    for row, wanted, promise in zip(rows, expected, audit.exits, strict=True):
        assert row["images"] == 100
        assert row["accuracy"] == pytest.approx(promise.accuracy)
        assert row["expected_accuracy"] == wanted
        assert row["expected_minus_reached"] == pytest.approx(wanted - row["accuracy"])
        assert row["standard_error"] == pytest.approx(promise.standard_error)


def test_held_out_images_that_are_trained_on_are_told(
    short_run: Run, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(few_digits, tmp_path / "data"))
    shutil.copytree(data / "train", data / "val")
    for label in (3, 7, 8):  # one picture of each stays in both
        folder = data / "train" / f"digit-{label}"
        for picture in sorted(folder.iterdir())[1:6]:
            picture.unlink()
        for picture in sorted(folder.iterdir())[1:]:
            (data / "val" / f"digit-{label}" / picture.name).unlink()
    train(short_run(data=data, epochs=0))
    told = capsys.readouterr().err
    assert "warning: 3 of 18 images in val/ are in train/ as well; the accuracy on them may be too high\n" in told


def test_a_teacher_is_measured_on_the_audit_images(audited_digits: Path, tmp_path: Path) -> None:
    folder = train(audited_run(audited_digits, tmp_path, preset="teacher-tiny", recipe="teacher", epochs=0))
    found = read_teacher(folder)
    assert found is not None
    assert [(row["split"], row["images"]) for row in found[0].results] == [("val", 100), ("audit", 100)]
    assert found[0].training["audit"]["digest"]


# --- interrupting and resuming -----------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "best": {},
    "muon": {"changes": {"optimizer": "muon"}},
    "paper": {"recipe": "paper", "changes": {"warmup_epochs": 0}},
}


@pytest.fixture(scope="module")
def whole(short_run: Run) -> Callable[[str], Path]:
    """`whole("best")`: the folder of an uninterrupted run of that variant."""
    return functools.cache(lambda variant: train(short_run(**VARIANTS[variant])))


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """A second Ctrl-C, which ends at once, when epoch `epoch` (0-based) has changed the weights, but is not over."""
    real = epochs.train_epoch

    def interrupted(learner: Any, data: Any, number: int, tick: Any, **more: Any) -> tuple[float, float]:
        def stop(images: int, loss: float) -> None:
            raise KeyboardInterrupt

        return real(learner, data, number, stop if number == epoch else tick, **more)

    monkeypatch.setattr(epochs, "train_epoch", interrupted)
    monkeypatch.setattr(epochs, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("variant", "struck"), [("best", [0]), ("best", [1, 2, 3]), ("muon", [2]), ("paper", [2])], ids=str
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    variant: str, struck: list[int], whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = short_run(**VARIANTS[variant])
    for epoch in struck:
        with monkeypatch.context() as patch:
            interrupt_in_epoch(patch, epoch)
            with pytest.raises(TrainingStoppedError, match=rf"interrupted; {epoch} of 4 epochs are saved.*--resume"):
                train(replace(options, resume=epoch != struck[0]))
        assert not (options.out / "model.safetensors").exists()
    assert_same_run(whole(variant), train(replace(options, resume=True)))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 1), (1, 2), (3, 1)])
def test_a_signal_ends_a_run_after_the_step_and_saves_it(
    epoch: int,
    step: int,
    number: signal.Signals,
    whole: Callable[[str], Path],
    short_run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, real = short_run(), epochs.train_epoch
    with monkeypatch.context() as patch:

        def signalled(learner: Any, data: Any, now: int, tick: Any, **more: Any) -> tuple[float, float]:
            def told(images: int, loss: float) -> None:
                tick(images, loss)
                if (now, len(more["losses"])) == (epoch, step + 1):
                    signal.raise_signal(number)

            return real(learner, data, now, told, **more)

        patch.setattr(epochs, "train_epoch", signalled)
        patch.setattr(loop, "CHECK_EVERY", 1)
        with pytest.raises(
            TrainingStoppedError, match=f"{epoch} of 4 epochs and {step + 1} steps? are saved.*--resume"
        ):
            train(options)
    assert not (options.out / "model.safetensors").exists()
    assert_same_run(whole("best"), train(replace(options, resume=True)))


@pytest.mark.usefixtures("interruptible")
def test_a_signal_while_views_are_made_ends_the_run_before_its_step(
    whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, real = short_run(), Batches._make_piece
    with monkeypatch.context() as patch:

        def signalled(self: Batches, pixels: torch.Tensor, labels: torch.Tensor) -> Any:
            signal.raise_signal(signal.SIGINT)
            return real(self, pixels, labels)

        patch.setattr(trainer, "announce_run", lambda *_: None)  # it makes views as well, to estimate the time
        patch.setattr(Batches, "_make_piece", signalled)
        with pytest.raises(TrainingStoppedError, match=r"interrupted; 0 of 4 epochs are saved .*--resume"):
            train(options)
    assert_same_run(whole("best"), train(replace(options, resume=True)))


@pytest.mark.usefixtures("interruptible")
def test_weights_that_are_no_numbers_replace_no_checkpoint(short_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = short_run(epochs=1)

    def broken(learner: Any, *_: Any, check: Any, **__: Any) -> None:
        next(learner.model.parameters()).data.fill_(math.nan)
        signal.raise_signal(signal.SIGINT)
        check()

    monkeypatch.setattr(epochs, "train_epoch", broken)
    with pytest.raises(TrainingStoppedError, match="interrupted; 0 of 1 epochs are saved"):
        train(options)
    assert not (options.out / "checkpoint.pt").exists()


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_comes_with_the_last_checkpoint_is_not_forgotten(
    whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, real = short_run(), checkpoint.save
    with monkeypatch.context() as patch:

        def signalled(path: Path, learner: Any, position: Any, setup: Any) -> None:
            if position.epochs == options.epochs and not path.with_name("signalled").exists():
                path.with_name("signalled").touch()
                signal.raise_signal(signal.SIGINT)
            real(path, learner, position, setup)

        patch.setattr(checkpoint, "save", signalled)
        with pytest.raises(TrainingStoppedError, match="interrupted; 4 of 4 epochs are saved"):
            train(options)
    assert_same_run(whole("best"), train(replace(options, resume=True)))


@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_after_the_last_epoch_says_that_all_are_saved(
    lost: bool, whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = short_run()

    def interrupted(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if not lost:  # as Python itself does in a callback of the garbage collector
                raise

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "refresh_graphs", interrupted)
        with pytest.raises(TrainingInterruptedError, match=r"interrupted; 4 of 4 epochs are saved.*--resume"):
            train(options)
    assert_same_run(whole("best"), train(replace(options, resume=True)))


def test_a_folder_in_which_another_process_trains_is_refused(short_run: Run) -> None:
    options = short_run(epochs=1)
    folder = os.open(options.out, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as another process would
    with pytest.raises(OptionError, match=r"out: another process is training in .*; choose another folder"):
        train(options)
    os.close(folder)
    train(options)


def test_the_signals_mean_after_a_run_what_they_meant_before(short_run: Run) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(short_run(epochs=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("step", ["save", "plot_curves", "write_weights"])
def test_interrupted_between_an_epochs_end_and_the_next_thing(
    step: str, whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = short_run()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if step == "save" else trainer, step, stop)
        with pytest.raises((TrainingStoppedError, KeyboardInterrupt)) as stopped:
            train(options)
        # Its row is written, but nothing of the epoch could be resumed from.
        assert step != "save" or "0 of 4 epochs are saved" in str(stopped.value)
    assert_same_run(whole("best"), train(replace(options, resume=True)))


def test_resuming_a_finished_run_changes_nothing(whole: Callable[[str], Path], short_run: Run) -> None:
    copy = short_run(resume=True)
    shutil.copytree(whole("best"), copy.out, dirs_exist_ok=True)
    assert_same_run(whole("best"), train(copy))


@pytest.fixture
def interrupted(short_run: Run, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """The options of a run of which one epoch is done; resuming it is all that is left."""
    options = short_run()
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(TrainingStoppedError):
            train(options)
    return replace(options, resume=True)


def test_a_run_is_not_overwritten_by_one_that_forgot_to_resume(
    whole: Callable[[str], Path], interrupted: TrainOptions
) -> None:
    with pytest.raises(OptionError, match=r"out: .*already holds a run.*--resume"):
        train(replace(interrupted, resume=False))
    assert_same_run(whole("best"), train(interrupted))


def test_resuming_with_other_options_is_refused(interrupted: TrainOptions) -> None:
    for changed, named in (
        (replace(interrupted, changes={**interrupted.changes, "lr": 0.002}), r"lr \(0.005 there, 0.002 here\)"),
        (replace(interrupted, epochs=6), r"epochs \(4 there, 6 here\)"),
        (replace(interrupted, recipe="quick"), r"\w+ \(.*\) and \d+ more"),
        (
            replace(interrupted, changes={**interrupted.changes, "stages.0.width": 16}),
            r"stages.0.width \(32 there, 16 here\)",
        ),
        (replace(interrupted, seed=1), r"seed \(0 there, 1 here\), validation images \(.*"),
        (replace(interrupted, limit_per_class=10), r"training images \(33 there, 30 here\), training data \(.*\)"),
        (replace(interrupted, dtype="bfloat16"), r"dtype \(float32 there, bfloat16 here\)"),
    ):
        with pytest.raises(DataError, match=f"from a run with other options: {named}; resume with the same ones"):
            train(changed)
    assert [row["epoch"] for row in metrics(train(interrupted))] == [1, 2, 3, 4]


def test_resuming_with_the_same_images_in_another_order_is_refused(
    short_run: Run, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(few_digits, tmp_path / "few"))
    options = short_run(data=data)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(TrainingStoppedError):
            train(options)
    first = min((data / "train" / "digit-3").iterdir())
    first.rename(first.with_name("zzz.png"))
    with pytest.raises(DataError, match=r"other options: training data \(.* there, .* here\); resume"):
        train(replace(options, resume=True))


def test_a_seed_may_be_a_time(short_run: Run) -> None:
    assert load_weights(train(short_run(seed=2**63 - 1, epochs=1))).manifest.training["seed"] == 2**63 - 1


def test_the_accuracy_told_is_that_of_the_weights_whatever_stands_in_the_log(short_run: Run) -> None:
    """A longer run cuts the log before it writes its first checkpoint."""
    options = short_run()
    told = load_weights(train(options)).manifest.results
    log = options.out / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert load_weights(train(replace(options, resume=True))).manifest.results == told


def test_a_bf16_run_does_not_go_on_in_float32(short_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = short_run(dtype="bfloat16")
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(TrainingStoppedError):
            train(options)
    with pytest.raises(DataError, match=r"other options: dtype \(bfloat16 there, float32 here\); resume"):
        train(replace(options, dtype="auto", resume=True))


def test_a_resumed_run_names_the_commit_it_began_with(
    interrupted: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = trainer.git_commit()
    monkeypatch.setattr(trainer, "git_commit", lambda: "another")
    assert load_weights(train(interrupted)).manifest.training["git_commit"] == began


def test_the_commit_of_a_repository_around_the_package_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site-packages" / "msmlp" / "model" / "training" / "run_log.py"
    for command in (["init"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", tmp_path, *command], capture_output=True, check=True)
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(run_log, "__file__", str(file))
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert run_log.git_commit() is None


def test_outside_a_clone_the_environment_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(run_log.subprocess, "run", no_git)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert run_log.git_commit() is None
    monkeypatch.setenv("GIT_COMMIT", "abc")
    assert run_log.git_commit() == "abc"


def damage(kind: str, path: Path) -> None:
    checkpoint = path.read_bytes()
    if kind == "another torch file":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "no dictionary":
        torch.save(torch.zeros(3), path)
    else:
        half = checkpoint[: len(checkpoint) // 2]
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 99, "half": half}[kind])


@pytest.mark.parametrize("kind", ["empty", "garbage", "half", "another torch file", "no dictionary"])
def test_a_damaged_checkpoint_is_refused_clearly(kind: str, interrupted: TrainOptions) -> None:
    damage(kind, interrupted.out / "checkpoint.pt")
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read.*in another folder") as refused:
        train(interrupted)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_runs_no_code(interrupted: TrainOptions, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'witness'}",)

    torch.save({"setup": {}, "model": Touch()}, interrupted.out / "checkpoint.pt")
    with pytest.raises(DataError, match="cannot be read"):
        train(interrupted)
    assert not (tmp_path / "witness").exists()


# --- a real process, real signals --------------------------------------------------------------------------------

# The command itself, held still in the middle of an epoch: a signal then strikes at the same place every time.
HELD = """
import sys
from msmlp.model.training import epochs
from msmlp.main import main

hold, real = int(sys.argv.pop(1)), epochs.train_epoch

def held(learner, data, epoch, tick, **more):
    def wait(images, loss):
        tick(images, loss)
        if epoch == hold:
            print("held", file=sys.stderr, flush=True)
            sys.stdin.read()
    return real(learner, data, epoch, wait, **more)

epochs.train_epoch = held
main()
"""


def words_of(options: TrainOptions) -> list[str]:
    """The options as words of a command line."""
    flags = {
        "--data": options.data,
        "--preset": options.preset,
        "--out": options.out,
        "--recipe": options.recipe,
        "--epochs": options.epochs,
        "--batch-size": options.batch_size,
        "--device": options.device,
        "--threads": options.threads,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    words += [f"--set={key}={value}" for key, value in options.changes.items()]
    words += ["--resume"] * options.resume
    return ["train", *words]


def default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def strike(options: TrainOptions, epoch: int, number: signal.Signals) -> tuple[int, str]:
    """Start `msmlp train`, send the signal in the middle of epoch `epoch` (0-based) → exit status, last words."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(epoch), *words_of(options)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        before = []
        for line in process.stderr:
            before.append(line)
            if "held" in line:
                break
        else:
            pytest.fail("".join(before))
        process.send_signal(number)
        if number != signal.SIGKILL:  # the process has it before it can go on
            assert process.stdin is not None
            process.stdin.close()
        said = process.stderr.read()
    return process.returncode, said


@pytest.mark.usefixtures("interruptible")
def test_a_process_interrupted_then_killed_then_resumed_ends_like_an_uninterrupted_run(
    whole: Callable[[str], Path], short_run: Run
) -> None:
    options = short_run()
    status, said = strike(options, 1, signal.SIGINT)
    assert status == 130
    assert "interrupted; 1 of 4 epochs and 3 steps are saved" in said
    assert "--resume" in said
    assert "Traceback" not in said

    status, _ = strike(replace(options, resume=True), 2, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert [row["epoch"] for row in metrics(options.out)] == [1, 2]

    assert_same_run(whole("best"), train(replace(options, resume=True)))


@pytest.mark.parametrize("loaded", ["typer", "torch._C", "msmlp.model.training.trainer"])
def test_an_interrupt_while_packages_load_shows_no_traceback(loaded: str, short_run: Run) -> None:
    """Which takes most of the first second."""
    command = [sys.executable, "-X", "importtime", "-m", "msmlp", *words_of(short_run())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default_sigint) as process:
        assert process.stderr is not None
        assert any(line.split("|")[-1].strip() == loaded for line in process.stderr), "it is loaded"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("msmlp: interrupted"), said
    assert "Traceback" not in said


# --- a stable learning rate, and a decay at the end of it --------------------------------------------------------

STEADY: dict[str, Any] = {"schedule": "wsd", "decay_share": 0.5, "warmup_epochs": 1, "optimizer": "muon"}


def test_a_longer_run_goes_on_from_the_stable_part_of_a_shorter_one(short_run: Run) -> None:
    whole = train(short_run(epochs=6, changes=STEADY))
    options = short_run(epochs=2, changes=STEADY)
    train(options)
    shorter = (options.out / "model.safetensors").read_bytes()
    assert [row["epoch"] for row in metrics(options.out)] == [1, 2]
    train(replace(options, epochs=4, resume=True))
    assert_same_run(whole, train(replace(options, epochs=6, resume=True)))
    assert (options.out / "model.safetensors").read_bytes() != shorter


def test_a_run_that_was_stopped_can_end_early_in_a_decay(short_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(short_run(epochs=4, changes=STEADY))
    options = short_run(epochs=100, changes=STEADY)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        with pytest.raises(TrainingStoppedError):
            train(options)
    with pytest.raises(DataError, match=r"2 epochs are trained at the stable rate, but with 2 epochs.*after 1; choose"):
        train(replace(options, epochs=2, resume=True))
    assert_same_run(whole, train(replace(options, epochs=4, resume=True)))


@pytest.mark.parametrize("saved", [1, 2], ids=["before the decay", "where it begins"])
def test_a_run_that_ended_early_can_go_on_once_more(
    saved: int, short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(short_run(epochs=8, changes=STEADY))
    options = short_run(epochs=100, changes=STEADY)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, saved)
        with pytest.raises(TrainingStoppedError):
            train(options)
    train(replace(options, epochs=4, resume=True))  # the decay begins after 2
    assert_same_run(whole, train(replace(options, epochs=8, resume=True)))


def test_a_run_that_is_all_decay_goes_on_from_its_start(short_run: Run) -> None:
    changes = {**STEADY, "decay_share": 1, "warmup_epochs": 0}
    whole = train(short_run(epochs=3, changes=changes))
    options = short_run(epochs=2, changes=changes)
    train(options)
    assert_same_run(whole, train(replace(options, epochs=3, resume=True)))


def test_only_the_length_may_change(short_run: Run) -> None:
    options = short_run(epochs=2, changes=STEADY)
    train(options)
    with pytest.raises(DataError, match=r"options: epochs \(2 there, 6 here\), lr \(0.005 there, 0.01 here\)"):
        train(replace(options, epochs=6, resume=True, changes={**options.changes, "lr": 0.01}))


# --- threads -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_threads_it_began_with(
    whole: Callable[[str], Path], interrupted: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "fastest_threads", lambda step: pytest.fail("measured"))
    with pytest.raises(OptionError, match=r"threads: .* began with 1; with 2 .* --allow-drift"):
        train(replace(interrupted, threads=2))
    assert_same_run(whole("best"), train(replace(interrupted, threads=None)))


def test_drift_must_be_allowed(interrupted: TrainOptions) -> None:
    train(replace(interrupted, threads=2, allow_drift=True))
    assert load_weights(interrupted.out).manifest.training["device"] == "cpu (2 threads)"


def test_threads_are_measured_on_a_step_of_the_run_which_it_does_not_change(
    whole: Callable[[str], Path], short_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def measured(step: Callable[[], object]) -> int:
        for number in (1, 2):
            step()
            counted.append(number)
        return 1

    monkeypatch.setattr(trainer, "fastest_threads", measured)
    assert_same_run(whole("best"), train(short_run(threads=None)))
    assert counted == [1, 2]


# --- a full disk -------------------------------------------------------------------------------------------------

# A limit on the size of a file is the full disk that every system has.
FULL = """
import resource, signal, sys
from msmlp.model.training import checkpoint, loop
from msmlp.main import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
real, epoch = checkpoint.save, int(sys.argv.pop(1))

def full(path, learner, position, setup):
    if position.epochs == epoch:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, 2**12))
    real(path, learner, position, setup)

checkpoint.save = full
from msmlp.model.training import epochs
epochs.CHECKPOINT_SECONDS = 0
main()
"""


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_full_disk_is_named_and_leaves_the_last_good_checkpoint(
    epoch: int, whole: Callable[[str], Path], short_run: Run
) -> None:
    options = short_run()
    command = [sys.executable, "-c", FULL, str(epoch), *words_of(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"{options.out / 'checkpoint.pt'} cannot be written (File too large)" in done.stderr
    assert ("the checkpoint before is kept" in done.stderr) == (epoch > 1)
    assert "Traceback" not in done.stderr
    assert not list(options.out.glob("*.partial"))
    assert_same_run(whole("best"), train(replace(options, resume=epoch > 1)))


# --- what is refused, what stops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [11, 500], ids=["some steps an epoch", "one step an epoch"])
def test_numbers_that_overflow_stop_with_advice_and_leave_no_weights(batch_size: int, short_run: Run) -> None:
    overflowing = {"lr": 1e30, "warmup_epochs": 0}
    options = short_run(recipe="paper", batch_size=batch_size, epochs=1, changes=overflowing)
    with pytest.raises(TrainingStoppedError, match="smaller --set lr") as stopped:
        train(options)
    assert "\n" not in str(stopped.value)
    assert not (options.out / "model.safetensors").exists()
    assert not (options.out / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'"),
        ({"recipe": "worst"}, "unknown recipe 'worst'"),
        ({"changes": {"learning_rate": 1}}, "unknown field 'learning_rate'.*lr"),
        ({"changes": {"lr.peak": 1}}, "unknown field 'lr.peak'"),
        ({"changes": {"stages.9.width": 1}}, "unknown field 'stages.9.width'"),
        ({"changes": {"lr": -1}}, "lr: "),
        ({"changes": {"lr": "fast"}}, "lr: "),
        ({"changes": {"optimizer": "lion"}}, "optimizer: expected one of sgd, adamw, muon"),
        ({"changes": {"ema": 1}}, "ema: "),
        ({"changes": {"image_size": 30}}, "patch 16 does not divide image_size 30"),
        ({"changes": {"classes": 3}}, "classes: cannot be set"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    options = {"data": Path("nowhere"), "preset": "tiny", "out": Path("nowhere"), **changes}
    with pytest.raises(ConfigError, match=message) as refused:
        train(TrainOptions(**options))
    assert "\n" not in str(refused.value)


def test_each_key_goes_where_it_belongs() -> None:
    changes = {"lr": 0.5, "reuse": "first", "stages.0.width": 48}
    cascade, recipe = configure(TrainOptions(Path(), "tiny", Path(), epochs=7, batch_size=9, changes=changes))
    assert cascade == override(preset("tiny"), {"reuse": "first", "stages.0.width": 48})
    assert recipe == RECIPES["best"].model_copy(update={"lr": 0.5, "epochs": 7, "batch_size": 9})


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_a_folder_is_refused(place: str, short_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match=r"out: .*file"):
        train(short_run(out=tmp_path / place, epochs=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(short_run: Run) -> None:
    with pytest.raises(CallerError, match="cuda is not available here"):
        train(short_run(device="cuda"))
