"""Starting a cascade from trained weights instead of from random ones."""

from dataclasses import dataclass
from pathlib import Path

import torch

from msmlp.model.cascade import Cascade
from msmlp.model.config import CascadeConfig
from msmlp.model.errors import OptionError
from msmlp.model.weights import load_weights


@dataclass(frozen=True)
class Start:
    """Weights to start from, with the name and the sha256 that the manifest and a checkpoint record."""

    name: str
    sha256: str
    cascade: CascadeConfig
    classes: tuple[str, ...]
    validation_digest: str | None
    state: dict[str, torch.Tensor]

    def check(self, classes: tuple[str, ...], validation_digest: str) -> None:
        """Raise OptionError when they know other classes, or may have seen the images that are held out now."""
        if self.classes != classes:
            raise OptionError("init", f"{self.name} knows other classes than the data")
        if self.validation_digest != validation_digest:
            raise OptionError(
                "init",
                f"{self.name} was trained with other validation images, so it may have seen ours; "
                "train both on the same data with the same --seed",
            )

    def into(self, model: Cascade) -> None:
        """Put them into `model`.

        Raises:
            OptionError: they are of another cascade.
        """
        ours, theirs = model.config.model_dump(), self.cascade.model_dump()
        different = sorted(key for key in ours if ours[key] != theirs[key])
        if different:
            raise OptionError("init", f"{self.name} is another cascade: its {', '.join(different)} differ")
        model.load_state_dict(self.state)


def load_start(folder: Path) -> Start:
    """A weights folder as a start.

    Raises:
        WeightsError: damaged, or no weights folder.
    """
    weights = load_weights(folder)
    manifest = weights.manifest
    digest: str | None = manifest.training.get("validation", {}).get("digest")
    state = {name: torch.from_numpy(array) for name, array in weights.state.items()}
    return Start(manifest.name, weights.sha256, manifest.cascade, manifest.classes, digest, state)
