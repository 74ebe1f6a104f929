"""Damaged and hostile weights folders: each is refused in one clear line, and nothing in them is executed."""

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from safetensors.torch import save as save_tensors

from msmlp.main import main
from msmlp.model.errors import WeightsError
from msmlp.model.nn.served import served_stages
from msmlp.model.weights import describe, load_calibration, load_graphs, load_weights, model_version
from msmlp.model.weights.graphs import origin, write_graphs

MANIFEST, MODEL = "manifest.json", "model.safetensors"
CALIBRATION, TABLE = "calibration.json", "calibration.safetensors"
FILES = (MANIFEST, MODEL, CALIBRATION, TABLE)
EXPORT, GRAPH = "export.json", "stage-1.onnx"
EXPORTED = (*FILES, EXPORT, GRAPH)

Damage = Callable[[Path], object]


@pytest.fixture
def folder(weights_without_graphs: Path, tmp_path: Path) -> Path:
    """A trained and calibrated folder that a test may write into."""
    return Path(shutil.copytree(weights_without_graphs, tmp_path / "tiny"))


@pytest.fixture
def exported(folder: Path) -> Path:
    """The same with graphs, whose content is never read here."""
    weights = load_weights(folder)
    write_graphs(folder, [b"a graph"] * 3, origin(weights, load_calibration(weights)), opset=18, torch="2")
    return folder


