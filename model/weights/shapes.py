"""The parameters a cascade has, by name and shape; what a weights file is held against before torch is asked."""

from msmlp.model.nn.config import CascadeConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: CascadeConfig) -> Shapes:
    """Name → shape of every parameter of `Cascade(config)`."""
    shapes: Shapes = {}
    for k, stage in enumerate(config.stages):
        root, width = f"stages.{k}", stage.width
        shapes[f"{root}.embed.project.weight"] = (width, 3, stage.window, stage.window)
        shapes[f"{root}.embed.project.bias"] = (width,)
        for b in range(stage.depth):
            shapes |= _block(config, k, b, f"{root}.blocks.{b}")
        shapes |= _norm(f"{root}.norm", width) | _linear(f"{root}.head", width, config.classes)
    return shapes


def _block(config: CascadeConfig, stage: int, block: int, name: str) -> Shapes:
    own, tokens = config.stages[stage], config.tokens(stage)
    shapes: Shapes = {}
    reads = tokens
    if config.reuses(stage, block):
        reads = 2 * tokens
        width_up = config.stages[stage - 1].width
        if config.reuse_norm:
            shapes |= _norm(f"{name}.reuse.norm", width_up)
        if width_up != own.width:
            shapes |= _linear(f"{name}.reuse.project", width_up, own.width)
    shapes |= _norm(f"{name}.token_norm", own.width) | _norm(f"{name}.channel_norm", own.width)
    shapes |= _mlp(f"{name}.token_mlp", reads, own.token_hidden, tokens)
    return shapes | _mlp(f"{name}.channel_mlp", own.width, own.channel_hidden, own.width)


def _mlp(name: str, inputs: int, hidden: int, outputs: int) -> Shapes:
    return _linear(f"{name}.fc1", inputs, hidden) | _linear(f"{name}.fc2", hidden, outputs)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
