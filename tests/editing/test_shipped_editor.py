"""The editor inside the package: small, trained, and free of seams on long clips."""

from itertools import pairwise

import numpy as np
import pytest

from icve.cli import edit
from icve.data.media.video import read_frames, write_video
from icve.editing.editors import load_editor, shipped_editor
from icve.editing.windows import windows
from icve.evaluation.synthetic import evaluate
from icve.synthetic.pair_files import synthesize_pairs
from icve.synthetic.paired_clips import make_pair


@pytest.fixture(scope="module")
def editor():
    pipeline = load_editor(shipped_editor(), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_small_and_says_what_it_is():
    weights = sum(file.stat().st_size for file in shipped_editor().rglob("*.safetensors"))
    assert weights <= 12_000_000
    card = (shipped_editor() / "README.md").read_text(encoding="utf-8")
    assert "demonstration on synthetic scenes" in card
    assert "icve demo" in card  # the command that made it


def test_it_edits_scenes_it_never_saw(editor, tmp_path):
    """Far below its figures in the model card, far above an untrained model, which never succeeds."""
    manifest = synthesize_pairs(tmp_path, 6, seed=424242)
    figures = evaluate(editor, manifest, progress=False).figures
    assert figures["success_ratio"] >= 0.5
    assert figures["psnr"] > figures["psnr_copy"] + 1


def test_seams_are_no_larger_than_the_change_from_frame_to_frame(tmp_path, capsys):
    """Mean step inside the fades between windows against the mean step of the whole result."""
    source = make_pair("test", 424242, 5, frames=33).source
    write_video(tmp_path / "clip.mp4", source, 8)
    words = ["--instruction", "apply the sepia style", "--size", "model"]
    assert edit.main(["--input", str(tmp_path / "clip.mp4"), "--output", str(tmp_path / "out"), *words]) == 0
    result = read_frames(tmp_path / "out" / "clip.mp4").astype(np.float32)
    steps = np.abs(np.diff(result, axis=0)).mean((1, 2, 3))
    spans = windows(len(result), 9)
    assert len(spans) > 3
    for (start, count), (following, _) in pairwise(spans):
        assert steps[following - 1 : start + count].mean() <= steps.mean()
