"""Adaptive layer norm and gated residual whose vectors differ by the time of a token (methods §1.1).

The zero-timestep source and the noised target share every weight; what differs is which shift, scale and gate their
tokens get. Vectors are given as (B, times, D) beside the layout's runs of tokens at one time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.models.layout import Runs


def modulated_norm(x_BND: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, runs: Runs, eps: float = 1e-6) -> Tensor:
    """LayerNorm without weights, then x·(1 + scale) + shift with the vectors of each token's time."""
    normed = F.layer_norm(x_BND, x_BND.shape[-1:], eps=eps)
    pieces = [
        torch.addcmul(shift_BTD[:, time, None], piece, 1 + scale_BTD[:, time, None])
        for (time, _), piece in zip(runs.lengths, _pieces(normed, runs), strict=True)
    ]
    return torch.cat(pieces, dim=1)


def gated_residual(x_BND: Tensor, update_BND: Tensor, gate_BTD: Tensor, runs: Runs) -> Tensor:
    """x + gate·update, with the gate of each token's time."""
    pieces = [
        torch.addcmul(x, update, gate_BTD[:, time, None])
        for (time, _), x, update in zip(runs.lengths, _pieces(x_BND, runs), _pieces(update_BND, runs), strict=True)
    ]
    return torch.cat(pieces, dim=1)


def _pieces(x_BND: Tensor, runs: Runs) -> tuple[Tensor, ...]:
    return x_BND.split([tokens for _, tokens in runs.lengths], dim=1)
