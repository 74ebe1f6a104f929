"""The configuration of a cascade, its presets, overrides by `key=value`, and its multiply-adds; no torch here.

A cascade is a row of stages with one exit each. Stage k cuts the image into S_k = (size / patch)² tokens.
"""

import json
from itertools import accumulate
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from msmlp.model.errors import ConfigError, one_line
from msmlp.model.shape import CascadeShape

M = TypeVar("M", bound=BaseModel)

LAYER_NORM = 5
"""Multiply-adds per element, by fvcore's rules."""


LARGEST_SIDE, LARGEST_WIDTH = 2**14, 2**20
"""Far beyond what fits in memory, yet small enough that their products can be counted."""


class StageConfig(BaseModel):
    """One Mixer: patch size p_k, width C, depth L (blocks), hidden widths D_S (tokens) and D_C (channels).

    The patch embedding also reads `overlap` pixels around the patch; it is still one linear map per patch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A manifest may come from anybody: its costs are counted before anything else is checked.
    patch: int = Field(ge=1, le=LARGEST_SIDE)
    width: int = Field(ge=1, le=LARGEST_WIDTH)
    depth: int = Field(ge=1, le=1024)
    token_hidden: int = Field(ge=1, le=LARGEST_WIDTH)
    channel_hidden: int = Field(ge=1, le=LARGEST_WIDTH)
    overlap: int = Field(default=0, ge=0, le=LARGEST_SIDE)

    @model_validator(mode="after")
    def _overlap_stays_near(self) -> Self:
        if self.overlap > self.patch:
            raise ValueError(f"overlap {self.overlap} is larger than the patch, {self.patch}")
        return self

    @property
    def window(self) -> int:
        return self.patch + 2 * self.overlap


class CascadeConfig(BaseModel):
    """A cascade for images of `image_size` x `image_size` pixels, with `classes` outputs at every exit.

    `reuse`: which blocks of a downstream stage read the upstream features (the paper's Tables 3 and 4); `reuse_norm`:
    whether f begins with a LayerNorm (Table 5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=32, ge=1, le=LARGEST_SIDE)
    classes: int = Field(default=10, ge=2, le=LARGEST_WIDTH)
    reuse: Literal["none", "first", "all"] = "all"
    reuse_norm: bool = True
    stages: tuple[StageConfig, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        for k, stage in enumerate(self.stages, 1):
            if self.image_size % stage.patch:
                raise ValueError(f"stage {k}: patch {stage.patch} does not divide image_size {self.image_size}")
        patches = [stage.patch for stage in self.stages]
        if patches != sorted(patches, reverse=True):
            raise ValueError(f"patch sizes must not grow along the cascade, got {patches}")
        return self

    def grid(self, stage: int) -> int:
        """Tokens along one side of the image in stage `stage` (0-based)."""
        return self.image_size // self.stages[stage].patch

    def tokens(self, stage: int) -> int:
        """S_k, the number of tokens of stage `stage` (0-based)."""
        return self.grid(stage) ** 2

    def reuses(self, stage: int, block: int) -> bool:
        """Whether block `block` of stage `stage` (both 0-based) reads upstream features."""
        return stage > 0 and (self.reuse == "all" or (self.reuse == "first" and block == 0))

    @property
    def shape(self) -> CascadeShape:
        features = [(self.tokens(k), stage.width) for k, stage in enumerate(self.stages[:-1])]
        return CascadeShape(self.classes, (self.image_size,), (0,) * len(self.stages), (*features, None))


def _stages(*rows: tuple[int, ...]) -> tuple[StageConfig, ...]:
    names = ("patch", "width", "depth", "token_hidden", "channel_hidden", "overlap")
    return tuple(StageConfig(**dict(zip(names, row, strict=False))) for row in rows)


def _paper(depth: int, *patches: int) -> CascadeConfig:
    return CascadeConfig(stages=_stages(*((p, 512, depth, 256, 2048) for p in patches)))


PRESETS: dict[str, CascadeConfig] = {
    # The paper's cascade and the single Mixer it is compared with (sections 4 and 4.1).
    "paper-s": _paper(8, 16, 8, 4),
    "paper-b": _paper(12, 16, 8, 4),
    "mixer-s": _paper(8, 4),
    "mixer-b": _paper(12, 4),
    # The smallest that still learns, for tests.
    "tiny": CascadeConfig(stages=_stages((16, 32, 2, 16, 64), (8, 32, 2, 32, 64), (4, 32, 2, 32, 64))),
    # Many tokens and few channels.
    "xs": CascadeConfig(stages=_stages((8, 64, 3, 32, 256), (4, 64, 3, 64, 256), (4, 64, 3, 64, 256))),
    # At most 0.03 GFLOPs, for training on a CPU; chosen on validation images.
    "s": CascadeConfig(stages=_stages((8, 64, 2, 32, 256, 4), (4, 96, 3, 64, 256, 2), (2, 32, 3, 96, 96, 2))),
    # For training on a GPU.
    "m": CascadeConfig(stages=_stages((8, 96, 3, 32, 384, 2), (4, 128, 4, 64, 384, 2), (4, 192, 6, 64, 576, 2))),
    "l": CascadeConfig(stages=_stages((8, 128, 4, 64, 512, 2), (4, 192, 6, 64, 576, 2), (4, 320, 8, 128, 960, 2))),
}


def preset(name: str) -> CascadeConfig:
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`key=value` strings → a dict; a value that does not parse as JSON is text."""
    parsed: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set: expected key=value, got {text!r}")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed


def override(config: M, changes: dict[str, Any]) -> M:
    """A copy of `config` with dotted keys such as `stages.0.width` replaced; ConfigError for an unknown key or a wrong
    value."""
    data: Any = config.model_dump()
    for key, value in changes.items():
        *path, last = key.split(".")
        node = data
        try:
            for part in path:
                node = node[int(part) if isinstance(node, list | tuple) else part]
            if not isinstance(node, dict) or last not in node:
                raise KeyError(last)
        except (KeyError, IndexError, ValueError, TypeError):
            fields = ", ".join(type(config).model_fields)
            raise ConfigError(f"unknown field {key!r}; expected one of {fields}") from None
        node[last] = value
    try:
        return type(config).model_validate(data)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def stage_multiply_adds(config: CascadeConfig, index: int, *, folded: bool = True) -> int:
    """Multiply-adds per image of stage `index` (0-based) alone, in the serving form (`folded`) or the paper's.

    By fvcore's rules, which are the paper's unit: a linear layer or convolution costs its multiply-adds, a LayerNorm 5
    per element, nearest upsampling 1 per output element; activations, additions and means are free.
    """
    stage = config.stages[index]
    tokens, width = config.tokens(index), stage.width
    total = tokens * width * 3 * stage.window**2
    for block in range(stage.depth):
        extra = 0
        if config.reuses(index, block):
            tokens_up, width_up = config.tokens(index - 1), config.stages[index - 1].width
            extra = tokens_up if folded else tokens
            total += LAYER_NORM * tokens_up * width_up * config.reuse_norm
            total += tokens_up * width_up * width * (width_up != width)
            total += tokens * width * (not folded and tokens_up != tokens)
        total += LAYER_NORM * (2 * tokens + extra) * width
        total += width * stage.token_hidden * (2 * tokens + extra)
        total += 2 * tokens * width * stage.channel_hidden
    return total + LAYER_NORM * tokens * width + width * config.classes


def incremental_gflops(config: CascadeConfig, *, folded: bool = True) -> list[float]:
    """GFLOPs (multiply-adds / 1e9) per image of each stage alone."""
    return [stage_multiply_adds(config, k, folded=folded) / 1e9 for k in range(len(config.stages))]


def cumulative_gflops(config: CascadeConfig, *, folded: bool = True) -> list[float]:
    """GFLOPs of an image that leaves at exit 1, 2, ... K."""
    stages = (stage_multiply_adds(config, k, folded=folded) for k in range(len(config.stages)))
    return [total / 1e9 for total in accumulate(stages)]
