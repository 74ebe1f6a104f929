"""The page of results: what was measured stands on it, and what was not says so."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from msmlp.model.evaluate import evaluate
from msmlp.model.report.find import find_runs
from msmlp.model.report.run import Found, Run
from msmlp.model.report.tables import gflops
from scripts.results.pairs import pair_lines
from scripts.results.pending import pending_lines
from scripts.results.runs import cheapest_match, run_lines
from scripts.results.sources import Shipped, Sources
from scripts.results.targets import best_within, target_lines, verdict
from scripts.results.text import NOT_YET
from scripts.results_page import ROOT, page


@pytest.fixture
def root(tiny_weights: Path, cifar10_folder: Path, tmp_path: Path) -> Path:
    """A clone with weights for two data sets, one of them not yet measured on test images, and a run's summary."""
    for name in ("cifar10-tiny", "cifar100-tiny"):
        shutil.copytree(tiny_weights, tmp_path / "weights" / name)
    results = tmp_path / "docs" / "results"
    (results / "runs").mkdir(parents=True)
    test = evaluate(tiny_weights, cifar10_folder, "test", "cpu")
    (results / "cifar10-tiny.test.json").write_text(json.dumps(test))
    found = find_runs([tmp_path / "weights" / "cifar10-tiny"])
    (results / "runs" / "tiny.json").write_text(found.model_dump_json())
    return tmp_path


def test_every_weights_folder_has_a_section(root: Path) -> None:
    text = page(root)
    ten, hundred = (
        text.partition(f"## `{name}`")[2].partition("\n## ")[0] for name in ("cifar10-tiny", "cifar100-tiny")
    )
    test = json.loads((root / "docs" / "results" / "cifar10-tiny.test.json").read_text())
    for exit in test["exits"]:
        assert f"{100 * exit['accuracy']:.2f} %" in ten
    for point in test["operating_points"]:
        assert f"| {point['name']} |" in ten
    assert "without distillation" in ten
    assert "none measured yet to test" in hundred
    assert "test accuracy" not in hundred
    assert "| balanced |" in hundred or "| accurate |" in hundred


def test_pictures_and_cards_are_shown_where_they_are(root: Path) -> None:
    assert "](../weights/cifar10-tiny/curves.png)" in page(root)
    assert "confusion" not in page(root)
    for name in ("confusion.png", "reliability.png", "frontier.png", "card.md"):
        (root / "weights" / "cifar10-tiny" / name).write_text("")
        assert f"](../weights/cifar10-tiny/{name})" in page(root)


def test_figures_of_another_calibration_are_refused(root: Path) -> None:
    path = root / "docs" / "results" / "cifar10-tiny.test.json"
    test = json.loads(path.read_text())
    test["operating_points"][0]["thresholds"] = [0.123, 0.456]
    path.write_text(json.dumps(test))
    with pytest.raises(ValueError, match="another calibration"):
        page(root)


def test_the_page_in_the_repository_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == page()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page())
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]


# --- targets -----------------------------------------------------------------------------------------------------


def shipped(name: str, cost: float, *points: tuple[str, float, float, float]) -> Shipped:
    """Weights whose full cascade costs `cost`; points are (name, expected accuracy, test accuracy, mean GFLOPs)."""
    calibration = {"operating_points": [{"name": p[0], "expected_accuracy": p[1]} for p in points]}
    test = {
        "images": 5000,
        "operating_points": [{"name": p[0], "accuracy": p[2], "mean_gflops": p[3]} for p in points],
    }
    return Shipped(Path(name), {"gflops_cumulative": [cost / 2, cost]}, calibration, test, None)


def test_validation_images_choose_and_test_images_measure() -> None:
    weights = shipped(
        "cifar10-a", 0.05, ("x", 0.90, 0.91, 0.02), ("lucky", 0.89, 0.95, 0.02), ("dear", 0.99, 0.99, 0.04)
    )
    reached = best_within([weights], 0)
    assert reached is not None
    assert (reached.point, reached.accuracy) == ("x", 0.91)


def test_the_best_of_several_weights_is_taken() -> None:
    some = [shipped("cifar10-a", 0.02, ("x", 0.88, 0.88, 0.01)), shipped("cifar10-b", 0.02, ("y", 0.89, 0.87, 0.02))]
    reached = best_within(some, 0)
    assert reached is not None
    assert reached.weights == "cifar10-b"


