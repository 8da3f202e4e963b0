"""Wan's causal video VAE as a codec: 2.1's (16 channels, 4x8x8) and 2.2's (48 channels, 4x16x16).

Shapes: B batch, C latent channels, F = 4k+1 frames, T = k+1 latent frames, HxW pixels, h = H/8 and w = W/8 (2.2: /16).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from icve.models.frozen import Precision, check_folder
from icve.models.frozen_codec import FrozenCodec, FrozenCodecConfig, with_network

_FRAMES = 4  # after the first, so many frames at a time go through the network
# What 2.2's network has otherwise than diffusers' defaults, which are 2.1's; and its sizes.
RESIDUAL: dict[str, Any] = {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
RELEASED_22 = RESIDUAL | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12}


class CodecConfig(FrozenCodecConfig):
    tile_size: int | None
    tile_stride: int
    clips: int


class WanCodec(FrozenCodec, ModelMixin):
    """diffusers' `AutoencoderKLWan`, frozen: (mode of the posterior - mean) / std, per channel.

    The network is causal and remembers what it needs: clips go through it four frames at a time, whatever their length.

    Args:
        pretrained: folder with the VAE's config.json and safetensors (`vae` of a diffusers Wan folder).
        dtype: precision of the weights and of the computation; None is float32, as it was published.
        tile_size: side in pixels of the spatial tiles in which larger videos are encoded and decoded; None, as in Wan's
            own code: one tile.
        tile_stride: distance in pixels between their beginnings; tiles are blended where they overlap.
        clips: of a batch, so many go through the network at once.

    Weights are read at the first use.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights are not there.
        ValueError: it holds another model or a damaged file, or an argument is out of range.
    """

    config: CodecConfig
    VAE = AutoencoderKLWan
    FIRST_TENSOR = "encoder.conv_in.weight"
    PRECISION = "float32"
    _kept: tuple[Tensor, Tensor] | None = None  # mean and standard deviation, on the device they were wanted on

    @register_to_config
    def __init__(
        self,
        pretrained: str,
        dtype: Precision | None = None,
        tile_size: int | None = None,
        tile_stride: int = 192,
        clips: int = 1,
    ):
        super().__init__()
        vae = check_folder(
            pretrained,
            "WanCodec.pretrained",
            ["AutoencoderKLWan"],
            "the folder with the Wan VAE's config.json and safetensors, as `vae` of its diffusers release",
        )
        self.begin(dtype, pretrained=pretrained)
        self.latent_channels: int = vae.get("z_dim", 16)
        self.spatial_factor: int = vae.get("scale_factor_spatial") or 8
        self.temporal_factor: int = vae.get("scale_factor_temporal") or 4
        # Of whole latents; in the VAE's own units, which cut patches of pixels first.
        unit = self.spatial_factor * (vae.get("patch_size") or 1)
        if tile_size is not None and (not 0 < tile_stride <= tile_size or tile_size % unit or tile_stride % unit):
            raise ValueError(
                f"tile_size and tile_stride of WanCodec must be positive multiples of {unit}, the stride not the "
                f"larger, got {tile_size} and {tile_stride}."
            )
        if clips < 1:
            raise ValueError(f"clips of WanCodec must be at least 1, got {clips}.")

    @classmethod
    def released(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return RELEASED_22 if arguments.get("latent_channels") == RELEASED_22["z_dim"] else {}

    @classmethod
    def count_flops(cls, arguments: Mapping[str, Any], video: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Pixels and FLOPs of each tile of a clip of (frames, height, width), counted on the meta device.

        Args:
            arguments: all of the constructor's, and `latent_channels` that are wanted: where the weights are not there,
                the release that has so many is taken.
            video: what is encoded.
        """
        vae = cls.empty_vae(arguments)
        tiles = _cut(torch.empty(1, 3, *video, device="meta"), arguments["tile_size"], arguments["tile_stride"])
        chunks, counted = (video[0] - 1) // _FRAMES, {}
        for size in {tile.shape[3:] for tile in tiles}:
            first, second, third = (_flops(vae, 1 + _FRAMES * more, size) for more in range(3))
            # Every chunk after the second takes what that takes: a film is not counted frame by frame.
            counted[size] = second + (chunks - 1) * (third - second) if chunks else first
        return [(tile[0, 0].numel(), counted[tile.shape[3:]]) for tile in tiles]

    def clips_at_once(self, frames: int) -> int:
        return self.config.clips

    def to_latents(self, pixels: Tensor) -> Tensor:
        vae = self._tiled(encodes=True)
        return self._normalised(vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float())

    def to_pixels(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        vae = self._tiled(encodes=False)
        return vae.decode((latents.float() * std + mean).to(vae.dtype)).sample

    # ---- the same tile by tile, see `icve.models.protocols.TiledCodec` -----------------------------------------------

    def tiles(self, video: Tensor) -> list[Tensor]:
        """What the network takes at once of pixels (n, 3, F, H, W), as `encode` cuts them."""
        return _cut(video, self.config.tile_size, self.config.tile_stride)

    @torch.no_grad()
    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """A tile (n, 3, f, H, W) in [-1, 1] to (n, C, t, h, w) float32, as `encode` makes it before it joins them."""
        self.prepare(tiles.device)
        self.vae.use_tiling = False
        with torch.autocast(tiles.device.type, enabled=False):
            return self.vae.encode(tiles.to(self.vae.dtype)).latent_dist.mode().float()

    @torch.no_grad()
    def join_tiles(self, video: Tensor, encoded: Sequence[Tensor]) -> Tensor:
        """Latents (n, C, T, h, w) float32 of pixels from their encoded tiles, blended as `encode` blends them."""
        self.load()
        vae = self._tiled(encodes=True)
        frames = (frame for tile in encoded for frame in tile.to(vae.dtype).split(1, dim=2))

        def recall(chunk: Tensor, **_: Any) -> Tensor:
            mean = next(frames)
            return torch.cat([mean, mean], 1)  # of which only the first is looked at

        return self._normalised(with_network(vae, recall).encode(video).latent_dist.mode().float())

    def _tiled(self, encodes: bool) -> Any:
        size, stride = self.config.tile_size, self.config.tile_stride
        self.vae.use_tiling = size is not None
        if size is not None:
            # diffusers compares its tiles with patches when it encodes, and with pixels when it decodes.
            patch = (self.vae.config.patch_size or 1) if encodes else 1
            self.vae.enable_tiling(size // patch, size // patch, stride // patch, stride // patch)
        return self.vae

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (C, 1, 1, 1) each."""
        if self._kept is None or self._kept[0].device != device:
            config = self.vae.config
            mean, std = (torch.tensor(list(of), device="cpu") for of in (config.latents_mean, config.latents_std))
            self._kept = mean.view(-1, 1, 1, 1).to(device), std.view(-1, 1, 1, 1).to(device)
        return self._kept

    def _normalised(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return (latents - mean) / std


def _cut(video: Tensor, size: int | None, stride: int) -> list[Tensor]:
    """Spatial tiles of pixels (n, 3, F, H, W), views of them, row by row; one where they are no larger."""
    height, width = video.shape[3:]
    if size is None or (height <= size and width <= size):
        return [video]
    return [
        video[..., top : top + size, left : left + size]
        for top in range(0, height, stride)
        for left in range(0, width, stride)
    ]


def _flops(vae: Any, frames: int, size: torch.Size) -> int:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as flops:
        vae.encode(torch.empty(1, 3, frames, *size))
    return flops.get_total_flops()
