"""Three-dimensional rotary position embedding, and the RMS-normalised rotation of queries and keys.

Shape legend: B batch, N tokens, H heads, D head width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVarTuple

import torch

from icve.runtime.transfers import to_device

Arguments = TypeVarTuple("Arguments")


def kept_tables(make: Callable[[*Arguments], torch.Tensor]) -> Callable[[*Arguments], torch.Tensor]:
    """Let a function of hashable arguments keep the last few tensors that it made; nobody may write to them.

    Not while a compiler traces it or its tensors have no numbers: what it makes then is no use to others.
    """
    kept = functools.lru_cache(maxsize=8)(make)

    @functools.wraps(make)
    def table(*args: *Arguments) -> torch.Tensor:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not torch.Tensor:
            return make(*args)
        with torch.inference_mode(False):  # a validation comes first, and training could not use its tensors
            return kept(*args)

    return table


def rotary_frequencies(
    grid: tuple[int, int, int],
    axes_dim: Sequence[int],
    theta: float = 256.0,
    device: torch.device | None = None,
    origin: tuple[int, int, int] = (0, 0, 0),
) -> torch.Tensor:
    """Unit complex rotations of every token of a (frames, height, width) grid, in row-major order (methods §1.1).

    Args:
        grid: tokens along time, height and width.
        axes_dim: how many of the head's channels turn with each axis; all even, their sum is the head width.
        theta: base of the geometric series of frequencies.
        device: where the rotations are wanted.
        origin: position of the first token along each axis.

    Returns:
        complex64 (frames·height·width, sum(axes_dim)/2).
    """
    return _frequencies(tuple(grid), tuple(axes_dim), theta, torch.device(device or "cpu"), tuple(origin))


@kept_tables
def _frequencies(
    grid: tuple[int, ...], axes_dim: tuple[int, ...], theta: float, device: torch.device, origin: tuple[int, ...]
) -> torch.Tensor:
    # The series is evaluated in float64 on the host: in float32 the CPU and CUDA results differ in the last bits.
    host: dict[str, Any] = {"dtype": torch.float64, "device": "meta" if device.type == "meta" else "cpu"}
    axes = [
        torch.arange(start, start + size, **host)[:, None] * theta ** (-torch.arange(0, dim, 2, **host) / dim)
        for size, start, dim in zip(grid, origin, axes_dim, strict=True)
    ]
    views = [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]
    turns = [a.view(*view, a.shape[-1]).expand(*grid, -1) for a, view in zip(axes, views, strict=True)]
    angles = torch.cat(turns, dim=-1).flatten(0, 2)
    return to_device(torch.polar(torch.ones_like(angles), angles).to(torch.complex64), device)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32, the precision that norms and rotations are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotate(x_BNHD: torch.Tensor, frequencies_ND: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring channel pairs (2i, 2i+1) of float32 or float64 `x` by `frequencies` (complex (N, D/2))."""
    pairs = torch.view_as_complex(x_BNHD.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * frequencies_ND[:, None]).flatten(-2)


class _NormRotate(torch.autograd.Function):
    """RMS norm and rotation as one step that keeps only its input for backward.

    As separate operations autograd keeps two more copies of every query and key, and on a CPU the composite RMS norm
    alone costs more than the attention projections.
    """

    @staticmethod
    def forward(ctx, x, weight, frequencies, eps):
        x32, axes = _wide(x), _normed_axes(weight)
        mean = torch.linalg.vector_norm(x32, dim=axes, keepdim=True).square_().div_(weight.numel())
        rstd = torch.rsqrt(mean.add_(eps))
        ctx.save_for_backward(x, weight, frequencies, rstd)
        normed = (x32 * rstd).mul_(_wide(weight))
        if frequencies is not None:  # turned in its place
            torch.view_as_complex(normed.unflatten(-1, (-1, 2))).mul_(frequencies[:, None])
        return normed.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, frequencies, rstd = ctx.saved_tensors
        grad = _turned(_wide(grad).contiguous(), None if frequencies is None else frequencies.conj())
        normed = _wide(x) * rstd
        product = grad * normed
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.flatten(0, -weight.ndim - 1).sum(0).to(weight.dtype)
        wide = _wide(weight)
        mean = (product.flatten(-weight.ndim) @ wide.flatten())[(..., *[None] * weight.ndim)]
        # Without a rotation the gradient is the caller's own, not to be written to.
        scaled = grad * wide if frequencies is None else grad.mul_(wide)
        grad_x = scaled.sub_(normed.mul_(mean.div_(weight.numel()))).mul_(rstd)
        return grad_x.to(x.dtype), grad_weight, None, None


def _normed_axes(weight: torch.Tensor) -> list[int]:
    return list(range(-weight.ndim, 0))


def _turned(x_BNHD: torch.Tensor, frequencies_ND: torch.Tensor | None) -> torch.Tensor:
    return x_BNHD if frequencies_ND is None else rotate(x_BNHD, frequencies_ND)


def norm_rotate(
    x_BNHD: torch.Tensor, weight: torch.Tensor, frequencies_ND: torch.Tensor | None, eps: float = 1e-6
) -> torch.Tensor:
    """RMS-normalise queries or keys over as many trailing dimensions as `weight` has, scale by it, then rotate them.

    Args:
        x_BNHD: (B, N, H, D), any floating dtype; the arithmetic is float32 or wider.
        weight: learned scale: (D,) normalises over the head width, (H, D) over all heads.
        frequencies_ND: complex (N, D/2); 1 for a token that has no position (text); None rotates nothing.

    Returns:
        (B, N, H, D) in the dtype of `x`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain composition, and knows no complex numbers
        x32 = _wide(x_BNHD)
        x32 = x32 * torch.rsqrt(x32.square().mean(_normed_axes(weight), keepdim=True) + eps) * _wide(weight)
        if frequencies_ND is None:
            return x32.to(x_BNHD.dtype)
        even, odd = x32.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.view_as_real(frequencies_ND)[:, None].unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x_BNHD.dtype)
    return _NormRotate.apply(x_BNHD, weight, frequencies_ND, eps)


class RotaryRMSNorm(torch.nn.RMSNorm):
    """`norm_rotate` with a weight of its own: a module that is called, so that offloading brings the weight along."""

    eps: float

    # Modules are free to take what they like: only torch's RMSNorm gives its forward a type.
    def forward(self, x_BNHD: torch.Tensor, frequencies_ND: torch.Tensor | None) -> torch.Tensor:  # type: ignore[override]
        return norm_rotate(x_BNHD, self.weight, frequencies_ND, self.eps)
