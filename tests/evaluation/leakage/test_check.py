"""`icve eval leakage` on files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from icve.cli import evaluate
from icve.data.manifest import write_manifest
from icve.data.media.video import write_video
from icve.evaluation.leakage import hashing
from icve.synthetic.paired_clips import make_pair


@pytest.fixture(scope="module")
def scenes():
    return [make_pair("train", 8, index, with_distractors=False).source for index in range(4)]


@pytest.fixture(scope="module")
def written(tmp_path_factory, scenes):
    """Training videos 0 to 2; test videos: a cut and smaller copy of 1, and 3, which is clean."""
    folder = tmp_path_factory.mktemp("leakage")
    for number in range(3):
        write_video(folder / "train" / f"{number}.mp4", scenes[number], 8)
    write_video(folder / "test" / "copy.mp4", scenes[1][2:, ::2, ::2], 8, crf=28)
    write_video(folder / "test" / "clean.mp4", scenes[3], 8)
    return folder


@pytest.fixture
def folders(tmp_path, written):
    return Path(shutil.copytree(written, tmp_path / "own"))


def leakage(folder, *words):
    return evaluate.main(["leakage", str(folder / "train"), str(folder / "test"), *words])


def test_a_copy_is_shown_and_written_and_ends_in_status_4(folders, capsys):
    assert leakage(folders, "--output", str(folders / "out" / "leaks.json")) == 4
    said = capsys.readouterr().out
    assert "1 of 2 test clips are in the training data (3 clips)." in said
    assert "copy.mp4" in said
    (row,) = json.loads((folders / "out" / "leaks.json").read_text())
    assert (Path(row["test_path"]).name, Path(row["train_path"]).name) == ("copy.mp4", "1.mp4")
    assert row["matched_seconds"] == pytest.approx(7 / 8, abs=0.2)
    assert 0.6 < row["score"] <= 1


def test_clean_data_end_in_status_0_with_an_empty_table(folders, capsys):
    (folders / "test" / "copy.mp4").unlink()
    assert leakage(folders, "--output", str(folders / "leaks.parquet")) == 0
    assert "0 of 1 test clips" in capsys.readouterr().out
    table = parquet.read_table(folders / "leaks.parquet")
    assert (table.num_rows, table.num_columns) == (0, 8)


def test_a_broken_video_costs_itself_alone(folders, capsys):
    (folders / "train" / "broken.mp4").write_text("no video")
    assert leakage(folders) == 4
    assert "broken.mp4" in capsys.readouterr().err
    (folders / "test" / "copy.mp4").unlink()
    assert leakage(folders) == 3
    assert "1 videos or rows could not be read" in capsys.readouterr().err


def test_hashes_are_kept_and_made_anew_only_for_what_changed(folders, monkeypatch, scenes):
    words = ("--hashes", str(folders / "hashes.parquet"))
    assert leakage(folders, *words) == 4
    hashed = []
    whole = hashing.fingerprint
    monkeypatch.setattr(hashing, "fingerprint", lambda clip, every: hashed.append(clip.file.name) or whole(clip, every))
    assert leakage(folders, *words) == 4
    assert hashed == []
    write_video(folders / "train" / "1.mp4", scenes[0], 8)
    os.utime(folders / "train" / "1.mp4", ns=(1, 1))
    assert leakage(folders, *words) == 0
    assert hashed == ["1.mp4"]


def test_what_was_hashed_before_an_interruption_is_kept(folders, monkeypatch):
    whole = hashing.fingerprint

    def interrupted(clip, every):
        if clip.file.name == "2.mp4":
            raise KeyboardInterrupt
        return whole(clip, every)

    monkeypatch.setattr(hashing, "fingerprint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        leakage(folders, "--hashes", str(folders / "hashes.parquet"))
    assert parquet.read_table(folders / "hashes.parquet").num_rows == 2


def test_clips_of_manifests_are_compared_not_their_whole_files(folders, capsys, scenes):
    """A film of three scenes: training has the first and, as targets, the second."""
    film = folders / "film.mp4"
    write_video(film, np.concatenate(scenes[:3]), 8)
    common = {"source_path": "film.mp4", "source_frames": 9, "instruction": "x", "target_frames": 9}
    row = common | {"source_start": 0, "target_path": "film.mp4", "target_start": 9}
    write_manifest([row], folders / "train.parquet")
    for number in (0, 2):
        shutil.rmtree(folders / "test", ignore_errors=True)
        write_video(folders / "test" / "one.mp4", scenes[number], 8)
        status = evaluate.main(["leakage", str(folders / "train.parquet"), str(folders / "test")])
        assert status == (4 if number == 0 else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "leaks.txt"], "--output must end in .parquet, .jsonl or .json, not leaks.txt"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--hashes", "train/0.mp4"], "is no file of hashes: give --hashes another name"),
    ],
)
def test_wrong_arguments_end_in_status_2(folders, monkeypatch, words, message, capsys):
    monkeypatch.chdir(folders)
    assert leakage(folders, *words) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_compare_is_named(folders, capsys):
    assert evaluate.main(["leakage", str(folders / "absent"), str(folders / "test")]) == 2
    assert "absent: give a folder of videos or a manifest" in capsys.readouterr().err
