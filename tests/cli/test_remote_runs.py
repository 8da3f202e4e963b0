"""Runs that upload their checkpoints and go on from a URL, and edits of models and videos behind URLs."""

import json
import os
import shutil
import signal
import tarfile
import time

import pytest
import yaml

from icve.cli.convert import main as convert
from icve.cli.edit import main as edit
from icve.cli.evaluate import main as evaluate
from icve.cli.main import main as icve
from icve.editing.results import ResultLog
from icve.models.remote_runs import checkpoints_behind
from icve.runtime.storage import remote_path
from icve.runtime.storage.remote_path import as_path
from icve.training.checkpoints import uploads
from tests.s3_server import upload
from tests.training import conftest as training
from tests.training.runs import start, steps

tiny_manifest, tiny_yaml = training.tiny_manifest, training.tiny_yaml  # fixtures
CHECKPOINTS = "icve.training.callbacks.checkpoints.Checkpoints"


def set_upload(path, url, **options):
    """Write a configuration's checkpoints and where they are uploaded to."""
    config = yaml.safe_load(path.read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == CHECKPOINTS:
            callback["init_args"] |= {"upload": str(url), **options}
    path.write_text(yaml.safe_dump(config))


def bucket(name):
    """A new bucket."""
    remote_path._file_system("s3", os.getpid()).mkdir(name)
    return as_path(f"s3://{name}/runs/a")


def fit(path, run, *arguments):
    """Exit status of `icve fit`."""
    return icve(["fit", "-c", str(path), "--trainer.default_root_dir", str(run), *map(str, arguments)])


def state(run):
    """The files of a run's last training state."""
    folder = run / "checkpoints" / "last"
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("state/*")}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_goes_on_from_its_bucket_on_an_empty_disk(s3, tiny_yaml, tiny_manifest, tmp_path, caplog):
    caplog.set_level("INFO")
    assert fit(tiny_yaml, tmp_path / "whole", "--trainer.max_steps", 6) == 0
    url = bucket("resumed")
    set_upload(tiny_yaml, url, keep_last=1, asynchronous=True)
    same = ["--trainer.max_steps", 6, "--ckpt_path", url]
    assert fit(tiny_yaml, tmp_path / "first", "--trainer.max_steps", 4, "--ckpt_path", url) == 0
    said = caplog.text
    assert f"{url} is the run's own folder and holds no checkpoint yet" in said
    assert f"All checkpoints are uploaded to {url}." in said
    assert [folder.name for folder, _ in checkpoints_behind(url)] == ["step-000004"]
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (url / "checkpoints" / "step-000006" / "trainer.ckpt").upload(tiny_yaml)  # of an upload that was killed
    assert fit(tiny_yaml, tmp_path / "second", *same) == 0
    assert "resumes at step 4" in caplog.text
    assert steps(tmp_path / "second") == steps(tmp_path / "whole")[len(steps(tmp_path / "whole")) // 6 * 4 :]
    assert state(tmp_path / "second") == state(tmp_path / "whole")
    assert [folder.name for folder, _ in checkpoints_behind(url)] == ["step-000006"]
    # Another stage starts from it, and an editor is made and edits with it.
    set_upload(tiny_yaml, url.parent / "next")
    assert fit(tiny_yaml, tmp_path / "next", "--model.stage", "next", "--ckpt_path", url, "--trainer.max_steps", 1) == 0
    assert f"from the weights in {url}/checkpoints/step-000006 of stage 'tiny', step 6" in caplog.text
    assert convert(["editor", "--input", str(url), "--output", str(tmp_path / "editor")]) == 0
    clip = upload(tiny_manifest.parent, "s3://resumed/clips")
    words = ["--model", str(url), "--output", str(tmp_path / "out"), "--instruction", "remove it"]
    assert edit([*words, "--input", f"{clip}/source0.mp4", "--steps", "1"]) == 0
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert row["settings"]["model"] == f"{url}/checkpoints/step-000006"
    assert row["source"] == f"{clip}/source0.mp4"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
def test_killed_while_it_uploads_it_goes_on_elsewhere_from_what_is_whole(s3, tiny_yaml, watched, tmp_path, caplog):
    caplog.set_level("INFO")
    assert fit(tiny_yaml, tmp_path / "whole") == 0
    url = bucket("killed")
    set_upload(tiny_yaml, url)
    assert fit(tiny_yaml, tmp_path / "first", "--trainer.max_steps", 2) == 0
    held = "step-000004/state"  # what is asked for there is answered with an error
    s3.refused = held
    process = watched(start(tiny_yaml, "--trainer.default_root_dir", tmp_path / "first", "--ckpt_path", url))
    deadline = time.monotonic() + 100
    while not any(held in path for _, path, _ in s3.log):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    s3.refused = None
    remote_path.forget()
    assert any("step-000004" in name for name in url.listing())
    assert [folder.name for folder, _ in checkpoints_behind(url)] == ["step-000002"]
    assert fit(tiny_yaml, tmp_path / "second", "--ckpt_path", url) == 0
    assert "resumes at step 2" in caplog.text
    assert state(tmp_path / "second") == state(tmp_path / "whole")
    assert [folder.name for folder, _ in checkpoints_behind(url)] == ["step-000004", "step-000002"]


@pytest.mark.slow
def test_a_server_that_dies_ends_no_training_and_the_next_command_makes_up_for_it(
    s3, tiny_yaml, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(uploads, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "2")
    url = bucket("dead")
    set_upload(tiny_yaml, url)
    claim = uploads.claim

    def claim_and_die(*arguments):
        claim(*arguments)
        s3.failing = "503"

    monkeypatch.setattr(uploads, "claim", claim_and_die)
    run, same = tmp_path / "run", ["--trainer.max_steps", 2]
    assert fit(tiny_yaml, run, *same) == 3
    said = capsys.readouterr().err
    assert said.count("Checkpoints are not uploaded to") == 1
    assert f"with --ckpt_path {run}, the same command uploads them" in said
    s3.failing = None
    monkeypatch.setattr(uploads, "claim", claim)
    remote_path.forget()
    assert fit(tiny_yaml, run, *same, "--ckpt_path", run) == 2
    assert "Nothing to train" in capsys.readouterr().err
    assert [folder.name for folder, _ in checkpoints_behind(url)] == ["step-000002"]


@pytest.mark.slow
def test_runs_are_written_to_local_folders(s3, tiny_yaml, tmp_path, capsys):
    assert fit(tiny_yaml, "s3://bucket/run") == 2
    assert "name a local folder for the run, and give the URL to Checkpoints as `upload`" in capsys.readouterr().err
    set_upload(tiny_yaml, tmp_path)
    assert fit(tiny_yaml, tmp_path / "run") == 2
    assert "is on a local disk: give the URL of a store" in capsys.readouterr().err


def test_results_are_written_to_local_folders(capsys):
    for command, words in (
        (edit, ["--input", "a.mp4", "--instruction", "x", "--output", "s3://bucket/out"]),
        (convert, ["weights", "--input", "a", "--output", "s3://bucket/out"]),
        (evaluate, ["run", "preservation", "--results", "s3://bucket/results.jsonl"]),
    ):
        assert command(words) == 2
        assert "a URL: results are written to local folders" in capsys.readouterr().err


def test_videos_and_manifests_behind_urls_are_edited_and_measured(s3, tiny_model, make_clip, tmp_path, capsys):
    folder = tmp_path / "up"
    folder.mkdir()
    for seed, name in enumerate(("a.mp4", "b.mp4")):
        make_clip(name, seed=seed).rename(folder / name)
    (folder / "notes.txt").write_text("no video")
    with tarfile.open(folder / "clips.tar", "w") as archive:
        archive.add(folder / "b.mp4", "b.mp4")
    names = ("a.mp4", "gone.mp4", "clips.tar/b.mp4")
    rows = [{"source_path": name, "target_path": name, "instruction": "remove it"} for name in names]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = upload(folder, f"memory://{tmp_path.name}/clips")
    model = upload(tiny_model, f"memory://{tmp_path.name}/model")
    words = ["--model", model, "--steps", "1", "--output", str(tmp_path / "out")]
    assert edit([*words, "--input", url, "--instruction", "remove it"]) == 0
    assert "3 files are left out. no suffix of a video: 3 (clips.tar, edits.jsonl" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").glob("*.mp4")} == {"a.mp4", "b.mp4"}
    assert edit([*words, "--input", url, "--instruction", "remove it"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 2
    words[-1] = str(tmp_path / "table")
    assert edit([*words, "--input", f"{url}/edits.jsonl"]) == 3
    errors = {row["source"]: row["error"] for row in ResultLog(tmp_path / "table").read().values()}
    assert "gone.mp4 cannot be decoded" in errors.pop("gone.mp4")
    assert errors == {"a.mp4": None, "clips.tar/b.mp4": None}
    results = str(tmp_path / "table" / "results.jsonl")
    evaluate(["run", "preservation", "--results", results, "--reference", f"{url}/edits.jsonl"])
    assert json.loads((tmp_path / "table" / "metrics.json").read_text())
