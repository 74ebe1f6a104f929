"""Which backend is chosen, by rule or by name, and what is said of one that cannot serve."""

import logging
import pickle
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import Selection, select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import DeviceError, OptionError, WeightsError
from msmlp.model.weights import load_calibration, load_weights


def selected(folder: Path, backend: str = "auto", **settings: Any) -> Selection:
    weights = load_weights(folder)
    return select_backend(weights, load_calibration(weights), BackendSettings(**settings), backend)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver says there is a GPU, and torch's build for it."""
    monkeypatch.setattr("msmlp.model.backends.select.gpu_present", lambda: True)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130" if name == "torch" else real(name))


def test_auto_takes_matching_graphs_on_a_cpu(tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "msmlp.engine")
    found = selected(tiny_weights, device="cpu")
    assert (found.name, found.device) == ("onnx", "cpu")
    assert found.build().name == "onnx"
    assert caplog.messages == ["backend auto: onnx, the float32 graphs match, on a CPU"]


def test_auto_takes_torch_where_no_graphs_match(weights_without_graphs: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "msmlp.engine")
    found = selected(weights_without_graphs, device="cpu")
    assert (found.name, found.device) == ("torch", "cpu")
    assert found.build().name == "torch"
    [line] = caplog.messages
    assert line.startswith("backend auto: torch, on a CPU; onnx cannot serve: ")
    assert f"has no float32 ONNX graphs; run msmlp export --weights {weights_without_graphs}" in line


def test_auto_takes_torch_on_a_gpu(tiny_weights: Path, gpu: None) -> None:
    found = selected(tiny_weights)
    assert (found.name, found.device, found.why) == ("torch", "cuda", "there is a GPU")
    assert selected(tiny_weights, device="cpu").name == "onnx"


def test_beside_a_gpu_torchs_build_for_cpus_is_not_preferred(
    tiny_weights: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    found = selected(tiny_weights)
    assert (found.name, found.device) == ("onnx", "cpu")


def test_auto_passes_over_what_cannot_do_what_is_asked(tiny_weights: Path) -> None:
    assert selected(tiny_weights, device="cpu", dtype="bfloat16").name == "torch"
    with pytest.raises(
        OptionError, match=r"no backend can serve; onnx: dtype: int4 is not .* torch: dtype: int4 is not"
    ):
        selected(tiny_weights, device="cpu", dtype="int4")


def test_auto_takes_what_is_installed(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = selected(tiny_weights, device="cpu")
    assert found.name == "torch"
    assert 'onnx needs onnxruntime, not installed here: pip install "msmlp[cpu,serve]"' in found.why


def test_without_graphs_and_torch_one_line_names_what_to_run(
    weights_without_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OptionError) as refused:
        selected(weights_without_graphs)
    said = str(refused.value)
    assert f"run msmlp export --weights {weights_without_graphs}" in said
    assert 'torch needs torch, not installed here: pip install "msmlp[train]"' in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("missing", "name", "said"),
    [
        ([], "jax", "'jax' is unknown; expected one of auto, torch, onnx"),
        (["torch"], "torch", "torch needs torch, not installed here"),
        (["onnxruntime"], "onnx", "onnx needs onnxruntime, not installed here"),
        (["torch", "onnxruntime"], "auto", r"onnx needs onnxruntime, .*; torch: backend: torch needs torch, not inst"),
    ],
)
def test_a_backend_that_is_not_there_is_refused(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str], name: str, said: str
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=said):
        selected(tiny_weights, name)


@pytest.mark.parametrize(
    ("backend", "settings", "said"),
    [
        ("onnx", {"dtype": "bfloat16"}, "dtype: bfloat16 is not for the onnx backend; expected one of auto, float32"),
        ("onnx", {"provider": "directml"}, "provider: 'directml' is unknown; expected one of auto, cuda, tensorrt"),
        ("onnx", {"provider": "tensorrt", "device": "cpu"}, "provider: tensorrt needs a GPU; the device is cpu"),
        ("torch", {"dtype": "int8"}, "dtype: int8 is not for the torch backend; expected one of auto, float32"),
        ("torch", {"provider": "cuda"}, "provider: cuda is for the onnx backend, not for torch"),
    ],
)
def test_what_a_backend_does_not_run_is_said_before_anything_starts(
    tiny_weights: Path, backend: str, settings: dict[str, str], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        selected(tiny_weights, backend, **settings)


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("auto", 'device: this build of ONNX Runtime has no CUDAExecutionProvider: pip install "msmlp.gpu,serve."'),
        ("tensorrt", "provider: this build of ONNX Runtime has no TensorrtExecutionProvider"),
    ],
)
def test_a_gpu_needs_its_own_build_of_onnx_runtime(
    tiny_weights: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, provider: str, said: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(OptionError, match=said):
        selected(tiny_weights, "onnx", device="cuda", provider=provider)


def test_graphs_that_are_missing_are_refused(weights_without_graphs: Path) -> None:
    with pytest.raises(WeightsError, match="has no float32 ONNX graphs; run msmlp export"):
        selected(weights_without_graphs, "onnx")


def test_a_gpu_that_is_not_there_is_refused_at_once(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(OptionError, match="device: cuda is not available here"):
        selected(tiny_weights, device="cuda")


@pytest.mark.parametrize(("backend", "module"), [("torch", "torch.devices"), ("onnx", "onnx.cpu")])
def test_capacity_comes_from_free_memory_unless_it_is_set(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str
) -> None:
    bytes_a_slot = load_weights(tiny_weights).manifest.cascade.shape.slot_bytes(4)
    monkeypatch.setattr(f"msmlp.model.backends.{module}.free_host_memory", lambda: 4 * 501 * bytes_a_slot)

    def built(**settings: int) -> StageBackend:
        return selected(tiny_weights, backend, device="cpu", **settings).build()

    assert built().capacity == 500
    assert built(reserve=32).capacity == 500
    assert built(capacity=700, reserve=32).capacity == 732
    with pytest.raises(DeviceError, match="501 slots need"):
        built(max_batch=469, reserve=32)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_no_batch_is_larger_than_the_capacity(tiny_weights: Path, backend: str) -> None:
    assert selected(tiny_weights, backend, device="cpu", capacity=3, reserve=32).build().buckets == (1, 2, 3)


@pytest.mark.parametrize("backend", ["torch", "onnx", "auto"])
def test_what_builds_a_backend_can_go_to_another_process(tiny_weights: Path, backend: str) -> None:
    found = selected(tiny_weights, backend, device="cpu", capacity=4)
    assert pickle.loads(pickle.dumps(found.build))().capacity == 4


def test_a_gpu_is_not_served_from_a_cpu_where_torchs_build_has_no_cuda(
    tiny_weights: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(OptionError, match="this build of torch has no CUDA: pip install"):
        selected(tiny_weights, "torch", device="cuda")
    with pytest.raises(
        OptionError, match=r"no backend can serve; onnx: .* no CUDAExecutionProvider.*; torch: .* no CUDA"
    ):
        selected(tiny_weights, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.filterwarnings("ignore:Specified provider")  # ONNX Runtime's own, before it takes the CPU
def test_nor_where_the_library_cannot_use_the_gpu(
    tiny_weights: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    found = selected(tiny_weights, backend, device="cuda", capacity=64)
    assert found.device == "cuda"
    with pytest.raises(
        (OptionError, DeviceError), match=r"cuda is not available here|could not load its CUDAExecution"
    ):
        found.build()
