"""What strategies have in common whose processes each hold a part of the weights: checkpoints, and who owns what.

Every process owns, of some parameters, a range of their numbers: the weights in full precision, the optimizer's state
for them, and their average (EMA). A checkpoint is written and read by ranges (`state_files`), so that it can be
resumed by another number of processes, by another strategy, or by one process.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.state_files import (
    AVERAGE,
    AVERAGE_KEY,
    FOLDER,
    OPTIMIZER,
    WEIGHTS,
    Slice,
    StateFiles,
)
from icve.training.distributed.ulysses import MixedInto
from icve.training.lightning_types import editing
from icve.training.optimization.optimizers import MuonAdamW
from icve.training.optimization.parameter_groups import check_names

# They update a matrix as a whole, of which a process here has rows, or not even these.
WHOLE_MATRICES = (
    MuonAdamW,
    torch.optim.Adafactor,
    torch.optim.LBFGS,
    *filter(None, [getattr(torch.optim, "Muon", None)]),
)


@dataclass(frozen=True)
class Owned:
    """A range of a parameter that this process updates.

    Args:
        name: of the parameter in the transformer.
        start: place of its first number in the flattened parameter.
        flat: the tensor that the optimizer updates; other ranges may lie in it too.
        offset, count: place of the range in it.
    """

    name: str
    start: int
    flat: Tensor
    offset: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The range (count,) of `flat` or of a tensor like it, not a copy."""
        return local(tensor).detach().view(-1)[self.offset : self.offset + self.count]

    @property
    def weights(self) -> Tensor:
        return self.of(self.flat)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a distributed tensor; others are what they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ShardedState(MixedInto):
    """Mixed into a strategy of that kind. The strategy says what a process owns.

    Attributes:
        starts_from: a checkpoint whose averaged weights the run starts from; every process reads its own part.
    """

    starts_from: Path | None = None

    @abstractmethod
    def owned(self) -> list[Owned]:
        """What this process updates: at most one range of every trained parameter."""

    @abstractmethod
    def weights_changed(self) -> None:
        """The owned weights were set: the model is to compute with them. Called by all processes."""

    @abstractmethod
    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Of every trained parameter the gradient's numbers that this process counts; no number is counted twice.

        To be called when the gradients of a step are complete.
        """

    def trained(self) -> Iterator[tuple[str, Any]]:
        """The parameters that are trained, by name, with what the strategy has put on them."""
        named = editing(self.lightning_module).transformer.named_parameters()
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)

    @property
    @abstractmethod
    def torch_optimizer(self) -> Optimizer:
        """The optimizer that updates `Owned.flat`."""

    @property
    def writes(self) -> bool:
        """Whether no other process writes what this one owns."""
        return True

    # ---- Lightning's seams: it restores nothing itself ------------------------------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Hyper-parameters, and the parameters' numbers and names: the state goes into the checkpoint by ranges."""
        groups, numbers = [], itertools.count()
        for group in self.torch_optimizer.param_groups:
            names = group["param_names"]
            own = {"params": list(itertools.islice(numbers, len(names))), "param_names": list(names)}
            groups.append({**_without_parameters(group), **own})
        return {"state": {}, "param_groups": groups}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Done by `load_checkpoint`."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the hyper-parameters over; the state came with `load_checkpoint`.

        Raises:
            ValueError: the checkpoint's optimizer has other groups of parameters.
        """
        (state,) = checkpoint["optimizer_states"]
        check_names(self.torch_optimizer, state)
        for group, values in zip(self.torch_optimizer.param_groups, state["param_groups"], strict=True):
            group.update(_without_parameters(values))

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        if self.optimizers and isinstance(self.torch_optimizer, WHOLE_MATRICES):
            name = type(self.torch_optimizer).__name__
            raise ValueError(
                f"{name} updates whole matrices, and {type(self).__name__} gives every process a part of them: choose "
                "another optimizer (torch.optim.AdamW), or icve.training.distributed.strategies.DDPUlyssesStrategy."
            )
        if self.starts_from is not None and self.optimizers:
            files = StateFiles(self.starts_from / FOLDER)
            self._set_weights(files, files.editing)

    @property
    def _folders(self) -> CheckpointFolders:
        """Of every run; no other plugin could be given the parts of several processes."""
        return cast(CheckpointFolders, self.checkpoint_io)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the folder; every process writes what it owns."""
        callback = _ema(checkpoint)
        shadow = callback.pop("shadow") if callback else {}
        slices = self._slices(shadow) if self.writes else iter(())
        self._folders.save_shared(checkpoint, Path(self.broadcast(str(filepath))), slices, storage_options)

    def _slices(self, shadow: Mapping[str, Tensor]) -> Iterator[Slice]:
        state = self.torch_optimizer.state
        for part in self.owned():
            yield Slice(WEIGHTS, part.name, part.start, part.weights)
            if part.name in shadow:
                yield Slice(AVERAGE, part.name, part.start, shadow[part.name])
            for name, values in state.get(part.flat, {}).items():
                if not isinstance(values, Tensor):
                    raise ValueError(
                        f"The optimizer's {name} is no tensor, so that no checkpoint can hold it by ranges."
                    )
                if values.shape == part.flat.shape:
                    yield Slice(OPTIMIZER + name, part.name, part.start, part.of(values))
                elif values.numel() == 1:
                    yield Slice(OPTIMIZER + name, part.name, None, local(values).reshape(()))
                else:
                    raise ValueError(f"The optimizer's {name} has no number for every weight: it cannot be shared.")

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Set what this process owns from a checkpoint, and return the rest of it."""
        checkpoint, files = self._folders.load_shared(Path(checkpoint_path))
        parts, shadow = self.owned(), {}
        self._set_weights(files, WEIGHTS)
        for part in parts:
            average = files.read(AVERAGE, part.name, part.start, part.count)
            if average is not None:
                shadow[part.name] = average.to(part.flat.device)
        self._load_optimizer(files, parts)
        if (callback := _ema(checkpoint)) is not None:
            callback["shadow"] = shadow
        return checkpoint

    def _set_weights(self, files: StateFiles, kind: str) -> None:
        for part in self.owned():
            if (weights := files.read(kind, part.name, part.start, part.count)) is None:
                raise ValueError(
                    f"The checkpoint {files.folder.parent} has no {part.name}: it belongs to another transformer than "
                    "the configuration's."
                )
            part.weights.copy_(weights)
        self.weights_changed()

    def _load_optimizer(self, files: StateFiles, parts: list[Owned]) -> None:
        optimizer = self.torch_optimizer
        # Their kernels read the number of steps on the device; others want it in main memory, where it is stored.
        groups = [group for group in optimizer.param_groups if group.get("fused") or group.get("capturable")]
        on_device = {id(parameter) for group in groups for parameter in group["params"]}
        for kind in files.kinds():
            if not kind.startswith(OPTIMIZER):
                continue
            entry = kind.removeprefix(OPTIMIZER)
            for part in parts:
                state = optimizer.state[part.flat]
                if (number := files.number(kind, part.name)) is not None:
                    state[entry] = number.to(part.flat.device) if id(part.flat) in on_device else number
                elif (values := files.read(kind, part.name, part.start, part.count)) is not None:
                    if entry not in state:
                        state[entry] = torch.zeros_like(part.flat, dtype=values.dtype, requires_grad=False)
                    part.of(state[entry]).copy_(values)


def _ema(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    return checkpoint.get("callbacks", {}).get(AVERAGE_KEY)


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}
