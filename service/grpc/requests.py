"""A ModelInferRequest → what every form of the protocol's requests is taken apart from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from msmlp.service.errors import MalformedBodyError
from msmlp.service.oip.request import Data, Inference, Limits, take_apart
from msmlp.service.oip.schema import MAX_DIMENSIONS, MAX_TENSORS, InputTensor, parse_document

MAX_PARAMETERS = 64
"""Far more than there are options."""


def read_inference(message: Any, limits: Limits) -> Inference:
    """Take a ModelInferRequest apart.

    Raises:
        MalformedBodyError, NoImagesError, TooManyImagesError, BadImagesError, OptionError
    """
    _check_counts(message)
    request = parse_document(
        {
            "id": message.id or None,
            "parameters": _values(message.parameters),
            "inputs": [
                {"name": t.name, "datatype": t.datatype, "shape": list(t.shape[: MAX_DIMENSIONS + 1])}
                for t in message.inputs
            ],
            "outputs": [{"name": t.name, "parameters": _values(t.parameters)} for t in message.outputs],
        }
    )
    return take_apart(request, lambda tensor: _data(tensor, message), limits)


def _check_counts(message: Any) -> None:
    """Before anything is made of them: an empty tensor is two bytes on the wire."""
    for name, sent in (
        ("inputs", message.inputs),
        ("outputs", message.outputs),
        ("parameters", message.parameters),
        *(("parameters", tensor.parameters) for tensor in message.outputs[:MAX_TENSORS]),
    ):
        most = MAX_PARAMETERS if name == "parameters" else MAX_TENSORS
        if len(sent) > most:
            raise MalformedBodyError(f"{name}: {len(sent)} were sent, at most {most} are allowed")


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """None for a parameter that was sent without a value."""
    chosen = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) if choice else None for name, choice in chosen.items()}


def _data(tensor: InputTensor, message: Any) -> Data:
    """That of the one tensor sent."""
    [sent], raw = message.inputs, message.raw_input_contents
    if sent.HasField("contents") == bool(raw) or len(raw) > 1:
        raise MalformedBodyError(f"{tensor.name}: send its data in contents, or as the one of raw_input_contents")
    if raw:
        return memoryview(raw[0])
    if tensor.name == "image":
        return list(sent.contents.bytes_contents)
    numbers = sent.contents.uint_contents
    return np.fromiter(numbers, dtype=np.uint32, count=len(numbers))
