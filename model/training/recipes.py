"""What to train and how, as plain data: recipes, teacher networks, and the options of `msmlp train`.

`--set key=value` changes any field of a recipe or a network.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from msmlp.model.errors import ConfigError
from msmlp.model.nn.config import PRESETS, CascadeConfig, override


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    optimizer: Literal["sgd", "adamw", "muon"]
    # Upper bounds keep the products that optimizers compute within float32.
    lr: float = Field(gt=0, le=1e30)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(default=False, description="sgd only")
    weight_decay: float = Field(ge=0, le=1)
    schedule: Literal["step", "cosine", "wsd"] = Field(
        description="wsd: warm-up, stable, decay; its stable part can go on for as long as one likes"
    )
    milestones: tuple[float, ...] = Field(
        default=(0.5, 0.75), description="step schedule: lr ÷ 10 at these shares of the run"
    )
    decay_share: float = Field(
        default=0.2, gt=0, le=1, description="wsd schedule: over this share of the run, its last, the rate falls to 0"
    )
    warmup_epochs: float = Field(default=0, ge=0, description="at most a fifth of the run, except with wsd")
    clip_norm: float | None = Field(default=None, gt=0)
    ema: float = Field(default=0, ge=0, lt=1, description="decay of the averaged weights; 0: no averaging")
    augment: Literal["none", "crop-flip", "trivial"] = "crop-flip"
    flip: Literal["random", "alternating"] = Field(
        default="random",
        description="alternating: every image is mirrored in every other epoch, whichever is drawn first",
    )
    erasing: float = Field(default=0, ge=0, le=1)
    mixup: float = Field(
        default=0, ge=0, le=100, description="a of Beta(a, a); with cutmix as well, each batch uses one of the two"
    )
    cutmix: float = Field(default=0, ge=0, le=100)
    mix_probability: float = Field(default=1, ge=0, le=1, description="share of batches that are mixed")
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    bias_lr: float = Field(default=1, gt=0, description="sgd: factor on the learning rate of the norms' biases")
    backbone_lr: float = Field(default=1, gt=0, le=1e30, description="factor on the learning rate of all but the heads")
    distill_weight: float = Field(default=0.9, ge=0, le=1, description="the teacher's share of the loss")
    distill_temperature: float = Field(default=2, gt=0, le=100, description="temperature of teacher and exit")
    exit_weights: tuple[float, ...] | None = Field(default=None, description="of the exits' losses; default: all 1")
    last_weight: float = Field(default=0, ge=0, le=100, description="how strongly earlier exits learn from the last")
    imitation: float = Field(default=0, ge=0, le=100, description="weight of feature distillation")
    imitation_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of epochs with feature distillation; with wsd it lasts until the decay",
    )
    epochs_per_view: int = Field(
        default=1,
        ge=1,
        description="epochs that train on the same views of the images, every second one on their mirror images; the "
        "teacher runs once for all of them",
    )

    @field_validator("exit_weights")
    @classmethod
    def _exits_matter(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not (all(0 <= weight < float("inf") for weight in weights) and any(weights)):
            raise ValueError("expected finite numbers of at least 0, not all of them 0")
        return weights

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov: needs momentum above 0")
        return self

    @model_validator(mode="after")
    def _warmed_up_before_the_decay(self) -> Self:
        if self.schedule == "wsd" and self.epochs and self.warmup_epochs > self.decay_begins:
            raise ValueError(f"warmup_epochs: expected at most {self.decay_begins}, when the decay begins")
        return self

    @property
    def decay_begins(self) -> int:
        """With the schedule wsd: epochs before the decay, which has at least one."""
        return max(0, min(self.epochs - 1, round((1 - self.decay_share) * self.epochs)))

    def distills_features(self, epoch: int) -> bool:
        # What comes before the decay must not depend on the length of the run.
        until = self.decay_begins if self.schedule == "wsd" else self.imitation_share * self.epochs
        return self.imitation > 0 and epoch < until


RECIPES: dict[str, Recipe] = {
    # Section 4 of the paper: 300 epochs, ÷10 at 150 and 225, equation 1 (the plain sum of the exits' losses).
    "paper": Recipe(
        epochs=300, batch_size=64, optimizer="sgd", lr=0.03, weight_decay=1e-4, schedule="step", augment="crop-flip"
    ),
    # What small MLPs need from scratch.
    "best": Recipe(
        epochs=300,
        batch_size=512,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=10,
        clip_norm=1.0,
        ema=0.9995,
        augment="trivial",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
    ),
    # For a cascade with a teacher, whose soft targets regularise: little augmentation. Two epochs per view halve the
    # teacher's work; eight views for a whole run were partly memorised.
    "distill": Recipe(
        epochs=120,
        batch_size=256,
        optimizer="muon",
        lr=3e-3,
        weight_decay=0.05,
        schedule="wsd",
        warmup_epochs=2,
        clip_norm=1.0,
        ema=0.999,
        augment="crop-flip",
        mixup=0,
        cutmix=1.0,
        mix_probability=0.5,
        distill_weight=0.9,
        distill_temperature=2,
        last_weight=0.1,
        imitation=0.5,
        epochs_per_view=2,
    ),
    # For the convolutional teacher. Label smoothing makes worse teachers (Müller et al., 2019).
    "teacher": Recipe(
        epochs=24,
        batch_size=512,
        optimizer="sgd",
        lr=0.4,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=4,
        ema=0.998,
        augment="crop-flip",
        erasing=0.25,
    ),
    # For the whitened teacher: a large rate, and a larger one for the norms' biases, learns CIFAR-10 in a few epochs
    # (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
    "speedrun": Recipe(
        epochs=24,
        batch_size=1024,
        optimizer="sgd",
        lr=1.3,
        momentum=0.85,
        nesterov=True,
        weight_decay=1.5e-3,
        schedule="cosine",
        warmup_epochs=3,
        ema=0.99,
        augment="crop-flip",
        flip="alternating",
        label_smoothing=0.2,
        bias_lr=64,
    ),
    # For a CPU, or a folder of a few thousand images: short, with small batches and light augmentation.
    "quick": Recipe(
        epochs=60,
        batch_size=32,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1,
        clip_norm=1.0,
        ema=0.99,
        augment="crop-flip",
    ),
}
# For --init with other classes: the heads are new and learn fast, what is kept changes little.
RECIPES["finetune"] = RECIPES["quick"].model_copy(update={"epochs": 30, "backbone_lr": 0.3})


class TeacherConfig(BaseModel):
    """A convolutional network that teaches cascades and is never served: `widths` channels per group, `blocks` blocks
    per group.

    A block is one convolution in a `vgg`, two in a `resnet`. Every group halves the resolution, except the first of a
    `resnet`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vgg", "resnet"]
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    blocks: int = Field(ge=1)
    stem: int = Field(ge=1, description="channels of the first convolution")
    whiten: bool = Field(
        default=False, description="vgg only: a layer that whitens 2 x 2 pixels, and is not trained, in its place"
    )
    image_size: int = Field(default=32, ge=1)
    classes: int = Field(default=10, ge=2)

    @model_validator(mode="after")
    def _pixels_are_left(self) -> Self:
        if self.image_size >> len(self.widths) < 1:
            raise ValueError(f"{len(self.widths)} groups are too many for images of {self.image_size} pixels")
        return self

    @model_validator(mode="after")
    def _whitens_for_a_vgg(self) -> Self:
        if self.whiten and self.kind != "vgg":
            raise ValueError(f"whiten: expected kind vgg, got {self.kind}")
        return self


