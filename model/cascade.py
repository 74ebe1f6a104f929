"""Stages in a row, every exit computed: what training and offline evaluation of a whole network need."""

from torch import Tensor, nn

from model.config import CascadeConfig
from model.stage import Stage


class Cascade(nn.Module):
    """All stages of a cascade; serving runs the stages one by one instead (model/backends)."""

    def __init__(self, config: CascadeConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, k, folded=folded) for k in range(len(config.stages)))

    def stage(self, index: int) -> Stage:
        """Stage `index` (0-based)."""
        stage = self.stages[index]
        assert isinstance(stage, Stage)
        return stage

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] → logits of every exit, K x [N, classes]."""
        logits: list[Tensor] = []
        features: Tensor | None = None
        for stage in self.stages:
            features, exit_logits = stage(images, features)
            logits.append(exit_logits)
        return logits
