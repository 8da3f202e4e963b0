"""What a run reports: learning rate, throughput, a record of every step, and a progress bar in steps."""

import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.optim import Optimizer

from icve.data.share import batches_done, data_share
from icve.models.families import transformer_class
from icve.runtime.atomic import write_text
from icve.runtime.together import gather
from icve.training.callbacks.flops import TrainingFlops
from icve.training.callbacks.gradient_norms import transformer_gradient_norms
from icve.training.callbacks.loop_times import LoopTimes
from icve.training.callbacks.nonfinite import TrainingDiverged
from icve.training.lightning_types import editing, parts_of, reports
from icve.training.optimization.parameter_groups import group_label

if sys.platform != "win32":
    import resource


@dataclass
class MicroBatch:
    """A micro-batch of this process that is not on record yet; `loss` () is on the device."""

    step: int
    loss: Tensor
    weight: float
    ids: list[str]
    bucket: str


class TrainingMonitor(Callback):
    """Logs learning rates, samples/s and tokens/s (source, target and text tokens) of all processes together, the mean
    loss of each bucket since the last report, and the gradient norm of each part of the transformer before clipping.

    Of the first process: the share of the time in which it waited for the next batch (near 0 when the loader's workers
    keep up; validation and checkpoints do not count as time), on CUDA the most memory (GiB) it has allocated, and the
    most main memory (GiB) it has been resident in, without its loader's workers.

    Also writes RUN/steps.jsonl, one line per micro-batch: {step, loss, ids}, of all processes together, whenever
    figures are logged and before a checkpoint: in between nothing waits for the device or for other processes. A
    resumed run drops the lines of steps it repeats, so that the file tells one uninterrupted story.

    Args:
        peak_tflops: TFLOP/s one device could reach in the run's precision, 989 for bfloat16 on an H100. If given, the
            TFLOP/s of one device are logged, and their share of this peak (MFU): those of the transformer's forward
            and backward pass, without what checkpointed blocks compute again. Not for adapters, whose frozen weights
            need fewer.

    Raises:
        ValueError: the peak is not positive.
    """

    FILE = "steps.jsonl"

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"peak_tflops must be positive, got {peak_tflops}.")
        self.peak_tflops = peak_tflops
        self._flops: TrainingFlops | None = None
        self._seconds: dict[str, float]  # of the training loop, from its setup on
        self._step = -1
        self._optimizer_figures: dict[str, Any] = {}
        self._file: Any = None
        self._pending: list[MicroBatch] = []
        self._losses: dict[str, list[float]] = defaultdict(list)  # by bucket, since the last report

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._seconds = LoopTimes(parts_of(trainer).profiler).seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = editing(pl_module)
        if self.peak_tflops is not None and module.lora is None:
            kind: Any = transformer_class(module.transformer)
            self._flops = TrainingFlops(kind, module.transformer.config, module.grid.patch)
        self._reset()
        self._step, self._pending = trainer.global_step, []
        self._losses.clear()
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / self.FILE
            keep_steps_before(path, trainer.global_step)
            self._file = path.open("a", encoding="utf-8")

    def _reset(self) -> None:
        """Start to measure anew."""
        self._since, self._samples, self._tokens, self._computed = time.perf_counter(), 0, 0, 0.0
        self._seconds.clear()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not reports(trainer, trainer.global_step + 1):
            return
        # Noted here because the schedule has moved on, and the gradients are gone, when the step is over.
        groups = enumerate(optimizer.param_groups)
        figures = {f"train/learning_rate_{group_label(group, i)}": group["lr"] for i, group in groups}
        norms = transformer_gradient_norms(trainer, pl_module)
        values = torch.stack(list(norms.values())).tolist()  # waits for the device once
        figures |= {f"train/gradient_norm_{part}": v for part, v in zip(norms, values, strict=True) if math.isfinite(v)}
        self._optimizer_figures = figures

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if not outputs["samples"]:
            return  # the step needs fewer micro-batches than others; its last one is never empty
        self._samples += outputs["samples"]
        self._tokens += outputs["tokens"]
        if self._flops is not None:
            attended = outputs["tokens"] / outputs["samples"]
            self._computed += outputs["samples"] * self._flops(outputs["latents"], attended)
        _, groups = data_share(trainer)
        height, width, frames = editing(pl_module).grid.pixels(*outputs["latents"])
        bucket = f"{height}x{width}x{frames}"
        weight = batch.get("weight", 1.0)
        self._pending.append(MicroBatch(self._step, outputs["loss"], weight, list(batch["id"]), bucket))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if reports(trainer, trainer.global_step):
            self._write_down(trainer)
            seconds = max(time.perf_counter() - self._since - self._seconds[LoopTimes.CHECKPOINT], 1e-9)
            figures = {
                **self._optimizer_figures,
                "train/samples_per_second": self._samples * groups / seconds,
                "train/tokens_per_second": self._tokens * groups / seconds,
                "train/data_wait_share": self._seconds[LoopTimes.NEXT_BATCH] / seconds,
                **{f"train/loss_{bucket}": fmean(losses) for bucket, losses in self._losses.items()},
            }
            if self._flops is not None and self.peak_tflops is not None:
                tflops = self._computed * groups / trainer.world_size / seconds / 1e12
                figures |= {"train/tflops_per_device": tflops, "train/mfu": tflops / self.peak_tflops}
            if pl_module.device.type == "cuda":
                figures["train/peak_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            if sys.platform != "win32":
                figures["train/peak_resident_gib"] = peak_resident_bytes() / 2**30
            # Of the host: a number would be brought to the device, and back.
            pl_module.log_dict({name: torch.tensor(float(value)) for name, value in figures.items()})
            self._losses.clear()
            self._reset()

    def _write_down(self, trainer: Trainer) -> None:
        """Exchange what the processes know of the micro-batches since the last time, and write it; called by all."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        losses = torch.stack([one.loss for one in pending]).tolist()  # waits for the device once
        # Lightning has divided them, and the module weighed them.
        scale = trainer.accumulate_grad_batches
        own = [(loss * scale / one.weight, one.ids) for loss, one in zip(losses, pending, strict=True)]
        _, groups = data_share(trainer)
        everybody = gather(own)[:: trainer.world_size // groups]
        for one, shares in zip(pending, zip(*everybody, strict=True), strict=True):
            loss = fmean(loss for loss, _ in shares)  # each is of equally many samples
            self._losses[one.bucket].append(loss)
            if self._file is not None:
                line = {"step": one.step, "loss": loss, "ids": [sample for _, ids in shares for sample in ids]}
                self._file.write(json.dumps(line) + "\n")
        if self._file is not None:
            self._file.flush()  # out of this process, so that a kill loses nothing

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write_down(trainer)  # what is resumed goes on after these lines

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_down(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, TrainingDiverged):  # all processes meet it at the same step
            self._write_down(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()  # validation is not training time

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def peak_resident_bytes() -> int:
    """Most main memory that this process has ever been resident in."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def keep_steps_before(path: Path, step: int) -> None:
    """Drop the lines of `step` and later, and a line cut off by a kill, from a steps file; made if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_text(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step))


class StepProgressBar(TQDMProgressBar):
    """One bar over the whole stage, in batches: the stream of batches is endless, so epochs mean nothing."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self._show_stage(trainer)  # a resumed run is in the middle of its endless epoch: the next hook is not called

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._show_stage(trainer)

    def _show_stage(self, trainer: Trainer) -> None:
        bar = self.train_progress_bar
        bar.reset(self.total_train_batches)
        bar.initial = batches_done(trainer)  # not counted into the speed
        bar.set_description(trainer.lightning_module.stage)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
