"""Suites of metrics on edits whose figures are known."""

import numpy as np
import pytest

from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import read_frames, write_video
from icve.evaluation.edits import find_edits
from icve.evaluation.metrics.metric import Metric
from icve.evaluation.metrics.psnr import Psnr, psnr
from icve.evaluation.suite import load_suite, measure
from icve.evaluation.summary import summarise
from icve.evaluation.tables import summary_tables
from icve.runtime.printable import json_line
from tests.measured import measured

WORDS = "make it red"


@pytest.fixture
def edits(tmp_path):
    """Four edits: one as its source outside the mask, one twice as large, one that failed, one cut short."""
    rng = np.random.default_rng(0)
    grey = rng.integers(16, 240, (4, 8, 8, 1), dtype=np.uint8)  # colours lose resolution in H.264
    source = np.repeat(np.repeat(np.repeat(grey, 4, 1), 4, 2), 3, 3)
    mask = np.zeros((4, 32, 32), bool)
    mask[:, 8:24, 8:24] = True
    target = np.where(mask[..., None], source // 2, source)
    for name, clip in (("source", source), ("target", target)):
        write_video(tmp_path / f"{name}.mp4", clip, 8, crf=0)
    save_mask(tmp_path / "mask.npz", mask)
    row = {"source_path": "source.mp4", "target_path": "target.mp4", "instruction": WORDS, "edit_type": "recolour"}
    row |= {"mask_path": "mask.npz", "source_frames": 4, "target_frames": 4}
    rows = [row | {"id": name} for name in ("same", "large", "failed", "short")]
    rows[1]["mask_path"] = None
    write_manifest(rows, tmp_path / "manifest.parquet")
    out = tmp_path / "out"
    write_video(out / "same.mp4", read_frames(tmp_path / "target.mp4"), 8, crf=0)
    write_video(out / "large.mp4", np.repeat(np.repeat(source, 2, 1), 2, 2), 8, crf=0)
    write_video(out / "short.mp4", source[:3], 8, crf=0)
    lines = []
    for row in rows:
        made = row["id"] != "failed"
        line = {"id": row["id"], "source": "source.mp4", "instruction": WORDS, "settings": {}, "seconds": 1.0}
        line |= {"status": "ok" if made else "failed", "output": f"{row['id']}.mp4" if made else None}
        lines.append(json_line(line))
    (out / "results.jsonl").write_text("".join(lines))
    return find_edits(out / "results.jsonl", read_manifest(tmp_path / "manifest.parquet"))


def test_figures_coverage_and_reasons(edits):
    rows = measure(edits, load_suite("preservation").metrics, progress=False)
    same, large, failed, short = rows
    assert [edit.id for edit in edits] == ["same", "large", "failed", "short"]
    assert same["psnr_source_outside"] > 45  # what H.264 without loss leaves of RGB
    assert same["psnr_target_frame"] > 45
    assert same["error"] is None
    assert (large["error"], large.get("psnr_source_outside")) == ("There is no mask for Psnr, Ssim.", None)
    assert 5 < large["psnr_target_frame"] < 30
    assert failed["error"] == "There is no result."
    assert short["error"].startswith("Its source has 4 frames, the edited video 3. Its mask has")
    summary = summarise(rows)
    assert summary["edits"] == 4
    assert summary["figures"]["psnr_target_frame"]["count"] == 2
    mean = (same["psnr_target_frame"] + large["psnr_target_frame"]) / 2
    assert summary["figures"]["psnr_target_frame"]["mean"] == pytest.approx(mean)
    assert summary["per_edit_type"]["recolour"]["figures"] == summary["figures"]
    assert "1 of 4" in summary_tables(summary)[0].text()


class Broken(Metric):
    """A metric that fails for some edits."""

    needs = ("edited", "instruction")

    def reset(self, clip):
        assert clip.texts["instruction"] == WORDS
        self.edges = clip.size[0]

    def update(self, edited):
        assert edited.shape[1] == self.edges
        if self.edges == 64:
            raise RuntimeError("No kernel. More of it.")

    def compute(self):
        return {"edges": float(self.edges), "nothing": None}


def test_a_metric_that_fails_costs_one_figure(edits):
    rows = measure(edits, [Broken(), Psnr("target", "frame")], progress=False)
    assert rows[1]["error"] == "Broken: No kernel."
    assert rows[1]["psnr_target_frame"] is not None
    assert [row.get("edges") for row in rows] == [32.0, None, None, 32.0]
    assert summarise(rows)["figures"]["nothing"] == {"mean": None, "count": 0, "interval": None, "better": "higher"}
    assert summary_tables(summarise(rows))[0].text().count("0 of 4") == 1


def test_figures_of_one_name_are_refused(edits):
    with pytest.raises(ValueError, match="Two metrics of the suite give edges, nothing"):
        measure(edits, [Broken(), Broken()], progress=False)


def test_without_a_reference_the_sources_are_those_of_the_results(edits, tmp_path, monkeypatch):
    results = tmp_path / "out" / "results.jsonl"
    (row,) = measure(find_edits(results)[:1], [Psnr("source", "frame")], progress=False)
    assert row["error"].startswith("Its source source.mp4 is not there: give --reference, or run this in the folder")
    monkeypatch.chdir(tmp_path)
    (row,) = measure(find_edits(results)[:1], [Psnr("source", "frame")], progress=False)
    assert row["error"] is None
    assert row["psnr_source_frame"] < 30


def test_a_result_outside_its_folder_is_refused(edits, tmp_path):
    line = {"id": "x", "source": "source.mp4", "instruction": WORDS, "settings": {}, "status": "ok"}
    (tmp_path / "out" / "results.jsonl").write_text(json_line(line | {"output": "../source.mp4"}))
    with pytest.raises(ValueError, match="root"):
        find_edits(tmp_path / "out" / "results.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics: []", "metrics must be a list"),
        ("other: 1", "it has no list of metrics"),
        ("metrics: [{class_path: icve.evaluation.metrics.psnr.Psnr, init_args: {region: middle}}]", "Metric 1 of"),
        ("metrics: [{class_path: no.such.Metric}]", "Metric 1 of"),
        ("metrics: [{class_path: tests.evaluation.test_suite.Demanding}]", "Demanding needs sound: there is edited"),
    ],
)
def test_wrong_suites_are_named(text, message, tmp_path):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_suite(tmp_path / "suite.yaml")