TEACHERS: dict[str, TeacherConfig] = {
    # For tests.
    "teacher-tiny": TeacherConfig(kind="vgg", stem=8, widths=(16, 32), blocks=1),
    # For a CPU.
    "teacher-s": TeacherConfig(kind="vgg", stem=24, widths=(64, 128, 256), blocks=2),
    "teacher-m": TeacherConfig(kind="vgg", stem=24, widths=(128, 384, 384), blocks=2, whiten=True),
    # For a GPU.
    "teacher-resnet18": TeacherConfig(kind="resnet", stem=64, widths=(64, 128, 256, 512), blocks=2),
    "teacher-wrn28-10": TeacherConfig(kind="resnet", stem=16, widths=(160, 320, 640), blocks=4),
}

NetworkConfig = CascadeConfig | TeacherConfig


@dataclass(frozen=True)
class TrainOptions:
    data: Path
    preset: str | None
    """None: the cascade of `init`."""
    out: Path
    recipe: str | None = None
    """None: `best` for a cascade, `speedrun` for a teacher that whitens, `teacher` for others, `finetune` without a
    preset."""
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    teacher: Path | None = None
    init: Path | None = None
    """Initial weights, of the same classes or others; None: random."""
    freeze: int = 0
    """How many of the first stages keep the weights of `init`; only their exits are trained."""
    strict: bool = False
    """An image that cannot be read is an error."""
    compile: bool | None = None
    """torch.compile; None: on a GPU only."""
    threads: int | None = None
    """On a CPU; None: as many as are fastest, or those of the run that is resumed."""
    resume: bool = False
    allow_drift: bool = False
    """Resume with another number of threads."""
    limit_per_class: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe_name(self) -> str:
        if self.recipe:
            return self.recipe
        if self.preset is None:
            return "finetune"
        if self.preset in TEACHERS:
            return "speedrun" if TEACHERS[self.preset].whiten else "teacher"
        return "best"


