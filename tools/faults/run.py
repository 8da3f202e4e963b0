"""A training run that meets faults, and is started again until it has ended."""

import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icve.cli.main import main
from tools.faults.job import Job
from tools.faults.runs import steps, strategy

CHECKPOINT_EVERY = 4  # steps
TO_END = 60.0  # seconds that a job may live on after a fault
TO_FAULT = 240.0  # seconds until it gets to the fault's moment

CONFIG = """
seed_everything: 0
trainer:
  max_steps: {steps}
  accelerator: cpu
  precision: 32
  gradient_clip_val: 1.0
  enable_progress_bar: false
  log_every_n_steps: 10
  check_val_every_n_epoch: null
  callbacks:
    - class_path: icve.training.callbacks.ema.EMA
    - class_path: icve.training.callbacks.checkpoints.Checkpoints
      init_args: {{every_n_steps: {every}, keep_last: 3, asynchronous: {asynchronous}}}
    - class_path: icve.training.callbacks.nonfinite.SkipNonFinite
    - class_path: icve.training.callbacks.monitor.TrainingMonitor
model:
  stage: faults
  transformer:
    class_path: icve.models.hunyuan_video.transformer.HunyuanVideoInContextTransformer3DModel
    init_args:
      num_attention_heads: 2
      attention_head_dim: 16
      num_layers: 1
      num_single_layers: 1
      num_refiner_layers: 1
      rope_axes_dim: [4, 6, 6]
      text_embed_dim: 12
      pooled_projection_dim: 10
      guidance_embeds: false
  frozen:
    codec:
      class_path: icve.models.weightless.dct.DCTCodec
    text_encoder:
      class_path: icve.models.weightless.hashed.HashedTextEncoder
      init_args: {{text_dim: 12, pooled_dim: 10}}
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {{lr: 0.001}}
  objective:
    class_path: icve.training.objectives.in_context.InContext
    init_args: {{instruction_dropout: 0.3}}
  sampling: {{steps: 2, guidance_scale: 1.0, shift: 1.0, num_frames: 5, height: 32, width: 32}}
data:
  class_path: icve.data.paired_edits.PairedEditsDataModule
  init_args:
    manifest: {manifest}
    buckets: [[32, 32, 5]]
    batch_size: 2
"""


@dataclass(frozen=True)
class Case:
    """A way to train.

    Args:
        options: of `icve fit`.
        asynchronous: whether checkpoints are written while training goes on, and every second one is exported.
    """

    options: tuple[str, ...]
    asynchronous: bool = False


_WORKERS = "--data.init_args.num_workers=2"
_ZERO = "DeepSpeedUlyssesStrategy"
CASES = {
    "one": Case(("--trainer.devices=1", _WORKERS)),
    "ddp": Case((*strategy("DDPUlyssesStrategy", 2, 1), _WORKERS)),
    "ddp-async": Case((*strategy("DDPUlyssesStrategy", 2, 2), _WORKERS), asynchronous=True),
    "zero2": Case((*strategy(_ZERO, 2, 2, stage=2), _WORKERS)),
    "zero2-async": Case((*strategy(_ZERO, 2, 2, stage=2), _WORKERS), asynchronous=True),
    "zero3": Case((*strategy(_ZERO, 2, 2, stage=3),)),
    "fsdp": Case((*strategy("FSDPUlyssesStrategy", 2, 2), _WORKERS)),
}


def write_pairs(folder: Path) -> Path:
    """Make the videos that runs are trained with; returns their manifest."""
    options = ["--seed=0", "--count=7", "--size", "32x32", "--frames=5", f"--output={folder}"]
    if main(["synthesize", "pairs", *options]) != 0:
        raise RuntimeError("The videos could not be made.")
    return folder / "manifest.parquet"


class Ended(Exception):
    """The job was over before the fault's moment."""


@dataclass(frozen=True)
class Fault:
    """What a start meets.

    Args:
        name: as in the figures.
        strike: waits for the moment and does it.
        options: of the start.
        before: done to the run before the start; where it says that it could not, there is none.
    """

    name: str
    strike: Callable[["Run", Job], None]
    options: tuple[str, ...] = ()
    before: Callable[["Run"], bool] = lambda run: True


@dataclass
class Figures:
    """What was seen of runs: faults, the longest time to the end of the last process after each kind, problems."""

    faults: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    starts: int = 0
    repeated: int = 0
    problems: list[str] = field(default_factory=list)


