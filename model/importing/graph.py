"""A stranger's ONNX graph, read and bounded before anything runs it: one file, standard operators, known shapes.

What does not fit is one line that names the file, and the tensor or node: ConfigError.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, TypeProto

from msmlp.model.errors import ConfigError
from msmlp.model.export.source import parsed
from msmlp.model.importing.shapes import shape_of, types_of

MAX_BYTES = 2**30
NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
"""Types that numpy calls by other names."""


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A checked graph.

    `shapes` has every tensor, with a batch of one image, and `doubled` with one of two; `inputs` and `outputs` have
    those of the graph by their names, with their types as numpy calls them.
    """

    file: str
    content: bytes
    model: onnx.ModelProto
    shapes: dict[str, Shape]
    doubled: dict[str, Shape]
    inputs: dict[str, str]
    outputs: dict[str, str]

    def shown(self, tensor: str) -> str:
        """The shape of a tensor with the batch, for a person."""
        dims = zip(self.shapes[tensor], self.doubled[tensor], strict=True)
        return f"[{', '.join(str(one) if one == two else f'{one}n'.removeprefix('1') for one, two in dims)}]"

    def per_image(self, tensor: str) -> Shape | None:
        """The shape of a tensor after the batch; None for one whose first dimension is not the batch."""
        one, two = self.shapes[tensor], self.doubled[tensor]
        return one[1:] if one[:1] == (1,) and two == (2, *one[1:]) else None

    @cached_property
    def constants(self) -> int:
        """Numbers in tensors that do not depend on the picture, all of which ONNX Runtime keeps."""
        return sum(prod(shape) for name, shape in self.shapes.items() if shape == self.doubled[name])

    @cached_property
    def live(self) -> int:
        """The most numbers that the tensors of one image have at once, while the nodes run in their order."""
        nodes = self.model.graph.node
        last = {name: at for at, node in enumerate(nodes) for name in (*node.output, *node.input)}
        last.update(dict.fromkeys(self.outputs, len(nodes)))
        now = most = self._numbers(self.inputs)
        for at, node in enumerate(nodes):
            now += self._numbers(node.output)
            most = max(most, now)
            now -= self._numbers({name for name in (*node.input, *node.output) if last[name] == at})
        return most

    def _numbers(self, tensors: Iterable[str]) -> int:
        return sum(prod(self.doubled[name]) - prod(self.shapes[name]) for name in tensors if name)


def read_graph(path: Path) -> Graph:
    """Read and check a graph; nothing but this file is opened.

    Raises:
        ConfigError: it is not a graph, is too large, or has what is not allowed.
    """
    content = _content(path)
    try:
        model = parsed(content)
        constants = {each.name for each in model.graph.initializer}
        inputs = [each for each in model.graph.input if each.name not in constants]
        for each in inputs:
            _check_input(each)
        onnx.checker.check_model(content)
        types, doubled = types_of(model, 1), types_of(model, 2)
        for name in types:
            _check_scale(name, shape_of(types[name]), shape_of(doubled[name]))
        outputs = {each.name: _type(types, each.name) for each in model.graph.output}
        return Graph(
            str(path),
            content,
            model,
            {name: shape_of(kind) for name, kind in types.items()},
            {name: shape_of(kind) for name, kind in doubled.items()},
            {each.name: _type(types, each.name) for each in inputs},
            outputs,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        onnx.defs.SchemaError,
        ValueError,
    ) as error:
        raise ConfigError(f"{path} is not a valid graph: {' '.join(str(error).split())[:300]}") from None


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a file")
        if not found.st_size:
            raise ConfigError(f"{path} is empty")
        if found.st_size > MAX_BYTES:
            raise ConfigError(f"{path} has {found.st_size} bytes; expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None


def _check_input(value: onnx.ValueInfoProto) -> None:
    dims = value.type.tensor_type.shape.dim
    if not value.type.HasField("tensor_type") or not dims:
        raise ConfigError(f"input {value.name!r} is not a tensor of a known shape")
    if dims[0].HasField("dim_value"):
        raise ConfigError(f"input {value.name!r} has a fixed batch of {dims[0].dim_value}; expected a dynamic one")
    if not all(dim.dim_value > 0 for dim in dims[1:]):
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise ConfigError(f"input {value.name!r} has the shape {shown}; expected fixed numbers after the batch")


def _check_scale(name: str, one: Shape, two: Shape) -> None:
    """What two pictures need is no more than twice what one needs."""
    if len(one) != len(two) or prod(two) not in (prod(one), 2 * prod(one)):
        raise ConfigError(
            f"tensor {name!r} has the shape {list(one)} for one picture and {list(two)} for two; expected twice as much"
        )


def _type(types: dict[str, TypeProto], tensor: str) -> str:
    if tensor not in types:
        raise ConfigError(f"output {tensor!r} is made by no node")
    kind = types[tensor].tensor_type.elem_type
    return NAMES.get(kind) or str(TensorProto.DataType.Name(kind)).lower()
