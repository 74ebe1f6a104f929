"""Names and shapes said without torch are those torch has."""

import pytest

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import PRESETS, CascadeConfig, StageConfig, override
from msmlp.model.weights.manifest import parameter_shapes

UNEQUAL = CascadeConfig(
    image_size=16,
    classes=3,
    stages=(
        StageConfig(patch=8, width=6, depth=1, token_hidden=4, channel_hidden=8),
        StageConfig(patch=4, width=8, depth=2, token_hidden=5, channel_hidden=9, overlap=1),
    ),
)


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["tiny"],
        PRESETS["xs"],
        PRESETS["m"],
        UNEQUAL,
        override(UNEQUAL, {"reuse": "first"}),
        override(UNEQUAL, {"reuse": "none"}),
        override(UNEQUAL, {"reuse_norm": False}),
    ],
)
def test_they_are_what_the_network_has(config: CascadeConfig) -> None:
    state = Cascade(config).state_dict()
    assert parameter_shapes(config) == {name: tuple(value.shape) for name, value in state.items()}
