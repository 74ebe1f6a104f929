import pickle
import sys
from pathlib import Path

import pytest

from msmlp.model.backends.choose import candidates, choose_backend, installed_backends
from msmlp.model.backends.memory import slot_bytes
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import DeviceError, OptionError, WeightsError
from msmlp.model.weights import load_calibration, load_weights


@pytest.mark.parametrize(
    ("missing", "name", "picked"),
    [
        ([], "auto", ["torch", "onnx"]),
        ([], "onnx", ["onnx"]),
        ([], "torch", ["torch"]),
        (["torch"], "auto", ["onnx"]),
        (["onnxruntime"], "auto", ["torch"]),
    ],
)
def test_auto_is_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], name: str, picked: list[str]
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    assert installed_backends(name) == picked


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
        installed_backends(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"backend": "onnx", "dtype": "bfloat16"},
            "dtype: bfloat16 is not for the onnx backend; allowed: auto, float32, f",
        ),
        ({"backend": "onnx", "provider": "directml"}, "provider: 'directml' is not one of auto, cuda, tensorrt"),
        (
            {"backend": "onnx", "provider": "tensorrt", "device": "cpu"},
            "provider: tensorrt needs a GPU; the device is cpu",
        ),
        (
            {"backend": "torch", "dtype": "int8"},
            "dtype: int8 is not for the torch backend; allowed: auto, float32, bfloat16",
        ),
        ({"backend": "torch", "provider": "cuda"}, "provider: cuda is for the onnx backend, not for torch"),
        ({"backend": "auto", "dtype": "int4"}, "torch: dtype: int4 is not for .* onnx: dtype: int4 is not for"),
    ],
)
def test_what_a_backend_does_not_run_is_said_before_anything_starts(
    exported_weights: Path, options: dict[str, str], said: str
) -> None:
    weights = load_weights(exported_weights)
    with pytest.raises(OptionError, match=said):
        choose_backend(weights, load_calibration(weights), **options)


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("auto", "device: this build of ONNX Runtime has no CUDAExecutionProvider: scripts/install.sh gpu serve"),
        ("tensorrt", "provider: this build of ONNX Runtime has no TensorrtExecutionProvider"),
    ],
)
def test_a_gpu_needs_its_own_build_of_onnx_runtime(
    exported_weights: Path, monkeypatch: pytest.MonkeyPatch, provider: str, said: str
) -> None:
    monkeypatch.setattr("msmlp.model.backends.choose.gpu_present", lambda: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    weights = load_weights(exported_weights)
    with pytest.raises(OptionError, match=said):
        choose_backend(weights, load_calibration(weights), backend="onnx", device="cuda", provider=provider)


def test_auto_tries_what_can_serve(exported_weights: Path, tiny_weights: Path) -> None:
    weights, plain = load_weights(exported_weights), load_weights(tiny_weights)
    calibration = load_calibration(weights)
    assert list(candidates(weights, calibration).builds) == ["torch", "onnx"]
    assert list(candidates(weights, calibration, dtype="bfloat16").builds) == ["torch"]
    without_graphs = candidates(plain, load_calibration(plain))
    assert list(without_graphs.builds) == ["torch"]
    assert "holds no float32 ONNX graphs" in without_graphs.passed_over["onnx"]
    assert choose_backend(weights, calibration, capacity=8, max_batch=8, device="cpu")().name in ("torch", "onnx")


def test_so_are_graphs_that_are_missing(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    with pytest.raises(WeightsError, match="holds no float32 ONNX graphs; run msmlp export"):
        choose_backend(weights, load_calibration(weights), backend="onnx")


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_capacity_comes_from_free_memory_unless_it_is_set(
    exported_weights: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    weights = load_weights(exported_weights)
    bytes_a_slot = slot_bytes(weights.manifest.cascade, 4)
    for module in ("build", "devices"):
        monkeypatch.setattr(f"msmlp.model.backends.{module}.free_host_memory", lambda: 4 * 501 * bytes_a_slot)
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
    for backend in ("torch", "onnx", "auto"):
        build = choose_backend(weights, load_calibration(weights), backend=backend, device="cpu", capacity=4)
        assert pickle.loads(pickle.dumps(build))().capacity == 4


def test_a_gpu_that_is_not_there_is_refused_at_once(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    weights = load_weights(tiny_weights)
    with pytest.raises(OptionError, match="device: cuda is not available here"):
        choose_backend(weights, load_calibration(weights), device="cuda")
