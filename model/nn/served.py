"""The serving form of trained weights.

Nearest upsampling followed by a token-linear layer is one linear map: the columns of the layer that read copies of the
same upstream token are summed. LN works token by token, so it commutes with the copying. The E half of fc1 shrinks
from D_S x S_down to D_S x S_up, exactly. Below it, what the leaner form of a stage (graph_stage.py)
take from a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msmlp.model.exits.policies import ExitPolicy, exit_policy, max_probability
from msmlp.model.nn.blocks import MixerBlock, Reuse, nearest_index
from msmlp.model.nn.cascade import Cascade, Stage
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.weights import Weights


def fold_state(config: CascadeConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of `Cascade(config)` → the state of `Cascade(config, folded=True)`."""
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


def fold(cascade: Cascade) -> Cascade:
    """A folded copy of a trained cascade: same outputs, fewer multiply-adds."""
    folded = Cascade(cascade.config, folded=True)
    folded.load_state_dict(fold_state(cascade.config, cascade.state_dict()))
    return folded.eval()


def token_weight(block: MixerBlock) -> Tensor:
    """Token mixing's first layer with its bias as one more column, which meets a row of ones: [D_S, S_in + 1]."""
    first = block.token_mlp.fc1
    return torch.cat([first.weight, first.bias[:, None]], dim=1).detach()


def late_bias(blocks: Sequence[MixerBlock]) -> Tensor:
    """What the second layers of token mixing add to every token, summed over the blocks: [S].

    Such a bias adds one number to all channels of a token. Whoever reads z begins with an LN over the channels, which
    takes it out again; so all blocks' may be added at once, after the patch embedding.
    """
    return torch.stack([_exact(block.token_mlp.fc2.bias) for block in blocks]).sum(dim=0).float()


def embedding_after_norm(reuse: Reuse) -> tuple[Tensor, Tensor] | None:
    """What f does to upstream features that its LN has standardised: a weight [C, C_up] or a scale [C], and a shift
    [C]; None where they stay as they are. The standardising is the same for every block, so once does."""
    norm, project = reuse.norm, reuse.project
    if isinstance(project, nn.Linear):
        weight, bias = _exact(project.weight), _exact(project.bias)
        if isinstance(norm, nn.LayerNorm):
            weight, bias = weight * _exact(norm.weight), bias + weight @ _exact(norm.bias)
        return weight.float().contiguous(), bias.float()
    if isinstance(norm, nn.LayerNorm):
        return norm.weight.detach(), norm.bias.detach()
    return None


def _exact(x: Tensor) -> Tensor:
    return x.detach().double()


# FROM model/nn/served.py:
# A stage as it is served: pixels in, features, probabilities and score out, everything inside one graph.


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
        """One stage over a batch.

        Args:
            pixels: uint8 [n, H, W, 3].
            upstream: features of the stage before [n, S_up, C_up]; None at the first.

        Returns:
            Features [n, S, C], probabilities [n, classes], score [n].
        """
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features, logits = self.stage(images, upstream)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=1)
        return features, probabilities, self.policy(probabilities, torch)


def served_stages(
    weights: Weights, temperatures: tuple[float, ...], policy: str = "max-probability"
) -> list[ServedStage]:
    """The folded stages of a loaded weights folder, whose names and shapes were checked then.

    OptionError for an unknown exit policy.
    """
    cascade = Cascade(weights.manifest.cascade)
    cascade.load_state_dict({name: torch.from_numpy(a) for name, a in weights.state.items()})
    preprocess = weights.manifest.preprocess
    folded, score = fold(cascade), exit_policy(policy)
    return [
        ServedStage(folded.stage(k), preprocess.mean, preprocess.std, temperature, score).eval()
        for k, temperature in enumerate(temperatures)
    ]
