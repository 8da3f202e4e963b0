"""What codecs made of published autoencoders have in common: checks, chunks of a batch, and their channels' weight.

Shapes: B batch, C latent channels, F = r·k + 1 frames for a temporal factor r, T = k + 1 latent frames, HxW pixels, hxw
latent pixels.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from icve.models.frozen import FrozenComponent, FrozenConfig
from icve.models.protocols import Codec
from icve.models.weight_files import fill, model_files, read_json


class FrozenCodecConfig(FrozenConfig):
    pretrained: str


class FrozenCodec(FrozenComponent):
    """Pixels to latents of about unit variance, and back, by an autoencoder `vae` that subclasses read.

    Subclasses set the three sizes in their constructor.

    Attributes:
        VAE, FIRST_TENSOR: diffusers' class of the autoencoder, and one of its tensors.
        latent_channels, spatial_factor, temporal_factor: sizes of the latents.
    """

    config: FrozenCodecConfig
    FOLDERS = ("pretrained",)
    VAE: ClassVar[Any]
    FIRST_TENSOR: ClassVar[str]
    latent_channels: int
    spatial_factor: int
    temporal_factor: int
    vae: Any
    _channel_rms: Tensor | None = None

    @classmethod
    def released(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the release that these arguments want has otherwise than diffusers' defaults."""
        return {}

    @classmethod
    def empty_vae(cls, arguments: Mapping[str, Any]) -> Any:
        """The autoencoder that these arguments name, on the meta device; the release's where its folder is missing."""
        file = Path(arguments["pretrained"]).expanduser() / "config.json"
        with torch.device("meta"):
            return cls.VAE.from_config(read_json(file) if file.is_file() else cls.released(arguments))

    @classmethod
    def count_parameters(cls, arguments: Mapping[str, Any]) -> int:
        """Of the weights that these arguments name, from their configuration; the release's where it is not there."""
        return sum(parameter.numel() for parameter in cls.empty_vae(arguments).parameters())

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """`vae`."""
        folder = Path(self.config.pretrained)
        with init_empty_weights(include_buffers=False):
            vae = self.VAE.from_config(read_json(folder / "config.json"))
        fill(vae, folder, self.FIRST_TENSOR, dtype, device)
        return {"vae": vae}

    def files(self, name: str) -> list[Path]:
        return model_files(Path(self.config.pretrained))

    @abstractmethod
    def to_latents(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) float32 of pixels that are on the device of `vae`, which is loaded."""

    @abstractmethod
    def to_pixels(self, latents: Tensor) -> Tensor:
        """Inverse of `to_latents`."""

    @abstractmethod
    def clips_at_once(self, frames: int) -> int:
        """How many clips of so many frames go through the network at once."""

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Pixels to latents.

        Args:
            video: (B, 3, F, H, W) floating point in [-1, 1], H and W multiples of the spatial factor, on the codec's
                device.

        Returns:
            (B, C, T, h, w) in the dtype of `video`, about unit variance.

        Raises:
            ValueError: for another shape or an integer dtype.
        """
        name = type(self).__name__
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(
                f"{name}.encode needs a floating point video (B, 3, F, H, W) in [-1, 1], "
                f"got {video.dtype} {tuple(video.shape)}."
            )
        frames, height, width = video.shape[2:]
        space, time = self.spatial_factor, self.temporal_factor
        if frames % time != 1 or height % space or width % space or not height or not width:
            raise ValueError(
                f"{name}.encode needs {time}k+1 frames and a height and width that are multiples of {space}, "
                f"got {frames} frames of {height}x{width}."
            )
        return self.in_chunks(lambda chunk: self.to_latents(chunk).to(video.dtype), video, frames)

    @apply_forward_hook
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels.

        Args:
            latents: (B, C, T, h, w) floating point, on the codec's device.

        Returns:
            (B, 3, F, H, W) in the dtype of `latents`.

        Raises:
            ValueError: for another number of dimensions or channels.
        """
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels or not latents.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.decode needs floating point latents (B, {self.latent_channels}, T, h, w), "
                f"got {latents.dtype} {tuple(latents.shape)}."
            )
        frames = self.temporal_factor * (latents.shape[2] - 1) + 1
        return self.in_chunks(lambda chunk: self.to_pixels(chunk).to(latents.dtype), latents, frames)

    def in_chunks(self, network: Callable[[Tensor], Tensor], batch: Tensor, frames: int) -> Tensor:
        """The network's output of a batch of clips of so many frames, as many clips at a time as are allowed."""
        self.prepare(batch.device)
        with torch.autocast(batch.device.type, enabled=False):
            return torch.cat([network(chunk) for chunk in batch.split(self.clips_at_once(frames))])

    @property
    def channel_rms(self) -> Tensor:
        """(C,) float32: how much a unit of each latent channel moves the pixels, measured once on the decoder."""
        if self._channel_rms is None:
            self._channel_rms = measure_channel_rms(self, self.execution_device())
        return self._channel_rms


def measure_channel_rms(codec: Codec, device: torch.device, step: float = 0.1) -> Tensor:
    """Root of the summed squares by which one latent's unit change moves the pixels, per channel.

    Measured around white noise of unit variance (always the same), in a latent frame that covers several video
    frames: signs of size `step` at all its positions, whose effects add up like independent ones.

    Args:
        codec: any with `latent_channels` and `decode`.
        device: where it decodes.
        step: small, so that the decoder is nearly linear in it.

    Returns:
        (C,) float32.
    """
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, codec.latent_channels, 2, 8, 8, generator=generator).to(device)
    signs = (torch.randint(0, 2, (8, 8), generator=generator) * 2.0 - 1.0).to(device)
    still = codec.decode(z)
    rms = []
    for channel in range(codec.latent_channels):
        moved = z.clone()
        moved[0, channel, 1] += step * signs
        rms.append(((codec.decode(moved) - still) / step).square().sum().div(signs.numel()).sqrt())
    return torch.stack(rms)


class _Network(nn.Module):
    """A function in the place of a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)


def with_network(vae: Any, network: Callable[..., Tensor]) -> Any:
    """An autoencoder that cuts and blends as another does, but makes a tile's moments by a function of its pixels."""
    twin = copy.copy(vae)  # shares everything but the table of its parts
    twin._modules = {**vae._modules, "encoder": _Network(network), "quant_conv": nn.Identity()}
    return twin
