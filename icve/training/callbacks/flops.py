"""FLOPs of training steps, counted by running the transformer on the meta device (see icve.models.counting)."""

import math
from collections.abc import Mapping
from typing import Any

from icve.models.counting import Sample, training_flops
from icve.models.denoiser import InContextTransformer

_TEXTS = (1, 65, 129)  # text tokens that are counted with


class TrainingFlops:
    """FLOPs of one sample's forward and backward pass; a multiplication with an addition is two.

    In the number of text tokens they are a polynomial of degree two (attention), which three counts determine; they are
    made when a size is met first.

    Args:
        kind: the transformer's class, of a family's.
        config: all its arguments.
        patch: latents per token along (time, height, width).
    """

    def __init__(
        self, kind: type[InContextTransformer], config: Mapping[str, Any], patch: tuple[int, int, int]
    ) -> None:
        self._kind, self._visual = kind, len(kind.latents + kind.context) / math.prod(patch)
        self._config = {name: value for name, value in config.items() if not name.startswith("_")}
        self._counts: dict[tuple[int, int, int], list[int]] = {}

    def __call__(self, latents: tuple[int, int, int], attended: float) -> float:
        """FLOPs.

        Args:
            latents: frames, height and width of each of a sample's latents, as of source and target.
            attended: tokens of all latents and text.
        """
        if latents not in self._counts:
            samples = [Sample(*latents, text) for text in _TEXTS]
            self._counts[latents] = [training_flops(self._kind, self._config, sample) for sample in samples]
        text = attended - self._visual * math.prod(latents)
        a, b, c = _TEXTS
        weights = (
            (text - b) * (text - c) / ((a - b) * (a - c)),
            (text - a) * (text - c) / ((b - a) * (b - c)),
            (text - a) * (text - b) / ((c - a) * (c - b)),
        )
        return sum(weight * flops for weight, flops in zip(weights, self._counts[latents], strict=True))
