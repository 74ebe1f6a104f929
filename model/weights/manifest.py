"""`manifest.json` + `model.safetensors`: what training leaves, immutable from then on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from msmlp.model.errors import WeightsError
from msmlp.model.nn.config import CascadeConfig, cumulative_gflops, incremental_gflops
from msmlp.model.preprocess import Preprocess
from msmlp.model.weights.files import read_checked, read_json, validated, write_atomically

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TEACHER = "teacher.json"
"""A teacher's folder has this instead (model/training)."""
FORMAT = 1

Shapes = dict[str, tuple[int, ...]]


class Manifest(BaseModel):
    # Unknown keys are allowed: a newer minor version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    name: str = Field(min_length=1)
    cascade: CascadeConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    files: dict[str, str]
    training: dict[str, Any]
    results: list[dict[str, Any]]
    gflops_incremental: list[float]
    gflops_cumulative: list[float]


@dataclass(frozen=True)
class Weights:
    """A checked weights folder in memory; `state` maps parameter names to arrays, in the paper's unfolded form."""

    folder: Path
    manifest: Manifest
    state: dict[str, NDArray[np.float32]]
    sha256: str
    manifest_sha256: str


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
    write_atomically(folder / MODEL, blob)
    manifest = Manifest(
        format=FORMAT,
        name=folder.resolve().name,
        cascade=config,
        classes=classes,
        preprocess=preprocess,
        files={MODEL: hashlib.sha256(blob).hexdigest()},
        training=training,
        results=results,
        gflops_incremental=incremental_gflops(config),
        gflops_cumulative=cumulative_gflops(config),
    )
    write_atomically(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())


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
    if manifest.preprocess.size != manifest.cascade.image_size:
        size = manifest.cascade.image_size
        raise WeightsError(f"{path}: preprocess.size is {manifest.preprocess.size}, but the cascade reads {size}")
    costs, expected = manifest.gflops_cumulative, cumulative_gflops(manifest.cascade)
    if len(costs) != len(expected) or not np.allclose(costs, expected, rtol=1e-9):
        raise WeightsError(f"{path}: gflops_cumulative is not the cost of this cascade")


def load_weights(folder: Path) -> Weights:
    """Read a weights folder and check format, hash, names, shapes and finiteness; WeightsError if one is wrong."""
    described, manifest = _read_manifest(folder)
    path = folder / MODEL
    blob = read_checked(path, manifest.files.get(MODEL))
    try:
        state = load(blob)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file ({error})") from None
    except KeyError as kind:
        raise WeightsError(f"{path} has numbers of type {kind}, must be F32") from None
    _check_shapes(path, state, parameter_shapes(manifest.cascade))
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} has NaN or infinite values")
    sha256, manifest_sha256 = (hashlib.sha256(content).hexdigest() for content in (blob, described))
    return Weights(folder, manifest, state, sha256, manifest_sha256)


def _check_shapes(path: Path, state: dict[str, NDArray[np.float32]], wanted: Shapes) -> None:
    different = sorted(set(wanted) ^ set(state))
    if different:
        raise WeightsError(f"{path} does not fit the manifest's cascade: {different[0]} is missing or unexpected")
    for name, array in state.items():
        if array.shape != wanted[name]:
            raise WeightsError(
                f"{path} does not fit the manifest's cascade: {name} is {array.shape}, must be {wanted[name]}"
            )
        if array.dtype != np.float32:
            raise WeightsError(f"{path}: {name} is {array.dtype}, must be float32")


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
