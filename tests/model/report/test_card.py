import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from msmlp.model.errors import OptionError
from msmlp.model.evaluate import Measured, evaluate, measure
from msmlp.model.nn.config import PRESETS
from msmlp.model.report.card import architecture, card, write_card
from msmlp.model.report.gallery import choose, draw, telling_cut
from tests.imported import imported, network


def test_the_numbers_are_those_of_evaluate(measured: Measured, tiny_weights: Path, digits_folder: Path) -> None:
    document = evaluate(tiny_weights, digits_folder, "test", "cpu")
    made = card(measured, "balanced")
    assert [{**row, "temperature": None} for row in made["exits"]] == [
        {**row, "temperature": None} for row in document["exits"]
    ]
    fields = ("accuracy", "mean_gflops", "exit_share")
    expected = {row["name"]: [row[field] for field in fields] for row in document["operating_points"]}
    got = {row["name"]: [row[field] for field in fields] for row in made["operating_points"]}
    assert {"fast", "balanced", "accurate"} <= got.keys()
    assert all(expected[name] == numbers for name, numbers in got.items())
    right = sum(row["images"] * row["accuracy"] for row in made["classes"])
    assert right / made["images"] == pytest.approx(expected["balanced"][0])
    assert json.loads(json.dumps(made)) == made


def test_a_card_and_its_pictures_are_written(measured: Measured, tmp_path: Path) -> None:
    made = write_card(measured, "fast", tmp_path / "card")
    text = (tmp_path / "card" / "card.md").read_text()
    for name in made["files"]:
        assert (tmp_path / "card" / name).exists()
        if name.endswith(".png"):
            assert f"]({name})" in text
            with Image.open(tmp_path / "card" / name) as picture:
                assert picture.format == "PNG"
    assert text.startswith("# `tiny-digits`")
    assert "on cpu in float32" in text
    assert "150 test images" in text
    assert "without distillation" in text
    assert f"{100 * made['exits'][2]['accuracy']:.2f} %" in text
    assert f"{made['parameters']:,} parameters" in text
    assert "By class, at `fast`" in text


def test_a_card_says_how_far_the_promises_held(
    measured: Measured, audited_weights: Path, audited_digits: Path, tmp_path: Path
) -> None:
    write_card(measured, "fast", tmp_path / "none")
    text = (tmp_path / "none" / "card.md").read_text()
    assert "**No audit set**: a tenth of each class is 40 of 400 images; 100 are needed." in text
    promise = measured.promise(measured.point("fast"))
    assert promise is not None
    row = next(line for line in text.splitlines() if line.startswith("| `fast`"))
    assert f"| {100 * promise['expected_minus_reached']:+.2f} ± {100 * promise['standard_error']:.2f} |" in row

    made = write_card(measure(audited_weights, audited_digits, "test", "cpu"), "fast", tmp_path / "audited")
    text = (tmp_path / "audited" / "card.md").read_text()
    last, fast = made["audit"]["exits"][-1], made["audit"]["operating_points"]["fast"]
    assert "**Audit**: 100 training images that were held out and chose nothing." in text
    assert f"exit 3 {100 * last['expected_minus_reached']:+.2f} ± {100 * last['standard_error']:.2f}" in text
    assert f"`fast` {100 * fast['expected_minus_reached']:+.2f} ± " in text


def test_what_people_wrote_on_the_card_is_kept(measured: Measured, tmp_path: Path) -> None:
    write_card(measured, "balanced", tmp_path)
    path = tmp_path / "card.md"
    path.write_text("Before.\n" + path.read_text().replace("test images", "rubbish") + "\nFor digits only.\n")
    write_card(measured, "balanced", tmp_path)
    text = path.read_text()
    assert text.startswith("Before.\n# `tiny-digits`")
    assert text.endswith("\nFor digits only.\n")
    assert "rubbish" not in text
    assert text.count("| operating point |") == 1


def test_a_card_without_the_markers_is_left_as_it_is(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("My own card.\n")
    with pytest.raises(OptionError, match=r"card\.md lacks the markers"):
        write_card(measured, "balanced", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "My own card.\n"


def test_an_unknown_operating_point_names_those_there_are(measured: Measured, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'slow' is not an operating point; expected one of .*balanced"):
        write_card(measured, "slow", tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_without_a_split_the_test_images_are_taken_where_there_are_any(
    tiny_weights: Path, digits_folder: Path, tmp_path: Path
) -> None:
    assert measure(tiny_weights, digits_folder, None, "cpu").split == "test"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train").symlink_to(digits_folder / "train")
    held_out = measure(tiny_weights, tmp_path / "digits", None, "cpu")
    assert (held_out.split, len(held_out.images)) == ("val", 40)


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"out: .* cannot be made a folder"):
        write_card(measured, "balanced", tmp_path / "file")
    (tmp_path / "out" / "confusion.png").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"out: .* cannot be written to"):
        write_card(measured, "balanced", tmp_path / "out")


def test_a_network_is_named_by_its_sizes_and_by_what_is_unusual() -> None:
    network = PRESETS["tiny"].model_dump(mode="json")
    assert architecture(network) == "4/16/64 tokens, width 32/32/32, 2/2/2 blocks, reuse all"
    unusual = {**network, "reuse": "first", "reuse_norm": False}
    assert architecture(unusual).endswith("reuse first, reuse_norm False")
    assert architecture({**network, "stages": network["stages"][-1:]}) == "64 tokens, width 32, 2 blocks"


def test_an_imported_cascade_has_a_card_and_a_gallery(digits: Any, tmp_path: Path) -> None:
    folder = imported(tmp_path / "own", digits, network(digits, 16, 4), network(digits, 32, 24))
    measured = measure(folder, tmp_path / "photos", "val", "cpu")
    write_card(measured, "balanced", folder)
    text = (folder / "card.md").read_text()
    assert "imported graphs (graph-1.onnx, graph-2.onnx)" in text
    assert "**Calibrated** on 150 images" in text
    assert measured.picture(0).shape == (32, 32, 3)
    cut = telling_cut(measured, None)
    draw(choose(measured, cut, 3, 2), measured, cut, tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").exists()
