"""Activation checkpointing: what the transformer's blocks keep for the backward pass, and what they compute again.

A checkpointed block is run a second time when its gradient is due, and gives the same losses and gradients, bit for
bit where the same kernels run (Chen et al., arXiv 1604.06174). In units of tokens times width a block of the 13B model
keeps about 20 when everything is kept, its input (1) when it is checkpointed, and with `selective` also what is dear to
compute again: attention's result (1), whose work grows with the square of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

if TYPE_CHECKING:
    from icve.models.denoiser import InContextTransformer

# Attention of every backend, and the exchanges of sequence parallelism.
KEPT = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops._c10d_functional.all_to_all_single.default,
]


@dataclass(frozen=True)
class Checkpointing:
    """Which blocks are checkpointed, and how.

    Args:
        mode: "none" keeps all activations. "full" keeps a block's input, for the least memory and about a third more
            computing. "selective" also keeps the results of attention and of the exchanges of sequence parallelism,
            so that neither is done twice.
        every: of this many blocks, the first is checkpointed and the others keep all; 1 checkpoints every block.

    Raises:
        ValueError: every is not positive, or the mode is unknown.
    """

    mode: Literal["none", "full", "selective"] = "none"
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("none", "full", "selective"):
            raise ValueError(f"checkpointing.mode must be none, full or selective, got {self.mode!r}.")
        if self.every < 1:
            raise ValueError(f"checkpointing.every must be at least 1, got {self.every}.")

    def apply(self, transformer: InContextTransformer) -> None:
        """Let a transformer train this way; it replaces what was applied before."""
        if self.mode == "none":
            transformer.gradient_checkpointing = False
            return
        blocks = [m for m in transformer.modules() if type(m).__name__ in transformer._repeated_blocks]
        chosen = set(blocks[:: self.every])
        selective = partial(create_selective_checkpoint_contexts, KEPT)
        contexts = selective if self.mode == "selective" else noop_context_fn

        def run(block: Callable[..., Any], *inputs: Any) -> Any:
            if block not in chosen:
                return block(*inputs)
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

        transformer.enable_gradient_checkpointing(run)
