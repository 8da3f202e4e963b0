"""What a metric is: one edit in, named figures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

NEEDS = ("source", "edited", "target", "mask", "instruction")


class Metric(ABC):
    """Measures one edit. Listed in a suite (`configs/evaluation`) by its class path.

    Its constructor's parameters are its options there; the folder of a model that it uses is one of them.

    Attributes:
        needs: what a call is given, by keyword. ``source``, ``edited`` and ``target`` (the true result) are uint8
            (F, H, W, 3) RGB and of one shape: that of the edited video, to which the others are scaled and cropped as
            editing does; ``mask`` is bool (F, H, W), true where the edit may change pixels; ``instruction`` a text.
            ``target`` and ``mask`` are there for edits of a manifest that has them.
    """

    needs: Sequence[str] = ("edited",)

    @abstractmethod
    def __call__(self, *args: Any, **inputs: Any) -> Mapping[str, float | None]:
        """Figures by name, the same names for every edit; None for one that this edit has not (a missing figure is
        never zero).

        Raises:
            ValueError: the edit cannot be measured; the sentence stands beside it in the results.
        """
