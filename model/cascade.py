"""Stages in a row, every exit computed: what training and offline evaluation of a whole network need."""

from torch import Tensor, nn

from msmlp.model.config import CascadeConfig
from msmlp.model.stage import Stage


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

    def outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Normalised images [N, 3, H, W] → features of every stage [N, S, C], logits of every exit [N, classes]."""
        features: list[Tensor] = []
        logits: list[Tensor] = []
        for stage in self.stages:
            own, exit_logits = stage(images, features[-1] if features else None)
            features.append(own)
            logits.append(exit_logits)
        return features, logits

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] → logits of every exit, K x [N, classes]."""
        return self.outputs(images)[1]
