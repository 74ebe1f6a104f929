"""Runs that build on trained networks: a teacher, or initial weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from msmlp.model.errors import CallerError, DataError, OptionError, TrainingStoppedError, WeightsError
from msmlp.model.training.loop import Arrays, Learner, train_epoch
from msmlp.model.training.losses import TeacherTargets, exit_loss
from msmlp.model.training.pretrained import Teacher, load_teacher
from msmlp.model.training.recipes import Recipe
from msmlp.model.training.trainer import TrainOptions, train
from msmlp.model.weights import load_weights
from tests.conftest import audited_run
from tests.model.training.test_trainer import assert_same_run, interrupt_in_epoch, metrics

Build = Callable[[Recipe], Learner]
Run = Callable[..., TrainOptions]


def ignore(images: int, loss: float) -> None:
    """A tick that does nothing."""


def teacher_of(logits: Callable[[Tensor], Tensor]) -> Teacher:
    def targets(images: Tensor) -> TeacherTargets:
        return TeacherTargets(logits(images), torch.zeros(len(images), 5, 2, 2))

    return Teacher("made up", "0" * 64, ("a", "b", "c"), {}, 8, 5, targets)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_an_epoch_sums_the_losses_of_all_exits(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    recipe = plain.model_copy(update={"batch_size": 30})
    images = arrays.pixels.float() / 255
    made = replace(learner(recipe), teacher=teacher_of(lambda seen: 5 * seen.mean((2, 3))))
    with torch.no_grad():
        exits = made.model(made.normalize(images))
    targets, taught = F.one_hot(arrays.labels, 3).float(), 5 * images.mean((2, 3))
    expected = sum(exit_loss(recipe, z, targets, taught).item() for z in exits)
    loss = train_epoch(made, arrays, 0, ignore)[0]
    assert loss == pytest.approx(expected, rel=1e-3)  # teacher targets are kept in half precision
    assert loss != pytest.approx(train_epoch(learner(recipe), arrays, 0, ignore)[0], rel=1e-2)


def test_a_teacher_alone_moves_every_exit_and_every_stage(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    made = learner(plain.model_copy(update={"distill_weight": 1.0}))
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    train_epoch(replace(made, teacher=teacher_of(lambda seen: 5 * seen.mean((2, 3)))), arrays, 0, ignore)
    after = made.model.state_dict()
    assert any("stages.1.head" in name for name in after)
    still = [name for name in after if torch.equal(before[name], after[name])]
    assert not still


def test_the_teacher_sees_the_students_view(plain: Recipe, learner: Build, arrays: Arrays) -> None:
    """After augmentation and mixing, before the student's own normalisation."""
    made = learner(plain.model_copy(update={"augment": "crop-flip", "mixup": 1.0, "cutmix": 1.0}))
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}

    def teach(images: Tensor) -> Tensor:
        seen["teacher"].append(images)
        return images.mean((2, 3))

    def look(images: Tensor) -> Tensor:
        seen["student"].append(images)
        return images - 0.5

    train_epoch(replace(made, teacher=teacher_of(teach), normalize=look), arrays, 0, ignore)
    theirs, ours = ({image.numpy().tobytes() for images in seen[who] for image in images} for who in seen)
    assert len(ours) == 24  # whole batches only
    assert ours < theirs
    assert len(theirs) == 30
    assert all(0 <= images.min() < images.max() <= 1 for images in seen["teacher"])


# --- a teacher and the data --------------------------------------------------------------------------------------


@pytest.fixture
def taught_by(short_run: Run) -> Path:
    """A weights folder of the few digits: the teacher of the tests."""
    return train(short_run(epochs=2))


def test_a_weights_folder_teaches_with_its_last_exit(taught_by: Path) -> None:
    weights = load_weights(taught_by)
    teacher = load_teacher(taught_by, torch.device("cpu"))
    preprocess = weights.manifest.preprocess
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    from msmlp.model.nn.cascade import Cascade

    model = Cascade(weights.manifest.cascade).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.state.items()})
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    found = teacher.targets(images)
    logits = found.logits
    assert found.features.shape == (4, teacher.width, 2, 2)
    assert torch.allclose(logits, model((images - mean) / std)[-1], atol=1e-6)
    assert not logits.requires_grad
    assert (teacher.name, teacher.sha256) == (weights.manifest.name, weights.sha256)


def test_other_classes_are_refused_by_name(short_run: Run, tiny_weights: Path) -> None:
    options = short_run(changes={"image_size": 32}, teacher=tiny_weights)
    with pytest.raises(OptionError, match=r"teacher: tiny-digits has other classes than the data: 0, 1, 2"):
        train(options)
    assert list(options.out.iterdir()) == []


def test_another_image_size_is_refused(short_run: Run, taught_by: Path) -> None:
    with pytest.raises(OptionError, match="takes images of 16 pixels, the cascade 32"):
        train(short_run(changes={"image_size": 32}, teacher=taught_by))