class Run:
    """A run folder.

    Args:
        folder: of the run.
        manifest: of its data.
        case: one of CASES.
        steps: of the whole run.
        seed: of the moments and victims.
        launcher: stands before `-m icve fit`.
        figures: to add to.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Path,
        case: str,
        steps: int,
        seed: int = 0,
        launcher: tuple[str, ...] = (sys.executable,),
        figures: Figures | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.length, self.launcher = folder, steps, launcher
        self.random, self.figures = random.Random(seed), figures or Figures()
        self.log = ""  # of the last start
        self.failed = False  # whether the last start ended without a fault and left something to do
        self._starts, self._record = 0, None
        config = folder / "run.yaml"
        asynchronous = "true, export_every: 2, export_dtype: bfloat16" if CASES[case].asynchronous else "false"
        config.write_text(
            CONFIG.format(steps=steps, every=CHECKPOINT_EVERY, asynchronous=asynchronous, manifest=manifest)
        )
        self._options = ["-c", str(config), f"--trainer.default_root_dir={folder}", *CASES[case].options]

    # ---- starts -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Start it and let it go on to its end."""
        if self.meet(None):
            raise AssertionError(f"{self.folder} did not end:\n{self.log[-3000:]}")

    def meet(self, fault: Fault | None) -> bool:
        """Start it and let it meet a fault; whether there is still something to do."""
        if fault is not None and not fault.before(self):
            return True
        reached, resumes = len(self.steps()), bool(self.checkpoints())
        with self._started(*(fault.options if fault else ())) as job:
            struck = fault is not None and self._strikes(fault, job)
            seconds = job.wait(TO_END if struck else TO_FAULT)
            self.log, status = job.log.read_text(errors="replace"), job.main.returncode
        if struck:
            self.figures.faults[fault.name] += 1
            self.figures.longest[fault.name] = max(seconds or TO_END, self.figures.longest.get(fault.name, 0.0))
        if seconds is None:
            self._problem(job, f"processes were left {TO_END:.0f} s after: {fault.name}" if struck else "did not end")
        elif not struck and status != 0:
            self._problem(job, f"ended with status {status} without a fault")
        if "is damaged" in self.log:
            self._problem(job, "no checkpoint was good")
        if resumed := re.search(r"resumes at step (\d+)", self.log):
            self.figures.repeated += reached - int(resumed[1])
        elif resumes and "Training" in self.log:
            self._problem(job, "did not resume from its checkpoint")
        # Killed after its last checkpoint it has ended too: there is nothing left to train.
        unfinished = not (self.folder / "checkpoints" / f"step-{self.length:06d}").exists()
        self.failed = unfinished and not struck
        if self.failed and status == 0:
            self._problem(job, "ended with status 0 before its last step")
        return unfinished

    def _strikes(self, fault: Fault, job: Job) -> bool:
        try:
            fault.strike(self, job)
        except Ended:
            return False
        except TimeoutError as error:
            self._problem(job, str(error))
            return False
        return True

    @contextmanager
    def _started(self, *options: str) -> Iterator[Job]:
        """The next start; nothing of it is left when the block ends."""
        self._starts += 1
        self.figures.starts += 1
        self._record = self._record_now()
        resumed = [f"--ckpt_path={self.folder}"] if self.checkpoints() else []
        command = [*self.launcher, "-m", "icve", "fit", *self._options, *options, *resumed]
        job = Job(command, self.folder / f"start-{self._starts:03d}.log")
        try:
            yield job
        finally:
            job.kill()

    def _problem(self, job: Job, words: str) -> None:
        self.figures.problems.append(f"{job.log}: {words}")

    # ---- moments ----------------------------------------------------------------------------------------------------

    def until(self, job: Job, condition: Callable[[], bool]) -> None:
        """Wait for something while the job lives.

        Raises:
            Ended: it does not live any more.
            TimeoutError: the wait is too long.
        """
        while not condition():
            if job.main.poll() is not None:
                raise Ended
            if time.monotonic() > job.started + TO_FAULT:
                job.kill()
                raise TimeoutError(f"the moment of the fault did not come in {TO_FAULT:.0f} s")
            time.sleep(0.002)

    def until_some_steps(self, job: Job) -> None:
        """Wait until the run has gone some steps on, and a part of one."""
        self.until(job, lambda: self._record_now() not in (None, self._record))
        goal = len(self.steps()) + self.random.randint(1, 3 * CHECKPOINT_EVERY)
        self.until(job, lambda: len(self.steps()) >= goal)
        time.sleep(self.random.uniform(0, 0.05))

    def until_saving(self, job: Job) -> list[int]:
        """Wait until a checkpoint is being written, some steps on; returns the process ids by rank."""
        self.until_some_steps(job)
        ranks = job.ranks()
        self.until(job, lambda: any(self.folder.glob("checkpoints/.step-*.tmp")))
        return ranks

    def _record_now(self) -> int | None:
        """Changes when a start has taken over the record of steps."""
        try:
            return (self.folder / "steps.jsonl").stat().st_ino
        except FileNotFoundError:
            return None

    # ---- what it leaves ---------------------------------------------------------------------------------------------

    def steps(self) -> list[dict[str, Any]]:
        """Losses and samples of the steps on record."""
        return steps(self.folder)

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("checkpoints/step-*"))

    def result(self) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
        """Losses and samples of all steps, and sizes and checksums of the final state and weights."""
        contents = json.loads((self.checkpoints()[-1] / "contents.json").read_text())
        return self.steps(), {name: entry for name, entry in contents.items() if name != "trainer.ckpt"}