def test_a_model_that_is_not_there_is_named_with_what_downloads_it(tmp_path):
    message = "download it with `hf download openai/clip-vit-base-patch32 --local-dir .*/clip-vit-base-patch32`"
    with pytest.raises(ValueError, match=message):
        load_suite("icve", [f"models={tmp_path}"])


class Demanding(Broken):
    needs = ("sound",)


def test_only_pixels_of_the_region_count():
    source = np.zeros((2, 4, 4, 3), np.uint8)
    edited, mask = source.copy(), np.zeros((2, 4, 4), bool)
    edited[:, :2], mask[:, :2] = 51, True  # a fifth of the range: 20 log10(5) dB

    def figure(mask, region):
        name = f"psnr_source_{region}"
        return measured(Psnr(region=region), edited=edited, source=source, mask=mask)[name]

    assert figure(mask, "inside") == pytest.approx(13.979, abs=1e-3)
    assert figure(mask, "outside") == 60.0
    assert psnr(edited, source) == pytest.approx(13.979 + 3.010, abs=1e-3)
    assert figure(~mask, "inside") == 60.0
    assert figure(mask & False, "inside") is None


def test_videos_of_other_editors_are_found_by_name(edits, tmp_path):
    reference = read_manifest(tmp_path / "manifest.parquet")
    found = find_edits(tmp_path / "out", reference)
    assert [edit.edited and edit.edited.name for edit in found] == ["same.mp4", "large.mp4", None, "short.mp4"]
    first = measure(found, load_suite("preservation").metrics, progress=False)[0]
    assert first == measure(edits[:1], load_suite("preservation").metrics, progress=False)[0]
    write_manifest([{**reference[0], "id": "other"}], tmp_path / "one.parquet")
    by_source = tmp_path / "by_source"
    (by_source / "source").mkdir(parents=True)  # a folder of frames
    assert find_edits(by_source, read_manifest(tmp_path / "one.parquet"))[0].edited == by_source / "source"
    with pytest.raises(ValueError, match="No video in"):
        find_edits(by_source, reference)
    with pytest.raises(ValueError, match="is a folder: give --reference"):
        find_edits(by_source)
