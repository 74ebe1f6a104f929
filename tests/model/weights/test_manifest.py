"""Weights folders: what comes back, and that everything else is refused in one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from msmlp.model.errors import WeightsError
from msmlp.model.nn.cascade import Cascade
from msmlp.model.nn.config import PRESETS, CascadeConfig, StageConfig, cumulative_gflops, incremental_gflops, override
from msmlp.model.preprocess import Preprocess
from msmlp.model.weights import load_weights, write_weights
from msmlp.model.weights.manifest import parameter_shapes

CONFIG = CascadeConfig(
    image_size=8,
    classes=2,
    stages=(
        StageConfig(patch=8, width=4, depth=1, token_hidden=3, channel_hidden=5),
        StageConfig(patch=4, width=6, depth=1, token_hidden=3, channel_hidden=5),
    ),
)


@pytest.fixture
def cascade(patterned: Callable[..., Cascade]) -> Cascade:
    return patterned(CONFIG).float()


@pytest.fixture
def folder(cascade: Cascade, tmp_path: Path) -> Path:
    root = tmp_path / "two-stages"
    root.mkdir()
    write_weights(
        root,
        config=CONFIG,
        state=cascade.state_dict(),
        classes=("cat", "dog"),
        preprocess=Preprocess(size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        training={"recipe": "none", "validation": {"seed": 3, "digest": "abc"}},
        results=[{"exit": 1, "split": "val", "images": 5, "accuracy": 0.5}],
    )
    return root


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Other numbers, with a manifest that vouches for them."""
    path = folder / "model.safetensors"
    state = dict(load(path.read_bytes()))
    change(state)
    blob = save(state)
    path.write_bytes(blob)
    change_manifest(folder, lambda m: m["files"].update({"model.safetensors": hashlib.sha256(blob).hexdigest()}))


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        load_weights(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_round_trip(folder: Path, cascade: Cascade) -> None:
    weights = load_weights(folder)
    expected = {name: value.numpy() for name, value in cascade.state_dict().items()}
    assert weights.state.keys() == expected.keys()
    assert all(np.array_equal(weights.state[name], expected[name]) for name in expected)
    manifest = weights.manifest
    assert (manifest.format, manifest.name, manifest.cascade, manifest.classes) == (
        1,
        "two-stages",
        CONFIG,
        ("cat", "dog"),
    )
    assert manifest.preprocess == Preprocess(size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert manifest.training["validation"]["seed"] == 3
    assert manifest.results[0]["accuracy"] == 0.5
    assert manifest.gflops_incremental == incremental_gflops(CONFIG)
    assert manifest.gflops_cumulative == cumulative_gflops(CONFIG)


def test_the_manifest_is_the_contracts(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    names = {"format", "name", "cascade", "classes", "preprocess", "files", "training", "results"}
    assert names | {"gflops_incremental", "gflops_cumulative"} <= content.keys()
    assert {"size", "mean", "std", "resize"} <= content["preprocess"].keys()
    blob = (folder / "model.safetensors").read_bytes()
    assert content["files"] == {"model.safetensors": hashlib.sha256(blob).hexdigest()}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_a_key_of_a_later_version_is_no_obstacle(folder: Path) -> None:
    change_manifest(folder, lambda m: m.update(mood="cheerful"))
    assert load_weights(folder).manifest.name == "two-stages"


def test_a_renamed_folder_is_still_the_same_weights(folder: Path) -> None:
    before = load_weights(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    after = load_weights(moved)
    assert (after.manifest, after.sha256) == (before.manifest, before.sha256)


def test_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith("there is no weights folder")


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"<html></html>", b"\xff\xfe\x00", b"\x80\x04\x95"])
def test_a_manifest_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert "is not JSON" in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}"])
def test_a_manifest_that_is_other_json(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert "format None is unknown" in refusal(folder)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_an_unknown_format(folder: Path, number: object) -> None:
    change_manifest(folder, lambda m: m.update(format=number))
    assert f"format {number!r} is unknown" in refusal(folder)


@pytest.mark.parametrize("key", ["name", "cascade", "classes", "preprocess", "files", "gflops_cumulative"])
def test_a_manifest_that_lacks_something_says_what(folder: Path, key: str) -> None:
    change_manifest(folder, lambda m: m.pop(key))
    assert key in refusal(folder)


def test_a_cascade_that_cannot_be_built(folder: Path) -> None:
    change_manifest(folder, lambda m: m["cascade"]["stages"][1].update(patch=3))
    assert "cascade: " in refusal(folder)


def test_class_names_that_do_not_fit(folder: Path) -> None:
    change_manifest(folder, lambda m: m["classes"].append("fox"))
    assert "3 class names for 2 outputs" in refusal(folder)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_anywhere_is_damage(folder: Path, place: int) -> None:
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[place] ^= 1
    path.write_bytes(bytes(blob))
    assert "damaged" in refusal(folder)


def test_half_a_file_is_damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    assert "damaged" in refusal(folder)


def test_a_file_the_manifest_does_not_vouch_for(folder: Path) -> None:
    change_manifest(folder, lambda m: m["files"].clear())
    assert "does not list it" in refusal(folder)


def test_a_pickle_in_place_of_the_weights(folder: Path) -> None:
    blob = b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03."
    (folder / "model.safetensors").write_bytes(blob)
    change_manifest(folder, lambda m: m["files"].update({"model.safetensors": hashlib.sha256(blob).hexdigest()}))
    assert "not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(folder: Path, value: float) -> None:
    def poison(state: dict[str, Any]) -> None:
        bias = state["stages.1.head.bias"].copy()
        bias[0] = value
        state["stages.1.head.bias"] = bias

    replace_state(folder, poison)
    message = refusal(folder)
    assert "stages.1.head.bias" in message
    assert "NaN or infinite" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("stages.0.head.bias"),
        lambda state: state.update(extra=np.zeros(1, dtype=np.float32)),
        lambda state: state.update({"stages.0.head.bias": np.zeros(3, dtype=np.float32)}),
    ],
    ids=["one missing", "one too many", "another shape"],
)
def test_weights_of_another_network_are_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    replace_state(folder, change)
    assert "does not fit the manifest's cascade" in refusal(folder)


