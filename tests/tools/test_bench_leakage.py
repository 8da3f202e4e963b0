"""tools/bench_leakage.py on few clips: what `icve eval leakage` must find, and must not."""

import importlib.util

import pytest


@pytest.mark.slow
def test_copies_are_found_and_clean_clips_are_not(repository, tmp_path):
    spec = importlib.util.spec_from_file_location("bench_leakage", repository / "tools" / "bench_leakage.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    counts = tool.measure([], 60, 30, tmp_path).counts
    copies = [trials for way, trials in counts.items() if way.startswith("synthetic")]
    assert len(copies) == len(tool.COPIES)
    assert sum(found for found, _ in copies) >= 0.95 * sum(of for _, of in copies)
    assert counts["clean clips taken for copies"] == (0, 60)
    scale = tool.measure_scale(2000, test_clips=20)
    assert (scale["found"], scale["others found"]) == (20, 0)
