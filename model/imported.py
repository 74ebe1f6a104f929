"""The configuration of a cascade of other people's ONNX graphs: what each stage reads, and what its outputs are.

`msmlp import` writes it into the manifest. The weights folder holds the graphs as they were given.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from msmlp.model.preprocess import Preprocess
from msmlp.model.shape import CascadeShape
from msmlp.model.views import View, Views

Name = Annotated[str, Field(min_length=1, max_length=500)]
Side = Annotated[int, Field(ge=1)]
Kind = Literal["float32", "float16"]

MAX_SIDE = 2048
MAX_STAGES = 6
"""With more, calibration takes minutes: its sweep grows as the number of ways to divide pictures among the exits."""
MAX_GFLOPS = 1e6
"""Of a stage."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PictureInput(_Frozen):
    """A graph's input for pictures. Floats are (pixels / 255 - mean) / std, uint8 are the pixels as they are."""

    tensor: Name
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["uint8", "float32", "float16"]
    colours: Literal["RGB", "BGR"] = "RGB"
    preprocess: Preprocess


class UpstreamInput(_Frozen):
    """A graph's input for the features of the stage before: their shape without the batch."""

    tensor: Name
    shape: tuple[Side, ...] = Field(min_length=1)
    dtype: Kind


class ImportedStage(_Frozen):
    """A graph and its file; `features` is the output that the next stage's upstream input reads."""

    graph: str = Field(pattern=r"^source-[1-9]\d*\.onnx$")
    picture: PictureInput | None = None
    upstream: UpstreamInput | None = None
    output: Name
    probabilities: bool = Field(description="whether the output is probabilities; else it is logits")
    features: Name | None = None
    gflops: float = Field(gt=0, le=MAX_GFLOPS, description="multiply-adds / 1e9 of this stage alone")


class ImportedCascade(_Frozen):
    kind: Literal["imported"]
    classes: int = Field(ge=2)
    stages: tuple[ImportedStage, ...] = Field(min_length=1, max_length=MAX_STAGES)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        for k, stage in enumerate(self.stages):
            if stage.picture is None and stage.upstream is None:
                raise ValueError(f"stage {k + 1} reads neither pictures nor upstream features")
            if stage.upstream and (k == 0 or self.stages[k - 1].features is None):
                raise ValueError(f"stage {k + 1} reads upstream features, which no stage before it has")
            if stage.picture and stage.picture.preprocess.size > MAX_SIDE:
                raise ValueError(f"stage {k + 1}: pictures have at most {MAX_SIDE} pixels a side")
        return self

    @cached_property
    def views(self) -> Views:
        """In the order in which stages first read them."""
        return Views(tuple(dict.fromkeys(view for view in map(_view, self.stages) if view is not None)))

    @property
    def shape(self) -> CascadeShape:
        views = self.views.views
        reads = (None if view is None else views.index(view) for view in map(_view, self.stages))
        handed_on = [None if stage.upstream is None else stage.upstream.shape for stage in self.stages[1:]]
        return CascadeShape(self.classes, tuple(view.size for view in views), tuple(reads), (*handed_on, None))

    @property
    def preprocess(self) -> Preprocess:
        """The first stage's."""
        first = self.stages[0].picture
        assert first is not None  # it has no upstream features
        return first.preprocess


def _view(stage: ImportedStage) -> View | None:
    return stage.picture.preprocess.view if stage.picture else None
