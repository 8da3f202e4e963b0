"""How the transformer's blocks run in training: what they keep for the backward pass, and whether they are compiled.

A checkpointed block is run a second time when its gradient is due, and gives the same losses and gradients, bit for
bit where the same kernels run (Chen et al., arXiv 1604.06174). In units of tokens times width a block of the 13B model
keeps about 20 when everything is kept, its input (1) when it is checkpointed, and with `selective` also what is dear to
compute again: attention's result (1), whose work grows with the square of the tokens, and the logarithm of its sum.
What processes exchange is not kept: those that share tokens keep as little each of their part, and exchange again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from icve.models.recompute import MODES, Mode, is_recomputed, recomputed

if TYPE_CHECKING:
    from icve.models.denoiser import InContextTransformer

# Graphs of both kinds of block: with and without gradients, with and without padded texts, until sizes are symbols.
GRAPHS = 64
COMPILED = "_icve_compiled"  # mark of the function in place of a block's forward


@dataclass(frozen=True)
class Checkpointing:
    """Which blocks are checkpointed, and how.

    Args:
        mode: "none" keeps all activations. "full" keeps a block's input, for the least memory and about a third more
            computing. "selective" also keeps the results of attention, so that it is not done twice.
        every: of this many blocks, the first is checkpointed and the others keep all; 1 checkpoints every block.

    Raises:
        ValueError: every is not positive, or the mode is unknown.
    """

    mode: Mode = "none"
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"checkpointing.mode must be none, full or selective, got {self.mode!r}.")
        if self.every < 1:
            raise ValueError(f"checkpointing.every must be at least 1, got {self.every}.")

    def blocks(self, blocks: int) -> int:
        """How many of so many blocks are checkpointed."""
        return sum(is_recomputed(i, self.mode, self.every) for i in range(blocks))

    def apply(self, transformer: InContextTransformer, compile: bool = False, **options: Any) -> None:
        """Let a transformer train this way; it replaces what was applied before.

        Args:
            transformer: its modules, and so the names of its weights, stay as they are.
            compile: let torch.compile make kernels of all its blocks, checkpointed or not.
            **options: of torch.compile.
        """
        kinds = getattr(transformer, "_repeated_blocks", None) or ()
        blocks = [module for module in transformer.modules() if type(module).__name__ in kinds]
        chosen = {block for i, block in enumerate(blocks) if is_recomputed(i, self.mode, self.every)}
        again = recomputed(self.mode)
        transformer.gradient_checkpointing = False
        for block in blocks:
            vars(block).pop("forward", None)
        if compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
            # It would cut a block's graph where DDP's buckets of gradients end, which it cannot where a part is
            # checkpointed. Blocks are graphs of their own: their gradients are sent as each is done.
            torch._dynamo.config.optimize_ddp = False
            for block in blocks:
                # The checkpoint is inside, where the compiler decides with it. What wraps a module's call (sharded
                # weights that are fetched, offloading, step caches) stays outside.
                block.forward = _compiled(block.forward, again if block in chosen else None, options)
        elif chosen:

            def run(block: Callable[..., Any], *inputs: Any) -> Any:
                return again(block, *inputs) if block in chosen else block(*inputs)

            transformer.enable_gradient_checkpointing(run)


def compiled_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks that `Checkpointing` let torch.compile make."""
    return [module for module in transformer.modules() if hasattr(vars(module).get("forward"), COMPILED)]


def _compiled(
    forward: Callable[..., Any], again: Callable[..., Any] | None, options: dict[str, Any]
) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        results = forward(*inputs) if again is None or not torch.is_grad_enabled() else again(forward, *inputs)
        # Views of one tensor would meet the next block with strides that the first one's inputs do not have, and
        # strides are part of a graph.
        return tree_map(Tensor.contiguous, results)

    compiled = torch.compile(run, **options)
    setattr(compiled, COMPILED, True)
    return compiled
