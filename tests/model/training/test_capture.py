"""A captured step against the same step called plainly.

There is no GPU here. `recorded` stands in for a CUDA graph and is as strict: it notes the tensor operations that a
call makes and repeats exactly these, on the same memory and with the same Python numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msmlp.model.training.capture import WARMUP_CALLS, Captured, Function, Work
from msmlp.model.training.loop import Arrays, Learner, train_epoch
from msmlp.model.training.pretrained import Teacher
from msmlp.model.training.recipes import Recipe
from tests.model.training.test_batches import Asked

Build = Callable[[Recipe], Learner]


WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations that read back from the device, which a graph refuses."""


class Notes(TorchDispatchMode):
    """Every operation with the tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name() in WAITS:
            raise RuntimeError(f"{operation.name()} waits for the device")
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def repeat(self) -> None:
        """All of it again, into the same memory."""
        for operation, args, kwargs, result in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


def recorded(work: Work) -> Work:
    """Stands in for `record_cuda_graph`; recording does the work once, so the first replay has nothing left to do."""
    notes = Notes()
    with notes:
        work()
    fresh = [True]

    def repeat() -> None:
        if not fresh:
            notes.repeat()
        fresh.clear()

    return repeat


def captured(function: Function) -> Function:
    return Captured(function, recorded)


@pytest.fixture(autouse=True)
def optimizers_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has optimizers that read nothing back on GPUs only, though they work on a CPU."""
    monkeypatch.setattr(import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu"])


def pair(recipe: Recipe, learner: Build, teacher: Teacher | None = None) -> tuple[Learner, Learner]:
    """The same learner, once plain and once captured."""
    made = []
    for way in (None, captured):
        one = learner(recipe)
        torch.manual_seed(1)
        made.append(replace(one, capture=way, teacher=teacher))
    return made[0], made[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_captured_step_is_the_step(
    optimizer: str, plain: Recipe, learner: Build, arrays: Arrays, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten epochs of changing batches, rates and shares, with feature distillation in the first four."""
    changes = {
        "optimizer": optimizer,
        "lr": 0.01,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "clip_norm": 0.5,
        "ema": 0.9,
        "epochs": 10,
        "imitation": 0.5,
        "imitation_share": 0.4,
        "last_weight": 0.2,
        "views": 2,
        "augment": "crop-flip",
    }
    teacher = Teacher("made up", "0" * 64, ("a", "b", "c"), None, 8, 3, Asked())
    plainly, replayed = pair(plain.model_copy(update=changes), learner, teacher)
    for epoch in range(10):
        losses = []
        for made in (plainly, replayed):
            torch.manual_seed(epoch)
            losses.append(train_epoch(made, arrays, epoch, lambda *_: None)[0])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not caplog.records, "nothing fell back to ordinary calls"
    # Not the weights: a bias before a norm has no gradient but rounding, of which adaptive optimizers make much.
    images = plainly.normalize(arrays.pixels.float() / 255)
    for name in ("model", "average"):
        with torch.no_grad():
            ours, theirs = (torch.stack(getattr(made, name)(images)) for made in (plainly, replayed))
        assert torch.allclose(ours, theirs, atol=1e-3), name


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
