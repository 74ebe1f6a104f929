"""The network against the paper's equations, its own golden outputs, and what serving needs of it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import CascadeConfig, StageConfig, override, preset

Build = Callable[..., Cascade]
Pictures = Callable[[int, int], Tensor]
Array = NDArray[np.float64]


def stage(patch: int, width: int, depth: int = 2, overlap: int = 0) -> StageConfig:
    return StageConfig(patch=patch, width=width, depth=depth, token_hidden=5, channel_hidden=9, overlap=overlap)


SHAPES = {
    "two-stages": CascadeConfig(image_size=16, classes=3, stages=(stage(8, 6), stage(4, 6))),
    "one-stage": CascadeConfig(image_size=16, classes=2, stages=(stage(4, 6, depth=3),)),
    "unequal-widths": CascadeConfig(image_size=16, classes=4, stages=(stage(8, 4), stage(4, 7, depth=1), stage(2, 5))),
    "ratio-not-whole": CascadeConfig(image_size=24, classes=3, stages=(stage(8, 6), stage(6, 6), stage(4, 8))),
    "equal-patches": CascadeConfig(image_size=12, classes=3, stages=(stage(4, 6), stage(4, 6), stage(4, 5))),
    "overlapping": CascadeConfig(image_size=16, classes=3, stages=(stage(8, 6, overlap=3), stage(4, 5, overlap=4))),
    "four-stages": CascadeConfig(
        image_size=32, classes=5, stages=(stage(32, 4), stage(16, 4), stage(8, 4), stage(8, 4))
    ),
}
SWITCHES = [(reuse, norm) for reuse in ("none", "first", "all") for norm in (True, False)]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> CascadeConfig:
    return SHAPES[request.param]


@pytest.fixture(params=SWITCHES, ids=lambda s: f"{s[0]}-{'norm' if s[1] else 'plain'}")
def config(shape: CascadeConfig, request: pytest.FixtureRequest) -> CascadeConfig:
    reuse, norm = request.param
    return override(shape, {"reuse": reuse, "reuse_norm": norm})


# --- the paper's equations, written out once more in numpy -------------------------------------------------------


def layer_norm(x: Array, p: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * p[name + ".weight"] + p[name + ".bias"]


def linear(x: Array, p: dict[str, Array], name: str) -> Array:
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def mlp(x: Array, p: dict[str, Array], name: str) -> Array:
    hidden = linear(x, p, name + ".fc1")
    gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return linear(gelu, p, name + ".fc2")


def embedding(z_up: Array, p: dict[str, Array], name: str, grid_up: int, grid: int) -> Array:
    """f of equation 7: LN → grid → nearest upsampling → flatten, each where the cascade has it."""
    if name + ".norm.weight" in p:
        z_up = layer_norm(z_up, p, name + ".norm")
    if name + ".project.weight" in p:
        z_up = linear(z_up, p, name + ".project")
    nearest = [position * grid_up // grid for position in range(grid)]
    return np.stack([z_up[row * grid_up + column] for row in nearest for column in nearest])


def reference(config: CascadeConfig, p: dict[str, Array], image: Array) -> list[Array]:
    """One image [3, H, W] → logits of every exit."""
    logits: list[Array] = []
    z_up = None
    for k, made in enumerate(config.stages):
        at, grid = f"stages.{k}", config.grid(k)
        framed = np.pad(image, ((0, 0), (made.overlap, made.overlap), (made.overlap, made.overlap)))
        starts = [made.patch * position for position in range(grid)]
        windows = [framed[:, y : y + made.window, x : x + made.window] for y in starts for x in starts]
        kernel = p[at + ".embed.project.weight"].reshape(made.width, -1)
        z = np.stack(windows).reshape(grid * grid, -1) @ kernel.T + p[at + ".embed.project.bias"]
        for block in range(made.depth):
            name = f"{at}.blocks.{block}"
            x = z
            if config.reuses(k, block):
                assert z_up is not None
                x = np.concatenate([z, embedding(z_up, p, name + ".reuse", config.grid(k - 1), grid)])
            z = z + mlp(layer_norm(x, p, name + ".token_norm").T, p, name + ".token_mlp").T
            z = z + mlp(layer_norm(z, p, name + ".channel_norm"), p, name + ".channel_mlp")
        logits.append(linear(layer_norm(z, p, at + ".norm").mean(0), p, at + ".head"))
        z_up = z
    return logits


def test_the_network_is_the_papers_equations(config: CascadeConfig, patterned: Build, pictures: Pictures) -> None:
    cascade = patterned(config)
    images = pictures(2, config.image_size)
    parameters = {name: value.numpy() for name, value in cascade.state_dict().items()}
    with torch.inference_mode():
        exits = cascade(images)
    assert len(exits) == len(config.stages)
    for row, image in enumerate(images.numpy()):
        expected = reference(config, parameters, image)
        for found, wanted in zip(exits, expected, strict=True):
            assert found.shape == (2, config.classes)
            np.testing.assert_allclose(found[row], wanted, rtol=1e-8, atol=1e-8)


# --- golden outputs ----------------------------------------------------------------------------------------------

# The first four logits of every exit, for the patterned weights and the patterned image.
GOLDEN = {
    "tiny": [
        [-0.40909, 0.12922, 0.64501, 0.73805],
        [0.41972, -0.02704, -0.05985, -0.03873],
        [0.61407, -0.11273, -0.18095, 0.24884],
    ],
    "xs": [
        [0.22292, 0.03944, 0.31717, -0.35136],
        [0.00583, 0.10731, -0.16865, -0.04524],
        [0.31142, -0.0049, -0.31888, 0.03981],
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_outputs(name: str, patterned: Build, pictures: Pictures) -> None:
    config = preset(name)
    with torch.inference_mode():
        exits = patterned(config)(pictures(1, config.image_size))
    found = [logits[0, :4].tolist() for logits in exits]
    assert found == [pytest.approx(numbers, abs=1e-5) for numbers in GOLDEN[name]]


# --- what reuse does and does not touch --------------------------------------------------------------------------


def logits_after_shaking_stage_one(cascade: Cascade, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    with torch.inference_mode():
        before = cascade(images)
        # The bias of a channel, unlike one common to all channels, survives the layer norms that follow.
        cascade.stages[0].embed.project.bias[::2] += 1.0
        return before, cascade(images)


@pytest.mark.parametrize("reuse", ["none", "first", "all"])
def test_later_exits_depend_on_stage_one_exactly_when_they_reuse(
    reuse: str, patterned: Build, pictures: Pictures
) -> None:
    cascade = patterned(override(SHAPES["unequal-widths"], {"reuse": reuse}))
    before, after = logits_after_shaking_stage_one(cascade, pictures(2, 16))
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [True, reuse != "none", reuse != "none"]


@pytest.mark.parametrize("reuse", ["none", "first", "all"])
def test_the_first_exit_never_depends_on_later_stages(reuse: str, patterned: Build, pictures: Pictures) -> None:
    cascade = patterned(override(SHAPES["two-stages"], {"reuse": reuse}))
    images = pictures(2, 16)
    with torch.inference_mode():
        before = cascade(images)
        cascade.stages[1].embed.project.bias[::2] += 1.0
        after = cascade(images)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


# --- training and serving need -----------------------------------------------------------------------------------


def receives_gradient(config: CascadeConfig, name: str, exit_index: int) -> bool:
    """Whether the loss of one exit (0-based) reaches the parameter at all."""
    k = int(name.split(".")[1])
    if k > exit_index:
        return False
    # The layer norms that read a token take away what all its channels share, so the last bias of token mixing,
    # one number a token, changes nothing; the paper's equation 2 has it all the same. It counts only where the
    # features are mapped to another width without a norm in front.
    if name.endswith("token_mlp.fc2.bias"):
        maps = k < exit_index and config.stages[k + 1].width != config.stages[k].width
        return maps and config.reuses(k + 1, 0) and not config.reuse_norm
    if k == exit_index:
        return True
    own_exit = name.startswith((f"stages.{k}.norm", f"stages.{k}.head"))
    return config.reuse != "none" and not own_exit


def test_a_gradient_for_every_parameter(config: CascadeConfig, patterned: Build, pictures: Pictures) -> None:
    cascade = patterned(config)
    labels = torch.arange(3) % config.classes
    exits = cascade(pictures(3, config.image_size))
    parameters = dict(cascade.named_parameters())
    for exit_index, logits in enumerate(exits):
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            size = 0.0 if gradient is None else gradient.abs().max().item()
            if receives_gradient(config, name, exit_index):
                assert size > 1e-8, (name, exit_index, size)
            else:
                assert size < 1e-12, (name, exit_index, size)


@pytest.mark.parametrize("name", ["tiny", "xs"])
def test_a_fresh_cascade_trains_every_parameter(name: str, pictures: Pictures) -> None:
    """The random start leaves no weight without a gradient (a zero matrix would starve the one before it)."""
    torch.manual_seed(0)
    cascade = Cascade(preset(name)).double()
    loss = sum(F.cross_entropy(z, torch.arange(4)) for z in cascade(pictures(4, 32)))
    assert isinstance(loss, Tensor)
    loss.backward()
    starved = [
        key
        for key, parameter in cascade.named_parameters()
        if not key.endswith("token_mlp.fc2.bias") and (parameter.grad is None or parameter.grad.abs().max() < 1e-9)
    ]
    assert starved == []


@pytest.mark.parametrize("folded", [False, True], ids=["paper", "folded"])
def test_stage_by_stage_with_kept_features_equals_the_cascade_run_whole(
    config: CascadeConfig, folded: bool, patterned: Build, pictures: Pictures
) -> None:
    cascade = patterned(config, folded=folded)
    images = pictures(5, config.image_size)
    with torch.inference_mode():
        whole = cascade(images)
        kept: dict[int, NDArray[np.float64]] = {}
        rows = list(range(5))
        for k, piece in enumerate(cascade.stages):
            upstream = None if k == 0 else torch.from_numpy(np.stack([kept[row] for row in rows]))
            features, logits = piece(images[rows], upstream)
            assert features.shape == (len(rows), config.tokens(k), config.stages[k].width)
            torch.testing.assert_close(logits, whole[k][rows], rtol=1e-10, atol=1e-10)
            kept = dict(zip(rows, features.numpy(), strict=True))
            # Some leave, and the rest go on in another order: what survivors of several batches look like.
            rows = rows[::-1][: max(1, len(rows) - 1)]


def test_one_seed_gives_one_start() -> None:
    torch.manual_seed(5)
    first = Cascade(preset("tiny")).state_dict()
    torch.manual_seed(5)
    second = Cascade(preset("tiny")).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
