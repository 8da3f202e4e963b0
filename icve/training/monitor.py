"""What a run reports: learning rate, throughput, a record of every step, and a progress bar in steps."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.optim import Optimizer


class TrainingMonitor(Callback):
    """Logs learning rates, samples/s and tokens/s (source, target and text tokens), of all processes together.

    Also writes RUN/steps.jsonl, one line per micro-batch: {step, loss, ids}. A resumed run drops the lines of steps it
    repeats, so that the file tells one uninterrupted story.
    """

    FILE = "steps.jsonl"

    def __init__(self) -> None:
        self._samples = self._tokens = 0
        self._since = 0.0
        self._step = -1
        self._learning_rates: dict[str, float] = {}
        self._file: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._samples, self._tokens = time.perf_counter(), 0, 0
        self._step = trainer.global_step
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / self.FILE
            keep_steps_before(path, trainer.global_step)
            self._file = path.open("a", encoding="utf-8")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Noted here because the schedule has moved on when the step is over.
        groups = enumerate(optimizer.param_groups)
        self._learning_rates = {f"train/learning_rate_{group.get('kind', i)}": group["lr"] for i, group in groups}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._samples += outputs["samples"]
        self._tokens += outputs["tokens"]
        if self._file is not None:
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
            line = {"step": self._step, "loss": loss, "ids": list(batch["id"])}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # out of this process, so that a kill loses nothing
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.global_step % trainer.log_every_n_steps == 0:
            seconds = max(time.perf_counter() - self._since, 1e-9)
            # Processes that share a sample's tokens each count all of them.
            groups = (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]
            figures = {
                **self._learning_rates,
                "train/samples_per_second": self._samples * groups / seconds,
                "train/tokens_per_second": self._tokens * groups / seconds,
            }
            pl_module.log_dict(figures)
            self._since, self._samples, self._tokens = time.perf_counter(), 0, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since, self._samples, self._tokens = time.perf_counter(), 0, 0  # validation is not training time

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def keep_steps_before(path: Path, step: int) -> None:
    """Drop the lines of `step` and later, and a line cut off by a kill, from a steps file, if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] < step:
            kept.append(line)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class StepProgressBar(TQDMProgressBar):
    """One bar over the whole stage, in batches: the stream of batches is endless, so epochs mean nothing.

    Args:
        refresh_rate: batches between updates.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

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
        bar.initial = trainer.lightning_module.batches_done  # not counted into the speed
        bar.set_description(trainer.lightning_module.stage)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
