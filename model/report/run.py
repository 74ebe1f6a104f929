"""One run, finished or not, read from its folder: the row that tables, pictures and summaries are made of."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from msmlp.model.nn.config import CascadeConfig, StageConfig


class Row(BaseModel):
    """A line of metrics.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int = Field(ge=1)
    loss: float
    val_accuracy: list[float] = Field(min_length=1)
    images_per_second: float


class Exit(BaseModel):
    """Every validation image run to one exit; `gflops` cumulative, as served."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    exit: int
    accuracy: float
    gflops: float | None = None


class Point(BaseModel):
    """An operating point, as the calibration has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    expected_accuracy: float
    standard_error: float
    mean_gflops: float


class TeacherName(BaseModel):
    """Weights that a run learned from, or started from; an unfinished run knows the hash alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None
    sha256: str


class Run(BaseModel):
    """What a run says of itself. None stands for what its folder does not say (yet)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    folder: str = Field(description="below the folder that was asked for; its own name where it is that folder")
    kind: Literal["cascade", "teacher"]
    finished: bool
    network: dict[str, Any] = Field(description="the cascade's or the teacher's whole configuration")
    preset: str | None = None
    recipe: str | None = None
    teacher: TeacherName | None = None
    init: TeacherName | None = Field(default=None, description="weights it started from; None: random ones")
    seed: int | None = None
    epochs: int | None = None
    epochs_done: int
    data: str | None = None
    images: int | None = None
    validation_images: int | None = None
    validation_digest: str | None = None
    device: str | None = None
    torch: str | None = None
    images_per_second: float | None = None
    exits: list[Exit]
    exit_policy: str | None = None
    operating_points: list[Point] = []
    sha256: str | None = Field(default=None, description="of model.safetensors")
    git_commit: str | None = None
    command: str | None = None
    curve: list[Row] = Field(default=[], exclude=True)


class Found(BaseModel):
    """Runs in the order of their folders; `skipped` has a line for each folder that could not be read as one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    runs: list[Run]
    skipped: list[str] = []


def architecture(run: Run) -> str:
    """The network in brief: what differs between runs, and nothing else."""
    if run.kind == "teacher":
        kind = str(run.network.get("kind", "network"))
        rest = {name: value for name, value in run.network.items() if name not in ("kind", "classes", "image_size")}
        return ", ".join([kind, *(f"{name} {_slashed(value)}" for name, value in rest.items() if value is not None)])
    cascade = CascadeConfig.model_validate(run.network)
    stages = cascade.stages
    parts = [f"{_slashed(cascade.tokens(k) for k in range(len(stages)))} tokens"]
    parts.append(f"width {_slashed(stage.width for stage in stages)}")
    parts.append(f"{_slashed(stage.depth for stage in stages)} blocks")
    parts += [f"reuse {cascade.reuse}"] if len(stages) > 1 else []
    return ", ".join([*parts, *_unusual(cascade)])


def _unusual(cascade: CascadeConfig) -> list[str]:
    """Fields beyond the sizes, where they are not what they are by default."""
    known = {"patch", "width", "depth", "token_hidden", "channel_hidden"}
    ours = cascade.model_dump(exclude_defaults=True, exclude={"image_size", "classes", "stages", "reuse"})
    said = [f"{name} {value}" for name, value in ours.items()]
    for name, field in StageConfig.model_fields.items():
        values = [getattr(stage, name) for stage in cascade.stages]
        if name not in known and any(value != field.default for value in values):
            said.append(f"{name} {_slashed(values)}")
    return said


def _slashed(values: Any) -> str:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return str(values)
    return "/".join(str(value) for value in values)