def load_all(folder: Path) -> str:
    """Load everything, the graphs where there are some; the model's version."""
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    if (folder / "stage-3.onnx").exists():
        assert len(load_graphs(weights, calibration)) == 3
    return model_version(weights, calibration)


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        load_all(folder)
    message = str(refused.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def vouched(folder: Path, blob: bytes) -> None:
    """Other content for the model, with a manifest and a calibration that vouch for it."""
    (folder / MODEL).write_bytes(blob)
    sha256 = hashlib.sha256(blob).hexdigest()
    edit(folder / MANIFEST, lambda m: m["files"].update({MODEL: sha256}))
    edit(folder / CALIBRATION, lambda c: c.update(model_sha256=sha256))


def test_the_folder_is_fine_before_anything_is_done_to_it(folder: Path) -> None:
    assert load_all(folder)
    vouched(folder, (folder / MODEL).read_bytes())
    assert load_all(folder)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_directory_in_place_of_a_file(exported: Path, name: str) -> None:
    (exported / name).unlink()
    (exported / name).mkdir()
    assert refusal(exported).startswith(f"{exported / name} is not a file")


@pytest.mark.parametrize("name", EXPORTED)
def test_a_pipe_in_place_of_a_file_does_not_block(exported: Path, name: str) -> None:
    (exported / name).unlink()
    os.mkfifo(exported / name)
    assert refusal(exported).startswith(f"{exported / name} is not a file")


@pytest.mark.parametrize("name", EXPORTED)
def test_a_link_is_as_good_as_the_file_it_leads_to(exported: Path, tmp_path: Path, name: str) -> None:
    """Stores of weights are made of links; what is behind one is checked like any file."""
    path, store = exported / name, tmp_path / "store"
    path.rename(store)
    path.symlink_to(store)
    assert load_all(exported)
    store.unlink()
    assert any(said in refusal(exported) for said in (name, "not calibrated", "has no float32 ONNX graphs"))
    path.unlink()
    path.symlink_to(path)
    assert name in refusal(exported)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_empty_file(exported: Path, name: str) -> None:
    (exported / name).write_bytes(b"")
    assert name in refusal(exported)


@pytest.mark.parametrize("name", [MANIFEST, CALIBRATION, EXPORT])
@pytest.mark.parametrize("content", [b"[" * 200_000, b"\x00" * 100, b'{"format": 1', b"\x80\x05."])
def test_descriptions_that_are_not_json(exported: Path, name: str, content: bytes) -> None:
    (exported / name).write_bytes(content)
    assert refusal(exported).startswith(f"{exported / name} is not JSON")


@pytest.mark.parametrize("left", [FILES[1:2], FILES[1:], ()])
def test_a_folder_that_training_has_not_finished(folder: Path, left: tuple[str, ...]) -> None:
    """The manifest is written last: without it there is nothing to serve yet."""
    for name in FILES:
        if name not in left:
            (folder / name).unlink()
    (folder / f"{MANIFEST}.partial").write_text('{"format": 1, "name": "ti')
    assert "has no manifest.json: it is not a weights folder, or is incomplete" in refusal(folder)


def test_what_an_interrupted_writer_left_beside_whole_files_is_not_read(folder: Path) -> None:
    before = load_all(folder)
    for name in FILES:
        (folder / f"{name}.partial").write_bytes(b"half")
    assert load_all(folder) == before


def test_a_manifest_without_its_model(folder: Path) -> None:
    (folder / MODEL).rename(folder / f"{MODEL}.partial")
    assert refusal(folder) == f"{folder / MODEL} is missing"


def executes(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle that writes a file when it is loaded."""
    trace = tmp_path / "executed"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    blob = pickle.dumps(Touch())
    pickle.loads(blob)
    assert trace.exists(), "the trap works"
    trace.unlink()
    return blob, trace


def test_a_pickle_is_never_loaded_even_with_matching_hashes(folder: Path, tmp_path: Path) -> None:
    blob, trace = executes(tmp_path)
    vouched(folder, blob)
    assert "is not a safetensors file" in refusal(folder)
    (folder / CALIBRATION).write_bytes(blob)
    (folder / MANIFEST).write_bytes(blob)
    assert "is not JSON" in refusal(folder)
    assert not trace.exists()


def test_a_pickled_table_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    blob, trace = executes(tmp_path)
    (folder / TABLE).write_bytes(blob)
    edit(folder / CALIBRATION, lambda c: c["files"].update({TABLE: hashlib.sha256(blob).hexdigest()}))
    assert "is not a calibration table" in refusal(folder)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file_that_is_vouched_for(folder: Path, keep: int) -> None:
    vouched(folder, (folder / MODEL).read_bytes()[:keep])
    assert "is not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("length", [2**62, 2**63 + 8, 2**64 - 1])
def test_a_header_that_claims_the_impossible(folder: Path, length: int) -> None:
    vouched(folder, length.to_bytes(8, "little") + (folder / MODEL).read_bytes()[8:])
    assert "is not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_numbers_of_another_type(folder: Path, kind: torch.dtype) -> None:
    state = load((folder / MODEL).read_bytes())
    vouched(folder, save_tensors({name: torch.from_numpy(array).to(kind) for name, array in state.items()}))
    assert "expected " in refusal(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_number_that_is_none_anywhere(folder: Path, value: float) -> None:
    state = {name: array.copy() for name, array in load((folder / MODEL).read_bytes()).items()}
    last = sorted(state)[-1]
    state[last].flat[-1] = value
    vouched(folder, save(state))
    assert f"{last} has NaN or infinite values" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["preprocess"].update(std=[0.2, 0, 0.2]), "preprocess.std.1"),
        (lambda m: m["preprocess"].update(std=[0.2, float("inf"), 0.2]), "preprocess.std.1"),
        (lambda m: m["preprocess"].update(mean=[0.2, 0.2, float("nan")]), "preprocess.mean.2"),
        (lambda m: m["preprocess"].update(mean=[0.2]), "preprocess.mean"),
        (lambda m: m["preprocess"].update(size=64), "preprocess.size is 64, but the cascade reads 32"),
        (lambda m: m["preprocess"].update(resize="stretch"), "preprocess.resize"),
        (lambda m: m["preprocess"].update(gamma=2.2), "preprocess.gamma"),
        (lambda m: m["cascade"].update(attention=True), "cascade.attention"),
        (lambda m: m["cascade"]["stages"].pop(), "gflops_cumulative"),
    ],
)
def test_a_manifest_that_would_compute_something_else(folder: Path, change: Damage, said: str) -> None:
    """What of a later version is unknown here and changes what is computed is refused, not ignored."""
    edit(folder / MANIFEST, change)
    assert said in refusal(folder)


@pytest.mark.parametrize("trick", ["../../outside", "/etc/passwd", "model.safetensors/../x", "\x00", "x\ny", ""])
def test_names_in_files_lead_nowhere(folder: Path, trick: str) -> None:
    """Only files of known names in the folder are read; other entries are ignored."""
    edit(folder / MANIFEST, lambda m: m["files"].update({trick: "0" * 64}))
    assert load_all(folder)
    edit(folder / MANIFEST, lambda m: m.update(files={trick: m["files"][MODEL]}))
    assert "does not list it" in refusal(folder)


def test_the_version_is_stable_and_changes_with_each_part(folder: Path, tmp_path: Path) -> None:
    versions = [load_all(folder)]
    assert load_all(folder) == versions[0]
    assert load_all(Path(shutil.copytree(folder, tmp_path / "elsewhere" / "renamed"))) == versions[0]
    edit(folder / MANIFEST, lambda m: m.update(name="another"))
    versions.append(load_all(folder))
    table = {name: array.copy() for name, array in load((folder / TABLE).read_bytes()).items()}
    table["scores"][0, 0] += 1e-3
    blob = save(table)
    (folder / TABLE).write_bytes(blob)
    edit(folder / CALIBRATION, lambda c: c["files"].update({TABLE: hashlib.sha256(blob).hexdigest()}))
    versions.append(load_all(folder))
    edit(folder / CALIBRATION, lambda c: c.update(temperatures=[2.0, 2.0, 2.0]))
    versions.append(load_all(folder))
    state = {name: array.copy() for name, array in load((folder / MODEL).read_bytes()).items()}
    state[sorted(state)[0]] += 1e-3
    vouched(folder, save(state))
    versions.append(load_all(folder))
    assert len(set(versions)) == len(versions) == 5


# What commit c7030b9 wrote, the first that had both files.
OLD_MANIFEST = {"format", "name", "cascade", "classes", "preprocess", "files", "training", "results"}
OLD_MANIFEST |= {"gflops_incremental", "gflops_cumulative"}
OLD_CALIBRATION = {"format", "model_sha256", "exit_policy", "temperatures", "operating_points", "solvers", "images"}
OLD_CALIBRATION |= {"digest", "device", "files"}
OLD_POINT = {"name", "thresholds", "expected_accuracy", "standard_error", "mean_gflops", "exit_share", "solver"}


def only(content: dict[str, Any], names: set[str]) -> None:
    assert names <= content.keys()
    for name in content.keys() - names:
        del content[name]


def test_a_folder_of_the_first_version_is_served(folder: Path) -> None:
    edit(folder / MANIFEST, lambda m: only(m, OLD_MANIFEST))
    edit(folder / CALIBRATION, lambda c: only(c, OLD_CALIBRATION))
    edit(folder / CALIBRATION, lambda c: [only(point, OLD_POINT) for point in c["operating_points"]])
    edit(folder / CALIBRATION, lambda c: c.update(exit_policy="max-probability", temperatures=[1.0, 1.0, 1.0]))
    weights = load_weights(folder)
    calibration = load_calibration(weights)
    stages = served_stages(weights, calibration.file.temperatures, calibration.file.exit_policy)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    _, probabilities, score = stages[0](pixels, None)
    assert torch.equal(score, probabilities.amax(dim=1))
    assert describe(weights, calibration)["operating_points"]


def test_a_folder_of_a_later_minor_version_is_served(folder: Path) -> None:
    plain = describe(weights := load_weights(folder), load_calibration(weights))
    edit(folder / MANIFEST, lambda m: m.update(licence="MIT"))
    edit(folder / MANIFEST, lambda m: m["files"].update({"stage-9.onnx": "0" * 64}))
    edit(folder / CALIBRATION, lambda c: c.update(drift={"since": "tomorrow"}))
    edit(folder / CALIBRATION, lambda c: [point.update(joules=1) for point in c["operating_points"]])
    later = describe(weights := load_weights(folder), load_calibration(weights))
    assert later.pop("version") != plain.pop("version")
    assert later == plain


@pytest.mark.parametrize("number", [0, 2, 1.5, "1", None])
@pytest.mark.parametrize("name", [MANIFEST, CALIBRATION])
def test_an_unknown_format(folder: Path, name: str, number: object) -> None:
    edit(folder / name, lambda content: content.update(format=number))
    assert "format" in refusal(folder)


def msmlp(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["msmlp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def _flip(folder: Path) -> None:
    blob = bytearray((folder / MODEL).read_bytes())
    blob[-1] ^= 1
    (folder / MODEL).write_bytes(bytes(blob))


def _other_digest(folder: Path) -> None:
    edit(folder / MANIFEST, lambda m: m["training"]["validation"].update(digest="0" * 64))


@pytest.mark.parametrize(
    ("command", "damage", "said"),
    [
        ("info", _flip, "is damaged"),
        ("info", lambda folder: edit(folder / MANIFEST, lambda m: m.update(format=2)), "format 2 is unknown"),
        ("classify", lambda folder: (folder / MODEL).unlink(), "is missing"),
        ("evaluate", lambda folder: vouched(folder, b"\x80\x05."), "is not a safetensors file"),
        ("calibrate", _other_digest, "are not those held out in training"),
        ("evaluate", _other_digest, "are not those held out in training"),
    ],
)
def test_the_command_says_it_in_one_line(
    folder: Path,
    digits_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    damage: Damage,
    said: str,
) -> None:
    damage(folder)
    before = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    picture = next((digits_folder / "test" / "0").iterdir())
    more = {
        "info": [],
        "classify": [picture],
        "evaluate": ["--data", digits_folder, "--split", "val"],
        "calibrate": ["--data", digits_folder],
    }
    assert msmlp(monkeypatch, command, "--weights", folder, *more[command]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("msmlp: ")
    assert said in line
    assert {name: (folder / name).read_bytes() for name in before} == before
