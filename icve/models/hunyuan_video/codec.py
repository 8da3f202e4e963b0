"""HunyuanVideo's causal video VAE as a codec: pixels to latents of about unit variance, and back.

Shapes: B batch, C = 16 latent channels, F = 4k+1 frames, T = k+1 latent frames, HxW pixels, h = H/8, w = W/8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models import AutoencoderKLHunyuanVideo
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from icve.models.frozen import Precision, check_folder
from icve.models.frozen_codec import FrozenCodec, FrozenCodecConfig, with_network


class CodecConfig(FrozenCodecConfig):
    tile_size: int | None
    tile_stride: int
    tile_frames: int
    tile_frame_stride: int
    chunk_frames: int


class HunyuanVideoCodec(FrozenCodec, ModelMixin):
    """diffusers' `AutoencoderKLHunyuanVideo`, frozen: `mode()` of the posterior times the scaling factor.

    Args:
        pretrained: folder with the VAE's config.json and safetensors (`vae` of a diffusers HunyuanVideo folder).
        dtype: precision of the weights and of the computation; None is float16 (the release's), float32 on a CPU.
        tile_size: side in pixels of the spatial tiles in which larger videos are encoded and decoded; None: one tile.
        tile_stride: distance in pixels between their beginnings; tiles are blended where they overlap.
        tile_frames: frames of a temporal tile (the first frame comes on top); longer videos are tiled in time.
        tile_frame_stride: distance in frames between their beginnings.
        chunk_frames: at most so many frames of one tile, over the items of a batch, go through the network at once
            (at least one item does): it bounds the memory whatever the batch. One item after another by default.

    Tiling is part of what a latent is: the defaults are the released editor's. diffusers' own would tile every 16
    frames. Weights are read at the first use.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights are not there.
        ValueError: it holds another model or a damaged file, or an argument is out of range.
    """

    config: CodecConfig
    VAE = AutoencoderKLHunyuanVideo
    FIRST_TENSOR = "encoder.conv_in.conv.weight"

    @register_to_config
    def __init__(
        self,
        pretrained: str,
        dtype: Precision | None = None,
        tile_size: int | None = 256,
        tile_stride: int = 192,
        tile_frames: int = 64,
        tile_frame_stride: int = 48,
        chunk_frames: int = 65,
    ):
        super().__init__()
        vae = check_folder(
            pretrained,
            "HunyuanVideoCodec.pretrained",
            ["AutoencoderKLHunyuanVideo"],
            "the folder with the HunyuanVideo VAE's config.json and safetensors, as `vae` of its diffusers release",
        )
        self.begin(dtype, pretrained=pretrained)
        self.latent_channels: int = vae.get("latent_channels", 16)
        self.spatial_factor: int = vae.get("spatial_compression_ratio", 8)
        self.temporal_factor: int = vae.get("temporal_compression_ratio", 4)
        space, time = self.spatial_factor, self.temporal_factor
        for names, sizes, unit in (
            ("tile_size and tile_stride", (tile_size or tile_stride, tile_stride), space),
            ("tile_frames and tile_frame_stride", (tile_frames, tile_frame_stride), time),
        ):
            if sizes[1] <= 0 or sizes[1] > sizes[0] or sizes[0] % unit or sizes[1] % unit:
                raise ValueError(
                    f"{names} of HunyuanVideoCodec must be positive multiples of {unit}, the stride not the larger, "
                    f"got {sizes[0]} and {sizes[1]}."
                )
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames of HunyuanVideoCodec must be at least 1, got {chunk_frames}.")

    @classmethod
    def count_flops(cls, arguments: Mapping[str, Any], video: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Pixels and FLOPs of each tile of a clip of (frames, height, width), counted on the meta device.

        Args:
            arguments: all of the constructor's; the released VAE's configuration is taken where theirs is not there.
            video: what is encoded.
        """
        vae = _tiled(cls.empty_vae(arguments), arguments)
        tiles = _cut(vae, torch.empty(1, 3, *video, device="meta"))
        counts = {}
        for shape in {tile.shape for tile in tiles}:
            with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as flops:
                vae.quant_conv(vae.encoder(torch.empty(shape)))
            counts[shape] = flops.get_total_flops()
        return [(tile[0, 0].numel(), counts[tile.shape]) for tile in tiles]

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """`vae`, tiled as configured."""
        return {"vae": _tiled(super().read(dtype, device)["vae"], self.config)}

    def clips_at_once(self, frames: int) -> int:
        return max(1, self.config.chunk_frames // min(frames, self.config.tile_frames + 1))

    def to_latents(self, pixels: Tensor) -> Tensor:
        mode = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        return mode.float() * self.vae.config.scaling_factor

    def to_pixels(self, latents: Tensor) -> Tensor:
        unscaled = latents.float() / self.vae.config.scaling_factor
        return self.vae.decode(unscaled.to(self.vae.dtype)).sample

    # ---- the same tile by tile, see `icve.models.protocols.TiledCodec` -----------------------------------------------

    def tiles(self, video: Tensor) -> list[Tensor]:
        """What the network takes at once of pixels (n, 3, F, H, W), as `encode` cuts them."""
        self.load()
        return _cut(self.vae, video)

    @torch.no_grad()
    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """A tile (n, 3, f, H, W) in [-1, 1] to (n, 16, t, h, w) float32, as `encode` makes it before it joins them."""
        self.prepare(tiles.device)
        with torch.autocast(tiles.device.type, enabled=False):
            moments = self.vae.quant_conv(self.vae.encoder(tiles.to(self.vae.dtype)))
            return moments[:, : self.latent_channels].float()

    @torch.no_grad()
    def join_tiles(self, video: Tensor, encoded: Sequence[Tensor]) -> Tensor:
        """Latents (n, 16, T, h, w) float32 of pixels from their encoded tiles, blended as `encode` blends them."""
        self.load()
        means = iter(encoded)

        def recall(_: Tensor) -> Tensor:
            mean = next(means).to(self.vae.dtype)
            return torch.cat([mean, mean], 1)  # of which only the first is looked at

        latents = with_network(self.vae, recall).encode(video).latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor


def _cut(vae: Any, video: Tensor) -> list[Tensor]:
    """The tiles that encoding cuts from pixels, views of them, in its order."""
    seen: list[Tensor] = []
    space, time = vae.config.spatial_compression_ratio, vae.config.temporal_compression_ratio

    def remember(tile: Tensor) -> Tensor:
        seen.append(tile)
        _, _, frames, height, width = tile.shape
        channels = 2 * vae.config.latent_channels
        return tile.new_zeros(len(tile), channels, (frames - 1) // time + 1, height // space, width // space)

    with_network(vae, remember).encode(video)
    return seen


def _tiled(vae: Any, config: Mapping[str, Any]) -> Any:
    """The VAE, cutting its tiles as the codec's arguments say."""
    vae.enable_tiling(
        tile_sample_min_height=config["tile_size"],
        tile_sample_min_width=config["tile_size"],
        tile_sample_min_num_frames=config["tile_frames"],
        tile_sample_stride_height=config["tile_stride"],
        tile_sample_stride_width=config["tile_stride"],
        tile_sample_stride_num_frames=config["tile_frame_stride"],
    )
    vae.use_tiling = config["tile_size"] is not None  # of space; time is always tiled
    return vae
