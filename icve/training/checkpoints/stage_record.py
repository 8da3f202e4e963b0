"""What a checkpoint says of its stage and of its data, read without its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from icve.models.run_folders import TRAINER_FILE
from icve.training.checkpoints.data_record import DATA_KEY
from icve.training.checkpoints.micro_steps import STAGE_KEY


def read_stage(path: Path) -> dict[str, Any] | None:
    """{stage, step, micro_steps, seed, precision} of a checkpoint folder, or None for plain weights."""
    file = path / TRAINER_FILE
    if not file.is_file():
        return None
    contents = _contents(file)
    if STAGE_KEY not in contents:
        raise ValueError(f"{file} was not written by this project: it does not name its training stage.")
    return contents[STAGE_KEY]


def read_data_record(path: Path) -> dict[str, Any]:
    """What a checkpoint folder says of the data it was trained on, see `data_record`; {} for nothing."""
    return _contents(path / TRAINER_FILE).get(DATA_KEY, {})


def _contents(file: Path) -> dict[str, Any]:
    # Memory-mapped: the tensors are not read.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
