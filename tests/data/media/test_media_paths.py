import os
import shutil

import numpy as np
import pytest

from icve.data.media.media_paths import foreign_path, media_path, refuse_foreign
from icve.data.media.video import VideoError, probe, read_frames, write_video

ODD = ["2024-05-01T12:30:00.mp4", "http:clip.mp4", "-c%03d.mp4", "a\nb\u2028.mp4", "q?x#y [z].mp4", "caf\udce9.mp4"]


@pytest.mark.parametrize("name", ODD)
def test_a_relative_path_is_a_file_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    frames = np.full((3, 96, 96, 3), 90, np.uint8)
    write_video(name, frames, 8)
    write_video("plain.mp4", frames, 8)
    assert probe(name).frames == 3
    assert np.array_equal(read_frames(name), read_frames("plain.mp4"))
    shutil.copyfile(name, "copy.mkv")
    assert media_path("x:y") == f"{tmp_path}/x:y"


def test_a_path_above_a_linked_folder_is_the_systems(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    name = tmp_path / "link" / ".." / "clip.mp4"
    write_video(name, np.full((3, 96, 96, 3), 90, np.uint8), 8)
    assert (tmp_path / "a" / "clip.mp4").is_file()
    assert probe(name).frames == 3


@pytest.mark.skipif(os.name == "nt", reason="such paths are right there")
@pytest.mark.parametrize("path", ["C:\\clips\\a.mp4", "d:/clips/a.mp4", "clips\\a.mp4", "\\\\server\\a.mp4"])
def test_a_windows_path_is_named_as_one(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert foreign_path(path).startswith(f"{path} is a Windows path: write it ")
    with pytest.raises(VideoError, match="it is a Windows path") as error:
        probe(path)
    assert error.value.reason.count("a.mp4") == 0  # the path stands before it
    assert foreign_path("clips/a:b.mp4") is None


@pytest.mark.skipif(os.name == "nt", reason="such paths are right there")
def test_a_file_of_such_a_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open("clips\\a.mp4", "w").close()
    assert foreign_path("clips\\a.mp4") is None


@pytest.mark.skipif(os.name == "nt", reason="such paths are right there")
def test_options_with_windows_paths_are_refused():
    refuse_foreign(["fit", "-c", "a.yaml", "--lr=1e-3", None, 3, "a\\d"])
    for words in (["-c", "C:\\a.yaml"], ["--trainer.default_root_dir=C:\\runs"]):
        with pytest.raises(ValueError, match="is a Windows path"):
            refuse_foreign(words)
