"""Between Lightning's state dicts, of a process that holds everything, and the ranges of a checkpoint's files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from icve.training.checkpoints.state_files import AVERAGE, AVERAGE_KEY, OPTIMIZER, WEIGHTS, Slice, StateFiles

PREFIX = "transformer."  # of the weights in a module's state dict
SHAPES = "shapes"  # of the weights, in trainer.ckpt


def take_slices(checkpoint: dict[str, Any]) -> list[Slice]:
    """Take weights, average and optimizer state out of a checkpoint, as slices that are whole tensors.

    Entries of an optimizer's state that have no number for every weight, and the whole state of an optimizer that does
    not know its parameters' names, stay.
    """
    weights = {key.removeprefix(PREFIX): value for key, value in checkpoint.pop("state_dict", {}).items()}
    checkpoint.setdefault(SHAPES, {name: list(value.shape) for name, value in weights.items()})
    slices = [Slice(WEIGHTS, name, 0, value) for name, value in weights.items()]
    average = checkpoint.get("callbacks", {}).get(AVERAGE_KEY, {})
    if "shadow" in average:
        checkpoint["callbacks"] = {**checkpoint["callbacks"], AVERAGE_KEY: dict(average)}
        shadow = checkpoint["callbacks"][AVERAGE_KEY].pop("shadow")
        slices += [Slice(AVERAGE, name, 0, value) for name, value in shadow.items()]
    for optimizer in checkpoint.get("optimizer_states", []):
        for index, name in _names(optimizer):
            state = optimizer["state"].get(index, {})
            for entry, value in list(state.items()):
                if not isinstance(value, Tensor) or name not in weights:
                    continue
                if value.shape == weights[name].shape:
                    slices.append(Slice(OPTIMIZER + entry, name, 0, state.pop(entry)))
                elif value.ndim == 0:
                    slices.append(Slice(OPTIMIZER + entry, name, None, state.pop(entry)))
    return slices


def put_back(checkpoint: dict[str, Any], files: StateFiles) -> None:
    """Undo `take_slices`, whoever wrote the files."""
    shapes = checkpoint.pop(SHAPES)

    def whole(kind: str, name: str) -> Tensor | None:
        values = files.read(kind, name, 0, math.prod(shapes[name]))
        return None if values is None else values.view(shapes[name])

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
