"""The one way in which training, validation, previews and sampling ask a transformer for its prediction."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from icve.data.text_condition import TextCondition
from icve.models.protocols import ConfiguredModel

# By name, (B, C, T, h, w) each: {"video"} for ICVE. As context: "source"; "reference" (B, C, 1, h, w), and
# "referenced" where not all samples have one, bool (B,) on the host; "mask" (B, 1, T, h, w), 1 in the region to change,
# -1 outside it, and all 0 where a sample has none.
Latents = Mapping[str, Tensor]


class InContextTransformer(ConfiguredModel, ModelMixin, PeftAdapterMixin, CacheMixin):
    """What every family's transformer is: a model of diffusers' that takes adapters and caches, asked by `Denoiser`.

    Attributes:
        patch: latents per token along (time, height, width).
        config: its constructor's arguments; `in_channels`, `num_attention_heads` and `attention_head_dim` among them.
        latents, context: names of the noised and of the clean latents that it is trained with, of one size: for
            counting.
        takes_masks: whether the context may have a "mask" of the region to change.
        zero_at_first: names of parameters that weights made without them are completed with, as zeros.
    """

    latents: ClassVar[tuple[str, ...]] = ("video",)
    context: ClassVar[tuple[str, ...]] = ("source",)
    config: Any
    patch: tuple[int, int, int]
    gradient_checkpointing: bool
    mask_embedder: nn.Module | None
    takes_masks: bool = False
    zero_at_first: ClassVar[tuple[str, ...]] = ()

    def arguments(
        self, x: Latents, sigma: Tensor, text: TextCondition, context: Latents, guidance: float
    ) -> dict[str, Any]:
        """The arguments of the forward pass; see `Denoiser.denoise`. Tensors have the transformer's dtype already."""
        raise NotImplementedError

    def named(self, output: Any) -> dict[str, Tensor]:
        """What the forward pass returns, by the names of `x`."""
        raise NotImplementedError

    def blank_text(self, length: int) -> TextCondition:
        """One text of so many tokens, all zero, of the shapes that it takes: for counting."""
        raise NotImplementedError

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Tokens along (t, h, w) of latents (B, C, T, h, w)."""
        if any(size % patch for size, patch in zip(latents.shape[2:], self.patch, strict=True)):
            raise ValueError(f"Latents {tuple(latents.shape)} cannot be cut into patches of {self.patch} (t, h, w).")
        frames, height, width = (size // patch for size, patch in zip(latents.shape[2:], self.patch, strict=True))
        return frames, height, width

    def mask_tokens(self, target: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What a mask adds to the target's and the source's tokens, as the embedding gives them.

        Raises:
            ValueError: the model takes none, or there is no source of the target's size.
        """
        if self.mask_embedder is None:
            if mask is not None:
                raise ValueError("This transformer takes no mask: it was built without `masks`.")
            return None
        if mask is not None and (source is None or source.shape != target.shape):
            raise ValueError("A mask needs a source of the target's size.")
        # Also without a mask, so that its weights are a part of every step.
        return self.mask_embedder(torch.zeros_like(target[:, :1]) if mask is None else mask)


class Denoiser:
    """Asks a transformer of any family. It holds no state: make one where one is needed.

    Args:
        transformer: also one that is wrapped (compiled, sharded): it is called as a module.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = cast(InContextTransformer, transformer)
        self.dtype: torch.dtype = getattr(transformer, "dtype", None) or next(transformer.parameters()).dtype

    def denoise(
        self, x: Latents, sigma: Tensor, text: TextCondition, context: Latents, guidance: float = 1000.0
    ) -> dict[str, Tensor]:
        """The transformer's prediction.

        Args:
            x: noised latents by name, (B, C, T, h, w) each.
            sigma: (B,) noise levels in [0, 1], float32.
            text: of B texts.
            context: clean latents by name, with the same B.
            guidance: value that guidance-distilled models embed (1000 · scale); others do not look at it.

        Returns:
            By the names of `x`, of their shapes, in the transformer's dtype.
        """
        device = sigma.device
        inputs = [on_device(latents, device, self.dtype) for latents in (x, context)]
        text = text.to(device, self.dtype)
        arguments = self.transformer.arguments(inputs[0], sigma, text, inputs[1], guidance)
        return self.transformer.named(self.transformer(**arguments))

    def branch(self, name: str) -> contextlib.AbstractContextManager[None]:
        """While it lasts, a step cache of diffusers (`enable_cache`) keeps what belongs to this branch of guidance."""
        context = getattr(self.transformer, "cache_context", None)
        return contextlib.nullcontext() if context is None else context(name)

    def forget(self) -> None:
        """Empty the step cache: an edit never sees the one before it."""
        if (reset := getattr(self.transformer, "_reset_stateful_cache", None)) is not None:
            reset()

    def tokens(self, x: Latents, text: TextCondition, context: Latents) -> int:
        """How many tokens the transformer attends to in a batch, padding left out."""
        tokens = [value for name, value in (*x.items(), *context.items()) if name not in ("mask", "referenced")]
        latents = sum(value.numel() // value.shape[1] for value in tokens)
        if "referenced" in context:
            latents -= int((~context["referenced"]).sum()) * math.prod(context["reference"].shape[2:])
        return latents // math.prod(self.transformer.patch) + int(text.mask.sum())


def on_device(latents: Latents, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Latents with a device and dtype; what says which samples have something (bool) stays on the host."""
    return {name: v if v.dtype == torch.bool else v.to(device, dtype) for name, v in latents.items()}
