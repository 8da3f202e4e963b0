"""What a checkpoint says of its stage and of its data, read without its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from icve.models.run_names import TRAINER_FILE
from icve.training.checkpoints.micro_steps import STAGE_KEY


def read_stage(path: Path) -> dict[str, Any] | None:
    """{stage, step, micro_steps, seed, data, precision} of a checkpoint folder, or None for plain weights.

    data is what it was trained on, see `data_record`.
    """
    file = path / TRAINER_FILE
    if not file.is_file():
        return None
    contents = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # the tensors are not read
    if STAGE_KEY not in contents:
        raise ValueError(f"{file} was not written by this project: it does not name its training stage.")
    return contents[STAGE_KEY]
