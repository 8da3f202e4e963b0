import json

import numpy as np
import pytest

from icve.data.manifest import write_manifest
from icve.data.media.video import write_video
from icve.evaluation.demo_results import figures_text, write_results
from icve.evaluation.synthetic import Evaluation, save_evaluation, summarise

STAGES = {"pretrain": "pretraining on clips", "sft": "fine-tuning on pairs"}
TYPES = ("add", "style", "add")


def make_row(index: int) -> dict:
    row = {"id": f"e{index}", "edit_type": TYPES[index], "instruction": f"do <{index}>"}
    row |= {"success": index == 0, "nearest": ("target", "source", "distractor_2")[index]}
    for subject in ("psnr", "psnr_copy", "psnr_codec"):
        row |= {subject: 20.0, f"{subject}_inside": 15.0, f"{subject}_outside": None if index == 1 else 30.0}
    return row


@pytest.fixture
def output(tmp_path):
    """What two finished stages leave behind, for three held-out edits."""
    held_out = tmp_path / "data" / "held_out"
    clip = np.full((5, 16, 16, 3), 90, np.uint8)
    write_video(held_out / "clip.mp4", clip, 8)
    paths = {"source_path": "clip.mp4", "target_path": "clip.mp4"}
    wrong = {"distractor_instructions": ["a", "b", "paint it white", "d"]}
    rows = [make_row(index) for index in range(len(TYPES))]
    keys = ("id", "instruction", "edit_type")
    write_manifest([{key: row[key] for key in keys} | paths | wrong for row in rows], held_out / "manifest.parquet")
    for stage in STAGES:
        results = {row["id"]: clip for row in rows}
        save_evaluation(Evaluation(summarise(rows), rows, results), tmp_path / f"after_{stage}", fps=8)
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "config.yaml").write_text(f"stage: {stage}\n")
        log = "step,train/loss,val/loss_sigma_0.1,val/loss\n0,2.0,,\n1,1.0,,\n1,,0.5,0.6\n"
        (tmp_path / stage / "metrics.csv").write_text(log)
    return tmp_path


def test_metrics_and_report_tell_what_the_stages_left(output):
    metrics = write_results(output, STAGES, {"seed": 3, "fps": 8.0}, {"sft": 2.5, "total": 4.0}, examples_per_type=1)
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert metrics["after_sft"]["per_edit_type"]["style"]["psnr_outside"] is None
    assert metrics["seconds_sft"] == 2.5
    assert metrics["settings"]["seed"] == 3
    assert metrics["versions"]["torch"]
    page = (output / "report.html").read_text()
    assert page.count("<article") == 2  # one per type, the first ones
    assert "do &lt;0&gt;" in page
    assert page.count("σ 0.1") == page.count("weighted as in training") == 2
    assert "stage: sft" in page
    for label in ("source", "after pretraining", "after fine-tuning", "target"):
        assert page.count(f"<figcaption>{label}</figcaption>") == 2


def test_a_wrong_edit_is_named_by_its_instruction(output):
    write_results(output, STAGES, {"fps": 8.0}, {}, examples_per_type=2)
    page = (output / "report.html").read_text()
    assert page.count("<article") == 3
    assert "<dd>“paint it white”</dd>" in page
    assert "<dd>the source</dd>" in page


def test_text_table_has_a_row_per_type_and_aligned_columns():
    lines = figures_text(summarise([make_row(index) for index in range(3)])).splitlines()
    assert [line.split()[0] for line in lines] == ["edits", "add", "style", "all"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[1:3] == ["2", "50%"]
    assert "–" in lines[2]
