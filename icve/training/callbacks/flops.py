"""FLOPs of training steps, counted by running the transformer on the meta device (see icve.models.counting)."""

from collections.abc import Mapping
from typing import Any

from icve.models.closed_forms import forward_flops, tokens
from icve.models.counting import Sample, training_flops


class TrainingFlops:
    """FLOPs of one sample's forward and backward pass; a multiplication with an addition is two.

    They are counted for the first sample of a size. How those of other text lengths differ, a closed form tells: text
    is a small part of the tokens.

    Args:
        config: all arguments of the transformer.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {name: value for name, value in config.items() if not name.startswith("_")}
        self._ratios: dict[tuple[int, int, int], float] = {}  # of counted FLOPs to the closed form's

    def __call__(self, latents: tuple[int, int, int], attended: float) -> float:
        """FLOPs.

        Args:
            latents: frames, height and width of the source's and of the target's.
            attended: tokens of source, target and text.
        """
        visual, _ = tokens(self._config, Sample(*latents, 0))
        sample = Sample(*latents, round(attended - visual))
        if latents not in self._ratios:
            self._ratios[latents] = training_flops(self._config, sample) / forward_flops(self._config, sample)
        return self._ratios[latents] * forward_flops(self._config, sample)
