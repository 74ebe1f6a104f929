"""A captured step against the same step called plainly, on a GPU or on what stands in for one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from msmlp.model.training.capture import WARMUP_CALLS, Captured, Function, Work, as_cuda_graph
from msmlp.model.training.convnet import ConvNet
from msmlp.model.training.loop import Arrays, Learner, train_epoch
from msmlp.model.training.pretrained import Teacher
from msmlp.model.training.recipes import Recipe, TeacherConfig
from tests.model.training.test_batches import Asked
from tests.stand_in_cuda import Capture, Graph

Build = Callable[[Recipe], Learner]
EPOCHS = 7
"""Of two steps each: enough for what warms up and ten steps after it."""
CHANGES = {
    "lr": 0.01,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "clip_norm": 0.5,
    "ema": 0.9,
    "last_weight": 0.2,
    "epochs_per_view": 2,
    "augment": "crop-flip",
}


def recorded(work: Work) -> Work:
    """What `record_cuda_graph` is on a GPU."""
    graph = Graph()
    with Capture(graph):
        work()
    return graph.replay


def captured(function: Function) -> Function:
    return Captured(function, recorded)


def pair(made: Callable[[], Learner], device: str, **changes: Any) -> tuple[Learner, Learner]:
    """The same learner on a device, once plain and once captured and with `changes`."""
    learners = []
    for fields in ({}, {"capture": as_cuda_graph, **changes}):
        one = made()
        torch.manual_seed(1)
        learners.append(replace(one, model=one.model.to(device), **fields))
    return learners[0], learners[1]


def assert_same_training(pair: tuple[Learner, Learner], arrays: Arrays, rel: float, atol: float) -> None:
    """Epochs of changing batches, rates and shares; then what the networks say. Not their weights: a bias before a norm
    has no gradient but rounding, of which adaptive optimizers make much."""
    there = Arrays(*(each.to(pair[0].device) for each in (arrays.pixels, arrays.labels)))
    for epoch in range(pair[0].recipe.epochs):
        losses = []
        for made in pair:
            torch.manual_seed(epoch)
            losses.append(train_epoch(made, there, epoch, lambda *_: None)[0])
        assert losses[1] == pytest.approx(losses[0], rel=rel)
    images = pair[0].normalize(there.pixels.float() / 255)
    for name in ("model", "average"):
        with torch.no_grad():
            ours, theirs = (torch.stack(getattr(made, name).eval()(images)) for made in pair)
        assert torch.allclose(ours, theirs, atol=atol), name


def with_features(recipe: Recipe, learner: Build, share: float) -> Callable[[], Learner]:
    """A learner that distills features for `share` of its epochs; each way to step has EPOCHS of them."""
    teacher = Teacher("made up", "0" * 64, ("a", "b", "c"), {}, 8, 3, Asked()) if share else None
    epochs = EPOCHS if share in (0, 1) else round(EPOCHS / share)
    changes = {"imitation": 0.5 if share else 0.0, "imitation_share": share, "epochs": epochs}
    return lambda: replace(learner(recipe.model_copy(update=changes)), teacher=teacher)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_captured_step_is_the_step(
    optimizer: str,
    share: float,
    plain: Recipe,
    learner: Build,
    arrays: Arrays,
    gpu_or_stand_in: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = with_features(plain.model_copy(update={**CHANGES, "optimizer": optimizer}), learner, share)
    assert_same_training(pair(made, gpu_or_stand_in), arrays, rel=1e-4, atol=1e-3)
    assert not caplog.messages, "nothing fell back to ordinary calls"


def test_so_is_that_of_a_convolutional_teacher(
    plain: Recipe, learner: Build, arrays: Arrays, gpu_or_stand_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Norms whose statistics move with every batch."""
    config = TeacherConfig(kind="resnet", stem=4, widths=(8, 8), blocks=1, image_size=8, classes=3)
    recipe = plain.model_copy(update={**CHANGES, "nesterov": True, "epochs": EPOCHS})

    def made() -> Learner:
        torch.manual_seed(0)
        return replace(learner(recipe), model=ConvNet(config))

    assert_same_training(pair(made, gpu_or_stand_in), arrays, rel=1e-3, atol=1e-2)
    assert not caplog.messages


@pytest.fixture
def compiler_forgets() -> Iterator[None]:
    """What it has seen under the stand-in it would not compile again."""
    yield
    torch._dynamo.reset()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("compiler_forgets")
@pytest.mark.filterwarnings("default")  # the compiler warns of what it could do
@pytest.mark.parametrize(("dtype", "rel", "atol"), [(torch.float32, 1e-3, 1e-2), (torch.bfloat16, 0.05, 0.5)], ids=str)
def test_a_compiled_and_captured_step_is_the_step(
    dtype: torch.dtype,
    rel: float,
    atol: float,
    plain: Recipe,
    learner: Build,
    arrays: Arrays,
    gpu_or_stand_in: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if gpu_or_stand_in == "cpu":  # a compiler of which no machine has too little
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    made = with_features(plain.model_copy(update={**CHANGES, "optimizer": "adamw"}), learner, 0.5)
    compiled = pair(made, gpu_or_stand_in, compiles=True, dtype=dtype)
    assert_same_training(compiled, arrays, rel, atol)
    assert not [each for each in caplog.messages if "continuing without" in each]


def test_the_stand_in_repeats_python_numbers_as_a_graph_does() -> None:
    """The stand-in is as strict as a graph."""
    number = [1.0]
    function = Captured(lambda tensors: tensors[0] * number[0], recorded)
    one = torch.ones(1)
    assert [function([one]).item() for _ in range(WARMUP_CALLS + 1)] == [1.0] * (WARMUP_CALLS + 1)
    number[0] = 2.0
    assert function([3 * one]).item() == 3.0


def test_every_answer_is_its_own() -> None:
    function = captured(lambda tensors: tensors[0] + 1)
    answers = [function([torch.tensor(float(n))]) for n in range(8)]
    assert [answer.item() for answer in answers] == [n + 1 for n in range(8)]


def test_another_way_to_call_serves_until_the_capture() -> None:
    function = Captured(lambda tensors: tensors[0] + 1, recorded, warmup=lambda tensors: tensors[0] - 1)
    answers = [function([torch.tensor(10.0)]).item() for _ in range(WARMUP_CALLS + 2)]
    assert answers == [9.0] * WARMUP_CALLS + [11.0, 11.0]


def test_what_cannot_be_captured_runs_uncaptured(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    function = Captured(lambda tensors: tensors[0] * 2, refuses)
    assert [function([torch.tensor(float(n))]).item() for n in range(8)] == [2.0 * n for n in range(8)]
    assert [record.getMessage() for record in caplog.records] == [
        "the training step cannot be captured as a CUDA graph (operation not permitted when stream is capturing); "
        "continuing without"
    ]
