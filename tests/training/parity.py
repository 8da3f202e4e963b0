"""Twenty steps of training in one process or in several, for test_parity.py: what each strategy is to agree on.

Run by torchrun, it trains the cases for its number of processes and leaves what it saw in a file.
"""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.distributed as dist

from icve.data.paired_edits import PairedEditsDataModule
from icve.models.lora import LoRA
from icve.training.callbacks.float8 import Float8Matmuls
from icve.training.callbacks.nonfinite import SkipNonFinite
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.distributed.activation_checkpointing import Checkpointing
from icve.training.distributed.strategies import DDPUlyssesStrategy, DeepSpeedUlyssesStrategy, FSDPUlyssesStrategy
from icve.training.module import InContextEditingModule
from icve.training.objectives.in_context import InContext
from icve.training.start import Start
from tests.training.conftest import tiny_transformer, weightless

STEPS = 20
BUCKET = [48, 48, 9]  # 27 tokens each of source and target: nothing divides them
GLOO = {"sequence_parallel_size": 2, "process_group_backend": "gloo"}
WAN = {"family": "wan"}

# Processes → name → (strategy, precision, options); the options are also those of the run in one process.
CASES = {
    2: {
        "zero1 full checkpointing": (partial(DeepSpeedUlyssesStrategy, stage=1), "32-true", {"mode": "full"}),
        "zero2 accumulation selective": (
            partial(DeepSpeedUlyssesStrategy, stage=2),
            "32-true",
            {"mode": "selective", "accumulate": 2},
        ),
        "zero3 lora": (partial(DeepSpeedUlyssesStrategy, stage=3), "32-true", {"lora": True}),
        "zero1 bf16 accumulation": (partial(DeepSpeedUlyssesStrategy, stage=1), "bf16-mixed", {"accumulate": 2}),
        "zero2 bf16 accumulation": (partial(DeepSpeedUlyssesStrategy, stage=2), "bf16-mixed", {"accumulate": 2}),
        "zero3 bf16 accumulation": (partial(DeepSpeedUlyssesStrategy, stage=3), "bf16-mixed", {"accumulate": 2}),
        "fsdp fused": (FSDPUlyssesStrategy, "64-true", {"fused": True}),
        "fsdp lora full checkpointing": (FSDPUlyssesStrategy, "64-true", {"lora": True, "mode": "full"}),
        "fsdp bf16": (FSDPUlyssesStrategy, "bf16-mixed", {}),
        "wan zero2 accumulation selective": (
            partial(DeepSpeedUlyssesStrategy, stage=2),
            "32-true",
            WAN | {"mode": "selective", "accumulate": 2},
        ),
        "wan zero3 bf16": (partial(DeepSpeedUlyssesStrategy, stage=3), "bf16-mixed", WAN),
        "wan fsdp lora full checkpointing": (FSDPUlyssesStrategy, "64-true", WAN | {"lora": True, "mode": "full"}),
    },
    # Compiled; the run in one process is not.
    "2 compiled": {
        "fsdp": (FSDPUlyssesStrategy, "64-true", {"mode": "selective", "compiled": True}),
        "zero2": (partial(DeepSpeedUlyssesStrategy, stage=2), "32-true", {"mode": "full", "compiled": True}),
        "zero3": (partial(DeepSpeedUlyssesStrategy, stage=3), "32-true", {"compiled": True}),
        "wan fsdp": (FSDPUlyssesStrategy, "64-true", WAN | {"mode": "selective", "compiled": True}),
    },
    4: {
        "ddp selective": (DDPUlyssesStrategy, "32-true", {"mode": "selective"}),
        "zero1": (partial(DeepSpeedUlyssesStrategy, stage=1), "32-true", {}),
        "zero2 full checkpointing": (partial(DeepSpeedUlyssesStrategy, stage=2), "32-true", {"mode": "full"}),
        "zero3 accumulation": (partial(DeepSpeedUlyssesStrategy, stage=3), "32-true", {"accumulate": 2}),
        "hsdp accumulation": (partial(FSDPUlyssesStrategy, replicas=2), "64-true", {"accumulate": 2}),
        "wan ddp": (partial(DDPUlyssesStrategy, sequence_parallel_size=1), "32-true", WAN),
        "wan zero3": (partial(DeepSpeedUlyssesStrategy, stage=3, sequence_parallel_size=4), "32-true", WAN),
        "wan fsdp accumulation": (FSDPUlyssesStrategy, "64-true", WAN | {"accumulate": 2}),
    },
}
if find_spec("torchao"):
    CASES[2] |= {
        "zero3 float8": (partial(DeepSpeedUlyssesStrategy, stage=3), "32-true", {"float8": True, "mode": "full"}),
        "fsdp float8": (FSDPUlyssesStrategy, "bf16-mixed", {"float8": True}),
    }


class Seen(L.Callback):
    """Losses of this process's samples by batch and id, and its part of the first step's gradients."""

    def __init__(self):
        self.losses, self.norms, self.gradients = {}, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs["samples"]:
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches / batch["weight"]
            self.losses[batch_idx, tuple(batch["id"])] = loss

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            strategy = trainer.strategy
            starts = {part.name: part.start for part in strategy.owned()} if hasattr(strategy, "owned") else {}
            named = getattr(strategy, "named_gradients", lambda: whole_gradients(pl_module))()
            self.gradients = [(name, starts.get(name, 0), grad.flatten().cpu().clone()) for name, grad in named]


def whole_gradients(module):
    return ((name, p.grad) for name, p in module.transformer.named_parameters() if p.requires_grad)


def train(
    manifest,
    folder,
    strategy,
    precision,
    devices=1,
    mode="none",
    accumulate=1,
    lora=False,
    compiled=False,
    fused=None,
    float8=False,
    family="hunyuan_video",
):
    """Train; returns losses {(batch, ids): loss} and gradients [(name, start, numbers)] of this process."""
    L.seed_everything(0, verbose=False)
    transformer = tiny_transformer(family=family)
    module = InContextEditingModule(
        transformer,
        weightless(),
        InContext(instruction_dropout=0.3),
        stage="parity",
        optimizer=partial(torch.optim.AdamW, lr=1e-2, fused=fused),
        start=Start(lora=LoRA(rank=2, weights_dtype="float32") if lora else None),
        checkpointing=Checkpointing(mode),
        compile=compiled,
    )
    if lora:
        torch.manual_seed(0)
        module.add_adapter(manifest)
    data = PairedEditsDataModule(str(manifest), [BUCKET], batch_size=4 // accumulate)
    seen = Seen()
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        precision=precision,
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate,
        default_root_dir=folder,
        callbacks=[SkipNonFinite(), seen, *([Float8Matmuls(emulate=True)] if float8 else [])],
        plugins=[CheckpointFolders()],
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data)
    return seen.losses, seen.gradients


def main(manifest, folder, compiled=""):
    dist.init_process_group("gloo")
    world, results = dist.get_world_size(), {}
    # Traced as for kernels, which would take minutes to make.
    torch.compile = partial(torch.compile, backend="aot_eager", fullgraph=True)
    for name, (strategy, precision, options) in CASES[f"{world} {compiled}" if compiled else world].items():
        strategy = strategy(**GLOO | getattr(strategy, "keywords", {}))
        seen = train(manifest, folder, strategy, precision, world, **options)
        everybody = [None] * world
        dist.all_gather_object(everybody, seen)
        results[name] = everybody
    if dist.get_rank() == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
