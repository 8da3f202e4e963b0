"""How pixels become latents and tokens: the one place that knows strides and patches."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LatentGrid:
    """Strides of a codec with a causal first frame, and patches of a transformer.

    Attributes:
        spatial: pixels per latent along height and width.
        temporal: frames per latent frame; the first latent frame is that of the first frame alone.
        patch: latents per token along (time, height, width).
    """

    spatial: int = 8
    temporal: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)

    @property
    def multiple(self) -> int:
        """What height and width in pixels are multiples of."""
        return self.spatial * math.lcm(*self.patch[1:])

    @property
    def lengths(self) -> str:
        """Which numbers of frames there are, in words."""
        return f"{self.temporal}k+1 ({', '.join(str(self.temporal * k + 1) for k in range(3))}, ...)"

    def is_length(self, frames: int) -> bool:
        """Whether clips of so many frames can be encoded."""
        return frames >= 1 and frames % self.temporal == 1 % self.temporal

    def padded(self, frames: int) -> int:
        """The least number of frames that can be encoded and is not below `frames`."""
        return frames + -(frames - 1) % self.temporal

    def latents(self, height: int, width: int, frames: int) -> tuple[int, int, int]:
        """(T, h, w) of a clip in pixels; what is no whole latent counts as one."""
        return 1 + -(-(frames - 1) // self.temporal), -(-height // self.spatial), -(-width // self.spatial)

    def tokens(self, height: int, width: int, frames: int) -> int:
        """Tokens of one clip."""
        latents = self.latents(height, width, frames)
        return math.prod(-(-size // patch) for size, patch in zip(latents, self.patch, strict=True))

    def pixels(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(height, width, frames) in pixels of latents (T, h, w)."""
        return height * self.spatial, width * self.spatial, self.temporal * (frames - 1) + 1

    def check(self, height: int, width: int, frames: int) -> None:
        """Raise ValueError, for "cannot be trained on" and the like to stand before it, unless a clip fits exactly."""
        whole = self.is_length(frames) and self.latents(height, width, frames)[0] % self.patch[0] == 0
        if height % self.multiple or width % self.multiple or not whole:
            raise ValueError(f"height and width must be multiples of {self.multiple}, and frames {self.lengths}.")
