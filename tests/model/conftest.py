"""Networks with weights that do not come from any random generator, and a weights folder that is soon exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.training.trainer import TrainOptions, train


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
def audited_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder large enough for an audit set: 100 digits of each class to train on, 5 to test."""
    from sklearn.datasets import load_digits

    bunch, root = load_digits(), tmp_path_factory.mktemp("data") / "audited"
    pixels = (bunch.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    for label in range(10):
        for number, image in enumerate(np.flatnonzero(bunch.target == label)[:105]):
            folder = root / ("train" if number < 100 else "test") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[image]).save(folder / f"{number:03}.png")
    return root


def audited_run(data: Path, out: Path, **fields: Any) -> TrainOptions:
    """Options of a run of a second on `audited_digits`."""
    changes = {"image_size": 16, **fields.pop("changes", {})}
    options: dict[str, Any] = {"preset": "tiny", "recipe": "quick", "batch_size": 100, "device": "cpu", **fields}
    return TrainOptions(data, out=out, changes=changes, **options)


@pytest.fixture(scope="session")
def audited_weights(audited_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with an audit set, without graphs."""
    out = tmp_path_factory.mktemp("weights") / "audited"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmlp.model.training.trainer.refresh_graphs", lambda *_: None)
        return train(audited_run(audited_digits, out, epochs=4))


@pytest.fixture(scope="session")
def one_stage_weights(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of one small stage, quickly exported."""
    stage = {"patch": 16, "width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 8, "overlap": 3}
    out = tmp_path_factory.mktemp("weights") / "one-stage"
    return train(TrainOptions(digits_folder, "tiny", out, device="cpu", epochs=0, changes={"stages": [stage]}))
