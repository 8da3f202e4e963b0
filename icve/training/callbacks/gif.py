"""Moving pictures for TensorBoard: an image summary whose bytes are an animated GIF plays in the browser.

Written with Pillow; `SummaryWriter.add_video` would need moviepy for the same bytes.
"""

import io

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """An endlessly looping GIF.

    Args:
        frames: uint8 (F, H, W, 3).
        fps: frames per second; GIF knows only hundredths of a second, and browsers nothing under two of them.

    Raises:
        ValueError: for another shape or dtype, or without frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"A GIF needs uint8 frames (F, H, W, 3), got {frames.dtype} {frames.shape}.")
    images = [Image.fromarray(frame) for frame in frames]
    # One palette for the whole clip: a palette per frame flickers.
    palette = Image.fromarray(np.concatenate(list(frames), axis=0)).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=max(20, round(100 / fps) * 10),
        loop=0,
        disposal=1,
    )
    return buffer.getvalue()


def gif_summary(tag: str, frames: np.ndarray, fps: float) -> Summary:
    """A TensorBoard image summary of a clip, uint8 (F, H, W, 3)."""
    height, width = frames.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames, fps))
    return Summary(value=[Summary.Value(tag=tag, image=image)])
