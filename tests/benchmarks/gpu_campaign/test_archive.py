"""What travels: by value, in few and small files, checked when it arrives."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_campaign import archive
from benchmarks.gpu_campaign.archive import BLOCK, INDEX, PER_FETCH, PREFIX, SHARD, ArchiveError, Parcel, pack, restore
from benchmarks.gpu_campaign.parcels import CHECKPOINT, parcels
from benchmarks.gpu_campaign.records import Records, Run, State, Where
from benchmarks.gpu_campaign.schedule import Schedule
from benchmarks.gpu_campaign.steps import Command, Step
from msmlp.model.training.trainer import FILE

SMALL = 4 * BLOCK
"""A shard in these tests; a fetch is four of them, sixteen blocks."""
Write = Callable[[str, int], Parcel]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def write(work: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A parcel of one file of so many blocks."""
    monkeypatch.setattr(archive, "SHARD", SMALL)

    def make(name: str, blocks: int) -> Parcel:
        path = work / name / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes((name.encode() * BLOCK * blocks)[: BLOCK * blocks - 7])
        return Parcel(name, (path,))

    return make


def test_a_fetch_is_within_what_comes_back() -> None:
    others = 3  # index, campaign.json, summary.md
    assert PER_FETCH + others <= 8
    assert SHARD < 16 * 2**20
    assert PER_FETCH * SHARD <= 62 * 2**20


def test_the_first_fetch_takes_what_is_worth_most_and_fits(work: Path, tmp_path: Path, write: Write) -> None:
    made = [write("figures", 2), write("too-large", 20), write("network", 6), write("run", 3)]
    packed = pack(made, work, tmp_path / "out")
    assert [file.name for file in packed.files] == [INDEX, *(f"{PREFIX}{n:02d}" for n in range(4))]
    assert all(file.stat().st_size <= SMALL for file in packed.files[1:])
    assert [parcel.name for parcel in packed.left_behind] == ["too-large"]
    assert packed.parts == 3
    assert restore(tmp_path / "out", tmp_path / "back") == ["too-large"]
    for parcel in made:
        there = tmp_path / "back" / parcel.name / "file"
        assert there.exists() == (parcel.name != "too-large")
        assert not there.exists() or there.read_bytes() == parcel.files[0].read_bytes()


def test_more_fetches_bring_the_rest(work: Path, tmp_path: Path, write: Write) -> None:
    made = [write("figures", 2), write("too-large", 20), write("network", 6)]
    left = [[parcel.name for parcel in pack(made, work, tmp_path / "out", part).left_behind] for part in (1, 2, 3)]
    assert left[0] == ["too-large"]
    assert left[1] == ["figures", "network", "too-large"]
    assert restore(tmp_path / "out", tmp_path / "back") == []
    large = Path("too-large") / "file"
    assert (tmp_path / "back" / large).read_bytes() == (work / large).read_bytes()


def test_a_shard_that_is_missing_costs_what_stands_behind_it(work: Path, tmp_path: Path, write: Write) -> None:
    made = [write("figures", 2), write("network", 5), write("run", 4)]
    pack(made, work, tmp_path / "out")
    (tmp_path / "out" / f"{PREFIX}01").unlink()
    assert restore(tmp_path / "out", tmp_path / "back") == ["network", "run"]
    assert not (tmp_path / "back" / "network").exists()


@pytest.mark.parametrize("damage", ["a byte", "the end", "another pack"])
def test_a_damaged_shard_is_refused_in_one_line(work: Path, tmp_path: Path, write: Write, damage: str) -> None:
    pack([write("network", 9)], work, tmp_path / "out")
    shard = tmp_path / "out" / f"{PREFIX}01"
    whole = shard.read_bytes()
    damaged = {"a byte": b"?" + whole[1:], "the end": whole[:-1], "another pack": bytes(SMALL)}
    shard.write_bytes(damaged[damage])
    with pytest.raises(ArchiveError, match=r"^\S*campaign\.tar\.01 is damaged, or not of the pack[^\n]*$"):
        restore(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_index_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"index\.json cannot be read \(FileNotFoundError\)"):
        restore(tmp_path, tmp_path / "back")
    (tmp_path / INDEX).write_text('{"shards": []}')
    with pytest.raises(ArchiveError, match=r"index\.json cannot be read \(KeyError\)"):
        restore(tmp_path, tmp_path / "back")


def test_nothing_is_written_outside_the_work_folder(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    (tmp_path / f"{PREFIX}00").write_bytes(stream.getvalue())
    shards = [hashlib.sha256(stream.getvalue()).hexdigest()]
    parcels = [{"name": "a", "files": ["../escaped"]}]
    (tmp_path / INDEX).write_text(json.dumps({"shards": shards, "parcels": parcels}))
    with pytest.raises(ArchiveError, match="outside the work folder"):
        restore(tmp_path, tmp_path / "back")
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_a_pack_too(work: Path, tmp_path: Path) -> None:
    assert pack([], work, tmp_path / "out").parts == 1
    assert restore(tmp_path / "out", tmp_path / "back") == []


def test_what_is_worth_most_travels_first(work: Path) -> None:
    teacher, other = (Command(f"{name}.train", ("train",), folder=name) for name in ("teacher", "other"))
    first, second, third = (
        Command(f"{name}.train", ("train",), folder=name, needs=(f"{needs}.train",))
        for name, needs in (("first", "teacher"), ("second", "teacher"), ("third", "other"))
    )
    steps = [Step(command.name, (command,), 1) for command in (teacher, first, second, other, third)]
    records = Records(work, Where("cpu", "2.11.0", None))
    states: dict[str, State] = {
        "teacher": "done",
        "first": "done",
        "second": "stopped",
        "other": "done",
        "third": "done",
    }
    for name in states:
        (work / name).mkdir(parents=True)
        for file in ("manifest.json", FILE, "model.safetensors.partial"):
            (work / name / file).write_text(name)
    for command in (teacher, first, second, other, third):
        records.add(command, Run(states[str(command.folder)], 0, 1.0, 1))
    (work / "first.train.log").write_text("log")

    made = parcels(work, Schedule(steps, records, work))
    assert [parcel.name for parcel in made] == [
        "records and logs",
        "first (finished)",
        "third (finished)",
        "teacher (finished)",
        "second (half done)",
        "other (finished, needed by nothing that is left)",
    ]
    names = {parcel.name.split(" ")[0]: {path.name for path in parcel.files} for parcel in made}
    assert names["first"] == {"manifest.json"}  # nobody resumes what is finished
    assert names["second"] == {"manifest.json", CHECKPOINT}
    assert "first.train.log" in names["records"]
    assert json.loads((work / "second.train.record.json").read_text())["state"] == "stopped"
