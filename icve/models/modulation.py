"""Adaptive layer norm and gated residual whose vectors differ per segment of the sequence (methods §1.1).

The zero-timestep source and the noised target share every weight; what differs is which shift, scale and gate their
tokens get. Vectors are given as (B, segments, D) beside the segments' lengths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def modulated_norm(x_BND: Tensor, shift_BSD: Tensor, scale_BSD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """LayerNorm without weights (eps 1e-6), then x·(1 + scale) + shift with each segment's own vectors."""
    normed = F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
    pieces = [
        torch.addcmul(shift[:, None], piece, 1 + scale[:, None])
        for piece, shift, scale in zip(normed.split(lengths, 1), shift_BSD.unbind(1), scale_BSD.unbind(1), strict=True)
    ]
    return torch.cat(pieces, dim=1)


def gated_residual(x_BND: Tensor, update_BND: Tensor, gate_BSD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """x + gate·update, each segment with its own gate."""
    pieces = [
        torch.addcmul(x, update, gate[:, None])
        for x, update, gate in zip(
            x_BND.split(lengths, 1), update_BND.split(lengths, 1), gate_BSD.unbind(1), strict=True
        )
    ]
    return torch.cat(pieces, dim=1)
