"""A convolutional teacher: its training, its folder, its targets, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from msmlp.model.errors import ConfigError, WeightsError
from msmlp.model.training.convnet import ConvNet, VggBlock, Whitening, read_teacher, teacher_gflops
from msmlp.model.training.pretrained import load_teacher
from msmlp.model.training.recipes import TEACHERS, TeacherConfig
from msmlp.model.training.trainer import TrainOptions, train
from msmlp.model.weights import load_weights

CPU = torch.device("cpu")


def test_training_leaves_a_teacher_with_its_record(convolutional: Path) -> None:
    found = read_teacher(convolutional)
    assert found is not None
    described, network = found
    assert described.name == "convolutional"
    assert described.network.kind == "vgg"
    assert described.classes == ("digit-3", "digit-7", "digit-8")
    assert described.results[0].keys() == {"exit", "split", "images", "accuracy"}
    assert described.training["recipe_name"] == "teacher"
    assert described.training["validation"]["digest"]
    assert not network.training
    assert not (convolutional / "manifest.json").exists()


def test_kernels_take_half_the_room(convolutional: Path) -> None:
    kinds = {(tensor.dim() > 1, tensor.dtype) for tensor in load_file(convolutional / "model.safetensors").values()}
    assert (True, torch.float16) in kinds
    assert (True, torch.float32) not in kinds
    assert (False, torch.float32) in kinds
    found = read_teacher(convolutional)
    assert found is not None
    assert all(parameter.dtype == torch.float32 for parameter in found[1].parameters())


def test_its_targets_are_its_networks_outputs(convolutional: Path) -> None:
    found = read_teacher(convolutional)
    assert found is not None
    described, network = found
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (described.preprocess.mean, described.preprocess.std))
    targets = load_teacher(convolutional, CPU).targets(images)
    with torch.no_grad():
        expected = network((images - mean) / std)[0]
        features = network.outputs((images - mean) / std)[0][0]
    assert torch.allclose(targets.logits, expected, atol=1e-5)
    assert torch.allclose(targets.features.mean((2, 3)), features.mean((2, 3)), atol=1e-5)
    lowered = load_teacher(convolutional, CPU, torch.bfloat16).targets(images)
    assert lowered.logits.dtype == torch.float32
    assert not torch.equal(lowered.logits, targets.logits)
    assert torch.allclose(lowered.logits, targets.logits, atol=0.1)


def test_an_image_and_its_mirror_image_are_answered_alike(convolutional: Path) -> None:
    found = read_teacher(convolutional)
    assert found is not None
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, mirrored = found[1](images)[0], found[1](images.flip(3))[0]
        found[1].train()
        learning = found[1](images)[0], found[1](images.flip(3))[0]
    assert torch.allclose(plain, mirrored, atol=1e-6)
    assert not torch.allclose(*learning, atol=1e-3)


def test_a_cascade_learns_from_it_with_and_without_imitation(
    convolutional: Path, short_run: Callable[..., TrainOptions]
) -> None:
    folders = [
        train(short_run(teacher=convolutional, epochs=2, changes={"imitation": weight})) for weight in (0.0, 1.0)
    ]
    records = [load_weights(folder).manifest.training for folder in folders]
    assert {record["teacher"]["name"] for record in records} == {"convolutional"}
    blobs = {(folder / "model.safetensors").read_bytes() for folder in folders}
    assert len(blobs) == 2
    # The layer that predicts the teacher's features is thrown away.
    assert len({frozenset(load_weights(folder).state) for folder in folders}) == 1


def test_bf16_on_a_cpu_is_asked_for(short_run: Callable[..., TrainOptions]) -> None:
    folder = train(short_run(epochs=1, dtype="bfloat16"))
    assert load_weights(folder).manifest.training["dtype"] == "bfloat16"
    assert load_weights(train(short_run(epochs=0))).manifest.training["dtype"] == "float32"


def test_a_teacher_is_not_served(convolutional: Path) -> None:
    with pytest.raises(WeightsError, match=r"a teacher, which only trains cascades: msmlp train --teacher"):
        load_weights(convolutional)


def test_a_teacher_of_a_teacher_is_refused(convolutional: Path, tmp_path: Path, few_digits: Path) -> None:
    options = TrainOptions(
        few_digits, "teacher-tiny", tmp_path, "teacher", 1, teacher=convolutional, changes={"image_size": 16}
    )
    with pytest.raises(ConfigError, match="teacher: only a cascade can learn from a teacher"):
        train(options)


def test_as_many_exit_weights_as_exits(short_run: Callable[..., TrainOptions]) -> None:
    with pytest.raises(ConfigError, match="exit_weights: 2 numbers for 3 exits"):
        train(short_run(changes={"exit_weights": [1, 1]}))


@pytest.fixture
def copied(convolutional: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(convolutional, tmp_path / "copied"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and the hash that is written of them."""
    import hashlib

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    described = json.loads((folder / "teacher.json").read_text())
    described["files"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "teacher.json").write_text(json.dumps(described))


