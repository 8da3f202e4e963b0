"""A run says which of torch's attention kernels it trains with."""

from itertools import starmap

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from icve.models.attention_kernels import attention_kernel
from icve.training.lightning_types import editing, parts_of

HALF = {"bf16": torch.bfloat16, "16-m": torch.float16, "16-t": torch.float16, "64-t": torch.float64}


class AttentionKernel(Callback):
    """Says it once, when training starts, for one sample of the largest bucket; on a GPU the slow one is warned of."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, buckets = editing(pl_module), getattr(parts_of(trainer).datamodule, "buckets", None)
        if not buckets:  # a data module of others: the sizes are not known before the samples
            return
        config, device = module.transformer.config, trainer.strategy.root_device
        heads = config.num_attention_heads // getattr(trainer.strategy, "sequence_parallel_size", 1)
        tokens = 2 * max(starmap(module.grid.tokens, buckets))  # of source and target
        dtype = HALF.get(str(trainer.precision)[:4], torch.float32)
        kernel = attention_kernel(tokens, heads, config.attention_head_dim, device, dtype)
        size = f"{tokens} visual tokens, {heads} heads of {config.attention_head_dim}, {str(dtype)[6:]}, {device.type}"
        rank_zero_info(f"Attention is computed by torch's kernel '{kernel}' ({size}).")
        if kernel == "math" and device.type == "cuda":
            rank_zero_warn(
                "The kernel 'math' stores the scores of all pairs of tokens and is many times slower than the others: "
                "set trainer.precision to bf16-mixed, and take away what switches kernels off (torch.backends.cuda)."
            )
