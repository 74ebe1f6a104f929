"""The page: the paper's figure beside ours, and `not run` where there is none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.claims import CLAIMS, Claim, Estimate, difference, estimate
from benchmarks.paper.curve import CORRECTED, PAPER, at_cost, weight_sets
from benchmarks.paper.figures import curve, easy_and_hard, plot
from benchmarks.paper.measure import Result
from benchmarks.paper.plan import DATA, MIXERS, PATCHES, SCALES, Run, Scale, command, plan
from benchmarks.paper.published import ACCURACIES, TABLE_2, TABLES, Row
from benchmarks.paper.text import PAGE, SCALE
from msmlp.model.text import percent, shares, table

SHOWN_SETS = range(0, 40, 3)
"""The weight sets that are in Figure 4's tables."""


@dataclass(frozen=True)
class Campaign:
    """What is finished: trainings, and Table 2's measurements by data and size."""

    scale: Scale
    results: dict[Run, Result]
    speed: dict[str, dict[str, Any]]

    def run(self, data: str, network: str) -> Run:
        """The one with seed 0."""
        return Run(self.scale, data, self.scale.sizes[0], network, 0)

    def of(self, data: str, network: str) -> dict[int, Result]:
        """The finished results by seed."""
        wanted = data, network, self.scale.sizes[0]
        return {run.seed: each for run, each in self.results.items() if (run.data, run.network, run.size) == wanted}

    def accuracy(self, data: str, network: str, exit: int) -> Estimate | None:
        """Of an exit (1...K) on the test images."""
        found = self.of(data, network)
        return estimate([each.test.correct[:, exit - 1] for each in found.values()]) if found else None


def write_page(campaign: Campaign, path: Path) -> None:
    """Write the page, and the pictures of Figure 4 beside it."""
    scale = campaign.scale
    parts = {
        "claims": _claims(campaign),
        "table_2": _table_2(campaign),
        **{name: _table(campaign, rows) for name, rows in TABLES.items()},
        "figure_4": [line for data in DATA for line in _figure_4(campaign, data, path.parent)],
        "figure_5": [line for data in DATA for line in _figure_5(campaign, data)],
        "trainings": [_training(run, campaign.results.get(run)) for run in plan(scale)],
    }
    page = PAGE.format(
        scale=scale.name,
        about=SCALE[scale.name],
        done=len(campaign.results),
        runs=len(plan(scale)),
        **{name: "\n".join(lines).strip() for name, lines in parts.items()},
        **_counts(),
    )
    path.write_text(page)


def _claims(campaign: Campaign) -> list[str]:
    head = ["claim", "data", "paper", "here", "s.e. of images, of seeds", "by seed", "images", "verdict"]
    return table(head, [_claim(campaign, claim, data) for data in DATA for claim in CLAIMS])


def _claim(campaign: Campaign, claim: Claim, data: str) -> list[str]:
    both = campaign.of(data, "all"), campaign.of(data, claim.theirs)
    seeds = sorted(both[0].keys() & both[1].keys())
    printed = [ACCURACIES.get((network, claim.exit or 0, data)) for network in ("all", claim.theirs)]
    head = [claim.text, DATA[data], f"{100 * (printed[0] - printed[1]):+.2f}" if printed[0] and printed[1] else ""]
    if not seeds:
        missing = [network for network, found in zip(("all", claim.theirs), both, strict=True) if 0 not in found]
        return [*head, _not_run(*(campaign.run(data, network) for network in missing)), "", "", "", "not run"]
    ours, theirs = ([each[seed] for seed in seeds] for each in both)
    if claim.exit is not None:
        found = difference(*([each.test.correct[:, claim.exit - 1] for each in side] for side in (ours, theirs)))
    else:
        costs, (cost,) = (campaign.run(data, each).gflops(folded=claim.folded) for each in ("all", claim.theirs))
        found = difference([at_cost(each, costs, cost) for each in ours], [each.test.correct[:, 0] for each in theirs])
    return [
        *head,
        _points(found, "+"),
        f"{100 * found.of_images:.2f}, {f'{100 * found.of_seeds:.2f}' if len(seeds) > 1 else 'one seed'}",
        " / ".join(f"{100 * each:+.2f}" for each in found.by_seed),
        f"{found.images:,}",
        found.verdict,
    ]


def _table(campaign: Campaign, rows: tuple[Row, ...]) -> list[str]:
    accuracies = [f"{title}, {who}" for title in DATA.values() for who in ("paper", "here")]
    head = ["", *accuracies, "GFLOPs, paper", "its network, our count", "network here", "served here"]
    return table(head, [_row(campaign, row) for row in rows])


def _row(campaign: Campaign, row: Row) -> list[str]:
    cells = [row.label]
    for data in DATA:
        cells += [percent(row.accuracy[data]) if data in row.accuracy else "", _here(campaign, data, row)]
    cells.append(row.gflops)
    for of, folded in ((Campaign(SCALES["paper"], {}, {}), False), (campaign, False), (campaign, True)):
        own, base = (
            of.run("cifar10", network).gflops(folded=folded)[row.exit - 1] if network else None
            for network in (row.network, row.base)
        )
        cells.append(f"{own:.4g}" + (f" (↑{100 * (own / base - 1):.1f} %)" if own and base else ""))
    return cells


