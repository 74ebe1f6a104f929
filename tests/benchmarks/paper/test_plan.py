"""The plan: which trainings, in which order, and that their commands are what runs. GFLOPs against the paper's."""

import math
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import typer

from benchmarks.paper.plan import COMPARED, SCALES, Run, Scale, chosen, plan, words
from benchmarks.paper.published import TABLES
from msmlp.model.errors import OptionError
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.training import trainer
from msmlp.model.training.recipes import RECIPES, TrainOptions, configure

command_line = import_module("msmlp.model.cli.train")  # its package has a function of the same name
CPU, PAPER = SCALES["cpu"], SCALES["paper"]


def paper_counts(network: str, *, folded: bool = False) -> list[float]:
    return Run(PAPER, "cifar10", "s", network, 0).gflops(folded=folded)


def test_the_cpu_campaign_has_twenty_runs_and_two_and_begins_with_what_answers_most() -> None:
    runs = plan(CPU)
    assert len(runs) == len({run.name for run in runs}) == 22
    assert Counter((run.data, run.seed) for run in runs) == {
        ("cifar10", 0): 7,
        ("cifar100", 0): 5,
        ("cifar10", 1): 5,
        ("cifar10", 2): 5,
    }
    assert [(run.data, run.seed) for run in runs] == sorted(
        ((run.data, run.seed) for run in runs), key=lambda key: (key[1], key[0])
    )
    assert [run.network for run in runs[:2]] == ["all", "mixer-4"]
    for seed in range(3):  # paired
        assert {run.network for run in runs if run.data == "cifar10" and run.seed == seed} >= set(COMPARED)


def test_the_papers_campaign_has_its_presets_and_schedule() -> None:
    runs = plan(PAPER)
    assert len(runs) == len({run.name for run in runs}) == 16
    found = {run.name: run.options(Path("data"), Path("out")) for run in runs}
    assert {each.preset for each in found.values()} == {"paper-s", "paper-b", "mixer-s", "mixer-b"}
    assert found["cifar100-b-all-0"].changes == {}
    assert found["cifar10-s-mixer-16-0"].changes == {"stages.0.patch": 16}
    for options in found.values():
        assert configure(options)[1] == RECIPES["paper"]


def test_the_cpu_networks_have_the_papers_proportions() -> None:
    large, _ = configure(Run(PAPER, "cifar10", "s", "all", 0).options(Path(), Path()))
    small, recipe = configure(Run(CPU, "cifar10", "cpu", "all", 0).options(Path(), Path()))
    assert recipe == RECIPES["paper"].model_copy(update={"epochs": 15})
    for ours, theirs in zip(small.stages, large.stages, strict=True):  # type: ignore[union-attr]
        assert ours.patch == theirs.patch
        assert (ours.width, ours.depth) == (64, 4)
        assert ours.token_hidden / ours.width == theirs.token_hidden / theirs.width
        assert ours.channel_hidden / ours.width == theirs.channel_hidden / theirs.width


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_networks_and_seeds_are_what_their_names_say(scale: Scale) -> None:
    switches = {"all": ("all", True), "none": ("none", True), "first": ("first", True), "no-norm": ("all", False)}
    for run in plan(scale):
        options = run.options(Path(), Path())
        network, _ = configure(options)
        assert isinstance(network, CascadeConfig)
        assert options.seed == run.seed
        assert {stage.depth for stage in network.stages} == {{"cpu": 4, "s": 8, "b": 12}[run.size]}
        if run.network in switches:
            assert [stage.patch for stage in network.stages] == [16, 8, 4]
            assert (network.reuse, network.reuse_norm) == switches[run.network]
        else:
            assert [f"mixer-{stage.patch}" for stage in network.stages] == [run.network]


@pytest.mark.parametrize("run", [*plan(CPU)[:7], *plan(PAPER)], ids=lambda run: f"{run.scale.name} {run.name}")
def test_the_command_of_a_run_is_what_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainOptions] = []
    monkeypatch.setattr(trainer, "train", lambda options: (seen.append(options), Path("out"))[1])
    monkeypatch.setattr(command_line, "_say_trained", lambda *_: None)
    app = typer.Typer()
    app.command()(command_line.train)
    options = run.options(Path("some data"), Path("out") / run.name, "cpu", 2)
    app(words(options)[2:], standalone_mode=False)
    assert seen == [options]


def test_runs_are_chosen_by_name_and_pattern(tiny: Scale) -> None:
    assert [run.name for run in chosen(plan(tiny), ["cifar10-tiny-none-?"])] == [
        "cifar10-tiny-none-0",
        "cifar10-tiny-none-1",
    ]
    assert chosen(plan(tiny), []) == plan(tiny)
    with pytest.raises(
        OptionError, match="only: 'cifar10' is not the name of a run; expected one of cifar10-tiny-all-0"
    ):
        chosen(plan(tiny), ["cifar10"])


def test_table_1_is_our_count_cut_after_two_digits() -> None:
    for row in TABLES["table_1"]:
        (count,) = paper_counts(row.network)
        assert f"{math.floor(100 * count) / 100:.2f}" == row.gflops


def test_what_reuse_adds_to_the_third_stage_is_table_3_and_4_within_rounding() -> None:
    third = {
        network: counts[2] - counts[1] for network in ("none", "first", "all") if (counts := paper_counts(network))
    }
    assert third["all"] - third["none"] == pytest.approx(0.79 - 0.72, abs=0.005)
    assert third["first"] - third["none"] == pytest.approx(0.73 - 0.72, abs=0.005)


def test_no_stages_of_one_structure_give_table_3() -> None:
    """Why the page says that Table 3 cannot be about Table 1's networks."""
    printed = [float(row.gflops) for row in TABLES["table_3"] if row.network == "none"]
    for depth in (1, 4, 8, 12, 24):
        changes = {"width": 512, "depth": depth, "token_hidden": 256, "channel_hidden": 2048}
        counts = Run(Scale("x", ("x",), changes, 1, "auto", 1), "cifar10", "x", "none", 0).gflops()
        assert counts[1] / counts[0] > 4.4 > (printed[1] + 0.01) / printed[0]
    assert paper_counts("mixer-4")[0] > printed[2]
