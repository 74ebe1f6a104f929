"""The command line of `msmlp report`. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

DEFAULT = "tables"


class _TablesByDefault(TyperGroup):
    """`msmlp report FOLDER` is `msmlp report tables FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


HELP = """Show runs as tables and plots; the card and the images of one weights folder.

\b
Examples:
  msmlp report runs --out runs-report
  msmlp report gallery --weights weights/mine --data my-photos
"""

app = typer.Typer(
    name="report",
    cls=_TablesByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help=HELP,
)

Weights = Annotated[Path, typer.Option(help="A calibrated weights folder.")]
Data = Annotated[Path, typer.Option(help="Image folder, CIFAR python folder, or its .tar.gz.")]
Policy = Annotated[str, typer.Option(help="The operating point whose answers are shown.")]
SplitName = Annotated[
    Literal["val", "test"] | None, typer.Option(help="Which images.", show_default="test, where there is one")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU when there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command(name=DEFAULT)
def tables(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Folders with runs in or below them.")],
    out: Annotated[Path | None, typer.Option(help="Write the page and its plots into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """A folder of runs as a table and, with --out, as plots. The word `tables` may be left out.

    A run is a weights folder, a teacher, or what training has left so far (a
    checkpoint). Without --out the table is printed as Markdown.

    \b
    Examples:
      msmlp report tables runs
      msmlp report tables runs weights --out runs-report
      msmlp report tables weights/mine --json > mine.json
    """
    from msmlp.model.report.find import find_runs
    from msmlp.model.report.runs import write_report
    from msmlp.model.report.tables import report

    found = find_runs(runs)
    for line in found.skipped:
        sys.stderr.write(f"left out: {line}\n")
    written = [] if out is None else write_report(found, out)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    elif not written:
        sys.stdout.write(report(found))
        sys.stderr.write("with --out FOLDER the curves and the frontiers are drawn too\n")
    for path in written:
        sys.stderr.write(f"wrote {path}\n")


@app.command()
def card(
    weights: Weights,
    data: Data,
    out: Annotated[Path, typer.Option(help="Write card.md and its pictures into this folder.")],
    split: SplitName = None,
    policy: Policy = "balanced",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The model card of a weights folder: its numbers, confusion matrix, reliability diagrams, frontier.

    A card.md that is there keeps all that stands outside its measured part.

    \b
    Examples:
      msmlp report card --weights weights/mine --data my-photos --out weights/mine
      msmlp report card --weights weights/mine --data my-photos --split val \\
          --out card --json
    """
    from msmlp.model.report.card import write_card
    from msmlp.model.report.measure import measure

    result = write_card(measure(weights, data, split, device), policy, out)
    if as_json:
        _print_json(result)
    for name in result["files"]:
        sys.stderr.write(f"wrote {out / name}\n")


@app.command()
def gallery(
    weights: Weights,
    data: Data,
    split: SplitName = None,
    out: Annotated[Path, typer.Option(help="The PNG to draw.")] = Path("gallery.png"),
    policy: Annotated[
        str | None,
        typer.Option(help="The operating point.", show_default="balanced, or what tells images apart"),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, max=20, help="Classes drawn, a row each, at most.")] = 6,
    each: Annotated[int, typer.Option(min=1, max=10, help="Easy and hard images of a class, at most.")] = 4,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw easy images, which leave at the first exit, beside hard ones, which need the last.

    A row is a class that has both kinds. Under each image: what it was called,
    where it left, its score there.

    \b
    Examples:
      msmlp report gallery --weights weights/mine --data my-photos
      msmlp report gallery --weights weights/mine --data my-photos \\
          --policy accurate --classes 3 --each 5 --out hard.png
    """
    from msmlp.model.report.gallery import choose, draw, telling_cut
    from msmlp.model.report.measure import measure

    measured = measure(weights, data, split, device)
    cut = telling_cut(measured, policy)
    rows = choose(measured, cut, classes, each)
    draw(rows, measured, cut, out)
    if as_json:
        shown = [row.document() for row in rows]
        _print_json(
            {"file": str(out), "policy": cut.name, "thresholds": cut.thresholds, "split": measured.split, "rows": shown}
        )
    sys.stderr.write(f"wrote {out}\n")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
