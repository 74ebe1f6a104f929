"""Other people's graphs as stages: around each, what turns pixels into its input, and its output into probabilities,
score and features.

So an imported stage has the inputs and outputs of our own (model/export/graph_stage.py), and every ONNX Runtime backend
runs it. The nodes in between keep their names behind a prefix, so that none can collide.
"""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from msmlp.model.backends.settings import Exits
from msmlp.model.errors import ConfigError, WeightsError
from msmlp.model.exits.policies import exit_policy
from msmlp.model.export.source import opset_of, parsed
from msmlp.model.imported import ImportedCascade, PictureInput, UpstreamInput
from msmlp.model.weights import Weights
from msmlp.model.weights.files import read_checked

PREFIX = "own/"
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
TINY = float(np.finfo(np.float32).tiny)
CHANNELS_FIRST = [0, 3, 1, 2]


def wrapped_stages(weights: Weights, exits: Exits) -> list[onnx.ModelProto]:
    """Every stage of an imported cascade's folder with these exits; WeightsError for a damaged file, or a graph that
    msmlp import would refuse."""
    cascade = weights.manifest.cascade
    assert isinstance(cascade, ImportedCascade)
    made = []
    for k, stage in enumerate(cascade.stages):
        path = weights.folder / stage.graph
        graph = read_checked(path, weights.manifest.files.get(stage.graph))
        try:
            made.append(wrapped(cascade, k, graph, exits))
        except ConfigError as error:
            raise WeightsError(f"{path}: {error}") from None
    return made


def wrapped(cascade: ImportedCascade, k: int, graph: bytes, exits: Exits) -> onnx.ModelProto:
    """Stage `k` (0-based): inputs `pixels` and `upstream` as far as it reads them; outputs `features` if the next stage
    reads them, `probabilities` and `score`."""
    stage, own = cascade.stages[k], compose.add_prefix(parsed(graph), PREFIX)
    _name_nodes(own.graph)
    hands_on = cascade.shape.features[k]
    nodes = _Nodes()
    inputs, outputs = [], []
    if (picture := stage.picture) is not None:
        size = picture.preprocess.size
        inputs.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3]))
        _preprocess(nodes, picture)
    if (upstream := stage.upstream) is not None:
        inputs.append(helper.make_tensor_value_info("upstream", TensorProto.FLOAT, ["n", *upstream.shape]))
        _cast(nodes, "upstream", PREFIX + upstream.tensor, upstream)
    nodes.extend(own.graph.node)
    if hands_on is not None:
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", *hands_on]))
        nodes.add("Cast", f"{PREFIX}{stage.features}", to=TensorProto.FLOAT, out="features")
    _exit(nodes, PREFIX + stage.output, stage.probabilities, cascade.classes, exits.temperatures[k], exits.policy)
    outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", cascade.classes]))
    outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"]))
    constants = [*own.graph.initializer, *nodes.constants]
    made = helper.make_graph(nodes, f"stage-{k + 1}", inputs, outputs, constants)
    opset = helper.make_opsetid("", opset_of(own))
    return helper.make_model(made, opset_imports=[opset], ir_version=max(own.ir_version, 8), producer_name="msmlp")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """A name of its own for every node: the quantizer tells them apart by it."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"msmlp/own_{number}"
        taken.add(node.name)


class _Nodes(list[onnx.NodeProto]):
    """Nodes in order, and the constants that those made here read."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str | NDArray[Any], out: str = "", **attributes: Any) -> str:
        """One more node with one output, which it returns; arrays become constants."""
        names = [self._constant(each) if isinstance(each, np.ndarray) else each for each in inputs]
        out = out or f"msmlp/{kind}_{len(self)}"
        self.append(helper.make_node(kind, names, [out], name=f"msmlp/node_{len(self)}", **attributes))
        return out

    def _constant(self, value: NDArray[Any]) -> str:
        name = f"msmlp/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def _preprocess(nodes: _Nodes, picture: PictureInput) -> None:
    current = "pixels"
    if picture.colours == "BGR":
        current = nodes.add("Gather", current, np.array([2, 1, 0]), axis=3)
    if picture.dtype != "uint8":
        current = nodes.add("Cast", current, to=TensorProto.FLOAT)
        current = nodes.add("Sub", current, _floats(*(255 * mean for mean in picture.preprocess.mean)))
        current = nodes.add("Div", current, _floats(*(255 * std for std in picture.preprocess.std)))
    if picture.layout == "NCHW":
        current = nodes.add("Transpose", current, perm=CHANNELS_FIRST)
    _cast(nodes, current, PREFIX + picture.tensor, picture)


def _cast(nodes: _Nodes, tensor: str, out: str, wanted: PictureInput | UpstreamInput) -> None:
    nodes.add("Cast", tensor, to=TYPES[wanted.dtype], out=out)


def _exit(nodes: _Nodes, output: str, probabilities: bool, classes: int, temperature: float, policy: str) -> None:
    logits = nodes.add("Flatten", nodes.add("Cast", output, to=TensorProto.FLOAT), axis=1)
    if probabilities:
        logits = nodes.add("Log", nodes.add("Max", logits, _floats(TINY)))
    nodes.add("Softmax", nodes.add("Mul", logits, _floats(1 / temperature)), axis=1, out="probabilities")
    exit_policy(policy)  # OptionError for one that is unknown
    row, entries = np.array([-1]), "probabilities"
    if policy == "entropy":
        logs = nodes.add("Log", nodes.add("Max", entries, _floats(TINY)))
        share = nodes.add(
            "Mul", nodes.add("Einsum", entries, logs, equation="nc,nc->n"), _floats(1 / math.log(classes))
        )
        nodes.add(
            "Clip",
            nodes.add("Add", share, _floats(1)),
            np.array(0, np.float32),
            np.array(1, np.float32),
            out="score",
        )
        return
    best = {"max-probability": 1, "margin": 2}[policy]
    nodes.append(
        helper.make_node("TopK", [entries, nodes._constant(np.array([best]))], ["msmlp/best", "msmlp/at"], axis=1)
    )
    if best == 2:
        first, second = (nodes.add("Gather", "msmlp/best", np.array([at]), axis=1) for at in (0, 1))
        nodes.add("Reshape", nodes.add("Sub", first, second), row, out="score")
    else:
        nodes.add("Reshape", "msmlp/best", row, out="score")
