"""What an editor makes of source videos: the edited video and, of editors that know them, its alpha and layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class EditResult:
    """B edited videos.

    ``result.video`` is all that most callers need. Frames with alpha for
    :class:`icve.data.media.video_writer.VideoWriter` are ``torch.cat([result.video, result.alpha], 1)`` of uint8,
    an item at a time, as (F, H, W, 4).

    Attributes:
        video: (B, 3, F, H, W), float32 in [-1, 1] or uint8; or latents (B, C, T, h, w) float32, where asked for.
        alpha: opacity (B, 1, F, H, W), float32 in [0, 1] or uint8 in 0..255 as ``video`` is; None where the editor
            makes none. The colours of ``video`` are not multiplied by it.
        layers: further videos by name, each (B, C, F, H, W) of the type and range of ``video``; None where the editor
            makes none.

    Raises:
        ValueError: alpha or a layer is not of the video's frames and size.
    """

    video: Tensor
    alpha: Tensor | None = None
    layers: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        others = dict(self.layers or {}) | ({} if self.alpha is None else {"alpha": self.alpha})
        for name, value in others.items():
            channels = 1 if value is self.alpha else value.shape[1:2].numel()
            wanted = (len(self.video), channels, *self.video.shape[2:])
            if tuple(value.shape) != wanted:
                raise ValueError(f"{name} of an EditResult must be of shape {wanted}, got {tuple(value.shape)}.")
