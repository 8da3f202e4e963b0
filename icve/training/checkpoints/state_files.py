"""The tensors of a training state on disk, written by every process for its own part and read by any number of others.

A process writes what it holds of each parameter: the weights, their average and the optimizer's state, as slices of the
flattened tensors. Nothing is gathered. Whoever reads asks for a range, which is put together from the slices that cover
it, so that a run goes on with more or fewer processes, or with another strategy. The files are safetensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from icve.runtime.atomic import flush

FOLDER = "state"
WEIGHTS, AVERAGE = "weights", "ema"
AVERAGE_KEY = "EMA"  # of the average's callback among the callbacks' states in trainer.ckpt
OPTIMIZER = "optimizer."  # + the name of an entry of the optimizer's state
_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class Slice:
    """A range of a flattened tensor.

    Args:
        kind: WEIGHTS, AVERAGE, or OPTIMIZER with a name behind it.
        name: of the parameter.
        start: place of the first number in the flattened parameter; None for a single number that belongs to all of it.
        values: any shape, as many numbers as the range has.
    """

    kind: str
    name: str
    start: int | None
    values: Tensor

    @property
    def key(self) -> str:
        return f"{self.kind}|{'' if self.start is None else self.start}|{self.name}"


def write_slices(folder: Path, rank: int, world: int, slices: Iterable[Slice]) -> None:
    """Write the slices of one process into `folder`, a few gigabytes per file, to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, tensors in enumerate(_files(slices)):
        file = folder / f"{rank:05d}-of-{world:05d}-{number:03d}.safetensors"
        save_file(tensors, file)
        flush(file)


def snapshot(slices: Iterable[Slice]) -> list[Slice]:
    """Copies in main memory, which stay as they are while training goes on."""
    return [replace(piece, values=piece.values.detach().to("cpu", copy=True)) for piece in slices]


def _files(slices: Iterable[Slice]) -> Iterator[dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    filled = 0
    for piece in slices:
        if filled and filled + piece.values.nbytes > _FILE_BYTES:
            yield tensors
            tensors, filled = {}, 0
        # A copy: slices are parts of one buffer, which safetensors refuses.
        values = piece.values.detach().to("cpu", copy=True)
        tensors[piece.key] = values if piece.start is None else values.flatten()
        filled += piece.values.nbytes
    yield tensors


class StateFiles:
    """What `write_slices` wrote into a folder, of all processes.

    Raises:
        ValueError: there is none, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        self._numbers: dict[tuple[str, str], tuple[Any, str]] = {}
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no training state.")
        for file in files:
            try:
                stored = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged ({error}): resume from an earlier checkpoint.") from error
            for key in stored.keys():  # noqa: SIM118
                kind, start, name = key.split("|", 2)
                if not start:
                    self._numbers[kind, name] = stored, key
                    continue
                (length,) = stored.get_slice(key).get_shape()
                self._pieces[kind, name].append((int(start), int(start) + length, stored, key))

    def names(self, kind: str) -> list[str]:
        """Parameters that have entries of that kind."""
        return sorted({name for have, name in (*self._pieces, *self._numbers) if have == kind})

    def kinds(self) -> list[str]:
        return sorted({kind for kind, _ in (*self._pieces, *self._numbers)})

    def dtype(self, kind: str, name: str) -> torch.dtype:
        """Precision in which the numbers of that kind are kept."""
        _, _, stored, key = self._pieces[kind, name][0]
        return stored.get_slice(key)[:0].dtype

    def number(self, kind: str, name: str) -> Tensor | None:
        """The single number () of that kind that belongs to a parameter, or None."""
        found = self._numbers.get((kind, name))
        return None if found is None else found[0].get_tensor(found[1]).clone()

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor | None:
        """`count` numbers of a flattened parameter from `start` on (count,), or None where it has none of that kind.

        Raises:
            ValueError: some of them are in no file.
        """
        if (kind, name) not in self._pieces:
            return None
        parts: list[Tensor] = []
        for first, end, stored, key in sorted(self._pieces[kind, name], key=lambda piece: piece[0]):
            low, high = max(first, start + sum(map(len, parts))), min(end, start + count)
            if low < high:
                parts.append(stored.get_slice(key)[low - first : high - first])
        filled = sum(map(len, parts))
        if filled < count:
            raise ValueError(
                f"{self.folder} lacks {count - filled} of {count} numbers of {name} ({kind}): the checkpoint is not "
                "whole, or belongs to another model; resume from another one."
            )
        return torch.cat(parts)
