"""`msmlp report card` and `msmlp report gallery`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from msmlp.model.cli.common import AsJson, Data, Device, WeightsFolder, print_json
from msmlp.model.errors import CallerError


class _Report(TyperGroup):
    """Says what replaces `msmlp report RUNS` of 0.1, and in one line what is missing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise CallerError("report: expected one of card, gallery; see msmlp report --help")
        if args and args[0] not in (*self.commands, *ctx.help_option_names) and not ctx.resilient_parsing:
            raise CallerError(
                f"report: {args[0]!r} is neither card nor gallery; tables of runs (msmlp report RUNS) were removed "
                "in 0.2, use msmlp info --weights DIR for each run"
            )
        return super().parse_args(ctx, args)


app = typer.Typer(name="report", cls=_Report, rich_markup_mode=None)

SplitName = Annotated[
    Literal["val", "audit", "test"] | None,
    typer.Option(help="Which images.", show_default="test if there are any, else audit, else val"),
]


@app.callback()
def report() -> None:
    """The model card of a weights folder, and its easy and hard images.

    \b
    Examples:
      msmlp report card --weights weights/mine --data my-photos --out weights/mine
      msmlp report gallery --weights weights/mine --data my-photos
    """


@app.command()
def card(
    weights: WeightsFolder,
    data: Data,
    out: Annotated[Path, typer.Option(help="Write card.md and its pictures into this folder.")],
    split: SplitName = None,
    policy: Annotated[str, typer.Option(help="The operating point whose answers are shown.")] = "balanced",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the model card: accuracy and cost, confusion matrix, reliability diagrams, frontier.

    An existing card.md keeps everything outside its measured part.

    \b
    Examples:
      msmlp report card --weights weights/mine --data my-photos --out weights/mine
      msmlp report card --weights weights/mine --data my-photos --split val \\
          --out card --json
    """
    from msmlp.model.evaluate import measure
    from msmlp.model.report.card import write_card

    result = write_card(measure(weights, data, split, device), policy, out)
    if as_json:
        print_json(result)
    for name in result["files"]:
        sys.stderr.write(f"wrote {out / name}\n")


@app.command()
def gallery(
    weights: WeightsFolder,
    data: Data,
    split: SplitName = None,
    out: Annotated[Path, typer.Option(help="The PNG to draw.")] = Path("gallery.png"),
    policy: Annotated[
        str | None,
        typer.Option(help="The operating point.", show_default="balanced, or one that has both kinds of images"),
    ] = None,
    classes: Annotated[int, typer.Option(min=1, max=20, help="At most this many classes, one per row.")] = 6,
    each: Annotated[int, typer.Option(min=1, max=10, help="At most this many easy and hard images per class.")] = 4,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw easy images, which leave at the first exit, next to hard ones, which need the last.

    Each row is a class that has both kinds. Captions give the answer, the exit and the score there.

    \b
    Examples:
      msmlp report gallery --weights weights/mine --data my-photos
      msmlp report gallery --weights weights/mine --data my-photos \\
          --policy accurate --classes 3 --each 5 --out hard.png
    """
    from msmlp.model.evaluate import measure
    from msmlp.model.report.gallery import choose, draw, telling_cut

    measured = measure(weights, data, split, device)
    cut = telling_cut(measured, policy)
    rows = choose(measured, cut, classes, each)
    draw(rows, measured, cut, out)
    if as_json:
        shown = [row.document() for row in rows]
        print_json(
            {"file": str(out), "policy": cut.name, "thresholds": cut.thresholds, "split": measured.split, "rows": shown}
        )
    sys.stderr.write(f"wrote {out}\n")
