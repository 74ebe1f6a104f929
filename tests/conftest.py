"""What many tests share: small real data sets in every layout, a trained cascade, a photograph."""

import io
import os
import pickle
import shutil
import signal
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from tests.processes import Served, msmlp_serve

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One set of examples everywhere, and no deadline: a busy machine must not decide a test.
# `pytest --hypothesis-profile=explore` looks further, at other examples each time; `make chaos` at length.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("chaos", deadline=None, max_examples=5000, stateful_step_count=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Before torch is first imported, and for the processes that tests start: at the size of the networks here, a second
# thread costs more than it brings, several times more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test does ask for two, they wait asleep: spinning takes ten times as long when other tests have the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

Once = Callable[[str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """What is set where the tests run must not decide them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MSMLP_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_engine_hangs() -> Iterator[None]:
    """Tests hold a fake device for as long as they need, on a busy machine for longer than a hang takes."""
    from msmlp.service.engine import core

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "longest_silence", lambda *_: 1000.0)
        yield


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The `msmlp` command in this process, for what needs none of its own: arguments → exit status."""
    from msmlp.main import main

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["msmlp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture(params=[pytest.param("cpu", id="stand-in"), pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu_or_stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch's name of a GPU; without `make test-gpu`, of a CPU that stands in for one."""
    if request.param == "cpu":
        from tests.stand_in_cuda import stand_in

        stand_in(monkeypatch)
    return str(request.param)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that says what stands in the file `answer` of this folder, or fails without one, and then notes in
    `asked` what it was asked."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"; status=$?; echo "$@" > "{tmp_path}/asked"; exit $status\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts again, here and in the processes a test starts: a script's background job has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits as pictures: uint8 [N, 32, 32, 3], ten classes, labels in no order."""

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * 15).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
    labels = bunch.target.astype(np.int64)
    train, test = (
        np.sort(np.concatenate([np.flatnonzero(labels == digit)[part] for digit in range(10)]))
        for part in (slice(0, 40), slice(40, 55))
    )
    return Digits(pixels[train], labels[train], pixels[test], labels[test])


@pytest.fixture(scope="session")
def digits_folder(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as an image folder: train/<class>/*.png, 40 a class, test/<class>/*.png, 15 a class."""
    root = tmp_path_factory.mktemp("data") / "digits"
    for split, pixels, labels in (
        ("train", digits.train, digits.train_labels),
        ("test", digits.test, digits.test_labels),
    ):
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:04}.png")
    return root


class _Python2Pickler(pickle._Pickler):
    """Writes bytes and dtypes the way Python 2 did in 2009, when the CIFAR files were made."""

    def save_python2_str(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_python2_str}
    dispatch_table: ClassVar = {
        type(np.dtype("u1")): lambda _: (np.dtype, (b"u1", 0, 1), (3, b"|", None, None, None, -1, -1, 0))
    }


@pytest.fixture(scope="session")
def python2_pickle() -> Callable[[Any], bytes]:
    """Pickles as the official CIFAR files are: protocol 2, byte strings for keys and data, numpy's old module name."""

    def dump(value: Any) -> bytes:
        stream = io.BytesIO()
        _Python2Pickler(stream, protocol=2).dump(value)
        return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")

    return dump


def _cifar_rows(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 32, 32, 3] → [N, 3072]: all red, all green, all blue."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


@pytest.fixture(scope="session")
def cifar10_files(digits: Digits, python2_pickle: Callable[[Any], bytes]) -> dict[str, bytes]:
    """The digits as the files of CIFAR-10's python layout, in another order than the image folder's."""

    def batch(name: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
        names = [b"%d.png" % i for i in range(len(labels))]
        content = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": _cifar_rows(pixels)}
        return python2_pickle({**content, b"filenames": names})

    order = np.random.default_rng(3).permutation(len(digits.train))
    files = {
        "batches.meta": python2_pickle(
            {b"num_cases_per_batch": 80, b"label_names": [b"%d" % i for i in range(10)], b"num_vis": 3072}
        ),
        "readme.html": b"<html></html>",
        "test_batch": batch("testing batch 1 of 1", digits.test, digits.test_labels),
    }
    for number, chosen in enumerate(np.array_split(order, 5), 1):
        name = f"training batch {number} of 5"
        files[f"data_batch_{number}"] = batch(name, digits.train[chosen], digits.train_labels[chosen])
    return files


@pytest.fixture(scope="session")
def cifar100_files(digits: Digits, python2_pickle: Callable[[Any], bytes]) -> dict[str, bytes]:
    """The digits as the files of CIFAR-100's python layout; odd and even are the coarse classes."""

    def part(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
        content = {b"fine_labels": labels.tolist(), b"coarse_labels": (labels % 2).tolist()}
        return python2_pickle({**content, b"data": _cifar_rows(pixels)})

    meta = {
        b"fine_label_names": [b"%d" % i for i in range(10)],
        b"coarse_label_names": [b"even", b"odd"],
    }
    return {
        "meta": python2_pickle(meta),
        "train": part(digits.train, digits.train_labels),
        "test": part(digits.test, digits.test_labels),
        "file.txt~": b"",
    }


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def cifar10_folder(cifar10_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cifar-10-batches-py/`, as unpacked from the official archive."""
    return _write(tmp_path_factory.mktemp("data") / "cifar-10-batches-py", cifar10_files)


@pytest.fixture(scope="session")
def cifar100_folder(cifar100_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cifar-100-python/`, as unpacked from the official archive."""
    return _write(tmp_path_factory.mktemp("data") / "cifar-100-python", cifar100_files)


@pytest.fixture(scope="session")
def cifar10_archive(cifar10_folder: Path) -> Path:
    """`cifar-10-python.tar.gz`, as it is downloaded."""
    path = cifar10_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(cifar10_folder, cifar10_folder.name)
    return path


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """`once(name, make)`: the folder `name` that `make(folder)` has written, once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, make: Callable[[Path], Any]) -> Path:
        done = shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock", timeout=150):
            if not done.exists():
                make(shared / name)
                done.touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def tiny_weights(digits_folder: Path, once: Once) -> Path:
    """A weights folder with its graphs: the `tiny` preset, trained on the digits until every exit is clearly better
    than chance."""

    def make(out: Path) -> None:
        from msmlp.model.training.trainer import TrainOptions, train

        changes = {"augment": "none", "erasing": 0, "mixup": 0, "cutmix": 0, "lr": 0.01, "warmup_epochs": 1, "ema": 0.9}
        train(TrainOptions(digits_folder, "tiny", out, epochs=6, batch_size=60, device="cpu", changes=changes))

    return once("tiny-digits", make)


@pytest.fixture(scope="session")
def audited_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder large enough for an audit set: 100 digits of each class to train on, 5 to test."""
    from sklearn.datasets import load_digits

    bunch, root = load_digits(), tmp_path_factory.mktemp("data") / "audited"
    pixels = (bunch.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    for label in range(10):
        for number, image in enumerate(np.flatnonzero(bunch.target == label)[:105]):
            folder = root / ("train" if number < 100 else "test") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[image]).save(folder / f"{number:03}.png")
    return root


def audited_run(data: Path, out: Path, **fields: Any) -> Any:
    """Options of a run of a second on `audited_digits`."""
    from msmlp.model.training.trainer import TrainOptions

    changes = {"image_size": 16, **fields.pop("changes", {})}
    options: dict[str, Any] = {"preset": "tiny", "recipe": "quick", "batch_size": 100, "device": "cpu", **fields}
    return TrainOptions(data, out=out, changes=changes, **options)


@pytest.fixture(scope="session")
def audited_weights(audited_digits: Path, once: Once) -> Path:
    """Weights with an audit set, without graphs."""

    def make(out: Path) -> None:
        from msmlp.model.training.trainer import train

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("msmlp.model.training.trainer.refresh_graphs", lambda *_: None)
            train(audited_run(audited_digits, out, epochs=4))

    return once("audited", make)


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and calibrating leave no graphs: exporting them takes several times as long as a short run."""
    for module in ("training.trainer", "calibration.calibrate"):
        monkeypatch.setattr(f"msmlp.model.{module}.refresh_graphs", lambda *_: None)


@pytest.fixture(scope="session")
def weights_without_graphs(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_weights` as they were before the graphs were exported."""
    from msmlp.model.weights.graphs import remove_graphs

    folder = Path(shutil.copytree(tiny_weights, tmp_path_factory.mktemp("weights") / tiny_weights.name))
    remove_graphs(folder)
    return folder


@pytest.fixture(scope="session")
def cat_photo() -> bytes:
    """A real photograph, 451 x 300, as a JPEG file."""
    import skimage.data

    stream = io.BytesIO()
    Image.fromarray(skimage.data.cat()).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.fixture(scope="session")
def serve_as(tiny_weights: Path, _no_settings_from_outside: None) -> Iterator[Callable[..., Served]]:
    """Layout (of `LAYOUTS`), more options → such a server; each is started once, for tests that only talk to it."""
    with ExitStack() as running:

        @cache
        def started(layout: tuple[str, ...], *options: str) -> Served:
            served = running.enter_context(msmlp_serve(tiny_weights, *layout, *options))
            served.wait_until_ready(int(layout[1]))
            return served

        yield started
