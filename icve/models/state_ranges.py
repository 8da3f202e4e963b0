"""The tensors of a training state, put together from the ranges that processes wrote.

Whoever reads asks for a range, which is put together from the slices that cover it, so that a run goes on with more or
fewer processes, or with another strategy. `icve.training.checkpoints.state_files` writes them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icve.models.run_names import TRAINER_FILE

FOLDER = "state"
WEIGHTS, AVERAGE = "weights", "ema"
OPTIMIZER = "optimizer."  # + the name of an entry of the optimizer's state
SHAPES = "shapes"  # of the weights, in trainer.ckpt


class StateFiles:
    """What `write_slices` wrote into a folder, of all processes.

    Args:
        folder: with the files.
        names: of the files; None takes all that are seen.

    Raises:
        ValueError: there is none, or a file is damaged.
    """

    def __init__(self, folder: Path, names: Iterable[str] | None = None) -> None:
        self.folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        self._numbers: dict[tuple[str, str], tuple[Any, str]] = {}
        files = sorted(folder.glob("*.safetensors") if names is None else [folder / name for name in names])
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
        """Precision in which the numbers of that kind are kept.

        Raises:
            ValueError: there are none.
        """
        if (kind, name) not in self._pieces:
            raise ValueError(f"{self.folder} has no {kind} of {name}: the checkpoint is not whole; take another one.")
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

    def whole(self, kind: str, name: str, shape: Iterable[int]) -> Tensor | None:
        """All numbers of that kind that a parameter of that shape has, in it; None where it has none."""
        shape = list(shape)
        values = self.read(kind, name, 0, math.prod(shape))
        return None if values is None else values.view(shape)

    @property
    def editing(self) -> str:
        """The kind that edits and further stages use: the average, or the weights of a run that keeps none."""
        return AVERAGE if self.names(AVERAGE) else WEIGHTS


class RangesShard:
    """The weights of a training checkpoint's editor, as exact as they were trained; like a `SafetensorsShard`.

    Args:
        folder: the checkpoint.

    Raises:
        ValueError: it is damaged, or does not name the parameters' shapes.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FOLDER
        self._files = StateFiles(self.file)
        self._kind = kind = self._files.editing
        self.tensors = {
            name: torch.empty(shape, dtype=self._files.dtype(kind, name), device="meta")
            for name, shape in saved_shapes(folder).items()
        }

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, put together in main memory.

        Raises:
            ValueError: some of its numbers are in no file.
        """
        for name, stored in self.tensors.items():
            values = self._files.whole(self._kind, name, stored.shape)
            assert values is not None  # it has a dtype
            yield name, values


def has_ranges(folder: Path) -> bool:
    """Whether a folder is a training checkpoint that `RangesShard` reads."""
    return (folder / TRAINER_FILE).is_file() and (folder / FOLDER).is_dir()


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the parameters that a checkpoint trained, by name.

    Raises:
        ValueError: it does not say.
    """
    contents = torch.load(folder / TRAINER_FILE, map_location="cpu", weights_only=True, mmap=True)
    if SHAPES not in contents:
        raise ValueError(f"{folder / TRAINER_FILE} does not name its parameters: take another checkpoint.")
    return contents[SHAPES]
