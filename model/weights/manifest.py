"""`manifest.json` + `model.safetensors`: what training leaves, immutable from then on.

Of an imported cascade (model/imported.py): `source-<k>.onnx`, as they were given, instead of `model.safetensors`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from msmlp.model.errors import WeightsError
from msmlp.model.imported import ImportedCascade
from msmlp.model.nn.config import CascadeConfig, cumulative_gflops, incremental_gflops
from msmlp.model.preprocess import Preprocess
from msmlp.model.views import Views
from msmlp.model.weights.files import read_checked, read_json, validated, write_together

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TEACHER = "teacher.json"
"""A teacher's folder has this instead (model/training)."""
FORMAT = 1

Shapes = dict[str, tuple[int, ...]]

AnyCascade = CascadeConfig | ImportedCascade
"""Mixers, which have no `kind`, or other people's graphs."""


class Manifest(BaseModel):
    # Unknown keys are allowed: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    name: str = Field(min_length=1)
    cascade: AnyCascade
    classes: tuple[str, ...]
    preprocess: Preprocess
    files: dict[str, str]
    training: dict[str, Any]
    results: list[dict[str, Any]]
    gflops_incremental: list[float]
    gflops_cumulative: list[float]

    @field_validator("cascade", mode="before")
    @classmethod
    def _of_its_kind(cls, given: Any) -> AnyCascade:
        if isinstance(given, CascadeConfig | ImportedCascade):
            return given
        imported = isinstance(given, dict) and given.get("kind") == "imported"
        return ImportedCascade.model_validate(given) if imported else CascadeConfig.model_validate(given)

    @cached_property
    def views(self) -> Views:
        """How pictures become what the stages read."""
        cascade = self.cascade
        return cascade.views if isinstance(cascade, ImportedCascade) else Views((self.preprocess.view,))

    @property
    def mixers(self) -> CascadeConfig:
        """The cascade, for what needs our own networks; WeightsError for an imported one."""
        if isinstance(self.cascade, ImportedCascade):
            raise WeightsError(f"{self.name} is an imported cascade; expected one that msmlp train has made")
        return self.cascade


@dataclass(frozen=True)
class Weights:
    """A checked weights folder in memory.

    `state` maps parameter names to arrays, in the paper's unfolded form; that of an imported cascade is empty.
    `nbytes` is the size of its numbers, or of the graphs.
    """

    folder: Path
    manifest: Manifest
    state: dict[str, NDArray[np.float32]]
    sha256: str
    manifest_sha256: str
    nbytes: int


def write_weights(
    folder: Path,
    *,
    config: CascadeConfig,
    state: dict[str, Any],
    classes: tuple[str, ...],
    preprocess: Preprocess,
    training: dict[str, Any],
    results: list[dict[str, Any]],
) -> None:
    """Write model and manifest; `state` holds torch tensors."""
    arrays = {name: np.ascontiguousarray(np.asarray(t.cpu()), dtype=np.float32) for name, t in state.items()}
    blob = save(arrays)
    files = {MODEL: blob}
    _write(folder, config, files, classes=classes, preprocess=preprocess, training=training, results=results)


def write_imported(
    folder: Path,
    *,
    cascade: ImportedCascade,
    graphs: list[bytes],
    classes: tuple[str, ...],
    training: dict[str, Any],
) -> None:
    """Write the graphs of an imported cascade, one per stage, and its manifest."""
    files = {stage.graph: graph for stage, graph in zip(cascade.stages, graphs, strict=True)}
    preprocess = cascade.preprocess
    _write(folder, cascade, files, classes=classes, preprocess=preprocess, training=training, results=[])


def _write(folder: Path, cascade: AnyCascade, files: dict[str, bytes], **fields: Any) -> None:
    own = gflops(cascade)
    manifest = Manifest(
        format=FORMAT,
        name=folder.resolve().name,
        cascade=cascade,
        files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        gflops_incremental=own,
        gflops_cumulative=cumulative(cascade),
        **fields,
    )
    described = (manifest.model_dump_json(indent=1) + "\n").encode()
    write_together({**{folder / file: content for file, content in files.items()}, folder / MANIFEST: described})


def gflops(cascade: AnyCascade) -> list[float]:
    """GFLOPs (multiply-adds / 1e9) per image of each stage alone, as served."""
    if isinstance(cascade, ImportedCascade):
        return [stage.gflops for stage in cascade.stages]
    return incremental_gflops(cascade)


def cumulative(cascade: AnyCascade, *, folded: bool = True) -> list[float]:
    """GFLOPs of an image that leaves at exit 1, 2, ... K. Nothing of an imported cascade can be folded."""
    if isinstance(cascade, ImportedCascade):
        return list(accumulate(gflops(cascade)))
    return cumulative_gflops(cascade, folded=folded)


