"""Between Lightning's state dicts, of a process that holds everything, and the ranges of a checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from icve.models.state_ranges import SHAPES as SHAPES
from icve.training.checkpoints.state_files import AVERAGE, AVERAGE_KEY, OPTIMIZER, WEIGHTS, Slice, StateFiles

PREFIX = "transformer."  # of the weights in a module's state dict


def take_slices(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], list[Slice]]:
    """A checkpoint without weights, average and optimizer state, and these as slices that are whole tensors.

    Entries of an optimizer's state that have no number for every weight, and the whole state of an optimizer that does
    not know its parameters' names, stay.
    """
    rest, optimizers = dict(checkpoint), []
    weights = {key.removeprefix(PREFIX): value for key, value in rest.pop("state_dict", {}).items()}
    rest.setdefault(SHAPES, {name: list(value.shape) for name, value in weights.items()})
    slices = [Slice(WEIGHTS, name, 0, value) for name, value in weights.items()]
    average = dict(rest.get("callbacks", {}).get(AVERAGE_KEY, {}))
    if "shadow" in average:
        slices += [Slice(AVERAGE, name, 0, value) for name, value in average.pop("shadow").items()]
        rest["callbacks"] = {**rest["callbacks"], AVERAGE_KEY: average}
    for optimizer in rest.get("optimizer_states", []):
        state = {index: dict(entries) for index, entries in optimizer["state"].items()}
        for index, name in _names(optimizer):
            for entry, value in list(state.get(index, {}).items()):
                if isinstance(value, Tensor) and name in weights and value.shape in (weights[name].shape, ()):
                    start = 0 if value.shape == weights[name].shape else None
                    slices.append(Slice(OPTIMIZER + entry, name, start, state[index].pop(entry)))
        optimizers.append({**optimizer, "state": state})
    return rest | ({"optimizer_states": optimizers} if optimizers else {}), slices


def deal(slices: list[Slice], rank: int, processes: int) -> list[Slice]:
    """The part of a process where all have all: about as many bytes for each, in whichever order the slices come."""
    return sorted(slices, key=lambda piece: (-piece.values.nbytes, piece.key))[rank::processes]


def put_back(checkpoint: dict[str, Any], files: StateFiles) -> None:
    """Undo `take_slices`, whoever wrote the files."""
    shapes = checkpoint.pop(SHAPES)

    def whole(kind: str, name: str) -> Tensor | None:
        return files.whole(kind, name, shapes[name])

    checkpoint["state_dict"] = {PREFIX + name: whole(WEIGHTS, name) for name in shapes}
    if (average := checkpoint.get("callbacks", {}).get(AVERAGE_KEY)) is not None:
        averaged = set(files.names(AVERAGE))
        average["shadow"] = {name: whole(AVERAGE, name) for name in shapes if name in averaged}
    entries = [kind for kind in files.kinds() if kind.startswith(OPTIMIZER)]
    for optimizer in checkpoint.get("optimizer_states", []):
        for index, name in _names(optimizer):
            for kind in entries:
                value = files.number(kind, name)
                value = whole(kind, name) if value is None else value
                if value is not None:
                    optimizer["state"].setdefault(index, {})[kind.removeprefix(OPTIMIZER)] = value


def _names(optimizer: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Number and name of every parameter of an optimizer's state dict; none where it knows no names."""
    for group in optimizer["param_groups"]:
        yield from zip(group["params"], group.get("param_names", []), strict=False)