def _here(campaign: Campaign, data: str, row: Row) -> str:
    if reached := campaign.accuracy(data, row.network, row.exit):
        seeds = len(reached.by_seed)
        return f"{_points(reached)} % ({reached.images:,}{f' x {seeds}' * (seeds > 1)})"
    run = campaign.run(data, row.network)
    return _not_run(run) if run in plan(campaign.scale) else "not planned"


def _table_2(campaign: Campaign) -> list[str]:
    rows, notes = list[list[str]](), [""]
    for (size, data), (mixer, cascade, printed) in TABLE_2.items():
        name = f"{data}-{campaign.scale.sizes[0] if size == 's' else size}"
        found = campaign.speed.get(name)
        for place, network, (accuracy, speed) in ((1, f"MLP-Mixer-{size}", mixer), (0, f"MSMLP-{size}", cascade)):
            rows.append(
                [network, DATA[data], percent(accuracy), f"{speed:,}" if place else f"{speed:,} ({printed} times)"]
            )
            if found is None:
                planned = size == "s" or size in campaign.scale.sizes
                rows[-1] += ["not run: `--speed`" if planned else "not at this scale", ""]
                continue
            ratios = found["ratios"]
            times = f" ({ratios[len(ratios) // 2]:.2f} times, {ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows[-1].append(f"{percent(found['test'][place])} ({found['test'][2]:,})")
            rows[-1].append(f"{found['images_per_second'][place]:,.0f}{'' if place else times}")
        if found is not None:
            ours, theirs, images = found["validation"]
            notes.append(
                f"- `{name}`: {found['machine']}; {found['backend']}; {len(found['ratios'])} rounds of "
                f"{found['images']:,} images. On {images:,} validation images the cascade has {percent(ours)}, the "
                f"Mixer {percent(theirs)}; {shares(found['exit_share'])} of the test images leave at exit 1 / 2 / 3."
            )
    return [*table(["", "data", "accuracy, paper", "images/s", "accuracy, here", "images/s"], rows), *notes]


def _figure_4(campaign: Campaign, data: str, folder: Path) -> list[str]:
    if not (found := list(campaign.of(data, "all").values())):
        return [f"{DATA[data]}: {_not_run(campaign.run(data, 'all'))}", ""]
    costs, picture = campaign.run(data, "all").gflops(), f"figure-4-{data}.png"
    curves = {name: curve(found, solver, costs) for name, solver in (("Algorithm 1", PAPER), ("corrected", CORRECTED))}
    mixers = {
        network: (campaign.run(data, network).gflops()[0], reached)
        for network in MIXERS
        if (reached := campaign.accuracy(data, network, 1))
    }
    images = f"{len(found[0].test.labels):,} images x {len(found)} seed{'s' * (len(found) > 1)}"
    plot(curves, mixers, f"{DATA[data]}, {images}", folder / picture)
    head = [f"{DATA[data]}, {images}: shares", *(f"{name}, {of}" for name in curves for of in ("GFLOPs", "accuracy"))]
    rows = [
        [shares(weight_sets(len(PATCHES))[i]), *(cell for each in curves.values() for cell in _point(*each[i]))]
        for i in SHOWN_SETS
    ]
    return [f"![{DATA[data]}: accuracy against mean GFLOPs]({picture})", "", *table(head, rows), ""]


def _figure_5(campaign: Campaign, data: str) -> list[str]:
    if not (result := campaign.of(data, "all").get(0)):
        return [f"{DATA[data]}: {_not_run(campaign.run(data, 'all'))}", ""]
    rows = [
        [result.about["classes"][label], *(", ".join(map(str, indices)) for indices in both)]
        for label, *both in easy_and_hard(result, campaign.run(data, "all").gflops())
    ]
    return [*table([f"{DATA[data]}, {len(result.test.labels):,} images", "easy", "hard"], rows), ""]


def _training(run: Run, result: Result | None) -> str:
    if result is None:
        options = run.options(Path(DATA[run.data]), Path("DIR") / run.name)
        return f"- `{run.name}`: not run\n  `{command(options)}`"
    words = (
        "{images_per_second:,.0f} images/s on {device}, {dtype}; {images:,} images; torch {torch}; commit {git_commit}"
    )
    return f"- `{run.name}`: {words.format(**result.about)}\n  `{result.about['command']}`"


def _counts() -> dict[str, Any]:
    """The numbers in the section on GFLOPs."""
    paper = Campaign(SCALES["paper"], {}, {})
    mixers = [paper.run("cifar10", network).gflops()[0] for network in MIXERS]
    plain, first, reuse = (paper.run("cifar10", network).gflops() for network in ("none", "first", "all"))
    served = paper.run("cifar10", "all").gflops(folded=True)
    return {
        "mixers": mixers,
        "without_norm": mixers[2] - 5 * 64 * 512 * (2 * 8 + 1) / 1e9,
        "channel_mlps": 2 * 64 * 512 * 2048 * 8 / 1e9,
        "plain": plain,
        "reuse": reuse,
        "served": served,
        "added": [reuse[1] - plain[1], *((each[2] - each[1]) - (plain[2] - plain[1]) for each in (reuse, first))],
        "whole": reuse[2] / mixers[2],
        "whole_served": served[2] / mixers[2],
    }


def _not_run(*runs: Run) -> str:
    return f"not run: `--only {' '.join(run.name for run in runs)}`"


def _points(reached: Estimate, sign: str = "") -> str:
    return f"{100 * reached.mean:{sign}.2f} ± {100 * reached.error:.2f}"


def _point(cost: float, accuracy: float) -> tuple[str, str]:
    return f"{cost:.4g}", percent(accuracy)
