"""Weights that a stage starts or goes on with, and whether they are those of the configured transformer."""

from pathlib import Path
from typing import Any

from torch import nn

from icve.models.loading import load_transformer
from icve.training.checkpoints.state_dicts import PREFIX, SHAPES


def take_weights(transformer: nn.Module, path: str | Path, as_stored: bool = False) -> None:
    """Set a transformer's weights from what `load_transformer` knows, cast to the dtype of its own.

    Args:
        transformer: may be on the meta device.
        path: where the weights are.
        as_stored: in place of those on the meta device, leave them in their file and its dtype.

    Raises:
        ValueError: they belong to a transformer of another shape.
    """
    replaced = on_meta(transformer)
    state, own = load_transformer(path, mapped=replaced).state_dict(), transformer.state_dict()
    for name in sorted(own.keys() | state.keys()):
        there, here = (tuple(s[name].shape) if name in s else "absent" for s in (state, own))
        if there != here:
            raise ValueError(
                f"The weights in {path} do not fit the configured transformer: {name} is {there} there and "
                f"{here} here; give model.transformer the checkpoint's settings."
            )
    if replaced and not as_stored:
        state = {name: state[name].to(tensor.dtype, copy=True) for name, tensor in own.items()}
    transformer.load_state_dict(state, assign=replaced)


def on_meta(transformer: nn.Module) -> bool:
    """Whether it has shapes only."""
    return any(tensor.is_meta for tensor in transformer.state_dict().values())


def trained_shapes(transformer: nn.Module) -> dict[str, list[int]]:
    """Shapes of what is trained, also where processes share it."""
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained.items()}  # ZeRO's own are empty


def check_shapes(checkpoint: dict[str, Any], transformer: nn.Module) -> None:
    """Make sure that a checkpoint trained this transformer: ranges of another's weights would fit as well.

    Raises:
        ValueError: it did not.
    """
    own, saved = trained_shapes(transformer), checkpoint.get(SHAPES)
    if saved is None:  # put back into a state dict
        saved = {key.removeprefix(PREFIX): list(weights.shape) for key, weights in checkpoint["state_dict"].items()}
    for name in sorted(own.keys() | saved.keys()):
        if saved.get(name) != own.get(name):
            there, here = (shapes.get(name, "absent") for shapes in (saved, own))
            raise ValueError(
                f"The checkpoint trained another transformer than the configuration's: {name} is {there} there and "
                f"{here} here; give model.transformer the settings it was trained with."
            )
