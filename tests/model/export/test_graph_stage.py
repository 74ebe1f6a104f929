"""The exported form of a stage against the network as it was trained."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msmlp.model.export.graph_stage import GraphStage
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, preset
from msmlp.model.nn.served import ServedStage, fold
from tests.model.nn.test_served import configs

Build = Callable[..., Cascade]
MEAN, STD, TEMPERATURE = (0.5, 0.4, 0.6), (0.25, 0.2, 0.3), 1.7


def pixels_of(images: int, size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8))


def graph_stages(cascade: Cascade, dtype: torch.dtype, *, quantizable: bool = False) -> list[GraphStage]:
    folded = fold(cascade).float()
    served = [ServedStage(folded.stage(k), MEAN, STD, TEMPERATURE).eval() for k in range(len(cascade.config.stages))]
    return [GraphStage(each, dtype, quantizable=quantizable).eval() for each in served]


def assert_same_network(cascade: Cascade, stages: list[GraphStage], atol: float) -> None:
    pixels = pixels_of(3, cascade.config.image_size)
    normalised = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    with torch.inference_mode():
        logits = cascade(normalised.permute(0, 3, 1, 2))
        features = None
        for stage, expected in zip(stages, logits, strict=True):
            features, probabilities, score = stage(pixels, features)
            assert (features.dtype, probabilities.dtype, score.dtype) == (stage.dtype, torch.float32, torch.float32)
            wanted = torch.softmax(expected / TEMPERATURE, dim=1)
            torch.testing.assert_close(probabilities.double(), wanted, rtol=0, atol=atol)
            assert score.tolist() == probabilities.amax(dim=1).tolist()


# An LN over few channels has almost no variance to divide by at times: only rounding would be left.
@given(config=configs([12, 17, 24], overlap=True), quantizable=st.booleans())
def test_it_is_the_network_that_was_trained(config: CascadeConfig, quantizable: bool, patterned: Build) -> None:
    cascade = patterned(config)
    assert_same_network(cascade, graph_stages(cascade, torch.float32, quantizable=quantizable), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "s"])
def test_so_it_is_in_half_precision(name: str, patterned: Build) -> None:
    cascade = patterned(preset(name))
    assert_same_network(cascade, graph_stages(cascade, torch.float16), atol=2e-2)


def test_what_it_is_made_of_stays_as_it_was(patterned: Build) -> None:
    served = ServedStage(fold(patterned(preset("tiny"))).float().stage(0), MEAN, STD, TEMPERATURE)
    before = {name: value.clone() for name, value in served.state_dict().items()}
    GraphStage(served, torch.float16)
    for name, value in served.state_dict().items():
        assert torch.equal(value, before[name])
