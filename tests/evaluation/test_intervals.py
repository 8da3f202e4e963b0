import pytest

from icve.evaluation.intervals import wilson_interval


def test_reference_values():
    """Newcombe (1998), Table I: the score method without continuity correction."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_more_confidence_and_fewer_trials_widen_it():
    low, high = wilson_interval(8, 10)
    assert wilson_interval(8, 10, 0.99)[0] < low < 0.8 < high < wilson_interval(8, 10, 0.99)[1]
    assert wilson_interval(80, 100)[0] > low
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1)])
def test_what_is_no_share_is_refused(successes, trials, confidence):
    with pytest.raises(ValueError, match="share"):
        wilson_interval(successes, trials, confidence)
