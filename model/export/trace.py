"""A stage → an ONNX graph that stands alone.

A graph holds all that model/nn/served.py computes: normalisation, the folded stage, temperature and exit policy. Its
inputs are pixels uint8 [n, H, W, 3] and, after stage 1, upstream features [n, S, C]; its outputs are features,
probabilities and score.
"""

import logging
import warnings

import onnx
import torch

from msmlp.model.errors import WeightsError
from msmlp.model.export.graph_stage import GraphStage
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.weights.graphs import Origin

OPSET = 20
"""The first with GELU as one operator."""

MAX_GRAPH_BYTES = 2**31 - 1
"""What one protobuf message can hold; larger weights would have to stand in a file beside it."""


def traced(stage: GraphStage, k: int, cascade: CascadeConfig) -> onnx.ModelProto:
    """The exporter's own graph of stage `k` (0-based), for batches of any size."""
    batch, size = torch.export.Dim("n"), cascade.image_size
    # A batch of 1 would be taken for a constant.
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    upstream = torch.zeros(2, cascade.tokens(k - 1), cascade.stages[k - 1].width, dtype=stage.dtype) if k else None
    # The exporter warns of torchvision, which nothing here needs, and of its own calls within torch.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            stage.eval(),
            (pixels, upstream),
            input_names=["pixels", *["upstream"] * bool(k)],
            output_names=["features", "probabilities", "score"],
            dynamic_shapes=({0: batch}, {0: batch} if k else None),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def serialized(model: onnx.ModelProto, k: int, made_from: Origin) -> bytes:
    """The graph of stage `k` as a file's bytes, checked, with what it was made from and nothing of this machine.

    Raises:
        WeightsError: too large for one file.
    """
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Stack traces, with the paths of the machine that exported.
        part.ClearField("metadata_props")
    facts = {
        "msmlp.stage": str(k + 1),
        "msmlp.model_sha256": made_from.model_sha256,
        "msmlp.exit_policy": made_from.exit_policy,
        "msmlp.temperature": repr(made_from.temperatures[k]),
    }
    onnx.helper.set_model_props(model, facts)
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise WeightsError(f"stage {k + 1} takes {model.ByteSize()} bytes, an ONNX file holds {MAX_GRAPH_BYTES}")
    onnx.checker.check_model(model, full_check=True)
    graph: bytes = model.SerializeToString(deterministic=True)
    return graph
