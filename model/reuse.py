"""The reuse f of the paper's equation 7: upstream features Z → the embedding E a downstream block reads.

LN → grid → nearest upsampling → flatten; a linear map C_up → C stands after the LN where the widths differ (it works
token by token, so doing it before the upsampling is the same and cheaper).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def nearest_upsample(tokens: Tensor, grid_up: int, grid_down: int) -> Tensor:
    """[N, grid_up², C] → [N, grid_down², C], every downstream token takes its nearest upstream one."""
    grid = tokens.transpose(1, 2).unflatten(2, (grid_up, grid_up))
    return F.interpolate(grid, size=(grid_down, grid_down), mode="nearest").flatten(2).transpose(1, 2)


def nearest_index(grid_up: int, grid_down: int) -> Tensor:
    """Which upstream token each downstream token copies, int64 [grid_down²]; what folding sums by."""
    index = torch.arange(grid_up**2, dtype=torch.float32).reshape(1, -1, 1)
    return nearest_upsample(index, grid_up, grid_down).flatten().long()


class Reuse(nn.Module):
    """f. `folded` leaves the upsampling out: the token MLP's weights have taken it over (model/folding.py)."""

    def __init__(
        self, width_up: int, width: int, grid_up: int, grid: int, *, norm: bool = True, folded: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_up) if norm else nn.Identity()
        self.project = nn.Linear(width_up, width) if width_up != width else nn.Identity()
        self.grid_up, self.grid = grid_up, grid
        self.upsamples = not folded and grid_up != grid

    @property
    def tokens(self) -> int:
        """How many tokens E has."""
        return self.grid**2 if self.upsamples else self.grid_up**2

    def forward(self, upstream: Tensor) -> Tensor:
        """[N, S_up, C_up] → [N, S or S_up when folded, C]."""
        embedding: Tensor = self.project(self.norm(upstream))
        return nearest_upsample(embedding, self.grid_up, self.grid) if self.upsamples else embedding
