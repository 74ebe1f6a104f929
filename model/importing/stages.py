"""From checked graphs to the stages of a cascade: which input is the picture, which output the answer."""

from dataclasses import dataclass

from pydantic import ValidationError

from msmlp.model.errors import ConfigError, OptionError, one_line
from msmlp.model.imported import MAX_SIDE, MAX_STAGES, ImportedCascade, ImportedStage, PictureInput, UpstreamInput
from msmlp.model.importing.count import gflops
from msmlp.model.importing.graph import Graph
from msmlp.model.offline import batch_of
from msmlp.model.preprocess import Preprocess
from msmlp.model.views import LARGEST, Resize

UPSTREAM, FEATURES, LOGITS = "upstream", "features", "logits"
"""The names by which a graph asks for features and has them; and of the output that counts if several could."""
FLOATS = ("float32", "float16")

MAX_NUMBERS = 2**31
"""What the tensors of a stage may have at once, in the largest batch of a calibration."""

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """What is said of a stage's pictures. `mean` and `std` are of pixels / 255; without `shorter_side` and `crop_ratio`
    the shorter side is scaled to the graph's own size. OptionError for numbers out of range."""

    mean: Channels | None = None
    std: Channels | None = None
    shorter_side: int | None = None
    crop_ratio: float | None = None
    filter: str = "bicubic"
    colours: str = "RGB"

    def __post_init__(self) -> None:
        if not all(0 <= each <= 1 for each in self.mean or ()):
            raise OptionError("--mean", "expected numbers from 0 to 1, of pixels / 255")
        if not all(each > 0 for each in self.std or ()):
            raise OptionError("--std", "expected numbers above 0")
        if self.crop_ratio is not None and not 1 / LARGEST <= self.crop_ratio <= 1:
            raise OptionError("--crop-ratio", f"expected a number from {1 / LARGEST} to 1")


def cascade_of(
    graphs: list[Graph], classes: int, preprocessing: list[Preprocessing], costs: list[float] | None = None
) -> ImportedCascade:
    """The cascade of `graphs`, one per stage, whose outputs must have `classes` entries; `costs` in GFLOPs replace
    those that are counted. ConfigError for what does not fit."""
    if len(graphs) > MAX_STAGES:
        raise ConfigError(f"{len(graphs)} stages; expected at most {MAX_STAGES}")
    stages: list[ImportedStage] = []
    for k, (graph, said) in enumerate(zip(graphs, preprocessing, strict=True)):
        try:
            stages.append(_stage(k, graphs, classes, said, costs[k] if costs else gflops(graph)))
        except (ConfigError, ValidationError, OverflowError) as error:
            text = one_line(error) if isinstance(error, ValidationError) else error
            if isinstance(error, OverflowError):
                text = "its tensors are too large to count"
            raise ConfigError(f"stage {k + 1}, {graph.file}: {text}") from None
    whole = all(each.picture is None or each.picture.dtype == "uint8" for each in stages)
    if whole and any(each.mean or each.std for each in preprocessing):
        raise OptionError("--mean", "every graph takes uint8, pixels as they are; expected no --mean and --std")
    cascade = ImportedCascade(kind="imported", classes=classes, stages=tuple(stages))
    _check_memory(graphs, batch_of(cascade))
    return cascade


def _check_memory(graphs: list[Graph], batch: int) -> None:
    for k, graph in enumerate(graphs):
        if (numbers := graph.constants + batch * graph.live) > MAX_NUMBERS:
            raise ConfigError(
                f"stage {k + 1}, {graph.file}: its tensors have {numbers} numbers at once in a batch of {batch}; "
                f"expected at most {MAX_NUMBERS}"
            )


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
    return ImportedStage(
        graph=f"source-{k + 1}.onnx",
        picture=_picture(graph, pictures[0], said) if pictures else None,
        upstream=_upstream(graph, graphs[k - 1]) if UPSTREAM in graph.inputs else None,
        output=_output(graph, classes),
        probabilities=False,  # until answers show that they are (trial.py)
        features=FEATURES if hands_on else None,
        gflops=cost,
    )


def _named(tensors: dict[str, str]) -> str:
    return ", ".join(repr(name) for name in tensors) or "none"


def _output(graph: Graph, classes: int) -> str:
    others = [name for name in graph.outputs if name != FEATURES]
    fitting = [name for name in others if graph.outputs[name] in FLOATS and _columns(graph.per_image(name)) == classes]
    if LOGITS in fitting:
        return LOGITS
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{name!r} {graph.outputs[name]} {graph.shown(name)}" for name in others) or "none"
    raise ConfigError(f"expected one output of float32 [n, {classes}], a number for each class, got {found}")


def _columns(shape: tuple[int, ...] | None) -> int:
    """Of [columns], also with sides of 1 after them, as some networks' poolings leave; else 0."""
    return shape[0] if shape and set(shape[1:]) <= {1} else 0


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
    if kind not in FLOATS or len(wanted) < 2:
        raise ConfigError(f"input 'upstream' is {kind} {graph.shown(UPSTREAM)}; expected float32 or float16 [n, ...]")
    if made not in FLOATS or before.per_image(FEATURES) != wanted[1:]:
        found = f"{made} {before.shown(FEATURES)}" if made else "none"
        raise ConfigError(f"input 'upstream' is {kind} {graph.shown(UPSTREAM)}; 'features' of {before.file} is {found}")
    return UpstreamInput.model_validate({"tensor": UPSTREAM, "shape": wanted[1:], "dtype": kind})
