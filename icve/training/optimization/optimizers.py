"""Muon for the hidden matrices and AdamW for everything else, as one torch optimizer.

One object, so that automatic optimization, clipping, schedules, saving and resuming need not know that there are two.
Muon: momentum, orthogonalised by five Newton-Schulz iterations (Jordan et al., 2024; learning rate matched to AdamW's
update size as in "Muon is Scalable for LLM Training", arXiv 2502.16982).
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Matrices inside the transformer's blocks, except the layers that compute modulation (norm*.linear).
HIDDEN_MATRICES = r"blocks\.\d+\.(?!.*norm).*weight$"
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STACK_NUMEL = 1 << 24  # matrices of one shape are iterated together, up to this many numbers


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: singular values end in about [0.7, 1.2], singular vectors stay.

    Args:
        matrices: (N, rows, columns), any floating dtype.
        steps: Newton-Schulz iterations.

    Returns:
        (N, rows, columns) bfloat16 on CUDA, else float32: CPUs may emulate 16 bits at a fiftieth of the speed, and not
        every Mac has bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    X = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    tall = X.size(-2) > X.size(-1)
    if tall:
        X = X.mT
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class MuonAdamW(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW for biases, norms, embeddings, modulation, input and output projections.

    Parameters without a gradient are left alone, with their state: a step that is skipped by removing the gradients
    changes nothing.

    Args:
        params: `module.named_parameters()`, or parameters without names, where every matrix counts as hidden.
        lr: of the matrices; updates have the RMS of AdamW's at the same learning rate.
        adamw_lr: of all the rest; None for `lr`.
        weight_decay: decoupled, for both kinds; one-dimensional parameters are not decayed.
        momentum: of Muon, with Nesterov's look-ahead.
        betas, eps: of AdamW.
        newton_schulz_steps: fewer are faster and less exact.
        hidden: regular expression, searched in a name; two-dimensional parameters that match go to Muon.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[Tensor],
        lr: float = 1e-3,
        adamw_lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        newton_schulz_steps: int = 5,
        hidden: str = HIDDEN_MATRICES,
    ) -> None:
        adamw_lr = lr if adamw_lr is None else adamw_lr
        if min(lr, adamw_lr, weight_decay, eps) < 0 or newton_schulz_steps < 1:
            raise ValueError("MuonAdamW needs learning rates, weight_decay and eps >= 0 and newton_schulz_steps >= 1.")
        if not all(0.0 <= value < 1.0 for value in (momentum, *betas)):
            raise ValueError("MuonAdamW needs momentum and betas in [0, 1).")
        muon = {"kind": "muon", "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        rest = {"kind": "adamw", "lr": adamw_lr, "betas": tuple(betas), "eps": eps}
        groups: list[dict[str, Any]] = [
            {"params": [], **muon, "newton_schulz_steps": newton_schulz_steps},
            {"params": [], **rest, "weight_decay": weight_decay},
            {"params": [], **rest, "weight_decay": 0.0},
        ]
        for item in params:
            name, parameter = item if isinstance(item, tuple) else (None, item)
            if parameter.ndim == 2 and (name is None or re.search(hidden, name)):
                group = groups[0]
            else:
                group = groups[1 if parameter.ndim > 1 else 2]
            group["params"].append(item)
        super().__init__([group for group in groups if group["params"]], defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon_step if group["kind"] == "muon" else self._adamw_step)(group, params)
        return result

    def _muon_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]  # all have one
        for p, gradient in zip(params, gradients, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for indices in _same_shape(params):
            ortho = orthogonalise(torch.stack([updates[i] for i in indices]), group["newton_schulz_steps"])
            # An orthogonal (rows, columns) matrix has RMS 1/sqrt(max(rows, columns)); AdamW's updates about 0.2.
            scale = 0.2 * math.sqrt(max(ortho.shape[-2:]))
            steps = [update.to(params[indices[0]].dtype) for update in ortho.unbind()]
            torch._foreach_add_([params[i] for i in indices], steps, alpha=-group["lr"] * scale)

    def _adamw_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        gradients = [p.grad for p in params if p.grad is not None]  # all have one
        means, squares, steps = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step"))
        options: dict[str, Any] = {key: group[key] for key in ("lr", "weight_decay", "eps")}
        options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        adamw(params, gradients, means, squares, [], steps, foreach=True, amsgrad=False, maximize=False, **options)


def _same_shape(params: list[Tensor]) -> list[list[int]]:
    """Indices of parameters with one shape, device and dtype, in chunks of at most STACK_NUMEL numbers."""
    alike = defaultdict(list)
    for index, p in enumerate(params):
        alike[(p.shape, p.device, p.dtype)].append(index)
    chunks: list[list[int]] = []
    for (shape, _, _), indices in alike.items():
        size = max(1, STACK_NUMEL // shape.numel())
        chunks.extend(indices[start : start + size] for start in range(0, len(indices), size))
    return chunks
