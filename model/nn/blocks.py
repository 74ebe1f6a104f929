"""The layers of a stage: patch embedding, Mixer block, and the reuse of upstream features (paper, equations 2-8)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbedding(nn.Module):
    """[N, 3, H, W] → [N, S, C]: one linear map of every patch x patch square and `overlap` pixels around it.

    The border is padded with the mean colour, which is 0 in normalised images.
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
    """Linear → GELU → linear over the last axis (equation 2)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Reuse(nn.Module):
    """f of equation 7: upstream features Z → the embedding E that a downstream block reads.

    LN → grid → nearest upsampling → flatten; where the widths differ, a linear map C_up → C follows the LN (it works
    token by token, so it gives the same result before the upsampling, at less cost). `folded` omits the upsampling,
    which then sits in the token MLP's weights (served.py).
    """

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
        """The number of tokens of E."""
        return self.grid**2 if self.upsamples else self.grid_up**2

    def forward(self, upstream: Tensor) -> Tensor:
        """[N, S_up, C_up] → [N, S or S_up when folded, C]."""
        embedding: Tensor = self.project(self.norm(upstream))
        return nearest_upsample(embedding, self.grid_up, self.grid) if self.upsamples else embedding


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each LN → MLP → residual.

    With reuse, token mixing reads Concat(Z, E) over tokens (equation 8; as printed it drops the residual on Z, which we
    keep).
    """

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int, reuse: Reuse | None) -> None:
        super().__init__()
        self.reuse = reuse
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = Mlp(tokens + (reuse.tokens if reuse else 0), token_hidden, tokens)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = Mlp(width, channel_hidden, width)

    def forward(self, z: Tensor, upstream: Tensor | None) -> Tensor:
        """z [N, S, C], upstream [N, S_up, C_up] if the block reuses → [N, S, C]."""
        x = z if self.reuse is None else torch.cat([z, self.reuse(upstream)], dim=1)
        z = z + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = z + self.channel_mlp(self.channel_norm(z))
        return out


def nearest_upsample(tokens: Tensor, grid_up: int, grid_down: int) -> Tensor:
    """[N, grid_up², C] → [N, grid_down², C]: every downstream token copies its nearest upstream token."""
    grid = tokens.transpose(1, 2).unflatten(2, (grid_up, grid_up))
    return F.interpolate(grid, size=(grid_down, grid_down), mode="nearest").flatten(2).transpose(1, 2)


def nearest_index(grid_up: int, grid_down: int) -> Tensor:
    """The upstream token that each downstream token copies, int64 [grid_down²]."""
    index = torch.arange(grid_up**2, dtype=torch.float32).reshape(1, -1, 1)
    return nearest_upsample(index, grid_up, grid_down).flatten().long()
