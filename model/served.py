"""A stage as it is served: pixels in, features, probabilities and score out, everything inside one graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msmlp.model.cascade import Cascade
from msmlp.model.folding import fold
from msmlp.model.policies import Plain, StagePolicy, stage_policies
from msmlp.model.stage import Stage
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
        policy: StagePolicy | None = None,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.temperature = temperature
        self.policy = policy or Plain()
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(
        self, pixels: Tensor, upstream: Tensor | None, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One stage over a batch.

        Args:
            pixels: uint8 [n, H, W, 3].
            upstream: features of the stage before [n, S_up, C_up]; None at the first.
            previous: probabilities [n, classes] that the exit before answered, where the policy reads them.

        Returns:
            Features [n, S, C], probabilities [n, classes], score [n].
        """
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features, logits = self.stage(images, upstream)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=1)
        return features, *self.policy(probabilities, previous, torch)


def served_stages(
    weights: Weights,
    temperatures: tuple[float, ...],
    policy: str = "max-probability",
    parameters: Mapping[str, Any] | None = None,
) -> list[ServedStage]:
    """The folded stages of a loaded weights folder, whose names and shapes were checked then.

    OptionError for an exit policy that is unknown, or whose parameters do not fit.
    """
    cascade = Cascade(weights.manifest.cascade)
    cascade.load_state_dict({name: torch.from_numpy(a) for name, a in weights.state.items()})
    preprocess = weights.manifest.preprocess
    folded, policies = fold(cascade), stage_policies(policy, parameters or {}, len(temperatures))
    return [
        ServedStage(folded.stage(k), preprocess.mean, preprocess.std, temperature, policies[k]).eval()
        for k, temperature in enumerate(temperatures)
    ]
