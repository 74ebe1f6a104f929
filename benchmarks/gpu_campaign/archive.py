"""The work folder as a few files small enough to travel, and back.

Everything is one tar stream, cut into shards; `PER_FETCH` of them come back from one call. The stream begins with what
is worth most, so what does not fit is what is missed least. `index.json` has the sha256 of every shard and the parcels
in the stream. A parcel (a weights folder, a checkpoint) is restored whole or not at all.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
SHARD = 15 * MIB
PER_FETCH = 4
"""A fetch brings 8 files, of 16 MiB each and 64 MiB together: 4 shards, the index, and what people read."""
PREFIX = "campaign.tar."
INDEX = "index.json"
BLOCK = tarfile.BLOCKSIZE


class ArchiveError(Exception):
    """Shards that cannot be restored; one line."""


@dataclass(frozen=True)
class Parcel:
    """Files that only make sense together."""

    name: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes in the stream: a header and whole blocks a file."""
        return sum(BLOCK + -(-path.stat().st_size // BLOCK) * BLOCK for path in self.files)


@dataclass(frozen=True)
class Packed:
    """What one fetch brings, and what it leaves: parcels that another part has, wholly or in part."""

    files: tuple[Path, ...]
    parts: int
    left_behind: tuple[Parcel, ...]


def pack(parcels: Iterable[Parcel], work: Path, out: Path, part: int = 1) -> Packed:
    """Write shards and index of one part (1, 2, ...) of `parcels`, the most valuable first, into `out`.

    Parts of an unchanged work folder belong together: their index is the same.
    """
    ordered = _fill_the_first_part(list(parcels))
    out.mkdir(parents=True, exist_ok=True)
    first = (part - 1) * PER_FETCH
    wanted = range(first, first + PER_FETCH)
    written, hashes = [], []
    for number, shard in enumerate(_shards(_stream(ordered, work))):
        hashes.append(hashlib.sha256(shard).hexdigest())
        if number in wanted:
            written.append(out / f"{PREFIX}{number:02d}")
            written[-1].write_bytes(shard)
    index = {
        "shards": hashes,
        "parcels": [{"name": p.name, "files": [str(f.relative_to(work)) for f in p.files]} for p in ordered],
    }
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    parts = max(1, -(-len(hashes) // PER_FETCH))
    return Packed((out / INDEX, *written), parts, tuple(_outside(ordered, first * SHARD, (first + PER_FETCH) * SHARD)))


def restore(folder: Path, work: Path) -> list[str]:
    """Unpack the shards in `folder` into `work` → the names of parcels that are not, or not wholly, in them.

    Raises:
        ArchiveError: no index, a damaged shard, or one of another pack.
    """
    data = io.BytesIO()
    for path in checked_shards(folder):
        data.write(path.read_bytes())
    data.seek(0)
    files = dict(_whole_files(data))
    missing = []
    for parcel in _index(folder)["parcels"]:
        if not all(name in files for name in parcel["files"]):
            missing.append(parcel["name"])
            continue
        for name in parcel["files"]:
            target = _inside(work, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[name])
    return missing


def checked_shards(folder: Path) -> list[Path]:
    """The shards in `folder` up to the first that is missing: what stands behind it in the stream is worth less.

    Raises:
        ArchiveError: no index, a damaged shard, or one of another pack.
    """
    found = []
    for number, expected in enumerate(_index(folder)["shards"]):
        path = folder / f"{PREFIX}{number:02d}"
        if not path.exists():
            break
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ArchiveError(f"{path} is damaged, or not of the pack that {INDEX} beside it describes")
        found.append(path)
    return found


def _fill_the_first_part(parcels: list[Parcel]) -> list[Parcel]:
    """The first part takes what fits, by value; the rest keeps its order."""
    room = PER_FETCH * SHARD - 2 * BLOCK
    first: list[Parcel] = []
    rest: list[Parcel] = []
    for parcel in parcels:
        fits = parcel.size <= room
        (first if fits else rest).append(parcel)
        room -= parcel.size if fits else 0
    return first + rest


def _stream(parcels: list[Parcel], work: Path) -> Iterator[bytes]:
    for parcel in parcels:
        for path in parcel.files:
            content = path.read_bytes()
            header = tarfile.TarInfo(str(path.relative_to(work)))
            header.size = len(content)
            yield header.tobuf(tarfile.USTAR_FORMAT)
            yield content + bytes(-len(content) % BLOCK)
    yield bytes(2 * BLOCK)


def _shards(stream: Iterator[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for piece in stream:
        held += piece
        while len(held) >= SHARD:
            yield bytes(held[:SHARD])
            del held[:SHARD]
    if held:
        yield bytes(held)


def _outside(parcels: list[Parcel], start: int, end: int) -> Iterator[Parcel]:
    at = 0
    for parcel in parcels:
        if at < start or at + parcel.size > end:
            yield parcel
        at += parcel.size


def _whole_files(data: io.BytesIO) -> Iterator[tuple[str, bytes]]:
    """Files of a stream that may end anywhere."""
    size = len(data.getbuffer())
    try:
        with tarfile.open(fileobj=data) as archive:
            for member in archive:
                if member.offset_data + member.size <= size:
                    yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
    except tarfile.ReadError:
        return


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text())
        return {"shards": list(index["shards"]), "parcels": list(index["parcels"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{folder / INDEX} cannot be read ({type(error).__name__}); it comes with the shards"
        ) from None


def _inside(work: Path, name: str) -> Path:
    path = (work / name).resolve()
    if not path.is_relative_to(work.resolve()):
        raise ArchiveError(f"{INDEX} names {name}, which is outside the work folder")
    return path
