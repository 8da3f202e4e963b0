"""Stage two: a video and its edited version, frame for frame (methods: ICVE 1.5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icve.data.buckets import Bucket
from icve.data.frame_choice import FrameChoice
from icve.data.media.video import VideoError, probe, read_frames
from icve.data.pair_reading import Decoder, clip_indices
from icve.data.pairs import PairsDataModule
from icve.data.selection import Pair


def read_edit(
    source: Path, target: Path, pair: Pair, bucket: Bucket, choice: FrameChoice, decode: Decoder = read_frames
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same frames of both files, with the same crop.

    Frames are chosen on the source's timeline and taken by number from both clips, whatever rate the edited file
    states. An edited file of another size is stretched onto the source's picture.

    Returns:
        Source and target (F, H, W, 3) uint8, and the frames (F,) of the source clip, counted from its start.

    Raises:
        VideoError: a file cannot be read or the frames the two have in common are too few.
    """
    frames, place = pair.source_frames, choice.places[0]
    if place:  # the window lies in what the two have in common
        known = (pair.source_frames, pair.target_frames, max(0, probe(target).frames - pair.target_start))
        frames = min(count for count in known if count is not None)
    shown = clip_indices(source, pair.source_start, frames, bucket.frames, choice, place) - pair.source_start
    of_target = shown + pair.target_start
    if pair.target_frames is not None and shown[-1] >= pair.target_frames:
        raise VideoError(target, f"its clip has {pair.target_frames} frames, frame {int(shown[-1])} is needed.")
    size, info = (bucket.height, bucket.width), probe(source)
    return (
        decode(source, shown + pair.source_start, size=size),
        decode(target, of_target, size=size, shape=(info.height, info.width)),
        shown,
    )


class PairedEditsDataModule(PairsDataModule):
    """Paired edits: source and target show the same frames, cropped alike.

    Batches and arguments: :class:`icve.data.pairs.PairsDataModule`.
    """

    read = staticmethod(read_edit)
