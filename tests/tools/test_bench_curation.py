import importlib.util
import sys

import numpy as np
import pytest

from icve.data.media.video import write_video


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("bench_curation", repository / "tools" / "bench_curation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the process that measures memory imports it by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two scenes of moving noise, cut at frame 20."""
    random = np.random.default_rng(0)
    scenes = [random.integers(low, low + 120, (96, 160, 3), dtype=np.uint8) for low in (0, 130)]
    frames = [np.roll(scene, shift, axis=1) for scene in scenes for shift in range(20)]
    file = tmp_path_factory.mktemp("bench") / "two.mp4"
    write_video(file, np.stack(frames), 12)
    (file.parent / "cuts.json").write_text(
        '{"videos": [{"file": "two.mp4", "transitions": [{"type": "hard_cut", "start": 20, "end": 20}]}]}'
    )
    return file


def test_both_ways_are_timed_and_scored(tool, video, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_curation.py", str(video.parent)])
    tool.main()
    shown = capsys.readouterr().out
    assert "| two.mp4 | 40 |" in shown
    (scores,) = (line for line in shown.splitlines() if line.startswith("| hard cuts"))
    assert scores.split("|")[3].strip() == "1.000"


def test_boundaries_count_once(tool):
    hard, soft = {"start": 20, "end": 20}, {"start": 40, "end": 50}
    assert tool.score([19, 21, 45], [hard, soft], hard_only=False) == (2, 3, 2)
    assert tool.score([19, 45], [hard, soft], hard_only=True) == (1, 1, 1)
    assert tool.f1([(2, 3, 2)]) == pytest.approx(0.8)