def test_small_weights_say_nothing_of_large_budgets() -> None:
    small, large = (shipped("cifar10-a", cost, ("x", 0.9, 0.9, 0.02)) for cost in (0.029, 0.3))
    assert [best_within([small], budget) is not None for budget in range(4)] == [True, False, False, False]
    assert [best_within([large], budget) is not None for budget in range(4)] == [True, True, True, True]


def test_weights_without_test_images_reach_nothing() -> None:
    weights = shipped("cifar10-a", 0.05, ("x", 0.90, 0.91, 0.02))
    assert best_within([Shipped(weights.folder, weights.manifest, weights.calibration, None, None)], 0) is None


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (0.8603, "0.97 points below the floor"),
        (0.87, "floor reached"),
        (0.905, "target reached"),
        (0.93, "moonshot reached"),
    ],
)
def test_verdicts(accuracy: float, said: str) -> None:
    assert verdict(accuracy, (87, 90.5, 92)) == said


def test_each_data_set_has_its_own_goals() -> None:
    text = "\n".join(target_lines([shipped("cifar100-a", 0.02, ("x", 0.6, 0.61, 0.01))]))
    ten, hundred = text.split("| CIFAR-100:")
    assert ten.count(NOT_YET) == 4
    assert hundred.count(NOT_YET) == 3
    assert "| 0.03 | 60 / 66 / 70 | 61.00 % | 0.0100 | 5000 | `cifar100-a`, `x` | floor reached |" in hundred


# --- runs and what is missing ------------------------------------------------------------------------------------


def run(name: str, **fields: Any) -> Run:
    stages = [{"patch": 4, "width": 8, "depth": 1, "token_hidden": 4, "channel_hidden": 8}]
    exits = fields.pop("exits", [(0.9, 0.3)])
    return Run.model_validate(
        {
            "name": name,
            "folder": name,
            "kind": "cascade",
            "finished": True,
            "network": {"stages": stages * len(exits), "reuse": "all", "reuse_norm": True},
            "recipe": "best",
            "epochs": 100,
            "epochs_done": 100,
            "data": "CIFAR-10 (python)",
            "device": "cpu (2 threads)",
            "exits": [{"exit": k, "accuracy": a, "gflops": g} for k, (a, g) in enumerate(exits, 1)],
            **fields,
        }
    )


def point(name: str, accuracy: float, cost: float) -> dict[str, Any]:
    return {"name": name, "expected_accuracy": accuracy, "standard_error": 0.004, "mean_gflops": cost}


CASCADE = run(
    "cascade",
    exits=[(0.8, 0.1), (0.95, 0.4)],
    operating_points=[point("fast", 0.89, 0.05), point("p02", 0.9, 0.1), point("accurate", 0.94, 0.2)],
)


def test_a_cascade_is_compared_at_the_mixers_accuracy() -> None:
    mixer = run("mixer")
    match = cheapest_match(mixer, [mixer, CASCADE])
    assert match is not None
    assert match[1].name == "p02"
    text = "\n".join(run_lines([mixer, CASCADE]))
    assert "| `mixer` | 90.00 % | 0.3000 | `cascade`, `p02` | 90.00 % | 0.1000 | 3.00 |" in text


@pytest.mark.parametrize(
    "other",
    [{"recipe": "paper"}, {"epochs": 99}, {"validation_digest": "x"}, {"teacher": {"name": "t", "sha256": "y"}}],
)
def test_only_what_was_trained_alike_is_compared(other: dict[str, Any]) -> None:
    assert cheapest_match(run("mixer", **other), [CASCADE]) is None


def test_a_mixer_that_no_cascade_matches_is_said() -> None:
    assert "none trained alike is as accurate" in "\n".join(run_lines([run("mixer", exits=[(0.97, 0.3)]), CASCADE]))
    assert "plain Mixers" not in "\n".join(run_lines([CASCADE]))
    assert "None yet." in "\n".join(run_lines([]))


def missing(*runs: Run, benches: tuple[dict[str, Any], ...] = (), pairs: tuple[dict[str, Any], ...] = ()) -> set[str]:
    lines = pending_lines(Sources([], list(runs), list(benches), list(pairs)))
    return {line.split(" | ")[0].removeprefix("| ") for line in lines if NOT_YET in line}


