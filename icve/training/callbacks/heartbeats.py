"""What every process of a run is doing, in files that the others can read when no collective gets through.

Files rather than a store that one process serves: that process may be the one that is stopped.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from icve.runtime.atomic import write_text

PACKAGE = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class Beat:
    """What a process was doing when it last said so.

    Args:
        host, pid: where it runs.
        phase: of the run, such as "a training batch".
        place: innermost line of its main thread.
        operation: the distributed operation its main thread is in, None outside of any.
        collectives: how many it has begun, in all its process groups; None where the backend does not count them.
        stack: of its main thread, and of others that run this package.
    """

    host: str
    pid: int
    phase: str
    place: str
    operation: str | None
    collectives: int | None
    stack: str


def own_beat(phase: str) -> Beat:
    """What this process is doing now."""
    frames = sys._current_frames()
    main = traceback.extract_stack(frames.pop(threading.main_thread().ident or 0))
    frames.pop(threading.get_ident(), None)
    stacks = [main]
    for frame in frames.values():  # such as the backward pass of checkpointed blocks on a GPU
        stack = traceback.extract_stack(frame)
        if any(PACKAGE in Path(entry.filename).parents for entry in stack):
            stacks.append(stack)
    return Beat(
        socket.gethostname(),
        os.getpid(),
        phase,
        _place(main[-1]),
        distributed_operation(main),
        collectives_begun(),
        "\nin another thread:\n".join("".join(stack.format()) for stack in stacks),
    )


def distributed_operation(stack: traceback.StackSummary) -> str | None:
    """The innermost call into torch.distributed or DeepSpeed that a thread has not come back from, or None.

    Frames further out do not count: DeepSpeed and DDP also stand around every forward pass.
    """
    deepspeed = getattr(sys.modules.get("deepspeed"), "__file__", None)
    own = [TORCH / "distributed", TORCH / "nn" / "parallel"] + ([Path(deepspeed).parent] if deepspeed else [])
    for frame in reversed(stack):
        folders = Path(frame.filename).parents
        if any(folder in folders for folder in own):
            return _place(frame)
        if TORCH not in folders:
            return None
        if frame.name == "_engine_run_backward" and dist.is_initialized():
            return f"the backward pass, which exchanges gradients, {_place(frame)}"
    return None


def collectives_begun() -> int | None:
    """How many collectives this process has begun: all are to begin the same ones, so that a smaller number lags."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    try:
        return sum(group._get_sequence_number_for_group() for group in groups)
    except (RuntimeError, AttributeError):
        return None


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno})"


def _written(file: Path) -> float:
    """When a file was, in seconds; 0 for one that is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


class Heartbeats:
    """Writes this process's beats to FOLDER/rank-NNNNN.json and reads those of others.

    A file that cannot be written or read is passed over: a full disk must not end training here.

    Args:
        folder: all processes see it.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._mark = folder / "progress"

    def write(self, beat: Beat) -> None:
        """Replace this process's last beat: it lives as long as it does so."""
        with contextlib.suppress(OSError):
            write_text(self._path(self.rank), json.dumps(asdict(beat)))

    def read(self, rank: int) -> Beat | None:
        """Last beat of a process, or None where it has left none."""
        try:
            return Beat(**json.loads(self._path(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def seconds_behind(self, rank: int) -> float:
        """How much older a process's last beat is than this one's, by the clock of their disk; years without one."""
        return _written(self._path(self.rank)) - _written(self._path(rank))

    def mark_progress(self) -> None:
        """Let all processes know that the run goes on."""
        with contextlib.suppress(OSError):
            self._mark.touch()

    def last_progress(self) -> float:
        """Changes when a process marks progress."""
        return _written(self._mark)

    def remove(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._path(self.rank).unlink(missing_ok=True)
            if not list(self.folder.glob("rank-*")):
                self._mark.unlink(missing_ok=True)
                self.folder.rmdir()

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"