def test_damage_is_refused_in_one_line(copied: Path) -> None:
    blob = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(blob[:-1] + b"x")
    with pytest.raises(WeightsError, match="is damaged"):
        load_teacher(copied, CPU)
    (copied / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        load_teacher(copied, CPU)


def test_weights_that_do_not_fit_are_refused(copied: Path) -> None:
    rewrite(copied, lambda state: state.update({"head.bias": torch.zeros(4)}))
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_teacher(copied, CPU)


def test_weights_that_are_no_numbers_are_refused(copied: Path) -> None:
    rewrite(copied, lambda state: state.update({"head.bias": torch.tensor([0.0, float("nan"), 0.0])}))
    with pytest.raises(WeightsError, match="NaN"):
        load_teacher(copied, CPU)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format"),
        ("classes", ["a"], "1 class names for 3 outputs"),
        ("network", {"kind": "vgg"}, "network"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copied: Path, key: str, value: object, message: str) -> None:
    described = json.loads((copied / "teacher.json").read_text())
    (copied / "teacher.json").write_text(json.dumps({**described, key: value}))
    with pytest.raises(WeightsError, match=message) as refused:
        load_teacher(copied, CPU)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("name", ["teacher-tiny", "teacher-m", "teacher-resnet18"])
def test_every_network_learns_from_every_weight_and_counts_its_cost(name: str, whiten: bool) -> None:
    config = TEACHERS[name]
    if whiten and config.kind == "resnet":
        pytest.skip("only a vgg whitens")
    config = config.model_copy(update={"whiten": whiten})
    network = ConvNet(config)
    if isinstance(network.stem, Whitening):
        network.stem.fit(torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    madds: list[int] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, torch.nn.Conv2d | torch.nn.Linear | Whitening)
        madds.append(output[0].numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | Whitening):
            module.register_forward_hook(count)
    features, logits = network.outputs(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert features[0].shape[1] == config.widths[-1]
    assert logits[0].shape == (2, 10)
    assert sum(madds) / 1e9 == pytest.approx(teacher_gflops(config))
    logits[0].square().sum().backward()
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learnt)
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert fixed == {name for name, _ in network.named_parameters() if name.endswith("norm.weight")} or not fixed


def test_whitened_patches_are_uncorrelated_with_equal_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 14, 14, generator=generator), 3, stride=1)
    images = smooth + 0.5 * smooth.mean(1, keepdim=True)
    layer = Whitening()
    layer.fit(images)
    outputs = torch.nn.functional.conv2d(images, layer.weight).transpose(0, 1).flatten(1)
    half = Whitening.OUTPUTS // 2
    assert torch.equal(layer.weight[half:], -layer.weight[:half])
    covariance = torch.cov(outputs[:half])
    assert torch.allclose(covariance, torch.eye(half), atol=0.05)
    assert layer(images).shape == (200, Whitening.OUTPUTS, 11, 11)


def test_a_run_begins_with_whitened_patches_of_its_training_images(few_digits: Path, tmp_path: Path) -> None:
    changes = {"image_size": 16, "whiten": True, "ema": 0.9, "bias_lr": 8}
    found = read_teacher(train(TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=1, changes=changes)))
    assert found is not None
    stem = found[1].stem
    assert isinstance(stem, Whitening)
    assert stem.weight.abs().amax((1, 2, 3)).min() > 0


def test_a_vgg_block_begins_by_passing_its_input_on() -> None:
    block = VggBlock(4, 8, halves=False)
    images = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block.convolution(images)[:, :4], images)


def test_only_a_vgg_whitens() -> None:
    with pytest.raises(ValueError, match="whiten: expected kind vgg, got resnet"):
        TeacherConfig(kind="resnet", stem=8, widths=(8,), blocks=1, whiten=True)


def test_the_gradient_of_a_maximum_goes_to_one_place() -> None:
    """Equal places do not share it: that gradient is found by comparing values, which compiles into NaN in bfloat16."""
    network = ConvNet(TEACHERS["teacher-tiny"])
    map_ = torch.zeros(1, 32, 8, 8, requires_grad=True)
    network.blocks = torch.nn.Sequential()
    network.stem = torch.nn.Identity()
    network.outputs(map_)[1][0].sum().backward()
    assert map_.grad is not None
    assert (map_.grad != 0).sum((2, 3)).eq(1).all()


def test_a_network_that_leaves_no_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="3 groups are too many for images of 4 pixels"):
        TeacherConfig(kind="vgg", stem=8, widths=(8, 8, 8), blocks=1, image_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, "optimizer: muon trains the blocks of a cascade only"),
        ({"momentum": 0}, "nesterov: needs momentum above 0"),
        ({"widths": [-1]}, "widths.0: "),
        ({"widths": [0, 8]}, "widths.0: "),
        ({"widths": []}, "widths: "),
        ({"exit_weights": [float("nan")]}, "exit_weights: expected finite numbers of at least 0"),
    ],
)
def test_what_no_teacher_can_be_trained_with_is_refused(
    changes: dict[str, object], message: str, few_digits: Path, tmp_path: Path
) -> None:
    options = TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=1, changes={"image_size": 16, **changes})
    with pytest.raises(ConfigError, match=message) as refused:
        train(options)
    assert "\n" not in str(refused.value)


def test_the_default_recipe_depends_on_the_preset() -> None:
    made = {
        (preset, recipe): TrainOptions(Path(), preset, Path(), recipe).recipe_name
        for preset in ("teacher-s", "teacher-m", "s")
        for recipe in (None, "quick")
    }
    assert made == {
        ("teacher-s", None): "teacher",
        ("teacher-s", "quick"): "quick",
        ("teacher-m", None): "speedrun",
        ("teacher-m", "quick"): "quick",
        ("s", None): "best",
        ("s", "quick"): "quick",
    }


def test_an_untrained_teacher_in_the_same_folder_is_replaced(
    few_digits: Path, short_run: Callable[..., TrainOptions], tmp_path: Path
) -> None:
    train(TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=0, changes={"image_size": 16}))
    assert read_teacher(tmp_path) is not None
    train(short_run(epochs=0, out=tmp_path))
    assert read_teacher(tmp_path) is None
    load_weights(tmp_path)
    train(TrainOptions(few_digits, "teacher-tiny", tmp_path, epochs=0, changes={"image_size": 16}))
    with pytest.raises(WeightsError, match="is a teacher"):
        load_weights(tmp_path)
