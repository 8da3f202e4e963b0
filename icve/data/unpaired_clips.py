"""Stage one: two clips of one scene, with the instruction that says what changes between them (methods: ICVE 1.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icve.data.buckets import Bucket
from icve.data.frame_choice import FrameChoice
from icve.data.media.video import read_frames
from icve.data.pair_reading import Decoder, clip_indices
from icve.data.pairs import PairsDataModule
from icve.data.selection import Pair


def read_clips(
    source: Path, target: Path, pair: Pair, bucket: Bucket, choice: FrameChoice, decode: Decoder = read_frames
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two clips, each on its own timeline: frame k of one does not belong to frame k of the other.

    Returns:
        Source and target (F, H, W, 3) uint8, and the frames (F,) of the source clip, counted from its start.

    Raises:
        VideoError: a file cannot be read or a clip is too short.
    """
    of_source = clip_indices(source, pair.source_start, pair.source_frames, bucket.frames, choice, choice.places[0])
    of_target = clip_indices(target, pair.target_start, pair.target_frames, bucket.frames, choice, choice.places[1])
    size = (bucket.height, bucket.width)
    return (
        decode(source, of_source, size=size),
        decode(target, of_target, size=size),
        of_source - pair.source_start,
    )


class UnpairedClipsDataModule(PairsDataModule):
    """Unpaired clips of the same scene: source and target are taken from their own timelines.

    The instruction leads from the source clip to the target clip, so the two are never swapped.

    Batches and arguments: :class:`icve.data.pairs.PairsDataModule`.
    """

    read = staticmethod(read_clips)
