"""A stage as an ONNX graph: what `ServedStage` (model/nn/served.py) computes, in operations that suit ONNX Runtime.

In addition to what model/nn/served.py folds:

- Token mixing multiplies from the left, W [D_S, S] by [n, S, C], so nothing is transposed.
- The residual of channel mixing goes into its second product, which adds to what is there (Gemm's C).
- Pixels are divided by the patch embedding's weight, logits are tempered by the head's.
- E's norm standardises upstream features once for all blocks.

In float16 the head stays float32, as it decides exits.
"""

import copy
import logging
import warnings

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msmlp.model.nn.blocks import MixerBlock, Reuse
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.nn.served import ServedStage

OPSET = 20
"""The first with GELU as one operator."""


class GraphStage(nn.Module):
    """A folded `ServedStage` with the same inputs and outputs; features and upstream are in `dtype`."""

    def __init__(self, served: ServedStage, dtype: torch.dtype = torch.float32, *, quantizable: bool = False) -> None:
        """Take over `served`, with everything but the head in `dtype`.

        `quantizable` keeps channel mixing's products as MatMuls with a constant, for quantization tools.
        """
        super().__init__()
        stage = copy.deepcopy(served.stage)  # its layers are cast in place
        blocks = [block for block in stage.blocks if isinstance(block, MixerBlock)]
        self.dtype, self.policy, self.mean = dtype, served.policy, served.mean
        self.embed = stage.embed.project
        self.embed.weight.data = self.embed.weight.detach() / served.std
        # The biases of token mixing's second layers, [S, 1]. Each adds one number to all channels of a token, which the
        # norm of every later reader removes. So a single addition suffices, after the patch embedding.
        late = torch.stack([_exact(block.token_mlp.fc2.bias) for block in blocks]).sum(dim=0).float()
        self.late = nn.Parameter(late[:, None])
        reuse = next((block.reuse for block in blocks if block.reuse), None)
        self.standardises = reuse is not None and isinstance(reuse.norm, nn.LayerNorm)
        self.blocks = nn.ModuleList(_Block(block, quantizable) for block in blocks)
        self.to(dtype)
        self.norm = stage.norm
        self.head_weight = nn.Parameter((stage.head.weight.detach() / served.temperature).T.contiguous())
        self.head_bias = nn.Parameter(stage.head.bias.detach() / served.temperature)

    def forward(self, pixels: Tensor, upstream: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean).to(self.dtype)
        z = self.embed(images).flatten(2).transpose(1, 2) + self.late
        if self.standardises and upstream is not None:
            upstream = F.layer_norm(upstream, upstream.shape[2:])
        for block in self.blocks:
            z = block(z, upstream)
        pooled = self.norm(z.float()).mean(dim=1)
        probabilities = torch.softmax(torch.addmm(self.head_bias, pooled, self.head_weight), dim=1)
        return z, probabilities, self.policy(probabilities, torch)


class _Block(nn.Module):
    def __init__(self, block: MixerBlock, quantizable: bool) -> None:
        super().__init__()
        token, channel = block.token_mlp, block.channel_mlp
        self.quantizable = quantizable
        self.token_norm, self.channel_norm = block.token_norm, block.channel_norm
        # With the bias as one more column, which multiplies a row of ones: [D_S, S_in + 1].
        self.token1 = nn.Parameter(torch.cat([token.fc1.weight, token.fc1.bias[:, None]], dim=1).detach())
        self.token2 = nn.Parameter(token.fc2.weight.detach())
        self.channel1 = nn.Parameter(channel.fc1.weight.detach().T.contiguous())
        self.channel2 = nn.Parameter(channel.fc2.weight.detach().T.contiguous())
        self.bias1, self.bias2 = channel.fc1.bias, channel.fc2.bias
        self.reads = block.reuse is not None
        after = _after_norm(block.reuse) if block.reuse is not None else None
        self.scale = nn.Parameter(after[0].mT.contiguous() if after[0].dim() == 2 else after[0]) if after else None
        self.shift = nn.Parameter(after[1]) if after else None

    def forward(self, z: Tensor, upstream: Tensor | None) -> Tensor:
        """z [n, S, C], standardised upstream [n, S_up, C_up] where the block reuses → [n, S, C]."""
        read = [self.token_norm(z)]
        if self.reads and upstream is not None:
            read.append(self.token_norm(self._embedding(upstream)))
        inputs = torch.cat([*read, torch.ones_like(z[:, :1])], dim=1)
        z = z + torch.matmul(self.token2, F.gelu(torch.matmul(self.token1, inputs)))
        normed = self.channel_norm(z)
        if self.quantizable:
            hidden = F.gelu(torch.matmul(normed, self.channel1) + self.bias1)
            return z + (torch.matmul(hidden, self.channel2) + self.bias2)
        hidden = F.gelu(torch.addmm(self.bias1, normed.flatten(0, 1), self.channel1))
        return torch.addmm((z + self.bias2).flatten(0, 1), hidden, self.channel2).reshape(z.shape)

    def _embedding(self, upstream: Tensor) -> Tensor:
        if self.scale is None or self.shift is None:
            return upstream
        mapped = upstream * self.scale if self.scale.dim() == 1 else torch.matmul(upstream, self.scale)
        return mapped + self.shift


def _after_norm(reuse: Reuse) -> tuple[Tensor, Tensor] | None:
    """f without its LN's standardisation, which all blocks can share: a weight [C, C_up] or a scale [C], and a shift
    [C]; None if nothing remains."""
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


def traced(stage: GraphStage, k: int, cascade: CascadeConfig) -> onnx.ModelProto:
    """torch's own export of stage `k` (0-based), for batches of any size."""
    batch, size = torch.export.Dim("n"), cascade.image_size
    # A batch of 1 would be taken for a constant.
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    upstream = torch.zeros(2, cascade.tokens(k - 1), cascade.stages[k - 1].width, dtype=stage.dtype) if k else None
    # torch warns of missing torchvision, which nothing here needs, and of its own calls.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            stage.eval(),
            (pixels, upstream),
            input_names=["pixels", *["upstream"] * bool(k)],
            output_names=["features", "probabilities", "score"],
            dynamic_shapes=({0: batch}, {0: batch} if k else None),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto
