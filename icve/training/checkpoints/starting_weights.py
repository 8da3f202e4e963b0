"""Weights that a stage starts or goes on with, and whether they are those of the configured transformer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from icve.models.families import family_of
from icve.models.family import located
from icve.models.loading import load_transformer
from icve.models.lora import ADAPTED
from icve.models.run_folders import inside_run
from icve.models.state_ranges import has_ranges, saved_shapes
from icve.training.checkpoints.state_dicts import PREFIX, SHAPES


def take_weights(transformer: nn.Module, path: str | Path, as_stored: bool = False) -> str:
    """Set a transformer's weights from what `load_transformer` knows, cast to the dtype of its own.

    A base model's weights, of other names, are taken as the family says (`Family.start_from`). Of a training checkpoint
    it is the average as it was trained, in float32, and not its export.

    Args:
        transformer: may be on the meta device.
        path: where the weights are.
        as_stored: in place of those on the meta device, leave them in their file and its dtype.

    Returns:
        what came from where, as the end of a sentence; "" where the weights are the transformer's own.

    Raises:
        ValueError: they belong to a transformer of another shape.
    """
    replaced = on_meta(transformer)
    state, own = load_transformer(path, mapped=replaced, exact=True).state_dict(), transformer.state_dict()
    added = [name for name in getattr(transformer, "zero_at_first", ()) if name in own and name not in state]
    state |= {name: torch.zeros(own[name].shape) for name in added}
    family = family_of(transformer)
    rule = located(family.start_from) if family and family.start_from and own.keys() != state.keys() else None
    sources = {name: name if rule is None else rule(name) for name in own}
    wanted = {name: source for name, source in sources.items() if source is not None}
    unused = {} if rule is not None else {name: name for name in state if name not in own}
    for name, source in sorted((wanted | unused).items()):
        there, here = (tuple(s[n].shape) if n in s else "absent" for s, n in ((state, source), (own, name)))
        if there != here:
            raise ValueError(
                f"The weights in {path} do not fit the configured transformer: {source} is {there} there and "
                f"{name} {here} here; give model.transformer the checkpoint's settings."
            )
    new = sorted(own.keys() - wanted.keys())
    if new and any(own[name].is_meta for name in new):
        raise ValueError(f"{new[0]} starts from no weights, so that the transformer cannot be on the meta device.")
    taken = {name: state[source] for name, source in wanted.items()}
    if replaced and not as_stored:
        taken = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in taken.items()}
    transformer.load_state_dict(taken | {name: own[name] for name in new}, assign=replaced)
    if rule is None:
        return ""
    copies = len(taken) - len(set(wanted.values()))
    return f"{len(taken)} tensors are taken, {copies} of them as further copies, {len(new)} keep their initial values"


def ranges_for(transformer: nn.Module, path: str | Path) -> Path | None:
    """The checkpoint that a path means, where its ranges are this transformer's weights; None where they are not."""
    folder = inside_run(path, newest=True)
    if not has_ranges(folder) or (folder / ADAPTED).is_file():
        return None
    state, saved = transformer.state_dict(), saved_shapes(folder)
    return folder if {name: list(value.shape) for name, value in state.items()} == saved else None


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
