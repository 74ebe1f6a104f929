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

SMALL = 2_000_000
"""Multiply-adds below which MKL's quicker start is worth more than oneDNN's speed (measured)."""


class Linear:
    """A layer over the last axis, [..., inputs] → [..., outputs]; its weight is kept in oneDNN's own order."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias
        if ONEDNN:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """The layer."""
        if not ONEDNN:
            return F.linear(x, self._weight, self._bias)
        out: Tensor = _product(x, self._weight, self._bias, "none", [], "")
        return out

    def gelu(self, x: Tensor) -> Tensor:
        """The layer and the exact GELU."""
        if not ONEDNN:
            return F.gelu(F.linear(x, self._weight, self._bias))
        out: Tensor = _product(x, self._weight, self._bias, "gelu", [], "none")
        return out

    def added(self, z: Tensor, x: Tensor) -> Tensor:
        """z plus the layer."""
        if not ONEDNN:
            return F.linear(x, self._weight, self._bias).add_(z)
        out: Tensor = _product_add(x, z, self._weight, self._bias, "add")
        return out


def product_gelu(weight: Tensor, x: Tensor) -> Tensor:
    """weight [outputs, inputs] by x [inputs, m], and the exact GELU."""
    if not ONEDNN:
        return F.gelu(weight @ x)
    out: Tensor = _product(weight, x.t(), None, "gelu", [], "none")
    return out


def product_added(z: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """z [outputs, m] plus weight [outputs, inputs] by x [inputs, m]; what was in z is lost."""
    if not ONEDNN or weight.numel() * x.shape[1] < SMALL:
        return z.addmm_(weight, x)
    out: Tensor = _product_add(weight, z, x.t(), None, "add")
    return out
