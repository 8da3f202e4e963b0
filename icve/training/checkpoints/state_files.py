"""The tensors of a training state on disk, written by every process for its own part and read by any number of others.

A process writes what it holds of each parameter: the weights, their average and the optimizer's state, as slices of the
flattened tensors. Nothing is gathered. `icve.models.state_ranges` reads them. The files are safetensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from icve.models.state_ranges import AVERAGE as AVERAGE
from icve.models.state_ranges import FOLDER as FOLDER
from icve.models.state_ranges import OPTIMIZER as OPTIMIZER
from icve.models.state_ranges import WEIGHTS as WEIGHTS
from icve.models.state_ranges import StateFiles as StateFiles
from icve.runtime.atomic import flush

AVERAGE_KEY = "EMA"  # of the average's callback among the callbacks' states in trainer.ckpt
_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class Slice:
    """A range of a flattened tensor.

    Args:
        kind: WEIGHTS, AVERAGE, or OPTIMIZER with a name behind it.
        name: of the parameter.
        start: place of the first number in the flattened parameter; None for a single number that belongs to all of it.
        values: any shape, as many numbers as the range has.
        copied: the values have memory of their own, on the CPU.
    """

    kind: str
    name: str
    start: int | None
    values: Tensor
    copied: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind}|{'' if self.start is None else self.start}|{self.name}"


def write_slices(folder: Path, rank: int, world: int, slices: Iterable[Slice]) -> list[Path]:
    """Write the slices of one process into `folder`, a few gigabytes per file, to disk; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, tensors in enumerate(_files(slices)):
        file = folder / f"{rank:05d}-of-{world:05d}-{number:03d}.safetensors"
        save_file(tensors, file)
        flush(file)
        files.append(file)
    return files


def _files(slices: Iterable[Slice]) -> Iterator[dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    filled = 0
    for piece in slices:
        if filled and filled + piece.values.nbytes > _FILE_BYTES:
            yield tensors
            tensors, filled = {}, 0
        # A copy: slices are parts of one buffer, which safetensors refuses.
        values = piece.values if piece.copied else piece.values.detach().to("cpu", copy=True)
        tensors[piece.key] = values if piece.start is None else values.flatten()
        filled += piece.values.nbytes
    yield tensors
