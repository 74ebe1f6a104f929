"""What decoding costs: CPU time from a file to the model's pixels, by size of the picture.

    python -m benchmarks.decoding --cifar10 .data/cifar-10-batches-py

Prints one JSON document: milliseconds of CPU per picture for the service's way (`load_image`), for a bare
`Image.open(…).convert("RGB")` where that gives the model's size, and, where the package simplejpeg is installed, for
the service's way with libjpeg-turbo called through it; and how far those pixels and their labels differ from ours.
`reduced_scale` tells how far a large JPEG's answers are from those to its full pixels (with `--rounds 0` alone).
"""

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, features
from skimage import data

from benchmarks.backends import processor
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.data import load_dataset
from msmlp.model.offline import run_every_exit
from msmlp.model.preprocess import FORMATS, decode_opened, load_image, open_image
from msmlp.model.views import to_square
from msmlp.model.weights import load_calibration, load_weights
from msmlp.service.settings import DEFAULT_WEIGHTS

Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]

PICTURES = ((32, 32), (224, 224), (640, 480), (1920, 1080), (4000, 3000))
"""Width and height."""
QUALITIES = (85, 88, 90)
SAMPLE_SECONDS = 0.05
"""Of CPU, at least, for one figure of one round."""
BATCH = 64


def main() -> None:
    options = _options()
    decoders = {size: candidates(size) for size in options.sizes}
    rows = [
        speed(kind, width, height, size, decoders[size], options.rounds)
        for size in options.sizes
        for kind in ("JPEG", "PNG")
        for width, height in PICTURES
        if options.rounds
    ]
    document: dict[str, Any] = {
        "command": f"python -m benchmarks.decoding {' '.join(sys.argv[1:])}",
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"pillow": PIL.__version__, "libjpeg_turbo": features.version_feature("libjpeg_turbo")},
        "rounds": options.rounds,
        "rows": rows,
        "reduced_scale": reduced_scale(options.crops, options.cifar10),
    }
    if simplejpeg is not None and options.rounds:
        document["versions"]["simplejpeg"] = simplejpeg.__version__
        document["agreement"] = agreement(options.crops, options.cifar10)
    print(json.dumps(document, indent=1))


# --- decoders ----------------------------------------------------------------------------------------------------

simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None


def candidates(size: int) -> dict[str, Decoder]:
    """The decoders to a model's size; the service's is the first."""
    found: dict[str, Decoder] = {"service": partial(load_image, target=size), "bare": bare}
    if simplejpeg is not None:
        found["simplejpeg"] = partial(with_simplejpeg, size=size)
    return found


def bare(file: bytes) -> Pixels:
    """The least that Pillow can do, without a check, for a picture of the model's size. It gets the formats too:
    once anything has loaded all of Pillow's readers, it would try many before JPEG's."""
    return np.asarray(Image.open(io.BytesIO(file), formats=FORMATS).convert("RGB"))


def with_simplejpeg(file: bytes, size: int) -> Pixels:
    """`load_image` of an upright JPEG in colour, except for the decoder: the same checks, scale and resize."""
    width, height = reduced(open_image(file).size, size)
    pixels = simplejpeg.decode_jpeg(file, min_width=width, min_height=height)
    return to_square(Image.fromarray(pixels), size)