def _read_manifest(folder: Path) -> tuple[bytes, Manifest]:
    if not folder.is_dir():
        raise WeightsError(f"there is no weights folder {folder}")
    path = folder / MANIFEST
    read = read_json(path)
    if read is None and (folder / TEACHER).exists():
        raise WeightsError(f"{folder} is a teacher, which only trains cascades: msmlp train --teacher {folder}")
    if read is None:
        raise WeightsError(f"{folder} has no {MANIFEST}: it is not a weights folder, or is incomplete")
    blob, content = read
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise WeightsError(f"{path}: format {found!r} is unknown; this version reads format {FORMAT}")
    manifest = validated(Manifest, content, path)
    _check_consistent(path, manifest)
    return blob, manifest


def _check_consistent(path: Path, manifest: Manifest) -> None:
    if len(manifest.classes) != manifest.cascade.classes:
        raise WeightsError(f"{path}: {len(manifest.classes)} class names for {manifest.cascade.classes} outputs")
    if isinstance(manifest.cascade, ImportedCascade):
        if manifest.preprocess != manifest.cascade.preprocess:
            raise WeightsError(f"{path}: preprocess is not that of the first stage")
    elif manifest.preprocess.size != manifest.cascade.image_size:
        size = manifest.cascade.image_size
        raise WeightsError(f"{path}: preprocess.size is {manifest.preprocess.size}, but the cascade reads {size}")
    costs, expected = manifest.gflops_cumulative, cumulative(manifest.cascade)
    if len(costs) != len(expected) or not np.allclose(costs, expected, rtol=1e-9):
        raise WeightsError(f"{path}: gflops_cumulative is not the cost of this cascade")


def load_weights(folder: Path) -> Weights:
    """Read a weights folder and check format, hash, names, shapes and finiteness; WeightsError if one is wrong."""
    described, manifest = _read_manifest(folder)
    manifest_sha256 = hashlib.sha256(described).hexdigest()
    if isinstance(manifest.cascade, ImportedCascade):
        names = [stage.graph for stage in manifest.cascade.stages]
        size = sum(len(read_checked(folder / name, manifest.files.get(name))) for name in names)
        sha256 = hashlib.sha256("".join(manifest.files[name] for name in names).encode()).hexdigest()
        return Weights(folder, manifest, {}, sha256, manifest_sha256, size)
    path = folder / MODEL
    blob = read_checked(path, manifest.files.get(MODEL))
    try:
        state = load(blob)
    except (SafetensorError, ValueError) as error:  # of too many dimensions for numpy
        raise WeightsError(f"{path} is not a safetensors file ({error})") from None
    except KeyError as kind:
        raise WeightsError(f"{path} has numbers of type {kind}; expected F32") from None
    _check_shapes(path, state, parameter_shapes(manifest.cascade))
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} has NaN or infinite values")
    nbytes = sum(array.nbytes for array in state.values())
    return Weights(folder, manifest, state, hashlib.sha256(blob).hexdigest(), manifest_sha256, nbytes)


def _check_shapes(path: Path, state: dict[str, NDArray[np.float32]], wanted: Shapes) -> None:
    different = sorted(set(wanted) ^ set(state))
    if different:
        raise WeightsError(f"{path} does not fit the manifest's cascade: {different[0]} is missing or unexpected")
    for name, array in state.items():
        if array.shape != wanted[name]:
            raise WeightsError(
                f"{path} does not fit the manifest's cascade: {name} is {array.shape}; expected {wanted[name]}"
            )
        if array.dtype != np.float32:
            raise WeightsError(f"{path}: {name} is {array.dtype}; expected float32")


def parameter_shapes(config: CascadeConfig) -> Shapes:
    """Name → shape of every parameter of `Cascade(config)`, to check a weights file without torch."""
    shapes: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    for k, own in enumerate(config.stages):
        root, tokens = f"stages.{k}", config.tokens(k)
        shapes[f"{root}.embed.project.weight"] = (own.width, 3, own.window, own.window)
        shapes[f"{root}.embed.project.bias"] = (own.width,)
        for b in range(own.depth):
            block, reuses = f"{root}.blocks.{b}", config.reuses(k, b)
            width_up = config.stages[k - 1].width
            if reuses and config.reuse_norm:
                norm(f"{block}.reuse.norm", width_up)
            if reuses and width_up != own.width:
                linear(f"{block}.reuse.project", width_up, own.width)
            norm(f"{block}.token_norm", own.width)
            linear(f"{block}.token_mlp.fc1", tokens * (1 + reuses), own.token_hidden)
            linear(f"{block}.token_mlp.fc2", own.token_hidden, tokens)
            norm(f"{block}.channel_norm", own.width)
            linear(f"{block}.channel_mlp.fc1", own.width, own.channel_hidden)
            linear(f"{block}.channel_mlp.fc2", own.channel_hidden, own.width)
        norm(f"{root}.norm", own.width)
        linear(f"{root}.head", own.width, config.classes)
    return shapes
