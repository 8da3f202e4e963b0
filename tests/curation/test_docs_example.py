"""The stage that the documentation shows."""

import re

import pytest

from icve.curation.raw_videos import find_inputs
from icve.curation.runner import LocalRunner, run_pipeline
from icve.curation.stage_list import load_pipeline
from icve.data.media.video import write_video


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_the_stage_shown_runs(repository, tmp_path, monkeypatch):
    import numpy as np

    page = (repository / "docs" / "curation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 26
    (tmp_path / "my_stages.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, (height, width) in {"wide": (64, 96), "high": (96, 64)}.items():
        write_video(tmp_path / "raw" / f"{name}.mp4", np.zeros((3, height, width, 3), np.uint8), 8)
    inputs = find_inputs(tmp_path / "raw")
    result = run_pipeline(load_pipeline(tmp_path / "mine.yaml"), inputs, tmp_path / "out", LocalRunner(1))
    assert (result.rows, result.counts[1].rejected) == (1, {"not landscape": 1})
