"""What is made ready for a lease, and what is printed to be done."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu_campaign import archive, prepare, wheels
from benchmarks.gpu_campaign.archive import Parcel, pack
from benchmarks.gpu_campaign.calls import SETS
from benchmarks.gpu_campaign.prepare import main

ROOT = Path(__file__).resolve().parents[3]
KIB = 1024


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with an ignored folder and a file of 10 KiB, where a call carries 100 KiB."""
    clone = tmp_path / "clone"
    clone.mkdir()
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    (clone / ".gitignore").write_text("/.gpu/\n")
    (clone / "code").write_bytes(bytes(10 * KIB))
    (clone / ".gpu").mkdir()
    (clone / ".gpu" / "not-carried").write_bytes(bytes(500 * KIB))
    monkeypatch.chdir(clone)
    monkeypatch.setattr(prepare, "CARRIED", 100 * KIB)
    monkeypatch.setattr(prepare, "SPARE", 2 * KIB)
    return clone


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Both data sets: two classes, three columns of 20 KiB each to train on, one of 5 KiB to test."""
    shared = tmp_path / "shared"
    for name in SETS:
        for split, columns, size in (("train", 3, 20 * KIB), ("test", 1, 5 * KIB)):
            (shared / name / split).mkdir(parents=True)
            for label in ("cat", "dog"):
                for column in range(columns):
                    (shared / name / split / f"{label}-{column:02d}.webp").write_bytes(bytes(size))
    (shared / "unpack.py").write_text("print('unpacked')\n")
    return shared


@pytest.fixture
def options(shared: Path, tmp_path: Path) -> list[str]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "some-1.0-py3-none-any.whl").write_bytes(bytes(3 * KIB))
    return ["--shared", str(shared), "--wheels", str(folder)]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_call_fits_and_together_they_bring_everything(
    clone: Path, shared: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    said = capsys.readouterr().out
    calls = sorted((clone / ".gpu").glob("call*"))
    assert len(calls) == 4
    assert all(sum(p.stat().st_size for p in call.rglob("*") if p.is_file()) <= 88 * KIB for call in calls)
    brought = set().union(*map(files_of, calls))
    columns = {str(path.relative_to(shared)) for path in shared.rglob("*.webp")}
    assert brought == {*columns, "unpack.py", "wheels/some-1.0-py3-none-any.whl"}
    # The first columns of all classes come first, so that a part is a data set too.
    assert {"cifar10/train/cat-00.webp", "cifar10/train/dog-00.webp"} <= files_of(calls[0])

    commands = [line for line in said.splitlines() if line.startswith("  ")]
    assert [("gpu_campaign" in line, "unpack.py cifar" in line) for line in commands] == [
        (False, False),  # half of CIFAR-10
        (True, True),
        (True, False),  # CIFAR-100 travels while CIFAR-10 is trained on
        (True, True),
        (True, False),
    ]
    assert "pip install" in commands[0]
    assert all(f"cp -r .gpu/call{number}/. " in commands[number - 1] for number in (1, 2, 3, 4))


def test_what_a_command_copies_is_what_its_call_carries(
    clone: Path, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(options)
    second = next(line for line in capsys.readouterr().out.splitlines() if "cp -r .gpu/call2" in line)
    there = tmp_path / "there"
    copying = second.replace("/tmp/msmlp", str(there)).split(" && python3")[0]
    subprocess.run(["bash", "-c", copying], check=True)
    assert files_of(there) == files_of(clone / ".gpu" / "call2")


def test_results_of_an_earlier_lease_come_before_the_data(
    clone: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, fetched = tmp_path / "work", tmp_path / "fetched"
    work.mkdir()
    (work / "file").write_bytes(bytes(110 * KIB))
    monkeypatch.setattr(archive, "SHARD", 60 * KIB)
    pack([Parcel("all", (work / "file",))], work, fetched)
    (fetched / "summary.md").touch()
    assert main([*options, "--results", str(fetched)]) == 0
    brought = [files_of(call) for call in sorted((clone / ".gpu").glob("call*"))]
    assert {"results/index.json", "results/campaign.tar.00"} <= brought[0]
    assert "results/campaign.tar.01" in brought[1]
    assert not any("results/summary.md" in files for files in brought)
    assert "--restore /tmp/msmlp/results" in capsys.readouterr().out


def test_results_that_would_be_refused_there_are_refused_here(
    clone: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert main([*options, "--results", str(fetched)]) == 2
    assert "index.json cannot be read" in capsys.readouterr().err
    pack([], tmp_path, fetched)
    (fetched / "campaign.tar.00").write_bytes(b"of another call")
    assert main([*options, "--results", str(fetched)]) == 2
    assert "campaign.tar.00 is damaged, or not of the pack" in capsys.readouterr().err


def test_an_earlier_layout_is_gone(clone: Path, options: list[str]) -> None:
    main(options)
    assert main([*options, "--data", "cifar100"]) == 0
    calls = sorted((clone / ".gpu").glob("call*"))
    assert len(calls) == 2
    assert not any("cifar10/" in name for call in calls for name in files_of(call))


def test_a_first_lease_can_begin_with_the_tiny_walk_on_the_gpu(
    clone: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--smoke", "150"]) == 0
    first = capsys.readouterr().out.splitlines()[2:4]
    assert "timeout_s 330" in first[0]
    assert "--per-class 100" in first[1]
    assert "--tiny" in first[1]
    assert "--seconds 150" in first[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--out", "open"], "open is not a folder of this clone that git ignores"),
        (["--out", "/tmp/elsewhere"], "/tmp/elsewhere is not a folder of this clone"),
        (["--shared", "nowhere"], "nowhere does not hold unpack.py and cifar10/train/*.webp"),
        (["--wheels", "."], ". holds no wheels"),
    ],
)
def test_mistakes_are_one_clear_line(
    clone: Path, options: list[str], change: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, *change]) == 2
    assert capsys.readouterr().err.startswith(f"prepare: {reason}")


def test_a_file_that_fits_no_call_is_named(clone: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # Untracked and not ignored: it travels with every call.
    (clone / "forgotten").write_bytes(bytes(75 * KIB))
    assert main(options) == 2
    assert "cat-00.webp has 0.02 MiB, and beside the tree a call carries 0.01" in capsys.readouterr().err


def test_the_top_of_a_clone_is_needed(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    assert "at the top of the clone" in capsys.readouterr().err


def test_wheels_are_all_that_the_machine_lacks() -> None:
    missing = wheels.missing("3.12")
    # Of another version there, or not there at all.
    assert {"pydantic", "pydantic-core", "kornia", "kornia-rs", "typing-extensions", "fastapi"} <= set(missing)
    assert not set(missing) & wheels.THERE
    assert not any(name.startswith(("nvidia", "cuda")) for name in missing)


def test_the_project_needs_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {Requirement(text).name for text in (*project["dependencies"], *extras["serve"], *extras["train"])}
    # Export is not a step of the campaign, and uvicorn does without uvloop.
    assert names - {"onnx", "onnxscript", "uvloop"} <= set(wheels.NEEDED)


def test_what_is_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kornia_rs-0.2.0-cp312-cp312-manylinux_2_17_x86_64.whl").touch()
    monkeypatch.setattr(wheels.sys, "executable", "/bin/false")
    wheels.download({"kornia-rs": "0.2.0"}, tmp_path, "3.12")
    with pytest.raises(subprocess.CalledProcessError):
        wheels.download({"kornia-rs": "0.2.1"}, tmp_path, "3.12")
