"""Checkpoints are folders: `trainer.ckpt`, everything to resume, beside a complete model folder with the EMA weights.

A folder appears under its name only when every byte of it is on disk, so that a half-written one is never taken for a
checkpoint. Nothing is unpickled: `trainer.ckpt` is read with `weights_only=True`, weights are safetensors.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

TRAINER_FILE = "trainer.ckpt"
STAGE_KEY = "icve"  # entry of trainer.ckpt: {stage, step, batches, seed}
LAST = "last"
FOLDER_NAME = re.compile(r"step-\d+")


class CheckpointFolders(CheckpointIO):
    """Lightning plugin that writes and reads checkpoint folders.

    The model folder is written by the function that `InContextEditingModule.on_save_checkpoint` leaves in the
    checkpoint under `MODEL_WRITER`; it is called with the folder and not saved.
    """

    MODEL_WRITER = "model_writer"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `path` (a folder) completely or not at all."""
        path = Path(path)
        contents = dict(checkpoint)
        write_model = contents.pop(self.MODEL_WRITER, None)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            torch.save(contents, temporary / TRAINER_FILE)
            if write_model is not None:
                write_model(temporary)
            for entry in sorted(temporary.rglob("*")):
                _flush(entry)
            _flush(temporary)
            if path.exists():
                self.remove_checkpoint(path)
            os.rename(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Everything in the folder's `trainer.ckpt`.

        Raises:
            FileNotFoundError: if there is none.
        """
        file = Path(path) / TRAINER_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{path} is no training checkpoint: it has no {TRAINER_FILE}.")
        return torch.load(file, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a folder; it loses its name first, so that an interrupted removal leaves no broken checkpoint."""
        path = Path(path)
        if path.exists():
            doomed = path.parent / f".{path.name}.{os.getpid()}.removed.tmp"
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def saved_checkpoints(folder: Path) -> list[Path]:
    """The complete `step-*` checkpoints of a folder, oldest step first."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if FOLDER_NAME.fullmatch(entry.name) and entry.is_dir()]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("step-")))


def point_last_to(checkpoint: Path, name: str = LAST) -> None:
    """Make `name` beside a checkpoint a link to it, replacing the previous link in one step."""
    temporary = checkpoint.parent / f".{name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, checkpoint.parent / name)


def resolve_checkpoint(path: str | Path) -> Path:
    """What a user names as a checkpoint, as the folder or file that holds it.

    Args:
        path: a run folder (its newest checkpoint is taken), its `checkpoints` folder, `checkpoints/last`, a checkpoint
            folder, a model folder, or a weights file.

    Raises:
        FileNotFoundError: if there is nothing of that kind.
    """
    path = Path(path).expanduser()
    if path.is_file() or (path / TRAINER_FILE).is_file():
        return path.resolve()
    for folder in (path / "checkpoints", path, path.parent if path.name == LAST else path):
        if (folder / LAST / TRAINER_FILE).is_file():
            return (folder / LAST).resolve()
        # The link is missing or dangling only if the run was killed in between: the newest folder is what it meant.
        if complete := saved_checkpoints(folder):
            return complete[-1].resolve()
    if path.is_dir() and any((path / name).is_file() for name in ("config.json", "model_index.json")):
        return path.resolve()
    problem = "holds no checkpoint" if path.exists() else "does not exist"
    raise FileNotFoundError(
        f"The checkpoint {path} {problem}; name a run folder, a checkpoint folder (RUN/checkpoints/last), a model "
        "folder or a safetensors file."
    )


def read_stage(path: Path) -> dict[str, Any] | None:
    """{stage, step, batches, seed} of a checkpoint folder, or None for plain weights."""
    file = path / TRAINER_FILE
    if not file.is_file():
        return None
    # Memory-mapped: the tensors are not read.
    contents = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if STAGE_KEY not in contents:
        raise ValueError(f"{file} was not written by this project: it does not name its training stage.")
    return contents[STAGE_KEY]
