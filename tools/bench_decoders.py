"""Time what training reads of a video, 33 frames of 720p resized to a bucket, with PyAV and with decord.

    python tools/bench_decoders.py [--rounds 5]         # decord comes with icve[test]; see docs/benchmarks.md

One thread each, in turns, in the same process; CPU seconds, medians. Both decode the same frames, which are compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from icve.data.media.video import read_frames, resize_crop

CODECS = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "20"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0"}),
}
WANTED = {
    "first 33": np.arange(33),
    "33 from the middle": np.arange(60, 93),
    "every third of 99": np.arange(0, 99, 3),
}
SIZE = (240, 416)


def encode(path: Path, codec: str, frames: int = 144) -> None:
    """A 1280x720 video of a moving texture with some noise."""
    generator = np.random.default_rng(0)
    wide = cv2.resize(generator.integers(0, 255, (100, 200, 3)).astype(np.uint8), (1280 + 2 * frames, 720))
    name, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 1280, 720, "yuv420p", 48
        stream.options = options
        for number in range(frames):
            picture = wide[:, 2 * number : 2 * number + 1280] + generator.normal(0, 4, (720, 1280, 1))
            picture = np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def read_pyav(path: Path, wanted: np.ndarray) -> np.ndarray:
    return read_frames(path, wanted, size=SIZE)


def read_decord(path: Path, wanted: np.ndarray) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path), num_threads=1)
    chunks = (reader.get_batch(chunk.tolist()).asnumpy() for chunk in np.split(wanted, range(16, len(wanted), 16)))
    return np.concatenate([resize_crop(chunk, SIZE) for chunk in chunks])


def seconds(read: Callable[[Path, np.ndarray], np.ndarray], path: Path, wanted: np.ndarray) -> float:
    began = time.process_time()
    read(path, wanted)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| codec | frames | PyAV s | decord s | decord / PyAV |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            path = Path(folder, f"{codec}.mp4")
            encode(path, codec)
            for name, wanted in WANTED.items():
                ours, theirs = read_pyav(path, wanted), read_decord(path, wanted)
                assert np.abs(ours.astype(int) - theirs).max() <= 2, "the decoders disagree"
                rounds = [
                    (seconds(read_pyav, path, wanted), seconds(read_decord, path, wanted))
                    for _ in range(arguments.rounds)
                ]
                pyav, decord = (statistics.median(times) for times in zip(*rounds, strict=True))
                print(f"| {codec} | {name} | {pyav:.3f} | {decord:.3f} | {decord / pyav:.2f} |", flush=True)


if __name__ == "__main__":
    main()
