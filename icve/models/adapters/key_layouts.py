"""What the keys of an adapter's file say: which layer of the transformer, and which part of its adapter.

Trainers write the same matrices under many names. A key is a prefix of the trainer, the layer (diffusers' name, the
original one, that as ComfyUI or OneTrainer spell it, or either of the first two with underscores for dots), and the
part: the matrix from the inputs (lora_A, lora_down), that to the outputs (lora_B, lora_up), or alpha.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from icve.models.hunyuan_video.key_names import layer_patterns, numbered, original_parts

# What stands before a layer's name: diffusers, ComfyUI, PEFT, and DDP.
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.")
# What torch puts before the name of every module that it compiles, shards or recomputes.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
# Kohya's and musubi's, OneTrainer's, LyCORIS' and HunyuanVideo-I2V's, before a name with underscores for dots.
_FLAT_PREFIX = re.compile(r"lora_(?:unet_|transformer_)?|lycoris_|hunyuan_video_(?:[a-z0-9]+_)?lora_", re.IGNORECASE)
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
# The original names as ComfyUI's own model has them. Not read with underscores for dots: there they are Flux's.
_COMFYUI = (
    ("_attn_qkv.", "_attn.qkv."),
    ("_attn_proj.", "_attn.proj."),
    ("_mod.linear.", "_mod.lin."),
    (".modulation.linear.", ".modulation.lin."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_in.mlp.0.", "_in.in_layer."),
    ("_in.mlp.2.", "_in.out_layer."),
    ("t_embedder.mlp.0.", "t_embedder.in_layer."),
    ("t_embedder.mlp.2.", "t_embedder.out_layer."),
    ("c_embedder.linear_1.", "c_embedder.in_layer."),
    ("c_embedder.linear_2.", "c_embedder.out_layer."),
)

# The same as OneTrainer has them (OMI), which numbers the parts of a stacked layer: `linear1.0` to `linear1.3`.
_OMI = (
    ("mlp.fc1.", "mlp.fc0."),
    ("t_embedder.mlp.0.", "t_embedder.linear_1."),
    ("t_embedder.mlp.2.", "t_embedder.linear_2."),
)


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


def bare_names(layer: str) -> Iterator[str]:
    """A layer's name as it stands in a file, then without one prefix after the other."""
    yield layer
    while prefix := next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), None):
        layer = layer.removeprefix(prefix)
        yield layer


def known_layer(layer: str) -> str:
    """A layer named in a file, as diffusers or the original naming has it.

    Raises:
        KeyError: a layer that no HunyuanVideo transformer has.
    """
    for name in bare_names(layer):
        pattern, number = numbered(name)
        pattern = _SPELLINGS.get(pattern, pattern)
        if pattern in _PATTERNS:
            return pattern.replace("#", number)
    for start in {match.end() for match in [_FLAT_PREFIX.match(layer), re.match("lora_", layer)] if match}:
        for flat, pattern in _FLAT.items():
            if match := flat.fullmatch(layer, start):
                return pattern.replace("#", match[1] if match.groups() else "")
    raise KeyError(layer)


def _respelled(pattern: str, spellings: tuple[tuple[str, str], ...]) -> str:
    pattern += "."
    for original, spelling in spellings:
        pattern = pattern.replace(original, spelling)
    return pattern.removesuffix(".")


def _spellings() -> Iterator[tuple[str, str]]:
    """Other spellings of layers' patterns, and what they are in the original or in diffusers' naming."""
    for layer in layer_patterns("diffusers"):
        original, parts = original_parts(layer)
        yield _respelled(original, _COMFYUI), original
        if len(parts) > 1:
            yield f"{original}.{parts.index(layer)}", layer
        else:
            yield _respelled(original, _OMI), original


_SPELLINGS = dict(_spellings())
_PATTERNS = (*layer_patterns("original"), *layer_patterns("diffusers"))
_FLAT = {
    re.compile(r"(\d+)".join(re.escape(piece.replace(".", "_")) for piece in pattern.split("#"))): pattern
    for pattern in _PATTERNS
}