def test_a_teacher_that_may_have_seen_the_validation_images_is_refused(short_run: Run, taught_by: Path) -> None:
    with pytest.raises(OptionError, match=r"other validation images.*--seed"):
        train(short_run(seed=1, teacher=taught_by))


def test_a_teacher_that_is_no_weights_folder_is_refused(short_run: Run, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no weights folder"):
        train(short_run(teacher=tmp_path / "missing"))


# --- whole runs --------------------------------------------------------------------------------------------------


def test_a_run_with_a_teacher_records_it_and_resumes_to_the_same_weights(
    short_run: Run, taught_by: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(short_run(teacher=taught_by))
    teacher = load_weights(taught_by)
    record = load_weights(whole).manifest.training["teacher"]
    assert record == {"name": teacher.manifest.name, "sha256": teacher.sha256}
    alone = train(short_run())
    assert load_weights(alone).manifest.training["teacher"] is None
    assert metrics(whole)[0]["loss"] != pytest.approx(metrics(alone)[0]["loss"], rel=1e-2)

    options = short_run(teacher=taught_by)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        with pytest.raises(TrainingStoppedError):
            train(options)
    for changed in (replace(options, teacher=None), replace(options, teacher=train(short_run(epochs=0)))):
        with pytest.raises(DataError, match=r"from a run with other options: .*teacher"):
            train(replace(changed, resume=True))
    assert_same_run(whole, train(replace(options, resume=True)))


def test_a_run_begun_before_there_were_teachers_resumes(short_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = short_run()
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(TrainingStoppedError):
            train(options)
    path = options.out / "checkpoint.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    assert "distill" not in state["setup"]["recipe"]
    del state["setup"]["teacher"]
    torch.save(state, path)
    assert len(metrics(train(replace(options, resume=True)))) == 4


# --- initial weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def first(short_run: Run) -> Path:
    return train(short_run(epochs=2))


def test_zero_epochs_keep_the_initial_weights(first: Path, short_run: Run) -> None:
    weights, again = load_weights(first), load_weights(train(short_run(epochs=0, init=first, seed=0)))
    assert all(np.array_equal(weights.state[name], again.state[name]) for name in weights.state)
    start = {"name": weights.manifest.name, "sha256": weights.sha256, "leak": None}
    assert again.manifest.training["init"] == start | {"new_heads": False, "frozen_stages": 0}


def test_an_epoch_starts_from_the_initial_weights(first: Path, short_run: Run) -> None:
    """With a tiny learning rate the weights stay where they started."""
    slow = {"lr": 1e-7, "ema": 0}
    weights = load_weights(first)
    near, far = (load_weights(train(short_run(epochs=1, init=start, changes=slow))) for start in (first, None))
    for name, value in weights.state.items():
        assert np.allclose(near.state[name], value, atol=1e-5)
    assert not all(np.allclose(far.state[name], value, atol=1e-2) for name, value in weights.state.items())


def test_another_cascade_is_refused_naming_the_difference(first: Path, short_run: Run) -> None:
    with pytest.raises(OptionError, match=r"init: .* is another cascade; they differ in reuse_norm"):
        train(short_run(init=first, changes={"reuse": "all", "reuse_norm": False}))


def test_weights_that_may_have_seen_the_validation_images_start_a_run_with_a_warning(
    first: Path, short_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    second = train(short_run(seed=1, epochs=1, init=first))
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "trained with other validation images" in warning
    assert load_weights(second).manifest.training["init"]["leak"] in warning
    # Weights that started from them carry the doubt on, and may not teach.
    third = train(short_run(seed=1, epochs=1, init=second))
    assert "other validation images" in load_weights(third).manifest.training["init"]["leak"]
    with pytest.raises(OptionError, match=r"teacher: .*other validation images"):
        train(short_run(seed=1, teacher=second))


def test_weights_without_the_runs_audit_set_may_start_it_but_not_teach_it(
    audited_weights: Path, audited_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = train(audited_run(audited_digits, tmp_path / "started", epochs=0, init=audited_weights))
    assert load_weights(started).manifest.training["init"]["leak"] is None
    train(audited_run(audited_digits, tmp_path / "taught", epochs=0, teacher=audited_weights))
    assert "warning" not in capsys.readouterr().err

    older = Path(shutil.copytree(audited_weights, tmp_path / "older"))
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["training"]["audit"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OptionError, match=r"teacher: audited was trained with no audit set.*--seed"):
        train(audited_run(audited_digits, tmp_path / "refused", epochs=0, teacher=older))
    train(audited_run(audited_digits, tmp_path / "doubtful", epochs=0, init=older))
    assert "warning: init: audited was trained with no audit set" in capsys.readouterr().err


# --- other classes -----------------------------------------------------------------------------------------------


def starts_from(weights: Path, data: Path, out: Path, **fields: Any) -> TrainOptions:
    """Options without a preset."""
    return TrainOptions(data, None, out, init=weights, device="cpu", threads=1, batch_size=11, **fields)


def test_for_other_classes_only_the_heads_are_new(
    tiny_weights: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_weights(tiny_weights)
    after = load_weights(train(starts_from(tiny_weights, few_digits, tmp_path, epochs=0)))
    assert after.manifest.classes == ("digit-3", "digit-7", "digit-8")
    assert after.manifest.cascade.stages == before.manifest.cascade.stages
    assert after.manifest.preprocess == before.manifest.preprocess
    kept = [name for name in before.state if ".head." not in name]
    assert len(before.state) - len(kept) == 6  # weight and bias of three exits
    assert all(np.array_equal(before.state[name], after.state[name]) for name in kept)
    assert after.state["stages.0.head.weight"].shape == (3, 32)
    started = after.manifest.training["init"]
    assert (started["new_heads"], started["leak"]) == (True, None)  # images of other classes leak nothing
    assert after.manifest.training["recipe_name"] == "finetune"
    said = capsys.readouterr().err
    assert "init: tiny-digits has other classes; the heads are new, the rest is kept" in said
    assert "may have seen" not in said


def test_shipped_weights_have_names(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = starts_from(Path("cifar10-s"), few_digits, tmp_path / "out", epochs=0)
    assert load_weights(train(options)).manifest.training["init"]["name"] == "cifar10-s"
    # What is here goes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-s").mkdir()
    with pytest.raises(WeightsError, match="manifest"):
        train(replace(options, out=tmp_path / "again"))


def test_weights_of_a_folder_of_that_name_may_have_seen_its_images(
    first: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / few_digits.name
    shutil.copytree(few_digits, more)
    shutil.copytree(more / "train" / "digit-3", more / "train" / "three")
    started = load_weights(train(starts_from(first, more, tmp_path / "out", epochs=0))).manifest.training["init"]
    assert "may have seen images held out here" in started["leak"]
    assert f"warning: init: {started['leak']}" in capsys.readouterr().err


def test_frozen_stages_keep_their_weights_and_train_their_exits(
    tiny_weights: Path, few_digits: Path, tmp_path: Path
) -> None:
    options = starts_from(tiny_weights, few_digits, tmp_path, epochs=2, freeze=1, changes={"ema": 0})
    before, after = load_weights(tiny_weights), load_weights(train(options))
    moved = {name for name in before.state if not np.array_equal(before.state[name], after.state[name])}
    assert not any(name.startswith(("stages.0.embed", "stages.0.blocks")) for name in moved)
    assert "stages.0.norm.bias" in moved
    assert any(name.startswith("stages.1.embed") for name in moved)
    assert after.manifest.training["init"]["frozen_stages"] == 1
    with pytest.raises(DataError, match=r"from a run with other options: freeze"):
        train(replace(options, freeze=2, resume=True))
    assert train(replace(options, resume=True)) == tmp_path


def test_the_backbone_has_a_rate_of_its_own(tiny_weights: Path, few_digits: Path, tmp_path: Path) -> None:
    changes = {"backbone_lr": 1e-9, "ema": 0, "weight_decay": 0}
    before = load_weights(tiny_weights)
    for optimizer in ("adamw", "sgd", "muon"):
        options = starts_from(tiny_weights, few_digits, tmp_path / optimizer, epochs=1)
        after = load_weights(train(replace(options, changes=changes | {"optimizer": optimizer})))
        untrained = load_weights(train(replace(options, out=tmp_path / f"{optimizer}-0", epochs=0)))
        for name, value in after.state.items():
            start = untrained.state[name] if ".head." in name else before.state[name]
            assert np.allclose(value, start, atol=1e-6) == (".head." not in name), name


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"init": None}, r"preset: expected one of .*, or --init with a weights folder"),
        ({"init": None, "preset": "tiny", "freeze": 1}, r"freeze: needs --init"),
        ({"preset": "teacher-tiny", "freeze": 1}, r"freeze: only a cascade has stages to freeze"),
        ({"changes": {"image_size": 16}}, r"init: tiny-digits takes images of 32 pixels, and cannot learn another"),
        ({"preset": "s"}, r"init: .* they differ in stages. Leave out --preset to train the cascade of tiny-digits"),
        (
            {"init": Path("cifar11-s")},
            r"there is no weights folder cifar11-s; the shipped ones are cifar10-s, cifar100",
        ),
        ({"freeze": 4}, r"freeze: expected at most 3, the number of stages, got 4"),
    ],
)
def test_what_does_not_fit_together(
    fields: dict[str, Any], fault: str, tiny_weights: Path, few_digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(CallerError, match=fault):
        train(replace(starts_from(tiny_weights, few_digits, tmp_path / "out"), **fields))


def test_a_teacher_takes_no_initial_weights(first: Path, few_digits: Path, tmp_path: Path) -> None:
    options = TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=1, init=first, changes={"image_size": 16})
    with pytest.raises(OptionError, match="init: only a cascade can start from trained weights"):
        train(options)


def test_what_is_no_weights_folder_is_refused(tmp_path: Path, short_run: Run) -> None:
    with pytest.raises(WeightsError):
        train(short_run(init=tmp_path))
