"""The serving form of a stage: folded, with everything from pixels to probabilities and score in one module.

Folding: nearest upsampling followed by a token-linear layer is one linear map, so the layer's columns that read copies
of the same upstream token are summed. LN works token by token and commutes with the copying. The E half of fc1 shrinks
from D_S x S_down to D_S x S_up, exactly.
"""

import torch
from torch import Tensor, nn

from msmlp.model.exits.policies import ExitPolicy, exit_policy, max_probability
from msmlp.model.nn.blocks import nearest_index
from msmlp.model.nn.cascade import Cascade, Stage
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.weights import Weights


class ServedStage(nn.Module):
    """Normalisation, the folded stage, the temperature and the exit policy."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stage: Stage,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        temperature: float,
        policy: ExitPolicy = max_probability,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.temperature = temperature
        self.policy = policy
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor, upstream: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels uint8 [n, H, W, 3] and the previous stage's features [n, S_up, C_up] (None at the first stage) →
        features [n, S, C], probabilities [n, classes], scores [n]."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features, logits = self.stage(images, upstream)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=1)
        return features, probabilities, self.policy(probabilities, torch)


def served_stages(
    weights: Weights, temperatures: tuple[float, ...], policy: str = "max-probability"
) -> list[ServedStage]:
    """The folded stages of a weights folder; OptionError for an unknown exit policy."""
    cascade = Cascade(weights.manifest.mixers)
    cascade.load_state_dict({name: torch.from_numpy(a) for name, a in weights.state.items()})
    preprocess = weights.manifest.preprocess
    folded, score = fold(cascade), exit_policy(policy)
    return [
        ServedStage(folded.stage(k), preprocess.mean, preprocess.std, temperature, score).eval()
        for k, temperature in enumerate(temperatures)
    ]


def fold(cascade: Cascade) -> Cascade:
    folded = Cascade(cascade.config, folded=True)
    folded.load_state_dict(fold_state(cascade.config, cascade.state_dict()))
    return folded.eval()


def fold_state(config: CascadeConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    folded = dict(state)
    for k in range(1, len(config.stages)):
        index = nearest_index(config.grid(k - 1), config.grid(k))
        for block in range(config.stages[k].depth):
            if not config.reuses(k, block):
                continue
            name = f"stages.{k}.blocks.{block}.token_mlp.fc1.weight"
            own, reused = state[name].split(config.tokens(k), dim=1)
            summed = reused.new_zeros(len(reused), config.tokens(k - 1), dtype=torch.float64)
            summed.index_add_(1, index.to(reused.device), reused.double())
            folded[name] = torch.cat([own, summed.to(own.dtype)], dim=1)
    return folded
