"""What a compiler makes of an objective is compared before it is believed."""

import logging

import pytest
import torch
from torch import Tensor, nn

from msmlp.model.training.loop import Compiled


class Counts(nn.Module):
    """The sum of what it is given and of a weight, times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.factor, self.calls = factor, 0

    def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        self.calls += 1
        return self.factor * (self.weight.sum() + tensors[0].sum() + float(imitates))


BATCH = [torch.arange(3.0)]


def test_what_agrees_is_used_and_compared_once_each_way(caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = Counts(), Counts(1.01)
    both = Compiled(plain, fast)
    losses = [both(BATCH, imitates).item() for imitates in (False, True, False, True)]
    assert losses == pytest.approx([1.01 * 4, 1.01 * 5, 1.01 * 4, 1.01 * 5])
    assert (plain.calls, fast.calls) == (2, 4)
    assert not caplog.records


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1.2])
def test_what_disagrees_is_given_up_and_said_once(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = Counts(), Counts(factor)
    both = Compiled(plain, fast)
    with caplog.at_level(logging.WARNING):
        losses = [both(BATCH, imitates).item() for imitates in (False, True, False)]
    assert losses == [4.0, 5.0, 4.0]
    assert fast.calls == 1
    [record] = caplog.records
    assert "instead of 4; it goes on uncompiled" in record.getMessage()


def test_the_loss_that_is_left_has_a_gradient() -> None:
    for factor in (1.0, float("nan")):
        plain, fast = Counts(), Counts(factor)
        Compiled(plain, fast)(BATCH, False).backward()
        moved = plain.weight if factor != 1.0 else fast.weight
        assert moved.grad is not None
        assert moved.grad.item() == 1.0


def test_a_compiler_that_is_missing_is_said_and_done_without(caplog: pytest.LogCaptureFixture) -> None:
    class Missing(nn.Module):
        def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
            raise OSError("no g++")

    both = Compiled(Counts(), Missing())
    with caplog.at_level(logging.WARNING):
        assert [both(BATCH, imitates).item() for imitates in (False, True, False)] == [4.0, 5.0, 4.0]
    [record] = caplog.records
    assert record.getMessage() == "the training step could not be compiled (OSError); it goes on uncompiled"


@pytest.mark.parametrize("wrong", [False, True])
def test_statistics_of_norms_move_once_a_batch(wrong: bool) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
            out: Tensor = self.norm(tensors[0]).square().sum()
            return out

    class Wrong(nn.Module):
        def __init__(self, plain: nn.Module) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
            out: Tensor = 2 * self.plain(tensors, imitates)
            return out

    plain, alone = Normed(), Normed()
    both = Compiled(plain, Wrong(plain) if wrong else plain)
    batch = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
    for _ in range(2):
        assert both(batch, False).item() == pytest.approx(alone(batch, False).item())
    assert plain.norm.num_batches_tracked is not None
    assert int(plain.norm.num_batches_tracked) == 2
    assert torch.allclose(plain.norm.running_mean, alone.norm.running_mean)  # type: ignore[arg-type]
