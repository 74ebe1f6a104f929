import pickle
import sys
from pathlib import Path

import pytest

from model.backends.choose import choose_backend, pick_backend
from model.backends.memory import slot_bytes
from model.backends.protocol import StageBackend
from model.errors import DeviceError, OptionError, WeightsError
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


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_capacity_comes_from_free_memory_unless_it_is_set(
    exported_weights: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    weights = load_weights(exported_weights)
    bytes_a_slot = slot_bytes(weights.manifest.cascade, 4)
    for module in ("choose", "devices"):
        monkeypatch.setattr(f"model.backends.{module}.free_host_memory", lambda: 4 * 501 * bytes_a_slot)
    calibration = load_calibration(weights)

    def built(**options: int) -> StageBackend:
        return choose_backend(weights, calibration, backend=backend, device="cpu", **options)()  # type: ignore[arg-type]

    assert built().capacity == 500
    assert built(reserve=32).capacity == 500
    assert built(capacity=700, reserve=32).capacity == 732
    with pytest.raises(DeviceError, match="501 slots need"):
        built(max_batch=469, reserve=32)


def test_no_batch_is_larger_than_the_capacity(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    build = choose_backend(weights, load_calibration(weights), device="cpu", capacity=3, reserve=32, max_batch=64)
    assert build().buckets == (1, 2, 3)


def test_what_builds_a_backend_can_go_to_another_process(exported_weights: Path) -> None:
    weights = load_weights(exported_weights)
    for backend in ("torch", "onnx"):
        build = choose_backend(weights, load_calibration(weights), backend=backend, device="cpu", capacity=4)
        assert pickle.loads(pickle.dumps(build))().capacity == 4


def test_a_gpu_that_is_not_there_is_refused_at_once(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    weights = load_weights(tiny_weights)
    with pytest.raises(OptionError, match="device: cuda is not available here"):
        choose_backend(weights, load_calibration(weights), device="cuda")
