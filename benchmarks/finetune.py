"""What starting from shipped weights is worth on a small folder of other classes: `python -m benchmarks.finetune`.

Eight classes of CIFAR-100 that CIFAR-10 has not, as an image folder with 88 training images each: trained from scratch,
and from shipped weights in half the epochs, then evaluated on CIFAR-100's test images.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from msmlp.model.data import load_dataset

CLASSES = ("apple", "bicycle", "castle", "dolphin", "lamp", "orchid", "tiger", "tractor")
TRAINING, VALIDATION = 88, 100
"""Images per class: the first and the last of the data set's training images."""
STARTS = {
    "from scratch": ["--preset", "s", "--recipe", "quick", "--epochs", "60"],
    "from shipped weights": ["--init", "cifar10-s", "--epochs", "30"],
}


def write_folder(data: Path, root: Path) -> None:
    dataset = load_dataset(data, 32)
    assert dataset.test is not None
    for name in CLASSES:
        train, test = (
            split.pixels[split.labels == dataset.classes.index(name)] for split in (dataset.train, dataset.test)
        )
        for part, pixels in (("train", train[:TRAINING]), ("val", train[-VALIDATION:]), ("test", test)):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(pixels):
                Image.fromarray(np.asarray(image)).save(folder / f"{number}.png")


def msmlp(*arguments: str) -> str:
    command = [sys.executable, "-m", "msmlp", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    photos = options.out / "photos"
    write_folder(options.data, photos)
    for name, start in STARTS.items():
        folder = options.out / name.replace(" ", "-")
        msmlp("train", "--data", str(photos), *start, "--threads", "1", "--resume", "--out", str(folder))
        result = json.loads(
            msmlp("evaluate", "--weights", str(folder), "--data", str(photos), "--split", "test", "--json")
        )
        exits = " / ".join(f"{100 * row['accuracy']:.2f} %" for row in result["exits"])
        print(f"{name}: {exits} of {result['images']} test images, at exits 1 to {len(result['exits'])}")


if __name__ == "__main__":
    main()
