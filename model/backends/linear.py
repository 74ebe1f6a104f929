"""Linear layers in float32 on a CPU, with what follows them done while the product is written.

For float32 torch takes MKL, which on other processors than Intel's runs at half of oneDNN's speed, and it has no public
way to oneDNN's matrix product. The operators used here are those that torch.compile would put in; where torch has none,
plain operations do the same.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
if ONEDNN:
    _product = torch.ops.mkldnn._linear_pointwise.default
    _product_add = torch.ops.mkldnn._linear_pointwise.binary

SMALL = 1_200_000
"""Multiply-adds below which MKL's quicker start is worth more than oneDNN's speed; half as many where GELU follows.

Measured with one thread; the choice depends on shapes alone, so it is the same for all batches of a bucket.
"""


class Linear:
    """A layer over the last axis, [..., inputs] → [..., outputs]; large ones keep the weight in oneDNN's own order."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight) if ONEDNN else weight
        if ONEDNN and weight.numel() >= SMALL:
            self._weight = self._packed

    def __call__(self, x: Tensor) -> Tensor:
        """The layer."""
        if self._is_small(x, SMALL):
            return F.linear(x, self._weight, self._bias)
        out: Tensor = _product(x, self._packed, self._bias, "none", [], "")
        return out

    def gelu(self, x: Tensor) -> Tensor:
        """The layer and the exact GELU."""
        if self._is_small(x, SMALL // 2):
            return _gelu(F.linear(x, self._weight, self._bias))
        out: Tensor = _product(x, self._packed, self._bias, "gelu", [], "none")
        return out

    def added(self, z: Tensor, x: Tensor) -> Tensor:
        """z plus the layer."""
        if self._is_small(x, SMALL):
            return F.linear(x, self._weight, self._bias).add_(z)
        out: Tensor = _product_add(x, z, self._packed, self._bias, "add")
        return out

    def _is_small(self, x: Tensor, limit: int) -> bool:
        return not ONEDNN or x.numel() * len(self._bias) < limit


def product_gelu(weight: Tensor, x: Tensor) -> Tensor:
    """weight [outputs, inputs] by x [inputs, m], and the exact GELU."""
    if not ONEDNN or x.numel() * len(weight) < SMALL // 2:
        return _gelu(weight @ x)
    out: Tensor = _product(weight, x.t(), None, "gelu", [], "none")
    return out


def product_added(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """z [outputs, m] plus weight [outputs, inputs] by x [inputs, m]; what was in z is lost."""
    if not ONEDNN or x.numel() * len(weight) < SMALL:
        return z.addmm_(weight, x)
    out: Tensor = _product_add(weight, z, x.t(), None, "add")
    return out


def _gelu(x: Tensor) -> Tensor:
    """In place."""
    out: Tensor = torch.ops.aten.gelu_(x)
    return out
