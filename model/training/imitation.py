"""Feature imitation: early in a run, the last stage's tokens also learn to predict the teacher's feature map.

A convolutional network knows that near pixels belong together; a Mixer must learn it. The map is compared pooled to a
few squares, each through one linear layer that is thrown away after training (cf. Li et al., 2022, "Locality guidance
for improving vision transformers on tiny datasets").
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.cascade import Cascade

GRID = 2
"""Squares a side that a feature map is pooled to."""


def pooled_map(features: Tensor) -> Tensor:
    """A feature map [n, C, h, w] → [n, C, GRID, GRID]."""
    return F.adaptive_avg_pool2d(features, (GRID, GRID))


def token_map(tokens: Tensor) -> Tensor:
    """Tokens [n, S, C] of a square grid → the map [n, C, √S, √S]."""
    side = round(tokens.shape[1] ** 0.5)
    grid: Tensor = tokens.transpose(1, 2).unflatten(2, (side, side))
    return grid


def squares_of(features: Tensor) -> Tensor:
    """A map [n, C, G, G] → its squares [n, G², C], laid out one after the other."""
    return features.flatten(2).transpose(1, 2).contiguous()


class Imitator(nn.Module):
    """A cascade with the layer that predicts the teacher's features; the loss is in units of their variance."""

    def __init__(self, model: Cascade, teacher_width: int) -> None:
        super().__init__()
        self.model = model
        self.predict = nn.Linear(model.config.stages[-1].width, teacher_width)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Normalised images [n, 3, H, W] → logits of every exit, predicted features [n, GRID², C_teacher]."""
        features, logits = self.model.outputs(images)
        return logits, cast(Tensor, self.predict(squares_of(pooled_map(token_map(features[-1])))))


def imitation_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of predicted [n, G², C] against features [n, C, G, G] that are standardised over their
    channels: their scale says nothing."""
    wanted = squares_of(wanted.float())
    centred = wanted - wanted.mean(2, keepdim=True)
    scale = torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-6)
    return F.mse_loss(predicted.float(), centred / scale)
