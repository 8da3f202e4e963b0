"""Adaptive layer norm and gated residual whose vectors differ by the time of a token (methods §1.1).

The zero-timestep source and the noised target share every weight; what differs is which shift, scale and gate their
tokens get. Vectors are given as (B, times, D) beside the layout's runs of tokens at one time.

Each is one step to autograd, which would keep the normed tokens besides what they come from, and copy all tokens once
more to join the runs, forward and backward. The compiler fuses the plain composition itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icve.models.layout import Runs


def modulated_norm(x_BND: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, runs: Runs, eps: float = 1e-6) -> Tensor:
    """LayerNorm without weights, then x·(1 + scale) + shift with the vectors of each token's time."""
    if torch.compiler.is_compiling():
        normed = F.layer_norm(x_BND, x_BND.shape[-1:], eps=eps)
        parts = _runs(runs, [normed], [shift_BTD, 1 + scale_BTD])
        return torch.cat([torch.addcmul(shift, piece, factor) for _, piece, shift, factor in parts], dim=1)
    return _ModulatedNorm.apply(x_BND, shift_BTD, 1 + scale_BTD, runs, eps)


def gated_residual(x_BND: Tensor, update_BND: Tensor, gate_BTD: Tensor, runs: Runs) -> Tensor:
    """x + gate·update, with the gate of each token's time."""
    if torch.compiler.is_compiling():
        return torch.cat([torch.addcmul(*part[1:]) for part in _runs(runs, [x_BND, update_BND], [gate_BTD])], dim=1)
    return _GatedResidual.apply(x_BND, update_BND, gate_BTD, runs)


def _runs(runs: Runs, tokens: list[Tensor], vectors: list[Tensor]) -> list[tuple[Any, ...]]:
    """Of every run: its time, its part (B, n, D) of each tensor of tokens, and each vector (B, 1, D) of its time."""
    lengths = [count for _, count in runs.lengths]
    pieces = [x.split(lengths, dim=1) for x in tokens]
    return [
        (time, *[of_one[number] for of_one in pieces], *[vector[:, time, None] for vector in vectors])
        for number, (time, _) in enumerate(runs.lengths)
    ]


class _ModulatedNorm(torch.autograd.Function):
    """Keeps its input alone for backward, which norms it again: a small part of a block's time."""

    @staticmethod
    def forward(ctx, x, shift, factor, runs, eps):
        normed = F.layer_norm(x, x.shape[-1:], eps=eps)  # float32 under autocast
        ctx.save_for_backward(x, factor)
        ctx.runs, ctx.eps, ctx.dtype = runs, eps, normed.dtype
        out = normed.to(torch.promote_types(normed.dtype, factor.dtype))
        for _, piece, vector, multiple in _runs(runs, [out], [shift, factor]):
            torch.addcmul(vector, piece, multiple, out=piece)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, factor = ctx.saved_tensors
        wide = x.to(ctx.dtype)
        normed, mean, rstd = torch.native_layer_norm(wide, x.shape[-1:], None, None, ctx.eps)
        scratch = normed.to(grad.dtype)
        of_shift, of_factor = (torch.zeros_like(factor) if needed else None for needed in ctx.needs_input_grad[1:3])
        for time, g, n, multiple in _runs(ctx.runs, [grad, scratch], [factor]):
            if of_shift is not None:
                of_shift[:, time] += g.sum(1)
            if of_factor is not None:
                of_factor[:, time] += n.mul_(g).sum(1)
            torch.mul(g, multiple, out=n)
        of_x = None
        if ctx.needs_input_grad[0]:
            scratch = scratch.to(ctx.dtype)
            needed = [True, False, False]
            of_x, *_ = torch.ops.aten.native_layer_norm_backward(
                scratch, wide, x.shape[-1:], mean, rstd, None, None, needed
            )
            of_x = of_x.to(x.dtype)
        return of_x, of_shift, of_factor, None, None


class _GatedResidual(torch.autograd.Function):
    """Keeps the update for the gate's gradient, where that is wanted."""

    @staticmethod
    def forward(ctx, x, update, gate, runs):
        ctx.save_for_backward(update if ctx.needs_input_grad[2] else None, gate)
        ctx.runs, ctx.dtypes = runs, (x.dtype, update.dtype)
        dtype = torch.promote_types(torch.promote_types(x.dtype, update.dtype), gate.dtype)
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        for _, piece, *part in _runs(runs, [out, x, update], [gate]):
            torch.addcmul(*part, out=piece)
        return out

    @staticmethod
    def backward(ctx, grad):
        update, gate = ctx.saved_tensors
        of_x, of_update = ctx.dtypes
        of_gate = None
        if update is not None:
            of_gate = torch.zeros_like(gate)
            for time, g, u in _runs(ctx.runs, [grad, update], []):
                of_gate[:, time] += (g * u).sum(1)
        scaled = torch.empty_like(grad)
        for _, piece, g, multiple in _runs(ctx.runs, [scaled, grad], [gate]):
            torch.mul(g, multiple, out=piece)
        return grad.to(of_x), scaled.to(of_update), of_gate, None
