"""Networks with weights that do not come from any random generator, and a weights folder that is soon exported."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.training.trainer import TrainOptions, train
from tests.conftest import Once


def _pattern(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers in [-1, 1] without period or symmetry: sin of the square root grows ever slower."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(37 * torch.sqrt(index + phase)).reshape(shape)


@pytest.fixture(scope="session")
def patterned() -> Callable[..., Cascade]:
    """`patterned(config)`: a float64 cascade whose weights are a formula of their place, all of useful size."""

    def build(config: CascadeConfig, *, folded: bool = False) -> Cascade:
        cascade = Cascade(config, folded=folded).double().eval()
        with torch.no_grad():
            for number, (name, parameter) in enumerate(cascade.named_parameters(), 1):
                values = _pattern(tuple(parameter.shape), number)
                if parameter.dim() > 1:
                    parameter.copy_(values * (2 / parameter[0].numel()) ** 0.5)
                else:
                    parameter.copy_(0.2 * values + (1.0 if "norm.weight" in name else 0.0))
        return cascade

    return build


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int], Tensor]:
    """`pictures(count, size)`: normalised images [count, 3, size, size], float64, from a formula."""
    return lambda count, size: 1.5 * _pattern((count, 3, size, size), 0.5)


@pytest.fixture(scope="session")
def one_stage_weights(digits_folder: Path, once: Once) -> Path:
    """Untrained weights of one small stage, quickly exported."""
    stage = {"patch": 16, "width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 8, "overlap": 3}
    options = {"device": "cpu", "epochs": 0, "changes": {"stages": [stage]}}
    return once("one-stage", lambda out: train(TrainOptions(digits_folder, "tiny", out, **options)))
