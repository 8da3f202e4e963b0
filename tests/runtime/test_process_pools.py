import os

import pytest

from icve.runtime.process_pools import run_jobs


def square(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return number * number


def test_results_come_in_order():
    assert run_jobs(square, range(5), 1, "squares") == [0, 1, 4, 9, 16]
    assert run_jobs(square, [], 4, "nothing") == []


def test_errors_are_not_swallowed():
    with pytest.raises(ValueError, match="negative"):
        run_jobs(square, [1, -1], 1, "squares")


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_a_pool_does_the_same_elsewhere():
    assert run_jobs(abs, range(-40, 0), 2, "values") == list(range(40, 0, -1))
    assert os.getpid() not in run_jobs(os.getpgid, [0, 0], 2, "groups")
