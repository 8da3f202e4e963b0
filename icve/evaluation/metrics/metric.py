"""What a metric is: the frames of one edit in, a few at a time, and named figures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FRAMES = (
    *("edited", "source", "target", "layer", "composite", "mask", "alpha", "target_alpha", "distractors"),
    *("source_as_stored", "mask_as_stored"),
)
"""What there may be of an edit, frame by frame:

* ``edited``, ``source``, ``target`` (the true result), ``layer`` and ``composite`` (of editors that make layers) are
  uint8 (n, H, W, 3) RGB of the edited video's size, to which the others are scaled and cropped as editing does.
* ``mask`` is bool (n, H, W), true where the edit may change pixels.
* ``alpha`` (the result's) and ``target_alpha`` (the true one) are uint8 (n, H, W), 255 where the layer covers all.
* ``distractors`` is a list of videos like ``target``: results of wrong instructions.
* ``source_as_stored`` and ``mask_as_stored`` are not scaled.
"""
TEXTS = {
    "instruction": ("instruction",),
    "target_caption": ("target_caption", "target_prompt"),
    "source_caption": ("source_caption", "source_prompt"),
}
"""Texts of an edit, each with the columns of a manifest that hold it: the first one that is there counts."""
NEEDS = (*FRAMES, *TEXTS)


@dataclass(frozen=True)
class ClipInfo:
    """What is known of an edit before its first frame.

    Attributes:
        frames: of the edited video, and of all else that metrics get.
        size: (height, width) of the edited video.
        texts: those of `TEXTS` that the edit has.
    """

    frames: int
    size: tuple[int, int]
    texts: Mapping[str, str] = field(default_factory=dict)


class Figure(NamedTuple):
    """A figure that is a mean over parts of a video (frames, pairs of frames).

    Attributes:
        value: the mean; None where there is no part.
        weight: number of parts. Where papers pool the parts of all videos, so that long ones weigh more, a suite's
            ``pooled`` mean is weighted by it.
        frames: the value of every frame, for tables that average over frames in an order of their own; else empty.
    """

    value: float | None
    weight: float
    frames: Sequence[float] = ()

    @classmethod
    def mean(cls, values: Sequence[float], by_frame: bool = False) -> Figure:
        """The mean of values; with ``by_frame``, they are those of the frames and are kept."""
        value = sum(values) / len(values) if values else None
        return cls(value, len(values), tuple(values) if by_frame else ())


class Metric(ABC):
    """Measures edits, one after another: for each, :meth:`reset`, then :meth:`update` with its frames, a few at a time
    and in order, then :meth:`compute`. So a video of any length fits into memory.

    Listed in a suite (`configs/evaluation`) by its class path. Its constructor's parameters are its options there; the
    folder of a model that it uses is one of them.

    Attributes:
        needs: those of `NEEDS` that it cannot do without. An edit without one of them is not measured.
        lower_is_better: how names of those of its figures begin of which less is better; "" is all of them.
    """

    needs: Sequence[str] = ("edited",)
    lower_is_better: Sequence[str] = ()

    @abstractmethod
    def reset(self, clip: ClipInfo) -> None:
        """Start on another edit. Texts that the metric needs are in ``clip.texts``.

        Raises:
            ValueError: the edit cannot be measured; the sentence stands beside it in the results. Of all three.
        """

    @abstractmethod
    def update(self, *args: Any, **frames: Any) -> None:
        """Take the next frames: by keyword, those of `FRAMES` that the metric needs, all of the same frames. They must
        not be changed; those of one name are the same object for all metrics."""

    @abstractmethod
    def compute(self) -> Mapping[str, float | Figure | None]:
        """Figures by name, the same names for every edit, without dots; None for one that this edit has not (a missing
        figure is never zero)."""
