"""When checkpoints are written and which are kept."""

import math
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from icve.data.share import batches_done
from icve.models.run_folders import exported, saved_checkpoints
from icve.models.run_names import BEST, LAST
from icve.runtime.atomic import remove_folder, replace_link
from icve.runtime.storage.remote_path import RemotePath, as_path
from icve.runtime.together import FailedTogether, together
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.uploads import Uploads
from icve.training.validation import validate_now


class Checkpoints(Checkpoint):
    """Writes RUN/checkpoints/step-NNNNNN every so many steps and at the end; `last` links to the newest.

    RUN is the trainer's `default_root_dir`.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep_last: how many of the newest stay on disk; 0 keeps all.
        monitor: a logged validation figure, smaller is better ("val/loss"): the best of the checkpoints that were
            validated is kept too, and `best` links to it. For this, validate at steps that write a checkpoint. Where
            a run is resumed at such a step it is validated there first: a kill may have come in between.
        asynchronous: write while training goes on, from a copy of the training state in main memory: every process
            needs room there for its part of it. A checkpoint that could not be written ends the run at the next one.
        export_every: of so many checkpoints one is exported: its editor has the averaged weights as others read them
            (safetensors of all processes, with an index), which takes time and room beside the training state. So has
            the one at the end of the run; the newest of them stays on disk. 0 exports only that at the end.
        export_dtype: precision of the exported weights; None for that of the trained ones. The training state, which
            runs go on from and further stages start from, has their full precision always.
        upload: URL of the run ("s3://bucket/runs/a"): what is kept on disk is copied there beside training, removed
            there when it is removed here, and a run with an empty disk goes on from it (`--ckpt_path URL`). Where that
            fails training goes on, and it is tried again. At its end the run waits for it.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        keep_last: int = 2,
        monitor: str | None = None,
        asynchronous: bool = False,
        export_every: int = 1,
        export_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        upload: str | None = None,
    ) -> None:
        self.upload = None if upload is None else as_path(upload)
        if upload is not None and not isinstance(self.upload, RemotePath):
            raise ValueError(
                f"Checkpoints(upload={upload!r}) is on a local disk: give the URL of a store, as s3://bucket/runs/a, "
                "or let trainer.default_root_dir be on that disk."
            )
        if every_n_steps < 1 or keep_last < 0 or export_every < 0:
            raise ValueError("Checkpoints needs every_n_steps >= 1, keep_last >= 0 and export_every >= 0.")
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.asynchronous = asynchronous
        self.export_every = export_every
        self.export_dtype: torch.dtype | None = None if export_dtype is None else getattr(torch, export_dtype)
        self.newest: Path | None = None
        self.best: str | None = None  # name of the folder, and its figure
        self.best_score = math.inf
        self._saved_step = -1
        self._exported_step = -1
        self._skipped_step: int | None = None
        self._uploads: Uploads | None = None
        self.uploaded = True  # False: at its end, the run could not upload all

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        self._links = threading.Lock()  # a checkpoint that is written meanwhile may be the best by then
        if stage == "fit" and trainer.is_global_zero:
            # Left behind by a killed run.
            for stale in self.folder.glob(".*.tmp"):
                stale.unlink() if stale.is_symlink() else shutil.rmtree(stale)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = self._exported_step = trainer.global_step
        resumed = self._path(trainer.global_step)
        # As the first process sees it, for all to decide alike.
        self.newest = trainer.strategy.broadcast(resumed if resumed.is_dir() else None)
        if self.monitor is not None:
            self._return_to_best(trainer)
        if isinstance(self.upload, RemotePath):
            place = trainer.global_rank, trainer.world_size
            uploads = Uploads(self.upload, self.folder.parent, *place, released=self._remove_old)
            try:
                together(uploads.begin)
            except FailedTogether as error:
                raise ValueError(error.reason) from error
            self._uploads = uploads
        # The validation due at a checkpoint's step comes after the checkpoint, and a kill may have come in between.
        done = batches_done(trainer)
        if done and done % (trainer.val_check_batch or math.inf) == 0:
            validate_now(trainer)

    def _return_to_best(self, trainer: Trainer) -> None:
        """Let `best` be what it was at the step the run goes on from: a later one is damaged, or will be replaced."""
        if not trainer.strategy.broadcast(self.best is not None and (self.folder / self.best).is_dir()):
            self.best, self.best_score = None, math.inf
        if trainer.is_global_zero:
            if self.best is None:
                (self.folder / BEST).unlink(missing_ok=True)
            else:
                replace_link(self.folder / BEST, self.best)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Here rather than at the end of training for the last step too: Lightning's counters are then mid-epoch, and
        # the stage can be continued with more steps.
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and step != self._skipped_step  # none while training diverges
        if step != self._saved_step and (due or step == trainer.max_steps):
            self.save(trainer, ends=step == trainer.max_steps or trainer.should_stop)

    def on_step_skipped(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._skipped_step = trainer.global_step + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.global_step == self._saved_step == self._exported_step:
            self.save(trainer, ends=True)
        _folders(trainer).finish()
        if self._uploads is not None:
            self.uploaded = self._uploads.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.asynchronous:
            _folders(trainer).run_failed()
        if self._uploads is not None and trainer.is_global_zero and isinstance(exception, Exception):
            self._uploads.run_failed()
            self._uploads.finish()

    def upload_rest(self, run: Path) -> None:
        """Upload what a run that has ended could not, by its first process."""
        if (
            isinstance(self.upload, RemotePath)
            and not getattr(rank_zero_only, "rank", 0)
            and (run / "checkpoints").is_dir()
        ):
            uploads = Uploads(self.upload, run)
            uploads.begin()
            uploads.finish()
            uploads.end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._uploads is not None:
            self._uploads.end()
            self._uploads = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = trainer.callback_metrics
        # The first process's, for all to decide alike.
        score = trainer.strategy.broadcast(float(figures[self.monitor]) if self.monitor in figures else None)
        if score is None:
            known = ", ".join(sorted(figures))
            raise ValueError(f"Checkpoints cannot monitor {self.monitor!r}: it is not among the figures {known}.")
        if self._saved_step == trainer.global_step and self.newest is not None and score < self.best_score:
            self.best, self.best_score = self.newest.name, score
            if trainer.is_global_zero:
                self._link_best()

    def _link_best(self) -> None:
        """Let `best` lead to the best checkpoint, as soon as it is there."""
        with self._links:
            if self.best is not None and (self.folder / self.best).is_dir():
                replace_link(self.folder / BEST, self.best)

    def save(self, trainer: Trainer, ends: bool = False) -> None:
        """Write a checkpoint of the current step, point `last` to it and remove those that are not kept.

        Args:
            trainer: whose.
            ends: the run ends here, so that the checkpoint is exported.
        """
        folders = _folders(trainer)
        folders.finish()  # all learn whether the last one was written
        due = self.export_every and trainer.global_step % (self.every_n_steps * self.export_every) == 0
        folders.exports, folders.export_dtype = bool(ends or due), self.export_dtype
        if folders.exports:
            self._exported_step = trainer.global_step
        path = self._path(trainer.global_step)
        self._saved_step = trainer.global_step
        self.newest = path
        written = partial(self._written, path)
        trainer.save_checkpoint(path, weights_only=False, storage_options=written if self.asynchronous else None)
        if not self.asynchronous:
            if trainer.is_global_zero:
                written()
            trainer.strategy.barrier("checkpoint")

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _written(self, path: Path) -> None:
        replace_link(path.parent / LAST, path.name)
        self._link_best()
        self._remove_old()
        if self._uploads is not None:
            self._uploads.due()

    def _remove_old(self) -> None:
        """Remove the checkpoints that are not kept; one that is being uploaded stays until that is done."""
        if self._uploads is None:
            self._remove_all_but(None)
        else:
            with self._uploads.guard:
                self._remove_all_but(self._uploads.current)

    def _remove_all_but(self, uploading: str | None) -> None:
        saved = saved_checkpoints(self.folder)
        needed = {(self.folder / name).resolve() for name in (LAST, BEST)}
        needed |= {folder.resolve() for folder in list(filter(exported, saved))[-1:]}
        for old in saved[: -self.keep_last]:  # none of them where that is 0
            if old.resolve() not in needed and old.name != uploading:
                remove_folder(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_score = state_dict.get("best"), state_dict["best_score"]


def _folders(trainer: Trainer) -> CheckpointFolders:
    """What writes the checkpoints; the command gives it to every trainer."""
    return cast(CheckpointFolders, trainer.strategy.checkpoint_io)
