"""What the keys of an adapter's file say: which layer of the transformer, and which part of its adapter.

Trainers write the same matrices under many names. A key is a prefix of the trainer, the layer (diffusers' name, the
original one, that as ComfyUI or OneTrainer spell it, or either of the first two with underscores for dots), and the
part: the matrix from the inputs (lora_A, lora_down), that to the outputs (lora_B, lora_up), or alpha.
"""

import contextlib
import re
from typing import Literal, NamedTuple

from icve.models.families import with_transformers
from icve.models.family import Family

# What torch puts before the name of every module that it compiles, shards or recomputes.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?(?:text_encoders?(?:_\d)?|text_model|te\d?|clip(?:_[lg])?|llama|llm|llava|t5xxl)\."
    r"|lora_(?:te\d?|text_encoder(?:_?\d)?|llama|clip_[lg])_"
    r"|bundle_emb\."  # OneTrainer's, of words that an encoder was trained with
)
_PART = re.compile(
    r"(?P<layer>.+)\.(?:(?P<down>lora_A|lora_down|lora(?:_linear_layer)?\.down)|lora_B|lora_up"
    r"|lora(?:_linear_layer)?\.up)"
    r"(?:\.(?!(?:weight|bias)(?:\.|$))[^.]+)?(?:\.weight)?"  # between them may stand PEFT's adapter name
)
_ALPHA = re.compile(r"(?P<layer>.+)\.(?:lora_)?alpha")
_OTHER_KINDS = {
    "DoRA": re.compile(r".+\.(?:dora_scale|lora_magnitude_vector|magnitude)(?:\.|$)"),
    "LoHa": re.compile(r".+\.hada_"),
    "LoKr": re.compile(r".+\.lokr_"),
    "OFT": re.compile(r".+\.b?oft_"),
    "a LoRA with a matrix between its two": re.compile(r".+\.lora_mid(?:\.|$)"),
    "a LoRA with a bias": re.compile(r".+\.lora_(?:[AB]|up|down)(?:\.\w+)?\.bias$"),
    "an adapter that stores a weight's whole change": re.compile(r".+\.(?:diff|diff_b|set_weight)$"),
}


class Key(NamedTuple):
    """What a key says: of which layer (as the file names it) it is which part; text encoders' layers are not named."""

    part: Literal["down", "up", "alpha", "text encoder", "unknown"]
    layer: str = ""


def parse(key: str) -> Key:
    """Read one key of a file.

    Raises:
        ValueError: the key belongs to another kind of adapter than LoRA; the text is the kind's name.
    """
    if _TEXT_ENCODER.match(key):
        return Key("text encoder")
    for kind, pattern in _OTHER_KINDS.items():
        if pattern.match(key):
            raise ValueError(kind)
    if match := _ALPHA.fullmatch(key):
        return Key("alpha", _WRAPPERS.sub("", match["layer"]))
    if match := _PART.fullmatch(key):
        return Key("down" if match["down"] else "up", _WRAPPERS.sub("", match["layer"]))
    return Key("unknown")


def known_layer(layer: str) -> tuple[Family, str]:
    """The family that a layer named in a file belongs to, and its name as the family's layouts have it.

    Raises:
        KeyError: a layer that no family's transformer has.
    """
    for family in with_transformers():
        with contextlib.suppress(KeyError):
            return family, family.adapter_names().known_layer(layer)
    raise KeyError(layer)
