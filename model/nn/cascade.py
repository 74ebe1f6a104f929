"""The cascade: stages in a row, each a Mixer with its exit.

Training and offline evaluation run it whole; serving runs stage by stage (model/backends).
"""

from torch import Tensor, nn

from msmlp.model.nn.blocks import MixerBlock, PatchEmbedding, Reuse
from msmlp.model.nn.config import CascadeConfig


class Cascade(nn.Module):
    """All stages; `folded` builds the serving form, which served.py fills with trained weights."""

    def __init__(self, config: CascadeConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, k, folded=folded) for k in range(len(config.stages)))

    def stage(self, index: int) -> "Stage":
        stage = self.stages[index]
        assert isinstance(stage, Stage)
        return stage

    def freeze(self, stages: int) -> None:
        """Train only the exits of the first `stages` stages."""
        for stage in map(self.stage, range(stages)):
            stage.embed.requires_grad_(False)
            stage.blocks.requires_grad_(False)

    @property
    def frozen_stages(self) -> int:
        return sum(not any(p.requires_grad for p in self.stage(k).embed.parameters()) for k in range(len(self.stages)))

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
        return self.outputs(images)[1]


class Stage(nn.Module):
    """Stage `index` (0-based): patch embedding, Mixer blocks and an exit."""

    def __init__(self, config: CascadeConfig, index: int, *, folded: bool = False) -> None:
        super().__init__()
        stage = config.stages[index]
        self.embed = PatchEmbedding(stage.patch, stage.width, stage.overlap)
        self.blocks = nn.ModuleList()
        for block in range(stage.depth):
            reuse = None
            if config.reuses(index, block):
                reuse = Reuse(
                    config.stages[index - 1].width,
                    stage.width,
                    config.grid(index - 1),
                    config.grid(index),
                    norm=config.reuse_norm,
                    folded=folded,
                )
            tokens = config.tokens(index)
            self.blocks.append(MixerBlock(tokens, stage.width, stage.token_hidden, stage.channel_hidden, reuse))
        self.norm = nn.LayerNorm(stage.width)
        self.head = nn.Linear(stage.width, config.classes)
        self.apply(_initialise)

    def forward(self, images: Tensor, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalised images [N, 3, H, W], upstream features [N, S_up, C_up] → features [N, S, C], logits [N, classes].

        The features are the last block's output before the final norm; the next stage reuses them.
        """
        z = self.embed(images)
        for block in self.blocks:
            z = block(z, upstream)
        # The head is float32 where the blocks compute in bfloat16: it decides exits. And on a CPU torch sums the weight
        # gradients of a bfloat16 norm in bfloat16, and so loses most of them here, where all tokens pull the same way.
        return z, self.head(self.norm(z.to(self.head.weight.dtype)).mean(dim=1))


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as in timm's MLP-Mixer; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1) if module.weight.dim() > 2 else module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
