"""Clips of scenes as video files of their own: what edits of real video are made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icve.curation.clip_length import check_clip_length
from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.buckets import Bucket, choose_bucket
from icve.data.frame_choice import FrameChoice, SlowClips, average_rate, is_slow
from icve.data.media.video import read_frames, sample_indices, timestamps, write_video

_LONGEST = 1.01  # a clip may last this many times what its frames last at its rate, as of 24000/1001 for 24


class WriteClips(Stage):
    """Cuts clips out of a scene, brings them to one size and rate, and writes each to a file.

    Clips of a scene do not overlap; which ones are taken depends on the row's key and the seed. Frames are chosen by
    timestamp, so files of variable rate play at their true speed; a clip never shows a frame twice. Clips of a video
    slower than ``fps`` keep its frames and its rate, or are rejected.

    Reads `video`, `scene_start`, `scene_end`, `width`, `height`. Writes `sources/<key>-<n>.mp4` and the columns
    `source_path`, `source_start` (0), `source_frames`, `width`, `height`, `fps` (now those of the clip), and
    `clip_start`, its first frame in `video`.

    Args:
        frames: frames per clip, 4k + 1.
        fps: rate of the written clips.
        sizes: (height, width) in pixels; a scene gets the one that crops least.
        clips_per_scene: most clips of one scene.
        margin: frames of the video to stay away from both ends of a scene, since cuts smear in compressed videos.
        crf: x264 quality of the files; 0 is lossless, 10 hides its artefacts below the grain of any camera.
        seed: selects other clips.
        slow_clips: "own_rate" takes slower videos as they are, "drop" rejects them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        frames: int,
        fps: float,
        sizes: list[list[int]],
        clips_per_scene: int = 2,
        margin: int = 2,
        crf: int = 10,
        seed: int = 0,
        slow_clips: SlowClips = "own_rate",
    ) -> None:
        if clips_per_scene < 1 or margin < 0 or not fps > 0 or not 0 <= crf <= 51:
            raise ValueError(
                "WriteClips needs clips_per_scene of at least 1, margin of at least 0, fps above 0 and crf in 0..51, "
                f"not {clips_per_scene}, {margin}, {fps} and {crf}."
            )
        if not sizes or any(len(size) != 2 or min(size) < 2 or size[0] % 2 or size[1] % 2 for size in sizes):
            raise ValueError(f"WriteClips needs sizes [height, width] in even numbers of pixels, not {sizes}.")
        self.frames, self.fps = check_clip_length(frames), float(fps)
        self.choice = FrameChoice(self.fps, slow_clips)
        self.clips_per_scene, self.margin = clips_per_scene, margin
        self.buckets = [Bucket(height, width, frames) for height, width in sizes]
        self.crf, self.seed = crf, seed

    def seconds(self, row: Row) -> float:
        pixels = self.clips_per_scene * self.frames * row["width"] * row["height"]
        return 120.0 + pixels / 1e6

    def __call__(self, rows: list[Row], work: Workspace) -> Sequence[Outcome]:
        return [self._cut(row, work) for row in rows]

    def _cut(self, row: Row, work: Workspace) -> Outcome:
        video = work.video(row)
        seconds = timestamps(video)[: row["scene_end"] - self.margin]
        first, fps = row["scene_start"] + self.margin, self.fps
        if len(seconds) > first + 1:
            own = average_rate(seconds[first:])
            if self.choice.refuses(own):
                return Rejected("slow video", f"{own:.4g} fps: {self.choice.refusal}")
            fps = own if is_slow(own, fps) else fps
        clips = clips_of(seconds, first, self.frames, fps)
        chosen = choose_bucket(self.buckets, row["width"], row["height"], self.frames)
        if not clips or chosen is None:
            frames = row["scene_end"] - row["scene_start"]
            wanted = f"no {self.frames} frames at {fps:g} fps with margins of {self.margin}"
            return Rejected("scene too short for a clip", f"{frames} frames of the video hold {wanted}")
        order = self.random(row, self.seed).permutation(len(clips))[: self.clips_per_scene]
        bucket = self.buckets[chosen]
        written = []
        for number in sorted(order):
            file = work.output / "sources" / f"{row['key']}-{number}.mp4"
            pixels = read_frames(video, clips[number], size=(bucket.height, bucket.width))
            write_video(file, pixels, fps, crf=self.crf)
            columns = {"source_path": work.name(file), "source_start": 0, "source_frames": self.frames}
            shape = {"width": bucket.width, "height": bucket.height, "fps": fps}
            written.append({**row, **columns, **shape, "clip_start": int(clips[number][0])})
        return written


def clips_of(seconds: np.ndarray, start: int, frames: int, fps: float) -> list[np.ndarray]:
    """Frame numbers (frames,) of each clip, one after the other without overlap, none with a frame shown twice.

    Args:
        seconds: presentation times (F,) of the video up to the end of the scene.
        start: first frame of the scene.
        frames, fps: of a clip.
    """
    clips = []
    while len(indices := sample_indices(seconds, fps, start, frames)) == frames:
        # A pause is passed over, and in a file of constant rate the clip would leap there.
        if seconds[indices[-1]] - seconds[start] <= ((frames - 1) * _LONGEST + 0.5) / fps:
            clips.append(indices)
        start = int(indices[-1]) + 1
    return clips
