"""What every stage backend keeps to (model/backends/protocol.py), on every device there is."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from msmlp.model.backends.onnx.base import CPU
from msmlp.model.backends.onnx.device import OnnxDeviceBackend
from msmlp.model.backends.protocol import StageBackend, StageOutput, bucket_of, buckets_up_to, warm_up
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.backends.torch.devices import Driver, Step
from msmlp.model.calibration.calibrate import calibrate
from msmlp.model.errors import DeviceError
from msmlp.model.exits.policies import ExitPolicy, exit_policy, max_probability
from msmlp.model.exits.rule import exit_of
from msmlp.model.export.folder import export
from msmlp.model.nn.cascade import Cascade
from msmlp.model.offline import Outputs
from msmlp.model.weights import Calibration, Weights, load_calibration, load_graphs, load_weights
from tests.fakes import FakeBackend
from tests.imported import cut_network, floats, imported, network, run, scaled

Pixels = NDArray[np.uint8]
CAPACITY, MAX_BATCH = 40, 24


@dataclass(frozen=True)
class Case:
    """A backend, what its stages must say of images [N, K, classes], and how near: to that, and across buckets."""

    backend: StageBackend
    expected: Callable[[Pixels], NDArray[np.float64]]
    policy: ExitPolicy | None
    to_expected: float
    across_buckets: float


class RepeatingDriver(Driver):
    """A CPU that does what a GPU does: two batches in flight, and three runs of a step when it is first wanted, two
    before its capture and the replay."""

    in_flight = 2

    def replaying(self, step: Step) -> Step:
        seen: set[tuple[int, int]] = set()

        def run(stage: int, bucket: int) -> None:
            for _ in range(1 if (stage, bucket) in seen else 3):
                step(stage, bucket)
            seen.add((stage, bucket))

        return run


def whole_cascade(weights: Weights, temperatures: tuple[float, ...], pixels: Pixels) -> NDArray[np.float64]:
    """The cascade as it was trained: not folded, all stages at once, double precision; then the temperatures."""
    cascade = Cascade(weights.manifest.cascade).double().eval()
    cascade.load_state_dict({name: torch.from_numpy(array) for name, array in weights.state.items()})
    preprocess = weights.manifest.preprocess
    images = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    with torch.no_grad():
        logits = cascade(torch.from_numpy(images).permute(0, 3, 1, 2))
    exits = zip(logits, temperatures, strict=True)
    return torch.stack([torch.softmax(each / temperature, dim=1) for each, temperature in exits], dim=1).numpy()


def fake_says(backend: FakeBackend, pixels: Pixels) -> NDArray[np.float64]:
    scores = pixels[:, 0, : backend.stages, 0] / 255
    probabilities = np.repeat((1 - scores)[..., None] / (backend.classes - 1), backend.classes, axis=2)
    np.put_along_axis(
        probabilities, pixels[:, 1, :1, 1, None].repeat(backend.stages, 1).astype(int), scores[..., None], 2
    )
    return probabilities


TO_EXPECTED = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.1, "int8": 0.1}
"""ε between a backend and the cascade in double precision."""

ACROSS_BUCKETS = {
    ("cpu", "float32"): 1e-5,
    ("cpu", "float16"): 1e-2,
    ("cpu", "bfloat16"): 1e-3,
    # Where rounding in float32 falls on the other side of a step of 8 bits.
    ("cpu", "int8"): 1e-2,
    ("cuda", "float32"): 1e-5,
    # Chosen without a measurement: a GPU library may sum in another order for another batch size, then rounds to bf16.
    ("cuda", "bfloat16"): 0.1,
    ("cuda", "float16"): 2e-2,
}
"""ε between the buckets of one backend; docs/backends.md says what was measured."""


@pytest.fixture(scope="module")
def scored(tiny_weights: Path, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`scored("margin")`: the exported weights with another exit policy, calibrated and so exported again."""

    @functools.cache
    def make(policy: str) -> Path:
        folder = Path(shutil.copytree(tiny_weights, tmp_path_factory.mktemp("weights") / policy))
        calibrate(folder, digits_folder, "cpu", exit_policy=policy)
        return folder

    return make


