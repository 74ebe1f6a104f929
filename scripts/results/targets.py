"""The goals of the frontier beside what the shipped weights reach on test images."""

from dataclasses import dataclass

from scripts.results.sources import Shipped
from scripts.results.text import NOT_YET, percent, table

BUDGETS = (0.03, 0.08, 0.20, 0.40)
"""Mean GFLOPs an image."""
STEPS = ("floor", "target", "moonshot")
GOALS = {
    ("CIFAR-10", "cifar10-"): ((87, 90.5, 92), (91, 93.5, 94.5), (93, 95, 95.8), (94, 95.8, 96.5)),
    ("CIFAR-100", "cifar100-"): ((60, 66, 70), (68, 73, 76), (72, 76.5, 79), (74, 78.5, 81)),
}
"""Test accuracy in percent by data set (with the names of its weights folders) and budget."""

HEAD = """## Targets

Test accuracy at a mean cost. For each budget: the operating point of any weights here that is expected to be best, by
validation images, among those whose mean cost on the test images is within the budget, and what it reached on them.
Weights speak for a budget only if their full cascade costs at least the next smaller budget: a network that is ten
times smaller says nothing of what could be had.
"""


@dataclass(frozen=True)
class Reached:
    """An operating point of some weights on test images."""

    weights: str
    point: str
    accuracy: float
    mean_gflops: float
    images: int
    expected: float


def target_lines(shipped: list[Shipped]) -> list[str]:
    """A table a data set."""
    lines = HEAD.splitlines()
    for (data, prefix), goals in GOALS.items():
        ours = [each for each in shipped if each.name.startswith(prefix)]
        rows = [_row(k, goals[k], best_within(ours, k)) for k in range(len(BUDGETS))]
        head = [
            f"{data}: mean GFLOPs at most",
            " / ".join(STEPS),
            "reached",
            "at GFLOPs",
            "test images",
            "weights",
            "so",
        ]
        lines += ["", *table(head, rows)]
    return lines


def best_within(shipped: list[Shipped], budget: int) -> Reached | None:
    """The point that validation images would have chosen for BUDGETS[budget]; None where no weights speak for it."""
    below = BUDGETS[budget - 1] if budget else 0.0
    candidates = [
        Reached(
            each.name, got["name"], got["accuracy"], got["mean_gflops"], each.test["images"], point["expected_accuracy"]
        )
        for each in shipped
        if each.test is not None and each.manifest["gflops_cumulative"][-1] >= below
        for point, got in zip(each.calibration["operating_points"], each.test["operating_points"], strict=True)
        if got["mean_gflops"] <= BUDGETS[budget]
    ]
    return max(candidates, key=lambda reached: reached.expected, default=None)


def verdict(accuracy: float, goals: tuple[float, ...]) -> str:
    """The highest goal that was reached."""
    held = [step for step, goal in zip(STEPS, goals, strict=True) if 100 * accuracy >= goal]
    return f"{held[-1]} reached" if held else f"{goals[0] - 100 * accuracy:.2f} points below the floor"


def _row(budget: int, goals: tuple[float, ...], reached: Reached | None) -> list[str]:
    wanted = [f"{BUDGETS[budget]:.2f}", " / ".join(f"{goal:g}" for goal in goals)]
    if reached is None:
        return [*wanted, NOT_YET, "", "", "", ""]
    cost, images = f"{reached.mean_gflops:.4f}", str(reached.images)
    where = f"`{reached.weights}`, `{reached.point}`"
    return [*wanted, percent(reached.accuracy), cost, images, where, verdict(reached.accuracy, goals)]
