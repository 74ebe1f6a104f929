"""The offline commands: train, evaluate, calibrate, info. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _offline() -> None:
    """Train and inspect cascades."""


Data = Annotated[Path, typer.Option(help="Image folder, CIFAR python folder, or its .tar.gz.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command()
def train(
    data: Data,
    preset: Annotated[str, typer.Option(help="Which cascade; `msmlp info --preset NAME` describes it.")],
    out: Annotated[Path, typer.Option(help="The weights folder to make.")],
    recipe: Annotated[str, typer.Option(help="paper or best.")] = "best",
    epochs: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's number.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Weights, order, augmentation, validation images.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    limit_per_class: Annotated[int | None, typer.Option(min=1, help="Train on so many of a class.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe or cascade field.")
    ] = None,
) -> None:
    """Train a cascade offline and leave a weights folder.

    Example: msmlp train --data my-photos --preset tiny --out weights/mine --epochs 20

    Example: msmlp train --data cifar-10-python.tar.gz --preset xs --out weights/x --set lr=0.002
    """
    from model.config import parse_assignments
    from model.training.trainer import TrainOptions
    from model.training.trainer import train as run

    run(
        TrainOptions(
            data=data,
            preset=preset,
            out=out,
            recipe=recipe,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            resume=resume,
            limit_per_class=limit_per_class,
            changes=parse_assignments(changes or []),
        )
    )
