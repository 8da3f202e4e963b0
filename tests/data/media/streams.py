"""Small video files of any codec, written packet by packet."""

from fractions import Fraction

import av
import numpy as np

X264 = {"preset": "veryfast", "threads": "1"}


def write(path, frames, codec="libx264", options=None, left_out=(), times=None, base=Fraction(1, 1000), **container):
    """Encode frames (F, H, W, 3) at 10 fps or at ``times`` without the packets left out; returns all packets."""
    formats = {".mkv": "matroska", ".ts": "mpegts"}
    with av.open(str(path), "w", format=formats.get(path.suffix, path.suffix[1:]), options=container) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = X264 if options is None and codec == "libx264" else (options or {})
        if times is not None:
            stream.codec_context.time_base = base
        packets = []
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], base
            packets += stream.encode(frame)
        packets += stream.encode()
        for number, packet in enumerate(packets):
            if number not in left_out:
                file.mux(packet)
    return packets


def noisy(count, height=64, width=96, seed=0):
    """Frames of drifting noise, which encoders spend bits on."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(40, 200, (height // 4, (width + 4 * count) // 4, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    return np.stack([wide[:, 2 * k : 2 * k + width] for k in range(count)])
