import warnings
from typing import Any

import pytest
import torch

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import (
    PRESETS,
    CascadeConfig,
    StageConfig,
    cumulative_gflops,
    incremental_gflops,
    override,
    preset,
)

# fvcore counts by torch.jit's tracer, which torch has put on its list of things to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

MIXED = CascadeConfig(
    image_size=48,
    classes=7,
    stages=(
        StageConfig(patch=16, width=24, depth=2, token_hidden=8, channel_hidden=40),
        StageConfig(patch=12, width=16, depth=1, token_hidden=12, channel_hidden=24),
        StageConfig(patch=12, width=16, depth=2, token_hidden=12, channel_hidden=24),
        StageConfig(patch=4, width=20, depth=2, token_hidden=16, channel_hidden=48, overlap=2),
    ),
)


def fvcore_gflops(config: CascadeConfig, *, folded: bool) -> list[float]:
    """What fvcore counts for each stage of one image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

    with torch.device("meta"):  # the count needs shapes, not a slow random start
        cascade = Cascade(config, folded=folded)
    cascade = cascade.to_empty(device="cpu").eval()
    analysis: Any = FlopCountAnalysis(cascade, torch.zeros(1, 3, config.image_size, config.image_size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = analysis.by_module()
    assert by_module[""] == sum(by_module[f"stages.{k}"] for k in range(len(config.stages)))
    return [by_module[f"stages.{k}"] / 1e9 for k in range(len(config.stages))]


@pytest.mark.parametrize("folded", [False, True], ids=["paper", "folded"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_what_fvcore_counts(name: str, folded: bool) -> None:
    config = preset(name)
    assert incremental_gflops(config, folded=folded) == pytest.approx(fvcore_gflops(config, folded=folded), rel=1e-3)


@pytest.mark.parametrize("folded", [False, True], ids=["paper", "folded"])
@pytest.mark.parametrize("reuse_norm", [True, False])
@pytest.mark.parametrize("reuse", ["none", "first", "all"])
def test_every_switch_counts_what_fvcore_counts(reuse: str, reuse_norm: bool, folded: bool) -> None:
    config = override(MIXED, {"reuse": reuse, "reuse_norm": reuse_norm})
    assert incremental_gflops(config, folded=folded) == pytest.approx(fvcore_gflops(config, folded=folded), rel=1e-3)


def test_the_published_counts() -> None:
    assert cumulative_gflops(preset("paper-s"), folded=False) == pytest.approx([0.077, 0.399, 1.68], rel=5e-3)
    assert cumulative_gflops(preset("mixer-s"), folded=False) == pytest.approx([1.21], rel=5e-3)


def test_the_folded_form_is_counted_by_default() -> None:
    config = preset("paper-s")
    assert cumulative_gflops(config) == cumulative_gflops(config, folded=True)
    paper, served = cumulative_gflops(config, folded=False), cumulative_gflops(config)
    assert served[0] == paper[0]
    assert served[1] < paper[1]
    assert served[2] < paper[2]


def test_cumulative_is_the_running_sum() -> None:
    steps = incremental_gflops(preset("m"))
    assert cumulative_gflops(preset("m")) == pytest.approx([sum(steps[: k + 1]) for k in range(3)])
