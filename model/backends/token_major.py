"""A stage as a CPU serves it: the numbers of `ServedStage` (model/nn/served.py), in fewer and larger operations.

Tensors lie token by token, [S, n, C]. Token mixing over a whole batch is then one matrix product, W [D_S, S] by
[S, n·C], and so is channel mixing, [S·n, C] by W: nothing is transposed. Besides:

- GELU and the residual are part of the products (linear.py).
- The bias of token mixing's first layer is one more column of its weight, which meets a row of ones.
- The biases of its second layers are added at once, after the patch embedding (model/nn/served.py).
- Pixels are normalised by the patch embedding's weight, logits are tempered by the head's.
- E's norm standardises upstream features alike for every block, so that is done once.

`ServedStage` stays what a GPU runs; tests compare the two.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.backends.linear import Linear, mix, mix_added, mix_gelu
from msmlp.model.nn.blocks import MixerBlock, Reuse
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.nn.served import ServedStage, embedding_after_norm, late_bias, token_weight

Op = Callable[[Tensor], Tensor]


class Scratch:
    """Memory that all stages and buckets use in turn, and as many ones as a token of the largest batch has numbers."""

    def __init__(self, floats: int, ones: int) -> None:
        self._floats, self._ones = torch.zeros(floats), torch.ones(ones)

    def take(self, *shape: int) -> Tensor:
        """In that shape, with whatever was written last."""
        return self._floats[: math.prod(shape)].view(shape)

    def ones(self, images: int, width: int) -> Tensor:
        """[1, images, width]."""
        return self._ones[: images * width].view(1, images, width)


class TokenMajorStages:
    """All stages, and the features [S, slots, C] that they leave for the next, float32 on a CPU."""

    def __init__(self, cascade: CascadeConfig, served: Sequence[ServedStage], *, slots: int, largest: int) -> None:
        widest = max(stage.width for stage in cascade.stages)
        tokens = max(cascade.tokens(k) for k in range(len(cascade.stages)))
        patches = 3 * cascade.image_size**2
        windows = max(3 * cascade.tokens(k) * stage.window**2 for k, stage in enumerate(cascade.stages))
        scratch = Scratch(largest * max((2 * tokens + 1) * widest, windows), largest * widest)
        self._stages = [TokenMajorStage(each, scratch) for each in served]
        self._features = [
            torch.zeros(cascade.tokens(k), slots, stage.width) for k, stage in enumerate(cascade.stages[:-1])
        ]
        self._gathered = torch.zeros(largest * patches, dtype=torch.uint8)
        self._upstream = torch.zeros(largest * tokens * widest)

    def __call__(self, stage: int, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Stage `stage` (0-based) over `rows` of pixels [slots, H, W, 3] → probabilities [n, classes], score [n]."""
        shape = (len(rows), *pixels.shape[1:])
        images = torch.index_select(pixels, 0, rows, out=self._gathered[: math.prod(shape)].view(shape))
        upstream = None
        if stage:
            slab = self._features[stage - 1]
            shape = (len(slab), len(rows), slab.shape[2])
            upstream = torch.index_select(slab, 1, rows, out=self._upstream[: math.prod(shape)].view(shape))
        features, probabilities, score = self._stages[stage](images, upstream)
        if stage < len(self._features):
            self._features[stage].index_copy_(1, rows, features)
        return probabilities, score


