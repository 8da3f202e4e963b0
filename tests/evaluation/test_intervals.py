import numpy as np
import pytest

from icve.evaluation.intervals import cluster_bootstrap, wilson_interval


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


def test_a_bootstrap_interval_of_independent_values_is_that_of_their_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    lower, upper = cluster_bootstrap(values, range(400))
    error = values.std() / 20
    assert lower == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert upper == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert cluster_bootstrap(values, range(400)) == (lower, upper)


def test_values_that_are_alike_within_a_cluster_tell_no_more_than_one_of_them():
    values = np.random.default_rng(1).normal(0.0, 1.0, 50)
    alone = cluster_bootstrap(values, range(50))
    repeated = cluster_bootstrap(np.repeat(values, 8), np.repeat(np.arange(50), 8))
    assert repeated == pytest.approx(alone, abs=1e-12)
    narrow = cluster_bootstrap(np.repeat(values, 8), range(400))
    assert narrow[1] - narrow[0] < 0.5 * (alone[1] - alone[0])


def test_one_cluster_has_no_interval():
    assert cluster_bootstrap([1.0, 2.0], ["a", "a"]) is None
