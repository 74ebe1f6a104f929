"""Writes docs/results.md from the weights folders and the documents in docs/results.

    python -m scripts.results_page > docs/results.md

For every weights/<name>/ the page takes docs/results/<name>.test.json (`msmlp evaluate --split test --json`) and, where
there is one, <name>.bench.json (`msmlp bench engine --json`). Pictures and the card come from the weights folder
(`msmlp report card`). docs/results/runs/*.json are summaries of runs (`msmlp report RUN --json`), one or several in a
file; docs/results/*.pair.json are of `msmlp bench pair --json`.
"""

import sys
from pathlib import Path

from scripts.results.pairs import pair_lines
from scripts.results.pending import pending_lines
from scripts.results.runs import run_lines
from scripts.results.sources import read_sources
from scripts.results.targets import target_lines
from scripts.results.weights import section

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Results

Accuracy is top-1 on the test images named in each table, looked at once a calibration, with everything chosen on
validation images. GFLOPs are multiply-adds / 1e9 by fvcore's rules, as served (reuse folded), padding not counted. One
standard error of an accuracy over 5,000 images is 0.55 points at 82 %. Images/s of a training are the median of its
epochs; a CPU was shared with other work meanwhile.

This page is generated: `python -m scripts.results_page > docs/results.md`.
"""


def page(root: Path = ROOT) -> str:
    """The page's text."""
    sources = read_sources(root)
    parts = [
        HEAD.splitlines(),
        target_lines(sources.shipped),
        *(section(shipped) for shipped in sources.shipped),
        run_lines(sources.runs),
        pair_lines(sources.pairs),
        pending_lines(sources),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
