"""Matrix products of the blocks in 8-bit floating point, on GPUs that multiply such numbers.

A feature beside the step: the linear layers are exchanged before the strategy shares the model out, so that every
strategy, activation checkpointing and compilation work as without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from icve.training.lightning_types import editing

if TYPE_CHECKING:
    from icve.models.denoiser import InContextTransformer

LEAST_CAPABILITY = (8, 9)  # of NVIDIA's GPUs: Ada, then Hopper
UNIT = 16  # float8 kernels take matrices whose sides are multiples of it


class Float8Matmuls(Callback):
    """In training, the blocks' linear layers multiply in float8, forward and backward (torchao's dynamic scaling).

    Both matrices of a product are divided by their largest number and rounded: to e4m3 (weights, activations) or e5m2
    (gradients); sums are of higher precision. Weights, their gradients and the optimizer's state keep their own
    precision, so that checkpoints do not depend on it and a run may take it up or give it up. Modulations, which have a
    row per noise level, adapters, and layers whose widths are no multiples of 16, are computed as before. It is best
    with compiled blocks, which round while they read. ZeRO's stage 3 should checkpoint them: gathered weights of those
    that are not wait for the backward pass.

    Args:
        emulate: round the same, and multiply in float32: on every device, slowly, to see what the rounding does.

    Raises:
        ImportError: torchao is not installed (raised when training is set up).
        ValueError: the device does not multiply in float8, or no layer is fit for it (raised when training is set up).
    """

    def __init__(self, emulate: bool = False) -> None:
        self.emulate = emulate

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            layers = use_float8(editing(pl_module).transformer, trainer.strategy.root_device, self.emulate)
            rank_zero_info(f"{len(layers)} linear layers multiply in float8.")


def use_float8(transformer: InContextTransformer, device: torch.device, emulate: bool = False) -> list[str]:
    """Exchange the linear layers of a transformer's repeated blocks, in place; parameters stay the same objects.

    Args:
        transformer: whose layers are exchanged, but for those that diffusers would not store in 8 bits either.
        device: where it will compute.
        emulate: as for :class:`Float8Matmuls`.

    Returns:
        Names of the layers that multiply in float8.

    Raises:
        ImportError, ValueError: as :class:`Float8Matmuls`.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        from torchao.float8.float8_linear import Float8Linear
    except ImportError as error:
        raise ImportError("Float8Matmuls needs torchao: pip install 'icve[fp8]'.") from error
    if not emulate and not multiplies_float8(device):
        raise ValueError(
            f"Float8Matmuls needs a GPU that multiplies in float8 (NVIDIA's Ada, Hopper or newer), and {device} does "
            "not: take it out of trainer.callbacks."
        )
    # Tokens are the inner side of a weight gradient's product, and any number of them is allowed.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    kept = ("lora_", *(transformer._skip_layerwise_casting_patterns or ()))

    def wanted(layer: nn.Linear, name: str) -> bool:
        return not (layer.in_features % UNIT or layer.out_features % UNIT or any(part in name for part in kept))

    blocks = {n: m for n, m in transformer.named_modules() if type(m).__name__ in transformer._repeated_blocks}
    for block in blocks.values():
        convert_to_float8_training(block, config=config, module_filter_fn=wanted)
    named = ((f"{name}.{n}", layer) for name, block in blocks.items() for n, layer in block.named_modules())
    exchanged = [name for name, layer in named if isinstance(layer, Float8Linear)]
    if not exchanged:
        raise ValueError(
            f"Float8Matmuls finds no layer whose widths are multiples of {UNIT}: take it out of trainer.callbacks."
        )
    return exchanged


def multiplies_float8(device: torch.device) -> bool:
    """Whether a device has matrix products of float8 numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