def configure(options: TrainOptions, initial: CascadeConfig | None = None) -> tuple[NetworkConfig, Recipe]:
    """The network and the recipe that the options describe; each `--set` key belongs to one of the two.

    Without a preset the network is that of the `initial` weights.
    """
    network, recipe = _network(options, initial), RECIPES.get(options.recipe_name)
    if recipe is None:
        raise ConfigError(f"unknown recipe {options.recipe_name!r}; expected one of {', '.join(RECIPES)}")
    _check_freeze(options, network)
    named = {"epochs": options.epochs, "batch_size": options.batch_size}
    changes = {**{k: v for k, v in named.items() if v is not None}, **options.changes}
    if "classes" in changes:
        raise ConfigError("classes: cannot be set, the data determines them")
    fields_of_network = type(network).model_fields
    ours = {k: v for k, v in changes.items() if k.split(".")[0] in fields_of_network}
    rest = {k: v for k, v in changes.items() if k not in ours}
    unknown = [k for k in rest if k not in Recipe.model_fields]
    if unknown:
        fields = sorted({*Recipe.model_fields, *fields_of_network} - {"classes"})
        raise ConfigError(f"--set: unknown field {unknown[0]!r}; expected one of {', '.join(fields)}")
    if "warmup_epochs" not in rest and recipe.schedule == "wsd":
        # A run that is too short for the recipe's warm-up gets a shorter one.
        cold = override(recipe, {"warmup_epochs": 0, **rest})
        rest["warmup_epochs"] = min(recipe.warmup_epochs, cold.decay_begins)
    return override(network, ours), override(recipe, rest)


def _network(options: TrainOptions, initial: CascadeConfig | None) -> NetworkConfig:
    presets: dict[str, NetworkConfig] = {**PRESETS, **TEACHERS}
    if options.preset is None:
        if initial is None:
            raise ConfigError(f"preset: expected one of {', '.join(presets)}, or --init with a weights folder")
        return initial
    if options.preset not in presets:
        raise ConfigError(f"unknown preset {options.preset!r}; expected one of {', '.join(presets)}")
    return presets[options.preset]


def _check_freeze(options: TrainOptions, network: NetworkConfig) -> None:
    if not options.freeze:
        return
    if options.init is None:
        raise ConfigError("freeze: needs --init; random weights must be trained")
    if not isinstance(network, CascadeConfig):
        raise ConfigError("freeze: only a cascade has stages to freeze")
    if options.freeze > len(network.stages):
        raise ConfigError(f"freeze: expected at most {len(network.stages)}, the number of stages, got {options.freeze}")
