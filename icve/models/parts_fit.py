"""Whether codec, text encoder and transformer belong together, told before anything is encoded."""

from typing import Any

from torch import nn


def check_parts(transformer: Any, codec: nn.Module, text_encoder: nn.Module) -> None:
    """Check what a transformer takes against what the frozen parts give, as far as they say so.

    Args:
        transformer: an `InContextTransformer`, wrapped or not; of others nothing is known.
        codec: its `latent_channels` are the transformer's `in_channels`.
        text_encoder: its `text_width` is the width of the texts that the transformer takes.

    Raises:
        ValueError: they do not belong together.
    """
    channels, given = getattr(getattr(transformer, "config", None), "in_channels", None), _of(codec, "latent_channels")
    if channels is not None and given is not None and channels != given:
        raise ValueError(
            f"The codec makes latents of {given} channels and the transformer takes {channels}: take both from the "
            "weights of one release."
        )
    width = _of(text_encoder, "text_width")
    if width is None or not hasattr(transformer, "blank_text"):
        return
    wanted = transformer.blank_text(1).embeddings.shape[-1]
    if width != wanted:
        raise ValueError(
            f"The text encoder makes embeddings of width {width} and the transformer takes {wanted}: take both from "
            "the weights of one release."
        )


def _of(part: nn.Module, name: str) -> int | None:
    return getattr(part, name, None)
