"""The page of made-up results, and of none."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.paper.curve import at_cost
from benchmarks.paper.measure import Result
from benchmarks.paper.page import Campaign, write_page
from benchmarks.paper.plan import MIXERS, SCALES, Run, plan

ACCURACIES = {"all": [0.4, 0.5, 0.6], "none": [0.4, 0.45, 0.5], "first": [0.4, 0.5, 0.6], "no-norm": [0.4, 0.5, 0.62]}
SPEED = {
    "validation": [0.6, 0.59, 5000],
    "test": [0.61, 0.6, 5000],
    "exit_share": [0.5, 0.3, 0.2],
    "images_per_second": [3000.0, 2000.0],
    "ratios": [1.4, 1.5, 1.7],
    "images": 2048,
    "backend": "onnx, cpu, float32",
    "machine": "a machine",
}


def section(page: str, title: str) -> str:
    return re.split(r"^## ", page, flags=re.M)[
        1 + [t.split(":")[0] for t in re.findall(r"^## (.*)", page, re.M)].index(title)
    ]


def cells(page: str, title: str, row: str) -> list[str]:
    (line,) = (line for line in section(page, title).splitlines() if re.match(rf"\| {row.replace('|', '[|]')}", line))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def page(made_up: Callable[..., Result], tmp_path: Path) -> str:
    """The page of a campaign whose CIFAR-10 runs are finished, and Table 2 measured."""
    results = {
        run: made_up(ACCURACIES.get(run.network, [0.5]), run.seed)
        for run in plan(SCALES["cpu"])
        if run.data == "cifar10"
    }
    write_page(Campaign(SCALES["cpu"], results, {"cifar10-cpu": SPEED}), tmp_path / "page.md")
    assert (tmp_path / "figure-4-cifar10.png").stat().st_size > 10_000
    assert not (tmp_path / "figure-4-cifar100.png").exists()
    return (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("scale", SCALES)
def test_without_results_every_cell_names_its_command_and_gflops_are_there(scale: str, tmp_path: Path) -> None:
    write_page(Campaign(SCALES[scale], {}, {}), tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    size = SCALES[scale].sizes[0]
    assert f"0 of {len(plan(SCALES[scale]))} trainings are finished" in page
    assert "±" not in "".join(line for line in page.splitlines() if line.startswith("|"))
    cell = cells(page, "Table 1", "Mixer, 64")
    assert cell[1:3] == ["81.87 %", f"not run: `--only cifar10-{size}-mixer-4-0`"]
    assert cell[5:7] == ["1.21", "1.212"]
    assert "would be 1.2095, cut to 1.20" in page
    for run in re.findall(r"--only ([\w -]+)`", page):
        assert set(run.split()) <= {each.name for each in plan(SCALES[scale])}
    for run in plan(SCALES[scale]):
        assert f"- `{run.name}`: not run\n  `msmlp train --data CIFAR-10" in page.replace("CIFAR-100", "CIFAR-10")
    assert "{" not in re.sub(r"`msmlp train[^`]*`", "", page)


def test_our_figures_stand_beside_the_papers(page: str) -> None:
    reuse, plain = cells(page, "Table 3", "reuse, exit 3"), cells(page, "Table 3", "no reuse, exit 3")
    assert re.fullmatch(r"60\.00 ± \d\.\d\d % \(1,000 x 3\)", reuse[2])
    assert re.fullmatch(r"50\.00 ± \d\.\d\d % \(1,000 x 3\)", plain[2])
    assert reuse[3:6] == ["55.81 %", "not run: `--only cifar100-cpu-all-0`", "0.79 (↑9.7 %)"]
    assert reuse[6:] == ["1.68 (↑5.4 %)", "0.01402 (↑6.1 %)", "0.01344 (↑1.6 %)"]
    assert re.fullmatch(r"50\.00 ± 1\.58 % \(1,000\)", cells(page, "Table 1", "Mixer, 4")[2])
    assert cells(page, "Table 1", "Mixer, 4")[4] == "not planned"
    assert cells(page, "Table 4", "in all blocks")[2] == reuse[2]
    assert cells(page, "Table 5", "with LN")[2] == reuse[2]


def test_claims_are_judged_by_their_errors(page: str) -> None:
    verdicts = {
        (cell[0], cell[1]): cell[-1]
        for line in section(page, "Claims").splitlines()
        if len(cell := [each.strip() for each in line.strip("|").split("|")]) == 8
    }
    assert verdicts["Reuse helps exit 2", "CIFAR-10"] == "holds"
    assert verdicts["The LN in f helps exit 3", "CIFAR-10"] == "does not hold"
    alike = "Reuse in all blocks is better than in the first, at exit 3"
    assert verdicts[alike, "CIFAR-10"] == "cannot be told from these images and seeds"
    assert verdicts[alike, "CIFAR-100"] == "not run"
    (equal,) = (claim for claim, data in verdicts if claim.startswith("The cascade beats") and data == "CIFAR-10")
    assert verdicts[equal, "CIFAR-10"] == "holds"
    assert cells(page, "Claims", "Reuse helps exit 3 | CIFAR-100")[2] == "+4.84"


def test_equal_cost_is_counted_in_the_same_way_on_both_sides(made_up: Callable[..., Result], tmp_path: Path) -> None:
    """Hard images need the last exit, so a little more cost helps."""
    runs = {network: Run(SCALES["cpu"], "cifar10", "cpu", network, 0) for network in ("all", "mixer-4")}
    cascade, mixer = made_up([0.1, 0.2, 0.9]), made_up([0.5])
    write_page(Campaign(SCALES["cpu"], {runs["all"]: cascade, runs["mixer-4"]: mixer}, {}), tmp_path / "page.md")
    page, found = (tmp_path / "page.md").read_text(), []
    for row, folded in (("The cascade beats.* CIFAR-10 ", False), ("The same, counted as served | CIFAR-10 ", True)):
        costs, (cost,) = (run.gflops(folded=folded) for run in runs.values())
        found.append(f"{100 * (at_cost(cascade, costs, cost).mean() - 0.5):+.2f}")
        assert cells(page, "Claims", row)[5] == found[-1]
    assert found[0] != found[1]


def test_table_2_has_the_ratio_and_says_which_networks(page: str) -> None:
    assert cells(page, "Table 2", "MSMLP-s | CIFAR-10 ")[4:] == ["61.00 % (5,000)", "3,000 (1.50 times, 1.40 to 1.70)"]
    assert cells(page, "Table 2", "MLP-Mixer-s | CIFAR-10 ")[4:] == ["60.00 % (5,000)", "2,000"]
    assert cells(page, "Table 2", "MSMLP-s | CIFAR-100 ")[4] == "not run: `--speed`"
    assert cells(page, "Table 2", "MSMLP-b | CIFAR-10 ")[4] == "not at this scale"
    assert "neither -s nor -b" in section(page, "Table 2")


def test_figures_are_drawn_and_images_are_named_by_their_place(page: str) -> None:
    assert "](figure-4-cifar10.png)" in section(page, "Figure 4")
    rows = [line for line in section(page, "Figure 5").splitlines() if line.startswith("| class")]
    assert len(rows) == 4
    assert all(re.fullmatch(r"\| class \d \| \d+, \d+, \d+ \| \d+, \d+, \d+ \|", row) for row in rows)


def test_half_a_pair_is_not_compared(made_up: Callable[..., Result], tmp_path: Path) -> None:
    cpu = SCALES["cpu"]
    results = {Run(cpu, "cifar10", "cpu", "all", 0): made_up([0.4, 0.5, 0.6])}
    results[Run(cpu, "cifar10", "cpu", "none", 1)] = made_up([0.4, 0.5, 0.6], 1)
    write_page(Campaign(cpu, results, {}), tmp_path / "page.md")
    cell = cells((tmp_path / "page.md").read_text(), "Claims", "Reuse helps exit 2 | CIFAR-10 ")
    assert cell[3] == "not run: `--only cifar10-cpu-none-0`"


def test_the_mixers_of_table_1_are_points_of_figure_4() -> None:
    assert set(MIXERS) == {"mixer-16", "mixer-8", "mixer-4"}
