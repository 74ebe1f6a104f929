"""The command line of `msmlp train`: which network, which recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from msmlp.model.config import PRESETS, CascadeConfig, override, preset
from msmlp.model.errors import ConfigError
from msmlp.model.training.recipes import Recipe, recipe
from msmlp.model.training.teachers import TEACHERS, TeacherConfig

NetworkConfig = CascadeConfig | TeacherConfig


@dataclass(frozen=True)
class TrainOptions:
    """The command line of `msmlp train`, checked by the recipe's and the network's own rules."""

    data: Path
    preset: str
    out: Path
    recipe: str | None = None
    """None: `teacher` for a teacher's preset, else `best`."""
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    teacher: Path | None = None
    init: Path | None = None
    """Weights to start from; None: random ones."""
    compile: bool | None = None
    """torch.compile; None: on a GPU."""
    resume: bool = False
    limit_per_class: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe_name(self) -> str:
        """The recipe that is taken."""
        return self.recipe or ("teacher" if self.preset in TEACHERS else "best")


def network_presets() -> list[str]:
    """All that can be trained."""
    return [*PRESETS, *TEACHERS]


def configure(options: TrainOptions) -> tuple[NetworkConfig, Recipe]:
    """The network and the recipe that the options describe; each `--set` key belongs to one of the two."""
    network: NetworkConfig = TEACHERS[options.preset] if options.preset in TEACHERS else _cascade(options.preset)
    plan = recipe(options.recipe_name)
    named = {"epochs": options.epochs, "batch_size": options.batch_size}
    changes = {**{k: v for k, v in named.items() if v is not None}, **options.changes}
    if "classes" in changes:
        raise ConfigError("classes: is taken from the data")
    kind = type(network)
    ours = {k: v for k, v in changes.items() if k.split(".")[0] in kind.model_fields}
    rest = {k: v for k, v in changes.items() if k not in ours}
    unknown = [k for k in rest if k not in Recipe.model_fields]
    if unknown:
        fields = sorted({*Recipe.model_fields, *kind.model_fields} - {"classes"})
        raise ConfigError(f"--set: no field is called {unknown[0]!r}; there are {', '.join(fields)}")
    return override(network, ours), override(plan, rest)


def _cascade(name: str) -> CascadeConfig:
    try:
        return preset(name)
    except ConfigError:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(network_presets())}") from None
