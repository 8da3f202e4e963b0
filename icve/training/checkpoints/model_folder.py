"""The editor in a checkpoint: complete, with the averaged weights, and written from the checkpoint's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from icve.editing.pipeline import EditPipeline
from icve.models.checkpoint_files import write_shards
from icve.models.lora import save_lora
from icve.training.checkpoints.state_files import AVERAGE, WEIGHTS, StateFiles

SHARD_BYTES = 5_000_000_000


def write_model_folder(
    pipeline: EditPipeline,
    shapes: Mapping[str, Sequence[int]],
    adapted: Path | None,
    folder: Path,
    files: StateFiles,
) -> None:
    """Write an editor with the averaged weights (the current ones where the run keeps no average).

    The weights come from the files of the training state, a few gigabytes at a time, whoever wrote them.

    Args:
        pipeline: the editor; the weights of its transformer are not read.
        shapes: of the trained parameters, by name.
        adapted: where the weights are that a trained adapter belongs to; then only the adapter is written, and where
            these are. None without an adapter.
        folder: where to.
        files: the training state.
    """
    kind = AVERAGE if files.names(AVERAGE) else WEIGHTS

    def read(names: list[str]) -> dict[str, Tensor]:
        tensors = {}
        for name in names:
            # In the precision that the weights are kept in; an average of bfloat16 weights has more.
            dtype = files.dtype(WEIGHTS, name)
            values = files.read(kind, name, 0, torch.Size(shapes[name]).numel())
            if values is None:
                raise ValueError(f"{files.folder} has no {kind} of {name}.")
            tensors[name] = values.to(dtype).view(*shapes[name])
        return tensors

    transformer = pipeline.transformer
    if adapted is not None:
        pipeline.register_modules(transformer=None)
        save_lora(transformer, folder, adapted, read(list(shapes)))
    else:
        sizes = {
            name: files.dtype(WEIGHTS, name).itemsize * torch.Size(shape).numel() for name, shape in shapes.items()
        }
        pipeline.register_modules(transformer=_stand_in(transformer, sizes, read))
    pipeline.save_pretrained(folder)


def _stand_in(
    transformer: ModelMixin, sizes: dict[str, int], read: Callable[[list[str]], dict[str, Tensor]]
) -> ModelMixin:
    """A model without weights that saves those that `read` gives, of so many bytes each."""
    kind: Any = type(transformer)  # one of diffusers' ConfigMixin as well
    if issubclass(kind, FSDPModule):
        kind = kind.__mro__[kind.__mro__.index(FSDPModule) + 1]  # that it was before it was sharded
    with torch.device("meta"):
        model = kind.from_config(transformer.config)

    def save_pretrained(folder: str | Path, **kwargs: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        model.save_config(folder)
        write_shards(Path(folder), sizes, read, SHARD_BYTES)

    model.save_pretrained = save_pretrained
    return model