@pytest.fixture(scope="module")
def lowered(tiny_weights: Path, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`lowered("int8")`: the exported weights with graphs in that format too."""

    @functools.cache
    def make(dtype: str) -> Path:
        folder = Path(shutil.copytree(tiny_weights, tmp_path_factory.mktemp("weights") / dtype))
        export(folder, dtype, digits_folder if dtype == "int8" else None)
        return folder

    return make


IMPORTED = {
    "sizes": lambda digits: (network(digits, 16, 4), network(digits, 32, 24)),
    "cut": cut_network,
    "plain": lambda digits: (
        network(digits, 16, 4, nhwc_uint8=True),
        network(digits, 16, 24, nhwc_uint8=True, softmax=True),
    ),
}


@pytest.fixture(scope="module")
def brought(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`brought("cut", "margin")`: such graphs, imported with this exit policy."""

    @functools.cache
    def make(kind: str, policy: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "weights"
        return imported(folder, digits, *IMPORTED[kind](digits), exit_policy=policy)

    return make


def imported_case(brought: Callable[[str, str], Path], name: str, kind: str, policy: str = "max-probability") -> Case:
    weights = load_weights(brought(kind, policy))
    calibration = load_calibration(weights)
    device = "cuda" if name == "cuda" else "cpu"
    settings = BackendSettings(device, "float32", capacity=CAPACITY, max_batch=MAX_BATCH)
    backend: StageBackend
    if name == "device":
        graphs = load_graphs(weights, calibration)
        backend = OnnxDeviceBackend(weights.manifest.cascade.shape, graphs, settings, CPU)
    else:
        backend = select_backend(weights, calibration, settings).build()
    epsilons = TO_EXPECTED["float32"], ACROSS_BUCKETS[device, "float32"]
    return Case(backend, lambda pixels: as_given(weights, calibration, pixels), exit_policy(policy), *epsilons)


def as_given(weights: Weights, calibration: Calibration, pixels: Pixels) -> NDArray[np.float64]:
    """The graphs as they were given, each on floats made of its pixels; then the temperatures."""
    found, sizes, features = [], weights.manifest.cascade.shape.views, None
    starts = np.cumsum([0, *(3 * size**2 for size in sizes)])
    for k, temperature in enumerate(calibration.file.temperatures):
        graph = onnx.load(weights.folder / f"source-{k + 1}.onnx")
        inputs = {}
        for each in graph.graph.input:
            if each.name == "upstream":
                inputs["upstream"] = features
                continue
            view = min(k, len(sizes) - 1)
            row = pixels.reshape(len(pixels), -1)[:, starts[view] : starts[view + 1]]
            images = row.reshape(-1, sizes[view], sizes[view], 3)
            inputs[each.name] = images if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else floats(images)
        names = [each.name for each in graph.graph.output]
        outputs = {name: run(graph, name, inputs) for name in names}
        features = outputs.get("features")
        logits = np.log(outputs["answers"]) if "answers" in outputs else outputs["logits"]
        found.append(softmax(logits.astype(np.float64) / temperature, axis=1))
    return np.stack(found, axis=1)


@pytest.fixture(
    params=[
        "torch-cpu-float32",
        "torch-cpu-bfloat16",
        "repeated-cpu-float32",
        "onnx-cpu-float32",
        "onnx-cpu-float16",
        "onnx-cpu-int8",
        # The backend of a GPU, on a CPU: all of it but CUDA.
        "device-cpu-float32",
        "device-cpu-float16",
        pytest.param("onnx-cuda-float32", marks=pytest.mark.gpu),
        pytest.param("onnx-cuda-float16", marks=pytest.mark.gpu),
        pytest.param("torch-cuda-float32", marks=pytest.mark.gpu),
        pytest.param("torch-cuda-bfloat16", marks=pytest.mark.gpu),
        "repeated-cpu-float32",
        *(
            f"{backend}-cpu-float32-{policy}"
            for policy in ("margin", "entropy")
            for backend in ("torch", "onnx", "device")
        ),
        # Cascades that were imported: with views of two sizes, cut in two, and of graphs that take pixels as they are.
        *(f"{backend}-{kind}" for kind in IMPORTED for backend in ("onnx", "device")),
        "onnx-cut-margin",
        "device-cut-entropy",
        pytest.param("cuda-sizes", marks=pytest.mark.gpu),
        pytest.param("cuda-cut", marks=pytest.mark.gpu),
        "fake",
    ]
)
def case(
    request: pytest.FixtureRequest,
    tiny_weights: Path,
    lowered: Callable[[str], Path],
    scored: Callable[[str], Path],
    brought: Callable[[str, str], Path],
) -> Case:
    if any(f"-{kind}" in request.param for kind in IMPORTED):
        return imported_case(brought, *request.param.split("-"))
    if request.param == "fake":
        fake = FakeBackend(capacity=CAPACITY, max_batch=MAX_BATCH, every_bucket=True)
        return Case(fake, lambda pixels: fake_says(fake, pixels), None, 1e-6, 1e-6)
    name, device, dtype, *policy = request.param.split("-")
    folder = lowered(dtype) if dtype in ("float16", "int8") else tiny_weights
    weights = load_weights(scored(policy[0]) if policy else folder)
    calibration = load_calibration(weights)
    temperatures = calibration.file.temperatures
    backend: StageBackend
    settings = BackendSettings(device, dtype, capacity=CAPACITY, max_batch=MAX_BATCH)
    if name == "repeated":
        exits = Exits(temperatures, calibration.file.exit_policy)
        backend = StagedBackend(weights, replace(settings, exits=exits), RepeatingDriver())
    elif name == "device":
        graphs = load_graphs(weights, calibration, dtype)
        backend = OnnxDeviceBackend(weights.manifest.cascade.shape, graphs, settings, CPU)
    else:
        backend = select_backend(weights, calibration, settings, name).build()
    return Case(
        backend,
        lambda pixels: whole_cascade(weights, temperatures, pixels),
        exit_policy(calibration.file.exit_policy),
        TO_EXPECTED[dtype],
        ACROSS_BUCKETS[device, dtype],
    )


@pytest.fixture
def backend(case: Case) -> StageBackend:
    return case.backend


@pytest.fixture
def pixels(backend: StageBackend, digits: Any) -> Pixels:
    """As many images as there are slots, no two alike."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CAPACITY, *backend.image_shape), dtype=np.uint8)
    if isinstance(backend, FakeBackend):
        images[..., 1] = rng.integers(0, backend.classes, (CAPACITY, 1, 1))
    else:
        # Of several views the last, which is a row's end.
        side = backend.image_shape[0] if len(backend.image_shape) == 3 else 32
        rows = scaled(digits.test[: CAPACITY // 2], side)
        images.reshape(CAPACITY, -1)[: CAPACITY // 2, -rows[0].size :] = rows.reshape(len(rows), -1)
    return images


def through_all_stages(backend: StageBackend, pixels: Pixels) -> list[StageOutput]:
    """Images in one batch, stage after stage, their slots given back."""
    slots = backend.admit(pixels)
    outputs = [backend.collect(backend.launch(stage, slots)) for stage in range(backend.stages)]
    backend.release(slots)
    return outputs


def in_batches_of(backend: StageBackend, pixels: Pixels, images: int) -> Outputs:
    """Every exit of every image, run in batches of `images`."""
    parts = [through_all_stages(backend, pixels[start : start + images]) for start in range(0, len(pixels), images)]
    stages = [list(outputs) for outputs in zip(*parts, strict=True)]
    return Outputs(
        np.stack([np.concatenate([part.score for part in parts]) for parts in stages], axis=1),
        np.stack([np.concatenate([part.probabilities for part in parts]) for parts in stages], axis=1),
    )


def bits(output: StageOutput, row: int) -> bytes:
    return output.score[row].tobytes() + output.probabilities[row].tobytes()


def in_company(
    backend: StageBackend, pixels: Pixels, image: int, bucket: int, position: int, count: int
) -> list[bytes]:
    """What every stage says of one image at `position` among `count` images of a bucket."""
    others = [i for i in range(len(pixels)) if i != image]
    order = np.random.default_rng((bucket, position, count)).permutation(others)[: count - 1].tolist()
    order.insert(position, image)
    assert bucket_of(backend.buckets, len(order)) == bucket
    return [bits(output, position) for output in through_all_stages(backend, pixels[order])]


def test_slots_are_distinct_and_all_of_the_capacity(backend: StageBackend, pixels: Pixels) -> None:
    slots = np.concatenate([backend.admit(pixels[start : start + 10]) for start in range(0, CAPACITY, 10)])
    assert sorted(slots.tolist()) == list(range(backend.capacity))


def test_more_images_than_free_slots_are_refused_and_cost_nothing(backend: StageBackend, pixels: Pixels) -> None:
    taken = backend.admit(pixels[:30])
    with pytest.raises(DeviceError):
        backend.admit(pixels[:11])
    rest = backend.admit(pixels[30:])
    with pytest.raises(DeviceError):
        backend.admit(pixels[:1])
    backend.release(taken)
    backend.release(rest)
    assert len(backend.admit(pixels)) == CAPACITY


def test_pixels_of_another_shape_or_kind_are_refused_and_cost_nothing(backend: StageBackend, pixels: Pixels) -> None:
    wrong = (
        pixels[:4, :-1],
        pixels[:4, ..., :1],
        pixels[0],
        pixels[:4].astype(np.float32),
        pixels[:4].astype(np.int8),
    )
    for each in wrong:
        with pytest.raises(DeviceError, match=f"expected uint8 .n, {', '.join(map(str, backend.image_shape))}."):
            backend.admit(each)  # type: ignore[arg-type]
    assert len(backend.admit(pixels)) == CAPACITY


def test_a_slot_cannot_be_released_twice(backend: StageBackend, pixels: Pixels) -> None:
    slots = backend.admit(pixels[:4])
    backend.release(slots[:2])
    for wrong in (slots[:1], slots, slots[[2, 2]]):
        with pytest.raises(DeviceError):
            backend.release(wrong)
    # The refused releases changed nothing: two slots are still in use.
    with pytest.raises(DeviceError):
        backend.admit(pixels[: CAPACITY - 1])
    backend.release(slots[2:])
    assert len(backend.admit(pixels)) == CAPACITY


def test_nothing_can_be_released_that_was_never_admitted(backend: StageBackend, pixels: Pixels) -> None:
    slots = backend.admit(pixels[:1])
    with pytest.raises(DeviceError):
        backend.release((slots + 1) % CAPACITY)


def test_releasing_no_slot_is_fine_and_frees_none(backend: StageBackend, pixels: Pixels) -> None:
    slots = backend.admit(pixels[:2])
    backend.release(np.zeros(0, dtype=np.int64))
    backend.release(slots)
    with pytest.raises(DeviceError):
        backend.release(slots)


def test_outputs_have_the_shapes_and_kinds_promised(backend: StageBackend, pixels: Pixels) -> None:
    for images in (1, 5, MAX_BATCH):
        for output in through_all_stages(backend, pixels[:images]):
            assert output.score.shape == (images,)
            assert output.probabilities.shape == (images, backend.classes)
            assert output.score.dtype == output.probabilities.dtype == np.float32
            assert ((output.score >= 0) & (output.score <= 1)).all()
            assert np.allclose(output.probabilities.sum(axis=1), 1, atol=1e-5)


def test_stage_by_stage_is_the_cascade_run_whole(case: Case, pixels: Pixels) -> None:
    """Folded, stage by stage, from features kept in slots: still the network that was trained."""
    backend, images = case.backend, pixels[:MAX_BATCH]
    expected = case.expected(images)
    for stage, output in enumerate(through_all_stages(backend, images)):
        assert np.abs(output.probabilities - expected[:, stage]).max() <= case.to_expected
        if case.policy is not None:
            # The largest probability is itself, to the bit.
            rounding = 0 if case.policy is max_probability else 1e-6
            assert np.abs(output.score - case.policy(output.probabilities)).max() <= rounding


def test_outputs_follow_the_order_of_the_slots(backend: StageBackend, pixels: Pixels) -> None:
    slots = backend.admit(pixels[:6])
    forward = backend.collect(backend.launch(0, slots))
    backward = backend.collect(backend.launch(0, slots[::-1].copy()))
    assert [bits(forward, row) for row in range(6)] == [bits(backward, 5 - row) for row in range(6)]
    assert len({bits(forward, row) for row in range(6)}) == 6


def test_within_a_bucket_company_changes_no_bit(backend: StageBackend, pixels: Pixels) -> None:
    """Whatever the other images, the position of the image, and the share of padding."""
    for smaller, bucket in zip((0, *backend.buckets), backend.buckets, strict=False):
        places = {(0, bucket), (bucket // 2, bucket), (bucket - 1, bucket), (0, smaller + 1), (smaller, smaller + 1)}
        seen = {tuple(in_company(backend, pixels, 3, bucket, position, count)) for position, count in places}
        assert len(seen) == 1, f"bucket {bucket}"


def test_across_buckets_outputs_agree_within_epsilon(case: Case, pixels: Pixels) -> None:
    """And with them exit and label, but for images so near a decision that rounding makes it; how many is printed."""
    images, epsilon = pixels[:MAX_BATCH], case.across_buckets
    alone = in_batches_of(case.backend, images, 1)
    # The hardest thresholds: at every exit, the score of one of the images.
    thresholds = np.sort(alone.scores[:, :-1], axis=0)[len(images) // 2].astype(np.float64)
    ranked = np.sort(alone.probabilities, axis=2)
    undecided = (np.abs(alone.scores[:, :-1] - thresholds) <= epsilon).any(axis=1)
    undecided |= (ranked[:, :, -1] - ranked[:, :, -2] <= epsilon).any(axis=1)
    print(f"{undecided.sum()} of {len(images)} images lie within {epsilon} of a decision")  # noqa: T201
    assert undecided.sum() < len(images) / 2 or epsilon > 1e-3 or isinstance(case.backend, FakeBackend)
    for bucket in case.backend.buckets:
        together = in_batches_of(case.backend, images, bucket)
        assert np.abs(together.probabilities - alone.probabilities).max() <= epsilon
        assert np.abs(together.scores - alone.scores).max() <= epsilon
        same = exit_of(together.scores, thresholds) == exit_of(alone.scores, thresholds)
        same &= (together.predictions == alone.predictions).all(axis=1)
        assert (same | undecided).all(), f"bucket {bucket}"


def test_survivors_of_different_batches_run_together(backend: StageBackend, pixels: Pixels) -> None:
    """A stage's batch is formed from any slots, in any order: each reads its own features."""
    one, two = backend.admit(pixels[:6]), backend.admit(pixels[6:12])
    backend.collect(backend.launch(0, one))
    backend.collect(backend.launch(0, two))
    mixed = np.array([two[5], one[0], two[1], one[4], one[2], two[0]])
    images = [11, 0, 7, 4, 2, 6]
    apart = [in_company(backend, pixels, image, bucket_of(backend.buckets, 6), 0, 6) for image in images]
    for stage in range(1, backend.stages):
        output = backend.collect(backend.launch(stage, mixed))
        assert [bits(output, row) for row in range(6)] == [each[stage] for each in apart]


def test_padding_touches_no_other_slot(backend: StageBackend, pixels: Pixels) -> None:
    expected = through_all_stages(backend, pixels[:8])
    mine, others = backend.admit(pixels[:8]), backend.admit(pixels[8:25])
    for stage in range(backend.stages):
        output = backend.collect(backend.launch(stage, mine))
        assert [bits(output, row) for row in range(8)] == [bits(expected[stage], row) for row in range(8)]
        for few in (others[:3], others):
            backend.collect(backend.launch(stage, few))


def test_a_reused_slot_keeps_nothing_of_the_ticket_before(case: Case, pixels: Pixels) -> None:
    backend = case.backend
    first = through_all_stages(backend, pixels[:8])
    through_all_stages(backend, pixels[8:16])
    half_way = backend.admit(pixels[16:24])
    backend.collect(backend.launch(0, half_way))
    backend.release(half_way)
    again = through_all_stages(backend, pixels[:8])
    for before, after in zip(first, again, strict=True):
        assert [bits(before, row) for row in range(8)] == [bits(after, row) for row in range(8)]


def test_as_many_batches_as_it_says_may_be_in_flight(backend: StageBackend, pixels: Pixels) -> None:
    starts = range(0, 4 * backend.in_flight, 4)
    handles = [backend.launch(0, backend.admit(pixels[start : start + 4])) for start in starts]
    for start, handle in reversed(list(zip(starts, handles, strict=True))):
        output = backend.collect(handle)
        for row in range(4):
            assert bits(output, row) == in_company(backend, pixels, start + row, 4, row, 4)[0]


def test_warming_up_leaves_every_slot_free(backend: StageBackend, pixels: Pixels) -> None:
    warm_up(backend)
    if isinstance(backend, FakeBackend):
        assert set(backend.batches) == {
            (stage, bucket) for stage in range(backend.stages) for bucket in backend.buckets
        }
    assert len(backend.admit(pixels)) == CAPACITY


@given(st.integers(1, 5000))
def test_buckets_hold_every_batch_with_little_padding(largest: int) -> None:
    buckets = buckets_up_to(largest)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[0] == 1
    assert buckets[-1] == largest
    for images in {1, largest // 3 + 1, largest // 2 + 1, largest}:
        bucket = bucket_of(buckets, images)
        assert bucket >= images
        assert images <= 8 or bucket <= images * 1.5
