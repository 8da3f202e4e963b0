"""How a block is run whose values are computed again in the backward pass, and what it keeps besides its input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Mode = Literal["none", "selective", "full"]
MODES: tuple[Mode, ...] = get_args(Mode)  # from the most that is kept to the least

# Attention of every backend: its result and the logarithm of its sum. What processes exchange is not among them.
KEPT = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
]


def recomputed(mode: Mode) -> Callable[..., Any]:
    """What runs (block, *inputs) with a mode that is not "none"."""
    if mode == "full":
        return partial(checkpoint, use_reentrant=False)
    return partial(checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, KEPT))


def is_recomputed(block: int, mode: Mode, every: int) -> bool:
    """Whether a block, by its number among all, is run so, where of `every` blocks the first is."""
    return mode != "none" and block % every == 0
