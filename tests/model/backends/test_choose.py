import sys
from pathlib import Path

import pytest

from model.backends.choose import choose_backend, pick_backend
from model.errors import OptionError, WeightsError
from model.weights import load_calibration, load_weights


@pytest.mark.parametrize(
    ("missing", "name", "picked"),
    [
        ([], "auto", "torch"),
        ([], "onnx", "onnx"),
        ([], "torch", "torch"),
        (["torch"], "auto", "onnx"),
        (["onnxruntime"], "auto", "torch"),
    ],
)
def test_auto_takes_torch_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], name: str, picked: str
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    assert pick_backend(name) == picked


@pytest.mark.parametrize(
    ("missing", "name", "said"),
    [
        ([], "jax", "'jax' is not one of auto, torch, onnx"),
        (["torch"], "torch", "torch needs torch, not installed here"),
        (["onnxruntime"], "onnx", "onnx needs onnxruntime, not installed here"),
        (["torch", "onnxruntime"], "auto", "auto needs torch or onnxruntime, not installed here"),
    ],
)
def test_a_backend_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], name: str, said: str
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=said):
        pick_backend(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda"}, "device: cuda is not for the onnx backend yet"),
        ({"dtype": "bfloat16"}, "dtype: bfloat16 is not for the onnx backend yet"),
    ],
)
def test_what_onnx_runtime_does_not_run_here_is_said_before_anything_starts(
    exported_weights: Path, options: dict[str, str], said: str
) -> None:
    weights = load_weights(exported_weights)
    with pytest.raises(OptionError, match=said):
        choose_backend(weights, load_calibration(weights), backend="onnx", **options)  # type: ignore[arg-type]


def test_so_are_graphs_that_are_missing(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    with pytest.raises(WeightsError, match="holds no ONNX graphs; run msmlp export"):
        choose_backend(weights, load_calibration(weights), backend="onnx")
