"""Matrix products in float32 on a CPU, with what follows them done while they are written.

For float32 torch takes MKL, which on other processors than Intel's runs at half of oneDNN's speed, and it has no public
way to oneDNN's product. The operators used here are those that torch.compile would put in; where torch has none, plain
operations do the same.

MKL starts quicker, so small products go there. Which way depends on shapes alone: all batches of a bucket go the same.
MKL also computes the edge of a matrix otherwise than its middle, so that an image's bits would depend on its place,
unless rows fill whole cache lines.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
if ONEDNN:
    _product = torch.ops.mkldnn._linear_pointwise.default
    _product_add = torch.ops.mkldnn._linear_pointwise.binary

SMALL = 1_200_000
"""Multiply-adds below which MKL is faster; half as many where GELU follows (measured with one thread)."""

LINE = 16
"""Numbers in a cache line."""


class Linear:
    """A layer over the last axis, [..., inputs] → [..., outputs]; large ones keep the weight in oneDNN's own order."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight) if ONEDNN else weight
        if weight.numel() >= SMALL:
            self._weight = self._packed

    def __call__(self, x: Tensor) -> Tensor:
        """The layer."""
        if self._plain(x, SMALL):
            return F.linear(x, self._weight, self._bias)
        out: Tensor = _product(x, self._packed, self._bias, "none", [], "")
        return out

    def gelu(self, x: Tensor) -> Tensor:
        """The layer and the exact GELU."""
        if self._plain(x, SMALL // 2):
            return _gelu(F.linear(x, self._weight, self._bias))
        out: Tensor = _product(x, self._packed, self._bias, "gelu", [], "none")
        return out

    def added(self, z: Tensor, x: Tensor) -> Tensor:
        """z plus the layer."""
        if self._plain(x, SMALL):
            return F.linear(x, self._weight, self._bias).add_(z)
        out: Tensor = _product_add(x, z, self._packed, self._bias, "add")
        return out

    def _plain(self, x: Tensor, limit: int) -> bool:
        return _plain(x, len(self._bias), limit)


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """weight [outputs, tokens] by x [tokens, n, C] → [outputs, n, C]."""
    columns = x.flatten(1)
    if _plain(x, len(weight), SMALL):
        return (weight @ columns).view(-1, *x.shape[1:])
    out: Tensor = _product(weight, columns.t(), None, "none", [], "")
    return out.view(-1, *x.shape[1:])


def mix_gelu(weight: Tensor, x: Tensor) -> Tensor:
    """`mix` and the exact GELU."""
    columns = x.flatten(1)
    if _plain(x, len(weight), SMALL // 2):
        return _gelu(weight @ columns).view(-1, *x.shape[1:])
    out: Tensor = _product(weight, columns.t(), None, "gelu", [], "none")
    return out.view(-1, *x.shape[1:])


def mix_added(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """z [outputs, n, C] plus `mix`; what was in z is lost."""
    columns, rows = x.flatten(1), z.flatten(1)
    if _plain(x, len(weight), SMALL):
        return rows.addmm_(weight, columns).view(z.shape)
    out: Tensor = _product_add(weight, rows, columns.t(), None, "add")
    return out.view(z.shape)


def _plain(x: Tensor, outputs: int, limit: int) -> bool:
    return not ONEDNN or (x.numel() * outputs < limit and x.shape[-1] % LINE == 0)


def _gelu(x: Tensor) -> Tensor:
    """In place."""
    out: Tensor = torch.ops.aten.gelu_(x)
    return out
