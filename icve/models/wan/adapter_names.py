"""How trainers name the layers of Wan's transformer in adapters; see `icve.models.family.AdapterNames`."""

import re

from torch import Tensor

from icve.models.layer_prefixes import bare_names
from icve.models.wan.key_names import diffusers_layer, layer_patterns, numbered, original_layer

# Kohya's and musubi's, and LyCORIS', before a name with underscores for dots.
_FLAT_PREFIX = re.compile(r"lora_(?:unet_|transformer_)?|lycoris_", re.IGNORECASE)
_PATTERNS = frozenset(pattern for pair in layer_patterns() for pattern in pair)
_FLAT = {
    re.compile(r"(\d+)".join(re.escape(piece.replace(".", "_")) for piece in pattern.split("#"))): pattern
    for pattern in sorted(_PATTERNS)
}


def known_layer(layer: str) -> str:
    """A layer named in a file, as diffusers or the original naming has it.

    Raises:
        KeyError: a layer that no Wan transformer has.
    """
    for name in bare_names(layer):
        if numbered(name)[0] in _PATTERNS:
            return name
    if start := _FLAT_PREFIX.match(layer):
        for flat, pattern in _FLAT.items():
            if match := flat.fullmatch(layer, start.end()):
                return pattern.replace("#", match[1] if match.groups() else "")
    raise KeyError(layer)


def split(layer: str, rows: Tensor, width: int) -> dict[str, Tensor]:
    """diffusers' layer of a known one, with its rows; Wan stacks none."""
    try:
        return {diffusers_layer(layer): rows}
    except KeyError:
        return {layer: rows}


def stacked(layer: str) -> tuple[str, list[str]]:
    """Original name of one of diffusers' layers, and that layer. Raises KeyError where it has none."""
    return original_layer(layer), [layer]


def original_rows(original: str, rows: Tensor) -> Tensor:
    """Rows in the order of an original layer, which is diffusers'."""
    return rows