def reduced(picture: tuple[int, int], size: int) -> tuple[int, int]:
    """The width and height at which a JPEG is decoded: a half, quarter or eighth, but not below twice the size."""
    fits = min(picture) // (2 * size)
    scale = next((each for each in (8, 4, 2) if fits >= each), 1)
    return -(-picture[0] // scale), -(-picture[1] // scale)


# --- pictures ----------------------------------------------------------------------------------------------------


def photographs() -> list[Pixels]:
    """Those of scikit-image that look like a camera's, uint8 [H, W, 3], 300 to 741 pixels a side."""
    pictures: list[Pixels] = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return [*pictures, data.stereo_motorcycle()[0]]  # type: ignore[no-untyped-call]


def at_size(photograph: Pixels, width: int, height: int) -> Image.Image:
    """The photograph made smaller, or continued by its mirror images: enlarged, it would be too smooth a file."""
    rows, columns = photograph.shape[:2]
    if width <= columns and height <= rows:
        return ImageOps.fit(Image.fromarray(photograph), (width, height), method=Image.Resampling.LANCZOS)
    beyond = ((0, max(0, height - rows)), (0, max(0, width - columns)), (0, 0))
    return Image.fromarray(np.pad(photograph, beyond, mode="symmetric")[:height, :width])


def encoded(image: Image.Image, kind: str, number: int) -> bytes:
    """A file as cameras and the web have them; `number` chooses its quality."""
    stream = io.BytesIO()
    options = {"quality": QUALITIES[number % len(QUALITIES)], "subsampling": "4:2:0"} if kind == "JPEG" else {}
    image.save(stream, kind, **options)
    return stream.getvalue()


def crops(count: int, size: int) -> Iterator[bytes]:
    """Different squares of the photographs, scaled to between one and eight times the size, as JPEG."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photograph) for photograph in photographs()]
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(rng.integers(size, min(photo.size)))
        x, y = (int(rng.integers(0, full - side + 1)) for full in photo.size)
        scaled = int(rng.integers(size, 8 * size))
        yield encoded(photo.resize((scaled, scaled), box=(x, y, x + side, y + side)), "JPEG", number)


# --- measurements ------------------------------------------------------------------------------------------------


def speed(
    kind: str, width: int, height: int, size: int, decoders: Mapping[str, Decoder], rounds: int
) -> dict[str, Any]:
    """One row: milliseconds of CPU per picture of each decoder that can do it, and the service's pictures/s."""
    files = [encoded(at_size(photo, width, height), kind, number) for number, photo in enumerate(photographs())]
    _say(f"{kind} {width}x{height} to {size}")
    able = dict(decoders)
    if (width, height) != (size, size):
        del able["bare"]
    if kind != "JPEG":
        able.pop("simplejpeg", None)
    seconds = cpu_seconds(able, files, rounds)
    return {
        "kind": kind,
        "picture": f"{width}x{height}",
        "kib": round(statistics.mean(map(len, files)) / 1024, 1),
        "size": size,
        "ms": {name: round(1e3 * each, 4) for name, each in seconds.items()},
        "service_takes_times": {name: round(seconds["service"] / each, 2) for name, each in seconds.items()},
        "pictures_per_second": round(1 / seconds["service"], 1),
    }


def cpu_seconds(decoders: Mapping[str, Decoder], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Median CPU seconds of this thread per file, the decoders taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in decoders}
    for decode in decoders.values():
        _timed(decode, files, 1)
    once = _timed(next(iter(decoders.values())), files, 1)
    repeats = max(1, round(SAMPLE_SECONDS / max(once, 1e-6)))
    for _ in range(rounds):
        for name, decode in decoders.items():
            samples[name].append(_timed(decode, files, repeats) / (repeats * len(files)))
    return {name: statistics.median(each) for name, each in samples.items()}


def _timed(decode: Decoder, files: Sequence[bytes], repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        for file in files:
            decode(file)
    return time.thread_time() - start


def agreement(count: int, cifar10: Path | None) -> dict[str, Any]:
    """How the pixels with simplejpeg, and the shipped weights' labels of them at every exit, differ from ours."""
    _say("agreement")
    backend, size = _shipped()
    files = [*crops(count, size), *_cifar(cifar10, size, size)]
    pixels = [np.stack([decode(file, size) for file in files]) for decode in (load_image, with_simplejpeg)]
    labels = [run_every_exit(backend, each).predictions for each in pixels]
    other = int((labels[0] != labels[1]).any(axis=1).sum())
    return {"files": len(files), "other_labels": other, **difference(*pixels)}


def reduced_scale(count: int, cifar10: Path | None) -> dict[str, Any]:
    """By source, of files that are decoded at a reduced scale: how far the last exit's answers are from those to the
    full pixels, which a client that decodes sends."""
    _say("reduced scale")
    backend, size = _shipped()
    found = {}
    for source, all_files in {"crops": crops(count, size), "cifar10": _cifar(cifar10, size, 12 * size)}.items():
        if files := [file for file in all_files if min(open_image(file).size) >= 4 * size]:
            ours = np.stack([load_image(file, size) for file in files])
            full = np.stack([to_square(decode_opened(open_image(file)), size) for file in files])
            last = [run_every_exit(backend, each).probabilities[:, -1] for each in (ours, full)]
            apart = np.abs(last[0].max(axis=1) - last[1].max(axis=1))
            found[source] = {
                "files": len(files),
                "other_labels": int((last[0].argmax(axis=1) != last[1].argmax(axis=1)).sum()),
                "top_probability_apart": {"mean": float(apart.mean()), "largest": float(apart.max())},
                **difference(ours, full),
            }
    return found


def _cifar(cifar10: Path | None, size: int, side: int) -> Iterator[bytes]:
    """The test images of a data set, if there is one, as JPEG of side x side pixels."""
    if cifar10 is not None:
        test = load_dataset(cifar10, size).test
        assert test is not None, f"{cifar10} has no test images"
        for number, image in enumerate(test.pixels):
            yield encoded(Image.fromarray(image).resize((side, side)), "JPEG", number)


def _shipped() -> tuple[StageBackend, int]:
    """The shipped weights on ONNX Runtime, and the size of their images."""
    weights = load_weights(DEFAULT_WEIGHTS)
    settings = BackendSettings("cpu", "float32", capacity=BATCH, max_batch=BATCH)
    backend = select_backend(weights, load_calibration(weights), settings, "onnx").build()
    return backend, weights.manifest.preprocess.size


def difference(ours: Pixels, theirs: Pixels) -> dict[str, float]:
    """The largest and the mean difference of a pixel's channel, 0 to 255."""
    apart = np.abs(ours.astype(np.int16) - theirs)
    return {"largest_difference": int(apart.max()), "mean_difference": float(apart.mean())}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="of the model's input")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved; medians are reported; 0: no times")
    parser.add_argument("--crops", type=int, default=4000, help="pictures for the agreement")
    parser.add_argument("--cifar10", type=Path, help="a data set whose test images count, too")
    return parser.parse_args()


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    main()