class TokenMajorStage:
    """What a folded `ServedStage` computes, in float32 on a CPU."""

    def __init__(self, served: ServedStage, scratch: Scratch) -> None:
        stage = served.stage
        blocks = [block for block in stage.blocks if isinstance(block, MixerBlock)]
        self._scratch, self._policy = scratch, served.policy
        projection = stage.embed.project
        kernel = _exact(projection.weight)
        self._patch, self._overlap, self._window = stage.embed.patch, stage.embed.overlap, kernel.shape[-1]
        # Beyond the border lies what normalises to 0.
        self._beyond = _single(_exact(served.mean)).view(3)
        # [C, 3, w, w] → [C, w·w·3], as pixels lie.
        weight = _single((kernel / _exact(served.std)).permute(0, 2, 3, 1).flatten(1))
        assert projection.bias is not None
        bias = _exact(projection.bias) - (kernel * _exact(served.mean / served.std)).sum(dim=(1, 2, 3))
        late = late_bias(blocks)
        self._embed, self._late = Linear(weight, _single(bias)), late[:, None, None]
        reuse = next((block.reuse for block in blocks if block.reuse), None)
        self._standardise = _standardise(reuse) if reuse else None
        self._blocks = [_Block(block, scratch) for block in blocks]
        self._norm = _norm(stage.norm)
        self._mean = torch.full((1, len(late)), 1 / len(late))
        self._head = Linear(*(_single(_exact(each) / served.temperature) for each in stage.head.parameters()))

    def __call__(self, pixels: Tensor, upstream: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [n, H, W, 3], upstream features [S_up, n, C_up] → features [S, n, C], probabilities, score."""
        z = self._tokens(pixels)
        embedding = self._standardise(upstream) if self._standardise and upstream is not None else None
        for block in self._blocks:
            z = block(z, embedding)
        # torch's own mean over tokens rounds an image at the end of a batch otherwise than one in the middle.
        pooled = mix(self._mean, self._norm(z))[0]
        probabilities = torch.softmax(self._head(pooled), dim=1)
        return z, probabilities, self._policy(probabilities, torch)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """The patch embedding, [S, n, C]."""
        n, size, p, w = len(pixels), pixels.shape[1], self._patch, self._window
        if self._overlap:
            pixels = self._framed(pixels)
        windows = self._scratch.take(size // p, size // p, n, w, w, 3)
        windows.copy_(pixels.unfold(1, w, p).unfold(2, w, p).permute(1, 2, 0, 4, 5, 3))
        return self._embed(windows.view(-1, n, w * w * 3)).add_(self._late)

    def _framed(self, pixels: Tensor) -> Tensor:
        """float32 pixels with a frame of the mean colour, as wide as the overlap."""
        n, size, o = len(pixels), pixels.shape[1], self._overlap
        framed = self._beyond.repeat(n, size + 2 * o, size + 2 * o, 1)
        framed[:, o : o + size, o : o + size] = pixels
        return framed


class _Block:
    """`MixerBlock`, folded."""

    def __init__(self, block: MixerBlock, scratch: Scratch) -> None:
        self._scratch = scratch
        self._embedding = _embedding(block.reuse) if block.reuse else None
        self._token_norm, self._channel_norm = _norm(block.token_norm), _norm(block.channel_norm)
        token, channel = block.token_mlp, block.channel_mlp
        self._token1 = token_weight(block)
        self._token2 = token.fc2.weight.detach()
        self._channel1 = Linear(channel.fc1.weight.detach(), channel.fc1.bias.detach())
        self._channel2 = Linear(channel.fc2.weight.detach(), channel.fc2.bias.detach())

    def __call__(self, z: Tensor, upstream: Tensor | None) -> Tensor:
        """z [S, n, C], standardised upstream [S_up, n, C_up] where the block reuses → [S, n, C]."""
        _, n, width = z.shape
        read = [self._token_norm(z)]
        if self._embedding is not None and upstream is not None:
            read.append(self._token_norm(self._embedding(upstream)))
        inputs = self._scratch.take(self._token1.shape[1], n, width)
        torch.cat([*read, self._scratch.ones(n, width)], out=inputs)
        z = mix_added(z, self._token2, mix_gelu(self._token1, inputs))
        return self._channel2.added(z, self._channel1.gelu(self._channel_norm(z)))


def _norm(norm: nn.LayerNorm) -> Op:
    weight, bias = norm.weight.detach(), norm.bias.detach()
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, norm.eps)


def _standardise(reuse: Reuse) -> Op:
    """The part of f that does not depend on the block."""
    norm = reuse.norm
    if not isinstance(norm, nn.LayerNorm):
        return lambda x: x
    # An LN without weights takes a path in torch that is twice as slow.
    ones, zeros = torch.ones_like(norm.weight), torch.zeros_like(norm.bias)
    return lambda x: F.layer_norm(x, ones.shape, ones, zeros, norm.eps)


def _embedding(reuse: Reuse) -> Op:
    """The rest of f: the norm's scale and shift, then the map between widths where there is one."""
    after = embedding_after_norm(reuse)
    if after is None:
        return lambda x: x
    weight, shift = after
    return Linear(weight, shift) if weight.dim() == 2 else lambda x: torch.addcmul(shift, x, weight)


def _exact(x: Tensor) -> Tensor:
    return x.detach().double()


def _single(x: Tensor) -> Tensor:
    return x.float().contiguous()