GPU = "NVIDIA H100"
TWO = [(0.8, 0.1), (0.9, 0.2)]
TAUGHT = {"name": "t", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (run("t", kind="teacher", device=GPU), "a teacher, CIFAR-10"),
        (run("t", kind="teacher", device=GPU, data="CIFAR-100 (python)"), "a teacher, CIFAR-100"),
        (run("c", exits=TWO, device=GPU, preset="m", teacher=TAUGHT), "the frontier's cascades, CIFAR-10"),
        (run("m", device=GPU, preset="plain"), "plain Mixers of the same search and recipe, CIFAR-10"),
        (
            run("p", device=GPU, preset="paper-s", recipe="paper", epochs=600, exits=[(0.8, 0.1), (0.9, 0.2)]),
            "`paper-s` on the paper's full schedule, CIFAR-10",
        ),
    ],
)
def test_what_a_gpu_has_run_is_missing_no_more(made: Run, what: str) -> None:
    assert missing() - missing(made) == {what}
    assert missing(made.model_copy(update={"device": "cpu (2 threads)"})) == missing()
    assert missing(made.model_copy(update={"finished": False})) == missing()


def test_a_cascade_without_a_teacher_speaks_for_two_rows_and_the_tests_own_for_none() -> None:
    alone = run("c", exits=TWO, device=GPU, preset="m")
    assert len(missing() - missing(alone)) == 2
    for preset, kind in (("tiny", "cascade"), ("teacher-tiny", "teacher")):
        assert missing(run("t", kind=kind, preset=preset, device=GPU, exits=TWO)) == missing()


def test_an_ablation_is_no_paper_run_at_the_full_schedule() -> None:
    network = {"stages": [], "reuse": "none", "reuse_norm": True}
    made = run(
        "a", device=GPU, preset="paper-s", recipe="paper", epochs=60, network=network, exits=[(0.8, 0.1), (0.9, 1)]
    )
    assert missing() - missing(made) == {"the paper's Table 3: no reuse, at a shorter schedule"}


def test_a_benchmark_on_a_gpu_counts() -> None:
    gone = missing() - missing(benches=({"device": "cuda"},))
    assert gone == {"images/s and latency of the engine on a GPU, in bf16"}
    assert missing(benches=({"device": "cpu"},)) == missing()


PAIR: dict[str, Any] = {
    "data": "cifar-10-batches-py",
    "images": 2048,
    "max_batch": 16,
    "chosen": "as accurate",
    "device": "cuda",
    "network": {"weights": "w/m", "policy": "p20", "expected_accuracy": 0.91, "images_per_second": 5000.0},
    "against": {"weights": "w/plain", "policy": "accurate", "expected_accuracy": 0.9, "images_per_second": 2000.0},
    "gflops_saved": 3.25,
    "speedup": 2.5,
}


def test_a_pair_on_a_gpu_speaks_for_both_ratios() -> None:
    gone = missing() - missing(pairs=(PAIR,))
    assert len(gone) == 2
    assert all("that Mixer" in row or "plain Mixer" in row for row in gone)
    for change in ({"device": "cpu"}, {"chosen": "named"}, {"max_batch": 64}, {"data": None}):
        assert missing(pairs=({**PAIR, **change},)) == missing()


def test_a_pair_is_a_row() -> None:
    row = pair_lines([PAIR])[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "`w/m`, `p20`",
        "91.00 %",
        "`w/plain`",
        "90.00 %",
        "3.25",
        "16",
        "5000",
        "2000",
        "2.50",
        "2048",
        "cuda",
    ]
    assert pair_lines([]) == []


# --- what ships --------------------------------------------------------------------------------------------------

WEIGHTS = sorted(path.parent for path in (ROOT / "weights").glob("*/manifest.json"))


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_shipped_weights_have_a_card_of_their_figures_and_a_row(folder: Path) -> None:
    card = (folder / "card.md").read_text()
    test = json.loads((ROOT / "docs" / "results" / f"{folder.name}.test.json").read_text())
    assert f"{test['images']} test images" in card
    for exit in test["exits"]:
        assert f"| {gflops(exit['gflops'])} | {100 * exit['accuracy']:.2f} % |" in card
    for shown in ("fast", "balanced", "accurate"):
        [got] = [got for got in test["operating_points"] if got["name"] == shown]
        assert re.search(rf"`{shown}` \| {100 * got['accuracy']:.2f} % ", card)
    for name in ("confusion.png", "reliability.png", "frontier.png"):
        assert (folder / name).exists()
    assert f"({folder.name}/card.md)" in (ROOT / "weights" / "README.md").read_text()
    runs = [
        run
        for path in (ROOT / "docs" / "results" / "runs").glob("*.json")
        for run in Found.model_validate_json(path.read_bytes()).runs
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"] in {run.sha256 for run in runs}
