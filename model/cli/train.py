"""`msmlp train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msmlp.model.cli.common import (
    AsJson,
    Data,
    Device,
    Dtype,
    print_json,
    say,
    say_audit,
    say_points,
    warn_of_few_images,
)
from msmlp.model.text import accurate, has_own_name

if TYPE_CHECKING:
    from msmlp.model.training.convnet import TeacherFile
    from msmlp.model.weights import OperatingPoint


def _trainable(incomplete: str) -> list[str]:
    from msmlp.model.nn.config import PRESETS
    from msmlp.model.training.recipes import TEACHERS

    return [name for name in (*PRESETS, *TEACHERS) if name.startswith(incomplete)]


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Where to write the weights folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="A cascade (see msmlp info --preset NAME), or a teacher: teacher-m, ... Default: the cascade of "
            "--init.",
            autocompletion=_trainable,
        ),
    ] = None,
    recipe: Annotated[
        Literal["paper", "best", "distill", "teacher", "speedrun", "finetune", "quick"] | None,
        typer.Option(
            help="Default: best; for teacher-m speedrun, for other teachers teacher, without --preset finetune. quick "
            "suits a CPU; distill is for --teacher."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, max=1024, help="Pixels a side that the network sees: 64, 96, 128; default: the preset's."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Number of epochs; default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch; default: the recipe's.")] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Seed for initial weights, order, augmentation, validation and audit images."
        ),
    ] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    teacher: Annotated[
        str, typer.Option(metavar="DIR|none", help="A teacher or weights folder that every exit learns from.")
    ] = "none",
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from these weights, or shipped ones (cifar10-s); for other classes the heads are new."
        ),
    ] = None,
    freeze: Annotated[
        int,
        typer.Option(
            min=0,
            help="Keep the weights of the first STAGES stages of --init; of these, train only the exits.",
            metavar="STAGES",
        ),
    ] = 0,
    strict: Annotated[
        bool, typer.Option(help="Stop at images that cannot be read, instead of leaving them out.")
    ] = False,
    compiles: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Use torch.compile (default: on a GPU only). A CPU needs a C++ compiler."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; default: the fastest number, measured at the start."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")] = False,
    allow_drift: Annotated[
        bool, typer.Option(help="Resume with other --threads: the weights then differ in their last bits.")
    ] = False,
    limit_per_class: Annotated[
        int | None, typer.Option(min=1, help="Train on this many images per class at most.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any recipe or cascade field.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a cascade and write a weights folder.

    \b
    Examples:
      msmlp train --data my-photos --init cifar10-s --out weights/mine
      msmlp train --data my-photos --preset tiny --recipe quick --image-size 64 \\
          --out weights/mine
      msmlp train --data photos --preset tiny --out weights/b --teacher weights/a
      msmlp train --data cifar-10-python.tar.gz --preset s --out weights/x \\
          --epochs 50 --set lr=0.002 --set stages.0.width=96
      msmlp train --data cifar-10-python.tar.gz --preset teacher-m \\
          --out runs/teacher
      msmlp train --data cifar-10-python.tar.gz --preset s --recipe distill \\
          --teacher runs/teacher --out weights/y
    """
    from msmlp.model.nn.config import parse_assignments
    from msmlp.model.training.recipes import TrainOptions
    from msmlp.model.training.trainer import train as run

    sized = {} if image_size is None else {"image_size": image_size}
    folder = run(
        TrainOptions(
            data=data,
            preset=preset,
            out=out,
            recipe=recipe,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            dtype=dtype,
            teacher=None if teacher == "none" else Path(teacher),
            init=init,
            freeze=freeze,
            strict=strict,
            compile=compiles,
            threads=threads,
            resume=resume,
            allow_drift=allow_drift,
            limit_per_class=limit_per_class,
            changes=sized | parse_assignments(changes or []),
        )
    )
    _say_trained(folder, as_json)


def _say_trained(folder: Path, as_json: bool) -> None:
    from msmlp.model.training.convnet import read_teacher
    from msmlp.model.weights import load_calibration, load_weights
    from msmlp.model.weights.calibration import standard_error
    from msmlp.model.weights.info import audit_record

    found = read_teacher(folder)
    points: tuple[OperatingPoint, ...] = ()
    if found is None:
        weights = load_weights(folder)
        calibration = load_calibration(weights)
        warn_of_few_images(calibration.file)
        results, audit = weights.manifest.results, audit_record(weights.manifest, calibration)
        points = calibration.points
    else:
        results, audit = found[0].results, _audit_of_teacher(found[0])
    if as_json:
        print_json({"weights": str(folder), "results": results, "audit": audit})
        return
    for row in results:
        if row["split"] == "val":
            error = standard_error(round(row["accuracy"] * row["images"]), row["images"])
            say(f"exit {row['exit']}: {accurate(row['accuracy'], error)} of {row['images']} validation images")
    if points:
        say_points(point.model_dump() for point in points if has_own_name(point.name))
    say_audit(audit)
    next_step = f"msmlp serve --weights {folder}" if found is None else f"msmlp train --teacher {folder} ..."
    say(f"{folder} is ready: {next_step}")


def _audit_of_teacher(teacher: "TeacherFile") -> dict[str, Any]:
    """Like `audit_record`; a teacher has no operating points."""
    from msmlp.model.weights.info import no_audit

    rows = [row for row in teacher.results if row["split"] == "audit"]
    if not rows:
        return {"images": 0, "reason": no_audit(teacher.training), "leak": None}
    return {"images": rows[0]["images"], "exits": rows, "operating_points": {}, "leak": None}
