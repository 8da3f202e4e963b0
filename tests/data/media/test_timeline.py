import numpy as np
import pytest

from icve.data.media.timeline import display_times


@pytest.mark.parametrize(
    ("stamps", "jumps", "times"),
    [
        ([0, 10, 25, 1000], None, [0, 10, 25, 1000]),  # a gap that is meant
        ([1, 3, 4, 2, 6, 7, 5], None, [1, 2, 3, 4, 5, 6, 7]),  # times in decoding order
        ([-20, -10, 0, 10], None, [-20, -10, 0, 10]),
        ([None, None, 0, 10, None, 30, None], None, [-20, -10, 0, 10, 20, 30, 40]),
        ([5], None, [5]),
        ([None, None], None, None),
        ([0, 0, 1, 1], None, None),
        ([0, 40, 80, 90_000, 90_040], 1000.0, [0, 40, 80, 120, 160]),  # the clock jumps
        ([0, 20_000, 40_000, 60_000], 1000.0, [0, 20_000, 40_000, 60_000]),  # slow is no jump
        ([0, 40, 80, 5_000, 5_040], 1000.0, [0, 40, 80, 5_000, 5_040]),  # nor is a short gap
    ],
)
def test_display_times(stamps, jumps, times):
    found = display_times(stamps, jumps)
    assert found is None if times is None else found.tolist() == times


def test_a_clock_that_restarts_goes_on():
    stamps = [*range(0, 1000, 40), *range(0, 1000, 40)]
    assert display_times(stamps, 1000.0).tolist() == list(range(0, 2000, 40))
    assert np.array_equal(display_times(stamps, None), display_times(stamps, 1000.0))
