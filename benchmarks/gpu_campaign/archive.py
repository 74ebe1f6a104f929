"""The work folder as a few files small enough to travel, and back."""

import tarfile
from pathlib import Path

SHARD = 15 * 2**20
PREFIX = "campaign.tar."


def pack(work: Path, out: Path) -> list[Path]:
    """Tar `work` into shards `campaign.tar.00`, ... in `out` → the shards. Half-written files stay behind."""
    out.mkdir(parents=True, exist_ok=True)
    whole = out / (PREFIX + "whole")
    with tarfile.open(whole, "w") as archive:
        for path in sorted(work.rglob("*")):
            if path.is_file() and path.suffix != ".partial":
                archive.add(path, path.relative_to(work))
    shards: list[Path] = []
    with whole.open("rb") as stream:
        while chunk := stream.read(SHARD):
            shards.append(out / f"{PREFIX}{len(shards):02d}")
            shards[-1].write_bytes(chunk)
    whole.unlink()
    return shards


def unpack(folder: Path, work: Path) -> bool:
    """Put the shards in `folder` together and unpack them into `work`; False when there are none."""
    shards = sorted(folder.glob(PREFIX + "[0-9][0-9]"))
    if not shards:
        return False
    work.mkdir(parents=True, exist_ok=True)
    whole = work / (PREFIX + "whole")
    with whole.open("wb") as stream:
        for shard in shards:
            stream.write(shard.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(work, filter="data")
    whole.unlink()
    return True
