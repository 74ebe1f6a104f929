"""A stage's graph as a file's bytes."""

import onnx

from msmlp.model.errors import WeightsError
from msmlp.model.weights.graphs import Origin

MAX_GRAPH_BYTES = 2**31 - 1
"""The limit of one protobuf message; larger weights would need a second file."""


def serialized(model: onnx.ModelProto, k: int, made_from: Origin) -> bytes:
    """The checked graph of stage `k` as a file's bytes, with its origin and nothing of this machine.

    WeightsError if it is too large for one file.
    """
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Stack traces, with paths of this machine.
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
