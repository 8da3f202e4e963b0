"""Names in the folder of a run: RUN/checkpoints/step-NNNNNN are its checkpoints, `last` and `best` lead to two."""

import logging
import re
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

TRAINER_FILE = "trainer.ckpt"
LAST, BEST = "last", "best"
FOLDER_NAME = re.compile(r"step-\d+")


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named by; 0 for another folder."""
    return int(folder.name.removeprefix("step-")) if FOLDER_NAME.fullmatch(folder.name) else 0


def tell(text: str) -> None:
    """Warn of something, by one process of the run."""
    from lightning.pytorch.utilities import rank_zero_only  # seconds, which edits need not wait

    rank_zero_only(log.warning)("%s", text)


tell_once = cache(tell)  # what a command loads, it may look for several times
