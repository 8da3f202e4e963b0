"""A rate that all processes keep together."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from icve.curation.annotate.rate import RateLimit


def test_requests_are_spaced_evenly_over_all_who_share_the_file(tmp_path):
    """Ten users of one file take ten different times, a second apart."""
    limits = [RateLimit(tmp_path / "rate.json", requests_per_minute=60) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        waits = sorted(pool.map(RateLimit.reserve, limits))
    assert waits == pytest.approx(range(10), abs=0.5)


def test_tokens_are_paid_off_before_the_next_request(tmp_path):
    limit = RateLimit(tmp_path / "rate.json", tokens_per_minute=600)
    assert limit.reserve(100) == pytest.approx(0, abs=0.1)
    limit.correct(-50)  # it took half of what was reserved
    assert limit.reserve(10) == pytest.approx(5, abs=0.5)
    limit.correct(20)
    assert limit.reserve(0) == pytest.approx(5 + 1 + 2, abs=0.5)


def test_nothing_is_saved_up(tmp_path):
    limit = RateLimit(tmp_path / "rate.json", requests_per_minute=600)
    limit.reserve()
    time.sleep(0.35)
    assert [limit.reserve() for _ in range(3)] == pytest.approx([0, 0.1, 0.2], abs=0.05)


def test_without_limits_nobody_waits_but_for_a_pause(tmp_path):
    limit = RateLimit(tmp_path / "folder" / "rate.json")
    assert max(limit.reserve(1e6) for _ in range(5)) == 0
    limit.pause(30)
    limit.pause(10)  # a shorter one does not end it
    assert limit.reserve() == pytest.approx(30, abs=0.5)


@pytest.mark.parametrize("content", ["", "torn [1", "[1]", "[99999999999, 0]", "[NaN, 0]", '{"a": 1}', '["x", 2]'])
def test_a_damaged_file_stops_nobody(tmp_path, content):
    (tmp_path / "rate.json").write_text(content)
    limit = RateLimit(tmp_path / "rate.json", requests_per_minute=60)
    assert limit.reserve() == pytest.approx(0, abs=0.1)
    assert limit.reserve() == pytest.approx(1, abs=0.5)
