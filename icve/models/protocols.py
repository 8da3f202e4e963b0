"""What the parts of an editor have in common, whatever model is behind them, and where diffusers' types fall short."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from icve.data.text_condition import TextCondition


class Codec(Protocol):
    """Between pixels (B, 3, F, H, W) in [-1, 1] and latents (B, C, T, h, w)."""

    latent_channels: int
    spatial_factor: int
    temporal_factor: int

    @property
    def device(self) -> torch.device: ...

    @property
    def channel_rms(self) -> Tensor: ...

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def to(self, device: torch.device, /) -> Self: ...


class TiledCodec(Codec, Protocol):
    """A codec that encodes a clip in tiles of its own, which processes can share out: `encode` is what these make."""

    def clips_at_once(self, frames: int) -> int:
        """How many clips of so many frames `encode` gives its network at once, tile by tile."""
        ...

    def tiles(self, video: Tensor) -> list[Tensor]:
        """Views of the pixels (n, 3, F, H, W), of any dtype: what its network takes at once, 4k+1 frames each."""
        ...

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """A tile (n, 3, f, H, W) of n clips in [-1, 1] to (n, C, t, h, w) float32."""
        ...

    def join_tiles(self, video: Tensor, encoded: Sequence[Tensor]) -> Tensor:
        """The latents (n, C, T, h, w) float32 of pixels whose `tiles` are encoded, (n, C, t, h, w) each."""
        ...


class TextEncoder(Protocol):
    """From texts to what a transformer is told of them."""

    def encode(self, texts: list[str]) -> TextCondition: ...


class ConfiguredModel(ModelMixin, ConfigMixin):
    """A model with a configuration. Subclasses annotate `config` with a `FrozenDict` that lists its attributes."""

    config_name: str  # type: ignore[assignment]  # as ModelMixin has it; ConfigMixin's is None, to be replaced

    if TYPE_CHECKING:
        # A decorator in diffusers makes a plain function of the method, as mypy sees it.
        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]
