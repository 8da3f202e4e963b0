"""How far a figure of few trials can be off: confidence intervals of proportions and of means."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
_AT_ONCE = 2**22  # drawn numbers


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
        confidence: that the true share lies inside, in (0, 1).

    Returns:
        (lower, upper) in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ValueError(f"{successes} of {trials} at confidence {confidence} is no share that has an interval.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, extra = successes / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of a mean over values that come in clusters, as edits of one video do: percentiles of the means of
    `RESAMPLES` samples of as many clusters, drawn with replacement (cluster bootstrap; Davison and Hinkley, 1997, 3.8).

    Edits of one video are alike. An interval that took them as independent would be too narrow.

    Args:
        values: at least one.
        clusters: of each value.
        confidence: that the true mean lies inside, in (0, 1).
        seed: of the samples; the same arguments give the same interval.

    Returns:
        (lower, upper); None where all values are of one cluster, which tells nothing of others.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        return None
    index = [numbers[cluster] for cluster in clusters]
    sums = np.bincount(index, values, len(numbers))
    counts = np.bincount(index, minlength=len(numbers))
    generator = np.random.default_rng(seed)
    means = []
    step = max(1, _AT_ONCE // len(numbers))
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size)
        means.append((drawn @ sums) / (drawn @ counts))
    outside = (1 - confidence) / 2
    lower, upper = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(lower), float(upper)
