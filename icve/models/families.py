"""The model families, and who of them something belongs to. Nothing outside their folders names their classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from icve.models.family import Family, located
from icve.models.hunyuan_video.family import FAMILY as HUNYUAN_VIDEO
from icve.models.wan.family import FAMILY as WAN
from icve.models.weightless.family import FAMILY as WEIGHTLESS

if TYPE_CHECKING:  # commands that show their help do not wait for torch
    from torch import Tensor, nn

FAMILIES: list[Family] = [HUNYUAN_VIDEO, WAN, WEIGHTLESS]


def with_transformers() -> list[Family]:
    """Families that have a transformer."""
    return [family for family in FAMILIES if family.transformer is not None]


def family_of_class(path: str) -> Family | None:
    """The family that a class path is a part of; None for classes of others."""
    return next((family for family in FAMILIES if path in family.classes), None)


def family_of(part: nn.Module) -> Family | None:
    """The family of a transformer, codec or text encoder, also where it was compiled or sharded."""
    part = getattr(part, "_orig_mod", part)
    paths = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(part).__mro__]
    return next((family for path in paths if (family := family_of_class(path))), None)


def transformer_class(transformer: nn.Module) -> type[nn.Module]:
    """The class of a transformer as its family has it, or its own where no family has it."""
    family = family_of(transformer)
    return type(transformer) if family is None else family.transformer_class()


def recognised(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Family:
    """The family whose transformer a config.json and tensors (on the meta device) are.

    Raises:
        ValueError: of none.
    """
    for family in with_transformers():
        if family.layouts().recognise(config, tensors):
            return family
    if any("lora" in key.lower() for key in tensors):
        raise ValueError("these weights are a LoRA's, not a transformer's: load the transformer first, then them.")
    names = ", ".join(family.name for family in with_transformers())
    raise ValueError(f"these weights are no transformer of a known family ({names}).")


def arguments_of(kind: type) -> dict[str, Any]:
    """Constructor arguments of a part, with their defaults."""
    signature = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: parameter.default for name, parameter in signature.items() if name != "self"}


def import_parts() -> None:
    """Import every family's classes: diffusers looks for a folder's components among modules that are imported."""
    for family in FAMILIES:
        for path in family.classes:
            located(path)


def export_formats() -> list[str]:
    """What transformers can be written as."""
    return ["diffusers", *(name for family in FAMILIES for name in family.exports)]
