"""From checked graphs to the stages of a cascade: which input is the picture, which output the answer."""

from dataclasses import dataclass

from msmlp.model.errors import ConfigError
from msmlp.model.imported import MAX_SIDE, ImportedCascade, ImportedStage, PictureInput, UpstreamInput
from msmlp.model.importing.count import gflops
from msmlp.model.importing.graph import Graph
from msmlp.model.preprocess import Preprocess
from msmlp.model.views import Resize

UPSTREAM, FEATURES, LOGITS = "upstream", "features", "logits"
"""The names by which a graph asks for features and has them; and of the output that counts if several could."""
FLOATS = ("float32", "float16")
PASSING = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")
"""Operators that leave probabilities what they are."""

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """What is said of a stage's pictures. `mean` and `std` are of pixels / 255; without `shorter_side` and `crop_ratio`
    the shorter side is scaled to the graph's own size."""

    mean: Channels | None = None
    std: Channels | None = None
    shorter_side: int | None = None
    crop_ratio: float | None = None
    filter: str = "bicubic"
    colours: str = "RGB"


def cascade_of(
    graphs: list[Graph], classes: int, preprocessing: list[Preprocessing], costs: list[float] | None = None
) -> ImportedCascade:
    """The cascade of `graphs`, one per stage, whose outputs must have so many `classes`; `costs` in GFLOPs replace
    those that are counted. ConfigError for what does not fit."""
    stages: list[ImportedStage] = []
    for k, (graph, said) in enumerate(zip(graphs, preprocessing, strict=True)):
        try:
            stages.append(_stage(k, graphs, classes, said, costs[k] if costs else gflops(graph)))
        except ConfigError as error:
            raise ConfigError(f"stage {k + 1}, {graph.file}: {error}") from None
    return ImportedCascade(kind="imported", classes=classes, stages=tuple(stages))


def _stage(k: int, graphs: list[Graph], classes: int, said: Preprocessing, cost: float) -> ImportedStage:
    graph, after = graphs[k], graphs[k + 1] if k + 1 < len(graphs) else None
    hands_on = after is not None and UPSTREAM in after.inputs
    if not cost:
        raise ConfigError("no multiply-adds were found in it; state them with --gflops")
    if hands_on and FEATURES not in graph.outputs:
        raise ConfigError(
            f"the next stage reads upstream features; expected an output 'features', got {_named(graph.outputs)}"
        )
    pictures = [name for name in graph.inputs if name != UPSTREAM]
    if len(pictures) > 1 or (k == 0 and (not pictures or UPSTREAM in graph.inputs)):
        allowed = "one input, for pictures" if k == 0 else "at most one input besides 'upstream'"
        raise ConfigError(f"expected {allowed}, got {_named(graph.inputs)}")
    output = _output(graph, classes)
    return ImportedStage(
        graph=f"source-{k + 1}.onnx",
        picture=_picture(graph, pictures[0], said) if pictures else None,
        upstream=_upstream(graph, graphs[k - 1]) if UPSTREAM in graph.inputs else None,
        output=output,
        probabilities=_is_softmax(graph, output),
        features=FEATURES if hands_on else None,
        gflops=cost,
    )


def _named(tensors: dict[str, str]) -> str:
    return ", ".join(repr(name) for name in tensors) or "none"


def _output(graph: Graph, classes: int) -> str:
    others = [name for name in graph.outputs if name != FEATURES]
    fitting = [name for name in others if graph.outputs[name] in FLOATS and _columns(graph.shapes[name]) == classes]
    if LOGITS in fitting:
        return LOGITS
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{name!r} {graph.outputs[name]} {graph.shown(name)}" for name in others) or "none"
    raise ConfigError(f"expected one output of float32 [n, {classes}], a number for each class, got {found}")


def _columns(shape: tuple[int, ...]) -> int:
    """Of [n, columns], also with sides of 1 after them, as some networks' poolings leave; else 0."""
    return shape[1] if len(shape) >= 2 and set(shape[2:]) <= {1} else 0


def _is_softmax(graph: Graph, output: str) -> bool:
    makers = {name: node for node in graph.model.graph.node for name in node.output}
    while (node := makers.get(output)) is not None and node.op_type in PASSING:
        output = node.input[0]
    return node is not None and node.op_type == "Softmax"


def _picture(graph: Graph, tensor: str, said: Preprocessing) -> PictureInput:
    shape, kind = graph.shapes[tensor], graph.inputs[tensor]
    what = f"input {tensor!r} is {kind} {graph.shown(tensor)}"
    first = len(shape) == 4 and shape[1] == 3
    size = shape[2] if len(shape) == 4 else 0
    if (shape != (1, 3, size, size) and shape != (1, size, size, 3)) or not 0 < size <= MAX_SIDE:
        raise ConfigError(f"{what}; expected [n, 3, size, size] or [n, size, size, 3], up to {MAX_SIDE} pixels a side")
    if kind not in (*FLOATS, "uint8"):
        raise ConfigError(f"{what}; expected uint8, float32 or float16")
    if kind == "uint8":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif said.mean is None or said.std is None:
        raise ConfigError(f"{what}; state its mean and standard deviation, of pixels / 255, with --mean and --std")
    else:
        mean, std = said.mean, said.std
    shorter = said.shorter_side or int(size / (said.crop_ratio or 1))
    if shorter < size:
        raise ConfigError(f"a shorter side of {shorter} pixels is less than the {size} that are cropped")
    resize = Resize.model_validate({"shorter_side": shorter, "filter": said.filter})
    return PictureInput.model_validate(
        {
            "tensor": tensor,
            "layout": "NCHW" if first else "NHWC",
            "dtype": kind,
            "colours": said.colours,
            "preprocess": Preprocess(size=size, mean=mean, std=std, resize=resize),
        }
    )


def _upstream(graph: Graph, before: Graph) -> UpstreamInput:
    wanted, kind, made = graph.shapes[UPSTREAM], graph.inputs[UPSTREAM], before.outputs.get(FEATURES)
    if kind not in FLOATS:
        raise ConfigError(f"input 'upstream' is {kind}; expected float32 or float16")
    if made not in FLOATS or before.shapes[FEATURES] != wanted:
        found = f"{made} {before.shown(FEATURES)}" if made else "none"
        raise ConfigError(f"input 'upstream' is {kind} {graph.shown(UPSTREAM)}; 'features' of {before.file} is {found}")
    return UpstreamInput.model_validate({"tensor": UPSTREAM, "shape": wanted[1:], "dtype": kind})
