"""The serving form of trained weights.

Nearest upsampling followed by a token-linear layer is one linear map: the columns of the layer that read copies of the
same upstream token are summed. LN works token by token, so it commutes with the copying. The E half of fc1 shrinks
from D_S x S_down to D_S x S_up, exactly.
"""

import torch

from model.cascade import Cascade
from model.config import CascadeConfig
from model.reuse import nearest_index


def fold_state(config: CascadeConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of `Cascade(config)` → the state of `Cascade(config, folded=True)`."""
    folded = dict(state)
    for k in range(1, len(config.stages)):
        index = nearest_index(config.grid(k - 1), config.grid(k))
        for block in range(config.stages[k].depth):
            if not config.reuses(k, block):
                continue
            name = f"stages.{k}.blocks.{block}.token_mlp.fc1.weight"
            own, reused = state[name].split(config.tokens(k), dim=1)
            summed = reused.new_zeros(len(reused), config.tokens(k - 1), dtype=torch.float64)
            summed.index_add_(1, index.to(reused.device), reused.double())
            folded[name] = torch.cat([own, summed.to(own.dtype)], dim=1)
    return folded


def fold(cascade: Cascade) -> Cascade:
    """A folded copy of a trained cascade: same outputs, fewer multiply-adds."""
    folded = Cascade(cascade.config, folded=True)
    folded.load_state_dict(fold_state(cascade.config, cascade.state_dict()))
    return folded.eval()
