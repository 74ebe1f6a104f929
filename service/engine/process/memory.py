"""Memory that an engine's process and its front ends share: files without a name, which end with their last user.

Numbers are written one by one while others may read: good enough for what is read many times a second, and free of
locks, which a dead process would keep. Each number has one writer.
"""

import math
import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import Counts, Load

PEERS = 64
"""The most front ends of an engine."""

SCALARS = 4
"""Load's plain numbers: all of its fields but `queued` and `oldest`, and those that are each front end's own."""

_RECEIVED = struct.Struct("2d")  # submits, images
_COUNTS = struct.Struct("4d")
_NUMBER = 8  # bytes
_OWN = 2  # a board's own numbers: peers and beat


def new_file(size: int) -> int:
    """The descriptor of a file of zeros in memory."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("msmlp")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file


class Inherited:
    """A file for a child that is being started, which gets a descriptor of its own (an int) in place of this."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Any]]:
        return _detach, (DupFd(self._file),)


def _detach(file: Any) -> int:
    return int(file.detach())


class Sent:
    """A value for a child that is being started, which gets it in place of this. It crosses in a file: multiprocessing
    would write it to a pipe, and wait without end if it is larger than that and the child has been killed. To be closed
    once the child was started.
    """

    def __init__(self, value: Any) -> None:
        self._value, self._file = value, new_file(0)

    def close(self) -> None:
        os.close(self._file)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        content = ForkingPickler.dumps(self._value)
        with os.fdopen(os.dup(self._file), "wb") as opened:
            opened.write(content)
        return _read, (DupFd(self._file),)


def _read(file: Any) -> Any:
    with os.fdopen(_detach(file), "rb") as opened:
        opened.seek(0)
        return pickle.load(opened)


class Ring:
    """A ring of `images` images, uint8 [*shape], from a front end, and how much of it the engine has taken in.

    `file` is closed here; ValueError if it is too small.
    """

    def __init__(self, file: int, *, images: int, shape: tuple[int, ...]) -> None:
        self.images = images
        with os.fdopen(file, "r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), self.bytes(images, shape))
        self._pixels = np.frombuffer(self._map, np.uint8, offset=_RECEIVED.size).reshape(images, *shape)

    @staticmethod
    def bytes(images: int, shape: tuple[int, ...]) -> int:
        return _RECEIVED.size + images * math.prod(shape)

    def write(self, start: int, pixels: NDArray[np.uint8]) -> None:
        first = min(len(pixels), self.images - start)
        self._pixels[start : start + first] = pixels[:first]
        self._pixels[: len(pixels) - first] = pixels[first:]

    def read(self, start: int, images: int) -> NDArray[np.uint8]:
        """Images of the ring: a view, unless they wrap around its end."""
        end = start + images
        if end <= self.images:
            view: NDArray[np.uint8] = self._pixels[start:end]
            return view
        return np.concatenate([self._pixels[start:], self._pixels[: end - self.images]])

    @property
    def received(self) -> tuple[int, int]:
        """Submits that the engine has received, and their images: their room is free, and the Load includes them."""
        submits, images = _RECEIVED.unpack_from(self._map)
        return int(submits), int(images)

    @received.setter
    def received(self, submits_and_images: tuple[int, int]) -> None:
        _RECEIVED.pack_into(self._map, 0, *submits_and_images)


class Board:
    """What an engine of `stages` stages publishes: heartbeat and Load; and a row of Counts per front end, of PEERS.

    `file` is closed here.
    """

    def __init__(self, file: int, stages: int) -> None:
        self._stages = stages
        with os.fdopen(file, "r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), self.bytes(stages))
        self._numbers = np.frombuffer(self._map, np.float64)
        self._load = self._numbers[: _OWN + SCALARS + 2 * stages]
        self._rows = self._numbers[len(self._load) :].reshape(PEERS, len(Counts._fields))

    @staticmethod
    def bytes(stages: int) -> int:
        return _NUMBER * (_OWN + SCALARS + 2 * stages) + PEERS * _COUNTS.size

    @property
    def peers(self) -> int:
        """How many front ends there are."""
        return int(self._load[0])

    @peers.setter
    def peers(self, count: int) -> None:
        self._load[0] = count

    @property
    def beat(self) -> float:
        """Signs of life so far."""
        return self._load.item(1)

    @beat.setter
    def beat(self, count: float) -> None:
        self._load[1] = count

    def publish(self, load: Load) -> None:
        scalars = load.backlog_seconds, load.seconds_per_image, load.work_seconds, load.prediction_margin
        self._load[_OWN:] = (*scalars, *load.queued, *load.oldest)

    def published(self, row: int, received: tuple[int, int]) -> Load:
        """The load as this row's front end sees it; `received`: its submits and images that the engine has taken in."""
        peers, _, backlog, pace, work, margin, *rest = self._load.tolist()
        queued, oldest = rest[: self._stages], rest[self._stages :]
        others = Counts()
        if peers > 1:
            others = Counts(*(self._rows.sum(axis=0) - self._rows[row]).tolist())
        return Load(tuple(map(int, queued)), tuple(oldest), backlog, pace, work, margin, *received, others)

    def count(self, row: int, counts: Counts) -> None:
        """Set a front end's row: by itself, or by the engine once it has left."""
        _COUNTS.pack_into(self._map, self._load.nbytes + row * _COUNTS.size, *counts)
