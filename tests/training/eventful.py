"""A run in which much happens, in one process or in several, for test_eventful.py: what all strategies agree on.

Steps of three micro-batches: one has no samples, and some have a sample, on one process, that is not finite. After
every third step a validation with averaged weights, of which one process has more samples than the other and once only
the other has any, and guided previews. In the end the run diverges.

Run by torchrun, it goes through all strategies and leaves what it saw in a file.
"""

import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger

from icve.data.validation_batches import validation_batches
from icve.models.weightless.dct import DCTCodec
from icve.training.callbacks.ema import EMA
from icve.training.callbacks.nonfinite import SkipNonFinite, TrainingDiverged
from icve.training.callbacks.previews import EditPreviews
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.distributed.sharded import local
from icve.training.distributed.strategies import DDPUlyssesStrategy, DeepSpeedUlyssesStrategy, FSDPUlyssesStrategy
from icve.training.module import InContextEditingModule, Sampling
from icve.training.objectives.in_context import InContext
from icve.training.optimization.schedule import Schedule
from tests.training.conftest import SIZE, TinyPairs, as_loader, cut, tiny_transformer, weightless

BATCH, MICRO_BATCHES, HELD_OUT, PATIENCE = 4, 3, 4, 2
EMPTY = {4: 0}  # step → its micro-batch without samples
NOT_A_NUMBER = {1: 0, 3: 1, 5: 2}  # its micro-batch with the sample: the first, one in the middle, the last
INFINITE_LOSS = {7: 0, 8: 2}  # likewise; the gradient is finite


class FetchingStrategy(DeepSpeedUlyssesStrategy):
    """ZeRO-3 as with a large model: only biases stay, and weights are fetched a few at a time."""

    def __init__(self, stage: int = 3, **kwargs):
        super().__init__(stage=stage, **kwargs)
        few = {"stage3_param_persistence_threshold": 50, "stage3_prefetch_bucket_size": 600}
        self.config["zero_optimization"] |= few


def strategies():
    """Names and strategies, for two processes."""
    for size in (2, 1):
        options = {"sequence_parallel_size": size, "process_group_backend": "gloo"}
        layout = "sharing tokens" if size == 2 else "data parallel"
        for stage in (1, 2, 3):
            kind = FetchingStrategy if stage == 3 else DeepSpeedUlyssesStrategy
            yield f"zero{stage} {layout}", kind(stage=stage, **options)
        yield f"fsdp {layout}", FSDPUlyssesStrategy(**options)
        yield f"hsdp {layout}", FSDPUlyssesStrategy(replicas=2, **options)
    yield f"ddp {layout}", DDPUlyssesStrategy(**options)
    yield f"fsdp, gathered weights kept, {layout}", FSDPUlyssesStrategy(reshard_after_forward=False, **options)


class Shares(TinyPairs):
    """Of every batch the samples of a process."""

    def share(self):
        return self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}

    def batch(self, number):
        batch = super().batch(number)
        step, micro_batch = divmod(number, MICRO_BATCHES)
        if NOT_A_NUMBER.get(step) == micro_batch:
            for role in ("source", "target"):
                batch[role] = DCTCodec().encode(batch[role].float() / 127.5 - 1.0)
            batch["source"][-1] = float("nan")
        groups, rank = self.share().values()
        size = 0 if EMPTY.get(step) == micro_batch else BATCH // groups
        return cut(batch, *range(rank * size, (rank + 1) * size))

    def val_dataloader(self):
        samples = super().batch(-1)
        batches = validation_batches([range(HELD_OUT)], 3, self.share()["rank"], self.share()["num_replicas"])
        return as_loader(
            [
                {**cut(samples, *(draw.row for draw in draws)), "counted": [draw.counted for draw in draws]}
                for draws in batches
            ]
        )


class Module(InContextEditingModule):
    def training_step(self, batch, batch_idx):
        result = super().training_step(batch, batch_idx)
        step, micro_batch = divmod(batch_idx, MICRO_BATCHES)
        last_sample = f"{batch_idx}-{BATCH - 1}"
        if INFINITE_LOSS.get(step) == micro_batch and last_sample in batch["id"]:
            result["loss"] = result["loss"] + float("inf")
        return result


class Seen(L.Callback):
    """Losses of the micro-batches, figures of the validations, and of each step: was it skipped, is all as before?"""

    def __init__(self, ema):
        self.ema = ema
        self.losses, self.figures, self.steps = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.before = self.state(trainer, pl_module)
        self.skipped = False

    def on_step_skipped(self, trainer, pl_module):
        self.skipped = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if (batch_idx + 1) % MICRO_BATCHES == 0:
            now = self.state(trainer, pl_module)
            same = [self.same(old, new) for old, new in zip(self.before, now, strict=True)]
            self.steps.append((self.skipped, same))
            self.skipped = False
            self.before = now

    def on_validation_end(self, trainer, pl_module):
        assert self.same(self.before[0], self.weights(trainer, pl_module))
        self.figures.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})

    def state(self, trainer, module):
        """What a skipped step leaves alone: weights, average, the optimizer's averages and its count."""
        optimizer = getattr(trainer.strategy, "torch_optimizer", trainer.optimizers[0])
        averages = {(i, k): v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
        return self.weights(trainer, module), *map(copies, (self.ema.shadow, averages))

    def weights(self, trainer, module):
        """In full precision, and those that are computed with."""
        owned = trainer.strategy.owned() if hasattr(trainer.strategy, "owned") else []
        computed_with = {name: getattr(p, "ds_tensor", p) for name, p in module.transformer.named_parameters()}
        return copies({("owned", part.name): part.weights for part in owned} | computed_with)

    @staticmethod
    def same(old, new):
        return old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def copies(tensors):
    return {key: local(tensor).detach().clone() for key, tensor in tensors.items()}


def train(folder, strategy="auto", devices=1, validate=True, average=True):
    """Train until the run diverges; returns what was seen on this process."""
    L.seed_everything(0, verbose=False)
    module = Module(
        tiny_transformer(),
        weightless(),
        InContext(instruction_dropout=0.3),
        stage="eventful",
        optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-3),
        schedule=Schedule(warmup_steps=3),
        sampling=Sampling(2, 4.0, 3.0, 0.5, "blurry", num_frames=9, height=SIZE, width=SIZE),
    )
    guard, ema = SkipNonFinite(PATIENCE), EMA(decay=0.9)
    seen = Seen(ema)
    trainer = L.Trainer(
        max_steps=12,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        gradient_clip_val=1.0,
        accumulate_grad_batches=MICRO_BATCHES,
        default_root_dir=folder,
        callbacks=[guard, *([ema] if average else []), EditPreviews(count=2), seen],
        plugins=[CheckpointFolders()],
        check_val_every_n_epoch=None,
        val_check_interval=3 * MICRO_BATCHES,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(folder, "", ""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    try:
        trainer.fit(module, datamodule=Shares(batch_size=BATCH, frames=9))
        end = None
    except TrainingDiverged as error:
        end = str(error)
    return {"losses": seen.losses, "figures": seen.figures, "steps": seen.steps, "end": end, "updates": ema.updates}


def main(folder):
    dist.init_process_group("gloo")
    results = {}
    for name, strategy in strategies():
        seen = train(folder / name, strategy, dist.get_world_size())
        everybody = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, seen)
        results[name] = everybody
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
