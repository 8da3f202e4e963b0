"""How far a share of few trials can be off: confidence intervals of proportions."""

import math
from statistics import NormalDist


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
