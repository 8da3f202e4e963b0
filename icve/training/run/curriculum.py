"""A stage of a curriculum while it trains: what is measured of it, and when it ends.

A curriculum is a list of stages trained one after the other in one run (`stage_runs` starts them). Each
is a run of its own in RUN/STAGE, warm-started from its predecessor's averaged weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from icve.data.share import batches_done
from icve.training.lightning_types import editing
from icve.training.run.curriculum_record import Record
from icve.training.validation import validate_now, validation_figures


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    Args:
        name: `model.stage`, key of its data module, and folder of its run.
        steps: optimizer steps after which it ends; what a schedule is stretched over.
        patience: end it earlier, after so many validations in a row that were not better than the best before them;
            None trains all steps.
        monitor: the validation figure that is meant, smaller is better.
        min_delta: a figure is better only by more than this.
        settings: what this stage sets otherwise than the configuration, as parts of it:
            {model: {optimizer: {init_args: {lr: 1.0e-6}}}}. Callbacks are told apart by their class_path.
    """

    name: str
    steps: int
    patience: int | None = None
    monitor: str = "val/loss"
    min_delta: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"The name of a stage is also its folder's: letters, digits, . _ and -, not {self.name!r}."
            )
        if self.steps < 1 or self.min_delta < 0 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"Stage '{self.name}' needs steps >= 1, patience >= 1 (or null) and min_delta >= 0.")


class CurriculumCallback(Callback):
    """Ends the stages of a curriculum, and records in RUN/curriculum.jsonl how each fares on held-out data.

    Measured are the losses at fixed noise (`val/loss_sigma_*`) and whatever else is logged in validation (previews),
    at the start and the end of every stage and at every validation between: a collapse shows before it is trained on.
    The best weights of a stage are kept apart by `Checkpoints(monitor=...)`.

    Args:
        stages: in the order they are trained.

    Raises:
        ValueError: stages without or with equal names, or the module's stage is none of them.
    """

    def __init__(self, stages: list[Stage]) -> None:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"A curriculum needs stages with different names, got {names}.")
        self.stages = stages
        self.ended = False  # whether the stage has, on all processes
        self._measured: dict[int, dict[str, float]] = {}  # by step of the stage

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        names, own = [stage.name for stage in self.stages], editing(pl_module).stage
        if own not in names:
            raise ValueError(f"The curriculum has no stage '{own}', only {', '.join(names)}.")
        self.stage = self.stages[names.index(own)]
        self.record = Record(Path(trainer.default_root_dir).parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured: dict[int, dict[str, float]] = {}
        if trainer.is_global_zero:
            earlier = [stage.name for stage in self.stages[: self.stages.index(self.stage)]]
            own = self.record.rewind(earlier, self.stage.name, trainer.global_step)
            measured = {entry["step"]: entry["figures"] for entry in own if entry["figures"]}
        self._measured = trainer.strategy.broadcast(measured)
        if batches_done(trainer):
            return
        validate_now(trainer)
        if not self._measured:
            if self.stage.patience is not None:
                raise ValueError(
                    f"Stage '{self.stage.name}' has patience but no held-out data: set val_manifest of its data."
                )
            self._note(trainer, "start", 0, {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # The first process's, for all to decide alike whoever logs what.
        figures = trainer.strategy.broadcast(validation_figures(trainer))
        step = trainer.global_step
        self._measured[step] = figures
        self._note(trainer, "interval" if step else "start", step, figures)
        monitor, patience = self.stage.monitor, self.stage.patience
        if patience is None:
            return
        if monitor not in figures:
            raise ValueError(
                f"Stage '{self.stage.name}' cannot monitor {monitor!r}: it is not among the figures "
                f"{', '.join(sorted(figures))}."
            )
        course = [self._measured[step][monitor] for step in sorted(self._measured)]
        if stopped_improving(course, patience, self.stage.min_delta):
            rank_zero_info(f"Stage '{self.stage.name}' ends at step {step}: {monitor} has stopped improving.")
            self.ended = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        self.ended = self.ended or step >= trainer.max_steps
        if not self.ended:  # stopped by something else, to be resumed
            return
        for callback in trainer.checkpoint_callbacks:  # called after this one: no end on record without its weights
            callback.on_train_end(trainer, pl_module)
        if step not in self._measured:
            validate_now(trainer)
        self.conclude(trainer, step, self._measured.get(step, {}))
        trainer.strategy.barrier("end of stage")

    def conclude(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        """Record that the stage ended at that step of it, with these figures on held-out data."""
        self.ended = True
        self._note(trainer, "end", step, figures)

    def _note(self, trainer: Trainer, event: str, step: int, figures: dict[str, float]) -> None:
        if trainer.is_global_zero:
            run_step = steps_before(self.stages, self.stage.name, self.record) + step
            self.record.add(event=event, stage=self.stage.name, step=step, run_step=run_step, figures=figures)


def steps_before(stages: Sequence[Stage], name: str, record: Record) -> int:
    """Steps that the stages before that of this name took."""
    ended = record.ended()
    return sum(ended.get(stage.name, 0) for stage in takewhile(lambda stage: stage.name != name, stages))


def first_step(callbacks: Sequence[Callback], stage: str, folder: str | Path) -> int:
    """Steps of a run before its stage of that name: 0 without a curriculum among the callbacks.

    Args:
        folder: of the stage's run.
    """
    stages = next((callback.stages for callback in callbacks if isinstance(callback, CurriculumCallback)), [])
    return steps_before(stages, stage, Record(Path(folder).parent))


def stopped_improving(course: Sequence[float], patience: int, min_delta: float = 0.0) -> bool:
    """Whether the last `patience` figures were no better (smaller by more than `min_delta`) than the best before."""
    best, since = math.inf, 0
    for figure in course:
        best, since = (figure, 0) if figure < best - min_delta else (best, since + 1)
    return since >= patience


class RunLogger(TensorBoardLogger):
    """TensorBoard with the steps of the whole run: the curves of a curriculum's stages continue each other.

    Args:
        folder: of the stage's run.
        first_step: steps of the run before the stage.
    """

    def __init__(self, folder: str, first_step: int = 0) -> None:
        super().__init__(save_dir=folder, name="", version="tensorboard")
        self.first_step = first_step

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else self.first_step + step)
