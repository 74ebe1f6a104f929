"""Draws the frontier of every weights folder to docs/frontier-<name>.png.

python -m scripts.frontier_plot
"""

from pathlib import Path

from model.calibration.plot import plot_frontier

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """One picture a weights folder."""
    for manifest in sorted((ROOT / "weights").glob("*/manifest.json")):
        plot_frontier(manifest.parent, ROOT / "docs" / f"frontier-{manifest.parent.name}.png")


if __name__ == "__main__":
    main()
