"""The benchmark on a small test set written to disk: decoding, batching, editors of every kind, saved evaluations."""

import numpy as np
import pytest
import torch

from icve.data.manifest import write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import read_frames, write_video
from icve.editing.edit_result import EditResult
from icve.evaluation.synthetic import evaluate, load_evaluation, save_evaluation

SHAPE = (5, 32, 32, 3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Five edits; each turns a square of a gray clip to another level, its distractors to others again."""
    root = tmp_path_factory.mktemp("held_out")
    mask = np.zeros(SHAPE[:3], bool)
    mask[:, 8:24, 8:24] = True
    save_mask(root / "mask.npz", mask)
    rows = []
    for index, edit_type in enumerate(("add", "remove", "add", "style", "replace")):
        paths = []
        for name, level in (("source", 120), ("target", 180 + index), ("d0", 20), ("d1", 60), ("d2", 230), ("d3", 90)):
            frames = np.full(SHAPE, 120, np.uint8)
            frames[mask] = level
            paths.append(f"{index}_{name}.mp4")
            write_video(root / paths[-1], frames, 8, crf=4)
        rows.append(
            {"id": f"edit-{index}", "instruction": f"do {index}", "edit_type": edit_type, "mask_path": "mask.npz"}
            | {"source_path": paths[0], "target_path": paths[1], "distractor_paths": paths[2:]}
        )
    return write_manifest(rows, root / "manifest.parquet")


def copying(video, instructions, generator):
    return EditResult(video.float() / 127.5 - 1)


def test_copying_the_source_never_succeeds_and_scores_what_copying_scores(manifest):
    evaluation = evaluate(copying, manifest, batch_size=2, progress=False)
    figures = evaluation.figures
    assert figures["count"] == 5
    assert figures["success_ratio"] == 0
    assert figures["nearest_to_source"] == 1
    assert figures["psnr_inside"] == figures["psnr_copy_inside"] < 15
    assert figures["psnr_codec"] is None
    assert figures["seconds_edit"] >= 0
    assert [row["id"] for row in evaluation.edits] == [f"edit-{index}" for index in range(5)]


def test_given_targets_succeed_as_files_and_as_arrays(manifest):
    files = {f"edit-{index}": manifest.parent / f"{index}_target.mp4" for index in range(5)}
    arrays = {key: read_frames(path) for key, path in files.items()}
    for results in (files, arrays):
        figures = evaluate(results, manifest, progress=False).figures
        assert figures["success_ratio"] == 1
        assert figures["psnr"] == 60
        assert "seconds_edit" not in figures


def test_the_codec_is_measured_on_the_target(manifest):
    class Darkening(torch.nn.Module):
        def encode(self, video):
            assert video.min() >= -1
            assert video.max() <= 1
            return video

        def decode(self, latents):
            return latents - 10 / 127.5

    figures = evaluate(copying, manifest, codec=Darkening(), progress=False, limit=2).figures
    assert figures["count"] == 2
    for region in ("", "_inside", "_outside"):
        assert figures[f"psnr_codec{region}"] == pytest.approx(20 * np.log10(25.5), abs=1e-3)


def test_noise_does_not_depend_on_batches_or_rows(manifest):
    def noisy(video, instructions, generator):
        return EditResult(torch.stack([torch.randn(video.shape[1:], generator=item) for item in generator]))

    together = evaluate(noisy, manifest, batch_size=5, progress=False).results
    alone = evaluate(noisy, manifest, batch_size=1, progress=False, limit=4).results
    other = evaluate(noisy, manifest, batch_size=5, progress=False, seed=1).results
    for key, clip in alone.items():
        assert np.array_equal(clip, together[key])
        assert not np.array_equal(clip, other[key])


def test_options_reach_the_editor_and_inputs_are_what_pipelines_take(manifest):
    def editor(video, instructions, generator, num_inference_steps):
        assert video.dtype == torch.uint8
        assert video.shape[1:] == (3, *SHAPE[:3])
        assert num_inference_steps == 7
        assert len(instructions) == len(generator) == len(video)
        return copying(video, instructions, generator)

    evaluate(editor, manifest, num_inference_steps=7, progress=False)


def test_an_edit_without_result_is_no_success(manifest):
    evaluation = evaluate({"edit-0": manifest.parent / "0_target.mp4"}, manifest, progress=False)
    figures, count = evaluation.figures, len(evaluation.edits)
    assert count > 1
    assert (figures["missing"], figures["success_ratio"]) == (count - 1, 1 / count)
    assert figures["psnr"] > 30  # of the one result there is
    assert list(evaluation.results) == ["edit-0"]
    with pytest.raises(ValueError, match="no result for any"):
        evaluate({}, manifest, progress=False)


def test_a_training_manifest_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros(SHAPE, np.uint8), 8)
    row = {"id": "x", "source_path": "a.mp4", "target_path": "a.mp4", "instruction": "do", "edit_type": "add"}
    write_manifest([row], tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"mask_path, distractor_paths.*--split test"):
        evaluate(copying, tmp_path / "train.parquet", progress=False)


def test_a_saved_evaluation_is_read_back(manifest, tmp_path):
    evaluation = evaluate(copying, manifest, progress=False)
    figures, rows = load_evaluation(save_evaluation(evaluation, tmp_path / "evaluation", fps=8))
    assert figures == evaluation.figures
    for row, original in zip(rows, evaluation.edits, strict=True):
        video = read_frames(row.pop("result_path"))
        assert row == original
        assert np.abs(video.astype(int) - evaluation.results[row["id"]]).mean() < 3


def test_an_unfinished_evaluation_is_not_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished evaluation"):
        load_evaluation(tmp_path)
