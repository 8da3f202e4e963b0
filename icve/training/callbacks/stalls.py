"""A run that makes no progress says why, and ends instead of holding its machines for ever."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from icve.training.callbacks.heartbeats import Beat, Heartbeats, own_beat
from icve.training.callbacks.stall_report import headline, stacks
from icve.training.lightning_types import editing

SETUP = "the setup of the run"


def entering(phase: str) -> Callable[..., None]:
    """A hook that notes progress, and the phase of the run that begins with it."""

    def hook(self: "StallDetector", *args: Any, **kwargs: Any) -> None:
        if self.watch is not None:
            self.watch.note(phase)

    return hook


class StallDetector(Callback):
    """Reports a run in which no process makes progress, and then ends it.

    Progress is a training or validation batch, a forward pass of the transformer (previews), a hook of the trainer's,
    or a file written below RUN/checkpoints. The report, on the standard error of the lowest rank that lives, has the
    stacks of all ranks, and names those that the others wait for and the operation they wait in. Processes exchange
    this through RUN/heartbeats, which all must see; it is left there by a run that was ended.

    Args:
        warn_after: seconds without progress until the report.
        abort_after: seconds without progress until every process ends with exit status 1, and kills those of its node
            that were started with it and are silent; None never ends a run. Before the first batch nothing is ended:
            weights and checkpoints may take long to read, and exchanges have time limits of their own.

    Raises:
        ValueError: times that are not positive, or an end before the report.
    """

    FOLDER = "heartbeats"

    def __init__(self, warn_after: float = 300.0, abort_after: float | None = 1800.0) -> None:
        if warn_after <= 0 or (abort_after is not None and abort_after < warn_after):
            raise ValueError(
                f"StallDetector needs 0 < warn_after <= abort_after, got {warn_after:g} and {abort_after}."
            )
        self.warn_after, self.abort_after = warn_after, abort_after
        self.watch: Watch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = Path(trainer.default_root_dir)
        beats = Heartbeats(run / self.FOLDER, trainer.global_rank)
        self.watch = watch = Watch(beats, trainer.world_size, run / "checkpoints", self.warn_after, self.abort_after)
        self._hook = editing(pl_module).transformer.register_forward_pre_hook(lambda *_: watch.note())
        watch.start()

    on_train_start = entering("the start of training")
    on_train_batch_start = entering("a training batch")
    on_before_optimizer_step = entering("an optimizer step")
    on_train_batch_end = entering("the wait for the next batch")
    on_validation_start = entering("validation")
    on_validation_batch_start = entering("a validation batch")
    on_validation_batch_end = entering("the wait for the next validation batch")
    on_validation_end = entering("the end of validation")
    on_save_checkpoint = entering("a checkpoint")
    on_train_end = entering("the end of training")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hook.remove()
        if self.watch is not None:
            self.watch.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.watch is not None:  # the setup of another may have failed
            self.watch.stop()


class Watch(threading.Thread):
    """Beats for this process and watches whether the run goes on.

    Args:
        beats: of this process.
        processes: of the run.
        checkpoints: folder that counts as progress when something in it is written.
        warn_after, abort_after: see :class:`StallDetector`.
    """

    def __init__(
        self, beats: Heartbeats, processes: int, checkpoints: Path, warn_after: float, abort_after: float | None
    ) -> None:
        super().__init__(name="stall detector", daemon=True)
        self.beats, self.processes, self.checkpoints = beats, processes, checkpoints
        self.warn_after, self.abort_after = warn_after, abort_after
        self.interval = warn_after / 10
        self._phase, self._notes = SETUP, 0
        self._ended = threading.Event()
        self._idle, self._warned = 0.0, False
        self._progress = 0, 0.0  # own notes and the mark of all processes, at the last beat
        self._written: int | None = None  # when a checkpoint was, at the last beat of a stall

    def note(self, phase: str | None = None) -> None:
        """Progress; called by the main thread, so it does next to nothing."""
        self._phase = phase or self._phase
        self._notes += 1

    def stop(self) -> None:
        """End the thread, and remove this process's file."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=5)
        self.beats.remove()

    def run(self) -> None:
        last = time.monotonic()
        self._beat()
        while not self._ended.wait(self.interval):
            now = time.monotonic()
            # A job that was suspended was not idle.
            self._idle += min(now - last, 2 * self.interval)
            last = now
            self._beat()

    def _beat(self) -> None:
        notes, before = self._notes, self._progress
        self.beats.write(own_beat(self._phase))
        if notes != before[0]:
            self.beats.mark_progress()
        self._progress = notes, self.beats.last_progress()
        if self._progress != before:
            self._idle, self._warned, self._written = 0.0, False, None
        elif self._idle >= self.warn_after / 2:
            self._stalled()

    def _stalled(self) -> None:
        reporting = all(map(self._is_silent, range(self.beats.rank)))  # as the lowest rank that lives
        if reporting:
            before, self._written = self._written, newest(self.checkpoints)
            if before not in (None, self._written):
                self.beats.mark_progress()
                return
        if self._idle >= self.warn_after and not self._warned:
            self._warned = True
            if reporting:
                beats, silent = self._look()
                say(f"No progress for {self._idle:.0f} s. {headline(beats, silent)}\n{stacks(beats, silent)}")
        # The one that can say why goes first.
        if self._phase == SETUP or self.abort_after is None:
            return
        if self._idle >= self.abort_after + (0 if reporting else 3 * self.interval):
            self._abort(reporting)

    def _is_silent(self, rank: int) -> bool:
        return self.beats.seconds_behind(rank) > 3 * self.interval

    def _look(self) -> tuple[dict[int, Beat], set[int]]:
        """The last beat of every rank that left one, and the ranks that are silent."""
        others = [rank for rank in range(self.processes) if rank != self.beats.rank]
        beats = {rank: beat for rank in others if (beat := self.beats.read(rank)) is not None}
        return beats | {self.beats.rank: own_beat(self._phase)}, set(filter(self._is_silent, others))

    def _abort(self, reporting: bool) -> None:
        """End this process from outside of its main thread, which may be waiting in C++."""
        text = f"icve: error: rank {self.beats.rank} ends after {self._idle:.0f} s without progress"
        if reporting:
            beats, silent = self._look()
            say(f"{text}. {headline(beats, silent)} Mend that, then resume from the last checkpoint.")
            kill([beats[rank] for rank in silent & beats.keys()])
        else:
            say(f"{text}; the lowest rank that lives says why.")
        os._exit(1)


def say(text: str) -> None:
    """To standard error in one piece, so that ranks do not mix."""
    sys.stderr.write(f"\n{text}\n")
    sys.stderr.flush()


def newest(folder: Path) -> int:
    """When something below a folder was last written, in nanoseconds; 0 if there is nothing."""
    times = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime_ns)
    return max(times)


def kill(beats: list[Beat]) -> None:
    """End processes that cannot do it themselves, such as stopped ones, where they belong to this process's group."""
    for beat in beats:
        with contextlib.suppress(OSError, AttributeError):  # there are no groups on Windows
            if beat.host == socket.gethostname() and os.getpgid(beat.pid) == os.getpgrp():
                os.kill(beat.pid, signal.SIGKILL)
