"""A rate that all processes keep together."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from icve.curation.annotate import rate
from icve.curation.annotate.rate import RateLimit


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time stands still unless a test lets it go on."""
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(rate, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


def test_requests_are_spaced_evenly_over_all_who_share_the_file(tmp_path):
    """Ten users of one file take ten different times, a second apart."""
    limits = [RateLimit(tmp_path / "rate.json", requests_per_minute=60) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        waits = sorted(pool.map(RateLimit.reserve, limits))
    assert waits == list(range(10))


def test_tokens_are_paid_off_before_the_next_request(tmp_path):
    limit = RateLimit(tmp_path / "rate.json", tokens_per_minute=600)
    assert limit.reserve(100) == 0
    limit.correct(-50)  # it took half of what was reserved
    assert limit.reserve(10) == pytest.approx(5)
    limit.correct(20)
    assert limit.reserve(0) == pytest.approx(5 + 1 + 2)


def test_nothing_is_saved_up(tmp_path, clock):
    limit = RateLimit(tmp_path / "rate.json", requests_per_minute=600)
    limit.reserve()
    clock.now += 0.35
    assert [limit.reserve() for _ in range(3)] == pytest.approx([0, 0.1, 0.2], abs=1e-6)


def test_without_limits_nobody_waits_but_for_a_pause(tmp_path):
    limit = RateLimit(tmp_path / "folder" / "rate.json")
    assert max(limit.reserve(1e6) for _ in range(5)) == 0
    limit.pause(30)
    limit.pause(10)  # a shorter one does not end it
    assert limit.reserve() == 30


@pytest.mark.parametrize("content", ["", "torn [1", "[1]", "[99999999999, 0]", "[NaN, 0]", '{"a": 1}', '["x", 2]'])
def test_a_damaged_file_stops_nobody(tmp_path, content):
    (tmp_path / "rate.json").write_text(content)
    limit = RateLimit(tmp_path / "rate.json", requests_per_minute=60)
    assert limit.reserve() == 0
    assert limit.reserve() == 1
