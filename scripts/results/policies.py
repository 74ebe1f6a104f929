"""The exit policies against each other, as benchmarks/exit_policies.py measured them."""

from typing import Any

from scripts.results.text import percent, table


def policy_lines(compared: dict[str, Any]) -> list[str]:
    """Accuracy on the images the thresholds were chosen on, and what is left of the difference on held-out ones."""
    base, *others = compared["policies"]
    intervals = all("gain_interval" in compared["policies"][name] for name in others)
    shown = "with an interval" if intervals else "± s.e."
    budgets = [f"{budget:.4f}" for budget in compared["budgets_gflops"]]
    columns = {name: [percent(share) for share in policy["in_sample"]] for name, policy in compared["policies"].items()}
    gains = {name: _gains(compared["policies"][name]) for name in others}
    return [
        f"Exit policies within the same budgets, on the same {compared['images']} validation images. First what the",
        f"joint frontier reaches on the images it was solved on; then the cross-fitted difference to `{base}`, paired",
        f"image by image, in points {shown}. {_spent(compared)}",
        "",
        f"`python -m benchmarks.exit_policies --weights {compared['weights']} --data {compared['data']}`",
        "",
        *_by_budget("mean GFLOPs at most", budgets, columns),
        "",
        *_by_budget("held out, mean GFLOPs at most", budgets, gains),
    ]


def _spent(compared: dict[str, Any]) -> str:
    """Held-out images need not cost what the others did."""
    shares = [
        spent / budget
        for policy in compared["policies"].values()
        for spent, budget in zip(policy["held_out_gflops"], compared["budgets_gflops"], strict=True)
    ]
    return f"Held out, policies spent {min(shares):.0%} to {max(shares):.0%} of a budget."


def _gains(policy: dict[str, Any]) -> list[str]:
    if "gain_interval" in policy:
        return [
            f"{100 * gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
            for gain, (low, high) in zip(policy["gain"], policy["gain_interval"], strict=True)
        ]
    return [
        f"{100 * gain:+.2f} ± {100 * error:.2f}"
        for gain, error in zip(policy["gain"], policy["gain_standard_error"], strict=True)
    ]


def _by_budget(what: str, budgets: list[str], columns: dict[str, list[str]]) -> list[str]:
    rows = zip(budgets, *columns.values(), strict=True)
    return table([what, *(f"`{name}`" for name in columns)], rows)
