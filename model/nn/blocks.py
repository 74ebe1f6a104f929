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
    """f. `folded` leaves the upsampling out: the token MLP's weights have taken it over (model/nn/served.py)."""

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


# FROM model/nn/blocks.py:
# The Mixer block: token mixing, channel mixing, and the patch embedding before them (paper, equations 2-6).


class PatchEmbedding(nn.Module):
    """[N, 3, H, W] → [N, S, C]: one linear map of every patch x patch square and `overlap` pixels around it.

    Beyond the border lies the mean colour, which is 0 in normalised images.
    """

    def __init__(self, patch: int, width: int, overlap: int = 0) -> None:
        super().__init__()
        self.patch, self.overlap = patch, overlap
        self.project = nn.Conv2d(3, width, kernel_size=patch + 2 * overlap, stride=patch, padding=overlap)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens in row-major order of the grid."""
        tokens: Tensor = self.project(images).flatten(2).transpose(1, 2)
        return tokens


class Mlp(nn.Module):
    """Linear → GELU → linear over the last axis (equation 2); the input may be wider than the output."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each LN → MLP → residual.

    With reuse, token mixing reads Concat(Z, E) over tokens (equation 8, whose printed form drops the residual on
    Z that we keep). `extra_tokens` is how many tokens E has; 0 means no reuse.
    """

    def __init__(
        self,
        tokens: int,
        extra_tokens: int,
        width: int,
        token_hidden: int,
        channel_hidden: int,
        reuse: Reuse | None,
    ) -> None:
        super().__init__()
        self.reuse = reuse
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = Mlp(tokens + extra_tokens, token_hidden, tokens)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = Mlp(width, channel_hidden, width)

    def forward(self, z: Tensor, upstream: Tensor | None) -> Tensor:
        """z [N, S, C], upstream [N, S_up, C_up] where the block reuses → [N, S, C]."""
        x = z
        if self.reuse is not None:
            x = torch.cat([z, self.reuse(upstream)], dim=1)
        mixed = self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        z = z + mixed
        out: Tensor = z + self.channel_mlp(self.channel_norm(z))
        return out
