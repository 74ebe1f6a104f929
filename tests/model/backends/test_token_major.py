"""The CPU's form of a stage against the network as it was trained, and what stands beside a batch's image."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msmlp.model.backends import linear
from msmlp.model.backends.token_major import TokenMajorStages
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, StageConfig, preset
from msmlp.model.nn.served import ServedStage, fold

Build = Callable[..., Cascade]
MEAN, STD, TEMPERATURE = (0.5, 0.4, 0.6), (0.25, 0.2, 0.3), 1.7
UNEQUAL = CascadeConfig(
    stages=(
        StageConfig(patch=16, width=48, depth=1, token_hidden=24, channel_hidden=96, overlap=5),
        StageConfig(patch=8, width=19, depth=1, token_hidden=7, channel_hidden=33, overlap=2),
        StageConfig(patch=4, width=80, depth=2, token_hidden=40, channel_hidden=200),
    )
)


@st.composite
def configs(draw: st.DrawFn) -> CascadeConfig:
    """Every switch, grids that grow, widths that no vector register likes."""
    size = draw(st.sampled_from([6, 8, 12]))
    divisors = [p for p in range(1, size + 1) if size % p == 0 and size // p <= 6]
    patches = sorted(draw(st.lists(st.sampled_from(divisors), min_size=1, max_size=3)), reverse=True)
    number = st.integers(1, 5)
    stages = tuple(
        StageConfig(
            patch=patch,
            # An LN over few channels has next to no variance to divide by at times: rounding would be all there is.
            width=draw(st.sampled_from([12, 17, 24])),
            depth=draw(st.integers(1, 2)),
            token_hidden=draw(number),
            channel_hidden=draw(number),
            overlap=draw(st.integers(0, min(patch, 3))),
        )
        for patch in patches
    )
    return CascadeConfig(
        image_size=size,
        classes=draw(st.integers(2, 4)),
        reuse=draw(st.sampled_from(["none", "first", "all"])),
        reuse_norm=draw(st.booleans()),
        stages=stages,
    )


def token_major(cascade: Cascade, images: int) -> TokenMajorStages:
    folded = fold(cascade).float()
    served = [ServedStage(folded.stage(k), MEAN, STD, TEMPERATURE).eval() for k in range(len(cascade.config.stages))]
    return TokenMajorStages(cascade.config, served, slots=images, largest=images)


def pixels_of(images: int, size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8))


@torch.inference_mode()
def run(stages: TokenMajorStages, pixels: Tensor, rows: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    return [stages(k, pixels, rows) for k in range(count)]


def assert_same_network(cascade: Cascade, images: int) -> None:
    config = cascade.config
    pixels = pixels_of(images, config.image_size)
    normalised = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    with torch.inference_mode():
        logits = cascade(normalised.permute(0, 3, 1, 2))
    outputs = run(token_major(cascade, images), pixels, torch.arange(images), len(config.stages))
    for expected, (probabilities, score) in zip(logits, outputs, strict=True):
        wanted = torch.softmax(expected / TEMPERATURE, dim=1)
        torch.testing.assert_close(probabilities.double(), wanted, rtol=0, atol=1e-5)
        assert score.tolist() == probabilities.amax(dim=1).tolist()


@given(config=configs())
def test_it_is_the_network_that_was_trained(config: CascadeConfig, patterned: Build) -> None:
    assert_same_network(patterned(config), images=3)


@pytest.mark.parametrize("config", [preset("xs"), UNEQUAL], ids=["xs", "unequal"])
@pytest.mark.parametrize("images", [1, 16])
def test_it_is_the_network_in_real_sizes(config: CascadeConfig, images: int, patterned: Build) -> None:
    """Small products and large ones go different ways."""
    assert_same_network(patterned(config), images)


@pytest.mark.parametrize("images", [1, 16])
def test_without_onednn_it_is_the_network_too(images: int, patterned: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN", False)
    assert_same_network(patterned(preset("xs")), images)


@pytest.mark.parametrize("config", [preset("xs"), UNEQUAL], ids=["xs", "unequal"])
@pytest.mark.parametrize("bucket", [1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 63, 64])
def test_an_image_says_the_same_bits_in_every_place(config: CascadeConfig, bucket: int, patterned: Build) -> None:
    stages, pixels = token_major(patterned(config), 65), pixels_of(65, config.image_size)
    image, count = 64, len(config.stages)
    seen = set()
    for place in {0, 1, bucket // 3, bucket // 2, bucket - 2, bucket - 1} & set(range(bucket)):
        rows = torch.from_numpy(np.random.default_rng(place).permutation(64)[:bucket])
        rows[place] = image
        outputs = run(stages, pixels, rows, count)
        seen.add(b"".join(part[place].numpy().tobytes() for output in outputs for part in output))
    assert len(seen) == 1
