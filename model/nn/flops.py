"""The multiply-adds of a stage, computed by fvcore's rules, which are the paper's unit.

A linear layer or convolution costs its multiply-adds, a LayerNorm 5 per element, nearest upsampling 1 per output
element; activations, additions and means are free. Tests compare the result with fvcore's own count.
"""

from itertools import accumulate

from msmlp.model.nn.config import CascadeConfig

LAYER_NORM = 5


def stage_multiply_adds(config: CascadeConfig, index: int, *, folded: bool = True) -> int:
    """Multiply-adds per image of stage `index` (0-based) alone, in the serving form (`folded`) or the paper's."""
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
