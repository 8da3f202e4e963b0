import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from icve.cli import main as cli
from icve.cli.demo import run as demo
from icve.curation.work import StageBroken
from icve.data.manifest import read_manifest, write_manifest
from icve.data.media.video import read_frames


def test_shipped_configurations_are_found_and_others_named(tmp_path):
    for stage in demo.TRAINING:
        assert demo.find_config(f"{stage}.yaml").is_file()
    with pytest.raises(demo.CannotRun, match="--configs"):
        demo.find_config("sft.yaml", tmp_path)


def test_another_backbone_has_the_last_word_in_training(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(cli, "main", lambda arguments: called.append(arguments) or 0)
    files = demo.find_configs("sft", "wan")
    demo.train("sft", files, tmp_path, tmp_path / "run", size=demo.TINY, seed=0, start=None)
    assert called[0][:5] == ["fit", "-c", str(files[0]), "-c", str(files[1])]
    assert [len(demo.find_configs("sft", backbone)) for backbone in demo.BACKBONES] == [1, 2]


def test_validation_pairs_share_no_video_with_training(tmp_path):
    rows = [
        {
            "source_path": f"videos/{index // 3}.mp4",
            "target_path": f"videos/{index // 3}.mp4",
            "instruction": f"do {index}",
        }
        for index in range(12)
    ]
    made = write_manifest(rows, tmp_path / "made" / "manifest.parquet", root=tmp_path / "raw")
    demo.hold_back(made, tmp_path / "clips", 4)
    train, validation = (read_manifest(tmp_path / "clips" / f"{name}.parquet") for name in ("train", "validation"))
    assert len(train) + len(validation) == 12
    assert len(validation) == 6
    assert not {row["source_path"] for row in train} & {row["source_path"] for row in validation}
    assert train.root == validation.root == tmp_path / "raw"


def test_data_too_small_to_hold_any_back_is_refused(tmp_path):
    row = {"source_path": "a.mp4", "target_path": "a.mp4", "instruction": "do"}
    with pytest.raises(demo.CannotRun, match="more raw videos"):
        demo.hold_back(write_manifest([row], tmp_path / "manifest.parquet"), tmp_path, 4)


@pytest.mark.parametrize("options", [["--raw_videos", "0"], ["--workers", "x"], ["--configs", "/nowhere"]])
def test_wrong_options_exit_with_2_and_a_sentence(options, tmp_path, capsys):
    try:
        status = demo.main(["--output", str(tmp_path / "demo"), *options])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "Traceback" not in (error := capsys.readouterr().err)
    assert error.strip()


def test_a_folder_with_something_else_is_not_touched(tmp_path, capsys):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "holiday.mp4").touch()
    assert demo.main(["--tiny", "--output", str(tmp_path)]) == 2
    assert "another --output" in capsys.readouterr().err
    assert (tmp_path / "data" / "raw" / "holiday.mp4").exists()


@pytest.mark.parametrize(("failure", "raised"), [(1, demo.TrainingFailed), (SystemExit(1), KeyboardInterrupt)])
def test_training_that_fails_or_is_interrupted_stops_the_demo(failure, raised, tmp_path, monkeypatch):
    def main(arguments):
        if isinstance(failure, BaseException):
            raise failure
        return failure

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(raised):
        demo.train("sft", [tmp_path / "sft.yaml"], tmp_path, tmp_path / "run", size=demo.TINY, seed=0, start=None)


@pytest.mark.parametrize(
    "failure",
    [StageBroken("Stage 2 (Measure) cannot start: no memory."), OSError(errno.ENOSPC, "No space left on device", "x")],
)
def test_curation_that_cannot_run_is_one_sentence(failure, tmp_path, monkeypatch, capsys):
    def run_pipeline(*_):
        raise failure

    monkeypatch.setattr("icve.curation.runner.run_pipeline", run_pipeline)
    assert demo.main(["--tiny", "--output", str(tmp_path), "--raw_videos", "1", "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("icve demo: ")
    assert str(failure) in error
    assert error.count("\n") == 1


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo from start to end, smaller than small."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert cli.main(["demo", "--tiny", "--output", str(folder), "--workers", "1"]) == 0
    return folder


@pytest.mark.slow
def test_demo_leaves_figures_report_models_and_edits(finished, capsys):
    metrics = read_metrics(finished)
    for stage in ("after_pretrain", "after_sft"):
        figures = metrics[stage]
        assert figures["count"] == 6
        assert list(figures["per_edit_type"]) == ["add", "remove", "replace", "recolour", "background", "style"]
        for name in ("psnr", "psnr_inside", "psnr_outside", "psnr_copy", "psnr_codec", "psnr_codec_outside"):
            assert np.isfinite(figures[name])
        assert figures["psnr"] < figures["psnr_codec"]
        assert 0 <= figures["success_ratio"] <= 1
    for kind in ("synthesize", "curate", "pretrain", "sft", "evaluate_sft", "total"):
        assert metrics[f"seconds_{kind}"] > 0
    assert (finished / "sft" / "checkpoints" / "last" / "model_index.json").is_file()
    assert read_frames(finished / "after_sft" / "edits" / "0000.mp4").shape == (9, 64, 64, 3)
    page = (finished / "report.html").read_text()
    assert page.count("<article") == 6
    assert page.count("<svg") == 4
    assert "demo_sft" in page  # the settings of both stages


@pytest.mark.slow
def test_a_second_run_repeats_nothing_and_a_changed_one_only_what_depends_on_it(finished, capsys):
    def titles(*options):
        assert cli.main(["demo", "--tiny", "--output", str(finished), "--workers", "1", *options]) == 0
        return [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("▶")]

    before = read_metrics(finished)
    assert titles() == []
    assert read_metrics(finished) == before
    assert titles("--sft_steps", "2") == [
        "fine-tuning on paired edits",
        "held-out edits after fine-tuning on paired edits",
    ]
    assert read_metrics(finished)["after_pretrain"] == before["after_pretrain"]


@pytest.mark.slow
def test_wan_learns_from_the_same_data_and_edits(finished, tmp_path, capsys):
    made = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    assert cli.main(["demo", "--tiny", "--output", str(made), "--workers", "1", "--backbone", "wan"]) == 0
    assert "6 held-out edits: kept from an earlier run" in capsys.readouterr().out
    metrics = read_metrics(made)
    assert metrics["settings"]["backbone"] == "wan"
    assert metrics["after_sft"]["psnr_copy"] == read_metrics(finished)["after_sft"]["psnr_copy"]
    index = json.loads((made / "sft" / "checkpoints" / "last" / "model_index.json").read_text())
    assert index["transformer"][1] == "WanInContextTransformer3DModel"
    assert read_frames(made / "after_sft" / "edits" / "0000.mp4").shape == (9, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
def test_a_killed_demo_goes_on_and_ends_with_the_same_figures(finished, tmp_path):
    command = [sys.executable, "-m", "icve", "demo", "--tiny", "--output", str(tmp_path / "out"), "--workers", "1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        steps = tmp_path / "out" / "pretrain" / "steps.jsonl"
        while not (steps.exists() and steps.read_text().count("\n") >= 2):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out" / "metrics.json").exists()
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert resumed.returncode == 0, resumed.stderr
    assert "6 held-out edits: kept from an earlier run" in resumed.stdout
    once, again = (read_metrics(folder)["after_pretrain"] for folder in (finished, tmp_path / "out"))
    for figures in (once, again):
        figures.pop("seconds_edit"), figures.pop("seconds_per_edit")
    assert once == again
