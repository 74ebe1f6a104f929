from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, StageConfig, preset
from msmlp.model.nn.served import fold, fold_state

Build = Callable[..., Cascade]
Pictures = Callable[[int, int], Tensor]


@st.composite
def configs(draw: st.DrawFn, widths: Sequence[int] = (3, 4, 7), overlap: bool = False) -> CascadeConfig:
    """Small cascades: any grids that grow, unequal widths, every switch, `overlap`ping patches."""
    size = draw(st.sampled_from([6, 8, 12]))
    divisors = [p for p in range(1, size + 1) if size % p == 0 and size // p <= 6]
    patches = sorted(draw(st.lists(st.sampled_from(divisors), min_size=1, max_size=3)), reverse=True)
    number = st.integers(1, 5)
    stages = tuple(
        StageConfig(
            patch=patch,
            width=draw(st.sampled_from(widths)),
            depth=draw(st.integers(1, 2)),
            token_hidden=draw(number),
            channel_hidden=draw(number),
            overlap=draw(st.integers(0, min(patch, 3))) if overlap else 0,
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


@settings(max_examples=60)
@given(config=configs())
def test_folded_and_unfolded_agree(config: CascadeConfig, patterned: Build, pictures: Pictures) -> None:
    cascade = patterned(config)
    folded = Cascade(config, folded=True).double().eval()
    folded.load_state_dict(fold_state(config, cascade.state_dict()))
    images = pictures(2, config.image_size)
    for plain, served in zip(cascade(images), folded(images), strict=True):
        torch.testing.assert_close(served, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["tiny", "xs", "m"])
def test_fold_in_single_precision(name: str, patterned: Build, pictures: Pictures) -> None:
    cascade = patterned(preset(name)).float()
    images = pictures(4, 32).float()
    with torch.inference_mode():
        for plain, served in zip(cascade(images), fold(cascade)(images), strict=True):
            torch.testing.assert_close(served, plain, rtol=1e-5, atol=1e-5)


def shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def test_folding_shrinks_the_reused_half_alone_and_leaves_its_input_as_it_was(patterned: Build) -> None:
    config = preset("tiny")
    state = patterned(config).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    folded = fold_state(config, state)
    changed = {name for name, shape in shapes(state).items() if shapes(folded)[name] != shape}
    assert changed == {f"stages.{k}.blocks.{b}.token_mlp.fc1.weight" for k in (1, 2) for b in (0, 1)}
    # Stage 2 has 16 tokens of its own and reads 4, stage 3 has 64 and reads 16.
    assert folded["stages.1.blocks.0.token_mlp.fc1.weight"].shape == (32, 16 + 4)
    assert folded["stages.2.blocks.1.token_mlp.fc1.weight"].shape == (32, 64 + 16)
    assert all(torch.equal(state[name], before[name]) for name in before)
