"""A codec without weights: a fixed orthonormal 3-D DCT that keeps 16 of the 768 coefficients of a 4x8x8 colour block.

Shapes: B batch, C latent channels, F = 4k+1 frames, T = k+1 latent frames, HxW pixels, h = H/8, w = W/8,
P = 3*4*8*8 numbers of a block, R = 3*4*Y*X after Y and X frequencies along y and x are kept of it.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from icve.models.protocols import ConfiguredModel

# Orthonormal opponent colours: luma (R+G+B)/sqrt(3), orange-blue (R-B)/sqrt(2), magenta-green (R-2G+B)/sqrt(6).
OPPONENT_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))

# (colour, t, y, x) frequency and scale of each latent channel; DCTCodec's docstring says how they were measured.
DEFAULT_CHANNELS = (
    ((0, 0, 0, 0), 11.7),
    ((0, 0, 0, 1), 2.46),
    ((0, 0, 1, 0), 2.39),
    ((0, 0, 1, 1), 1.3),
    ((0, 0, 0, 2), 1.22),
    ((0, 0, 2, 0), 1.19),
    ((0, 0, 1, 2), 0.78),
    ((0, 0, 2, 1), 0.73),
    ((0, 0, 3, 0), 0.64),
    ((1, 0, 0, 0), 5.74),
    ((1, 0, 0, 1), 1.18),
    ((1, 0, 1, 0), 1.14),
    ((2, 0, 0, 0), 3.23),
    ((2, 0, 0, 1), 0.85),
    ((2, 0, 1, 0), 0.81),
    ((0, 1, 0, 0), 1.28),
)


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, (size, size) float64, row = frequency."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def block_basis(coefficients: Sequence[Sequence[int]]) -> Tensor:
    """The rows (colour, t, y, x) of the orthonormal transform of a 3x4x8x8 block: (len(coefficients), 768) float64."""
    colours = torch.tensor(OPPONENT_COLOURS, dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    time, space = dct_matrix(4), dct_matrix(8)
    rows = [
        torch.einsum("c,t,y,x->ctyx", colours[c], time[t], space[y], space[x]).flatten() for c, t, y, x in coefficients
    ]
    return torch.stack(rows)


class DCTConfig(FrozenDict):
    coefficients: Sequence[Sequence[int]]
    scales: Sequence[float]


class DCTCodec(ConfiguredModel, ModelMixin):
    """Fixed 3-D DCT codec: 8x8 pixels x 4 frames x 3 colours (768 numbers) to 16, with no trainable parameter.

    Blocks of 4 frames follow a first frame that is encoded alone, as if shown four times, so that latent frame 0
    depends on frame 0 only and its temporal channels are exactly zero. `decode` is the least-squares inverse, so that
    `decode(encode(x))` is the orthogonal projection of x onto what the channels can hold.

    Args:
        coefficients: (colour, t, y, x) frequencies of the latent channels, colour in 0..2, t in 0..3, y and x in 0..7.
        scales: per channel; a latent is coefficient / scale, which gives it about unit variance.

    The defaults were measured with half the weight on targets of the synthetic world (64x64, 9 frames) and a quarter
    each on real clips at 64x64 (every third frame) and at 240x384. The coefficients maximise the mean PSNR among the
    most energetic ones (no exchange of one coefficient helps): 25.9 dB on the synthetic targets, 24.3 and 27.7 dB on
    the real clips. A scale is the root mean square of its coefficient (latent frame 0 left out for temporal ones).
    No mean is subtracted: the largest, of the orange-blue average, is half a standard deviation.
    """

    config: DCTConfig
    latent_channels = 16
    spatial_factor = 8
    temporal_factor = 4

    @register_to_config
    def __init__(
        self,
        coefficients: Sequence[Sequence[int]] = tuple(channel[0] for channel in DEFAULT_CHANNELS),
        scales: Sequence[float] = tuple(channel[1] for channel in DEFAULT_CHANNELS),
    ):
        super().__init__()
        rows = [tuple(row) for row in coefficients]
        if len(set(rows)) != len(rows) or len(rows) != len(scales):
            raise ValueError("DCTCodec needs distinct coefficients and exactly one scale for each of them.")
        if any(len(row) != 4 or any(not 0 <= i < n for i, n in zip(row, (3, 4, 8, 8), strict=True)) for row in rows):
            raise ValueError("A DCT coefficient is (colour, t, y, x) with colour in 0..2, t in 0..3, y and x in 0..7.")
        if min(scales) <= 0:
            raise ValueError("Every scale must be positive.")
        self.latent_channels = len(rows)
        self._register_constants(torch.device("cpu"))
        # diffusers does not load a folder without a weights file, and writes none for an empty state dict.
        self.register_buffer("anchor", torch.zeros(1))

    def _register_constants(self, device: torch.device) -> None:
        coefficients = self.config.coefficients
        basis = block_basis(coefficients)
        # Buffers rather than parameters, and not persistent: the configuration determines them completely.
        self.register_buffer("basis_CP", basis.float().to(device), persistent=False)  # MPS has no float64
        # For encoding, factors: few frequencies of y and x are kept, so what comes after them is small.
        ys, xs = (sorted({row[axis] for row in coefficients}) for axis in (2, 3))
        rest = basis.unflatten(1, (3, 4, 8, 8)) @ dct_matrix(8)[xs].T
        rest = (dct_matrix(8)[ys] @ rest).flatten(1)
        for name, factor in (("basis_Y8", dct_matrix(8)[ys]), ("basis_X8", dct_matrix(8)[xs]), ("basis_CR", rest)):
            self.register_buffer(name, factor.float().to(device), persistent=False)
        scale = torch.tensor(list(self.config.scales), dtype=torch.float32, device=device)
        self.register_buffer("scale_C", scale, persistent=False)

    @property
    def channel_rms(self) -> Tensor:
        """(C,) how much a unit of each latent channel moves the pixels (root of the summed squares)."""
        return self.scale_C

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        # A cast of the whole pipeline to half precision must not round the basis: only the device is followed.
        self._register_constants(self.basis_CP.device)
        return self

    @apply_forward_hook  # so that offloading moves the module for this call too
    def encode(self, video: Tensor) -> Tensor:
        """Pixels to latents.

        Args:
            video: (B, 3, F, H, W) floating point in [-1, 1], F = 4k+1, H and W multiples of 8.

        Returns:
            (B, 16, k+1, H/8, W/8) in the dtype of `video` (computed in float32), about unit variance per channel.

        Raises:
            ValueError: for another shape or an integer dtype.
        """
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(
                f"DCTCodec.encode needs a floating point video (B, 3, F, H, W) in [-1, 1], "
                f"got {video.dtype} {tuple(video.shape)}."
            )
        batch, _, frames, height, width = video.shape
        if frames % 4 != 1 or height % 8 or width % 8 or not height or not width:
            raise ValueError(
                f"DCTCodec.encode needs 4k+1 frames and a height and width that are multiples of 8, "
                f"got {frames} frames of {height}x{width}."
            )
        T, h, w = (frames + 3) // 4, height // 8, width // 8
        with torch.autocast(video.device.type, enabled=False):
            x = video.float().reshape(-1, 8) @ self.basis_X8.T
            x = self.basis_Y8 @ x.reshape(batch * 3 * frames * h, 8, -1)
            x = x.reshape(batch, 3, frames, h, len(self.basis_Y8), w, len(self.basis_X8))
            x = torch.cat([x[:, :, :1].expand(-1, -1, 4, -1, -1, -1, -1), x[:, :, 1:]], dim=2)
            x_BThwR = x.unflatten(2, (T, 4)).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, T, h, w, -1)
            z_BThwC = x_BThwR @ self.basis_CR.T / self.scale_C
        return z_BThwC.permute(0, 4, 1, 2, 3).contiguous().to(video.dtype)

    @apply_forward_hook  # so that offloading moves the module for this call too
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels: the least-squares inverse of `encode`, linear, hence not clamped to [-1, 1].

        Args:
            latents: (B, 16, T, h, w) floating point. Temporal channels of latent frame 0 have no effect.

        Returns:
            (B, 3, 4(T-1)+1, 8h, 8w) in the dtype of `latents` (computed in float32).

        Raises:
            ValueError: for another number of dimensions or channels.
        """
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels or not latents.is_floating_point():
            raise ValueError(
                f"DCTCodec.decode needs floating point latents (B, {self.latent_channels}, T, h, w), "
                f"got {latents.dtype} {tuple(latents.shape)}."
            )
        batch, _, T, h, w = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            z_BThwC = latents.float().permute(0, 2, 3, 4, 1) * self.scale_C
            x = (z_BThwC @ self.basis_CP).reshape(batch, T, h, w, 3, 4, 8, 8)
            x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 3, 4 * T, 8 * h, 8 * w)
            # Least squares for a frame seen four times is the mean of the four reconstructions.
            x = torch.cat([x[:, :, :4].mean(dim=2, keepdim=True), x[:, :, 4:]], dim=2)
        return x.to(latents.dtype)