@pytest.mark.parametrize("costs", [[], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0]])
def test_costs_that_are_not_the_cascades(folder: Path, costs: list[float]) -> None:
    change_manifest(folder, lambda m: m.update(gflops_cumulative=costs))
    assert "gflops_cumulative" in refusal(folder)


def test_writing_again_replaces_whole_files(folder: Path, cascade: Cascade, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    state = {name: value + 1 for name, value in cascade.state_dict().items()}
    write_weights(
        folder,
        config=CONFIG,
        state=state,
        classes=("cat", "dog"),
        preprocess=Preprocess(size=8),
        training={},
        results=[],
    )
    assert load_weights(folder).sha256 != load_weights(other).sha256
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]


UNEQUAL = CascadeConfig(
    image_size=16,
    classes=3,
    stages=(
        StageConfig(patch=8, width=6, depth=1, token_hidden=4, channel_hidden=8),
        StageConfig(patch=4, width=8, depth=2, token_hidden=5, channel_hidden=9, overlap=1),
    ),
)


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["tiny"],
        PRESETS["xs"],
        PRESETS["m"],
        UNEQUAL,
        override(UNEQUAL, {"reuse": "first"}),
        override(UNEQUAL, {"reuse": "none"}),
        override(UNEQUAL, {"reuse_norm": False}),
    ],
)
def test_they_are_what_the_network_has(config: CascadeConfig) -> None:
    state = Cascade(config).state_dict()
    assert parameter_shapes(config) == {name: tuple(value.shape) for name, value in state.items()}
