"""Checkpoints are folders: all that a run needs to go on, beside a model folder for the EMA weights.

`state/` has the tensors, by the process that held them (:mod:`state_files`); `trainer.ckpt` the rest; the model folder
has weights only where the checkpoint is exported, in a file of every process;
`contents.json` size and checksum of every file. A folder appears under its name only when every byte of it is on disk,
so that a half-written one is never taken for a checkpoint. Nothing is unpickled: `trainer.ckpt` is read with
`weights_only=True`, weights are safetensors.
"""

import copy
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError

from icve.models.run_folders import undamaged
from icve.models.run_names import TRAINER_FILE
from icve.runtime.atomic import flush, remove_folder, replace_folder
from icve.runtime.folder_contents import describe, find_damage, write_contents
from icve.runtime.together import gather, together
from icve.training.checkpoints.background import AnotherFailed, announce, collect, exchange, hand_over, wait_for_all
from icve.training.checkpoints.snapshot import Snapshots
from icve.training.checkpoints.state_dicts import SHAPES, put_back, take_slices
from icve.training.checkpoints.state_files import FOLDER as STATE
from icve.training.checkpoints.state_files import Slice, StateFiles, write_slices


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; nothing half-written is left."""


ModelWriter = Callable[[Mapping[str, Sequence[int]], Path, StateFiles], None]
# Also given (process, processes) and the precision; returns the files.
WeightsWriter = Callable[
    [Mapping[str, Sequence[int]], Path, StateFiles, tuple[int, int], torch.dtype | None], Sequence[Path]
]


class CheckpointFolders(CheckpointIO):
    """Lightning plugin that writes and reads checkpoint folders.

    Args:
        write_model: writes the editor beside the training state, without the transformer's weights, given the shapes
            of the trained parameters by name, the folder, and the folder's training state.
        write_weights: writes a process's share of the transformer's weights to the editor.

    `InContextEditingModule.setup` gives its own writers.
    """

    def __init__(self, write_model: ModelWriter | None = None, write_weights: WeightsWriter | None = None) -> None:
        self.write_model = write_model
        self.write_weights = write_weights
        self.exports = True  # whether the next checkpoint has the transformer's weights in the editor, too
        self.export_dtype: torch.dtype | None = None  # None: the precision of the trained weights
        self.fall_back = False  # from a damaged checkpoint to the one before it
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # the interpreter waits for it
        self._writing: Future[None] | None = None
        self._snapshots = Snapshots()
        self._run_failed = threading.Event()  # what is being written is to end soon

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Callable[[], None] | None = None
    ) -> None:
        """Write `path` (a folder) completely or not at all, from one process that holds everything.

        Args:
            checkpoint: Lightning's.
            path: the folder.
            storage_options: given, the folder is written while the caller goes on, and this is called when it is
                there. What is written is as it was when the call came.

        Raises:
            CheckpointNotWritten: the disk is full, or something else stood in the way (of this checkpoint, or of the
                last one that was written in the background).
        """
        self._finish_own()
        contents, slices = take_slices(checkpoint)
        self._save(contents, Path(path), slices, storage_options)

    def save_shared(
        self, checkpoint: dict[str, Any], path: Path, slices: Iterable[Slice], done: Callable[[], None] | None = None
    ) -> None:
        """Write `path` (a folder) completely or not at all, each process its own slices; to be called by all.

        Args:
            checkpoint: what is not shared.
            path: the folder.
            slices: of this process.
            done: as `storage_options` of `save_checkpoint`; the first process calls it.

        Raises:
            CheckpointNotWritten: a process could not write this checkpoint, or the last one that was written in the
                background; raised by all.
        """
        if self._writing is not None:  # on all of them, or none
            self.finish()
        self._save(checkpoint, path, slices, done, dist.get_rank(), dist.get_world_size(), together)

    def _save(
        self,
        contents: dict[str, Any],
        path: Path,
        slices: Iterable[Slice],
        done: Callable[[], None] | None,
        rank: int = 0,
        world: int = 1,
        on_all: Callable[[Callable[[], None]], Any] = lambda work: work(),
    ) -> None:
        """Write a folder by so many processes; `on_all` calls a function on each of them."""
        temporary = _hidden(path)
        exports, dtype = self.exports, self.export_dtype

        def prepare() -> None:
            nonlocal slices, contents
            if done is not None:
                slices, contents = self._snapshots.copy(slices), copy.deepcopy(contents)
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # of an earlier attempt
                temporary.mkdir(parents=True)
                announce(temporary, world)

        def write_own() -> dict[str, list[int]]:
            own = write_slices(temporary / STATE, rank, world, slices)
            if exports and self.write_weights is not None:
                seen = exchange(temporary, rank, world, [file.name for file in own], self._run_failed)
                files = StateFiles(temporary / STATE, [name for names in seen for name in names])
                own += self.write_weights(contents.get(SHAPES, {}), temporary, files, (rank, world), dtype)
            return describe(temporary, own)

        def write() -> None:
            if rank:
                hand_over(temporary, rank, write_own)
                return
            with _removed_on_failure(temporary):
                try:
                    hand_over(temporary, rank, write_own)
                finally:  # what others write while it is cleared would stay
                    wait_for_all(temporary, world, self._run_failed)
                self._complete(contents, temporary, path, collect(temporary, world))
            if done is not None:
                done()

        with _in_a_sentence(path):
            with _removed_on_failure(temporary, rank == 0):
                on_all(prepare)
            if done is None:
                on_all(write)
            else:
                self._run_failed.clear()
                self._writing = self._thread.submit(_in_a_sentence(path)(write))

    def finish(self) -> None:
        """Wait until what is written in the background is there; to be called by all processes.

        Raises:
            CheckpointNotWritten: it could not be written; raised by all.
        """
        failure = None
        try:
            self._finish_own()
        except Exception as error:  # whatever it is, the others must not wait for this process
            failure = error
        told = failure and (isinstance(failure.__cause__, AnotherFailed), str(failure))
        if failures := list(filter(None, gather(told))):
            raise CheckpointNotWritten(min(failures)[1]) from failure  # of one that knows why

    def _finish_own(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def run_failed(self) -> None:
        """What is being written is waited for a minute at most, not an hour: a process of the run may be gone."""
        self._run_failed.set()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Everything in the folder, as one process holds it.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it is damaged.
        """
        checkpoint, files = self.load_parts(Path(path))
        put_back(checkpoint, files)
        return checkpoint

    def load_shared(self, path: Path) -> tuple[dict[str, Any], StateFiles]:
        """`load_parts` on all processes, which share the work of looking for damage."""
        rank, world = dist.get_rank(), dist.get_world_size()

        def look(folder: Path) -> str | None:
            return next(filter(None, gather(together(lambda: find_damage(folder, rank, world)))), None)

        return self.load_parts(path, look)

    def load_parts(
        self, path: Path, look: Callable[[Path], str | None] = find_damage
    ) -> tuple[dict[str, Any], StateFiles]:
        """What is not shared among processes, and the files with the rest.

        Args:
            look: says what is wrong with a folder.

        Raises:
            FileNotFoundError, ValueError: as `load_checkpoint`.
        """
        if not (path / TRAINER_FILE).is_file():
            raise FileNotFoundError(f"{path} is no training checkpoint: it has no {TRAINER_FILE}.")
        path = undamaged(path, self.fall_back, look)
        return torch.load(path / TRAINER_FILE, map_location="cpu", weights_only=True), StateFiles(path / STATE)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a folder, if it is there."""
        remove_folder(Path(path))

    def _complete(
        self, contents: dict[str, Any], temporary: Path, path: Path, parts: Iterable[dict[str, list[int]]]
    ) -> None:
        """Write all but the slices, which processes have written and described, and give the folder its name."""
        described = {name: entry for part in parts for name, entry in part.items()}
        if missing := [name for name in described if not (temporary / name).is_file()]:
            raise OSError(f"{missing[0]} is not seen: the run folder must be on a disk that all nodes share")
        torch.save(contents, temporary / TRAINER_FILE)
        if self.write_model is not None:
            self.write_model(contents.get(SHAPES, {}), temporary, StateFiles(temporary / STATE))
        entries = sorted(temporary.rglob("*"))
        others = [e for e in entries if e.is_file() and e.relative_to(temporary).as_posix() not in described]
        write_contents(temporary, described | describe(temporary, others))
        for entry in (*others, *filter(Path.is_dir, entries), temporary):
            flush(entry)
        replace_folder(path, temporary)
        flush(path.parent)


def _hidden(path: Path) -> Path:
    """Where a folder is written before it gets its name: the same for all processes."""
    return path.parent / f".{path.name}.tmp"


@contextmanager
def _removed_on_failure(folder: Path, mine: bool = True) -> Iterator[None]:
    """Of what fails nothing is left there, if that is for this process to see to."""
    try:
        yield
    except BaseException:
        if mine:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Errors of writing a checkpoint become a sentence for the user."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # What torch.save says of a full disk is about zip files; the operating system's words come first.
        raise CheckpointNotWritten(
            f"The checkpoint {path} could not be written ({error}); earlier ones are as they were: make room, then "
            "resume the run."
        ) from error
