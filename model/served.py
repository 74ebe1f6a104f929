"""A stage as it is served: pixels in, features, probabilities and score out, everything inside one graph."""

import torch
from torch import Tensor, nn

from msmlp.model.cascade import Cascade
from msmlp.model.folding import fold
from msmlp.model.scores import ExitPolicy, exit_policy, max_probability
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
