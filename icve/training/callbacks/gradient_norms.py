"""Gradient norms by part of the transformer, also where every process holds only a piece of the gradients."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from icve.training.lightning_types import editing


def part_of(name: str) -> str:
    """Part of the transformer that a parameter belongs to: a stack of blocks by its name, "embeddings" or "output"."""
    module = name.removeprefix("transformer.").split(".")[0]
    if module.endswith("blocks"):
        return module
    return "output" if module.endswith("_out") else "embeddings"


def gradient_norms(
    gradients: Iterable[tuple[str, Tensor]], parts: Iterable[str], device: torch.device, sharded: bool
) -> dict[str, Tensor]:
    """L2 norm of each part's gradient, float32 scalars on `device`.

    Args:
        gradients: name of a parameter, and this process's piece of its gradient.
        parts: all there are, in the same order on all processes.
        device: one that the processes can exchange tensors on.
        sharded: every element is on exactly one process, so that their squares are summed over all of them, which all
            must call this; otherwise each has all elements.
    """
    order = {part: i for i, part in enumerate(parts)}
    squares = torch.zeros(len(order), device=device)
    for name, gradient in gradients:
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        squares[order[part_of(name)]] += norm.to(device).square()
    if sharded:
        dist.all_reduce(squares)
    return dict(zip(order, squares.sqrt().unbind(), strict=True))


def transformer_gradient_norms(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
    """Gradient norms of the module's transformer, before clipping: {"transformer_blocks": ..., "output": ...}.

    From the strategy's `named_gradients()` where it has that, because it shards the gradients.
    """
    trained = {name: p for name, p in editing(pl_module).transformer.named_parameters() if p.requires_grad}
    parts = dict.fromkeys(map(part_of, trained))
    named_gradients = getattr(trainer.strategy, "named_gradients", None)
    own = [(name, p.grad) for name, p in trained.items() if p.grad is not None]
    gradients = own if named_gradients is None else named_gradients()
    return gradient_norms(gradients, parts, pl_module.device, sharded=named_gradients is not None)
